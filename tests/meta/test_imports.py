"""Imports point one way, plugins see only the public API, and each big library has one place."""

from __future__ import annotations

import pytest

from rgate.plugins import BUILTIN

from .source import FILES, imports, module_of

# Lowest first. A module may import what stands below it, and its own package; not its neighbours.
LAYERS = (
    # Of plugins only BUILTIN, the names.
    {"errors", "log", "plugins", "version"},
    {"http1", "tls"},
    {"chain", "config"},
    {"discovery", "plugin"},
    {"forwarding", "serving"},
    {"runtime"},
    {"api"},  # the public API, rgate.plugin.api
    {"rgate"},
    {"process", "testing"},
    {"cli", "wsgi"},
    {"__main__"},
)
HEIGHT = {part: height for height, layer in enumerate(LAYERS) for part in layer}
PLUGINS = [name for name in FILES if name.startswith("rgate.plugins.")]
ONE_PLACE = {
    "click": "rgate.cli",
    "docker": "rgate.plugins.docker",
    "sqlalchemy": "rgate.plugins.stats",
    "yaml": "rgate.config",
}


def part_of(module: str) -> str:
    """rgate.config.models → config."""
    if module == "rgate.plugin.api":
        return "api"
    return module.split(".")[1] if "." in module else module


def test_layers_have_every_part_of_rgate() -> None:
    assert {part_of(name) for name in FILES} == HEIGHT.keys()


@pytest.mark.parametrize("name", [name for name in FILES if name not in PLUGINS])
def test_imports_point_down(name: str) -> None:
    for imported in imports(name, at_runtime=True):
        module = module_of(imported)
        if not module or part_of(module) == part_of(name):
            continue
        if module in PLUGINS:
            assert name == "rgate.cli.stats", f"{name} imports the plugin {module}; the core must do without any"
            continue
        assert HEIGHT[part_of(module)] < HEIGHT[part_of(name)], f"{name} imports {module}, which does not stand below it"


@pytest.mark.parametrize("name", PLUGINS)
def test_plugin_imports_only_the_public_api(name: str) -> None:
    own = ".".join(name.split(".")[:3])
    for imported in imports(name):
        module = module_of(imported)
        if not module or f"{module}.".startswith(f"{own}."):
            continue
        assert module == "rgate", f"{name} imports {imported}, which is not public"


@pytest.mark.parametrize("library", ONE_PLACE)
def test_library_is_imported_in_one_place(library: str) -> None:
    places = {name for name in FILES for imported in imports(name) if imported.split(".")[0] == library}
    assert places, f"{library} is imported nowhere"
    elsewhere = {place for place in places if not f"{place}.".startswith(f"{ONE_PLACE[library]}.")}
    assert not elsewhere, f"{library} is imported in {sorted(elsewhere)}"


def test_builtin_names_every_built_in_plugin() -> None:
    assert {name.split(".")[2] for name in PLUGINS} == set(BUILTIN)
