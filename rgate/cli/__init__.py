"""The command line: serving, checking a config, asking a running gateway, the demo. Only this package prints."""
