from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import pytest
import rgate_api_keys
from rgate_api_keys import Clients

from rgate import ConfigError, Gateway, LocalRoute, PluginError
from rgate.testing import assert_error, client, running_gateway

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from _typeshed.wsgi import StartResponse, WSGIEnvironment
    from werkzeug.test import TestResponse

SHOP, BILLING = "shop-key-0123456789", "billing-key-0123456789"
KEYS = {"shop": SHOP, "billing": BILLING}


def echo(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """A backend that answers with the headers that it was sent."""
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{environ.get('HTTP_X_CLIENT')} {environ.get('HTTP_X_API_KEY')}".encode()]


def gateway(options: dict[str, Any], **route: Any) -> AbstractContextManager[Gateway]:
    config = {"plugins": {"api_keys": options}, "routes": [{"path_prefix": "/", "backend": "orders", **route}]}
    return running_gateway(config, {"orders": echo}, {"api_keys": rgate_api_keys})


def get(running: Gateway, key: str | None = None, path: str = "/") -> TestResponse:
    return client(running).get(path, headers={} if key is None else {"X-API-Key": key})


def test_client_with_a_key_is_admitted_and_the_backend_gets_its_name() -> None:
    with gateway({"keys": KEYS}) as running:
        assert get(running, SHOP).text == "shop None"
        assert get(running, BILLING).text == "billing None"


@pytest.mark.parametrize("key", [None, "", SHOP[:-1], SHOP + "x", "\xe4" * 20])
def test_client_without_a_valid_key_is_refused(key: str | None) -> None:
    with gateway({"keys": KEYS}) as running:
        response = get(running, key)
        assert_error(response, 401, "unauthorized")
        assert response.headers["WWW-Authenticate"] == 'ApiKey header="X-API-Key"'


def test_no_client_is_admitted_while_there_are_no_keys() -> None:
    with gateway({}) as running:
        assert_error(get(running, ""), 401, "unauthorized")


def test_client_cannot_name_itself_in_a_header() -> None:
    with gateway({"keys": KEYS}) as running:
        headers = {"X-API-Key": SHOP, "X-Client": "billing"}
        assert client(running).get("/", headers=headers).text == "shop None"


def test_route_without_the_plugin_needs_no_key() -> None:
    with gateway({"keys": KEYS}, plugins={"api_keys": False}) as running:
        assert get(running).text == "None None"


def test_more_requests_than_allowed_get_a_retry_after(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(Clients.__init__, "__defaults__", (lambda: now[0],))
    with gateway({"keys": KEYS, "requests_per_minute": 2}) as running:
        assert [get(running, SHOP).status_code for _ in range(3)] == [200, 200, 429]
        response = get(running, SHOP)
        assert_error(response, 429, "too_many_requests")
        assert response.headers["Retry-After"] == "31"
        assert get(running, BILLING).status_code == 200, "every client has a bucket of its own"
        now[0] += 30
        assert [get(running, SHOP).status_code for _ in range(2)] == [200, 429]


def test_route_may_have_a_limit_of_its_own() -> None:
    with gateway({"keys": KEYS}, plugins={"api_keys": {"requests_per_minute": 1}}) as running:
        assert [get(running, SHOP).status_code for _ in range(2)] == [200, 429]


def test_page_shows_the_number_of_requests_at_the_admin_socket_only() -> None:
    with gateway({"keys": KEYS}) as running:
        get(running, SHOP)
        page = running.local_routes["/-/api-keys"]
        assert isinstance(page, LocalRoute)
        assert client(page.app).get("/-/api-keys").get_json() == {"shop": 1, "billing": 0}
        assert_error(get(running, path="/-/api-keys"), 401, "unauthorized")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"keys": {"shop": "short"}}, r"plugins\.api_keys\.keys\.shop: expected a length of at least 16"),
        ({"keys": {"shop": SHOP, "other": SHOP}}, r"plugins\.api_keys\.keys\.other: is the key of 'shop' too"),
        ({"requests_per_minute": 0}, r"plugins\.api_keys\.requests_per_minute: expected at least 1"),
    ],
)
def test_invalid_option_is_refused_without_showing_a_key(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as caught, gateway(options):
        pass
    assert SHOP not in str(caught.value)


def test_failing_plugin_cannot_be_skipped() -> None:
    with pytest.raises(PluginError, match="no request may pass without it"), gateway({"keys": KEYS, "on_error": "skip"}):
        pass
