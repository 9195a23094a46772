from __future__ import annotations

from enum import Enum
from typing import Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, model_validator

from rgate.config.tree import Report
from rgate.config.validation import validate
from rgate.config.yaml_reader import read
from rgate.errors import ConfigError


class Colour(Enum):
    RED = "red"
    GREEN = "green"


class Inner(BaseModel):
    size: int = Field(default=1, ge=1, le=10)
    label: str = Field(default="x", min_length=1, max_length=3, pattern="^[a-z]*$")


class Options(BaseModel):
    inner: Inner = Inner()
    inners: list[Inner] = []
    named: dict[str, Inner] = {}
    maybe: Inner | None = None
    either: int | Inner | None = None
    number: float = Field(default=1.0, gt=0, lt=5, allow_inf_nan=False)
    steps: int = Field(default=5, multiple_of=5)
    switch: bool = False
    word: Literal["fast", "slow"] = "fast"
    colour: Colour = Colour.RED
    words: tuple[str, ...] = Field(default=(), max_length=2)
    short: str = Field(default="", alias="s")
    by_both: int = Field(default=0, validation_alias="bb")

    @model_validator(mode="after")
    def _no_slow_red(self) -> Options:
        if self.word == "slow" and self.switch:
            raise ValueError("slow cannot be switched on")
        return self


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")
    a: int = 0
    inner: Inner = Inner()


class Needing(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str
    size: int = 0


class Several(BaseModel):
    model_config = ConfigDict(extra="forbid")
    entries: tuple[Needing, ...] = ()


def check(model: type[BaseModel], text: str) -> tuple[Any, list[str]]:
    report = Report("f")
    instance = validate(model, read(text.encode(), report), report)
    try:
        report.raise_if_any()
    except ConfigError as error:
        return instance, [line.removeprefix("f:") for line in str(error).splitlines()]
    return instance, []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("inner: 5", "1: inner: expected a mapping (key: value), found 5"),
        ("inner: {size: many}", "1: inner.size: expected a whole number, found 'many'"),
        ("inner: {size: 1.5}", "1: inner.size: expected a whole number, found 1.5"),
        ("inner: {size: 0}", "1: inner.size: expected at least 1, found 0"),
        ("inner: {size: 11}", "1: inner.size: expected at most 10, found 11"),
        ("inner: {size: [1]}", "1: inner.size: expected a whole number, found a list"),
        ("inner: {label: 5}", "1: inner.label: expected text, found 5; put it in quotes"),
        ("inner: {label: yes}", "1: inner.label: expected text, found true; put it in quotes"),
        ("inner: {label: }", "1: inner.label: expected text, found nothing; fill it in or leave the key out"),
        ("inner: {label: ''}", "1: inner.label: expected a length of at least 1, found ''"),
        ("inner: {label: abcd}", "1: inner.label: expected a length of at most 3, found 'abcd'"),
        ("inner: {label: '9'}", "1: inner.label: expected text like ^[a-z]*$, found '9'"),
        ("inner: {lable: x}", "1: inner.lable: unknown key 'lable'; did you mean 'label'?"),
        ("inners: {a: 1}", "1: inners: expected a list, found a mapping"),
        ("inners:\n- size: 1\n- size: x", "3: inners[1].size: expected a whole number, found 'x'"),
        ("inners:\n- size: 1\n- zzz: x", "3: inners[1].zzz: unknown key 'zzz'; the keys here are label, size"),
        ("named: {a: {sise: 1}}", "1: named.a.sise: unknown key 'sise'; did you mean 'size'?"),
        ("maybe: {sise: 1}", "1: maybe.sise: unknown key 'sise'; did you mean 'size'?"),
        ("maybe: 5", "1: maybe: expected a mapping (key: value), found 5"),
        ("either: {size: 20}", None),
        ("either: [1]", "1: either: expected a whole number or a mapping (key: value), found a list"),
        ("number: .nan", "1: number: expected a finite number, found nan"),
        ("number: 0", "1: number: expected more than 0, found 0"),
        ("number: 5", "1: number: expected less than 5, found 5"),
        ("number: x", "1: number: expected a number, found 'x'"),
        ("steps: 7", "1: steps: expected a multiple of 5, found 7"),
        ("switch: maybe", "1: switch: expected true or false, found 'maybe'"),
        ("word: fats", "1: word: expected 'fast' or 'slow', found 'fats'; did you mean 'fast'?"),
        ("colour: rde", "1: colour: expected 'red' or 'green', found 'rde'; did you mean 'red'?"),
        ("words: one", "1: words: expected a list, found 'one'; write [one]"),
        ("words: [a, b, c]", "1: words: expected a length of at most 2, found a list"),
        ("short: x", "1: short: unknown key 'short'; the keys here are bb, colour, either, "),
        ("{word: slow, switch: true}", "1: slow cannot be switched on"),
        ("nubmer: 3", "1: nubmer: unknown key 'nubmer'; did you mean 'number'?"),
    ],
)
def test_validate_mistake_is_said_in_plain_words(text: str, words: str | None) -> None:
    _, found = check(Options, text)
    if words is None:
        assert found
    else:
        assert len(found) == 1
        assert found[0].startswith(words)


def test_validate_good_options_give_an_instance_and_no_problem() -> None:
    instance, found = check(Options, "{inner: {size: 3}, s: ok, bb: 2, either: 5, named: {a: {label: x}}, words: [a]}")
    assert found == []
    assert (instance.inner.size, instance.short, instance.by_both, instance.either) == (3, "ok", 2, 5)


def test_validate_model_that_allows_more_keys_is_given_them() -> None:
    instance, found = check(Open, "{a: 1, b: 2, inner: {zize: 1}}")
    assert instance.b == 2
    assert found == ["1: inner.zize: unknown key 'zize'; did you mean 'size'?"]


def test_validate_wrong_options_leave_their_defaults_and_the_rest_is_checked() -> None:
    instance, found = check(Options, "{inner: {size: x, label: 5}, number: 9, switch: true, word: slow, wrod: 1}")
    assert instance is None  # what is wrong as a whole cannot be left out
    assert len(found) == 5


def test_validate_wrong_required_option_takes_its_entry_with_it_and_nothing_else() -> None:
    text = "entries:\n- {name: a}\n- {size: 1}\n- {name: 5, size: x}\n- {name: d, size: y}\n- 7\n- {name: f}"
    instance, found = check(Several, text)
    assert [(entry.name, entry.size) for entry in instance.entries] == [("a", 0), ("d", 0), ("f", 0)]
    assert found == [
        "3: entries[1].name: is missing",
        "4: entries[2].name: expected text, found 5; put it in quotes",
        "4: entries[2].size: expected a whole number, found 'x'",
        "5: entries[3].size: expected a whole number, found 'y'",
        "6: entries[4]: expected a mapping (key: value), found 7",
    ]


def test_validate_long_text_is_cut_in_the_message() -> None:
    _, (found,) = check(Options, f"switch: {'x' * 500}")
    assert len(found) < 120
