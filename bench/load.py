"""Load: wrk for steady streams of requests, plain sockets for what it cannot do."""

from __future__ import annotations

import contextlib
import json
import re
import selectors
import socket
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .gateways import program
from .machine import keep_restart_only

__all__ = ["Burst", "Figures", "ask", "burst", "connect", "download", "hold", "read_figures", "upload", "wrk"]

SCRIPT = Path(__file__).with_name("wrk.lua")
BLOCK = b"x" * 262_144
TRANSFER_SECONDS = 60.0
_FIGURES = re.compile(r"^figures (\{.*\})$", re.MULTILINE)
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


@dataclass(frozen=True)
class Figures:
    """What wrk has seen. `errors` are answers of 400 and more, and connections that could not be made or broke; the latter
    alone are `lost`. `timeouts` are requests that had no answer in two seconds."""

    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float
    errors: int
    timeouts: int
    lost: int = 0


def wrk(url: str, connections: int, seconds: float, cores: Iterable[int], kind: str = "plain", body_bytes: int = 0) -> Figures:
    """Requests on so many connections, each again as soon as it is answered. Raises ValueError when wrk has failed."""
    command = [program("wrk") or "wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "-s", str(SCRIPT), url]
    with keep_restart_only(cores):
        ended = subprocess.run([*command, "--", kind, str(body_bytes)], capture_output=True, text=True, timeout=seconds + 60)
    return read_figures(ended.stdout, ended.stderr)


def read_figures(output: str, errors: str = "") -> Figures:
    """The figures in what wrk has written. Raises ValueError when there are none."""
    found = _FIGURES.search(output)
    if found is None:
        raise ValueError(f"wrk gave no figures: {(output + errors).strip()[-500:]}")
    told = json.loads(found[1])
    return Figures(
        requests=told["requests"],
        seconds=told["microseconds"] / 1e6,
        p50_ms=told["p50_us"] / 1e3,
        p99_ms=told["p99_us"] / 1e3,
        errors=told["connect"] + told["read"] + told["write"] + told["status"],
        timeouts=told["timeout"],
        lost=told["connect"] + told["read"] + told["write"],
    )


def connect(port: int, timeout_seconds: float = 30.0) -> socket.socket:
    """A connection to a port of this machine."""
    sock = socket.create_connection(("127.0.0.1", port), timeout_seconds)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def request(method: str, path: str, port: int, body_bytes: int | None = None) -> bytes:
    """A request head."""
    length = "" if body_bytes is None else f"Content-Length: {body_bytes}\r\n"
    return f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n{length}\r\n".encode()


def ask(sock: socket.socket, head: bytes) -> bool:
    """Send a request, read its answer to the end of a body of known length; whether it was a good one."""
    try:
        sock.sendall(head)
        return _read_answer(sock)
    except OSError:
        return False


def _read_answer(sock: socket.socket, buffer: bytearray | None = None, until: float = float("inf")) -> bool:
    block = b""
    while (end := block.find(b"\r\n\r\n")) < 0:
        more = sock.recv(65_536)
        if not more:
            return False
        block += more
    length = _LENGTH.search(block[: end + 2])
    if length is None:
        return False
    missing = int(length[1]) - (len(block) - end - 4)
    buffer = buffer or bytearray(65_536)
    while missing > 0:
        got = sock.recv_into(buffer)
        if not got or time.monotonic() > until:
            return False
        missing -= got
    return block.startswith((b"HTTP/1.1 2", b"HTTP/1.0 2"))


def hold(port: int, path: str, count: int, seconds: float) -> list[socket.socket]:
    """Open connections, each of which has had one answer and rests; as many of `count` as are possible in `seconds`."""
    until = time.monotonic() + seconds
    head = request("GET", path, port)
    held: list[socket.socket] = []
    while len(held) < count and time.monotonic() < until:
        try:
            sock = connect(port, 5.0)
        except OSError:
            break
        if not ask(sock, head):
            sock.close()
            break
        held.append(sock)
    return held


@dataclass(frozen=True)
class Burst:
    """What became of requests that were all sent at one time: how long until the last answer, how many had none."""

    seconds: float
    errors: int


def burst(port: int, path: str, count: int, timeout_seconds: float) -> Burst:
    """So many requests at one time, each on a new connection. The clock runs from before the first connect."""
    began = time.monotonic()
    until = began + timeout_seconds
    answered = good = 0
    with selectors.DefaultSelector() as selector, contextlib.ExitStack() as stack:
        for _ in range(count):
            sock = stack.enter_context(connect(port))
            sock.sendall(request("GET", path, port))
            selector.register(sock, selectors.EVENT_READ)
        while answered < count and (left := until - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                sock = key.fileobj  # type: ignore[assignment]
                selector.unregister(sock)
                answered += 1
                with contextlib.suppress(OSError):
                    good += _read_answer(sock)
    return Burst(time.monotonic() - began, count - good)


def download(port: int, path: str) -> float:
    """Seconds that a GET takes, at most a minute. Raises OSError when its answer does not come whole."""
    began = time.monotonic()
    with connect(port) as sock:
        sock.sendall(request("GET", path, port))
        if not _read_answer(sock, bytearray(1_048_576), began + TRANSFER_SECONDS):
            raise OSError("the download has not come to its end")
    return time.monotonic() - began


def upload(port: int, path: str, size_bytes: int) -> float:
    """Seconds that a POST of so many bytes takes, at most a minute. Raises OSError when it is not answered well."""
    began = time.monotonic()
    with connect(port) as sock:
        sock.sendall(request("POST", path, port, size_bytes))
        for _ in range(size_bytes // len(BLOCK)):
            sock.sendall(BLOCK)
            if time.monotonic() > began + TRANSFER_SECONDS:
                raise OSError("the upload has not come to its end")
        if not _read_answer(sock):
            raise OSError("the upload was not answered")
    return time.monotonic() - began
