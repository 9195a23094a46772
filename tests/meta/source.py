"""The source files as syntax trees, for the meta-tests."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "rgate"


def module_name(path: Path) -> str:
    """rgate/config/models.py → rgate.config.models; a package is named like its folder."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(), str(path)) for name, path in FILES.items()}


def imports(name: str, *, at_runtime: bool = False) -> Iterator[str]:
    """Full names of the imports anywhere in a module: "rgate.errors.PluginError" for `from .errors import PluginError`.

    With `at_runtime`, imports for type checkers only are left out.
    """
    package = name.split(".") if FILES[name].name == "__init__.py" else name.split(".")[:-1]
    for node in _nodes(TREES[name], at_runtime):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            yield from (".".join([*above, *([node.module] if node.module else []), alias.name]) for alias in node.names)


def calls(name: str) -> Iterator[str]:
    """The functions that a module calls, as they are written: "print", "click.echo"."""
    yield from (ast.unparse(node.func) for node in ast.walk(TREES[name]) if isinstance(node, ast.Call))


def module_of(imported: str) -> str:
    """The module that an imported name is, or is defined in."""
    while imported and imported not in FILES:
        imported = imported.rpartition(".")[0]
    return imported


def _nodes(tree: ast.AST, at_runtime: bool) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if at_runtime and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from _nodes(node, at_runtime)
