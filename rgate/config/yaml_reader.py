"""Reads YAML into a tree of nodes with their lines. This is the only module that knows YAML.

It is stricter than YAML: keys are unique in a mapping, values are strings, numbers, true, false and null, and the expansion of
aliases is limited. Dates stay strings.
"""

from __future__ import annotations

import re

import yaml

from .tree import Node, Path, Report

__all__ = ["MAX_BYTES", "MAX_DEPTH", "MAX_VALUES", "read"]

MAX_BYTES = 8 * 1024 * 1024
MAX_VALUES = 200_000
"""Aliases count each time they are used: ten lines of YAML can expand to a billion values."""
MAX_DEPTH = 50

_TAG = "tag:yaml.org,2002:"
_MERGE = _TAG + "merge"
_TEXT = (_TAG + "str", _TAG + "timestamp", _TAG + "value", _MERGE)
_TYPED = (_TAG + "null", _TAG + "bool", _TAG + "int", _TAG + "float")


def read(content: bytes, report: Report) -> Node:
    """The tree of a config file. Problems inside it are added to `report`.

    Raises ConfigError if it is not a YAML mapping at all.
    """
    loader = None
    try:
        text = content.decode("utf-8-sig")
        loader = yaml.SafeLoader(text)
        source = loader.get_single_node()
        root = _Reader(loader, report).node(source, (), 1) if source is not None else None
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise report.fail(f"is not UTF-8: byte 0x{content[error.start]:02x} on line {line}") from None
    except yaml.MarkedYAMLError as error:
        raise report.fail(f"not valid YAML: {_words(error)}", _line(error)) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise report.fail(f"not valid YAML: the character U+{error.character:04X} is not allowed", line) from None
    except RecursionError:
        raise report.fail(f"is nested more than {MAX_DEPTH} levels deep") from None
    finally:
        if loader is not None:
            loader.dispose()
    if root is None or root.value is None:
        raise report.fail("is empty; a config has at least `routes` and `backends`")
    if not isinstance(root.value, dict):
        raise report.fail(f"must be a mapping with keys like `routes` and `backends`; found {root.shown()}")
    return root


class _Reader:
    def __init__(self, loader: yaml.SafeLoader, report: Report) -> None:
        self._loader = loader
        self._report = report
        self._values = 0

    def node(self, source: yaml.Node, path: Path, line: int) -> Node:
        self._values += 1
        if self._values > MAX_VALUES:
            raise self._report.fail(f"has more than {MAX_VALUES:,} values (aliases count each time they are used)")
        if len(path) > MAX_DEPTH:
            raise self._report.fail(f"is nested more than {MAX_DEPTH} levels deep")
        node = Node(path, line, None)
        if isinstance(source, yaml.MappingNode):
            node.value = self._mapping(source, path)
        elif isinstance(source, yaml.SequenceNode):
            node.value = [self.node(s, (*path, i), s.start_mark.line + 1) for i, s in enumerate(source.value)]
        elif source.tag in _TYPED:
            try:
                node.value = self._loader.construct_object(source)
            except ValueError:
                self._report.add(node, f"{source.value[:40]!r} is not a value of the type {source.tag.removeprefix(_TAG)}")
        elif source.tag in _TEXT:
            node.value = source.value
        else:
            self._report.add(node, f"the tag {source.tag.replace(_TAG, '!!')!r} is not supported; leave it out")
        return node

    def _mapping(self, source: yaml.MappingNode, path: Path) -> dict[str, Node]:
        entries: dict[str, Node] = {}
        merged: list[yaml.Node] = []
        for key, value in source.value:
            line = key.start_mark.line + 1
            if key.tag == _MERGE:
                merged += value.value if isinstance(value, yaml.SequenceNode) else [value]
            elif not isinstance(key, yaml.ScalarNode):
                self._report.add_line(line, path, "a key must be a plain string")
            elif key.value in entries:
                first = entries[key.value].line
                self._report.add_line(line, (*path, key.value), f"the key {key.value!r} is used twice; first on line {first}")
            else:
                entries[key.value] = self.node(value, (*path, key.value), line)
        for mapping in merged:
            if not isinstance(mapping, yaml.MappingNode):
                self._report.add_line(mapping.start_mark.line + 1, path, "'<<' takes a mapping or a list of mappings")
                continue
            for name, node in self._mapping(mapping, path).items():
                entries.setdefault(name, node)
        return entries


def _line(error: yaml.MarkedYAMLError) -> int:
    mark = error.problem_mark or error.context_mark
    return mark.line + 1 if mark is not None else 1


_PLAIN: tuple[tuple[str, str], ...] = (
    (
        r".*found character '\\t'.*",
        "a tab in the indentation; indent with spaces",
    ),
    (
        r"expected <block end>, but found '(<block mapping start>|<block sequence start>|<scalar>|\?|-)'",
        "wrong indentation: the entries of a list or mapping must begin in the same column{since}",
    ),
    (
        r"mapping values are not allowed here",
        "a key is not allowed here; put a string with ': ' in quotes, or fix the indentation here or in the line above",
    ),
    (r"could not find expected ':'", "a key without a ':' after it, or a string of several lines without quotes{since}"),
    (r"expected ',' or '([]}])', but got .*", "a list or mapping in brackets is not closed: expected ',' or '{0}'{since}"),
    (r"found unexpected end of stream", "a string in quotes is not closed{since}"),
    (r"found unknown escape character '(.*)'", "'\\{0}' is not a valid escape in double quotes; use single quotes"),
    (
        r"while scanning for the next token found character '(.*)' that cannot start any token",
        "a string cannot begin with '{0}'; put it in quotes",
    ),
    (r"expected alphabetic or numeric character, but found .*", "a string cannot begin with '*' or '&'; put it in quotes"),
    (
        r"found undefined alias '(.*)'",
        "'*{0}' is an alias without its anchor; put a string that begins with '*' in quotes",
    ),
    (r"expected <document start>, but found .*", "this does not belong to the lines before it; is a line indented too little?"),
    (r"expected <block end>, but found '([]},])'", "a '{0}' without an opening bracket"),
    (r"while parsing a flow node expected the node content, but found '(.*)'", "a value is missing before '{0}'"),
    (r"expected the node content, but found '(.*)'", "a value is missing before '{0}'"),
    (r"but found another document", "a second document begins here ('---'); a config is one document"),
)
"""PyYAML's messages, which use the terms of its grammar, and clearer ones. Other messages are passed on unchanged."""


def _words(error: yaml.MarkedYAMLError) -> str:
    problem, mark, place = error.problem or "unreadable", error.context_mark, error.problem_mark
    context = f"{error.context} " if error.context and mark is None else ""
    since = f" (it begins on line {mark.line + 1})" if mark is not None and place is not None and mark.line != place.line else ""
    for pattern, plain in _PLAIN:
        if found := re.fullmatch(pattern, problem) or re.fullmatch(pattern, context + problem):
            return plain.replace("{since}", since).replace("{0}", found[1] if found.groups() else "")
    return context + problem
