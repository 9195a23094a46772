"""faults: the response to an exception that is raised inside."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any
from wsgiref.validate import validator

import pytest

import rgate
from rgate import (
    ConnectionRefused,
    Exchange,
    Gateway,
    GatewayError,
    InternalError,
    Middleware,
    NoRoute,
    Overloaded,
    ResponseTimeout,
    UpstreamClosed,
    hookimpl,
)
from rgate.plugins import faults
from rgate.testing import (
    assert_error,
    client,
    make_endpoint,
    make_environ,
    make_exchange,
    make_gateway,
    respond_with,
    running_gateway,
)

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

# DESIGN: what the client gets, one row each.
TABLE = [
    (rgate.NoEndpoint, 503, "no_endpoint"),
    (rgate.Unavailable, 503, "unavailable"),
    (rgate.ConnectionRefused, 503, "refused"),
    (rgate.Unreachable, 503, "unreachable"),
    (rgate.ConnectTimeout, 503, "connect_timeout"),
    (rgate.Overloaded, 503, "overloaded"),
    (rgate.ResponseTimeout, 504, "response_timeout"),
    (rgate.BadGateway, 502, "bad_gateway"),
    (rgate.UpstreamClosed, 502, "closed"),
    (rgate.BadResponse, 502, "bad_response"),
    (rgate.UpstreamTruncated, 502, "truncated"),
    (rgate.TLSFailed, 502, "tls_failed"),
    (rgate.RequestError, 400, "bad_request"),
    (rgate.AmbiguousPath, 400, "ambiguous_path"),
    (rgate.NotTLS, 400, "not_tls"),
    (rgate.MethodNotAllowed, 405, "method_not_allowed"),
    (rgate.HTTPSOnly, 308, "https_only"),
    (rgate.MethodNotAllowed, 405, "method_not_allowed"),
    (rgate.RequestTimeout, 408, "request_timeout"),
    (rgate.MethodNotAllowed, 405, "method_not_allowed"),
    (rgate.LengthRequired, 411, "length_required"),
    (rgate.BodyTooLarge, 413, "body_too_large"),
    (rgate.ClientClosed, 499, "client_closed"),
    (rgate.TargetTooLong, 414, "target_too_long"),
    (rgate.ExpectationFailed, 417, "expectation_failed"),
    (rgate.HeadTooLarge, 431, "head_too_large"),
    (rgate.NotImplementedByGateway, 501, "not_implemented"),
    (rgate.VersionNotSupported, 505, "version_not_supported"),
    (rgate.LoopDetected, 508, "loop"),
    (rgate.InternalError, 500, "internal"),
    (rgate.GatewayError, 500, "internal"),
    (rgate.NoRoute, 404, "no_route"),
]
SECRET = "10.1.2.3:5432 is not for clients"


def raising(error: Exception) -> WSGIApplication:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        raise error

    return app


def guarded(inner: WSGIApplication, **plugins: object) -> WSGIApplication:
    """As where no access log has a line for each failed request anyway."""
    gateway = make_gateway({"plugins": {"access_log": {"requests": "none"}}}, plugins=plugins)
    return faults.rgate_middlewares(gateway).wrap(inner, None)


def faults_below(error: type[GatewayError]) -> set[type[GatewayError]]:
    return {error}.union(*map(faults_below, error.__subclasses__()))


def test_table_has_every_fault_there_is() -> None:
    known = {error for error in faults_below(GatewayError) if error.__module__ == "rgate.errors"}
    assert known == {error for error, _, _ in TABLE}


@pytest.mark.parametrize(("error", "status_code", "reason"), TABLE, ids=[reason + "-" + e.__name__ for e, _, reason in TABLE])
def test_fault_raised_becomes_its_answer(error: type[GatewayError], status_code: int, reason: str) -> None:
    exchange, raised = make_exchange(), error() if error is NoRoute else error(SECRET)
    response = client(guarded(raising(raised)), exchange).get("/")
    answer = assert_error(response, status_code, reason)
    assert answer["request_id"] == exchange.id
    assert answer["body"] == raised.message
    assert SECRET not in response.text
    assert exchange.error is raised
    assert response.status.split(" ", 1)[1] not in ("", "Unknown")
    assert response.content_length == len(response.data)
    assert response.headers.get("Retry-After") == ("1" if status_code == 503 else None)
    assert response.headers.get("Cache-Control") == (None if error is NoRoute else "no-store")


def test_fault_without_a_registered_status_is_named_unknown() -> None:
    response = client(guarded(raising(NoRoute("gone fishing", 299))), make_exchange()).get("/")
    assert (response.status, response.json and response.json["body"]) == ("299 Unknown", "gone fishing")


def test_fault_with_its_own_retry_after_says_so() -> None:
    error = Overloaded()
    error.retry_after_seconds = 30
    assert client(guarded(raising(error)), make_exchange()).get("/").headers["Retry-After"] == "30"


def test_default_response_with_content_type_is_sent_raw() -> None:
    response = client(guarded(raising(NoRoute("<p>Größe</p>", 403, "text/html; charset=utf-8"))), make_exchange()).get("/")
    assert (response.status_code, response.data) == (403, "<p>Größe</p>".encode())
    assert response.headers["Content-Type"] == "text/html; charset=utf-8"


@pytest.mark.parametrize("status_code", [204, 205, 304])
def test_default_response_with_a_bodiless_status_has_no_body(status_code: int) -> None:
    response = client(guarded(raising(NoRoute("nothing", status_code))), make_exchange()).get("/")
    assert (response.status_code, response.data) == (status_code, b"")
    assert response.headers.get("Content-Length") == ("0" if status_code == 205 else None)
    assert "Content-Type" not in response.headers


def test_head_has_the_length_and_no_body() -> None:
    app = guarded(raising(ConnectionRefused()))
    exchange = make_exchange()
    answers = {
        method: list(app(make_environ(method=method, exchange=exchange), lambda *_: lambda _: None)) for method in ("HEAD", "GET")
    }
    assert answers["HEAD"] == []
    head = client(app, exchange).head("/")
    assert head.headers["Content-Length"] == str(len(answers["GET"][0]))


def test_unexpected_exception_is_500_and_is_reported_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    exchange = make_exchange()
    response = client(guarded(raising(ZeroDivisionError(SECRET))), exchange).get("/")
    assert_error(response, 500, "internal")
    assert SECRET not in response.text
    assert isinstance(exchange.error, InternalError)
    (record,) = caplog.records
    assert record.levelno == logging.ERROR and exchange.id in record.getMessage() and record.exc_info, caplog.text


@pytest.mark.parametrize(
    ("error", "level", "where"),
    [
        (rgate.UpstreamClosed, "WARNING", " (route /, backend orders)"),
        (rgate.ConnectionRefused, "DEBUG", ""),
        (rgate.RequestError, "DEBUG", ""),
    ],
)
def test_fault_detail_goes_to_the_log(
    error: type[GatewayError], level: str, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "rgate.plugins.faults")
    exchange = make_exchange()
    client(guarded(raising(error(SECRET))), exchange).get("/")
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        (level, f"{exchange.id}: {error.reason}: {SECRET}{where}")
    ]


def test_fault_is_no_news_where_every_failed_request_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    app = faults.rgate_middlewares(make_gateway()).wrap(raising(UpstreamClosed(SECRET)), None)
    client(app, make_exchange()).get("/")
    assert not caplog.records


def test_log_tells_apart_faults_by_endpoint_and_by_reason(caplog: pytest.LogCaptureFixture) -> None:
    for endpoint, error in [
        (make_endpoint("a"), ResponseTimeout("none for 1 s")),
        (make_endpoint("a"), ResponseTimeout("none for 2 s")),
        (make_endpoint("a"), UpstreamClosed()),
        (make_endpoint("b"), ResponseTimeout()),
        (make_endpoint("b", backend="others"), ResponseTimeout()),
    ]:
        exchange = make_exchange()
        exchange.endpoint = endpoint
        client(guarded(raising(error)), exchange).get("/")
    first, second, *others = (record.__dict__["dedup_key"] for record in caplog.records)
    assert first == second
    assert len({first, *others}) == 4
    assert caplog.messages[0].endswith(" (route /, backend orders, endpoint a)")


def test_answer_and_good_responses_are_valid_wsgi() -> None:
    for inner in (raising(ConnectionRefused()), respond_with(b"hello", headers=[("Content-Type", "text/plain")])):
        app = validator(guarded(validator(inner)))
        environ = make_environ("/")
        body = app(environ, lambda status, headers, exc_info=None: lambda _: None)
        assert b"".join(body)
        body.close()  # type: ignore[attr-defined]


# The hook


class Page:
    """Answers ConnectionRefused with a page, leaves other faults alone, and fails when the test says so."""

    def __init__(self, failing: str = "") -> None:
        self.failing = failing

    @hookimpl
    def rgate_fault_response(self, exchange: Exchange, error: GatewayError) -> WSGIApplication | None:
        if self.failing == "hook":
            raise ZeroDivisionError("in the hook")
        return self.page if isinstance(error, ConnectionRefused) else None

    def page(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if self.failing == "app":
            raise ZeroDivisionError("in the app")
        start_response("503 Service Unavailable", [("Content-Type", "text/html"), ("Content-Length", "4")])
        if self.failing == "late":
            raise ZeroDivisionError("after it began")
        return [b"page"]


def test_hook_that_answers_comes_before_the_built_in() -> None:
    response = client(guarded(raising(ConnectionRefused()), page=Page()), make_exchange()).get("/")
    assert (response.status_code, response.data, response.headers["Content-Type"]) == (503, b"page", "text/html")


def test_hook_that_returns_none_leaves_it_to_the_built_in() -> None:
    assert_error(client(guarded(raising(Overloaded()), page=Page()), make_exchange()).get("/"), 503, "overloaded")


@pytest.mark.parametrize("failing", ["hook", "app"])
def test_hook_that_fails_is_reported_and_the_built_in_answers(failing: str, caplog: pytest.LogCaptureFixture) -> None:
    response = client(guarded(raising(ConnectionRefused()), page=Page(failing)), make_exchange()).get("/")
    assert_error(response, 503, "refused")
    assert f"in the {failing}" in caplog.text


# After the response has begun


class Server:
    """start_response of a server that follows PEP 3333: the head is sent with the first block of the body."""

    def __init__(self, head_sent: bool) -> None:
        self.head_sent = head_sent
        self.status = ""

    def __call__(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[[bytes], object]:
        if exc_info and self.head_sent:
            raise exc_info[1].with_traceback(exc_info[2])
        assert exc_info or not self.status, "start_response called twice without exc_info"
        self.status = status
        return lambda _: None


def began_then_raised(error: Exception) -> WSGIApplication:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [])
        Exchange.of(environ).status = 200  # as ExchangeScope does
        raise error

    return app


def test_response_begun_but_not_sent_is_replaced() -> None:
    server = Server(head_sent=False)
    body = guarded(began_then_raised(ConnectionRefused()))(make_environ(), server)
    assert server.status == "503 Service Unavailable"
    assert json.loads(b"".join(body))["reason"] == "refused"


def test_response_begun_and_sent_raises_the_same_error() -> None:
    error = ConnectionRefused()
    with pytest.raises(ConnectionRefused) as raised:
        guarded(began_then_raised(error))(make_environ(), Server(head_sent=True))
    assert raised.value is error


def test_fault_page_that_fails_after_it_began_is_replaced(caplog: pytest.LogCaptureFixture) -> None:
    exchange, server = make_exchange(), Server(head_sent=False)

    def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[[bytes], object]:
        exchange.status = int(status[:3])
        return server(status, headers, exc_info)

    body = guarded(raising(ConnectionRefused()), page=Page("late"))(make_environ(exchange=exchange), start)
    assert json.loads(b"".join(body))["reason"] == "refused"
    assert "after it began" in caplog.text


def test_gateway_default_response_as_configured() -> None:
    with running_gateway({"default_response": {"body": "This is not reachable", "status_code": 403}}) as gateway:
        response = client(gateway).get("/nowhere")
    assert assert_error(response, 403, "no_route")["body"] == "This is not reachable"


def test_gateway_replaced_by_another_fault_page() -> None:
    with running_gateway({}, {"orders": raising(ConnectionRefused())}, {"page": Page()}) as gateway:
        assert client(gateway).get("/orders").data == b"page"


def test_location_of_a_fault_is_a_header() -> None:
    response = client(guarded(raising(rgate.HTTPSOnly("https://shop.example/x?y"))), make_exchange()).get("/")
    assert (response.status_code, response.headers["Location"]) == (308, "https://shop.example/x?y")


def test_fault_of_a_plugin_has_the_headers_that_it_says_and_is_no_news_below_500(caplog: pytest.LogCaptureFixture) -> None:
    class Unauthorized(GatewayError):
        status = 401
        reason = "unauthorized"
        headers = (("WWW-Authenticate", "Bearer"),)

    class Refusing:
        @hookimpl
        def rgate_middlewares(self, gateway: Gateway) -> Middleware:
            def wrap(app: Any, options: object) -> Any:
                def refuse(environ: Any, start_response: Any) -> Any:
                    raise Unauthorized("no token")

                return refuse

            return Middleware("auth", wrap)

    caplog.set_level(logging.DEBUG, "rgate.plugins.faults")
    for disabled in (["faults"], []):  # what answers then is the core itself
        config = {"plugins": {"disable": disabled}}
        with running_gateway(config, {"orders": respond_with(b"x")}, {"auth": Refusing()}) as gateway:
            response = client(gateway).get("/orders")
        assert_error(response, 401, "unauthorized")
        assert response.headers["WWW-Authenticate"] == "Bearer"
    assert [record.levelname for record in caplog.records if record.name == "rgate.plugins.faults"][-1:] == ["DEBUG"]
