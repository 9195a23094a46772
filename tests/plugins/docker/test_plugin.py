"""The plugin's hooks: what the config makes of them, without an engine."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from rgate import Config
from rgate.plugins.docker import DockerOptions, rgate_check_config, rgate_discovery_sources
from rgate.plugins.docker.source import DockerSource


def config(*backends: dict[str, Any], **docker: str) -> Config:
    return Config.model_validate({"backends": backends, "plugins": {"docker": DockerOptions(**docker)}})


LABELLED = {"name": "payment", "match_labels": ["app_name=payment", "env=a=b"]}
FIXED = {"name": "legacy", "endpoints": ["http://127.0.0.1:9000"]}


def test_config_with_labels_has_a_source_that_asks_for_their_names() -> None:
    source = rgate_discovery_sources(config(LABELLED, FIXED, network="front"))
    assert isinstance(source, DockerSource)
    assert source.name == "docker"
    assert source._label_names == ("app_name", "env")


@pytest.mark.parametrize("backends", [(), (FIXED,)])
def test_config_without_labels_has_no_source(backends: tuple[dict[str, Any], ...]) -> None:
    assert rgate_discovery_sources(config(*backends)) is None


def test_config_without_labels_does_not_even_import_docker() -> None:
    program = f"""
import sys
from rgate import Config
from rgate.plugins import docker
assert docker.rgate_discovery_sources(Config.model_validate({{"backends": [{FIXED!r}]}})) is None
assert "docker" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


@pytest.mark.parametrize(
    "host", ["unix:///run/docker.sock", "tcp://127.0.0.1:2375", "https://h:2376", "ssh://me@h", "npipe:////./pipe/d"]
)
def test_docker_host_that_is_one_is_no_problem(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rgate.plugins.docker.find_spec", lambda name: object())
    assert list(rgate_check_config(config(host=host))) == []


@pytest.mark.parametrize("host", ["", "/var/run/docker.sock", "localhost", "unix://", "udp://h:1"])
def test_docker_host_that_is_none_is_a_problem_with_the_way_out(host: str) -> None:
    (problem,) = rgate_check_config(config(host=host))
    assert problem.path == ("plugins", "docker", "host")
    assert problem.message == (
        f"{host!r} is not the address of a Docker engine; write unix:///var/run/docker.sock or tcp://HOST:PORT"
    )


def test_docker_host_by_ssh_without_its_package_is_a_problem_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rgate.plugins.docker.find_spec", lambda name: None)
    (problem,) = rgate_check_config(config(host="ssh://me@h"))
    assert problem.message == "ssh:// needs the package paramiko, which is not installed: pip install paramiko"
