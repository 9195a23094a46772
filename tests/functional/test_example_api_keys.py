"""The example of a plugin that protects something, installed by pip and in front of a real backend."""

from __future__ import annotations

import json
import shutil
import urllib.request
from pathlib import Path
from urllib.error import HTTPError

import pytest

from rgate.cli.http_client import ask
from rgate.testing import ScriptedBackend, http_response

from ..support.waiting import PROCESS_DEADLINE_SECONDS
from .test_example_plugin import DIRECT, EXAMPLES, config, gateway, installed, output

KEY = "shop-key-0123456789"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return installed("rgate-api-keys", tmp_path_factory.mktemp("example"))


def asked(url: str, **headers: str) -> tuple[int, str]:
    try:
        with DIRECT.open(urllib.request.Request(url, headers=headers), timeout=PROCESS_DEADLINE_SECONDS) as response:
            return response.status, response.read().decode()
    except HTTPError as error:
        with error:
            return error.code, json.loads(error.read())["reason"]


def test_only_clients_with_a_key_come_in_and_the_backend_never_sees_it(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runtime_directory: Path
) -> None:
    monkeypatch.setenv("SHOP_KEY", KEY)
    with ScriptedBackend(http_response(b"hello")) as backend:
        path = config(tmp_path, backend, "  api_keys: {keys: {shop: '${SHOP_KEY}'}, requests_per_minute: 2}\n")
        with gateway(path, site) as url:
            assert asked(f"{url}/orders") == (401, "unauthorized")
            assert asked(f"{url}/orders", **{"X-API-Key": KEY}) == (200, "hello")
            assert asked(f"{url}/orders", **{"X-API-Key": KEY}) == (200, "hello")
            assert asked(f"{url}/orders", **{"X-API-Key": KEY}) == (429, "too_many_requests")
            socket = f"unix:{runtime_directory}/{url.rpartition(':')[2]}.sock"
            assert ask(socket, "/-/api-keys", {})[0] == {"shop": 3}
            assert KEY not in str(ask(socket, "/-/config", {})[0])
            assert asked(f"{url}/-/api-keys") == (404, "no_route")
    assert [request.values("X-Client") for request in backend.requests] == [["shop"], ["shop"]]
    assert not [request for request in backend.requests if KEY.encode() in request.head]


def test_plugins_own_tests_pass(site: Path, tmp_path: Path) -> None:
    tests = shutil.copytree(EXAMPLES / "rgate-api-keys" / "tests", tmp_path / "tests")
    assert " passed" in output(["-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests)], site, tmp_path)
