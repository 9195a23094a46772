"""Docstrings, comments, messages and pages use plain constructions. Each hit is shown with its line and a way out.

`python -m tests.meta.test_prose PATH…` lists the hits in other files, those of the tests for example.
"""

from __future__ import annotations

import ast
import bisect
import io
import re
import sys
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from .source import FILES, ROOT

BANNED = {
    r"(?<![Tt]here )\b(?:is|are|was|were) no (?!longer|more|less|later|larger|other|one\b)": "say 'is not a'",
    r"(?<![Tt]here )\b(?:is|are|was|were) none\b(?! of)": "say 'is not one'",
    r"\b(?:[Ww]hoever|[Ww]homever|[Ss]omebody|[Nn]obody|[Ee]verybody)\b": "name the role: client, operator, caller",
    r"\banew\b": "say 'again'",
    r"\bat hand\b": "say 'available' or 'buffered'",
    r"\bof late\b": "say 'recently'",
    r"\bin force\b": "say 'active' or 'current'",
    r"\bmeans nothing\b": "say 'has no effect'",
}
OBJECT_CLAUSE = r"\A(?:# )?(?:What|Who|Whom|Whatever|That which)\b(?!.*\?$)"
WAYS_OUT = {re.compile(pattern): way_out for pattern, way_out in BANNED.items()}
STARTS = {re.compile(OBJECT_CLAUSE): "begin with the subject or the verb"}

PAGES = sorted([ROOT / "README.md", ROOT / "tests" / "README.md", *(ROOT / "docs").glob("*.md")])
LITERALS = {tokenize.STRING, tokenize.COMMENT, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}


def hits(text: str, first_line: int, patterns: dict[re.Pattern[str], str]) -> Iterator[tuple[int, str]]:
    """Line and message of each hit. A construction may go over the end of a line."""
    words = list(re.finditer(r"\S+", text))
    joined = " ".join(word[0] for word in words)
    begins = [0]
    for word in words:
        begins.append(begins[-1] + len(word[0]) + 1)
    for pattern, way_out in patterns.items():
        for hit in pattern.finditer(joined):
            word = words[bisect.bisect_right(begins, hit.start()) - 1]
            shown = " ".join(joined[hit.start() :].split(" ", 8)[:8])
            yield first_line + text.count("\n", 0, word.start()), f"{shown!r}: {way_out}"


def hits_in_python(source: str) -> Iterator[tuple[int, str]]:
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in LITERALS:
            yield from hits(token.string, token.start[0], WAYS_OUT)
        if token.type == tokenize.COMMENT:
            yield from hits(token.string, token.start[0], STARTS)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node, clean=False)
            if docstring:
                yield from hits(docstring, node.body[0].lineno, STARTS)


def hits_in_markdown(source: str) -> Iterator[tuple[int, str]]:
    """Code is not prose: what stands in fences or backticks is left out."""
    prose = re.sub(r"^```.*?^```", lambda fence: "\n" * fence[0].count("\n"), source, flags=re.MULTILINE | re.DOTALL)
    prose = re.sub(r"`[^`]*`", lambda code: "`" + "\n" * code[0].count("\n"), prose)
    yield from hits(prose, 1, WAYS_OUT)


def listed(path: Path) -> list[str]:
    """The hits in a file, as file:line: message."""
    source = path.read_text()
    found = hits_in_python(source) if path.suffix == ".py" else hits_in_markdown(source)
    shown = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
    return [f"{shown}:{line}: {message}" for line, message in sorted(set(found))]


@pytest.mark.parametrize("name", FILES)
def test_module_is_in_plain_words(name: str) -> None:
    found = listed(FILES[name])
    assert not found, "\n".join(found)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_page_is_in_plain_words(path: Path) -> None:
    found = listed(path)
    assert not found, "\n".join(found)


def test_every_banned_construction_is_found_where_it_is() -> None:
    text = (
        "this is\nno socket. There is no other, it is no longer one,\nand it is none. Nobody reads\n"
        "anew what is at hand of late or\nin force, which means nothing"
    )
    assert [line for line, _ in sorted(hits(text, 10, WAYS_OUT))] == [10, 12, 12, 13, 13, 13, 14, 14]
    code = '"""What it is."""\n# Who asks\nx = "is no port"\n\ndef asked():\n    """Whether it was asked."""  # What for?\n'
    assert [line for line, _ in sorted(hits_in_python(code))] == [1, 2, 3]
    assert [line for line, _ in hits_in_markdown("is `in force`\n```\nanew\n```\nanew\n")] == [5]


def main(paths: Iterable[str]) -> None:
    files = [file for path in map(Path, paths) for file in (sorted(path.rglob("*.py")) if path.is_dir() else [path])]
    found = [hit for file in files for hit in listed(file.resolve())]
    print(*found, f"{len(found)} found", sep="\n")


if __name__ == "__main__":
    main(sys.argv[1:])
