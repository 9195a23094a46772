"""A config as plain values without secrets: for `/-/config`, where a value from the environment is shown by its variable."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, Final

from .tree import Path, is_secret, without_password

if TYPE_CHECKING:
    from .models import Config

__all__ = ["HIDDEN", "redacted", "without_password"]

HIDDEN: Final = "***"


def redacted(config: Config, sources: Mapping[Path, str], inline: Collection[str] = ()) -> dict[str, Any]:
    """The whole of `config` in the keys of the file.

    `sources` has the texts in which variables stood, as they are in the file. `inline` are the plugins whose options are keys
    of a backend themselves.
    """
    plain: dict[str, Any] = config.model_dump(mode="json", by_alias=True, fallback=repr, exclude={"disabled"})
    for route in plain["routes"]:
        route["plugins"] = {name: False if options is None else options for name, options in route["plugins"].items()}
    for backend in plain["backends"]:
        backend["tls"].pop("fingerprint")
        for name, options in backend.pop("options").items():
            backend |= options if name in inline else {name: False if options is None else options}
    for name, options in plain["plugins"].items():
        if common := config.plugin_common(name).model_dump(mode="json", exclude_defaults=True):
            plain["plugins"][name] = {**(options or {}), **common}
    plain["plugins"]["disable"] = sorted(config.disabled)
    return {key: _redacted(value, (key,), sources) for key, value in plain.items()}


def _redacted(value: Any, path: Path, sources: Mapping[Path, str]) -> Any:
    if isinstance(value, dict):
        return {key: _redacted(below, (*path, key), sources) for key, below in value.items()}
    if isinstance(value, list):
        return [_redacted(below, (*path, index), sources) for index, below in enumerate(value)]
    if value is not None and not isinstance(value, bool) and any(isinstance(key, str) and is_secret(key) for key in path):
        return HIDDEN
    if path in sources:
        return without_password(sources[path])
    return without_password(value) if isinstance(value, str) else value
