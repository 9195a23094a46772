"""A backend whose only endpoint is restarted: requests wait for it."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any

import pytest

from rgate import Address, Config, DiscoverySource, Gateway, Instance, hookimpl
from rgate.config import load_text
from rgate.runtime.gateway import build
from rgate.runtime.runtime import Runtime
from rgate.serving.server import Server
from rgate.testing import ScriptedBackend, ScriptedConnection, http_response
from rgate.testing.gateways import _TestRegistry

from ..support.raw_client import RawClient, RawResponse
from ..support.serving import serving
from ..support.waiting import eventually, passed

POST = b"POST /%d HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"


def echo(connection: ScriptedConnection) -> None:
    while (request := connection.read_request()) is not None:
        connection.send(http_response(request.line.encode() + b" " + request.body))


class Found:
    """A source that finds what the test says, and says so at once."""

    name = "found"

    def __init__(self) -> None:
        self.instances: tuple[Instance, ...] = ()
        self._changed: Callable[[], None] = lambda: None

    def list(self) -> Iterable[Instance]:
        return self.instances

    def watch(self, changed: Callable[[], None], stop: threading.Event) -> None:
        self._changed = changed
        changed()
        stop.wait()

    def finds(self, *backends: ScriptedBackend, stopping: bool = False) -> None:
        addresses = [Address("http", "127.0.0.1", int(backend.url.rpartition(":")[2])) for backend in backends]
        self.instances = tuple(Instance(str(a.port), str(a.port), address=a, backend="b", stopping=stopping) for a in addresses)
        self._changed()

    @hookimpl
    def rgate_discovery_sources(self, config: Config) -> DiscoverySource:
        return self


class World:
    """A running gateway on a server, with one backend."""

    def __init__(self, found: Found) -> None:
        self.found = found
        self.gateway: Gateway
        self.server: Server

    def compose(self, config: dict[str, Any], runtime: Runtime | None = None) -> Gateway:
        registry = _TestRegistry()
        registry.register("found", self.found)
        backend = {"name": "b", "match_labels": ["found=nowhere"], **config.pop("backend", {})}
        whole = {"routes": [{"path_prefix": "/", "backend": "b"}], "backends": [backend], **config}
        return build(load_text(json.dumps(whole), registry, {}), registry, runtime)

    def reload(self, **config: Any) -> None:
        runtime = self.gateway.runtime
        self.gateway = self.compose(config, runtime)
        runtime.activate(self.gateway, lambda gateway: self.server.reconfigure(gateway, gateway.config.server, None))

    @property
    def waiting(self) -> int:
        return self.gateway.queue.waiting.get("b", 0)

    def lose_all(self) -> None:
        self.found.finds()
        eventually(lambda: not self.gateway.queue.endpoints("b"), "the endpoint is gone")


@contextmanager
def world(**config: Any) -> Iterator[World]:
    made = World(Found())
    made.gateway = made.compose(config)
    with made.gateway.running(), serving(made.gateway, threads=2) as made.server:
        yield made


def serves(world: World, backend: ScriptedBackend) -> None:
    """Return when requests reach the backend."""
    world.found.finds(backend)
    eventually(lambda: world.gateway.queue.endpoints("b"), "the endpoint is found")
    with RawClient(world.server.url) as client:
        assert client.get().status == 200


def posts(stack: ExitStack, world: World, count: int) -> list[RawClient]:
    clients = [stack.enter_context(RawClient(world.server.url)) for _ in range(count)]
    for number, client in enumerate(clients):
        client.send(POST % number)
        eventually(lambda number=number: world.waiting == number + 1, "it waits")  # type: ignore[misc]
    return clients


def test_requests_wait_for_the_next_endpoint_and_are_served_in_their_order() -> None:
    with ScriptedBackend(echo) as old, ScriptedBackend(echo) as new, world() as live, ExitStack() as stack:
        serves(live, old)
        live.lose_all()
        clients = posts(stack, live, 20)
        live.found.finds(new)
        bodies = [client.response().body for client in clients]
        assert bodies == [b"POST /%d HTTP/1.1 hello" % number for number in range(20)]
        assert len(new.requests) == 20 and live.waiting == 0


def test_backend_that_never_had_an_endpoint_is_not_waited_for() -> None:
    with world() as live, RawClient(live.server.url) as client:
        response = client.get()
        assert (response.status, b'"reason": "no_endpoint"' in response.body) == (503, True)


@pytest.mark.parametrize(
    "config",
    [{"backend": {"queue_seconds": 0}}, {"server": {"max_queued": 0}}],
    ids=["queue_seconds", "max_queued"],
)
def test_waiting_that_is_turned_off_is_a_503_at_once(config: dict[str, Any]) -> None:
    with ScriptedBackend(echo) as old, world(**config) as live, RawClient(live.server.url) as client:
        serves(live, old)
        live.lose_all()
        assert client.get().status == 503


def test_request_waits_no_longer_than_wait_seconds_and_then_nobody_does() -> None:
    with (
        ScriptedBackend(echo) as old,
        world(backend={"queue_seconds": 0.3}) as live,
        RawClient(live.server.url) as client,
        RawClient(live.server.url) as other,
    ):
        serves(live, old)
        live.lose_all()
        client.send(POST % 1)
        assert client.response().status == 503
        response = other.get()
        assert response.status == 503
        assert not live.waiting


def test_over_max_waiting_the_next_is_refused() -> None:
    with ScriptedBackend(echo) as old, world(server={"max_queued": 3}) as live, ExitStack() as stack:
        serves(live, old)
        live.lose_all()
        clients = posts(stack, live, 3)
        with RawClient(live.server.url) as client:
            assert client.get().status == 503
        live.found.finds(old)
        assert [client.response().status for client in clients] == [200] * 3


def test_client_that_leaves_makes_room() -> None:
    with ScriptedBackend(echo) as old, world(server={"max_queued": 1}) as live, RawClient(live.server.url) as client:
        serves(live, old)
        live.lose_all()
        client.send(POST % 1)
        eventually(lambda: live.waiting == 1)
        client.close()
        eventually(lambda: live.waiting == 0)


def test_request_that_waits_is_judged_by_the_new_config() -> None:
    with ScriptedBackend(echo) as old, world() as live, ExitStack() as stack:
        serves(live, old)
        live.lose_all()
        clients = posts(stack, live, 3)
        live.reload(routes=[{"path_prefix": "/1", "backend": "b"}], default_response={"body": "gone", "status_code": 410})
        assert [clients[number].response().status for number in (0, 2)] == [410, 410]
        assert live.waiting == 1
        live.found.finds(old)
        assert clients[1].response().body == b"POST /1 HTTP/1.1 hello"


def test_reload_with_another_wait_lets_requests_go() -> None:
    with ScriptedBackend(echo) as old, world() as live, ExitStack() as stack:
        serves(live, old)
        live.lose_all()
        (client,) = posts(stack, live, 1)
        live.reload(backend={"queue_seconds": 0})
        assert client.response().status == 503


@pytest.mark.parametrize("envelope", [False, True], ids=["plain", "envelope"])
def test_answer_to_one_that_has_waited_is_as_any_other(envelope: bool) -> None:
    plugins = {"normalize": {"format": "envelope"}} if envelope else {}
    with ScriptedBackend(echo) as old, world(plugins=plugins) as live, ExitStack() as stack:
        serves(live, old)
        live.lose_all()
        first, second = posts(stack, live, 2)
        live.reload(plugins=plugins, backend={"queue_seconds": 0.5})
        late = first.response()
        assert (late.status, late.value("Retry-After")) == (503, "1")
        assert b'"reason": "no_endpoint"' in late.body
        second.response()


def refused(backend: dict[str, Any], port: int) -> dict[str, Any]:
    return {"backend": {"endpoints": [f"http://127.0.0.1:{port}"], **backend}}


def test_fixed_endpoint_that_refuses_is_waited_for_when_it_has_answered_before() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        port = listener.getsockname()[1]

        def answer(count: int, sock: socket.socket) -> None:
            for _ in range(count):
                taken, _ = sock.accept()
                with taken:
                    while taken.recv(65_536):
                        taken.sendall(http_response(b"ok", headers=[("Connection", "close")]))
                        break

        with world(**refused({}, port)) as live, ExitStack() as stack:
            serving_once = threading.Thread(target=answer, args=(1, listener))
            serving_once.start()
            with RawClient(live.server.url) as client:
                assert client.get().status == 200
            serving_once.join()
            listener.close()
            clients = posts(stack, live, 3)
            again = socket.socket()
            again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with again:
                again.bind(("127.0.0.1", port))
                again.listen(16)
                again.settimeout(10)

                def trials_too() -> None:
                    answered = 0
                    while answered < 3:
                        taken, _ = again.accept()
                        with taken:
                            if taken.recv(65_536):
                                taken.sendall(http_response(b"ok", headers=[("Connection", "close")]))
                                answered += 1

                serving_again = threading.Thread(target=trials_too)
                serving_again.start()
                assert [client.response().body for client in clients] == [b"ok"] * 3
                serving_again.join()


def test_fixed_endpoint_that_has_never_answered_is_not_waited_for() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        port = listener.getsockname()[1]
    with world(**refused({}, port)) as live, RawClient(live.server.url) as client:
        for _ in range(3):
            response: RawResponse = client.get()
            assert (response.status, b'"reason": "refused"' in response.body) == (503, True)


def test_endpoint_that_is_stopping_is_a_last_resort_on_fresh_connections() -> None:
    idle_closed = threading.Event()

    def script(connection: ScriptedConnection) -> None:
        echo(connection)
        idle_closed.set()

    with ScriptedBackend(script) as old, ScriptedBackend(echo) as new, world() as live, RawClient(live.server.url) as client:
        serves(live, old)
        live.found.finds(old, stopping=True)
        passed(idle_closed, "the idle connection is closed, which follows the new snapshot")
        before = len(old.connections)
        assert [client.get().status for _ in range(3)] == [200] * 3
        assert len(old.connections) == before + 3
        live.found.instances += (Instance("n", "n", address=Address("http", *_at(new)), backend="b"),)
        live.found._changed()
        eventually(lambda: [e.id for e in live.gateway.queue.endpoints("b")] == ["n"])
        assert client.get().status == 200
        assert len(new.requests) == 1


def _at(backend: ScriptedBackend) -> tuple[str, int]:
    return "127.0.0.1", int(backend.url.rpartition(":")[2])


def test_what_a_stopping_endpoint_closes_is_sent_to_the_next_one_if_that_may_be() -> None:
    closing_now = threading.Event()

    def script(connection: ScriptedConnection) -> None:
        while connection.read_request() is not None and not closing_now.is_set():
            connection.send(http_response(b"old"))

    with ScriptedBackend(script) as old, ScriptedBackend(echo) as new, world() as live, RawClient(live.server.url) as client:
        serves(live, old)
        live.found.finds(old, stopping=True)
        eventually(lambda: any(e.stopping for e in live.gateway.queue.endpoints("b")))
        closing_now.set()
        client.send(b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n")
        eventually(lambda: live.waiting)
        live.found.finds(new)
        assert client.response().body == b"GET /x HTTP/1.1 "
