"""json_app: the WSGI app of a JSON page."""

from __future__ import annotations

from typing import Any
from wsgiref.validate import validator

import pytest
from werkzeug.test import Client

from rgate import Overloaded, QueryError, RequestError, json_app
from rgate.testing import assert_error


def page(environ: dict[str, Any]) -> tuple[int, Any]:
    return 200, {"query": environ["QUERY_STRING"]}


def test_get_is_answered_with_json_that_is_not_to_be_cached() -> None:
    response = Client(json_app(page)).get("/?a=1")
    assert (response.status, response.data) == ("200 OK", b'{"query": "a=1"}\n')
    assert response.headers["Content-Type"] == "application/json"
    assert response.headers["Cache-Control"] == "no-store"
    assert response.content_length == len(response.data)


def test_head_is_answered_as_get_without_a_body() -> None:
    client = Client(json_app(page))
    get, head = client.get("/"), client.head("/")
    assert (head.status, head.data, head.headers) == ("200 OK", b"", get.headers)


def test_status_of_the_handler_is_sent() -> None:
    assert Client(json_app(lambda environ: (503, {}))).get("/").status_code == 503


@pytest.mark.parametrize(("value", "body"), [("straße", '"straße"'), ("\ud800", '"?"'), ({1: {2}}, '{"1": "{2}"}')])
def test_any_value_is_sent(value: object, body: str) -> None:
    assert Client(json_app(lambda environ: (200, value))).get("/").get_data(as_text=True) == f"{body}\n"


def test_indent_is_that_of_json() -> None:
    assert Client(json_app(lambda environ: (200, [1]), indent=2)).get("/").data == b"[\n  1\n]\n"


def test_post_is_answered_by_its_own_handler() -> None:
    client = Client(json_app(page, lambda environ: (202, {"posted": environ["QUERY_STRING"]})))
    assert client.post("/?b").get_json() == {"posted": "b"}
    assert client.get("/?b").get_json() == {"query": "b"}


@pytest.mark.parametrize(
    ("app", "method", "allow"),
    [(json_app(page), "POST", "GET, HEAD"), (json_app(page, page), "DELETE", "GET, HEAD, POST")],
)
def test_other_method_is_a_405_with_allow(app: Any, method: str, allow: str) -> None:
    response = Client(app).open("/", method=method)
    assert_error(response, 405, "method_not_allowed")
    assert (response.headers["Allow"], response.headers["Cache-Control"]) == (allow, "no-store")


def refusing(fault: Exception) -> Any:
    def handler(environ: dict[str, Any]) -> tuple[int, Any]:
        raise fault

    return json_app(handler)


def test_query_that_cannot_be_used_is_a_400_that_says_why() -> None:
    answer = assert_error(Client(refusing(QueryError("by=x is not known"))).get("/"), 400, "bad_request")
    assert answer["body"] == "by=x is not known."
    assert str(QueryError("by=x is not known")) == "by=x is not known"


def test_fault_is_answered_with_its_status_and_headers() -> None:
    class Conflict(RequestError):
        status, reason, headers = 409, "conflict", (("X-State", "old"),)

    response = Client(refusing(Conflict())).get("/")
    assert_error(response, 409, "conflict")
    assert response.headers["X-State"] == "old"
    response = Client(refusing(Overloaded())).head("/")
    assert (response.status_code, response.headers["Retry-After"], response.data) == (503, "1", b"")


def test_faults_of_two_requests_have_two_ids() -> None:
    client = Client(refusing(QueryError("no")))
    assert client.get("/").get_json()["request_id"] != client.get("/").get_json()["request_id"]


def test_other_exceptions_are_the_gateways() -> None:
    with pytest.raises(ZeroDivisionError):
        Client(refusing(ZeroDivisionError())).get("/")


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT"])
def test_answer_is_valid_wsgi(method: str) -> None:
    Client(validator(json_app(page, page))).open("/?x", method=method).close()
