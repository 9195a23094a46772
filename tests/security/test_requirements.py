"""README.md beside this file names tests that there are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

HERE = Path(__file__).parent
NAMED = re.findall(r"`([\w/]+\.py)::(test_\w+)`", (HERE / "README.md").read_text(encoding="utf-8"))


@pytest.mark.parametrize(("path", "name"), sorted(set(NAMED)), ids=lambda part: str(part))
def test_requirement_names_a_test_that_there_is(path: str, name: str) -> None:
    assert f"\ndef {name}(" in (HERE.parent / path).read_text(encoding="utf-8"), f"{path} has no {name}"


def test_requirements_are_all_tested() -> None:
    rows = [line for line in (HERE / "README.md").read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    untested = [row for row in rows if "::test_" not in row and not row.startswith("| requirement |")]
    assert len(rows) > 40 and not untested, untested
