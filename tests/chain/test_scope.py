"""ExchangeScope: every request has an exchange that ends in time, and every failure an answer."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from rgate import BadResponse, Exchange, GatewayError, NoEndpoint, RequestError
from rgate.chain.exchange import ENVIRON_KEY
from rgate.chain.scope import ExchangeScope, reject
from rgate.http1.environ import FIELDS_KEY, REJECTION_KEY, TARGET_KEY
from rgate.testing import make_environ, respond_with

from .bodies import Body

App = Callable[..., Iterable[bytes]]


class Scope:
    """An ExchangeScope around an app, which records its exchanges and failures."""

    def __init__(self, app: App, **local_routes: App) -> None:
        self.exchanges: list[Exchange] = []
        self.finished: list[tuple[int, int, str | None]] = []
        self.failures: list[BaseException] = []
        self.hooks: list[str] = []

        def watched(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            exchange = Exchange.of(environ)
            self.exchanges.append(exchange)
            exchange.on_finish(lambda e: self.finished.append((e.status, e.bytes_sent, e.error and e.error.reason)))
            return app(environ, start_response)

        routes = {f"/{name}": route for name, route in local_routes.items()}
        self.app = ExchangeScope(watched, reject, routes, self.fail)

    def fail(self, exchange: Exchange, error: BaseException, hook: str = "") -> None:
        self.failures.append(error)
        self.hooks.append(hook)

    def call(self, target: str = "/", **environ: Any) -> Called:
        made = make_environ(target)
        del made[ENVIRON_KEY]
        return Called(self, made | environ)


class Called:
    def __init__(self, scope: Scope, environ: dict[str, Any]) -> None:
        self.started: list[tuple[str, list[tuple[str, str]]]] = []
        self.body = scope.app(environ, self.start_response)

    head_sent = False
    """Set by a test, as if the first block had been sent."""

    def start_response(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[[bytes], object]:
        if self.started:
            assert exc_info, "start_response was called twice"
            if self.head_sent:
                raise exc_info[1]
        self.started.append((status, headers))
        return lambda block: None


def raising(error: Exception) -> App:
    def app(environ: Any, start_response: Any) -> Iterable[bytes]:
        raise error

    return app


def test_scope_whole_body_finishes_before_it_is_handed_over() -> None:
    scope = Scope(respond_with(b"hello"))
    assert scope.call().body == [b"hello"]
    assert scope.finished == [(200, 5, None)]


def test_scope_body_of_known_length_finishes_before_its_last_byte() -> None:
    scope = Scope(respond_with(Body(b"he", b"llo"), headers=[("content-length", "5")]))
    body = iter(scope.call().body)
    assert next(body) == b"he"
    assert not scope.finished
    assert next(body) == b"llo"
    assert scope.finished == [(200, 5, None)]
    with pytest.raises(StopIteration):
        next(body)


def test_scope_body_of_unknown_length_finishes_at_its_end() -> None:
    scope = Scope(respond_with(Body(b"he", b"llo")))
    body = iter(scope.call().body)
    assert [next(body), next(body)] == [b"he", b"llo"]
    assert not scope.finished
    with pytest.raises(StopIteration):
        next(body)
    assert scope.finished == [(200, 5, None)]


def test_scope_body_that_is_not_read_finishes_when_closed() -> None:
    inner = Body(b"hello")
    scope = Scope(respond_with(inner))
    scope.call().body.close()  # type: ignore[attr-defined]
    assert scope.finished == [(200, 0, None)]
    assert inner.closed == 1


def test_scope_body_without_close_can_be_closed() -> None:
    scope = Scope(respond_with((b"a", b"b")))
    scope.call().body.close()  # type: ignore[attr-defined]
    assert scope.finished == [(200, 0, None)]


def test_scope_body_whose_close_raises_finishes() -> None:
    class Bad(Body):
        def close(self) -> None:
            raise OSError("close")

    scope = Scope(respond_with(Bad(b"hello")))
    scope.call().body.close()  # type: ignore[attr-defined]
    assert len(scope.finished) == 1
    assert [str(error) for error in scope.failures] == ["close"]


class Leaking:
    """A middleware that gets a streaming response from the backend and does not close it."""

    def __init__(self, answer: Iterable[bytes] | Exception) -> None:
        self.answer = answer
        self.upstream_body = Body(b"hello")

    def __call__(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        Exchange.of(environ).upstream_body = self.upstream_body
        if isinstance(self.answer, Exception):
            raise self.answer
        start_response("200 OK", [])
        return self.answer


@pytest.mark.parametrize("answer", [[b"own"], ValueError("broken"), iter([b"own"]), Body(ValueError("midway"))])
def test_scope_response_that_the_chain_has_left_open_is_closed(answer: Iterable[bytes] | Exception) -> None:
    leaking = Leaking(answer)
    body = Scope(leaking).call().body
    list(body)
    getattr(body, "close", lambda: None)()
    assert leaking.upstream_body.closed == 1


def in_thread(call: Callable[[], object]) -> Any:
    """Call `call` in a thread that is not the main one."""
    with ThreadPoolExecutor(1) as threads:
        return threads.submit(call).result()


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), MemoryError(), RecursionError()])
def test_scope_exception_that_would_end_a_thread_costs_one_request(error: Any) -> None:
    scope = Scope(raising(error))
    called = in_thread(scope.call)
    assert json.loads(called.body[0])["reason"] == "internal"
    assert scope.failures == [error]


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
def test_scope_body_with_an_exception_that_would_end_a_thread_breaks_off(error: Any) -> None:
    scope = Scope(respond_with(Body(error)))
    assert json.loads(b"".join(in_thread(lambda: list(scope.call().body))))["reason"] == "internal"


def test_scope_signal_in_the_main_thread_passes() -> None:
    with pytest.raises(SystemExit):
        Scope(raising(SystemExit(3))).call()  # type: ignore[arg-type]


def test_scope_finish_callback_that_raises_system_exit_is_reported_and_the_others_run() -> None:
    called: list[str] = []

    def app(environ: Any, start_response: Any) -> Iterable[bytes]:
        exchange = Exchange.of(environ)
        exchange.on_finish(lambda e: sys.exit("no"))
        exchange.on_finish(lambda e: called.append("second"))
        start_response("200 OK", [])
        return [b"ok"]

    scope = Scope(app)
    assert in_thread(scope.call).body == [b"ok"]
    assert called == ["second"]
    assert [type(error) for error in scope.failures] == [SystemExit]


@pytest.mark.parametrize("answer", [None, [None], 5])
def test_scope_answer_that_is_not_a_body_is_a_fault(answer: Any) -> None:
    scope = Scope(lambda environ, start_response: start_response("200 OK", []) and answer)
    body = scope.call().body
    assert json.loads(b"".join(body))["reason"] == "internal"
    assert len(scope.failures) == len(scope.finished) == 1


@pytest.mark.parametrize("length", ["five", "", "\u0665"])
def test_scope_invalid_content_length_is_left_to_the_server(length: str) -> None:
    scope = Scope(respond_with(Body(b"hello"), headers=[("Content-Length", length)]))
    assert list(scope.call().body) == [b"hello"]
    assert scope.finished == [(200, 5, None)]


@pytest.mark.parametrize(("error", "reason"), [(BadResponse("x"), "bad_response"), (ValueError("x"), "internal")])
def test_scope_body_that_breaks_off_is_an_error_and_raises(error: Exception, reason: str) -> None:
    scope = Scope(respond_with(Body(b"he", error)))
    called = scope.call()
    body = iter(called.body)
    assert next(body) == b"he"
    called.head_sent = True
    with pytest.raises(type(error)):
        next(body)
    assert scope.finished == [(200, 2, reason)]
    assert scope.failures == [error]


@pytest.mark.parametrize(("error", "status"), [(BadResponse("x"), 502), (ValueError("x"), 500)])
def test_scope_body_that_breaks_off_before_anything_has_left_becomes_an_answer(error: Exception, status: int) -> None:
    scope = Scope(respond_with(Body(b"", error), headers=[("Content-Length", "5")]))
    called = scope.call()
    blocks = list(called.body)
    assert json.loads(b"".join(blocks))["status_code"] == status
    assert [int(line[:3]) for line, _ in called.started] == [200, status]
    assert scope.finished == [(status, len(blocks[-1]), scope.exchanges[0].error.reason)]  # type: ignore[union-attr]


def test_scope_body_that_the_client_breaks_off_is_not_reported() -> None:
    scope = Scope(respond_with(Body(RequestError("left"))))
    list(scope.call().body)
    assert [(status, reason) for status, _, reason in scope.finished] == [(400, "bad_request")]
    assert scope.failures == []


def test_scope_first_error_of_an_exchange_stays() -> None:
    def app(environ: Any, start_response: Any) -> Iterable[bytes]:
        Exchange.of(environ).error = BadResponse("first")
        start_response("200 OK", [])
        return Body(ValueError("second"))

    scope = Scope(app)
    list(scope.call().body)
    assert [(status, reason) for status, _, reason in scope.finished] == [(500, "bad_response")]


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [(NoEndpoint("x"), "503 Service Unavailable", "no_endpoint"), (KeyError("x"), "500 Internal Server Error", "internal")],
)
def test_scope_exception_of_the_chain_becomes_an_answer(error: Exception, status: str, reason: str) -> None:
    scope = Scope(raising(error))
    called = scope.call()
    (body,) = called.body
    answer = json.loads(body)
    assert answer["status_code"] == int(status[:3])
    assert (answer["reason"], answer["request_id"]) == (reason, scope.exchanges[0].id)
    assert called.started == [(status, [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])]
    assert scope.failures == [error]
    assert scope.finished == [(int(status[:3]), len(body), reason)]


def test_scope_status_without_a_phrase_is_unknown() -> None:
    class Odd(GatewayError):
        status = 599

    assert Scope(raising(Odd())).call().started[0][0] == "599 Unknown"


def test_scope_exception_after_the_response_has_begun_replaces_it_if_nothing_has_left() -> None:
    def app(environ: Any, start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [])
        raise ValueError("late")

    scope = Scope(app)
    assert [status for status, _ in scope.call().started] == ["200 OK", "500 Internal Server Error"]
    assert [(status, reason) for status, _, reason in scope.finished] == [(500, "internal")]


def test_scope_exception_after_something_was_sent_is_raised() -> None:
    def app(environ: Any, start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [])(b"begun")
        raise ValueError("late")

    def start_response(status: str, headers: Any, exc_info: Any = None) -> Callable[[bytes], object]:
        if exc_info:
            raise exc_info[1]
        return lambda block: None

    scope = Scope(app)
    environ = make_environ()
    del environ[ENVIRON_KEY]
    with pytest.raises(ValueError, match="late"):
        scope.app(environ, start_response)
    assert scope.finished == [(200, 0, "internal")]


class Lazy:
    """An app that calls start_response only when its body is iterated, as PEP 3333 allows."""

    def __init__(self, *blocks: bytes | Exception, headers: Iterable[tuple[str, str]] = ()) -> None:
        self.blocks = blocks
        self.headers = [*headers]

    def __call__(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        def body() -> Iterator[bytes]:
            for block in self.blocks:
                if isinstance(block, Exception):
                    raise block
                start_response("200 OK", self.headers) if block is self.blocks[0] else None
                yield block

        return body()


def test_scope_app_that_begins_late_finishes_before_its_last_byte() -> None:
    scope = Scope(Lazy(b"he", b"llo", headers=[("Content-Length", "5")]))
    body = iter(scope.call().body)
    assert [next(body), next(body)] == [b"he", b"llo"]
    assert scope.finished == [(200, 5, None)]


def test_scope_app_that_fails_before_it_begins_late_becomes_an_answer() -> None:
    scope = Scope(Lazy(NoEndpoint("x")))
    called = scope.call()
    (body,) = called.body
    assert json.loads(body)["reason"] == "no_endpoint"
    assert called.started[0][0] == "503 Service Unavailable"
    assert scope.finished == [(503, len(body), "no_endpoint")]


def test_scope_request_that_the_server_rejected_goes_through_the_rejected_chain() -> None:
    scope = Scope(respond_with(b"never"))
    called = scope.call(**{REJECTION_KEY: RequestError("x"), TARGET_KEY: None, FIELDS_KEY: []})
    assert called.started[0][0] == "400 Bad Request"
    assert scope.exchanges == []


def test_scope_request_of_another_server_without_a_single_reading_is_refused() -> None:
    scope = Scope(respond_with(b"never"))
    assert scope.call("/a/../b").started[0][0] == "400 Bad Request"


def test_scope_local_route_is_outside_of_the_chain() -> None:
    scope = Scope(respond_with(b"chain"), stats=respond_with(b"local"))
    assert scope.call("/stats").body == [b"local"]
    assert scope.call("/stats/").body == [b"chain"]
    assert scope.call("/stats?since=1h").body == [b"local"]
    assert scope.call("/stats?by=a%2Fb").body == [b"local"]
    for spelled in ("/st%61ts", "/stats%2F", "/./stats", "/stats;v=1"):
        assert scope.call(spelled).body == [b"chain"], "a proxy in front with a rule about the path must recognise it"
    doubled = scope.call("/stats", PATH_INFO="//stats", RAW_URI="//stats", REQUEST_URI="//stats")
    assert doubled.body == [b"chain"]
    assert len(scope.exchanges) == 6, "a local route is not in the chain"


def test_scope_local_route_that_fails_becomes_an_answer() -> None:
    scope = Scope(respond_with(b"chain"), stats=raising(ZeroDivisionError()))
    called = scope.call("/stats")
    assert called.started[0][0] == "500 Internal Server Error"
    assert [type(error) for error in scope.failures] == [ZeroDivisionError]
    assert scope.hooks == ["rgate_local_routes"]


def test_scope_local_route_that_breaks_off_is_reported() -> None:
    scope = Scope(respond_with(b"chain"), stats=respond_with(Body(b"", ZeroDivisionError())))
    assert json.loads(b"".join(scope.call("/stats").body))["reason"] == "internal"
    assert scope.hooks == ["rgate_local_routes"]


def test_scope_options_asterisk_is_answered_by_the_gateway() -> None:
    scope = Scope(respond_with(b"chain"))
    called = scope.call(PATH_INFO="*", REQUEST_METHOD="OPTIONS", RAW_URI="*")
    assert called.started == [("204 No Content", [])]
    assert called.body == []


def test_scope_puts_the_exchange_into_environ() -> None:
    scope = Scope(respond_with(b""))
    scope.call()
    scope.call()
    first, second = scope.exchanges
    assert first.id != second.id
    assert first.finished >= first.started


# Requests that fail


def reported(app: App, target: str = "/x") -> list[tuple[int, str | None, int]]:
    """Status, reason and bytes with which the callback for failed requests is called after a request to `app`."""
    told: list[tuple[int, str | None, int]] = []

    def failed(exchange: Exchange, environ: dict[str, Any]) -> None:
        assert exchange.finished and environ["rgate.target"].raw == target
        told.append((exchange.status, exchange.error and exchange.error.reason, exchange.bytes_sent))

    def fail(exchange: Exchange, error: BaseException, hook: str = "") -> None: ...

    scope = ExchangeScope(app, reject, {"/local": app}, fail, [failed])

    def start(status: str, headers: object, exc_info: Any = None) -> Any:
        if exc_info:
            raise exc_info[1]
        return lambda _: None

    body: Any = ()
    try:
        body = scope(make_environ(target), start)
        list(body)
    except GatewayError:
        pass
    if hasattr(body, "close"):
        body.close()
        body.close()
    return told


def upstream_body(status: str, *blocks: bytes | Exception) -> App:
    def app(environ: object, start_response: Any) -> Iterable[bytes]:
        start_response(status, [])
        return Body(*blocks)

    return app


@pytest.mark.parametrize(
    ("app", "told"),
    [
        (respond_with(b"x"), []),
        (respond_with(b"x", status="404 Not Found"), []),
        (respond_with(b"x", status="502 Bad Gateway"), [(502, None, 1)]),
        (upstream_body("200 OK", b"abc"), []),
        (upstream_body("500 Broken", b"abc"), [(500, None, 3)]),
        (upstream_body("200 OK", b"abc", BadResponse("cut")), [(200, "bad_response", 3)]),
        (raising(NoEndpoint()), [(503, "no_endpoint", 115)]),
    ],
    ids=range(7),
)
def test_callback_is_called_once_for_a_request_that_failed_and_for_no_other(
    app: App, told: list[tuple[int, str | None, int]]
) -> None:
    seen = reported(app)
    assert [each[:2] for each in seen] == [each[:2] for each in told]
    assert [each[2] for each in seen if each[1] != "no_endpoint"] == [each[2] for each in told if each[1] != "no_endpoint"]
    assert not reported(app, "/local"), "requests to local routes are not reported"


def test_callback_that_fails_is_logged_and_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def failing(exchange: Exchange, environ: object) -> None:
        raise ZeroDivisionError

    scope = ExchangeScope(raising(NoEndpoint()), reject, {}, lambda *failure: None, [failing])
    assert json.loads(b"".join(scope(make_environ("/x"), lambda *_: lambda _: None)))["reason"] == "no_endpoint"
    assert "ZeroDivisionError" in caplog.text
