"""Interim responses (RFC 9110 §15.2): passed on to clients that take them, and to no other."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

import pytest

from rgate import Middleware, hookimpl, send_interim
from rgate.testing import ScriptedBackend, ScriptedConnection, http_response

from ..support.forwarding import forwarding
from ..support.raw_client import RawClient
from ..support.waiting import passed

HINT = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n"
PASSED = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n"
NAVIGATES = "Sec-Fetch-Mode: navigate"


def hinting(*interim: bytes) -> Any:
    def script(connection: ScriptedConnection) -> None:
        while connection.read_request() is not None:
            for each in interim:
                connection.send(each)
            connection.send(http_response(b"ok"))

    return script


def heads(client: RawClient, *headers: str, version: str = "1.1") -> list[bytes]:
    """The heads of what a GET is answered with, the final one without its headers."""
    client.send("".join(f"{line}\r\n" for line in [f"GET / HTTP/{version}", "Host: x", *headers, ""]).encode())
    seen: list[bytes] = []
    while True:
        response = client.response()
        if response.status >= 200:
            assert response.body == b"ok"
            return seen
        seen.append(response.head)


SETTINGS = [("auto", [], False), ("auto", [NAVIGATES], True), ("all", [], True), ("none", [NAVIGATES], False)]


@pytest.mark.parametrize(("setting", "headers", "wanted"), SETTINGS)
def test_interim_response_is_passed_on_to_those_who_are_to_have_it(setting: str, headers: list[str], wanted: bool) -> None:
    with (
        ScriptedBackend(hinting(HINT)) as backend,
        forwarding(backend, interim_responses=setting) as live,
        RawClient(live.url) as client,
    ):
        for _ in range(3):  # heads that come again are remembered
            assert heads(client, *headers) == ([PASSED] if wanted else [])
        assert len(backend.connections) == 1


def test_interim_response_is_never_passed_on_to_http_10() -> None:
    with (
        ScriptedBackend(hinting(HINT)) as backend,
        forwarding(backend, interim_responses="all") as live,
        RawClient(live.url) as client,
    ):
        assert heads(client, NAVIGATES, "Connection: keep-alive", version="1.0") == []


def test_interim_responses_of_every_kind_are_passed_on_in_order_but_for_100() -> None:
    sent = [b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 102 Processing\r\n\r\n", HINT, b"HTTP/1.1 199\r\nX: 1\r\n\r\n"]
    with ScriptedBackend(hinting(*sent)) as backend, forwarding(backend) as live, RawClient(live.url) as client:
        assert heads(client, NAVIGATES) == [sent[1], PASSED, b"HTTP/1.1 199 Unknown\r\nX: 1\r\n\r\n"]


def test_interim_response_is_cleaned_as_final_ones_are() -> None:
    hint = (
        b"HTTP/1.1 103 Early Hints\r\nConnection: X-A, keep-alive\r\nX-A: 1\r\nKeep-Alive: 5\r\nTE: x\r\nTrailer: X\r\n"
        b"Upgrade: h2c\r\nContent-Length: 5\r\nX-B : 2\r\nDate: now\r\n\r\n"
    )
    with ScriptedBackend(hinting(hint)) as backend, forwarding(backend) as live, RawClient(live.url) as client:
        assert heads(client, NAVIGATES) == [b"HTTP/1.1 103 Early Hints\r\nX-B: 2\r\nDate: now\r\n\r\n"]


@pytest.mark.parametrize("lines", [b"Transfer-Encoding: gzip\r\n", b"X: a\x00b\r\n", b"nothing\r\n"])
def test_interim_response_that_is_broken_is_502(lines: bytes) -> None:
    script = hinting(b"HTTP/1.1 103 Early Hints\r\n" + lines + b"\r\n")
    with ScriptedBackend(script) as backend, forwarding(backend) as live, RawClient(live.url) as client:
        assert client.get("/", NAVIGATES).status == 502


def test_interim_response_comes_before_the_backend_has_its_final_one() -> None:
    seen = threading.Event()

    def script(connection: ScriptedConnection) -> None:
        connection.read_request()
        connection.send(HINT)
        passed(seen)
        connection.send(http_response(b"ok"))

    with ScriptedBackend(script) as backend, forwarding(backend) as live, RawClient(live.url) as client:
        client.send(f"GET / HTTP/1.1\r\nHost: x\r\n{NAVIGATES}\r\n\r\n".encode())
        assert client.response().head == PASSED
        seen.set()
        assert client.response().body == b"ok"


CHUNK = b"186a0\r\n" + b"x" * 100_000 + b"\r\n"  # too large to be collected
END = b"5\r\nworld\r\n0\r\n\r\n"


def test_interim_response_is_passed_on_while_an_upload_runs() -> None:
    def script(connection: ScriptedConnection) -> None:
        connection.read_head()
        connection.send(HINT)
        connection.send(http_response(connection.read(len(CHUNK + END))[-len(END) :]))

    with ScriptedBackend(script) as backend, forwarding(backend, interim_responses="all") as live, RawClient(live.url) as client:
        client.send(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNK)
        assert client.response().head == PASSED
        client.send(END)
        assert client.response().body == END


# A plugin's


class Hinting:
    """A plugin that sends `interim` before it asks, and notes what has become of it."""

    def __init__(self, status: str = "103 Early Hints", late: bool = False) -> None:
        self.sent: list[object] = []
        self.status = status
        self.late = late

    @hookimpl
    def rgate_middlewares(self) -> Middleware:
        return Middleware("hinting", lambda app, options: self.middleware(app))

    def middleware(self, app: Any) -> Any:
        def hint(environ: dict[str, Any]) -> None:
            try:
                self.sent.append(send_interim(environ, self.status, [("Link", "</a.css>; rel=preload"), ("Connection", "x")]))
            except ValueError as error:
                self.sent.append(type(error))

        def hinting(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            if not self.late:
                hint(environ)
                return app(environ, start_response)  # type: ignore[no-any-return]
            start_response("200 OK", [("Content-Length", "2")])("o")
            hint(environ)
            return [b"k"]

        return hinting


def test_plugin_sends_an_interim_response() -> None:
    plugin = Hinting()
    with ScriptedBackend() as backend, forwarding(backend, plugins={"hinting": plugin}) as live, RawClient(live.url) as client:
        assert heads(client, NAVIGATES) == [PASSED]
        assert heads(client) == []
        assert plugin.sent == [True, False]


@pytest.mark.parametrize("status", ["100 Continue", "101 Switching Protocols", "200 OK", "99 x", "103 a\r\nb", "103\r\n", "abc"])
def test_plugin_can_send_nothing_else_so(status: str) -> None:
    plugin = Hinting(status)
    with ScriptedBackend() as backend, forwarding(backend, plugins={"hinting": plugin}) as live, RawClient(live.url) as client:
        assert heads(client, NAVIGATES) == []
        assert plugin.sent == [ValueError]


def test_interim_status_never_becomes_a_final_one() -> None:
    """The status line of an interim response is not cached as one of final responses."""
    with ScriptedBackend(hinting(HINT)) as backend, forwarding(backend) as live, RawClient(live.url) as client:
        for _ in range(3):
            assert heads(client, NAVIGATES) == [PASSED]
        with pytest.raises(ValueError, match="200 to 599"):
            live.server.shared.head_encoder.encode("103 Early Hints", [])
