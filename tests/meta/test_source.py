"""Habits that a reader relies on: which modules print, and that nothing is left for later."""

from __future__ import annotations

import re

import pytest

from .source import FILES, calls

PRINTING = {"rgate.cli.main", "rgate.cli.console", "rgate.cli.healthcheck"}


@pytest.mark.parametrize("name", FILES)
def test_module_prints_only_where_it_should(name: str) -> None:
    printing = {
        call for call in calls(name) if call in ("print", "click.echo", "click.secho", "sys.stdout.write", "sys.stderr.write")
    }
    assert not printing or name in PRINTING, f"{name} calls {printing}; only {PRINTING} print"


@pytest.mark.parametrize("name", FILES)
def test_module_is_finished(name: str) -> None:
    text = FILES[name].read_text()
    assert not re.findall(r"\b(?:TODO|FIXME|XXX|NotImplementedError)\b", text)
