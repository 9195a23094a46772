"""config.yml, docker-compose.yml, the demo and the backends fit together."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from rgate.cli import demo
from rgate.config import Config, load
from rgate.plugin.registry import Registry

from .source import ROOT


@pytest.fixture
def config() -> Config:
    return load(ROOT / "config.yml", Registry())


@pytest.fixture
def services() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    return found


def test_config_shipped_is_valid_and_shows_the_envelope(config: Config) -> None:
    assert config.plugins["normalize"].format == "envelope"
    assert (config.default_response.status_code, config.default_response.body) == (403, "This is not reachable")


def test_config_labels_are_those_of_the_compose_file(config: Config, services: dict[str, Any]) -> None:
    wanted = {backend.name: dict(backend.match_labels) for backend in config.backends}
    assert wanted == {name: service["labels"] for name, service in services.items()}


def test_demo_has_the_services_and_labels_of_the_compose_file(services: dict[str, Any]) -> None:
    assert (
        dict(demo.SERVICES)
        == {name: service.get("scale", 1) for name, service in services.items()}
        == {"payment": 1, "orders": 2}
    )
    assert {name: demo.labels_of(name) for name in services} == {name: service["labels"] for name, service in services.items()}


def test_every_service_has_a_backend_of_its_own(services: dict[str, Any]) -> None:
    for name in services:
        assert {path.name for path in (ROOT / "backends" / name).iterdir()} >= {"app.py", "Dockerfile"}


def test_published_ports_are_on_the_loopback_only(services: dict[str, Any]) -> None:
    ports = [port for service in services.values() for port in service["ports"]]
    assert ports and all(port.startswith("127.0.0.1:") for port in ports), ports
