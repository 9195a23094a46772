"""Validation of a tree by a pydantic model: its errors become problems in plain words, each at its place in the file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar, get_args

from pydantic import AliasChoices, BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from .messages import did_you_mean, join_names
from .tree import Node, Path, Report

__all__ = ["keys_of", "unknown_key", "validate"]

_M = TypeVar("_M", bound=BaseModel)

_TYPES: Mapping[str, str] = {
    "bool": "true or false",
    "bytes": "text",
    "dataclass": "a mapping (key: value)",
    "date": "a date",
    "datetime": "a date and time",
    "decimal": "a number",
    "dict": "a mapping (key: value)",
    "float": "a number",
    "frozen_set": "a list",
    "int": "a whole number",
    "iterable": "a list",
    "list": "a list",
    "mapping": "a mapping (key: value)",
    "model": "a mapping (key: value)",
    "none": "nothing",
    "set": "a list",
    "string": "text",
    "time_delta": "a duration",
    "tuple": "a list",
}
_WRONG_TYPE = re.compile(r"(.+?)(?:_attributes)?_(?:type|parsing|parsing_size|from_float|required|sub_type|unicode)")
_UNITS: Mapping[str, Mapping[str, float]] = {
    "_seconds": {"ms": 0.001, "s": 1, "sec": 1, "m": 60, "min": 60, "h": 3_600, "d": 86_400},
    "_bytes": {"b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
    | {f"{letter}b": 1_000**power for power, letter in enumerate("kmg", 1)}
    | {f"{letter}ib": 1_024**power for power, letter in enumerate("kmg", 1)},
    "_megabytes": {"m": 1, "mb": 1, "mib": 1, "g": 1_024, "gb": 1_024, "gib": 1_024},
    "_days": {"d": 1, "days": 1, "w": 7},
    "_percent": {},
}
_LIMITS: Mapping[str, str] = {
    "enum": "{expected}",
    "finite_number": "a finite number",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "literal_error": "{expected}",
    "multiple_of": "a multiple of {multiple_of}",
    "string_pattern_mismatch": "text like {pattern}",
    "string_too_long": "a length of at most {max_length}",
    "string_too_short": "a length of at least {min_length}",
    "too_long": "a length of at most {max_length}",
    "too_short": "a length of at least {min_length}",
}


def validate(model: type[_M], root: Node, report: Report) -> _M | None:
    """`root` as an instance of `model`, or None if no part of it is valid.

    Every problem is added to `report` and its node is dropped from the tree, so that the rest can still be checked: instead of
    an invalid option its default is used; without a valid required option the whole entry is dropped.
    """
    instance = None
    again = True
    while again and instance is None:
        try:
            instance = model.model_validate(root.plain())
        except ValidationError as error:
            places = _by_place(root, error)
            for place, group in places.items():
                _add(model, root, place, group, report)
            again = _drop(root, places, report)
    for node, message in _silently_ignored(instance or model.model_construct(), root):
        report.add(node, message)
    return instance


def _by_place(root: Node, error: ValidationError) -> dict[Path, list[ErrorDetails]]:
    """Errors by path, without the parts of `loc` that name a member of a union instead of a node."""
    places: dict[Path, list[ErrorDetails]] = {}
    for details in error.errors(include_url=False, include_input=False):
        path = details["loc"]
        if details["type"] != "missing":
            path = path[: len(path) - len(root.find(path)[1])]
        places.setdefault(path, []).append(details)
    return places


def _add(model: type[BaseModel], root: Node, place: Path, group: list[ErrorDetails], report: Report) -> None:
    node, rest = root.find(place)
    if group[0]["type"] == "missing":
        if not report.was_dropped(node.path + rest):
            report.add(node, "is missing", rest)
        return
    if group[0]["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        report.add(node, unknown_key(str(place[-1]), _known_keys(_models_at(model, place[:-1]))))
        return
    expected = [phrase for phrase in dict.fromkeys(map(_expected, group)) if phrase]
    if expected:
        report.add(node, f"expected {' or '.join(expected)}, found {node.shown()}{_hint(node, expected, group)}")
    for details in group:
        if not _expected(details):
            report.add(node, _message(node, details))


def _drop(root: Node, places: Iterable[Path], report: Report) -> bool:
    """Drop the nodes at these places, or the entries around them if they are missing. False if that is the root."""
    found = {place[: len(place) - len(root.find(place)[1])] for place in places}
    if () in found:
        report.dropped(root)
        return False
    nodes = [root.find(place)[0] for place in found]
    for place in sorted(found, key=lambda place: [(isinstance(part, str), part) for part in place], reverse=True):
        root.drop(place)  # from the end, so that no index changes
    for node in nodes:
        report.dropped(node)
    return True


def _expected(details: ErrorDetails) -> str:
    """The kind of value that pydantic expected, as a phrase; empty if the error does not say."""
    kind = details["type"]
    if kind in _LIMITS:
        return _LIMITS[kind].format_map({key: _number(value) for key, value in details.get("ctx", {}).items()})
    match = _WRONG_TYPE.fullmatch(kind)
    return _TYPES.get(match[1], "") if match else ""


def _message(node: Node, details: ErrorDetails) -> str:
    cause = details.get("ctx", {}).get("error")
    words = str(cause) if cause is not None else details["msg"][:1].lower() + details["msg"][1:]
    if node.secret and isinstance(node.value, str) and node.value in words:
        return "the value is not valid"
    return words or "the value is not valid"


def _hint(node: Node, expected: list[str], group: list[ErrorDetails]) -> str:
    if node.secret or node.source is not None:
        return ""
    if node.value is None:
        return "; fill it in or leave the key out"
    if "match_labels" in node.path[-2:] and (label := _as_label(node)):
        return f"; write {label if isinstance(node.path[-1], int) else f'[{label}]'}"
    if expected == ["text"] and isinstance(node.value, bool | int | float):
        return "; put it in quotes"
    if expected == ["true or false"]:
        meant = {"yes": "true", "on": "true", "no": "false", "off": "false"}.get(str(node.value).lower())
        return f"; write {meant}" if meant else ""
    if isinstance(node.value, str) and expected[0] in ("a number", "a whole number") and (said := _in_unit(node)):
        return said
    if expected == ["a list"] and isinstance(node.value, str):
        return f"; write [{node.value}]"
    if isinstance(node.value, str) and group[0]["type"] in ("literal_error", "enum"):
        return did_you_mean(node.value, [word for word in str(group[0].get("ctx", {}).get("expected", "")).split("'") if word])
    return ""


def _as_label(node: Node) -> str:
    """`app_name=orders` for the mapping {app_name: orders}, which is what YAML reads from `- app_name: orders`."""
    pairs = [f"{key}={below.value}" for key, below in node.items().items() if isinstance(below.value, str | int | float)]
    return ", ".join(pairs)


def _in_unit(node: Node) -> str:
    """The hint for a number with a unit: the same in the unit that the key is named after."""
    unit, factors = next(((unit, factors) for unit, factors in _UNITS.items() if str(node.path[-1]).endswith(unit)), ("", {}))
    amount = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([a-zA-Z]+)", str(node.value))
    if not unit:
        return ""
    if amount is None or amount[2].lower() not in factors:
        return f"; it is a number of {unit.strip('_')}"
    value = float(amount[1]) * factors[amount[2].lower()]
    return f"; it is a number of {unit.strip('_')}, so write {value:.15g}"


def _number(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def unknown_key(key: str, known: Iterable[str]) -> str:
    known = set(known)
    return f"unknown key {key!r}{did_you_mean(key, known) or f'; the keys here are {join_names(known)}'}"


def keys_of(model: type[Any]) -> dict[str, str]:
    """The keys that a model (or pydantic dataclass) reads, each with its field."""
    config = getattr(model, "__pydantic_config__", None) or getattr(model, "model_config", {})
    by_name = config.get("populate_by_name") or config.get("validate_by_name")
    keys = {}
    for name, field in _fields(model).items():
        if field.init is False:  # set later, not a key of the file
            continue
        alias = field.validation_alias or field.alias
        for key in alias.choices if isinstance(alias, AliasChoices) else [alias]:
            if isinstance(key, str):
                keys[key] = name
        if alias is None or by_name:
            keys[name] = name
    return keys


def _fields(model: type[Any]) -> Mapping[str, FieldInfo]:
    fields: Mapping[str, FieldInfo] = model.__pydantic_fields__
    return fields


def _known_keys(models: Iterable[type[Any]]) -> set[str]:
    return {key for model in models for key in keys_of(model)}


def _models_at(model: type[Any], path: Path) -> set[type[Any]]:
    """The models that may stand at a path under `model`."""
    models = {model}
    for part in path:
        fields = [_fields(m)[keys_of(m)[part]] for m in models if isinstance(part, str) and part in keys_of(m)]
        if fields:
            models = {found for field in fields for found in _models_in(field.annotation)}
    return models


def _models_in(annotation: Any) -> Iterator[type[Any]]:
    if isinstance(annotation, type) and hasattr(annotation, "__pydantic_fields__"):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)


def _silently_ignored(value: object, node: Node) -> Iterator[tuple[Node, str]]:
    """Keys that pydantic has ignored silently, because the plugin's model does not set `extra`."""
    if isinstance(value, BaseModel):
        fields = keys_of(type(value))
        for key, entry in node.items().items():
            if key in fields:
                yield from _silently_ignored(getattr(value, fields[key], None), entry)
            elif type(value).model_config.get("extra") is None:
                yield entry, unknown_key(key, fields)
    elif isinstance(value, Mapping):
        for key, entry in node.items().items():
            yield from _silently_ignored(value.get(key), entry)
    elif isinstance(value, list | tuple):
        for element, entry in zip(value, node.entries(), strict=False):
            yield from _silently_ignored(element, entry)
