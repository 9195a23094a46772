"""The parts of the grammar that several modules use."""

from __future__ import annotations

import re

import pytest

from rgate.http1.grammar import (
    BODILESS_STATUSES,
    CONTENTLESS_STATUSES,
    IDEMPOTENT_METHODS,
    SAFE_METHODS,
    TCHAR,
    bracket_host,
    environ_key,
    is_token,
    unbracket_host,
)

DELIMITERS = frozenset(b'"(),/:;<=>?@[\\]{}')  # RFC 9110 §5.6.2


@pytest.mark.parametrize("byte", range(256))
def test_token_has_every_visible_character_but_delimiters(byte: int) -> None:
    expected = 0x21 <= byte <= 0x7E and byte not in DELIMITERS
    assert is_token(chr(byte)) is expected
    assert (re.fullmatch(TCHAR, bytes([byte])) is not None) is expected


@pytest.mark.parametrize("text", ["", "a b", "a\n", "\na", "a:"])
def test_text_with_anything_else_is_not_a_token(text: str) -> None:
    assert not is_token(text)


@pytest.mark.parametrize(
    ("name", "key"),
    {
        "X-Api-Key": "HTTP_X_API_KEY",
        "host": "HTTP_HOST",
        "Content-Type": "CONTENT_TYPE",
        "content-length": "CONTENT_LENGTH",
        "Content-Type-X": "HTTP_CONTENT_TYPE_X",
    }.items(),
)
def test_environ_key_is_that_of_pep_3333(name: str, key: str) -> None:
    assert environ_key(name) == key


def test_only_an_ipv6_address_is_bracketed() -> None:
    assert [bracket_host(host) for host in ("::1", "[::1]", "127.0.0.1", "x.example")] == [
        "[::1]",
        "[::1]",
        "127.0.0.1",
        "x.example",
    ]
    assert [unbracket_host(host) for host in ("[::1]", "::1", "x.example", "")] == ["::1", "::1", "x.example", ""]


def test_sets_of_methods_and_statuses_contain_each_other() -> None:
    assert SAFE_METHODS < IDEMPOTENT_METHODS and "POST" not in IDEMPOTENT_METHODS and "PATCH" not in IDEMPOTENT_METHODS
    assert BODILESS_STATUSES < CONTENTLESS_STATUSES
