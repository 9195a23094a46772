"""pip and npm through the gateway: an index of two pages, and a registry whose scoped names have an escaped slash in the path."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .programs import gateway, program, run, wsgi_server

WHEEL = "greeting_of_the_gateway-1.0-py3-none-any.whl"


def wheel() -> bytes:
    """A package with one module."""
    name = "greeting_of_the_gateway"
    files = {
        f"{name}.py": "GREETING = 'hello'\n",
        f"{name}-1.0.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{name}-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},,\n" for path in [*files, f"{name}-1.0.dist-info/RECORD"])
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for path, text in {**files, f"{name}-1.0.dist-info/RECORD": record}.items():
            archive.writestr(path, text)
    return packed.getvalue()


def index(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """A simple index (PEP 503)."""
    body = wheel()
    digest = hashlib.sha256(body).hexdigest()
    page = f'<!DOCTYPE html><a href="/files/{WHEEL}#sha256={digest}">{WHEEL}</a>'.encode()
    found = {"/simple/greeting-of-the-gateway/": (page, "text/html"), f"/files/{WHEEL}": (body, "application/octet-stream")}
    content, kind = found.get(environ["PATH_INFO"], (b"not here", ""))
    start_response("200 OK" if kind else "404 Not Found", [("Content-Type", kind or "text/plain")])
    return [content]


def test_pip_installs_from_an_index_behind_the_gateway(tmp_path: Path) -> None:
    with wsgi_server(index) as backend, gateway(tmp_path, {"/": backend}) as url:
        options = [
            "--index-url",
            f"{url}/simple/",
            "--target",
            str(tmp_path / "there"),
            "--no-cache-dir",
            "--disable-pip-version-check",
        ]
        clean = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PIP_CONFIG_FILE": os.devnull, "NO_PROXY": "*"}
        run(sys.executable, "-m", "pip", "install", *options, "greeting-of-the-gateway", environ=clean)
    assert (tmp_path / "there" / "greeting_of_the_gateway.py").read_text() == "GREETING = 'hello'\n"


class Registry:
    """As much of a registry as publishing and installing one package takes. It answers the paths as they are sent."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self._packages: dict[str, dict[str, Any]] = {}
        self._tarballs: dict[str, bytes] = {}

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["RAW_URI"]
        self.asked.append(f"{method} {path}")
        body = environ["wsgi.input"].read()
        if method == "PUT" and path.startswith("/@"):
            package = json.loads(body)
            for name, attachment in package.pop("_attachments").items():
                tarball = f"/{package['name']}/-/{name}"
                self._tarballs[tarball] = base64.b64decode(attachment["data"])
                for version in package["versions"].values():
                    version["dist"]["tarball"] = f"http://{environ['HTTP_HOST']}{tarball}"
            self._packages[path] = package
            answer: tuple[str, bytes] = ("201 Created", b'{"ok": true}')
        elif path in self._packages:
            answer = ("200 OK", json.dumps(self._packages[path]).encode())
        elif path in self._tarballs:
            answer = ("200 OK", self._tarballs[path])
        else:
            answer = ("404 Not Found", b'{"error": "not found"}')
        start_response(answer[0], [("Content-Type", "application/json"), ("Content-Length", str(len(answer[1])))])
        return [answer[1]]


def test_npm_publishes_and_installs_a_scoped_package(tmp_path: Path) -> None:
    npm = program("npm")
    package, user = tmp_path / "package", tmp_path / "user"
    for folder in (package, user):
        folder.mkdir()
    (package / "package.json").write_text(json.dumps({"name": "@gateway/greeting", "version": "1.2.3", "main": "index.js"}))
    (package / "index.js").write_text("module.exports = 'hello'\n")
    (user / "package.json").write_text(json.dumps({"name": "user", "version": "0.0.0", "private": True}))
    registry = Registry()
    with wsgi_server(registry) as backend, gateway(tmp_path, {"/": backend}) as url:
        configuration = tmp_path / "npmrc"
        configuration.write_text(f"registry={url}/\n//{url.removeprefix('http://')}/:_authToken=token\nnoproxy=127.0.0.1\n")
        own = [f"--userconfig={configuration}", f"--cache={tmp_path}/cache", "--no-audit", "--no-fund", "--no-update-notifier"]
        environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "NO_PROXY": "*"}
        run(npm, "publish", *own, "--access", "public", cwd=package, environ=environ)
        run(npm, "install", *own, "@gateway/greeting", cwd=user, environ=environ)
    assert (user / "node_modules" / "@gateway" / "greeting" / "index.js").read_text() == "module.exports = 'hello'\n"
    assert "PUT /@gateway%2fgreeting" in registry.asked and "GET /@gateway%2fgreeting" in registry.asked, registry.asked
