"""Every hook is documented with its exact arguments, and tested."""

from __future__ import annotations

import inspect

import pytest

from rgate.plugin.hookspecs import HookSpecs

from .source import ROOT

HOOKS = {
    name: f"{name}({', '.join(list(inspect.signature(function).parameters)[1:])})"
    for name, function in vars(HookSpecs).items()
    if name.startswith("rgate_")
}


def test_hooks_are_those_of_the_design() -> None:
    assert len(HOOKS) == 8, sorted(HOOKS)


@pytest.mark.parametrize("name", HOOKS)
def test_hook_is_documented_with_its_arguments(name: str) -> None:
    documentation = ROOT / "docs" / "plugins.md"
    assert documentation.exists(), "docs/plugins.md is missing"
    assert HOOKS[name] in documentation.read_text(), f"docs/plugins.md does not show {HOOKS[name]}"
    assert vars(HookSpecs)[name].__doc__


@pytest.mark.parametrize("name", HOOKS)
def test_hook_is_implemented_in_a_test(name: str) -> None:
    tests = [path for path in (ROOT / "tests").rglob("test_*.py") if f"def {name}(" in path.read_text()]
    assert tests, f"no test implements {name}"
