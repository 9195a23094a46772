from __future__ import annotations

import pytest

from .configs import ONE_BACKEND, loaded, problems


def names(routes: str) -> list[str | None]:
    return [route.name for route in loaded(f"{ONE_BACKEND}routes:\n{routes}").routes]


def test_route_name_is_its_prefix_unless_it_has_one() -> None:
    assert names("- {path_prefix: /a, backend: orders}\n- {path_prefix: /a/b, backend: orders, name: mine}") == ["/a", "mine"]


def test_route_names_of_one_prefix_say_what_else_is_asked_for() -> None:
    assert names("""
- {path_prefix: /a, backend: orders}
- {path_prefix: /a, backend: orders, host: [x.example, y.example]}
- {path_prefix: /a, backend: orders, methods: [get, put]}
- {path_prefix: /a, backend: orders, host: x.example, headers: {X-Version: "2"}}
- {path_prefix: /a, backend: orders, headers: {Authorization: Bearer 123}}
""") == ["/a", "/a [host=x.example,y.example]", "/a [method=GET,PUT]", "/a [host=x.example X-Version=2]", "/a [Authorization]"]


def test_route_names_are_unique_whatever_others_are_called() -> None:
    assert names("""
- {path_prefix: /a, backend: orders, name: /b}
- {path_prefix: /b, backend: orders}
- {path_prefix: /c, backend: orders, headers: {Authorization: a}}
- {path_prefix: /c, backend: orders, headers: {Authorization: b}}
""") == ["/b", "/b #2", "/c [Authorization]", "/c [Authorization] #2"]


def test_route_name_given_twice_is_a_problem() -> None:
    assert problems(
        ONE_BACKEND
        + """
routes:
  - {path_prefix: /a, backend: orders, name: x}
  - {path_prefix: /b, backend: orders, name: x}
"""
    ) == ["config.yml:5: routes[1].name: another route is named 'x', on line 4"]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("", ""),
        ("host: a.example", "host: A.example"),
        ("host: [a.example, b.example]", "host: b.example"),
        ("methods: [GET, PUT]", "methods: [put, get]"),
        ("methods: [GET, PUT]", "methods: [get]"),
        ("headers: {X-A: b}", "headers: {x-a: b}"),
        ("name: one", "name: two, strip_prefix: true"),
    ],
)
def test_route_whose_requests_an_earlier_one_takes_is_a_problem(first: str, second: str) -> None:
    assert problems(f"""
        {ONE_BACKEND.strip()}
        routes:
          - {{path_prefix: /a, backend: orders, {first}}}
          - {{path_prefix: /a/, backend: orders, {second}}}
    """) == ["config.yml:4: routes[1].path_prefix: never used: the route on line 3 takes all of its requests"]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("", "host: a.example"),
        ("host: a.example", ""),
        ("host: a.example", "host: [a.example, b.example]"),
        ("methods: [GET]", "methods: [GET, PUT]"),
        ("methods: [GET]", "host: a.example"),
        ("headers: {X-A: b}", "headers: {X-A: c}"),
        ("headers: {X-A: b}", "headers: {X-A: b, X-B: c}"),
        ("headers: {X-A: b, X-B: c}", "headers: {X-A: b}"),
    ],
)
def test_route_that_gets_some_requests_is_no_problem(first: str, second: str) -> None:
    assert len(names(f"- {{path_prefix: /a, backend: orders, {first}}}\n- {{path_prefix: /a, backend: orders, {second}}}")) == 2


def test_route_that_is_wrong_itself_shadows_no_other() -> None:
    (found,) = problems(f"""
        {ONE_BACKEND.strip()}
        routes:
          - {{path_prefix: /a, backend: orders, host: "*"}}
          - {{path_prefix: /a, backend: orders}}
    """)
    assert found.startswith("config.yml:3: routes[0].host: '*' is not a host name")


def test_backend_unknown_is_named_with_those_there_are() -> None:
    assert problems(ONE_BACKEND + "routes: [{path_prefix: /a, backend: zzz}]") == [
        "config.yml:2: routes[0].backend: no backend named 'zzz'; the backends are orders"
    ]
    assert problems("routes: [{path_prefix: /a, backend: zzz}]") == [
        "config.yml:1: routes[0].backend: no backend named 'zzz'; the backends are none"
    ]


def test_backend_name_twice_and_backend_without_anything_are_problems() -> None:
    assert problems("backends:\n- {name: a, match_labels: [a=b]}\n- {name: a}\n") == [
        "config.yml:3: backends[1].name: another backend is named 'a', on line 2",
        "config.yml:3: backends[1]: needs match_labels, or endpoints, or both; with neither it is always empty",
    ]


def test_policy_unknown_is_named_with_those_there_are() -> None:
    (found,) = problems("backends: [{name: a, match_labels: [a=b], policy: zzz}]")
    assert found.startswith("config.yml:1: backends[0].policy: no selection policy is named 'zzz'; the policies are ")
    assert found.endswith("power_of_two_choices, random, round_robin")


def test_pipeline_names_are_checked() -> None:
    assert problems("pipeline: [stats, normalise, routing, stats]\n") == [
        "config.yml:1: pipeline[3]: 'stats' is in the pipeline twice",
        "config.yml:1: pipeline[1]: no active middleware is named 'normalise'; did you mean 'normalize'?",
    ]


def test_pipeline_decides_what_a_route_can_turn_off() -> None:
    text = ONE_BACKEND + "routes: [{path_prefix: /a, backend: orders, plugins: {access_log: false}}]\npipeline: "
    assert loaded(text + "[stats, normalize, faults, routing, access_log, selection]").routes[0].options == {"access_log": None}
    assert len(problems(text + "[access_log, stats, normalize, faults, routing, selection]")) == 1


def test_body_limit_of_a_route_above_the_servers_is_a_problem() -> None:
    route = f"{ONE_BACKEND}routes: [{{path_prefix: /a, backend: orders, max_body_bytes: 11}}]\n"
    line = ONE_BACKEND.count("\n") + 1
    assert problems(f"{route}server: {{max_body_bytes: 10}}") == [
        f"config.yml:{line}: routes[0].max_body_bytes: has no effect: server.max_body_bytes is lower (10)"
    ]
    loaded(f"{route}server: {{max_body_bytes: 11}}")
    loaded(route)
