"""The address of the engine: config, DOCKER_HOST, context, TLS; and the messages if there is no engine."""

from __future__ import annotations

import hashlib
import json
import socket
from pathlib import Path
from shutil import which

import pytest

from rgate.plugins.docker.engine import Engine, EngineError, remote_host_of

from .fake_engine import FakeEngine, certificates, tls_engine


def test_engine_that_is_not_there_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"nothing listens there; start Docker, or set DOCKER_HOST or plugins\.docker\.host"):
        Engine(f"unix://{tmp_path}/none")


def test_engine_that_has_gone_says_the_same(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("e") / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
    with pytest.raises(EngineError, match="nothing listens there"):
        Engine(f"unix://{path}")


def test_engine_that_refuses_tcp_says_the_same() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(EngineError, match="nothing listens there"):
        Engine(f"tcp://127.0.0.1:{port}")


def test_engine_that_lets_nobody_in_says_what_to_do(fake: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(connection: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("rgate.plugins.docker.engine._UnixConnection.connect", denied)
    with pytest.raises(EngineError, match="no permission; let this user into the group `docker`"):
        Engine(fake.url)


def test_docker_host_is_used_and_the_config_goes_before_it(fake: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", fake.url)
    engine = Engine()
    assert engine.containers("app")
    assert engine.remote_host == "", "a Unix socket is on this machine"
    engine.close()
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere")
    engine = Engine(fake.url)
    assert engine.containers("app")
    engine.close()


def test_current_context_is_used_without_docker_host(fake: FakeEngine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"currentContext": "mine"}')
    meta = tmp_path / "contexts/meta" / hashlib.sha256(b"mine").hexdigest()
    meta.mkdir(parents=True)
    (meta / "meta.json").write_text(json.dumps({"Name": "mine", "Metadata": {}, "Endpoints": {"docker": {"Host": fake.url}}}))
    engine = Engine()
    assert engine.containers("app")
    engine.close()

    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setenv("DOCKER_CONTEXT", "mine")
    engine = Engine()
    assert engine.containers("app")
    engine.close()

    monkeypatch.setenv("DOCKER_CONTEXT", "unheard-of")
    with pytest.raises(EngineError, match="no Docker context is named 'unheard-of'"):
        Engine()


@pytest.mark.parametrize("url", ["fd://", "tcp://", "tcp://host", "gopher://x:1", "http://user:pw@h:1"])
def test_address_that_is_none_is_an_error(url: str) -> None:
    with pytest.raises(EngineError, match="cannot use the Docker engine"):
        Engine(url)


@pytest.mark.parametrize(
    ("url", "machine"),
    [
        ("unix:///var/run/docker.sock", ""),
        ("npipe:////./pipe/docker_engine", ""),
        ("tcp://127.0.0.1:2375", ""),
        ("tcp://localhost:2375", ""),
        ("tcp://[::1]:2375", ""),
        ("tcp://10.1.2.3:2375", "10.1.2.3"),
        ("tcp://docker.example:2376", "docker.example"),
        ("https://docker.example:2376", "docker.example"),
        ("tcp://[2001:db8::7]:2376", "2001:db8::7"),
        ("ssh://me@docker.example", "docker.example"),
        ("docker.example:2375", "docker.example"),
    ],
)
def test_remote_host_of_an_engine_is_its_host_unless_it_is_this_one(url: str, machine: str) -> None:
    assert remote_host_of(url) == machine


def test_certificates_that_are_missing_are_an_error(fake: FakeEngine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_TLS_VERIFY", "1")
    monkeypatch.setenv("DOCKER_CERT_PATH", str(tmp_path))
    with pytest.raises(EngineError, match=r"cannot use the Docker engine at tcp://127\.0\.0\.1:1: "):
        Engine("tcp://127.0.0.1:1")


@pytest.mark.skipif(which("openssl") is None, reason="openssl makes the certificates")
def test_tls_variables_are_honoured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    certificates(tmp_path)
    with tls_engine(tmp_path) as (port, seen):
        monkeypatch.setenv("DOCKER_HOST", f"tcp://127.0.0.1:{port}")
        monkeypatch.setenv("DOCKER_TLS_VERIFY", "1")
        monkeypatch.setenv("DOCKER_CERT_PATH", str(tmp_path))
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/the/outside/world.pem")
        engine = Engine()
        assert engine.containers("app") == []
        engine.close()
    assert seen == ["client"], "the engine must see the client's certificate"
