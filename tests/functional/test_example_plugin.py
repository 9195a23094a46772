"""The example plugin as its user meets it: installed by pip, named in the config, seen on both sides of a real gateway."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import dedent

import pytest

from rgate.testing import ScriptedBackend, http_response

from ..support.processes import ROOT, GatewayProcess
from ..support.waiting import PROCESS_DEADLINE_SECONDS

EXAMPLES = ROOT / "examples"
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return installed("rgate-request-id", tmp_path_factory.mktemp("example"))


def installed(example: str, folder: Path) -> Path:
    """A folder with nothing in it but the installed plugin."""
    ignored = shutil.ignore_patterns("build", "*.egg-info", "__pycache__")
    source = shutil.copytree(EXAMPLES / example, folder / "source", ignore=ignored)
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "--quiet"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(folder / "site"), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return folder / "site"


def run(arguments: list[str], site: Path, cwd: Path) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(site), str(ROOT)])
    environ = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.Popen(
        [sys.executable, *arguments], cwd=cwd, env=environ, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def output(arguments: list[str], site: Path, cwd: Path) -> str:
    with run(arguments, site, cwd) as process:
        text, _ = process.communicate(timeout=PROCESS_DEADLINE_SECONDS)
    assert process.returncode == 0, text
    return text


def config(folder: Path, backend: ScriptedBackend, plugins: str) -> Path:
    path = folder / "config.yml"
    path.write_text(
        dedent(f"""
            routes:
              - path_prefix: /orders
                backend: orders
            backends:
              - name: orders
                endpoints: ["{backend.url}"]
            plugins:
              disable: [docker, stats]
        """)
        + plugins
    )
    return path


@contextmanager
def gateway(config: Path, site: Path) -> Iterator[str]:
    """The URL of a gateway in a process of its own."""
    environ = {"PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"}
    with GatewayProcess(config, environ=environ, cwd=config.parent) as running:
        yield running.url
        running.stop()


def test_plugin_named_in_the_config_is_seen_by_backend_and_client(site: Path, tmp_path: Path) -> None:
    with ScriptedBackend(http_response(b"hello")) as backend:
        path = config(tmp_path, backend, "  request_id: {header: X-Request-ID}\n")
        with gateway(path, site) as url:
            with DIRECT.open(f"{url}/orders", timeout=PROCESS_DEADLINE_SECONDS) as response:
                made = response.headers.get_all("X-Request-ID")
            request = urllib.request.Request(f"{url}/orders", headers={"X-Request-ID": "from-the-client"})
            with DIRECT.open(request, timeout=PROCESS_DEADLINE_SECONDS) as response:
                kept = response.headers.get_all("X-Request-ID")
    assert made is not None and re.fullmatch(r"[0-9a-f]+-[0-9a-f]+", made[0]) and len(made) == 1, made
    assert kept == ["from-the-client"]
    assert [request.values("X-Request-ID") for request in backend.requests] == [made, kept]


def test_plugin_that_is_installed_and_not_named_is_not_active(site: Path, tmp_path: Path) -> None:
    with ScriptedBackend(http_response(b"hello")) as backend:
        path = config(tmp_path, backend, "")
        with gateway(path, site) as url, DIRECT.open(f"{url}/orders", timeout=PROCESS_DEADLINE_SECONDS) as response:
            assert response.headers.get_all("X-Request-ID") is None
        assert backend.requests[0].values("X-Request-ID") == []
        assert listed(site, path) == ["request_id", "rgate-request-id", "1.0.0", "no"]


def test_plugins_lists_the_plugin_and_its_place_in_the_chain(site: Path, tmp_path: Path) -> None:
    with ScriptedBackend() as backend:
        path = config(tmp_path, backend, "  request_id:\n")
        assert listed(site, path) == ["request_id", "rgate-request-id", "1.0.0", "yes"]
        text = output([str(ROOT / "rgate.py"), "plugins", "--config", str(path)], site, tmp_path)
    assert re.search(r"request_id → faults → routing", text), text


def test_config_with_a_wrong_option_of_the_plugin_is_refused_with_its_line(site: Path, tmp_path: Path) -> None:
    with ScriptedBackend() as backend:
        path = config(tmp_path, backend, "  request_id: {heder: X}\n")
        with run([str(ROOT / "rgate.py"), "check", str(path)], site, tmp_path) as process:
            text, _ = process.communicate(timeout=PROCESS_DEADLINE_SECONDS)
    assert process.returncode == 2
    assert f"{path}:10: plugins.request_id.heder: unknown key 'heder'; did you mean 'header'?" in text


def test_plugins_own_tests_pass(site: Path, tmp_path: Path) -> None:
    tests = shutil.copytree(EXAMPLES / "rgate-request-id" / "tests", tmp_path / "tests")
    assert " passed" in output(["-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests)], site, tmp_path)


def listed(site: Path, config: Path) -> list[str]:
    """What `rgate plugins` says about the plugin: name, distribution, version, active or not."""
    text = output([str(ROOT / "rgate.py"), "plugins", "--config", str(config)], site, config.parent)
    return next((line.split()[:4] for line in text.splitlines() if line.startswith("request_id ")), [text])
