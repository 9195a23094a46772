"""The chain: its order, its composition, and the core's pieces in it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from rgate import BadResponse, Exchange, GatewayError, Middleware, NoEndpoint, PluginError, RequestError
from rgate.errors import InternalFault
from rgate.exchange import ENVIRON_KEY
from rgate.pipeline import (
    STANDARD_ORDER,
    ExchangeScope,
    RouteDispatch,
    compose,
    order,
    raise_refused,
    wrap_body,
)
from rgate.testing import answering, client, make_endpoint, make_environ, make_exchange
from rgate.wire.environ import FIELDS_KEY, REFUSED_KEY, TARGET_KEY

App = Callable[..., Iterable[bytes]]


def middleware(name: str, **place: str) -> Middleware:
    return Middleware(name, lambda app, options: app, **place)


def names(*middlewares: Middleware, wanted: list[str] | None = None) -> list[str]:
    return [one.name for one in order(middlewares, wanted)]


# order


def test_order_of_builtins_is_the_standard_one_however_they_come() -> None:
    builtins = [middleware(name) for name in STANDARD_ORDER]
    assert names(*reversed(builtins)) == list(STANDARD_ORDER)
    assert names(*builtins[::2]) == list(STANDARD_ORDER[::2])


def test_order_third_party_stands_where_it_says() -> None:
    assert names(
        middleware("routing"), middleware("selection"), middleware("faults"),
        middleware("auth", after="routing"), middleware("cors", before="faults"), middleware("last", after="selection"),
    ) == ["cors", "faults", "routing", "auth", "selection", "last"]  # fmt: skip


def test_order_without_a_place_is_directly_inside_routing() -> None:
    assert names(middleware("selection"), middleware("x"), middleware("routing")) == ["routing", "x", "selection"]


def test_order_at_one_place_is_by_name() -> None:
    assert names(middleware("b"), middleware("routing"), middleware("a", after="routing"), middleware("c")) == [
        "routing",
        "a",
        "b",
        "c",
    ]


def test_order_place_may_name_a_builtin_that_is_not_there() -> None:
    assert names(middleware("selection"), middleware("x", before="retry"), middleware("y", after="retry")) == [
        "x",
        "y",
        "selection",
    ]


def test_order_wanted_by_the_operator_is_taken_as_it_is() -> None:
    assert names(middleware("routing"), middleware("x", before="routing"), wanted=["routing", "x"]) == ["routing", "x"]


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (["routing"], "missing x"),
        (["routing", "x", "y"], "not active y"),
        (["routing", "y"], "missing x; not active y"),
        (["routing", "x", "x"], "one is named twice"),
    ],
)
def test_order_wanted_that_does_not_name_each_once_is_refused(wanted: list[str], words: str) -> None:
    with pytest.raises(PluginError, match=words):
        names(middleware("routing"), middleware("x"), wanted=wanted)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (middleware("x", before="routing", after="faults"), "both before and after"),
        (middleware("x", before="routnig"), "before='routnig'; the names are stats"),
        (middleware("x", after="y"), "after='y'"),
    ],
)
def test_order_place_that_is_none_is_refused(bad: Middleware, words: str) -> None:
    with pytest.raises(PluginError, match=words):
        names(middleware("routing"), bad)


def test_order_two_of_one_name_are_refused() -> None:
    with pytest.raises(PluginError, match="two plugins bring a middleware named 'x'"):
        names(middleware("x"), middleware("x"))


# compose


def tagging(tag: str) -> Middleware:
    def wrap(app: App, options: Any) -> App:
        def call(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            environ.setdefault("seen", []).append((tag, options))
            return app(environ, start_response)

        return call

    return Middleware(tag, wrap)


def test_compose_first_is_outermost_and_has_its_own_options() -> None:
    app = compose(answering(b"x"), [tagging("a"), tagging("b")], {"a": 1, "b": 2}.get)
    environ = make_environ()
    app(environ, lambda *_: lambda _: None)
    assert environ["seen"] == [("a", 1), ("b", 2)]


class GeneratorApp:
    def __call__(self, environ: Any, start_response: Any) -> Iterator[bytes]:
        yield b""


def generator_app(environ: Any, start_response: Any) -> Iterator[bytes]:
    yield b""


@pytest.mark.parametrize(
    ("wrapped", "words"),
    [
        (None, "wrap\\(\\) returned None, which is no WSGI app"),
        (generator_app, "generator function"),
        (GeneratorApp(), "generator function"),
    ],
)
def test_compose_what_is_no_usable_app_is_refused(wrapped: Any, words: str) -> None:
    with pytest.raises(PluginError, match=f"plugin 'bad': .*{words}"):
        compose(answering(b""), [Middleware("bad", lambda app, options: wrapped)], lambda name: None)


def test_compose_wrap_that_raises_is_named() -> None:
    def wrap(app: Any, options: Any) -> Any:
        raise TypeError("no such option")

    with pytest.raises(PluginError, match=r"plugin 'bad': wrap\(\) raised TypeError: no such option"):
        compose(answering(b""), [Middleware("bad", wrap)], lambda name: None)


def test_compose_wrap_that_raises_a_plugin_error_is_left_alone() -> None:
    def wrap(app: Any, options: Any) -> Any:
        raise PluginError("mine")

    with pytest.raises(PluginError, match=r"^mine$"):
        compose(answering(b""), [Middleware("bad", wrap)], lambda name: None)


def test_compose_app_may_be_an_object_with_call() -> None:
    class Wrapped:
        def __init__(self, app: App) -> None:
            self.app = app

        def __call__(self, environ: Any, start_response: Any) -> Iterable[bytes]:
            return self.app(environ, start_response)

    app = compose(answering(b"x"), [Middleware("ok", lambda app, options: Wrapped(app))], lambda name: None)
    assert client(app, make_exchange()).get("/").data == b"x"


# wrap_body


class Body:
    """Blocks, or what is raised in their place; knows whether it has been closed."""

    def __init__(self, *blocks: bytes | Exception) -> None:
        self.blocks = iter(blocks)
        self.closed = 0

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        block = next(self.blocks)
        if isinstance(block, Exception):
            raise block
        return block

    def close(self) -> None:
        self.closed += 1


def test_wrap_body_changes_every_block_and_closes() -> None:
    inner = Body(b"a", b"b")
    body = wrap_body(inner, bytes.upper)
    assert list(body) == [b"A", b"B"]
    body.close()  # type: ignore[attr-defined]
    assert inner.closed == 1


def test_wrap_body_of_a_list_has_nothing_to_close() -> None:
    body = wrap_body([b"a"], bytes.upper)
    assert list(body) == [b"A"]
    body.close()  # type: ignore[attr-defined]


# RouteDispatch


class Table:
    def __init__(self, **endpoints: Any) -> None:
        self.snapshot = self
        self.endpoints = endpoints


def dispatch(table: Table, exchange: Exchange) -> Iterable[bytes]:
    app = RouteDispatch(table, {"/": answering(b"routed")})  # type: ignore[arg-type]
    return app(make_environ(exchange=exchange), lambda *_: lambda _: None)


def test_dispatch_hands_over_with_the_candidates_of_this_moment() -> None:
    endpoint = make_endpoint()
    exchange = make_exchange(candidates=())
    assert dispatch(Table(orders=(endpoint,)), exchange) == [b"routed"]
    assert exchange.candidates == (endpoint,)


@pytest.mark.parametrize("table", [Table(), Table(orders=())])
def test_dispatch_without_endpoints_raises_no_endpoint(table: Table) -> None:
    with pytest.raises(NoEndpoint, match="orders"):
        dispatch(table, make_exchange())


def test_dispatch_without_a_route_is_a_fault_of_the_chain() -> None:
    exchange = make_exchange()
    exchange.route = None
    with pytest.raises(InternalFault, match="router"):
        dispatch(Table(), exchange)


# ExchangeScope


class Scope:
    """An ExchangeScope around an app, and what became of its exchanges."""

    def __init__(self, app: App, **local_routes: App) -> None:
        self.exchanges: list[Exchange] = []
        self.finished: list[tuple[int, int, str | None]] = []
        self.failures: list[Exception] = []

        def watched(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            exchange = Exchange.of(environ)
            self.exchanges.append(exchange)
            exchange.on_finish(lambda e: self.finished.append((e.status, e.bytes_sent, e.error and e.error.reason)))
            return app(environ, start_response)

        routes = {f"/{name}": route for name, route in local_routes.items()}
        self.app = ExchangeScope(watched, raise_refused, routes, lambda exchange, error: self.failures.append(error))

    def call(self, target: str = "/", **environ: Any) -> Called:
        made = make_environ(target)
        del made[ENVIRON_KEY]
        return Called(self, made | environ)


class Called:
    def __init__(self, scope: Scope, environ: dict[str, Any]) -> None:
        self.started: list[tuple[str, list[tuple[str, str]]]] = []
        self.body = scope.app(environ, self.start_response)

    head_sent = False
    """Set by a test: as after the first block."""

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
    scope = Scope(answering(b"hello"))
    assert scope.call().body == [b"hello"]
    assert scope.finished == [(200, 5, None)]


def test_scope_body_of_known_length_finishes_before_its_last_byte() -> None:
    scope = Scope(answering(Body(b"he", b"llo"), headers=[("content-length", "5")]))
    body = iter(scope.call().body)
    assert next(body) == b"he"
    assert not scope.finished
    assert next(body) == b"llo"
    assert scope.finished == [(200, 5, None)]
    with pytest.raises(StopIteration):
        next(body)


def test_scope_body_of_unknown_length_finishes_at_its_end() -> None:
    scope = Scope(answering(Body(b"he", b"llo")))
    body = iter(scope.call().body)
    assert [next(body), next(body)] == [b"he", b"llo"]
    assert not scope.finished
    with pytest.raises(StopIteration):
        next(body)
    assert scope.finished == [(200, 5, None)]


def test_scope_body_that_is_not_read_finishes_when_closed() -> None:
    inner = Body(b"hello")
    scope = Scope(answering(inner))
    scope.call().body.close()  # type: ignore[attr-defined]
    assert scope.finished == [(200, 0, None)]
    assert inner.closed == 1


def test_scope_body_without_close_can_be_closed() -> None:
    scope = Scope(answering((b"a", b"b")))
    scope.call().body.close()  # type: ignore[attr-defined]
    assert scope.finished == [(200, 0, None)]


def test_scope_body_whose_close_raises_finishes() -> None:
    class Bad(Body):
        def close(self) -> None:
            raise OSError("close")

    scope = Scope(answering(Bad(b"hello")))
    with pytest.raises(OSError, match="close"):
        scope.call().body.close()  # type: ignore[attr-defined]
    assert len(scope.finished) == 1


@pytest.mark.parametrize("length", ["five", "", "\u0665"])
def test_scope_content_length_that_is_none_is_left_to_the_server(length: str) -> None:
    scope = Scope(answering(Body(b"hello"), headers=[("Content-Length", length)]))
    assert list(scope.call().body) == [b"hello"]
    assert scope.finished == [(200, 5, None)]


@pytest.mark.parametrize(("error", "reason"), [(BadResponse("x"), "bad_response"), (ValueError("x"), "internal")])
def test_scope_body_that_breaks_off_is_an_error_and_raises(error: Exception, reason: str) -> None:
    scope = Scope(answering(Body(b"he", error)))
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
    scope = Scope(answering(Body(b"", error), headers=[("Content-Length", "5")]))
    called = scope.call()
    blocks = list(called.body)
    assert json.loads(b"".join(blocks))["status_code"] == status
    assert [int(line[:3]) for line, _ in called.started] == [200, status]
    assert scope.finished == [(status, len(blocks[-1]), scope.exchanges[0].error.reason)]  # type: ignore[union-attr]


def test_scope_body_that_breaks_off_by_the_client_is_no_news() -> None:
    scope = Scope(answering(Body(RequestError("left"))))
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


def test_scope_exception_after_something_has_left_is_the_servers() -> None:
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


def test_scope_request_that_the_server_refused_goes_the_refused_way() -> None:
    scope = Scope(answering(b"never"))
    called = scope.call(**{REFUSED_KEY: RequestError("x"), TARGET_KEY: None, FIELDS_KEY: []})
    assert called.started[0][0] == "400 Bad Request"
    assert scope.exchanges == []


def test_scope_request_of_another_server_without_a_single_reading_is_refused() -> None:
    scope = Scope(answering(b"never"))
    assert scope.call("/a/../b").started[0][0] == "400 Bad Request"


def test_scope_local_route_is_outside_of_the_chain() -> None:
    scope = Scope(answering(b"chain"), stats=answering(b"local"))
    assert scope.call("/stats").body == [b"local"]
    assert scope.call("/stats/").body == [b"chain"]
    assert scope.call("/st%61ts").body == [b"local"]
    assert len(scope.exchanges) == 1


def test_scope_local_route_that_fails_becomes_an_answer() -> None:
    scope = Scope(answering(b"chain"), stats=raising(ZeroDivisionError()))
    called = scope.call("/stats")
    assert called.started[0][0] == "500 Internal Server Error"
    assert [type(error) for error in scope.failures] == [ZeroDivisionError]


def test_scope_options_asterisk_is_answered_by_the_gateway() -> None:
    scope = Scope(answering(b"chain"))
    called = scope.call(PATH_INFO="*", REQUEST_METHOD="OPTIONS", RAW_URI="*")
    assert called.started == [("204 No Content", [])]
    assert called.body == []


def test_scope_exchange_can_be_had_from_environ() -> None:
    scope = Scope(answering(b""))
    scope.call()
    scope.call()
    first, second = scope.exchanges
    assert first.id != second.id
    assert first.finished >= first.started
