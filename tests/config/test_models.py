from __future__ import annotations

import pytest

from rgate.config.models import Config, Route

from .configs import ONE_BACKEND, loaded, problems


def route(keys: str) -> Route:
    return loaded(f"{ONE_BACKEND}routes: [{{backend: orders, {keys}}}]").routes[0]


def route_problem(keys: str) -> str:
    (found,) = problems(f"{ONE_BACKEND}routes: [{{backend: orders, {keys}}}]")
    return found.removeprefix("config.yml:2: routes[0].")


@pytest.mark.parametrize(
    "prefix", ["/", "/api", "/api/", "/a-b_c.d~e", "/a%2Fb", "/a;v=1/b", "/@x/:y/a,b", "/%C3%A4", "/.well-known"]
)
def test_path_prefix_in_canonical_form_is_kept_without_a_slash_at_the_end(prefix: str) -> None:
    assert route(f"path_prefix: '{prefix}'").path_prefix == prefix.rstrip("/")


@pytest.mark.parametrize(
    ("prefix", "message"),
    [
        ("", "must begin with '/'; found ''"),
        ("api", "must begin with '/'; found 'api'"),
        ("http://x/api", "must begin with '/'; found 'http://x/api'"),
        ("/api?x=1", "is a path and cannot have a query; remove everything from '?' on"),
        ("/api#x", "is a path and cannot have a fragment; remove everything from '#' on"),
        ("/a//b", "must be in canonical form, '/a/b'"),
        ("/api//", "must be in canonical form, '/api/'"),
        ("/%61pi", "must be in canonical form, '/api'"),
        ("/a/../b", "no request can have this path: dot segment in the path"),
        ("/a/.", "must be in canonical form, '/a/'"),
        ("/a%2fb", "must be in canonical form, '/a%2Fb'"),
        ("/a/%2e%2E/b", "no request can have this path: dot segment in the path"),
        ("/a%2", "no request can have this path: malformed escape in the path"),
        ("/a%zz", "no request can have this path: malformed escape in the path"),
        ("/a%00", "no request can have this path: malformed escape in the path"),
        ("/a b", "no request can have this path: only visible ASCII is allowed in a path, anything else as %XX"),
        ("/ä", "no request can have this path: only visible ASCII is allowed in a path, anything else as %XX"),
        ("/a\\b", "no request can have this path: only visible ASCII is allowed in a path, anything else as %XX"),
    ],
)
def test_path_prefix_that_no_request_can_match_is_a_problem(prefix: str, message: str) -> None:
    assert route_problem(f"path_prefix: '{prefix}'") == f"path_prefix: {message}"


def test_host_is_one_name_or_a_list_and_lower_case() -> None:
    assert route("path_prefix: /, host: API.Example").hosts == ("api.example",)
    assert route("path_prefix: /, host: [a.example, '[2001:DB8:0::1]', 127.0.0.1]").hosts == (
        "a.example",
        "[2001:db8::1]",
        "127.0.0.1",
    )


@pytest.mark.parametrize("host", ["http://a.example", "a.example:80", "*.example", "a b", "", "a/b", ".a", "a.", "::1"])
def test_host_that_is_more_than_a_name_is_a_problem(host: str) -> None:
    assert route_problem(f"path_prefix: /, host: ['{host}']").startswith(f"host[0]: {host!r} is not a host name")


def test_host_that_is_no_ascii_or_no_address_is_a_problem() -> None:
    assert route_problem("path_prefix: /, host: ['bücher.example']") == (
        "host[0]: 'bücher.example' must be written in its xn-- form, as it is sent"
    )
    assert route_problem("path_prefix: /, host: ['[::x]']") == "host[0]: '[::x]' is not an IPv6 address"


def test_methods_are_upper_case_tokens() -> None:
    assert route("path_prefix: /, methods: [get, M-SEARCH]").methods == ("GET", "M-SEARCH")
    assert route_problem("path_prefix: /, methods: ['GE T']") == "methods[0]: 'GE T' is not an HTTP method"
    assert route_problem("path_prefix: /, methods: GET") == "methods: expected a list, found 'GET'; write [GET]"


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ("{X-Version: 2}", "headers.X-Version: expected text, found 2; put it in quotes"),
        ("{'a b': x}", "headers: 'a b' is not a header name"),
        ("{X_Version: x}", "headers: 'X_Version' never matches: headers whose name has an underscore are dropped"),
        ("{X-A: ''}", "headers: the value of 'X-A' never matches"),
        ("{X-A: ' x'}", "headers: the value of 'X-A' never matches"),
        ('{X-A: "a\\nb"}', "headers: the value of 'X-A' never matches"),
        ("{X-A: a, x-a: b}", "headers: 'X-A' and 'x-a' are the same header"),
    ],
)
def test_header_that_never_matches_is_a_problem(headers: str, message: str) -> None:
    assert route_problem(f"path_prefix: /, headers: {headers}").startswith(message)


