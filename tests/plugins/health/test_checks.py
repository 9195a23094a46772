"""health: active checks, and slow start."""

from __future__ import annotations

import re
import threading

import pytest

from rgate import ConfigError, ConnectionRefused, ConnectTimeout, ResponseTimeout
from rgate.plugins.health.options import HealthOptions
from rgate.testing import (
    ScriptedBackend,
    ScriptedConnection,
    client,
    closed_port_url,
    http_response,
    make_gateway,
    running_gateway,
)

from ...support.waiting import eventually
from .world import world


class TestChecks:
    def test_without_a_path_nobody_is_asked(self) -> None:
        with world() as x:
            x.jobs.passes(100)
            assert x.probes == []

    def test_every_endpoint_is_asked_at_once_and_then_at_its_interval(self) -> None:
        with world(path="/health", interval_seconds=10) as x:
            x.jobs.passes(0)
            assert sorted(x.probes) == [("a", "/health"), ("b", "/health"), ("c", "/health")]
            x.jobs.passes(8.9)
            assert len(x.probes) == 3
            x.jobs.passes(0.2)
            assert len(x.probes) == 6, "ten seconds, a tenth less by chance"

    def test_first_check_decides_alone(self) -> None:
        with world(path="/health") as x:
            x.found["a"] = 503
            x.jobs.passes(0)
            assert (x.candidates, x.reasons) == ("bc", {"a": "check failed: status 503"})
            assert x.told == ["backend x: - http://in-process.invalid:1 (check failed: status 503)"]

    def test_thresholds_are_kept_in_both_directions(self) -> None:
        with world(path="/health", interval_seconds=1, unhealthy_threshold=3, healthy_threshold=2) as x:
            x.jobs.passes(0)
            x.found["a"] = ResponseTimeout()
            x.jobs.passes(1.8)
            assert x.candidates == "abc", "two failures are not enough"
            x.found["a"] = 200
            x.jobs.passes(0.9)
            x.found["a"] = ConnectionRefused()
            x.jobs.passes(1.8)
            assert x.candidates == "abc", "a success between starts the count again"
            x.jobs.passes(0.9)
            assert x.reasons == {"a": "check failed: refused"}
            x.found["a"] = 204
            x.jobs.passes(0.9)
            assert x.candidates == "bc"
            x.jobs.passes(0.9)
            assert x.candidates == "abc"

    def test_all_failing_are_used_anyway_or_not_at_all(self) -> None:
        for on_all_unhealthy, candidates in (("use_all", "abc"), ("fail", "")):
            with world(path="/health", on_all_unhealthy=on_all_unhealthy) as x:
                x.found = {letter: ConnectTimeout() for letter in "abc"}
                x.jobs.passes(0)
                assert (x.candidates, len(x.reasons)) == (candidates, 3)

    def test_ejected_endpoint_is_asked_for_the_path_before_its_trial(self) -> None:
        with world(path="/health", interval_seconds=100) as x:
            x.jobs.passes(0)
            x.fails("a", ResponseTimeout(), times=5)
            x.found["a"] = 500
            x.jobs.passes(10)
            assert x.reasons == {"a": "ejected: status 500"}
            x.found["a"] = 200
            x.jobs.passes(3)
            assert x.candidates == "Abc"

    def test_checks_end_with_the_endpoint_and_with_the_path(self) -> None:
        with world(path="/health", interval_seconds=1) as x:
            x.found["a"] = x.found["b"] = 503
            x.jobs.passes(0)
            x.reloads("bc", path="/health", interval_seconds=1)
            x.jobs.passes(2)
            assert (x.candidates, x.reasons) == ("c", {"b": "check failed: status 503"})
            x.reloads("bc")
            x.jobs.passes(2)
            assert (x.candidates, x.reasons) == ("bc", {})
            x.probes.clear()
            x.reloads("bc", path="/health", interval_seconds=1)
            x.jobs.passes(1)
            assert x.probes.count(("b", "/health")) == x.probes.count(("c", "/health")) == 2, "one row of checks, not two"
            assert x.candidates == "c"


