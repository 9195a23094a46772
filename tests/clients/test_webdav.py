"""litmus, the conformance suite of WebDAV (RFC 4918), against a server behind the gateway."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from .programs import gateway, program, wsgi_server


@contextmanager
def webdav(folder: Path) -> Iterator[str]:
    wsgidav = pytest.importorskip("wsgidav.wsgidav_app", reason="needs wsgidav")
    folder.mkdir()
    users = {"*": {"tester": {"password": "secret"}}}
    config: dict[str, Any] = {
        "provider_mapping": {"/": str(folder)},
        "simple_dc": {"user_mapping": users},
        "http_authenticator": {"accept_basic": True, "accept_digest": False, "default_to_digest": False},
        "logging": {"enable": False, "enable_loggers": []},
        "property_manager": True,
        "lock_storage": True,
        "verbose": 0,
    }
    with wsgi_server(wsgidav.WsgiDAVApp(config)) as url:
        yield url


def test_litmus_finds_the_same_as_without_the_gateway(tmp_path: Path) -> None:
    with webdav(tmp_path / "files") as backend, gateway(tmp_path, {"/": backend}) as url:
        direct, through = found(backend, tmp_path), found(url, tmp_path)
    assert through == direct, (through, direct)


def found(url: str, folder: Path) -> list[str]:
    """What litmus says of each of its suites, and of each test that fails."""
    program("litmus")
    command = ("litmus", "--keep-going", f"{url}/", "tester", "secret")
    environ = {"PATH": "/usr/bin:/bin", "HOME": str(folder)}
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=120)
    lines = [line.rpartition("\r")[2] for line in done.stdout.splitlines()]
    wanted = [line for line in lines if "summary for" in line or "FAIL" in line]
    assert wanted, f"{done.stdout}\n{done.stderr}"
    return [line.replace(url, "") for line in wanted]
