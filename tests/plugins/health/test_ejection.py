"""health: what ejects an endpoint, for how long, and how a trial brings it back."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest

from rgate import (
    BadResponse,
    ConnectionRefused,
    ConnectTimeout,
    GatewayError,
    InternalError,
    NoEndpoint,
    Overloaded,
    RequestError,
    ResponseTimeout,
    TLSFailed,
    Unreachable,
    UpstreamClosed,
    UpstreamTruncated,
    build,
)
from rgate.discovery.model import EndpointState
from rgate.plugins.health.outlier import HealthState
from rgate.testing import running_gateway

from .world import composed, world


class TestCounting:
    @pytest.mark.parametrize(
        "error",
        [
            ConnectionRefused(),
            Unreachable(),
            ConnectTimeout(),
            UpstreamClosed(),
            BadResponse(),
            ResponseTimeout(),
            TLSFailed(),
            UpstreamTruncated(),
        ],
        ids=lambda error: error.reason,
    )
    def test_five_faults_in_a_row_eject(self, error: GatewayError) -> None:
        with world() as x:
            x.fails("a", error, times=4)
            assert x.candidates == "abc"
            x.fails("a", error)
            assert x.candidates == "bc"
            assert x.told == [f"backend x: - http://in-process.invalid:1 (ejected: 5 faults in a row, the last: {error.reason})"]

    @pytest.mark.parametrize(
        "error", [RequestError(), NoEndpoint(), Overloaded(), InternalError(), KeyError()], ids=lambda error: repr(error)
    )
    def test_what_is_not_the_endpoints_fault_counts_for_nothing(self, error: BaseException) -> None:
        with world() as x:
            x.fails("a", error, times=50)
            assert x.candidates == "abc"
            assert x["a"].state.on_response is None

    def test_response_between_makes_no_row(self) -> None:
        with world(fault_percent=0) as x:
            for _ in range(20):
                x.fails("a", ConnectionRefused(), times=4)
                x.answers("a")
            assert x.candidates == "abc"

    def test_while_nothing_fails_responses_are_not_counted(self) -> None:
        with world() as x:
            assert x["a"].state.on_response is None
            x.fails("a", ConnectionRefused())
            assert x["a"].state.on_response is not None
            x.answers("a", times=3)
            x.jobs.passes(10)
            x.answers("a")
            assert x["a"].state.on_response is None, "the window is over and the endpoint is healthy"

    def test_half_of_twenty_requests_eject(self) -> None:
        with world(consecutive_faults=0) as x:
            for _ in range(9):
                x.fails("a", UpstreamClosed())
                x.answers("a")
            assert x.candidates == "abc"
            x.fails("a", UpstreamClosed())
            assert x.candidates == "abc", "10 of 19 are not enough requests"
            x.fails("a", UpstreamClosed())
            assert x.reasons == {"a": "ejected: 11 of 20 requests failed, the last: closed"}

    def test_less_than_half_do_not_eject_and_the_window_begins_anew(self) -> None:
        with world() as x:
            for _ in range(100):
                x.fails("a", UpstreamClosed())
                x.answers("a", times=2)
            assert x.candidates == "abc"
            x.jobs.passes(10)
            x.fails("a", UpstreamClosed(), times=4)
            x.answers("a")
            assert x.candidates == "abc", "what was before counts no more"

    def test_responses_that_break_off_eject_although_their_heads_are_good(self) -> None:
        with world() as x:
            x.fails("a", UpstreamClosed())
            for _ in range(21):
                x.answers("a")
                x.fails("a", UpstreamTruncated())
            assert x.candidates == "bc"

    def test_count_5xx_makes_responses_faults(self) -> None:
        with world(count_5xx=True) as x:
            x.answers("a", 500, times=4)
            x.answers("a", 499)
            x.answers("a", 503, times=5)
            assert x.reasons == {"a": "ejected: 5 faults in a row, the last: status 503"}

    def test_5xx_is_a_response_like_any_other_by_default(self) -> None:
        with world() as x:
            x.fails("a", ConnectionRefused(), times=4)
            x.answers("a", 503)
            x.fails("a", ConnectionRefused(), times=4)
            assert x.candidates == "abc"

    @pytest.mark.parametrize(("percent", "ejected"), [(100, 3), (67, 2), (50, 1), (1, 1), (0, 0)])
    def test_at_most_a_share_of_the_backend_is_ejected(self, percent: int, ejected: int) -> None:
        with world(max_ejected_percent=percent, on_all_unhealthy="fail") as x:
            for letter in "abc":
                if percent:
                    x.fails(letter, ConnectionRefused(), times=6)
                else:
                    assert x[letter].state.on_failure is None
            assert len(x.candidates) == 3 - ejected

    def test_one_that_may_not_be_ejected_is_when_another_is_back(self) -> None:
        with world(max_ejected_percent=50) as x:
            x.fails("a", ConnectionRefused(), times=5)
            x.fails("b", ConnectionRefused(), times=9)
            assert x.candidates == "bc"
            x.jobs.passes(1)
            x.answers("a", exchange=x.claims("a"))
            x.fails("b", ConnectionRefused())
            assert x.candidates == "ac"


class TestComingBack:
    def test_after_a_second_it_is_on_trial_and_one_answer_brings_it_back(self) -> None:
        with world() as x:
            x.fails("a", ConnectionRefused(), times=5)
            x.jobs.passes(0.99)
            assert x.candidates == "bc"
            x.jobs.passes(0.01)
            assert x.probes == [("a", "")], "first it is connected to"
            assert (x.candidates, x.reasons) == ("Abc", {"a": "on trial"})
            assert x.share("a") < 0.001
            trial = x.claims("a")
            assert trial is not None
            assert x.claims("a") is None, "one request at a time"
            x.answers("a", exchange=trial)
            assert (x.candidates, x.reasons, x.share("a")) == ("abc", {}, 1.0)
            assert x["a"].state.on_response is None
            assert x.told[1:] == ["backend x: + http://in-process.invalid:1"]

    def test_while_it_cannot_be_connected_to_no_request_is_risked_and_nothing_is_told(self) -> None:
        with world() as x:
            x.found["a"] = ConnectionRefused()
            x.fails("a", ConnectionRefused(), times=5)
            x.jobs.passes(60)
            assert x.candidates == "bc"
            assert 20 <= len(x.probes) <= 22, f"after 1, 2, and every 3 seconds: {len(x.probes)}"
            assert len(x.told) == 1
            del x.found["a"]
            x.jobs.passes(3)
            assert x.candidates == "Abc", "back within three seconds"

    def test_failed_trial_ejects_for_longer(self) -> None:
        with world(eject_seconds=1, max_eject_seconds=10) as x:
            x.fails("a", UpstreamClosed(), times=5)
            waited = []
            for _ in range(6):
                began = x.jobs.now
                while x.candidates == "bc":
                    x.jobs.passes(0.25)
                waited.append(round(x.jobs.now - began))
                x.fails("a", UpstreamClosed(), exchange=x.claims("a"))
            assert waited == [1, 2, 4, 8, 10, 10]
            assert x.reasons == {"a": "ejected: its trial: closed"}
            assert len(x.told) == 1, "a failed trial is not news"

    def test_ejections_in_a_row_are_forgotten_after_a_good_time(self) -> None:
        with world() as x:
            for pause, expected in ((0.0, 1), (0.0, 2), (20.0, 1)):
                x.jobs.passes(pause)
                x.fails("a", ConnectionRefused(), times=5)
                x.jobs.passes(expected - 0.1)
                assert x.candidates == "bc"
                x.jobs.passes(0.2)
                x.answers("a", exchange=x.claims("a"))
                assert x.candidates == "abc"

    def test_trial_without_an_outcome_lets_the_next_request_try(self) -> None:
        with world() as x:
            x.fails("a", ConnectionRefused(), times=5)
            x.jobs.passes(1)
            left = x.claims("a")
            assert left is not None
            x.fails("a", RequestError("the client has left"), exchange=left)
            ended = x.claims("a")
            assert ended is not None
            ended.finish()
            assert x.claims("a") is not None, "a request that has reached no endpoint is not a trial"

    def test_trial_waits_for_requests_that_can_be_sent_again(self) -> None:
        with world() as x:
            x.fails("a", ConnectionRefused(), times=5)
            x.jobs.passes(1)
            assert x.claims("a", "POST") is None
            x.jobs.passes(0.5)
            assert x.claims("a", "POST") is not None, "but not for ever"

    def test_trial_does_not_wait_when_there_is_no_other_endpoint(self) -> None:
        with world("a", on_all_unhealthy="fail") as x:
            x.fails("a", ConnectionRefused(), times=5)
            x.jobs.passes(1)
            assert x.claims("a", "POST") is not None

    def test_trial_is_not_claimed_by_a_request_that_has_failed_already(self) -> None:
        with world() as x:
            x.fails("a", ConnectionRefused(), times=5)
            x.jobs.passes(1)
            again = x.exchange()
            again.attempts = 1
            assert x.claims("a", exchange=again) is None

    def test_requests_from_before_the_ejection_say_nothing_of_now(self) -> None:
        with world() as x:
            old = x.exchange()
            x.fails("a", ResponseTimeout(), times=5)
            x.answers("a", exchange=old)
            assert x.candidates == "bc"
            x.jobs.passes(1)
            x.answers("a", exchange=old)
            x.fails("a", ResponseTimeout(), exchange=old)
            assert x.candidates == "Abc", "the trial is still to come"

    def test_connection_that_is_refused_when_ejected_for_slowness_keeps_it_out(self) -> None:
        with world() as x:
            x.fails("a", ResponseTimeout(), times=5)
            x.found["a"] = ConnectTimeout()
            x.jobs.passes(5)
            assert x.reasons == {"a": "ejected: connect_timeout"}


class TestAllBad:
    def test_try_anyway_keeps_all_in_use(self) -> None:
        with world() as x:
            for letter in "abc":
                x.fails(letter, ConnectionRefused(), times=5)
            assert x.candidates == "abc"
            assert x.share("a") == x.share("b") == x.share("c") > 0
            x.jobs.passes(1)
            x.answers("b", exchange=x.exchange())
            assert "b" in x.candidates and "b" not in x.reasons, "any request may be the trial when all are bad"
            assert x.share("b") > x.share("a") * 100

    def test_fail_leaves_none_but_trials(self) -> None:
        with world(on_all_unhealthy="fail") as x:
            for letter in "abc":
                x.fails(letter, ConnectionRefused(), times=5)
            assert x.candidates == ""
            x.jobs.passes(1)
            assert (x.candidates, x.share("a")) == ("ABC", 0.0)


class TestComingAndGoing:
    def test_end_takes_everything_back(self) -> None:
        with world() as x:
            x.fails("a", ConnectionRefused(), times=5)
            x.fails("b", ConnectionRefused(), times=5)
            x.jobs.passes(1)
        assert (x.candidates, x.reasons, x.share("a")) == ("abc", {}, 1.0)
        assert not x.jobs.running
        assert x["a"].state.on_failure is x["a"].state.on_response is x["a"].state.try_acquire_trial is None

    def test_ejected_endpoint_that_is_gone_is_forgotten(self) -> None:
        with world() as x:
            x.fails("a", ConnectionRefused(), times=5)
            gone = x["a"]
            source = x.gateway.table.watchers["static_endpoints"].source
            source._instances = source._instances[1:]  # type: ignore[attr-defined]
            x.gateway.table.refresh()
            assert gone.key in x.health._endpoints
            x.jobs.passes(1)
            assert gone.key not in x.health._endpoints
            assert x.reasons == {}

    def test_reload_keeps_what_is_known_and_follows_the_new_rules(self) -> None:
        with world() as x:
            x.fails("a", ConnectionRefused(), times=5)
            x.fails("b", ConnectionRefused(), times=4)
            x.reloads("abcd", eject_seconds=7, max_eject_seconds=7)
            assert x.candidates == "bcd"
            x.fails("b", ConnectionRefused())
            assert x.candidates == "cd", "the fifth, four were before"
            x.jobs.passes(1)
            assert x.candidates == "Acd"
            x.fails("a", ConnectionRefused(), exchange=x.claims("a"))
            x.jobs.passes(5.9)
            assert x.candidates == "cd"
            x.jobs.passes(1.2)
            assert x.candidates == "ABcd"

    def test_trial_that_begins_while_a_reload_follows_the_endpoint_is_kept(self) -> None:
        with world(on_all_unhealthy="fail") as x:
            x.fails("a", ConnectionRefused(), times=5)
            record, endpoint = x.record("a"), x["a"]

            class Load(EndpointState):
                """When `try_acquire_trial` is written for the first time, the ejection ends at this very moment."""

                def __setattr__(self, name: str, value: object) -> None:
                    if name == "try_acquire_trial" and record.endpoint.state is self and record.state is HealthState.EJECTED:
                        record.on_probe(None)
                    super().__setattr__(name, value)

            load = Load()
            record.bind(replace(endpoint, state=load), record.rules)
            assert record.state is HealthState.HALF_OPEN
            assert load.try_acquire_trial is not None, "no request would ever be its trial"

    def test_reload_that_is_not_in_force_changes_nothing(self) -> None:
        with world() as x:
            after = build(*composed(["http://in-process.invalid:1"], {"consecutive_faults": 1}), x.gateway.runtime)
            after.table.on_snapshot(partial(x.health.on_snapshot, after))
            after.table.refresh()
            x.fails("a", ConnectionRefused(), times=4)
            assert x.candidates == "abc"


def test_backend_with_health_turned_off_counts_no_faults() -> None:
    entry = {"match_labels": ["a=b"], "endpoints": ["http://127.0.0.1:9"]}
    backends = [{"name": "on", **entry}, {"name": "off", **entry, "endpoints": ["http://127.0.0.1:8"], "health": False}]
    with running_gateway({"backends": backends}) as gateway:
        found = gateway.table.snapshot.found
        assert found["on"][0].state.on_failure is not None
        assert found["off"][0].state.on_failure is None
