"""retry: which requests are repeated, at which endpoint, how often, and which never are."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING

import pytest

from rgate import (
    BadResponse,
    ConnectionRefused,
    ConnectTimeout,
    Exchange,
    Gateway,
    GatewayError,
    Middleware,
    NoEndpoint,
    Overloaded,
    ResponseTimeout,
    Unreachable,
    UpstreamClosed,
    hookimpl,
)
from rgate.plugins.retry import Retry, RetryOptions
from rgate.testing import (
    ScriptedBackend,
    ScriptedConnection,
    client,
    closed_port_url,
    http_response,
    make_endpoint,
    make_environ,
    make_exchange,
    running_gateway,
)

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

NO_EJECTION = {"max_ejected_percent": 0}  # so that the endpoint which fails gets requests on and on
BAD, GOOD, OTHER = (make_endpoint(name) for name in ("bad", "good", "other"))


class Attempts:
    """selection and forwarder in one: the first candidate; `bad` and what is in `failing` raise the error, others answer."""

    def __init__(self, error: GatewayError, failing: Iterable[str] = ("bad",)) -> None:
        self.error = error
        self.failing = set(failing)
        self.tried: list[str] = []
        self.bodies: list[bytes] = []

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        exchange = Exchange.of(environ)
        exchange.attempts += 1
        exchange.endpoint = exchange.candidates[0]
        self.tried.append(exchange.endpoint.name)
        self.bodies.append(environ["wsgi.input"].read())
        if exchange.endpoint.name in self.failing:
            raise self.error
        start_response("200 OK", [])
        return [b"answered"]


def send(attempts: Attempts, method: str = "GET", options: RetryOptions | None = None, **request: object) -> list[bytes]:
    environ = make_environ("/", make_exchange(candidates=(BAD, GOOD, OTHER)), method=method, **request)
    if not request:
        environ.pop("CONTENT_LENGTH", None)
    return list(Retry(attempts, options or RetryOptions())(environ, lambda *_: io.BytesIO().write))


@pytest.mark.parametrize("error", [ConnectionRefused(), Unreachable(), ConnectTimeout()], ids=lambda error: error.reason)
@pytest.mark.parametrize("method", ["GET", "POST", "PATCH"])
def test_request_that_reached_no_backend_is_tried_elsewhere_whatever_the_method(error: GatewayError, method: str) -> None:
    attempts = Attempts(error)
    assert send(attempts, method) == [b"answered"]
    assert attempts.tried == ["bad", "good"]


@pytest.mark.parametrize("error", [UpstreamClosed(), ResponseTimeout()], ids=lambda error: error.reason)
@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "PUT", "DELETE"])
def test_idempotent_request_without_a_response_is_tried_elsewhere(error: GatewayError, method: str) -> None:
    attempts = Attempts(error)
    assert send(attempts, method) == [b"answered"]
    assert attempts.tried == ["bad", "good"]


@pytest.mark.parametrize("error", [UpstreamClosed(), ResponseTimeout()], ids=lambda error: error.reason)
@pytest.mark.parametrize("method", ["POST", "PATCH", "LOCK"])
def test_other_request_without_a_response_is_sent_once(error: GatewayError, method: str) -> None:
    attempts = Attempts(error)
    with pytest.raises(type(error)):
        send(attempts, method)
    assert attempts.tried == ["bad"]


def test_on_timeout_off_passes_timeouts_on_and_nothing_else() -> None:
    options = RetryOptions(on_timeout=False)
    attempts = Attempts(ResponseTimeout())
    with pytest.raises(ResponseTimeout):
        send(attempts, options=options)
    assert attempts.tried == ["bad"]
    assert send(Attempts(UpstreamClosed()), options=options) == [b"answered"]


@pytest.mark.parametrize(
    "error",
    [ResponseTimeout(begun=True), BadResponse(), NoEndpoint(), Overloaded(), GatewayError()],
    ids=lambda error: error.reason,
)
def test_other_faults_are_passed_on(error: GatewayError) -> None:
    attempts = Attempts(error)
    with pytest.raises(type(error)):
        send(attempts)
    assert attempts.tried == ["bad"]


def test_body_at_hand_is_sent_again_from_its_beginning() -> None:
    attempts = Attempts(UpstreamClosed())
    assert send(attempts, "PUT", input_stream=io.BytesIO(b"body"), content_length=4) == [b"answered"]
    assert attempts.bodies == [b"body", b"body"]


@pytest.mark.parametrize("error", [UpstreamClosed(), ResponseTimeout()], ids=lambda error: error.reason)
def test_body_that_streams_is_not_sent_again(error: GatewayError) -> None:
    attempts = Attempts(error)
    with pytest.raises(type(error)):
        send(attempts, "PUT", input_stream=io.BufferedReader(io.BytesIO(b"body")), content_length=4)
    assert attempts.tried == ["bad"]


def test_attempts_are_bounded_and_the_last_fault_is_told() -> None:
    attempts = Attempts(ConnectionRefused(), failing=("bad", "good", "other"))
    with pytest.raises(ConnectionRefused):
        send(attempts, options=RetryOptions(attempts=2))
    assert attempts.tried == ["bad", "good"]


def test_attempts_of_three_reach_the_third_endpoint() -> None:
    attempts = Attempts(ConnectionRefused(), failing=("bad", "good"))
    assert send(attempts, options=RetryOptions(attempts=3)) == [b"answered"]
    assert attempts.tried == ["bad", "good", "other"]


def test_budget_lets_a_share_of_requests_be_sent_again() -> None:
    attempts = Attempts(ConnectionRefused())
    retry = Retry(attempts, RetryOptions(budget_percent=20))
    answered = 0
    for _ in range(1_000):
        environ = make_environ("/", make_exchange(candidates=(BAD, GOOD)))
        try:
            retry(environ, lambda *_: io.BytesIO().write)
            answered += 1
        except ConnectionRefused:
            pass
    assert 200 <= answered <= 212, f"{answered} of 1,000 were sent again: a fifth, and ten that were saved up"


def test_budget_that_is_spent_is_not_there_again_in_the_next_gateway() -> None:
    budgets: dict[str, float] = {}

    def again(retry: Retry) -> bool:
        environ = make_environ("/", make_exchange(candidates=(BAD, GOOD)))
        try:
            return bool(retry(environ, lambda *_: io.BytesIO().write))
        except ConnectionRefused:
            return False

    attempts, options = Attempts(ConnectionRefused()), RetryOptions(budget_percent=1)
    before = Retry(attempts, options, budgets)
    assert sum(again(before) for _ in range(20)) == 10
    after = Retry(attempts, options, budgets)
    assert not again(after)
    attempts.failing.clear()
    for _ in range(100):
        again(after)
    attempts.failing.add("bad")
    assert again(Retry(attempts, options, budgets)), "a hundred good requests have earned one"


def test_budget_of_nothing_sends_nothing_again() -> None:
    attempts = Attempts(ConnectionRefused())
    with pytest.raises(ConnectionRefused):
        send(attempts, options=RetryOptions(budget_percent=0))
    assert attempts.tried == ["bad"]


def test_gateway_with_one_dead_endpoint_of_two_answers_every_request() -> None:
    with ScriptedBackend(http_response(b"hello")) as backend, closed_port_url() as nobody:
        config = {
            "backends": [{"name": "x", "endpoints": [nobody, backend.url], "policy": "round_robin", "health": NO_EJECTION}],
            "routes": [
                {"path_prefix": "/x", "backend": "x"},
                {"path_prefix": "/once", "backend": "x", "plugins": {"retry": False}},
            ],
        }
        with running_gateway(config) as gateway:
            assert [client(gateway).post("/x", data=b"x").status_code for _ in range(8)] == [200] * 8
            assert sorted(client(gateway).get("/once").status_code for _ in range(4)) == [200, 200, 503, 503]


def test_gateway_with_an_endpoint_that_closes_answers_from_the_other() -> None:
    def close(connection: ScriptedConnection) -> None:
        connection.read_request()

    with ScriptedBackend(close) as closing, ScriptedBackend(http_response(b"hello")) as backend:
        config = {
            "backends": [{"name": "x", "endpoints": [closing.url, backend.url], "policy": "round_robin", "health": NO_EJECTION}],
            "routes": [{"path_prefix": "/x", "backend": "x"}],
        }
        with running_gateway(config) as gateway:
            assert [client(gateway).get("/x").status_code for _ in range(6)] == [200] * 6
            statuses = sorted(client(gateway).post("/x").status_code for _ in range(4))
    assert statuses == [200, 200, 502, 502], "a POST is sent once"


def hang(connection: ScriptedConnection) -> None:
    while connection.read_request() is not None:
        pass


def stall(connection: ScriptedConnection, after: bytes) -> None:
    connection.read_request()
    connection.send(after)
    connection.wait_closed()


class Seen:
    """A plugin that remembers the exchanges that are over."""

    def __init__(self) -> None:
        self.exchanges: list[Exchange] = []

    @hookimpl
    def rgate_middlewares(self, gateway: Gateway) -> Middleware:
        def wrap(app: WSGIApplication, options: object) -> WSGIApplication:
            def note(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
                Exchange.of(environ).on_finish(self.exchanges.append)
                return app(environ, start_response)

            return note

        return Middleware("seen", wrap, modifies_request=False)


def backend_of(*backends: ScriptedBackend, health: Mapping[str, object] = NO_EJECTION) -> dict[str, object]:
    """A config with two routes to these, one of which retries no timeouts. The good one has a second to answer."""
    urls = [backend.url for backend in backends]
    route = {"backend": "x", "timeouts": {"read_seconds": 1}}
    return {
        "backends": [{"name": "x", "endpoints": urls, "policy": "round_robin", "health": health}],
        "routes": [
            {**route, "path_prefix": "/x"},
            {**route, "path_prefix": "/once", "plugins": {"retry": {"on_timeout": False}}},
        ],
        "plugins": {"seen": {}},
    }


def test_gateway_with_an_endpoint_that_hangs_answers_gets_from_the_other_and_ejects_it() -> None:
    seen = Seen()
    with ScriptedBackend(hang) as hanging, ScriptedBackend(http_response(b"hello")) as backend:
        config = backend_of(hanging, backend, health={"consecutive_faults": 1})
        with running_gateway(config, plugins={"seen": seen}) as gateway:
            assert [client(gateway).get("/x").status_code for _ in range(2)] == [200] * 2
            aside = gateway.table.snapshot.excluded["x"]
    assert [str(each) for each in aside] == ["ejected: 1 faults in a row, the last: response_timeout"], "retried, and counted"
    assert sorted(exchange.attempts for exchange in seen.exchanges) == [1, 2]
    assert {exchange.endpoint.address.port for exchange in seen.exchanges if exchange.endpoint} == {backend.port}


def test_gateway_with_an_endpoint_that_hangs_sends_a_put_again_with_its_body() -> None:
    with ScriptedBackend(hang) as hanging, ScriptedBackend(http_response(b"hello")) as backend:
        with running_gateway(backend_of(hanging, backend), plugins={"seen": Seen()}) as gateway:
            assert [client(gateway).put("/x", data=b"body").status_code for _ in range(2)] == [200] * 2
        bodies = [request.body for request in hanging.requests + backend.requests]
    assert bodies == [b"body"] * 3


@pytest.mark.parametrize(("method", "path"), [("POST", "/x"), ("GET", "/once")], ids=["POST", "on_timeout off"])
def test_gateway_with_an_endpoint_that_hangs_sends_once_what_is_to_be_sent_once(method: str, path: str) -> None:
    with ScriptedBackend(hang) as hanging, ScriptedBackend(http_response(b"hello")) as backend:
        with running_gateway(backend_of(hanging, backend), plugins={"seen": Seen()}) as gateway:
            assert sorted(client(gateway).open(path, method=method).status_code for _ in range(2)) == [200, 504]
        assert (len(hanging.requests), len(backend.requests)) == (1, 1)


@pytest.mark.parametrize(
    "begin", [b"HTTP/1.1 200 OK\r\nX-", b"HTTP/1.1 103 Early Hints\r\n\r\n"], ids=["within the head", "after an interim head"]
)
def test_gateway_sends_nothing_again_of_whose_response_something_has_come(begin: bytes) -> None:
    with ScriptedBackend(partial(stall, after=begin)) as stalling, ScriptedBackend(http_response(b"hello")) as backend:
        with running_gateway(backend_of(stalling, backend), plugins={"seen": Seen()}) as gateway:
            assert sorted(client(gateway).get("/x").status_code for _ in range(2)) == [200, 504]
        assert len(backend.requests) == 1


def test_gateway_sends_nothing_again_whose_response_stalls_within_the_body() -> None:
    begin = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhe"
    with ScriptedBackend(partial(stall, after=begin)) as stalling, ScriptedBackend(http_response(b"hello")) as backend:
        with running_gateway(backend_of(stalling, backend), plugins={"seen": Seen()}) as gateway:
            whole = [client(gateway).get("/x").data == b"hello" for _ in range(2)]
        assert (sorted(whole), len(backend.requests)) == ([False, True], 1)
