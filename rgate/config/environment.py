"""Environment variables in strings (`${NAME}`), replaced after the YAML has been parsed, so that a value cannot add YAML."""

from __future__ import annotations

import re
from collections.abc import Mapping

from .tree import Node, Report

__all__ = ["expand"]

_VARIABLE = re.compile(r"\$\$\{|\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^}]*))?\}|\$\{")


def expand(root: Node, environ: Mapping[str, str], report: Report) -> None:
    """Replace variables in all values, never in keys.

    `${NAME}` is the variable's value. `${NAME:-default}` is the default when the variable is not set or empty, as in a
    shell. `$${` stands for a literal `${`. A variable that is not set and has no default is a problem; the value with it is
    dropped from the tree, because any further problem would only follow from this one.
    """
    for node in reversed(list(root.walk())):  # from the end, so that no index changes
        if not isinstance(node.value, str) or "${" not in node.value:
            continue
        node.source = node.value
        try:
            node.value = _VARIABLE.sub(lambda match: _value(match, environ), node.value)
        except ValueError as error:
            report.add(node, str(error))
            _drop(root, node)
            report.dropped(node)


def _drop(root: Node, node: Node) -> None:
    parent, _ = root.find(node.path[:-1])
    if isinstance(parent.value, dict):
        parent.value = {key: below for key, below in parent.value.items() if below is not node}
    elif isinstance(parent.value, list):
        parent.value = [below for below in parent.value if below is not node]


def _value(match: re.Match[str], environ: Mapping[str, str]) -> str:
    if match[0] == "$${":
        return "${"
    name, default = match["name"], match["default"]
    if name is None:
        raise ValueError("'${' does not begin a variable here; write ${NAME}, ${NAME:-default}, or $${ for the two characters")
    if default is not None:
        return environ.get(name) or default
    if name not in environ:
        raise ValueError(f"the environment variable {name} is not set; set it, or write ${{{name}:-default}}")
    return environ[name]
