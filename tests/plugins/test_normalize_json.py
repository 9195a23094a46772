"""Which bodies are JSON, and what text is decoded by: bounded in every step, whatever a backend sends."""

from __future__ import annotations

import encodings
import json
import threading
from typing import Any, NoReturn

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rgate.plugins.normalize import json_check
from rgate.plugins.normalize.charset import codec
from rgate.plugins.normalize.json_check import MAX_DEPTH, is_json
from rgate.testing import answering, client, running_gateway


def refuse(constant: str) -> NoReturn:
    raise ValueError(constant)


def reference(text: bytes) -> bool:
    """As Python's own parser has it, which takes NaN and Infinity unless it is told not to."""
    try:
        json.loads(text.decode(), parse_constant=refuse, parse_int=len, parse_float=len)
    except ValueError:
        return False
    return True


_PIECES = r"""
[ ] { } , : [ ] { } , : [ ] , [] {} "a": "a" "\u00e9\n" "\x" "\u12" " 0 -1.5e+3 01 - 1. .5 1e true false null nul NaN é 1,2 "a":1
"""
_pieces = st.sampled_from([*_PIECES.split(), " ", "\n", "\t", "\f", '"\x01"'])


@given(st.lists(_pieces, max_size=14).map("".join))
@settings(max_examples=2_000)
def test_json_is_what_pythons_parser_takes_for_it(text: str) -> None:
    assert is_json(text.encode()) == reference(text.encode()), text


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text(max_size=5), inner, max_size=20),
    max_leaves=60,
)


@given(_values, st.sampled_from([None, 1, "\t"]), st.booleans(), st.data())
def test_json_that_is_written_by_python_is_json_and_cut_or_changed_as_it_reads_it(
    value: Any, indent: Any, ascii_only: bool, data: st.DataObject
) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    if reference_is_utf8(text):
        assert is_json(text)
    at = data.draw(st.integers(0, len(text) - 1))
    changed = text[:at] + data.draw(st.sampled_from([b"", b",", b"]", b"}", b'"', b"0", b" "])) + text[at + 1 :]
    if reference_is_utf8(changed):
        assert is_json(changed) == reference(changed), changed


def reference_is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


LONG = {
    "an array of numbers": b"[" + b"1," * 100_000 + b"1]",
    "an array of arrays": b"[" + b"[1,2]," * 50_000 + b"[]]",
    "an array of arrays that are not short": b"[" + (b"[" + b"1," * 20 + b"1],") * 10_000 + b"[]]",
    "points in arrays of arrays": b"[" + b"[[[1.5,2.5],[1.5,2.5],[1.5,2.5],[1.5,2.5]]]," * 5_000 + b"[]]",
    "matrices": b"[" + b"[[1,2],[3,4]]," * 20_000 + b"[]]",
    "an object": b"{" + b",".join(b'"%d":{"a":[1]}' % n for n in range(20_000)) + b"}",
    "a string": b'"' + b"a" * 1_000_000 + b'"',
    "a string of escapes": b'"' + b"\\u00e9" * 100_000 + b'"',
    "spaces": b"[" + b" " * 500_000 + b"1" + b" " * 500_000 + b"]",
    "digits": b"1" * 1_000_000,
}


@pytest.mark.parametrize("text", LONG.values(), ids=LONG)
def test_json_that_is_long_is_json_and_without_its_end_is_none(text: bytes) -> None:
    assert is_json(text)
    if text[-1:] != b"1":
        assert not is_json(text[:-1])
    assert not is_json(text + b"]")
    assert not is_json(b"," + text)


def test_json_of_almost_nothing_but_brackets_is_given_up() -> None:
    text = b"[" + b"[[[1]]]," * 130_000 + b"1]"
    assert reference(text)
    assert not is_json(text)


@pytest.mark.parametrize("unit", [b"[", b'{"a":', b'[{"a":'], ids=repr)
def test_json_that_is_nested_deep_is_told_on_a_small_stack(unit: bytes) -> None:
    closing = b"".join({b"[": b"]", b"{": b"}"}[bytes([sign])] for sign in reversed(unit) if sign in b"[{")
    levels = 1 if unit != b'[{"a":' else 2
    found = []

    def check() -> None:
        most = MAX_DEPTH // levels
        found.append(is_json(unit * most + b"1" + closing * most))
        found.append(is_json(unit * (most + 5) + b"1" + closing * (most + 5)))
        found.append(is_json(unit * 100_000))
        found.append(is_json(unit * 100_000 + b"1" + closing * 100_000))

    before = threading.stack_size(131_072)
    try:
        thread = threading.Thread(target=check)
        thread.start()
        thread.join(60)
    finally:
        threading.stack_size(before)
    assert found == [True, False, False, False]


def test_json_check_lets_other_threads_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """No single match takes more than a bounded number of values; between two of them any thread may run."""
    longest = 0

    class Watched:
        def __init__(self, pattern: Any) -> None:
            self.match_ = pattern.match

        def match(self, text: bytes, at: int) -> Any:
            nonlocal longest
            found = self.match_(text, at)
            if found is not None:
                longest = max(longest, text.count(b",", at, found.end()))
            return found

    monkeypatch.setattr(json_check, "_RUN", {kind: Watched(pattern) for kind, pattern in json_check._RUN.items()})
    for text in LONG.values():
        assert is_json(text)
    assert 0 < longest < 2_100


CHARSETS = {
    "utf-8": "utf_8", "UTF8": "utf_8", "utf-16": "utf_16", "UTF-16LE": "utf_16_le", "us-ascii": "ascii", "ISO-8859-1": "latin_1",
    "latin1": "latin_1", "iso-8859-15": "iso8859_15", "windows-1252": "cp1252", "cp1251": "cp1251", "Shift_JIS": "shift_jis",
    "x-sjis": "shift_jis", "windows-31j": "cp932", "EUC-JP": "euc_jp", "euc-kr": "euc_kr", "gb2312": "gb2312", "GBK": "gbk",
    "gb18030": "gb18030", "big5": "big5", "koi8-r": "koi8_r", "koi8-u": "koi8_u",
    "punycode": "utf-8", "idna": "utf-8", "base64": "utf-8", "zip": "utf-8", "bz2": "utf-8", "hex": "utf-8", "rot13": "utf-8",
    "unicode_escape": "utf-8", "raw_unicode_escape": "utf-8", "utf-7": "utf-8", "undefined": "utf-8", "mbcs": "utf-8",
    "none-such": "utf-8", "": "utf-8", "charset" * 1_000: "utf-8",
}  # fmt: skip


@pytest.mark.parametrize(("charset", "name"), CHARSETS.items(), ids=[name[:20] for name in CHARSETS])
def test_charset_is_one_of_a_few_or_utf_8(charset: str, name: str) -> None:
    assert codec(charset) == name
    b"".decode(codec(charset))


def test_charsets_that_are_unknown_leave_nothing_behind() -> None:
    """Python remembers the name of every codec that it is asked for, and a backend could ask without end."""
    with running_gateway(
        {"plugins": {"normalize": {"format": "envelope"}}},
        {"orders": [answering(b"abc", headers=[("Content-Type", f"text/plain; charset=none-{n}")]) for n in range(5)]},
    ) as gateway:
        assert client(gateway).get("/orders").json == {"status_code": 200, "body": "abc"}
    assert not [name for name in encodings._cache if str(name).startswith("none")]  # type: ignore[attr-defined]
