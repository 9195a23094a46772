"""rgate.testing: the helpers for the tests of plugins."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import BaseModel

import rgate.testing
from rgate import ConfigError, ConfigSection, Exchange, Gateway, Middleware, hookimpl
from rgate.testing import (
    ScriptedBackend,
    ScriptedConnection,
    assert_error,
    client,
    closed_port_url,
    http_response,
    make_endpoint,
    make_environ,
    make_exchange,
    make_gateway,
    respond_with,
    running_gateway,
)

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


class Options(BaseModel, extra="forbid"):
    greeting: str = "hello"


class Greeter:
    """A plugin with everything that a small one has."""

    @hookimpl
    def rgate_config_sections(self) -> ConfigSection:
        return ConfigSection("greeter", Options, per_route=True)

    @hookimpl
    def rgate_middlewares(self, gateway: Gateway) -> Middleware:
        def wrap(app: WSGIApplication, options: Options) -> WSGIApplication:
            def greet(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
                def start(status: str, headers: list[tuple[str, str]], *exc_info: Any) -> Any:
                    return start_response(status, [*headers, ("X-Greeting", options.greeting)], *exc_info)

                return app(environ, start)

            return greet

        return Middleware("greeter", wrap)


# In isolation


def test_client_with_an_exchange_writes_and_finishes_it() -> None:
    exchange, seen = make_exchange(), []
    exchange.on_finish(lambda exchange: seen.append((exchange.status, exchange.bytes_sent)))
    response = client(respond_with([b"a", b"bc"], "201 Created"), exchange).get("/")
    assert (response.status, response.data, seen) == ("201 Created", b"abc", [(201, 3)])


def test_client_with_an_exchange_closes_the_body() -> None:
    closed = threading.Event()

    class Body:
        def __iter__(self) -> Iterator[bytes]:
            return iter([b"x"])

        def close(self) -> None:
            closed.set()

    client(respond_with(Body()), make_exchange()).get("/")
    assert closed.is_set()


def test_make_environ_has_target_request_and_exchange() -> None:
    exchange = make_exchange()
    environ = make_environ("/a%2Fb?c=d", exchange, method="POST", headers={"X-A": "1"}, data=b"body")
    assert environ["RAW_URI"] == "/a%2Fb?c=d"
    assert (environ["REQUEST_METHOD"], environ["HTTP_X_A"], environ["wsgi.input"].read()) == ("POST", "1", b"body")
    assert Exchange.of(environ) is exchange


def test_make_endpoint_is_as_busy_as_asked() -> None:
    assert [make_endpoint(in_flight=count).state.in_flight for count in (0, 3)] == [0, 3]


@pytest.mark.parametrize(
    ("body", "headers", "complaint"),
    [
        ({"status_code": 503, "body": "", "reason": "refused", "request_id": "1"}, None, None),
        ({"status_code": 503, "body": "", "reason": "closed", "request_id": "1"}, None, "expected the reason 'refused'"),
        ({"status_code": 500, "body": "", "reason": "refused", "request_id": "1"}, None, "the status in the body"),
        ({"status_code": 503, "body": ""}, None, "expected the keys"),
        ([], None, "expected the keys"),
        ({}, [("Content-Type", "text/plain")], "expected a fault as application/json"),
    ],
)
def test_assert_error_says_what_is_wrong(body: Any, headers: Any, complaint: str | None) -> None:
    app = respond_with(json.dumps(body).encode(), "503 Service Unavailable", headers or [("Content-Type", "application/json")])
    response = client(app).get("/")
    if complaint is None:
        assert assert_error(response, 503, "refused") == body
    else:
        with pytest.raises(AssertionError, match=complaint):
            assert_error(response, 503, "refused")


def test_assert_error_of_another_status_shows_the_response() -> None:
    with pytest.raises(AssertionError, match=r"status 503, got 200 OK.*surprise"):
        assert_error(client(respond_with(b"surprise")).get("/"), 503, "refused")


# In a gateway


def test_gateway_backends_are_declared_and_routed() -> None:
    with running_gateway({}, {"orders": respond_with(b"orders"), "payment": respond_with(b"payment"), "empty": ()}) as gateway:
        asked = client(gateway)
        assert [asked.get(path).data for path in ("/orders/1", "/payment")] == [b"orders", b"payment"]
        assert_error(asked.get("/empty"), 503, "no_endpoint")
        assert_error(asked.get("/"), 404, "no_route")


def test_gateway_yaml_and_environment_are_read() -> None:
    config = """
        routes: [{path_prefix: "${PREFIX}", backend: orders}]
        backends: [{name: orders, match_labels: [app=orders]}]
    """
    with running_gateway(config, {"orders": respond_with(b"ok")}, environ={"PREFIX": "/shop"}) as gateway:
        assert client(gateway).get("/shop").data == b"ok"


def test_gateway_plugin_has_its_options_for_each_route() -> None:
    config = {
        "plugins": {"greeter": {"greeting": "hi"}},
        "routes": [
            {"path_prefix": "/a", "backend": "orders"},
            {"path_prefix": "/b", "backend": "orders", "plugins": {"greeter": {"greeting": "bye"}}},
            {"path_prefix": "/c", "backend": "orders", "plugins": {"greeter": False}},
        ],
    }
    with running_gateway(config, {"orders": respond_with()}, {"greeter": Greeter()}) as gateway:
        assert [client(gateway).get(path).headers.get("X-Greeting") for path in ("/a", "/b", "/c")] == ["hi", "bye", None]


def test_gateway_plugin_alone_by_its_hook() -> None:
    middleware = Greeter().rgate_middlewares(make_gateway())
    response = client(middleware.wrap(respond_with(b"x"), Options()), make_exchange()).get("/")
    assert response.headers["X-Greeting"] == "hello"


def test_gateway_bad_config_raises_as_a_start_would() -> None:
    with pytest.raises(ConfigError, match="greetign"):
        make_gateway({"plugins": {"greeter": {"greetign": "hi"}}}, plugins={"greeter": Greeter()})


def test_gateway_touches_neither_docker_nor_files() -> None:
    gateway = make_gateway({})
    assert {"docker", "stats"}.isdisjoint(gateway.registry.names)


# Over a real socket


def test_scripted_backend_answers_and_records_every_request() -> None:
    with ScriptedBackend(http_response(b"hello", headers=[("X-A", "1")])) as backend:
        connection = http.client.HTTPConnection("127.0.0.1", backend.port, timeout=10)
        for body in (b"one", b"two"):
            connection.request("POST", "/x?y", body, {"X-B": "2"})
            response = connection.getresponse()
            assert (response.status, response.getheader("X-A"), response.read()) == (200, "1", b"hello")
        connection.close()
    assert [request.body for request in backend.requests] == [b"one", b"two"]
    assert backend.requests[0].line == "POST /x?y HTTP/1.1"
    assert backend.requests[0].values("x-b") == ["2"]
    assert backend.requests[0].head.endswith(b"\r\n\r\n")
    assert len(backend.connections) == 1


def test_scripted_backend_records_chunks_as_they_are() -> None:
    with ScriptedBackend() as backend, socket.create_connection(("127.0.0.1", backend.port), 10) as sock:
        sock.sendall(b"PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
        assert sock.recv(1000).endswith(b"ok")
    assert backend.requests[0].body == b"3\r\nabc\r\n0\r\n\r\n"


def test_scripted_backend_script_is_synchronised_by_events() -> None:
    go_on = threading.Event()

    def script(connection: ScriptedConnection) -> None:
        connection.read_request()
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\na")
        assert go_on.wait(10)
        connection.send(b"b")
        assert connection.wait_closed()

    with ScriptedBackend(script) as backend, socket.create_connection(("127.0.0.1", backend.port), 10) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert backend.wait_for_requests(1)[0].line == "GET / HTTP/1.1"
        assert sock.recv(1000).endswith(b"\r\n\r\na")
        go_on.set()
        assert sock.recv(1000) == b"b"


def test_scripted_backend_raises_what_its_script_raised() -> None:
    def script(connection: ScriptedConnection) -> None:
        assert connection.read_head() == b"something else"

    with pytest.raises(AssertionError), ScriptedBackend(script) as backend:  # noqa: SIM117 - the order matters
        with socket.create_connection(("127.0.0.1", backend.port), 10) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert sock.recv(1000) == b""


def test_scripted_backend_reset_is_a_reset() -> None:
    def script(connection: ScriptedConnection) -> None:
        connection.read_request()
        connection.reset()

    with ScriptedBackend(script) as backend, socket.create_connection(("127.0.0.1", backend.port), 10) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
        with pytest.raises(ConnectionResetError):
            sock.recv(1)


def test_scripted_backend_stopped_refuses_and_ends_connections() -> None:
    with ScriptedBackend() as backend, socket.create_connection(("127.0.0.1", backend.port), 10) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert sock.recv(1000)
        backend.stop()
        assert sock.recv(1000) == b""
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", backend.port), 10)


def test_scripted_backend_too_few_requests_say_how_many_arrived(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rgate.testing.sockets.PATIENCE_SECONDS", 0.01)
    with ScriptedBackend() as backend, pytest.raises(AssertionError, match="waited for 1 requests, only 0 arrived"):
        backend.wait_for_requests(1)


def test_scripted_backend_behind_a_gateway() -> None:
    with ScriptedBackend(http_response(b"real")) as backend, closed_port_url() as nobody:
        config = {
            "backends": [{"name": "orders", "endpoints": [backend.url]}, {"name": "gone", "endpoints": [nobody]}],
            "routes": [{"path_prefix": "/orders", "backend": "orders"}, {"path_prefix": "/gone", "backend": "gone"}],
        }
        with running_gateway(config) as gateway:
            assert client(gateway).get("/orders/1?x").data == b"real"
            assert_error(client(gateway).get("/gone"), 503, "refused")
        assert backend.requests[0].line == "GET /orders/1?x HTTP/1.1"


def test_all_is_sorted_and_everything_in_it_is_documented() -> None:
    assert rgate.testing.__all__ == sorted(rgate.testing.__all__)
    undocumented = [name for name in rgate.testing.__all__ if not getattr(rgate.testing, name).__doc__]
    assert not undocumented
