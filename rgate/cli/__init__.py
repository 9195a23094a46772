"""The subcommands that ask a running gateway, or read what it has left: how they ask, and what they make of the answer."""