class TestSlowStart:
    def test_endpoint_there_from_the_beginning_is_not_fresh(self) -> None:
        with world(slow_start_seconds=10) as x:
            assert x.share("a") == 1

    def test_fresh_endpoint_gets_its_share_little_by_little(self) -> None:
        with world("ab", slow_start_seconds=10) as x:
            x.reloads("abc", slow_start_seconds=10)
            assert (x.share("a"), x.share("c")) == (1, 0.1)
            x.jobs.passes(5)
            assert x.share("c") == pytest.approx(0.5, abs=0.05)
            x.jobs.passes(6)
            assert x.share("c") == 1
            assert x.jobs.due == [], "no more jobs must be due"

    def test_endpoint_that_is_back_while_the_last_one_ends_its_slow_start_grows_too(self) -> None:
        with world("ab", slow_start_seconds=10) as x:
            x.reloads("abc", slow_start_seconds=10)
            x.jobs.passes(9.9)
            back = threading.Thread(target=x.health._start_slowly, args=(x.record("a"),))
            rules = x.record("c").rules

            class Rules:
                """Read for the last endpoint in slow start: at this moment another thread readmits "a"."""

                @property
                def slow_start_seconds(self) -> float:
                    back.start()
                    back.join(0.05)  # it does not have to be done: the scheduler may be locked
                    x.record("c").rules = rules
                    return 10.0

            x.record("c").rules = Rules()  # type: ignore[assignment]
            x.jobs.passes(0.3)
            back.join()
            assert (x.share("a"), x.share("c")) == (0.1, 1)
            x.jobs.passes(11)
            assert x.share("a") == 1

    def test_endpoint_that_is_back_begins_slowly_too(self) -> None:
        with world(slow_start_seconds=10) as x:
            x.fails("a", ConnectionRefused(), times=5)
            x.jobs.passes(1)
            x.answers("a", exchange=x.claims("a"))
            assert x.candidates == "abc"
            assert x.share("a") == 0.1
            x.jobs.passes(11)
            assert x.share("a") == 1


@pytest.mark.parametrize(
    ("expected", "good", "bad"),
    [
        (None, [200, 204, 301, 399], [199, 400, 503]),
        (200, [200], [201]),
        ([200, "401-403"], [200, 401, 403], [204, 400, 404]),
    ],
)
def test_expected_status_is_a_list_of_statuses_and_ranges(expected: object, good: list[int], bad: list[int]) -> None:
    rules = HealthOptions.model_validate({} if expected is None else {"expected_status": expected})
    assert all(map(rules.expects, good)) and not any(map(rules.expects, bad))


@pytest.mark.parametrize(
    ("rules", "problem"),
    [
        ({"expected_status": "2xx"}, "'2xx' is not a status; write one like 200, or a range like 200-399"),
        ({"expected_status": "300-200"}, "is not a status"),
        ({"expected_status": []}, "backends[0].health.expected_status"),
        ({"path": "health"}, "'health' is not a path; write one like /health, with a query if needed"),
        ({"interval_seconds": 1}, "backends[0].health.interval_seconds: has no effect without path"),
        ({"eject_seconds": 5}, "backends[0].health.max_eject_seconds: less than eject_seconds, which is 5"),
    ],
)
def test_rules_that_make_no_sense_are_problems(rules: dict[str, object], problem: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(problem)):
        make_gateway({"backends": [{"name": "x", "match_labels": ["a=b"], "health": rules}]})


def test_gateway_checks_and_ejects_for_real() -> None:
    healthy = True

    def script(connection: ScriptedConnection) -> None:
        while (request := connection.read_request()) is not None:
            well = healthy or " /health" not in request.line
            connection.send(http_response(b"x", "200 OK" if well else "503 Service Unavailable"))

    health = {
        "path": "/health?deep=1",
        "interval_seconds": 0.1,
        "unhealthy_threshold": 1,
        "headers": {"Host": "h.example", "X-Key": "k"},
    }
    with ScriptedBackend(script) as backend, ScriptedBackend(http_response(b"y")) as other:
        config = {
            "backends": [{"name": "b", "endpoints": [backend.url, other.url], "health": health}],
            "routes": [{"path_prefix": "/", "backend": "b"}],
        }
        with running_gateway(config) as gateway:
            (first, *_) = backend.wait_for_requests(1)
            assert first.line == "GET /health?deep=1 HTTP/1.1"
            assert dict(first.headers) == {"Host": "h.example", "User-Agent": "rgate", "Connection": "close", "X-Key": "k"}
            healthy = False
            eventually(lambda: len(gateway.table.snapshot.endpoints["b"]) == 1, "the endpoint whose check fails is out")
            assert {client(gateway).get("/").text for _ in range(5)} == {"y"}
            healthy = True
            eventually(lambda: len(gateway.table.snapshot.endpoints["b"]) == 2, "it is back")


def test_gateway_whose_only_endpoint_is_ejected_answers_503_at_once_with_retry_after() -> None:
    rules = {"on_all_unhealthy": "fail", "eject_seconds": 60, "max_eject_seconds": 60}
    with closed_port_url() as nobody:
        config = {
            "backends": [{"name": "b", "endpoints": [nobody], "health": rules}],
            "routes": [{"path_prefix": "/", "backend": "b"}],
        }
        with running_gateway(config) as gateway:
            answers = [client(gateway).get("/") for _ in range(7)]
    assert [answer.get_json()["reason"] for answer in answers] == ["refused"] * 5 + ["no_endpoint"] * 2
    assert (answers[-1].status_code, answers[-1].headers["Retry-After"]) == (503, "1")
