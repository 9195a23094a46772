"""A config as values that may be shown: secrets out, what came from the environment by its name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from .tree import Path, is_secret, without_password

if TYPE_CHECKING:
    from .models import Config

__all__ = ["HIDDEN", "shown", "without_password"]

HIDDEN: Final = "***"


def shown(config: Config, sources: Mapping[Path, str]) -> dict[str, Any]:
    """The whole of `config` in the keys of the file. `sources` says which texts had variables in them, as they stand there."""
    plain: dict[str, Any] = config.model_dump(mode="json", by_alias=True, fallback=repr, exclude={"disabled"})
    for name, options in plain["plugins"].items():
        if treatment := config.treatment(name).model_dump(mode="json", exclude_defaults=True):
            plain["plugins"][name] = {**(options or {}), **treatment}
    plain["plugins"]["disable"] = sorted(config.disabled)
    return {key: _shown(value, (key,), sources) for key, value in plain.items()}


def _shown(value: Any, path: Path, sources: Mapping[Path, str]) -> Any:
    if isinstance(value, dict):
        return {key: _shown(below, (*path, key), sources) for key, below in value.items()}
    if isinstance(value, list):
        return [_shown(below, (*path, index), sources) for index, below in enumerate(value)]
    if value is not None and not isinstance(value, bool) and any(isinstance(key, str) and is_secret(key) for key in path):
        return HIDDEN
    if path in sources:
        return without_password(sources[path])
    return without_password(value) if isinstance(value, str) else value
