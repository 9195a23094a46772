"""Helpers for the wording of problems."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["as_yaml", "did_you_mean", "join_names"]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'orders'?` when one of `known` is close to `word`, else the empty string."""
    close = difflib.get_close_matches(word, sorted(set(known)), 1)
    return f"; did you mean {close[0]!r}?" if close else ""


def join_names(names: Iterable[str], none: str = "none") -> str:
    """The names, sorted and joined with commas; `none` if there are no names."""
    return ", ".join(sorted(set(names))) or none


def as_yaml(value: object) -> str:
    """A scalar as the operator wrote it, cut if it is long; "a list" and "a mapping" for the others."""
    match value:
        case None:
            return "nothing"
        case bool():
            return str(value).lower()
        case str():
            return repr(value) if len(value) <= 60 else f"{value[:50]!r}…"
        case list() | tuple():
            return "a list"
        case dict():
            return "a mapping"
        case _:
            return str(value)
