"""${NAME} in texts: the values of environment variables, put in after YAML is read, so that they cannot change its shape."""

from __future__ import annotations

import re
from collections.abc import Mapping

from .tree import Node, Report

__all__ = ["expand"]

_VARIABLE = re.compile(r"\$\$\{|\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^}]*))?\}|\$\{")


def expand(root: Node, environ: Mapping[str, str], report: Report) -> None:
    """Put in variables everywhere in values, never in keys.

    `${NAME}` is the variable's value. `${NAME:-default}` is the default when the variable is not set or empty, as in a
    shell. `$${` stands for `${` itself. A variable that is not set and has no default is a problem; what needs it is cut out
    of the tree, since nothing else that could be said of it would be new.
    """
    for node in reversed(list(root.walk())):  # the last first, so that no index moves
        if not isinstance(node.value, str) or "${" not in node.value:
            continue
        node.source = node.value
        try:
            node.value = _VARIABLE.sub(lambda match: _value(match, environ), node.value)
        except ValueError as error:
            report.add(node, str(error))
            _cut(root, node)
            report.cut(node)


def _cut(root: Node, node: Node) -> None:
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
        raise ValueError("'${' begins no variable here; write ${NAME}, ${NAME:-default}, or $${ for the two characters")
    if default is not None:
        return environ.get(name) or default
    if name not in environ:
        raise ValueError(f"the environment variable {name} is not set; set it, or write ${{{name}:-default}}")
    return environ[name]
