from __future__ import annotations

import pytest

from .configs import loaded, problems

ENVIRON = {"BODY": "hello", "EMPTY": "", "PORT": "9001", "YAML": "x}\nserver: {port: 1}"}


@pytest.mark.parametrize(
    ("text", "body"),
    [
        ("${BODY}", "hello"),
        ("<${BODY}-${BODY}>", "<hello-hello>"),
        ("${ABSENT:-fallback}", "fallback"),
        ("${ABSENT:-}", ""),
        ("${EMPTY:-fallback}", "fallback"),
        ("${EMPTY}", ""),
        ("${BODY:-fallback}", "hello"),
        ("${ABSENT:-a:-b c}", "a:-b c"),
        ("$${BODY}", "${BODY}"),
        ("$$${BODY}", "$${BODY}"),
        ("$BODY $ {BODY} $$", "$BODY $ {BODY} $$"),
        ("${YAML}", ENVIRON["YAML"]),
    ],
)
def test_variable_in_a_text_is_put_in(text: str, body: str) -> None:
    assert loaded(f"default_response:\n  body: '{text}'\n", environ=ENVIRON).default_response.body == body


def test_variable_can_be_a_number() -> None:
    assert loaded("server: {port: '${PORT}', threads: '${THREADS:-4}'}", environ=ENVIRON).server.port == 9001


def test_variable_in_a_key_is_left_alone() -> None:
    assert problems("${BODY}: 1", environ=ENVIRON)[0].startswith("config.yml:1: ${BODY}: unknown key '${BODY}'")


def test_variable_that_is_not_set_is_a_problem_at_its_place() -> None:
    assert problems("server:\n  host: x\ndefault_response:\n  body: a ${ABSENT}\n", environ=ENVIRON) == [
        "config.yml:4: default_response.body: the environment variable ABSENT is not set; set it, or write ${ABSENT:-default}"
    ]


@pytest.mark.parametrize(
    "text",
    ["server: {port: '${ABSENT}'}", "backends: [{name: '${ABSENT}', endpoints: ['http://127.0.0.1:9']}]", "routes: '${ABSENT}'"],
    ids=["number", "required", "list"],
)
def test_variable_that_is_not_set_is_told_once(text: str) -> None:
    (found,) = problems(text, environ=ENVIRON)
    assert "the environment variable ABSENT is not set" in found


def test_variables_of_a_list_that_are_not_set_are_each_told_at_their_line() -> None:
    labels = "backends:\n  - name: a\n    match_labels:\n      - ${A}\n      - a=b\n      - ${B}\n      - ${C:-c=d}\n      - e\n"
    assert [line.partition(": the env")[0] for line in problems(labels, environ=ENVIRON)] == [
        "config.yml:4: backends[0].match_labels[0]",
        "config.yml:6: backends[0].match_labels[2]",
        "config.yml:8: backends[0].match_labels[4]: 'e' is not a label; write name=value, without spaces around the '='",
    ]


@pytest.mark.parametrize("text", ["${", "${}", "${1}", "${a b}", "${BODY", "${BODY:+x}", "${BODY-x}"])
def test_variable_that_is_malformed_is_a_problem(text: str) -> None:
    (found,) = problems(f"default_response: {{body: '{text}'}}", environ=ENVIRON)
    assert "'${' does not begin a variable here; write ${NAME}, ${NAME:-default}, or $${" in found


def test_variables_value_is_not_printed() -> None:
    found = problems("server: {port: '${BODY}'}\nbackends: [{name: ok, endpoints: ['${BODY}']}]", environ=ENVIRON)
    assert found[0] == "config.yml:1: server.port: expected a whole number, found '${BODY}'"
    assert not any("hello" in line for line in found)
