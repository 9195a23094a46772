"""RepeatCache: values for keys that were seen twice are kept, within a fixed number of bytes."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable, Iterator
from itertools import product
from string import ascii_lowercase, digits
from typing import Any

import pytest

from rgate.forwarding import forwarder
from rgate.forwarding.forwarded import VIA_KEY, forwarded_headers
from rgate.http1 import fields
from rgate.http1.cache import ENTRY_BYTES, LARGEST_SHARE, SEEN, MemoryUse, RepeatCache, memory_use
from rgate.http1.fields import FieldParser
from rgate.http1.request import RequestParser
from rgate.http1.response import ResponseParser
from rgate.plugins import normalize
from rgate.serving.head_encoder import HeadEncoder

EMPTY_BYTES = 8 * SEEN
MANY = 1 << 40


def test_what_comes_again_is_known_to() -> None:
    remembered: RepeatCache[bytes, int] = RepeatCache("test", 100_000)
    assert not remembered.admits(b"a"), "it may never come again"
    assert remembered.admits(b"a")
    remembered.add(b"a", 1, 100)
    assert remembered == {b"a": 1}
    assert remembered.bytes == EMPTY_BYTES + 100 + ENTRY_BYTES


def test_what_comes_once_is_not_kept_in_mind_for_long() -> None:
    remembered: RepeatCache[int, int] = RepeatCache("test", 100_000)
    remembered.admits(1)
    assert not any(remembered.admits(key) for key in range(2, 100_000))
    assert not remembered.admits(1)


def test_when_it_is_full_it_begins_anew() -> None:
    remembered: RepeatCache[int, int] = RepeatCache("test", EMPTY_BYTES + 10 * (1_000 + ENTRY_BYTES))
    for key in range(11):
        remembered.add(key, key, 1_000)
        assert remembered.bytes <= remembered.max_bytes
    assert remembered == {10: 10}
    remembered.clear()
    assert (remembered, remembered.bytes) == ({}, EMPTY_BYTES)


def test_what_is_kept_twice_counts_once() -> None:
    remembered: RepeatCache[int, int] = RepeatCache("test", 100_000)
    remembered.add(1, 1, 100)
    before = remembered.bytes
    remembered.add(1, 2, 100)
    assert (remembered, remembered.bytes) == ({1: 1}, before)


def test_one_large_entry_pushes_nothing_out() -> None:
    remembered: RepeatCache[int, int] = RepeatCache("test", 160_000)
    remembered.add(1, 1, 100)
    remembered.add(2, 2, 160_000 // LARGEST_SHARE)
    assert remembered == {1: 1}


def test_memory_use_adds_up_what_has_one_name_and_forgets_what_is_gone() -> None:
    several: list[RepeatCache[int, int]] = [RepeatCache("test of memory_use", 100_000) for _ in range(2)]
    several[0].add(1, 1, 100)
    expected = MemoryUse("test of memory_use", 1, 2 * EMPTY_BYTES + 100 + ENTRY_BYTES, 200_000)
    assert [use for use in memory_use() if use.name == "test of memory_use"] == [expected]
    del several
    gc.collect()
    assert not [use for use in memory_use() if use.name == "test of memory_use"]


# What is counted is no less than what is taken. Each makes a reader whose other memories keep nothing, has it keep the number-th
# hostile thing, and says which memory that is in.
NAMES = ["".join(letters) for letters in product(ascii_lowercase + digits, repeat=2)]


def request_reader() -> RequestParser:
    reader = RequestParser()
    reader._field_parser.cache.max_bytes = reader._line_cache.max_bytes = 0
    return reader


def response_reader() -> ResponseParser:
    reader = ResponseParser()
    reader._field_parser.cache.max_bytes = reader._line_cache.max_bytes = 0
    return reader


def lines(number: int, count: int) -> bytes:
    return b"\r\n".join(b"%b:%d" % (name.encode(), (number + at) % 10) for at, name in enumerate(NAMES[:count]))


def kept(memory: Callable[[Any], RepeatCache[Any, Any]], reader: Any, read: Callable[[Any, int], object]) -> Any:
    return reader, memory(reader), read


HOSTILE: dict[str, Callable[[], Any]] = {
    "heads of many tiny headers": lambda: kept(
        lambda reader: reader.head_cache,
        request_reader(),
        lambda reader, n: reader.parse(b"GET / HTTP/1.1\r\nHost: a\r\nX-N: %d\r\n" % n + lines(n, 160)),
    ),
    "heads of the same header many times": lambda: kept(
        lambda reader: reader.head_cache,
        request_reader(),
        lambda reader, n: reader.parse(b"GET /%d HTTP/1.1\r\nHost: a" % n + b"\r\na:1" * 190),
    ),
    "heads that are small": lambda: kept(
        lambda reader: reader.head_cache, request_reader(), lambda reader, n: reader.parse(b"GET /%d HTTP/1.1\r\nHost: a" % n)
    ),
    "request lines of escapes": lambda: kept(
        lambda reader: reader._line_cache,
        request_reader(),
        lambda reader, n: reader.check_request_line(b"GET /%d" % n + b"%41" * 150 + b"?q HTTP/1.1"),
    ),
    "header lines that are small": lambda: kept(
        lambda reader: reader.cache, FieldParser(), lambda reader, n: reader.parse(b"%b:%d" % (NAMES[n % 1_000].encode(), n))
    ),
    "header lines of many tokens": lambda: kept(
        lambda reader: reader.cache,
        FieldParser(),
        lambda reader, n: reader.parse(b"Connection: %d," % n + ",".join(NAMES[:160]).encode()),
    ),
    "header names": lambda: kept(lambda _: fields._names, None, lambda _, n: fields._parse_name(f"x-{n}-{'n' * 40}")),
    "response heads of many tiny headers": lambda: kept(
        lambda reader: reader.head_cache,
        response_reader(),
        lambda reader, n: reader.parse(b"HTTP/1.1 200 OK\r\nX-N: %d\r\n" % n + lines(n, 160)),
    ),
    "response heads that are small": lambda: kept(
        lambda reader: reader.head_cache, response_reader(), lambda reader, n: reader.parse(b"HTTP/1.1 200 %d" % n)
    ),
    "status lines": lambda: kept(
        lambda reader: reader._line_cache, ResponseParser(), lambda reader, n: reader._parse_first_line(b"HTTP/1.1 200 %d" % n)
    ),
    "written heads": lambda: kept(
        lambda writer: writer.head_cache,
        HeadEncoder(),
        lambda writer, n: writer.cache(
            "200 OK",
            tuple([(f"{name}", f"{n}") for name in NAMES[:90]] + [("date", "x"), ("content-length", f"{n}")]),
            b"x" * n,
            n,
        ),
    ),
    "written lines": lambda: kept(lambda writer: writer._lines, HeadEncoder(), lambda writer, n: writer._line(("X-A", f"{n}"))),
    "written status lines": lambda: kept(
        lambda writer: writer._status_lines, HeadEncoder(), lambda writer, n: writer._status_line(f"200 {n}")
    ),
    "names of response headers": lambda: kept(
        lambda _: normalize._known_names,
        None,
        lambda _, n: normalize.clean("200 OK", [(f"{name}-{n}", "") for name in ("connection", *NAMES[:100])]),
    ),
    "content types": lambda: kept(
        lambda _: normalize._known_types, None, lambda _, n: normalize._text([("Content-Type", f"text/plain; charset=x{n}")], 1)
    ),
}


@pytest.fixture
def tracing() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


@pytest.mark.usefixtures("tracing")
@pytest.mark.parametrize("make", HOSTILE.values(), ids=HOSTILE)
def test_memory_that_is_counted_is_no_less_than_what_is_taken(make: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    reader, memory, read = make()
    monkeypatch.setattr(memory, "max_bytes", MANY)
    takings = []
    for _ in range(3):  # other threads of the process allocate too, and what runs first: that comes once
        memory.clear()
        gc.collect()
        before, _ = tracemalloc.get_traced_memory()
        for number in range(300):
            read(reader, number)
            read(reader, number)
        gc.collect()
        takings.append(tracemalloc.get_traced_memory()[0] - before)
        entries, counted = len(memory), memory.bytes - EMPTY_BYTES
    memory.clear()
    assert entries >= 250, "most of them have been kept"
    assert min(takings) <= counted, f"{entries} entries take {min(takings):,} bytes and are counted as {counted:,}"


@pytest.mark.usefixtures("tracing")
def test_memory_of_forwarding_lines_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = forwarder._forwarded_lines
    memory.clear()
    before, _ = tracemalloc.get_traced_memory()
    for number in range(300):
        key = (VIA_KEY, "/api", f"10.0.0.{number % 256}", "http", f"{number}." + "a" * 250, "HTTP/1.1")
        forwarder._cached_lines(key)
        forwarder._cached_lines(key)
    taken = tracemalloc.get_traced_memory()[0] - before
    assert len(memory) >= 250
    assert taken <= memory.bytes - EMPTY_BYTES
    assert memory[key] == forwarded_headers("", "", *key)
    memory.clear()
