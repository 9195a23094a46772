"""The charsets of text that `normalize` decodes.

Python has more codecs than there are charsets: punycode takes time quadratic in the length, others decompress, or interpret
escapes. The charset is chosen by the backend, or by the author of a file that it serves. So only the codecs below are used. Each
takes linear time (some 20 ms for a MiB of the worst input), and Python is never asked for any other name, because it caches every
name.
"""

from __future__ import annotations

from collections.abc import Iterator
from encodings import normalize_encoding
from encodings.aliases import aliases
from typing import Final

__all__ = ["codec"]

_CODECS: Final = frozenset(
    {"ascii", "utf_8", "utf_16", "utf_16_be", "utf_16_le", "latin_1", "shift_jis", "cp932", "euc_jp", "euc_kr", "cp949"}
    | {"gb2312", "gbk", "gb18030", "big5", "big5hkscs", "koi8_r", "koi8_u", "tis_620", "cp874"}
    | {f"iso8859_{part}" for part in range(2, 17) if part != 12}
    | {f"cp125{page}" for page in range(9)}
)


def _names() -> Iterator[tuple[str, str]]:
    yield "windows_31j", "cp932"
    for name in _CODECS:
        yield name, name
    for alias, name in aliases.items():
        if name in _CODECS:
            yield alias, name


_BY_NAME: Final = dict(_names())


def codec(charset: str) -> str:
    """Python's codec name for a charset; "utf-8" for an unknown one."""
    name = normalize_encoding(charset[:40]).lower()
    return _BY_NAME.get(name) or _BY_NAME.get(name.removeprefix("x_")) or "utf-8"
