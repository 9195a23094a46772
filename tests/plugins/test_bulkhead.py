"""bulkhead: requests that wait for one backend delay no other backend, and no response of the gateway itself."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from time import monotonic
from typing import Any

import pytest

from rgate import ConfigError, Exchange, Gateway
from rgate.plugins.bulkhead import ConcurrencyLimit, _limit
from rgate.testing import (
    ScriptedBackend,
    ScriptedConnection,
    assert_error,
    client,
    make_environ,
    make_gateway,
    respond_with,
    running_gateway,
)

from ..support.raw_client import RawClient
from ..support.serving import send_apart, serving
from ..support.waiting import eventually, passed

LIMITS = {"server": {"max_in_flight": 3, "threads": 1}}


class Hanging:
    """A backend that answers when the test releases it."""

    def __init__(self) -> None:
        self.began = threading.Semaphore(0)
        self.go = threading.Event()
        self._body: list[bytes] = [b"late"]

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        self.began.release()
        passed(self.go, "the test lets the backend go")
        start_response("200 OK", [("Content-Length", "4")])
        return self._body

    @contextmanager
    def holding(self, gateway: Gateway, *paths: str) -> Iterator[None]:
        """While inside, a request for each of `paths` waits here."""
        threads = [threading.Thread(target=client(gateway).get, args=(path,)) for path in paths]
        for thread in threads:
            thread.start()
            assert self.began.acquire(timeout=10)
        try:
            yield
        finally:
            self.go.set()
            for thread in threads:
                thread.join(10)


def config(**most: int) -> dict[str, Any]:
    """Backends with these limits; one without a limit gets 80 % of 3, which is 2."""
    names = ("hung", "well", "other")
    limits = {name: {"max_in_flight": most[name]} if name in most else {} for name in names}
    return {
        **LIMITS,
        "backends": [{"name": name, "match_labels": [f"testing={name}"], **limits[name]} for name in names],
        "routes": [{"path_prefix": f"/{name}", "backend": name} for name in names],
    }


@pytest.fixture
def hung() -> Hanging:
    return Hanging()


def test_backend_over_its_limit_is_refused_at_once_and_others_are_served(hung: Hanging) -> None:
    apps = {"hung": hung, "well": respond_with(b"well"), "other": ()}
    with running_gateway(config(), apps) as gateway, hung.holding(gateway, "/hung/1", "/hung/2"):
        refused = client(gateway).get("/hung/3")
        assert_error(refused, 503, "overloaded")
        assert refused.headers["Retry-After"] == "1"
        assert client(gateway).get("/well").data == b"well"
        assert client(gateway).get("/-/live").status_code == 200


def test_all_backends_together_over_the_limit_are_refused(hung: Hanging) -> None:
    apps = {"hung": hung, "well": hung, "other": respond_with(b"other")}
    with running_gateway(config(), apps) as gateway, hung.holding(gateway, "/hung", "/well", "/well"):
        assert_error(client(gateway).get("/other"), 503, "overloaded")
        assert client(gateway).get("/-/live").status_code == 200


def test_backend_with_a_limit_of_its_own_is_held_to_it(hung: Hanging) -> None:
    apps = {"hung": hung, "well": hung, "other": ()}
    with running_gateway(config(hung=1), apps) as gateway, hung.holding(gateway, "/hung", "/well"):
        assert_error(client(gateway).get("/hung"), 503, "overloaded")


def failing(environ: object, start_response: object) -> Iterable[bytes]:
    raise OSError("no")


class Stream:
    """A body in two blocks, the second of which waits."""

    def __init__(self) -> None:
        self.asked, self.go, self.closed = threading.Event(), threading.Event(), threading.Event()

    def __iter__(self) -> Iterator[bytes]:
        yield b"first"
        self.asked.set()
        passed(self.go)
        yield b"second"

    def close(self) -> None:
        self.closed.set()


def waiting(gateway: Gateway, name: str) -> int:
    """How many requests wait for a backend."""
    limit = _limit(gateway, gateway.backends[name])
    kept: ConcurrencyLimit = gateway.resource(f"bulkhead.{name}", limit, lambda: ConcurrencyLimit("", 0))
    return len(kept.waiting)


@pytest.mark.parametrize("app", [respond_with(b"list"), respond_with([b"a", b"b"]), respond_with(iter(())), failing])
def test_place_is_given_back_whatever_becomes_of_the_request(app: Any) -> None:
    with running_gateway(config(well=1), {"hung": (), "well": app, "other": ()}) as gateway:
        for _ in range(3):
            assert client(gateway).get("/well").status_code in (200, 500)
            assert waiting(gateway, "well") == 0


def test_stream_counts_while_its_next_block_is_waited_for_and_not_while_the_client_reads() -> None:
    body = Stream()
    with running_gateway(config(well=1), {"hung": (), "well": respond_with(body), "other": ()}) as gateway:
        blocks = iter(gateway(make_environ("/well"), lambda *_: lambda _: None))
        assert next(blocks) == b"first"
        assert waiting(gateway, "well") == 0
        reader = threading.Thread(target=lambda: list(blocks))
        reader.start()
        passed(body.asked)
        assert waiting(gateway, "well") == 1
        assert_error(client(gateway).get("/well"), 503, "overloaded")
        body.go.set()
        reader.join(10)
        assert waiting(gateway, "well") == 0
        blocks.close()  # type: ignore[attr-defined]
        passed(body.closed, "the body of the backend is closed")


def test_nothing_is_counted_while_the_server_is_not_saturated_except_for_limits_it_could_reach() -> None:
    seen: list[int] = []

    def look(environ: object, start_response: Any) -> Iterable[bytes]:
        seen.append(waiting(gateway, "well"))
        start_response("200 OK", [])
        return []

    apps = {"hung": (), "well": look, "other": ()}
    with running_gateway(config(), apps) as gateway:
        for saturated in (True, False):
            gateway.readiness.server.saturated = saturated
            client(gateway).get("/well")
        assert seen == [1, 0]
    seen.clear()
    lower = {**config(other=1), "server": {"max_in_flight": 3, "threads": 2}}
    with running_gateway(lower, apps) as gateway:
        gateway.readiness.server.saturated = False
        client(gateway).get("/well")
    assert seen == [1], "a backend's limit is lower than the number of threads"


def test_operator_is_told_which_backend_is_at_its_limit(hung: Hanging, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "rgate.plugins.bulkhead")
    apps = {"hung": hung, "well": (), "other": ()}
    with running_gateway(config(), apps) as gateway, hung.holding(gateway, "/hung", "/hung"):
        for _ in range(5):
            assert_error(client(gateway).get("/hung"), 503, "overloaded")
    words = "backend 'hung': 2 requests in flight, which is max_in_flight; more are answered 503"
    told = [record for record in caplog.records if record.name == "rgate.plugins.bulkhead"]
    assert [(record.getMessage(), record.__dict__["dedup_key"]) for record in told] == [(words, "backend 'hung'")] * 5


@pytest.mark.parametrize(("backends", "expected"), [(1, 100), (2, 80), (3, 80)])
def test_default_limit_leaves_something_to_other_backends(backends: int, expected: int) -> None:
    entries = [{"name": f"b{number}", "endpoints": ["http://127.0.0.1:9"]} for number in range(backends)]
    gateway = make_gateway({"backends": entries, "routes": [], "server": {"max_in_flight": 100}})
    assert {_limit(gateway, backend) for backend in gateway.backends.values()} == {expected}


def test_limit_of_a_backend_over_that_of_the_server_is_a_problem() -> None:
    with pytest.raises(ConfigError, match=r"backends\[0\]\.max_in_flight: is more than server\.max_in_flight, which is 3"):
        make_gateway(config(hung=4), {"hung": (), "well": (), "other": ()})


def test_route_without_bulkhead_is_not_limited(hung: Hanging) -> None:
    off = config(hung=1)
    off["routes"][0]["plugins"] = {"bulkhead": False}
    with running_gateway(off, {"hung": hung, "well": (), "other": ()}) as gateway, hung.holding(gateway, "/hung", "/hung"):
        assert waiting(gateway, "hung") == 0


# Over real sockets.


def silent(connection: ScriptedConnection) -> None:
    """Accepts requests and never answers."""
    while connection.read_request() is not None:
        pass


def test_hung_backend_takes_down_its_own_routes_only() -> None:
    server = {"max_in_flight": 20, "threads": 2}
    with ExitStack() as stack:
        hung, well = stack.enter_context(ScriptedBackend(silent)), stack.enter_context(ScriptedBackend())
        settings = {
            "server": server,
            "backends": [{"name": "hung", "endpoints": [hung.url]}, {"name": "well", "endpoints": [well.url]}],
            "routes": [{"path_prefix": "/hung", "backend": "hung"}, {"path_prefix": "/well", "backend": "well"}],
        }
        gateway = stack.enter_context(running_gateway(settings))
        served = stack.enter_context(serving(gateway, drain_seconds=0.1, **server))
        clients = [stack.enter_context(RawClient(served.url)) for _ in range(40)]
        for each in clients:
            each.send(b"GET /hung HTTP/1.1\r\nHost: x\r\n\r\n")
        hung.wait_for_requests(16)  # 80 %, and those that came before the server was saturated
        slowest = 0.0
        asking = stack.enter_context(RawClient(served.url))
        eventually(lambda: served.threads > 16, "the server has grown")
        for _ in range(50):
            for path in ("/-/live", "/-/ready", "/well"):
                began = monotonic()
                asking.send(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
                assert asking.response().status == 200
                slowest = max(slowest, monotonic() - began)
        assert slowest < 1.0, f"one answer took {slowest:.3f} s"
        began = monotonic()
        refused = stack.enter_context(RawClient(served.url)).get("/hung")
        assert (refused.status, refused.value("Retry-After")) == (503, "1")
        assert monotonic() - began < 1.0
        assert 16 <= len(hung.requests) <= 16 + server["threads"]


def test_slow_uploads_do_not_count_as_waiting_for_the_backend() -> None:
    """Their threads are bounded by max_slow_clients; else a few clients could close a route to all clients. Without room to spool
    them large ones take threads."""
    server = {"max_in_flight": 2, "threads": 1, "max_spooled_body_bytes": 0}
    with ExitStack() as stack:
        backend = stack.enter_context(ScriptedBackend())
        settings = {
            "server": server,
            "backends": [{"name": "b", "endpoints": [backend.url]}],
            "routes": [{"path_prefix": "/", "backend": "b"}],
        }
        gateway = stack.enter_context(running_gateway(settings))
        served = stack.enter_context(serving(gateway, drain_seconds=0.1, **server))
        for _ in range(12):
            slow = stack.enter_context(RawClient(served.url))
            # Those whose bodies are there to be forwarded do count, so one after the other.
            send_apart(served, slow, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5000000\r\n\r\n" + b"x" * 200_000)
        eventually(lambda: served.threads > 10, "every slow upload has a thread")
        other = stack.enter_context(RawClient(served.url))
        eventually(lambda: other.get("/").status == 200, "within the time that a look at them holds")


def test_nobody_is_refused_for_what_was_seen_before_a_look_that_another_has_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    compartment = ConcurrencyLimit("backend 'a'", 1)
    compartment.waiting[Exchange()] = None
    looks, second_has_passed = threading.Semaphore(0), threading.Event()

    def all_held(streams: Iterable[Any]) -> int:
        looks.release()
        if threading.current_thread() is first:
            passed(second_has_passed, "the other has asked")
        return 1

    monkeypatch.setattr("rgate.plugins.bulkhead._count_blocked_on_clients", all_held)
    first = threading.Thread(target=compartment.check)
    first.start()
    assert looks.acquire(timeout=10)
    compartment.check()
    second_has_passed.set()
    first.join(10)
