"""Config that changes while requests go on."""
