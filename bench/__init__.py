"""Gateways side by side: `python -m bench --help`. docs/performance.md says how to read what comes out."""
