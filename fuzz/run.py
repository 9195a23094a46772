"""Run a target under atheris: `python -m fuzz.run TARGET [libFuzzer options] [corpus folders]`."""

from __future__ import annotations

import importlib
import sys


def main() -> None:
    """Fuzz until an option of libFuzzer, a finding or Ctrl-C ends it."""
    import atheris  # type: ignore[import-not-found, import-untyped, unused-ignore]  # not a dependency of the tests

    atheris.enabled_hooks.add("str")
    name = sys.argv.pop(1)
    sys.argv[0] = f"{sys.executable} -m fuzz.run {name}"  # the command that -merge=1 starts again
    with atheris.instrument_imports(include=["rgate.http1", "rgate.serving", "fuzz", "tests.security.strict"]):
        target = importlib.import_module(f"fuzz.{name}")
    atheris.Setup(sys.argv, target.one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
