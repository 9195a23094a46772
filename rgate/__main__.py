"""`python -m rgate`, and the command `rgate`."""

from __future__ import annotations

import os
import sys

__all__ = ["main"]


def main() -> int:
    """Run the command line of this process and return its exit code."""
    match sys.argv[1:]:
        case ["healthcheck", "--url", url]:
            # It runs every few seconds, and the command line takes a third of a second to import.
            from .cli.healthcheck import run

            return run(url)
        case ["healthcheck"] if not os.path.isfile("config.yml"):  # otherwise that says which gateway to ask
            from .cli.healthcheck import run

            return run()
    from .cli.main import main as run_command

    return run_command()


if __name__ == "__main__":
    raise SystemExit(main())
