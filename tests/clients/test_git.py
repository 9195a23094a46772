"""git clone and push over smart HTTP through the gateway, in front of git's own http-backend (gitprotocol-http)."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .programs import gateway, program, run, wsgi_server


def http_backend(repositories: Path) -> Any:
    """git http-backend, a CGI program, as a WSGI app (RFC 3875)."""
    directory = run(program("git"), "--exec-path").strip()
    if not (Path(directory) / "git-http-backend").exists():
        pytest.skip("git http-backend is not installed")

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        variables = {name: value for name, value in environ.items() if isinstance(value, str) and "." not in name}
        own = {
            "GIT_PROJECT_ROOT": str(repositories),
            "GIT_HTTP_EXPORT_ALL": "1",
            "REMOTE_USER": "tester",
            "PATH": os.environ["PATH"],
        }
        cgi = subprocess.Popen(
            [f"{directory}/git-http-backend"], env={**variables, **own}, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        output, _ = cgi.communicate(environ["wsgi.input"].read())
        head, _, body = output.partition(b"\r\n\r\n")
        headers = [(name, value.strip()) for name, _, value in (line.partition(":") for line in head.decode().split("\r\n"))]
        status = next((value for name, value in headers if name == "Status"), "200 OK")
        start_response(status, [pair for pair in headers if pair[0] != "Status"])
        return [body]

    return app


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    repositories = tmp_path / "repositories"
    git(tmp_path, "init", "--quiet", "--bare", "--initial-branch", "main", str(repositories / "a project.git"))
    git(repositories / "a project.git", "config", "http.receivepack", "true")
    with wsgi_server(http_backend(repositories)) as backend, gateway(tmp_path, {"/": backend}) as url:
        yield f"{url}/a%20project.git"


def git(folder: Path, *arguments: str) -> str:
    environ = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "NO_PROXY": "*",
        **{f"GIT_{who}_{what}": "tester@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
    }
    return run(program("git"), *arguments, cwd=folder, environ=environ)


def test_push_and_clone_bring_over_everything(served: str, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    git(tmp_path, "clone", "--quiet", served, str(first))
    for number in range(20):
        (first / f"file {number}").write_bytes(os.urandom(100_000))  # more than http.postBuffer, so that git sends chunks
    git(first, "add", ".")
    git(first, "commit", "--quiet", "--message", "Many files")
    git(first, "push", "--quiet", "origin", "HEAD:main")
    git(first, "tag", "v1")
    git(first, "push", "--quiet", "--tags")
    git(tmp_path, "clone", "--quiet", "--branch", "main", served, str(second))
    assert git(second, "log", "--format=%s %D").startswith("Many files")
    assert git(second, "tag").split() == ["v1"]
    for number in range(20):
        assert (second / f"file {number}").read_bytes() == (first / f"file {number}").read_bytes()
    git(second, "commit", "--quiet", "--allow-empty", "--message", "More")
    git(second, "push", "--quiet", "origin", "HEAD:main")
    git(first, "pull", "--quiet", "--ff-only", "origin", "main")
    assert git(first, "log", "-1", "--format=%s").strip() == "More"
