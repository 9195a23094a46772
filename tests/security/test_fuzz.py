"""The fuzz targets hold for all of their corpus, and for what hypothesis makes of it. Neither needs atheris."""

from __future__ import annotations

import importlib
import tomllib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ..meta.source import ROOT

FUZZ = ROOT / "fuzz"
TARGETS = sorted({path.stem for path in FUZZ.glob("*.py")} - {"__init__", "run"})


def target(name: str) -> Callable[[bytes], None]:
    one: Callable[[bytes], None] = importlib.import_module(f"fuzz.{name}").one
    return one


def test_every_target_has_a_corpus_and_is_described() -> None:
    assert {path.name for path in (FUZZ / "corpus").iterdir()} == set(TARGETS)
    readme = (FUZZ / "README.md").read_text(encoding="utf-8")
    assert [name for name in TARGETS if f"| `{name}` |" not in readme] == []


def test_extra_that_the_page_names_is_there() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert "rgate[fuzz]" in (FUZZ / "README.md").read_text(encoding="utf-8")
    assert any(needed.startswith("atheris") for needed in project["optional-dependencies"]["fuzz"])


@pytest.mark.parametrize("name", TARGETS)
def test_target_holds_for_its_corpus(name: str) -> None:
    one = target(name)
    files = sorted((FUZZ / "corpus" / name).iterdir())
    assert files
    for path in files:
        try:
            one(path.read_bytes())
        except Exception as error:
            raise AssertionError(f"{path}: {error}") from error


@pytest.mark.parametrize("name", TARGETS)
@given(st.data())
def test_target_holds_for_pieces_of_its_corpus(name: str, data: st.DataObject) -> None:
    inputs = [path.read_bytes() for path in sorted((FUZZ / "corpus" / name).iterdir())]
    piece = st.sampled_from(inputs).flatmap(
        lambda whole: st.tuples(st.integers(0, len(whole)), st.integers(0, len(whole))).map(
            lambda ends: whole[min(ends) : max(ends)]
        )
    )
    target(name)(b"".join(data.draw(st.lists(piece | st.binary(max_size=4), max_size=4))))
