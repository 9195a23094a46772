from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

import pytest
import rgate_request_id

from rgate import ConfigError
from rgate.testing import assert_error, client, running_gateway

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment
    from werkzeug.test import TestResponse

PLUGINS = {"request_id": rgate_request_id}


def echo(key: str = "HTTP_X_REQUEST_ID", *headers: tuple[str, str]) -> WSGIApplication:
    """A backend that answers with the id that it was sent."""

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain"), *headers])
        return [str(environ.get(key)).encode()]

    return app


def get(options: dict[str, object], headers: dict[str, str], backend: WSGIApplication | None = None) -> TestResponse:
    backends = {"orders": echo() if backend is None else backend}
    with running_gateway({"plugins": {"request_id": options}}, backends, PLUGINS) as gateway:
        return client(gateway).get("/orders", headers=headers)


def test_request_without_an_id_is_given_one() -> None:
    response = get({}, {})
    assert re.fullmatch(r"[0-9a-f]+-[0-9a-f]+", response.headers["X-Request-ID"])
    assert response.text == response.headers["X-Request-ID"]


def test_every_request_is_given_another_id() -> None:
    assert get({}, {}).text != get({}, {}).text


def test_id_of_the_client_is_kept() -> None:
    response = get({}, {"X-Request-ID": "abc-123/x=~._+"})
    assert response.text == response.headers["X-Request-ID"] == "abc-123/x=~._+"


@pytest.mark.parametrize("sent", ["", "a b", "a,b", "x" * 129, "ä", "<script>", "a;b"])
def test_id_of_the_client_that_is_not_a_plain_word_is_replaced(sent: str) -> None:
    response = get({}, {"X-Request-ID": sent})
    assert response.text == response.headers["X-Request-ID"] != sent


def test_id_of_the_client_is_replaced_when_it_is_not_trusted() -> None:
    response = get({"trust_incoming": False}, {"X-Request-ID": "mine"})
    assert response.text == response.headers["X-Request-ID"] != "mine"


def test_header_can_have_another_name() -> None:
    response = get({"header": "X-Correlation-Id"}, {"X-Correlation-Id": "mine"}, echo("HTTP_X_CORRELATION_ID"))
    assert response.text == response.headers["X-Correlation-Id"] == "mine"
    assert "X-Request-ID" not in response.headers


def test_id_of_the_backend_is_replaced() -> None:
    response = get({}, {"X-Request-ID": "mine"}, echo("HTTP_X_REQUEST_ID", ("x-request-id", "theirs")))
    assert response.headers.getlist("X-Request-ID") == ["mine"]


def test_answer_of_the_gateway_itself_has_the_id() -> None:
    with running_gateway({"plugins": {"request_id": {}}}, {"empty": ()}, PLUGINS) as gateway:
        response = client(gateway).get("/empty")
    assert_error(response, 503, "no_endpoint")
    assert response.get_json()["request_id"] == response.headers["X-Request-ID"]


@pytest.mark.parametrize("options", [{"header": "a b"}, {"heder": "X"}, {"trust_incoming": "perhaps"}])
def test_invalid_option_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"plugins\.request_id\.(header|heder|trust_incoming): "):
        get(options, {})