@pytest.mark.parametrize("label", ["app", "=x", "", "app = x", " app=x"])
def test_label_that_is_not_name_equals_value_is_a_problem(label: str) -> None:
    (found,) = problems(f"backends: [{{name: b, match_labels: ['{label}']}}]")
    assert found == (
        f"config.yml:1: backends[0].match_labels[0]: {label!r} is not a label; write name=value, without spaces around the '='"
    )


def test_label_may_have_an_empty_value_or_another_equals_sign() -> None:
    labels = (("a", ""), ("b", "c=d"), ("com.example/x", "ü y"))
    assert loaded("backends: [{name: b, match_labels: ['a=', 'b=c=d', 'com.example/x=ü y']}]").backends[0].match_labels == labels


def test_label_with_two_values_is_a_problem() -> None:
    (found,) = problems("backends: [{name: b, match_labels: [env=a, env=b, env=a]}]")
    assert found == "config.yml:1: backends[0].match_labels: no container has both 'env=a' and 'env=b'"


@pytest.mark.parametrize("name", ["''", "' a'", "'a '", '"a\\nb"', "'" + "x" * 201 + "'"])
def test_name_that_cannot_be_read_in_a_table_is_a_problem(name: str) -> None:
    (found,) = problems(f"backends: [{{name: {name}, match_labels: [a=b]}}]")
    assert found.startswith("config.yml:1: backends[0].name: a name is 1 to 200 printable characters")


@pytest.mark.parametrize("value", ["true", "no"])
def test_truth_value_is_no_number(value: str) -> None:
    found = problems(f"server:\n  port: {value}\n  head_seconds: {value}\n")
    assert [line.partition("found")[0] for line in found] == [
        "config.yml:2: server.port: expected a whole number, ",
        "config.yml:3: server.head_seconds: expected a number, ",
    ]


@pytest.mark.parametrize("seconds", ["0", "-1", ".inf", ".nan", "86401"])
def test_seconds_are_above_zero_and_at_most_a_day(seconds: str) -> None:
    assert len(problems(f"server: {{head_seconds: {seconds}}}")) == 1


@pytest.mark.parametrize("media_type", ["html", "text/", "text/html\\nX: y", ""])
def test_content_type_must_be_a_media_type(media_type: str) -> None:
    (found,) = problems(f'default_response: {{content_type: "{media_type}"}}')
    assert "is not a media type; write one like 'text/html; charset=utf-8'" in found


def test_models_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Config().server.port = 1


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("strip_prefix: 'yes'", "strip_prefix: expected true or false, found 'yes'; write true"),
        ("strip_prefix: 'on'", "strip_prefix: expected true or false, found 'on'; write true"),
        ("strip_prefix: 1", "strip_prefix: expected true or false, found 1"),
        ("timeouts: {connect_seconds: 10s}", "timeouts.connect_seconds: expected a number, found '10s'; {s}, so write 10"),
        ("timeouts: {connect_seconds: 500 ms}", "timeouts.connect_seconds: expected a number, found '500 ms'; {s}, so write 0.5"),
        ("timeouts: {connect_seconds: 1m}", "timeouts.connect_seconds: expected a number, found '1m'; {s}, so write 60"),
        ("timeouts: {connect_seconds: soon}", "timeouts.connect_seconds: expected a number, found 'soon'; {s}"),
        ("max_body_bytes: 10MB", "max_body_bytes: expected a whole number, found '10MB'; {b}, so write 10000000"),
        ("max_body_bytes: 10MiB", "max_body_bytes: expected a whole number, found '10MiB'; {b}, so write 10485760"),
        ("max_body_bytes: 8k", "max_body_bytes: expected a whole number, found '8k'; {b}, so write 8192"),
    ],
)
def test_value_of_another_type_has_the_way_out(text: str, problem: str) -> None:
    problem = problem.replace("{s}", "it is a number of seconds").replace("{b}", "it is a number of bytes")
    assert problems(f"{ONE_BACKEND}routes: [{{path_prefix: /a, backend: orders, {text}}}]") == [
        f"config.yml:2: routes[0].{problem}"
    ]


