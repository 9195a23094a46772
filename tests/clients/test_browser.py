"""A browser that loads a page through the gateway; the page opens a WebSocket and an event stream (HTML §9.2, RFC 6455)."""

from __future__ import annotations

import contextlib
import html
import json
import re
import shutil
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ..support.waiting import DEADLINE_SECONDS
from .programs import gateway, run, wsgi_server

pytest.importorskip("websockets", reason="needs the websockets library")
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection, serve
from websockets.typing import Subprotocol

PAGE = b"""<!DOCTYPE html>
<title>through the gateway</title>
<pre id="seen"></pre>
<img src="/app/hold">
<script>
const seen = {}
function tell(name, value) {
  seen[name] = value
  document.getElementById("seen").textContent = JSON.stringify(seen)
  if (Object.keys(seen).length === 4) fetch("/app/complete")
}

const socket = new WebSocket(`ws://${location.host}/chat/room?name=x%2Fy`, ["v2", "v1"])
const received = []
socket.binaryType = "arraybuffer"
socket.onopen = () => { socket.send("hello"); socket.send(new Uint8Array([0, 255, 128])); socket.send("y".repeat(300000)) }
socket.onmessage = (event) => {
  received.push(typeof event.data === "string" ? event.data.length : [...new Uint8Array(event.data)])
  if (received.length === 3) socket.close(4321, "done")
}
socket.onclose = (event) => tell("socket", {received, protocol: socket.protocol, code: event.code, clean: event.wasClean})

const events = new EventSource("/app/events")
const came = []
events.onmessage = (event) => {
  came.push(event.data)
  if (came.length === 1) fetch("/app/go-on", {method: "POST", body: "x"})
  if (came.length === 3) { events.close(); tell("events", came) }
}
fetch("/app/poll").then((response) => response.text()).then((text) => tell("poll", text))
fetch("/app/echo", {method: "PUT", body: new Blob(["z".repeat(200000)])})
  .then((response) => response.text()).then((text) => tell("upload", text.length))
</script>
"""


class Service:
    """The page; an event stream whose later events wait for a request that the page sends after the first; a long poll;
    and a picture that is there only when the page has seen everything, so that it is not complete before."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.complete = threading.Event()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path == "/app/events":
            start_response("200 OK", [("Content-Type", "text/event-stream"), ("Cache-Control", "no-store")])
            return self._events()
        body = environ["wsgi.input"].read()
        if path == "/app/go-on":
            self.go_on.set()
        if path == "/app/complete":
            self.complete.set()
        if path == "/app/hold":
            self.complete.wait(DEADLINE_SECONDS)
        if path == "/app/poll":
            self.go_on.wait(DEADLINE_SECONDS)
            body = b"the poll's answer"
        if path == "/app/":
            body = PAGE
        start_response("200 OK", [("Content-Type", "text/html" if path == "/app/" else "text/plain")])
        return [body]

    def _events(self) -> Iterator[bytes]:
        yield b"data: first\n\n"
        if self.go_on.wait(DEADLINE_SECONDS):
            yield b"data: second\n\n"
            yield b"data: third\n\n"


def echo(connection: ServerConnection) -> None:
    with contextlib.suppress(ConnectionClosed):  # with a code of the page's own
        for message in connection:
            connection.send(message)


def test_page_in_a_browser_has_its_socket_its_events_and_its_answers(tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium is installed")
    with serve(echo, "127.0.0.1", 0, subprotocols=[Subprotocol("v1")]) as sockets, wsgi_server(Service()) as service:
        thread = threading.Thread(target=sockets.serve_forever)
        thread.start()
        chat = f"http://127.0.0.1:{sockets.socket.getsockname()[1]}"
        try:
            with gateway(tmp_path, {"/chat": chat, "/app": service}, drain_seconds=2) as url:
                document = load(browser, f"{url}/app/", tmp_path)
        finally:
            sockets.shutdown()
            thread.join(DEADLINE_SECONDS)
    seen = re.search(r'<pre id="seen">(.+?)</pre>', document)
    assert seen is not None, f"the page has not seen everything: {document}"
    assert json.loads(html.unescape(seen[1])) == {
        "socket": {"received": [5, [0, 255, 128], 300_000], "protocol": "v1", "code": 4321, "clean": True},
        "events": ["first", "second", "third"],
        "poll": "the poll's answer",
        "upload": 200_000,
    }


def load(browser: str, url: str, folder: Path) -> str:
    """The document after its scripts have run."""
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage"]
    quiet = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-proxy-server"]
    return run(browser, *flags, *quiet, f"--user-data-dir={folder}/browser", "--dump-dom", url)
