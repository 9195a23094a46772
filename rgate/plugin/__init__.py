"""Plugins: their hooks, how they are found and registered, `use:`, and the attribution of failures."""
