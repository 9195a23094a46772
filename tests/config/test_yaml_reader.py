from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rgate.config.tree import Node, Report
from rgate.config.yaml_reader import MAX_DEPTH, MAX_VALUES, read
from rgate.errors import ConfigError

NO_KEY = "a key is not allowed here; put a string with ': ' in quotes, or fix the indentation here or in the line above"


def tree(text: str) -> Node:
    report = Report("config.yml")
    root = read(text.encode(), report)
    report.raise_if_any()
    return root


def complaint(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        tree(text)
    return str(caught.value)


def test_read_values_have_the_line_of_their_key_and_entries_their_own() -> None:
    root = tree("a:\n  - x: 1\n    y:\n      2\n  - z\nb: [p,\n  q]\n")
    places = {"".join(f".{part}" for part in node.path): node.line for node in root.walk()}
    assert places == {"": 1, ".a": 1, ".a.0": 2, ".a.0.x": 2, ".a.0.y": 3, ".a.1": 5, ".b": 6, ".b.0": 6, ".b.1": 7}


def test_read_types_are_the_plain_ones_and_dates_stay_text() -> None:
    assert tree("{i: 5, f: 1.5, t: yes, n: ~, s: '5', d: 2024-01-01, e: =, 7: x, on: y}").plain() == {
        "i": 5, "f": 1.5, "t": True, "n": None, "s": "5", "d": "2024-01-01", "e": "=", "7": "x", "on": "y",
    }  # fmt: skip


def test_read_duplicate_key_is_refused_with_both_lines() -> None:
    assert complaint("a:\n  b: 1\n  c: 2\n  b: 3\n") == "config.yml:4: a.b: the key 'b' is used twice; first on line 2"


def test_read_every_duplicate_key_is_reported() -> None:
    assert len(complaint("a: 1\na: 2\nb: 1\nb: 2\n").splitlines()) == 2


def test_read_alias_stands_for_its_anchor_and_merge_gives_way_to_own_keys() -> None:
    root = tree("base: &base {x: 1, y: 2}\nsame: *base\nmore:\n  <<: *base\n  y: 3\nboth: {<<: [{x: 9}, *base]}\n")
    assert root.plain()["same"] == {"x": 1, "y": 2}
    assert root.plain()["more"] == {"x": 1, "y": 3}
    assert root.plain()["both"] == {"x": 9, "y": 2}


def test_read_merge_of_no_mapping_is_a_problem() -> None:
    assert complaint("a:\n  <<: 5\n") == "config.yml:2: a: '<<' takes a mapping or a list of mappings"


def test_read_aliases_that_blow_up_are_bounded() -> None:
    bomb = "l0: &l0 [x, x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]\n" for n in range(1, 10))
    assert complaint(bomb) == f"config.yml: has more than {MAX_VALUES:,} values (aliases count each time they are used)"


def test_read_alias_within_its_own_anchor_is_refused() -> None:
    assert complaint("a: &a [*a]\n") == f"config.yml: is nested more than {MAX_DEPTH} levels deep"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "a: [1, 2\nb: 3\n",
            "config.yml:2: not valid YAML: a list or mapping in brackets is not closed: expected ',' or ']' (it begins on line",
        ),
        ("a:\n\t- b\n", "config.yml:2: not valid YAML: a tab in the indentation; indent with spaces"),
        ("a: b: c\n", f"config.yml:1: not valid YAML: {NO_KEY}"),
        ("r:\n  - a: 1\n     b: 2\n", f"config.yml:3: not valid YAML: {NO_KEY}"),
        (
            "r:\n  - a: 1\n    b: 2\n   c: 3\n",
            "config.yml:4: not valid YAML: wrong indentation: the entries of a list or mapping must begin in the same "
            "column (it begins on line 2)",
        ),
        ("a: 'b\nc: 1\n", "config.yml:3: not valid YAML: a string in quotes is not closed (it begins on line 1)"),
        ('a: "\\d"\n', "config.yml:1: not valid YAML: '\\d' is not a valid escape in double quotes; use single quotes"),
        ("a: @b\n", "config.yml:1: not valid YAML: a string cannot begin with '@'; put it in quotes"),
        ("a: *.example.com\n", "config.yml:1: not valid YAML: a string cannot begin with '*' or '&'; put it in quotes"),
        ("a: 1\nb\nc: 2\n", "config.yml:3: not valid YAML: a key without a ':' after it"),
        ("a: [1,,2]\n", "config.yml:1: not valid YAML: a value is missing before ','"),
        ("a: |x\n  b\n", "config.yml:1: not valid YAML: expected chomping or indentation indicators, but found 'x'"),
        ("a: 1\n---\nb: 2\n", "config.yml:2: not valid YAML: a second document begins here ('---'); a config is one document"),
        ("a: *nowhere\n", "config.yml:1: not valid YAML: '*nowhere' is an alias without its anchor"),
        ("a: 1\nb: \x01\n", "config.yml:2: not valid YAML: the character U+0001 is not allowed"),
        (
            "a: !!python/object:os.system x\n",
            "config.yml:1: a: the tag '!!python/object:os.system' is not supported; leave it out",
        ),
        ("a: !secret x\n", "config.yml:1: a: the tag '!secret' is not supported; leave it out"),
        ("a: !!binary aGk=\n", "config.yml:1: a: the tag '!!binary' is not supported; leave it out"),
        ("a: !!int x\n", "config.yml:1: a: 'x' is not a value of the type int"),
        ("a:\n  ? [x]\n  : y\n", "config.yml:2: a: a key must be a plain string"),
    ],
)
def test_read_what_is_no_yaml_for_a_config_is_said_in_words(text: str, message: str) -> None:
    assert complaint(text).startswith(message)


@given(st.text(max_size=60))
def test_read_any_text_gives_a_mapping_or_a_config_error(text: str) -> None:
    report = Report("config.yml")
    try:
        root = read(text.encode("utf-8", "replace"), report)
    except ConfigError:
        return
    assert isinstance(root.value, dict)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_node_find_and_cut_agree_with_plain_values(value: object) -> None:
    def node(value: object, path: tuple[str | int, ...]) -> Node:
        if isinstance(value, dict):
            return Node(path, 1, {key: node(below, (*path, key)) for key, below in value.items()})
        if isinstance(value, list):
            return Node(path, 1, [node(below, (*path, index)) for index, below in enumerate(value)])
        return Node(path, 1, value)

    root = node(value, ())
    assert root.plain() == value
    for found in list(root.walk()):
        assert root.find(found.path) == (found, ())
        assert root.find((*found.path, "absent", 0)) in ((found, ("absent", 0)), (root.find((*found.path, "absent"))[0], (0,)))
    for found in reversed(list(root.walk())):
        assert (root.drop(found.path) is None) == (found.path == ())
    assert not root.plain() or not isinstance(value, dict | list)
