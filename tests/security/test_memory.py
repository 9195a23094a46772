"""What a worker process remembers of strangers is bounded in bytes, as docs/security.md says, whoever floods it."""

from __future__ import annotations

import re
from itertools import product
from string import ascii_lowercase, digits

import pytest

from rgate.http1.cache import MemoryUse, memory_use
from rgate.plugins import normalize
from rgate.testing import ScriptedBackend, ScriptedConnection

from ..meta.source import ROOT
from ..support.forwarding import forwarding
from ..support.raw_client import RawClient

NAMES = ["".join(letters) for letters in product(ascii_lowercase + digits, repeat=2)]
OFTEN = 600


def used(name: str) -> MemoryUse:
    return next(use for use in memory_use() if use.name == name)


def respond(connection: ScriptedConnection) -> None:
    """Another response for each number in the target, the same for the same."""
    while (request := connection.read_request()) is not None:
        number = int(re.findall(r"\d+", request.line.partition("?")[0] + "/0")[0])
        lines = b"".join(b"%b-%d: %d\r\n" % (name.encode(), number % 100, number) for name in NAMES[: 20 if number % 2 else 400])
        connection.send(
            b"HTTP/1.1 200 OK %d\r\nContent-Type: text/plain; a=%d\r\nDate: %d\r\nContent-Length: 0\r\n%b\r\n"
            % (number, number, number, lines)
        )


FLOODS = {
    "Hosts of 250 bytes": lambda n: b"GET / HTTP/1.1\r\nHost: %d.%b\r\n\r\n" % (n, b"a" * 240),
    "heads of 160 tiny headers": lambda n: (
        b"GET / HTTP/1.1\r\nHost: a\r\n%b\r\n"
        % b"".join(b"%b:%d\r\n" % (name.encode(), (n + at) % 10) for at, name in enumerate(NAMES[:160]))
    ),
    "long request lines": lambda n: b"GET /%d?%b HTTP/1.1\r\nHost: a\r\n\r\n" % (n, b"a" * 450),
    "header names of 60 bytes": lambda n: (
        b"GET / HTTP/1.1\r\nHost: a\r\n%b\r\n" % b"".join(b"%b-%d%b:\r\n" % (name.encode(), n, b"a" * 50) for name in NAMES[:100])
    ),
    "responses of a hostile backend": lambda n: b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % n,
}


@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS)
def test_memory_of_everything_stays_within_its_budget(flood: object) -> None:
    assert callable(flood)
    options = {"normalize": {"format": "envelope"}}
    with ScriptedBackend(respond) as backend, forwarding(backend, options=options) as live:
        for number in range(OFTEN):
            if number % 50 == 0:
                client = RawClient(live.url)
            for _ in range(3):
                client.send(flood(number))
                assert client.response().status == 200
            if number % 50 == 49:
                client.close()
        for use in memory_use():
            assert use.bytes <= use.max_bytes, use


def test_memory_of_everything_is_on_the_page_with_its_budget() -> None:
    with ScriptedBackend(respond) as backend, forwarding(backend) as live, RawClient(live.url):
        text = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
        rows = {
            name: int(kib.replace(",", "")) * 1024 for name, kib in re.findall(r"^\| ([a-z ]+) \| ([\d,]+) KiB \|", text, re.M)
        }
        mine = {use.name: use.max_bytes for use in memory_use() if not use.name.startswith(("test", "header lines"))}
        several = {name for name, most in mine.items() if rows.get(name) and most % rows[name] == 0}
        assert rows.keys() == mine.keys() == several, "the table of docs/security.md and what is in rgate"
        total = int(re.findall(r"together ([\d.]+) MiB", text)[0])
        assert (total - 1) * 1_048_576 < sum(rows.values()) <= total * 1_048_576


def test_host_that_no_name_can_have_is_refused() -> None:
    with ScriptedBackend(respond) as backend, forwarding(backend) as live, RawClient(live.url) as client:
        client.send(b"GET / HTTP/1.1\r\nHost: %b:8080\r\n\r\n" % (b"a" * 255))
        assert client.response().status == 200
        for host, target in ((b"a" * 256, b"/"), (b"a", b"http://" + b"a" * 256 + b"/")):
            with RawClient(live.url) as other:
                other.send(b"GET %b HTTP/1.1\r\nHost: %b\r\n\r\n" % (target, host))
                assert other.response().status == 400


def test_names_that_are_too_long_to_come_again_are_not_kept() -> None:
    normalize._known_names.clear()
    for _ in range(3):
        normalize.clean("200 OK", [(f"{name}-{'n' * 1_000}", "") for name in NAMES[:60]])
        normalize._text([("Content-Type", "text/plain; a=" + "b" * 60_000)], 1)
    assert not normalize._known_names
    assert all(len(known) < 60_000 for known in normalize._known_types)


def test_nothing_else_in_the_source_remembers_without_a_budget() -> None:
    """A cache that a client or a backend can fill is a Remembered. What is left is bounded by the process itself."""
    bounded = {"formats.py": "the seconds of the clock"}
    found = {
        path.name
        for path in (ROOT / "rgate").rglob("*.py")
        if re.search(r"lru_cache|functools\.cache|@cache\b", path.read_text(encoding="utf-8"))
    }
    assert found == set(bounded)
