"""Ways to load a config in a test."""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import dedent

import pytest

from rgate.config import Config, load_text
from rgate.errors import ConfigError
from rgate.plugin.registry import Registry

ONE_BACKEND = "backends: [{name: orders, endpoints: ['http://127.0.0.1:9']}]\n"


def loaded(text: str, registry: Registry | None = None, environ: Mapping[str, str] | None = None) -> Config:
    """The config in an indented text."""
    return load_text(dedent(text).lstrip("\n"), registry or Registry(), environ or {})


def problems(text: str, registry: Registry | None = None, environ: Mapping[str, str] | None = None) -> list[str]:
    """The lines of the ConfigError that loading the text raises."""
    with pytest.raises(ConfigError) as caught:
        loaded(text, registry, environ)
    return str(caught.value).splitlines()
