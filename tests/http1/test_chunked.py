"""The chunked coding: exactly the grammar, whatever the pieces it comes in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rgate.http1.chunked import LAST_CHUNK, ChunkedDecoder, chunk_head, last_chunk


def read(coded: bytes, step: int | None = None) -> tuple[bytes, bytes]:
    """The payload and what follows it. ValueError when it is broken, AssertionError when it is not complete."""
    reader = ChunkedDecoder()
    payload = b""
    at = 0
    while at < len(coded) and not reader.complete:
        block = coded[at : at + (step or len(coded))]
        payload += reader.feed(block)
        at += len(block)
    assert reader.complete, "not complete"
    return payload, reader.trailing_data + coded[at:]


VALID = {
    "one chunk": (b"5\r\nhello\r\n0\r\n\r\n", b"hello"),
    "empty body": (b"0\r\n\r\n", b""),
    "two chunks": (b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n", b"hello world"),
    "upper case size": (b"A\r\n0123456789\r\n0\r\n\r\n", b"0123456789"),
    "lower case size": (b"a\r\n0123456789\r\n0\r\n\r\n", b"0123456789"),
    "leading zeros": (b"0005\r\nhello\r\n000\r\n\r\n", b"hello"),
    "CRLF within the payload": (b"4\r\n\r\n\r\n\r\n0\r\n\r\n", b"\r\n\r\n"),
    "extension is ignored": (b"5;name=value\r\nhello\r\n0;x\r\n\r\n", b"hello"),
    "quoted extension": (b'5;n="a;b"\r\nhello\r\n0\r\n\r\n', b"hello"),
    "space before an extension": (b"5 ; n\r\nhello\r\n0\r\n\r\n", b"hello"),
    "extension with everything": (b'5 ; a = b;c="\\"; \xe9" ;d\r\nhello\r\n0\r\n\r\n', b"hello"),
    "trailers": (b"5\r\nhello\r\n0\r\nX-Sum: 1\r\nHost: evil\r\n\r\n", b"hello"),
    "trailer without a value": (b"0\r\nX:\r\n\r\n", b""),
}


@pytest.mark.parametrize("step", [None, 1, 2, 3])
@pytest.mark.parametrize(("coded", "payload"), VALID.values(), ids=VALID)
def test_chunked_valid_gives_its_payload(coded: bytes, payload: bytes, step: int | None) -> None:
    assert read(coded + b"GET /", step) == (payload, b"GET /")


def test_chunked_trailers_are_kept_as_lines() -> None:
    reader = ChunkedDecoder()
    reader.feed(b"5\r\nhello\r\n0\r\nX-Sum: 1\r\nHost: evil\r\n")
    assert not reader.complete
    reader.feed(b"\r\nnext")
    assert (reader.trailers, reader.trailing_data) == ([b"X-Sum: 1", b"Host: evil"], b"next")


def test_last_chunk_has_the_trailers() -> None:
    assert last_chunk() == LAST_CHUNK
    assert last_chunk([("X-Sum", "1"), ("X", "caf\xe9")]) == b"0\r\nX-Sum: 1\r\nX: caf\xe9\r\n\r\n"
    with pytest.raises(ValueError, match="not a header"):
        last_chunk([("X", "a\r\nb")])


BROKEN = {
    "no size": b"\r\nhello\r\n",
    "not hex": b"g\r\n",
    "plus": b"+5\r\nhello\r\n0\r\n\r\n",
    "minus": b"-5\r\nhello\r\n0\r\n\r\n",
    "0x": b"0x5\r\nhello\r\n0\r\n\r\n",
    "underscore": b"0_5\r\nhello\r\n0\r\n\r\n",
    "space before the size": b" 5\r\nhello\r\n0\r\n\r\n",
    "space behind the size": b"5 \r\nhello\r\n0\r\n\r\n",
    "unicode digit": b"\xd9\xa5\r\n",
    "size over 63 bit": b"8000000000000000\r\n",
    "size over 64 bit that wraps to 5": b"10000000000000005\r\nhello\r\n0\r\n\r\n",
    "bare LF after the size": b"5\nhello\r\n0\r\n\r\n",
    "bare CR after the size": b"5\rhello\r\n0\r\n\r\n",
    "bare LF in an extension": b"5;a\nb\r\nhello\r\n0\r\n\r\n",
    "bare CR in an extension": b"5;a\rb\r\nhello\r\n0\r\n\r\n",
    "NUL in an extension": b"5;a\x00b\r\nhello\r\n0\r\n\r\n",
    "semicolon and nothing": b"5;\r\nhello\r\n0\r\n\r\n",
    "extension without a name": b"5;=b\r\nhello\r\n0\r\n\r\n",
    "extension whose name is not a token": b"5;a[=b\r\nhello\r\n0\r\n\r\n",
    "extension without a value": b"5;a=\r\nhello\r\n0\r\n\r\n",
    "extension whose quote does not end": b'5;a="b\r\nhello\r\n0\r\n\r\n',
    "space at the end of an extension": b"5;a \r\nhello\r\n0\r\n\r\n",
    "more extensions than payload": b"1;%s\r\nx\r\n" % (b"a" * 998) * 17,
    "no CRLF after the payload": b"5\r\nhelloX0\r\n\r\n",
    "only CR after the payload": b"5\r\nhello\rX0\r\n\r\n",
    "only LF after the payload": b"5\r\nhello\n0\r\n\r\n",
    "longer than announced": b"4\r\nhello\r\n0\r\n\r\n",
    "size line without end": b"0" * 5000,
    "extension of more than 4 KiB": b"5;" + b"x" * 4096 + b"\r\nhello\r\n0\r\n\r\n",
    "trailer that is not a header": b"0\r\nnothing\r\n\r\n",
    "trailer with a folded line": b"0\r\nX: a\r\n b\r\n\r\n",
    "trailer with bare LF": b"0\r\nX: a\nY: b\r\n\r\n",
    "bare LF ends the body": b"0\r\n\nXX",
    "trailer without end": b"0\r\nX: " + b"a" * 5000,
    "trailers of more than 16 KiB": b"0\r\n" + b"X: %s\r\n" % (b"a" * 1000) * 17 + b"\r\n",
    "request in the trailers": b"0\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n",
}


@pytest.mark.parametrize("step", [None, 1, 7])
@pytest.mark.parametrize("coded", BROKEN.values(), ids=BROKEN)
def test_chunked_anything_else_is_an_error(coded: bytes, step: int | None) -> None:
    with pytest.raises(ValueError, match=r"chunk|trailers"):
        read(coded, step)


def test_chunked_extensions_no_longer_than_the_payload_may_be_any_number() -> None:
    chunk = b"400;signature=%s\r\n%s\r\n" % (b"a" * 64, b"x" * 1_024)
    assert read(chunk * 1_000 + LAST_CHUNK) == (b"x" * 1_024_000, b"")


def test_chunked_extension_is_read_in_one_pass() -> None:
    with pytest.raises(ValueError, match="malformed"):  # quickly: were spaces given back one by one, it would take for ever
        read(b"5" + b" ;a" * 1_000 + b" " * 1_000 + b"\r\n")


@pytest.mark.parametrize("cut", range(len(b"5\r\nhello\r\n0\r\n\r\n")))
def test_chunked_that_ends_early_is_not_complete(cut: int) -> None:
    reader = ChunkedDecoder()
    reader.feed(b"5\r\nhello\r\n0\r\n\r\n"[:cut])
    assert not reader.complete


def test_chunked_rest_is_what_stands_behind_the_body() -> None:
    reader = ChunkedDecoder()
    assert reader.feed(b"1\r\nx\r\n0\r\n\r\nGET / HTTP/1.1\r\n") == b"x"
    assert reader.trailing_data == b"GET / HTTP/1.1\r\n"
    assert reader.feed(b"more") == b""
    assert reader.trailing_data == b"more"


def test_chunked_announced_size_costs_no_memory() -> None:
    reader = ChunkedDecoder()
    assert reader.feed(b"7fffffffffffff\r\nabc") == b"abc"
    assert not reader.complete


_bodies = st.lists(st.binary(max_size=40), max_size=6)


@given(_bodies, st.data())
def test_chunked_any_split_gives_the_same_payload(blocks: list[bytes], data: st.DataObject) -> None:
    coded = b"".join(chunk_head(len(block)) + block + b"\r\n" for block in blocks if block) + LAST_CHUNK + b"next"
    cuts = sorted(data.draw(st.lists(st.integers(0, len(coded)), max_size=8)))
    reader = ChunkedDecoder()
    payload, rest = b"", b""
    for begin, end in zip([0, *cuts], [*cuts, len(coded)], strict=True):
        if reader.complete:
            rest += coded[begin:end]
            continue
        payload += reader.feed(coded[begin:end])
        rest = reader.trailing_data
    assert reader.complete
    assert (payload, rest) == (b"".join(blocks), b"next")


@given(st.binary(max_size=60), st.integers(1, 7))
def test_chunked_random_bytes_read_the_same_in_pieces(coded: bytes, step: int) -> None:
    def outcome(step: int | None) -> object:
        try:
            return read(coded, step)
        except ValueError:
            return "broken"
        except AssertionError:
            return "more"

    whole, pieces = outcome(None), outcome(step)
    # In pieces an error may come to light only with the next piece, never the other way round.
    assert pieces == whole or (whole, pieces) == ("broken", "more")


def read_in(coded: bytes, size: int) -> tuple[bytes, bool, bytes]:
    reader = ChunkedDecoder(counts_framing=True)
    payload = b"".join(reader.feed(coded[at : at + size]) for at in range(0, len(coded), size) if not reader.complete)
    return payload, reader.complete, reader.trailing_data


SMALL_CHUNKS = st.lists(st.one_of(st.binary(min_size=1, max_size=20), st.sampled_from([b"\r\n", b"1\r\na\r\n", b"0\r\n\r\n"])))


@given(SMALL_CHUNKS, st.sampled_from([b"%x", b"%X", b"%04x", b"%x;a=b"]), st.integers(0, 700), st.booleans())
def test_small_chunks_are_read_alike_many_at_once_and_byte_by_byte(
    payloads: list[bytes], size: bytes, more: int, is_whole: bool
) -> None:
    payloads = [*payloads, *[b"xy"] * more]
    coded = b"".join(size % len(payload) + b"\r\n" + payload + b"\r\n" for payload in payloads)
    coded += b"0\r\n\r\n" if is_whole else b""
    expected = (b"".join(payloads), is_whole, b"")
    assert read_in(coded, len(coded) or 1) == read_in(coded, 1_000) == read_in(coded, 1) == expected


@pytest.mark.parametrize("size", [b"0x1", b"+1", b" 1", b"1 ", b"1_", b"", b"-1", b"0" * 15 + b"1", b"g"])
@pytest.mark.parametrize("before", [0, 500])
def test_small_chunk_with_a_malformed_size_is_an_error_among_many(size: bytes, before: int) -> None:
    coded = b"1\r\na\r\n" * before + size + b"\r\na\r\n" + b"1\r\na\r\n" * 500
    with pytest.raises(ValueError, match="malformed"):
        ChunkedDecoder().feed(coded)


@pytest.mark.parametrize("size", [1, 4])
def test_tiny_chunks_are_an_error_only_where_framing_counts(size: int) -> None:
    coded = b"%x\r\n%b\r\n" % (size, b"x" * size) * 70_000
    assert len(ChunkedDecoder().feed(coded)) == size * 70_000
    for step in (len(coded), 10_000, 100):
        with pytest.raises(ValueError, match="too small"):
            read_in(coded, step)


def test_chunks_of_five_bytes_may_go_on() -> None:
    assert read_in(b"5\r\nhello\r\n" * 100_000, 65_536)[0] == b"hello" * 100_000
