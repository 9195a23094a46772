"""docs/configuration.md says what the models say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import annotated_types
import pytest
from pydantic.fields import FieldInfo

from rgate.config import models
from rgate.config.tree import Report
from rgate.config.yaml_reader import read
from rgate.plugin.registry import Registry
from rgate.plugins.selection.options import StickyOptions
from rgate.plugins.static_endpoints import EndpointOptions

from ..support.certificates import authority
from .configs import loaded, problems

PAGE = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text(encoding="utf-8")
MODELS: dict[str, type[Any]] = {
    "routes": models.Route,
    "routes[].timeouts": models.Timeouts,
    "backends": models.Backend,
    "backends[].tls": models.UpstreamTLS,
    "default_response": models.DefaultResponseConfig,
    "log": models.LogConfig,
    "server": models.ServerConfig,
    "server.tls": models.TLSConfig,
    "server.tls.certificates[]": models.CertificateConfig,
    "server.tls.client_certificates": models.ClientCertificatesConfig,
    "plugins": models.PluginsConfig,
    "plugins.NAME": models.PluginCommonConfig,
    "use": models.WSGIMiddlewareConfig,
}


def plugin_models() -> list[tuple[str, type[Any]]]:
    registry = Registry()
    registry.activate()
    headings = {False: "plugins.{}", True: "backends[].{}", "inline": "backends"}
    found = [(headings[section.per_backend].format(name), section.model) for name, section in registry.sections.items()]
    return [*found, ("backends[].endpoints[]", EndpointOptions), ("backends[].sticky", StickyOptions)]


def rows(heading: str) -> dict[str, list[str]]:
    """The table under a heading: key → type, default, limits, text."""
    match = re.search(rf"^##+ `{re.escape(heading)}`\n(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert match is not None, f"docs/configuration.md has no heading `{heading}`"
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in match[1].splitlines() if line.startswith("| `")]
    return {line[0].strip("`"): line[1:] for line in lines}


def fields() -> list[tuple[str, str, FieldInfo]]:
    return [
        (heading, field.alias or name, field)
        for heading, model in [*MODELS.items(), *plugin_models()]
        for name, field in model.__pydantic_fields__.items()
        if field.init is not False and (model, name) != (models.Backend, "options")
    ]


def test_page_has_a_section_for_every_key_at_the_top() -> None:
    keys = {name for name, field in models.Config.model_fields.items() if field.init is not False}
    for key in keys:
        assert f"\n## `{key}`\n" in PAGE, f"docs/configuration.md has no section `{key}`"
        assert f"| [`{key}`](#{key}) |" in PAGE, f"the table of contents has no `{key}`"


def test_every_model_of_the_file_is_held_to_the_page() -> None:
    defined = {getattr(models, name) for name in models.__all__} - {models.Model, models.Config, models.changed}
    assert defined == set(MODELS.values())


def test_page_has_every_key_and_no_other() -> None:
    expected: dict[str, set[str]] = {}
    for heading, key, _ in fields():
        expected.setdefault(heading, set()).add(key)
        if parent := re.fullmatch(r"(backends)\[\]\.(\w+)", heading):  # a section that a plugin has in a backend
            expected.setdefault(parent[1], set()).add(parent[2])
    assert {heading: set(rows(heading)) for heading in expected} == expected


def test_page_says_every_default_as_it_is() -> None:
    for heading, key, field in fields():
        cell = rows(heading)[key][1]
        said = f"`{heading}`, `{key}`: the page says {cell!r}"
        if field.is_required():
            assert cell == "*required*", said
        elif hasattr(field.default, "__pydantic_fields__"):
            assert cell == "", said
        elif key == "name" and field.default == "":
            assert cell == "the path prefix", said
        elif field.default is None:
            assert not cell.startswith("`"), said
        else:
            report = Report("page")
            stated = read(f"default: {cell.strip('`')}".encode(), report).plain()["default"]
            default = field.get_default(call_default_factory=True)
            default = list(default) if isinstance(default, tuple) else default
            assert stated == default, f"{said}, the model {default!r}"


def bounds(field: FieldInfo) -> list[float]:
    """The numbers that limit a field, also those inside of `… | None`."""
    found = [*field.metadata]
    for argument in getattr(field.annotation, "__args__", ()):
        found += getattr(argument, "__metadata__", ())
    parts = [part for item in found for part in (getattr(item, "metadata", None) or [item])]
    kinds = (annotated_types.Ge, annotated_types.Gt, annotated_types.Le, annotated_types.Lt)
    return [next(iter(vars_of(part).values())) for part in parts if isinstance(part, kinds)]


def vars_of(part: Any) -> dict[str, float]:
    return {name: getattr(part, name) for name in ("ge", "gt", "le", "lt") if hasattr(part, name)}


def test_page_says_every_limit_as_it_is() -> None:
    checked = 0
    for heading, key, field in fields():
        cell = rows(heading)[key][2]
        numbers = {float(number) for number in re.findall(r"\d+(?:\.\d+)?", cell.replace(",", ""))}
        for bound in bounds(field):
            checked += 1
            assert bound in numbers, f"`{heading}`, `{key}`: the page says {cell!r}, the model {bound:g}"
    assert checked > 30, "the limits of the models are no longer found"


@pytest.mark.parametrize("example", re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL))
def test_example_on_the_page_is_valid(example: str, tmp_path: Path) -> None:
    trusted = authority()
    pairs = {name: trusted.issue(f"{name}.example") for name in ("shop", "admin", "gateway")}
    for name, pair in pairs.items():
        (tmp_path / f"{name}.pem").symlink_to(pair.both)
        (tmp_path / f"{name}.key").symlink_to(pair.key)
    for name in ("internal", "staff"):
        (tmp_path / f"{name}-ca.pem").symlink_to(trusted.file)
    loaded(example.replace("/etc/rgate/tls", str(tmp_path)))


def test_example_of_problems_on_the_page_is_what_rgate_says() -> None:
    (shown,) = re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)
    text = """
        routes:
          - path_prefix: /api/payment
            backend: payment
          - path_prefix: /api/orders
            backend: ordres
        backends:
          - name: payment
            match_labels: [app_name=payment, env=production]
          - name: orders
            match_labels: [app_name=orders, env=production]
            policy: rondom
    """
    assert problems(text) == shown.splitlines()
