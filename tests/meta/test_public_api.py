"""The exports of `rgate` are exactly its `__all__`, and all of them are documented."""

from __future__ import annotations

import importlib
import inspect
from types import ModuleType

import pytest

import rgate
from rgate.plugin import api

from .source import FILES


def test_all_is_exactly_what_is_there() -> None:
    there = {name for name, value in vars(api).items() if not name.startswith("_") and not isinstance(value, ModuleType)}
    assert {*rgate.__all__} == there | {"__version__"}
    assert len(rgate.__all__) == len({*rgate.__all__})


@pytest.mark.parametrize("name", [name for name in rgate.__all__ if callable(getattr(rgate, name))])
def test_exported_class_or_function_is_documented(name: str) -> None:
    value = getattr(rgate, name)
    assert value.__doc__ and not value.__doc__.startswith(f"{name}("), f"rgate.{name} has no docstring"
    if inspect.isclass(value):
        undocumented = [
            f"{name}.{method}"
            for method, function in vars(value).items()
            if inspect.isfunction(function) and not method.startswith("_") and not function.__doc__
        ]
        assert not undocumented


@pytest.mark.parametrize("name", [name for name in FILES if not name.endswith("__main__")])
def test_module_says_what_it_is_and_has_what_it_exports(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__, f"{name} has no docstring"
    missing = [exported for exported in getattr(module, "__all__", ()) if not hasattr(module, exported)]
    assert not missing, f"{name}.__all__ names {missing}"


def test_typed_marker_is_shipped() -> None:
    assert (FILES["rgate"].parent / "py.typed").exists()
