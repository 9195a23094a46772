"""The config as a tree of nodes with their places in the file, and the report that collects its problems."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias
from urllib.parse import unquote

from ..errors import ConfigError, ConfigProblem
from .messages import as_yaml

__all__ = ["Node", "Path", "Report", "is_secret", "without_password"]

Path: TypeAlias = "tuple[str | int, ...]"

_SECRET_KEY = re.compile(
    r"passw|passphrase|token|secret|credential|api[-_]?key|private[-_]?key|authorization|cookie", re.IGNORECASE
)
_HTTP_HOST = re.compile(r"(?:[A-Za-z0-9._~-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?(?=[/?#\s'\"]|$)")
# Everything that some URL parser could take for user name and password; a password may contain even "/", "#", "?" and "@".
_USER_INFO = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<info>[^:/\n]*(?::[^\n]*)?)@")
_PARAMETER = re.compile(r"(?<=[?&;])(?P<name>[^=&;?\s]+)=(?P<value>[^&\n]*)")
_PARAMETER_IN_WORDS = re.compile(r"(?<=[?&;])(?P<name>[^=&;?\s]+)=(?P<value>[^&\s'\"]*)")
_SECRET_PARAMETERS = frozenset({"pass", "pwd", "key", "sig", "signature", "auth", "sas", "jwt"})


def is_secret(key: str) -> bool:
    """Whether a key is named like one with a secret value."""
    return _SECRET_KEY.search(key) is not None


def without_password(text: str, in_words: bool = False) -> str:
    """A value as it may be shown: in a URL, user name and password are replaced by ***, and so are query parameters that are
    named like a secret. `in_words`: the text is a message that may contain a URL. It hides too much rather than too little, but
    nothing of an http URL without a user name."""
    if "://" not in text:
        return text
    text = _USER_INFO.sub(_without_user_info, text)
    return (_PARAMETER_IN_WORDS if in_words else _PARAMETER).sub(_without_value, text)


def _without_user_info(match: re.Match[str]) -> str:
    if match["scheme"].lower() in ("http", "https", "ws", "wss") and _HTTP_HOST.match(match.string, match.start("info")):
        begin = f"{match['scheme']}://"
        return begin + _USER_INFO.sub(_without_user_info, match[0][len(begin) :])  # another URL may follow
    return f"{match['scheme']}://***@"


def _without_value(match: re.Match[str]) -> str:
    name = unquote(match["name"]).lower()
    return f"{match['name']}=***" if is_secret(name) or name in _SECRET_PARAMETERS else match[0]


@dataclass(slots=True)
class Node:
    """One value in the file: a scalar, a list of nodes or a mapping of nodes.

    `path` and `line` (from 1) are its place in the file and stay the same when other nodes are dropped from the tree. `source`
    is the text before environment variables were replaced; None if it had no variables.
    """

    path: Path
    line: int
    value: Any
    source: str | None = None

    def plain(self) -> Any:
        """The value as plain Python objects."""
        match self.value:
            case list():
                return [node.plain() for node in self.value]
            case dict():
                return {key: node.plain() for key, node in self.value.items()}
            case scalar:
                return scalar

    def items(self) -> dict[str, Node]:
        """The nodes of a mapping, by key; empty for any other node."""
        return self.value if isinstance(self.value, dict) else {}

    def entries(self) -> list[Node]:
        """The nodes of a list; empty for any other node."""
        return self.value if isinstance(self.value, list) else []

    def get(self, key: str) -> Node | None:
        """The node under a key of a mapping."""
        return self.items().get(key)

    def find(self, path: Path) -> tuple[Node, Path]:
        """The node at `path`, or its nearest existing ancestor, and the rest of the path."""
        node = self
        for depth, part in enumerate(path):
            below = node.value
            is_there = part in below if isinstance(below, dict) else isinstance(below, list) and part in range(len(below))
            if not is_there:
                return node, path[depth:]
            node = below[part]
        return node, ()

    def drop(self, path: Path) -> Node | None:
        """Remove the node at `path` from the tree and return it. None if it does not exist or `path` is empty."""
        parent, rest = self.find(path[:-1])
        node, missing = self.find(path)
        if not path or rest or missing:
            return None
        del parent.value[path[-1]]
        return node

    def walk(self) -> Iterator[Node]:
        """This node and all below it."""
        yield self
        for node in (*self.items().values(), *self.entries()):
            yield from node.walk()

    @property
    def secret(self) -> bool:
        """Whether one of the keys above it, or its own, is named like a secret."""
        return any(isinstance(part, str) and is_secret(part) for part in self.path)

    def shown(self) -> str:
        """The value for a message: never a secret, and never a value from the environment."""
        if self.secret and self.value is not None:
            return "a value that is not shown"
        return as_yaml(self.source if self.source is not None else self.value)


class Report:
    """The problems of one config file: without duplicates and secrets, raised together in the order of lines."""

    def __init__(self, file: str) -> None:
        self.file = file
        self._found: dict[ConfigProblem, int] = {}
        self._dropped: list[Path] = []
        self._hidden: set[str] = set()
        self._urls: dict[str, str] = {}

    def add(self, node: Node, message: str, rest: Path = ()) -> None:
        """Add a problem at `node`, or at a missing node below it (`rest`)."""
        if node.source is not None and isinstance(node.value, str):
            message = message.replace(repr(node.value), repr(node.source))
        self.add_line(node.line, node.path + rest, message)

    def add_line(self, line: int, path: Path, message: str) -> None:
        """Add a problem on a line without a node."""
        self._found.setdefault(ConfigProblem(path, message, f"{self.file}:{line}"), line)

    def add_check(self, root: Node, problem: ConfigProblem) -> None:
        """Add a problem that a cross check has found, unless it may only follow from a node that was dropped."""
        node, rest = root.find(problem.path)
        if self.intact(node.path + rest):
            self.add(node, problem.message, rest)

    def located(self, root: Node, problem: ConfigProblem) -> ConfigProblem:
        """The problem with file and line and without secrets. It is not added."""
        node, rest = root.find(problem.path)
        return ConfigProblem(node.path + rest, self._clean(problem.message), f"{self.file}:{node.line}")

    def dropped(self, node: Node) -> None:
        """Record that a node was dropped from the tree because of a problem that has been added."""
        self._dropped.append(node.path)

    def was_dropped(self, path: Path) -> bool:
        """Whether the node at this path of the file was dropped."""
        return path in self._dropped

    def intact(self, path: Path) -> bool:
        """Whether no node at or below this path of the file was dropped, so that the tree still matches the file there."""
        return not any(dropped[: len(path)] == path for dropped in self._dropped)

    def hide_secrets(self, root: Node) -> None:
        """Keep the secrets of `root` out of every message, including those of plugins."""
        texts = (str(node.value) for node in root.walk() if node.secret and isinstance(node.value, str | int | float))
        self._hidden.update(text for text in texts if len(text) > 3)
        for text in (text for node in root.walk() for text in (node.value, node.source) if isinstance(text, str)):
            if (safe := without_password(text)) != text:
                self._urls |= {text: safe, repr(text)[1:-1]: safe}

    def raise_if_any(self) -> None:
        """Raise ConfigError with all problems that were added, if there are any."""
        if self._found:
            ordered = sorted(self._found, key=lambda problem: self._found[problem])
            raise ConfigError(ConfigProblem(p.path, self._clean(p.message), p.location) for p in ordered)

    def fail(self, message: str, line: int | None = None) -> ConfigError:
        """The error for a file that cannot be read at all. The caller raises it."""
        return ConfigError([ConfigProblem((), message, self.file if line is None else f"{self.file}:{line}")])

    def _clean(self, message: str) -> str:
        for text in sorted(self._urls, key=len, reverse=True):
            message = message.replace(text, self._urls[text])
        for text in sorted(self._hidden, key=len, reverse=True):
            message = message.replace(text, "***")
        return without_password(message, in_words=True)
