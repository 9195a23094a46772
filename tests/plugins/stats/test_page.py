"""answer: the WSGI app at `/stats`."""

from __future__ import annotations

from typing import Any
from wsgiref.validate import validator

import pytest
from werkzeug.test import Client

from rgate import Overloaded
from rgate.plugins.stats import stats_app
from rgate.plugins.stats.query import Query
from rgate.testing import assert_error

from .traffic import NOON_MINUTE, Clock

ANSWER = {"requests_count": {"success": 1, "error": 0}, "latency_ms": {"average": 1.0, "p95": 1.0, "p99": 1.0}}


class Asked:
    """Reports what it is asked for."""

    def __init__(self) -> None:
        self.queries: list[Query] = []

    def __call__(self, query: Query) -> dict[str, Any]:
        self.queries.append(query)
        return ANSWER


@pytest.fixture
def asked() -> Asked:
    return Asked()


@pytest.fixture
def client(asked: Asked) -> Client:
    return Client(stats_app(asked, Clock()))


def test_get_is_answered_as_json_that_is_not_to_be_kept(client: Client) -> None:
    response = client.get("/stats")
    assert (response.status, response.json) == ("200 OK", ANSWER)
    assert response.headers["Content-Type"] == "application/json"
    assert response.headers["Cache-Control"] == "no-store"
    assert response.content_length == len(response.data)
    assert response.data.endswith(b"}\n")


def test_head_is_answered_as_get_without_a_body(client: Client) -> None:
    get, head = client.get("/stats"), client.head("/stats")
    assert (head.status_code, head.data) == (200, b"")
    assert head.headers == get.headers


def test_query_is_passed_on(client: Client, asked: Asked) -> None:
    client.get("/stats?by=route,status&since=1h")
    assert asked.queries == [Query(("route", "status"), NOON_MINUTE - 60)]


@pytest.mark.parametrize("query", ["by=colour", "by=plugin,status", "since=soon", "sicne=1h"])
def test_query_that_cannot_be_read_is_a_400_that_says_what_can(client: Client, asked: Asked, query: str) -> None:
    response = client.get(f"/stats?{query}")
    answer = assert_error(response, 400, "bad_request")
    assert "allowed" in answer["body"]
    assert answer["request_id"]
    assert response.headers["Cache-Control"] == "no-store"
    assert asked.queries == []


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
def test_other_method_is_a_405_that_says_which(client: Client, asked: Asked, method: str) -> None:
    response = client.open("/stats", method=method)
    assert_error(response, 405, "method_not_allowed")
    assert response.headers["Allow"] == "GET, HEAD"
    assert asked.queries == []


def test_faults_of_two_requests_have_two_ids(client: Client) -> None:
    first, second = (client.get("/stats?by=x").get_json() for _ in range(2))
    assert first["request_id"] != second["request_id"]


@pytest.mark.parametrize("target", ["/stats", "/stats?by=x"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
def test_answer_is_valid_wsgi(asked: Asked, target: str, method: str) -> None:
    Client(validator(stats_app(asked))).open(target, method=method).close()


def test_report_that_may_not_wait_is_a_503_that_says_when_to_ask_again() -> None:
    def refuse(query: Query) -> dict[str, Any]:
        raise Overloaded

    response = Client(stats_app(refuse)).get("/stats")
    assert_error(response, 503, "overloaded")
    assert response.headers["Retry-After"] == "1"


def test_by_that_is_not_for_here_is_a_400_that_says_where(asked: Asked) -> None:
    here = Client(stats_app(asked, Clock(), by=("route", "status")))
    assert here.get("/stats?by=route").status_code == 200
    answer = assert_error(here.get("/stats?by=status,endpoint"), 400, "bad_request")
    assert answer["body"] == "by=endpoint is answered at the admin socket only; here route, status are allowed."
    assert len(asked.queries) == 1