def test_flag_may_come_from_a_variable() -> None:
    text = f"{ONE_BACKEND}routes: [{{path_prefix: /a, backend: orders, strip_prefix: '${{STRIP:-true}}'}}]"
    assert loaded(text).routes[0].strip_prefix is True
    assert loaded(text, environ={"STRIP": "false"}).routes[0].strip_prefix is False
    (found,) = problems(text, environ={"STRIP": "yes"})
    assert found == "config.yml:2: routes[0].strip_prefix: expected true or false, found '${STRIP:-true}'"


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        ("[app_name: a]", "match_labels[0]: expected text, found a mapping; write app_name=a"),
        ("[a=b, {port: 80}]", "match_labels[1]: expected text, found a mapping; write port=80"),
        ("{app_name: a, env: b}", "match_labels: expected a list, found a mapping; write [app_name=a, env=b]"),
    ],
)
def test_labels_written_as_a_mapping_have_the_way_out(labels: str, problem: str) -> None:
    assert problems(f"backends: [{{name: a, match_labels: {labels}}}]") == [f"config.yml:1: backends[0].{problem}"]


@pytest.mark.parametrize(
    ("prefix", "pattern", "plain"),
    [
        ("/api/.*", ".*", "/api"),
        ("/api.*", ".*", "/api"),
        ("/api/*", "*", "/api"),
        ("/*", "*", "/"),
        ("^/api", "^", "/api"),
        ("^/api/v[12]/", "^", "/api"),
        ("~ ^/api", "~", "/api"),
        ("/users/{id}", "{id}", "/users"),
        ("/users/{id}/orders", "{id}", "/users"),
        ("/v[0-9]+/x", "[0-9]", "/"),
        ("/(?:a|b)/x", "(?", "/"),
        ("/a|/b", "|", "/"),
        ("/api$", "$", "/api"),
        ("*", "*", "/"),
    ],
)
def test_path_prefix_that_looks_like_a_pattern_is_refused_with_the_way_out(prefix: str, pattern: str, plain: str) -> None:
    (found,) = problems(f"{ONE_BACKEND}routes: [{{path_prefix: '{prefix}', backend: orders}}]")
    assert found == (
        f"config.yml:2: routes[0].path_prefix: is a prefix, not a pattern: {pattern!r} would be taken literally;"
        f" write {plain}, which also matches all paths below it"
    )


@pytest.mark.parametrize("prefix", ["/$metadata", "/c++", "/a(1)", "/~user", "/a.b", "/a,b;c=d", "/@scope", "/a!b'c"])
def test_path_prefix_with_odd_characters_is_good(prefix: str) -> None:
    text = f'{ONE_BACKEND}routes: [{{path_prefix: "{prefix}", backend: orders}}]'
    assert loaded(text).routes[0].path_prefix == prefix


@pytest.mark.parametrize(
    ("host", "taken"),
    [("[::1]", "::1"), ("::1", "::1"), ("::", "::"), ("0.0.0.0", "0.0.0.0"), ("", ""), ("localhost", "localhost")],
)
def test_listen_host_is_taken_as_people_write_it(host: str, taken: str) -> None:
    assert loaded(f"server: {{host: '{host}'}}").server.host == taken


@pytest.mark.parametrize("host", ["http://127.0.0.1", "127.0.0.1:80", "a b", "[::1]:80", "*"])
def test_listen_host_that_is_none_is_a_problem(host: str) -> None:
    (found,) = problems(f"server: {{host: '{host}'}}")
    assert found.startswith("config.yml:1: server.host: ") and "write" in found


def test_warnings_name_what_is_not_used() -> None:
    backends = "backends:\n" + "".join(f"  - {{name: {name}, endpoints: ['http://127.0.0.1:9']}}\n" for name in "ab")
    assert list(map(str, loaded(f"{backends}routes: [{{path_prefix: /, backend: a}}]").warnings)) == [
        "config.yml:3: backends[1]: no route leads to 'b', so it is not used"
    ]
    assert str(loaded(f"{backends}server: {{}}").warnings[0]) == (
        "config.yml:1: routes: there are no routes, so every request gets the default_response"
    )
