"""Joining and matching, snapshots and what changes between them: no threads."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rgate import WEIGHT_LABEL, Address, Backend, Endpoint, Exchange, Instance, PluginError, RgateError
from rgate.discovery import Change, EndpointTable, mismatch_reasons, remarks

from .sources import FIXED, PAYMENT, Listing, found, ids, payment, table


class TestMatching:
    def test_instance_with_every_label_is_an_endpoint(self) -> None:
        joined = table(Listing("l", payment("a", 8001, colour="blue")))
        joined.refresh()
        (endpoint,) = joined.snapshot.endpoints["payment"]
        assert endpoint == Endpoint("a", "name-of-a", "payment", Address("http", "127.0.0.1", 8001))
        assert endpoint.labels["colour"] == "blue"
        assert joined.snapshot.endpoints["orders"] == joined.snapshot.endpoints["fixed"] == ()

    @pytest.mark.parametrize(
        "labels",
        [
            {},
            {"app_name": "payment"},
            {"env": "production"},
            {"app_name": "payment", "env": "staging"},
            {"app_name": "payment", "env": ""},
            {"app_name": "Payment", "env": "production"},
            {"APP_NAME": "payment", "env": "production"},
        ],
    )
    def test_instance_without_one_of_the_labels_is_none(self, labels: dict[str, str]) -> None:
        joined = table(Listing("l", Instance("a", "a", labels, Address("http", "h", 1))))
        joined.refresh()
        assert joined.snapshot.endpoints["payment"] == ()
        assert joined.snapshot.unusable["payment"] == ()

    @pytest.mark.parametrize("label", ["true", " True ", "1", "yes", "on", "YES"])
    def test_instance_that_is_to_drain_is_not_usable(self, label: str) -> None:
        joined = table(Listing("l", payment("a", **{"rgate.drain": label}), payment("b", 8002)))
        joined.refresh()
        assert ids(joined.snapshot, "payment") == ["b"]
        assert [i.reason for i in joined.snapshot.unusable["payment"]] == ["draining, its label rgate.drain says"]

    @pytest.mark.parametrize("label", ["false", "", " ", "0", "no", "off", "False"])
    def test_instance_that_is_not_to_drain_is_an_endpoint(self, label: str) -> None:
        joined = table(Listing("l", payment("a", **{"rgate.drain": label})))
        joined.refresh()
        assert ids(joined.snapshot, "payment") == ["a"]

    @pytest.mark.parametrize(
        ("label", "shown"), [("maybe", "'maybe'"), ("tru", "'tru'"), ("2", "'2'"), ("x" * 5_000, f"'{'x' * 50}…'")]
    )
    def test_drain_that_means_nothing_drains_and_is_told(self, label: str, shown: str) -> None:
        joined = table(Listing("l", payment("a", **{"rgate.drain": label}), payment("b", 8002)))
        joined.refresh()
        assert ids(joined.snapshot, "payment") == ["b"]
        (unusable,) = joined.snapshot.unusable["payment"]
        assert unusable.reason == f"draining, because its label rgate.drain={shown} is neither true nor false"

    def test_backend_without_labels_gets_only_what_names_it(self) -> None:
        joined = table(Listing("l", payment("a"), found("b", 81, backend="fixed"), found("c", 82, backend="unheard-of")))
        joined.refresh()
        assert ids(joined.snapshot, "fixed") == ["b"]

    def test_instance_in_two_backends_is_in_both_with_one_load(self) -> None:
        other = Backend("other", (("env", "production"),))
        joined = table(Listing("l", payment("a")), backends=[PAYMENT, other])
        joined.refresh()
        (one,), (two,) = joined.snapshot.endpoints["payment"], joined.snapshot.endpoints["other"]
        assert (one.backend, two.backend) == ("payment", "other")
        assert one.state is two.state

    def test_sources_are_joined_and_sorted_by_id(self) -> None:
        joined = table(Listing("one", payment("c", 83), payment("a", 81)), Listing("two", payment("b", 82)))
        joined.refresh()
        assert ids(joined.snapshot, "payment") == ["a", "b", "c"]

    def test_address_known_to_two_sources_is_one_endpoint(self) -> None:
        joined = table(Listing("one", payment("b", 80)), Listing("two", payment("a", 80), payment("c", 81)))
        joined.refresh()
        assert ids(joined.snapshot, "payment") == ["a", "c"]

    def test_instance_without_address_is_unusable_in_its_backend_only(self) -> None:
        joined = table(Listing("l", payment("a", reason="paused"), found("z", None, app_name="else")))
        joined.refresh()
        assert joined.snapshot.endpoints["payment"] == ()
        assert [(i.id, i.reason) for i in joined.snapshot.unusable["payment"]] == [("a", "paused")]
        assert joined.snapshot.unusable["orders"] == ()
        assert [i.id for i in joined.snapshot.sources["l"].instances] == ["a", "z"]

    @pytest.mark.parametrize(("label", "weight"), [("3", 3), (" 0 ", 0), ("1000", 1000), ("", 1), (None, 1)])
    def test_weight_is_what_the_label_says(self, label: str | None, weight: int) -> None:
        instance = payment("a") if label is None else payment("a", **{WEIGHT_LABEL: label})
        joined = table(Listing("l", instance))
        joined.refresh()
        assert [endpoint.weight for endpoint in joined.snapshot.endpoints["payment"]] == [weight]

    @pytest.mark.parametrize("label", ["1001", "-1", "1.5", "heavy", "\u0663", "9" * 5000])
    def test_weight_that_is_none_makes_the_instance_unusable(self, label: str) -> None:
        joined = table(Listing("l", payment("a", **{WEIGHT_LABEL: label})))
        joined.refresh()
        (unusable,) = joined.snapshot.unusable["payment"]
        assert joined.snapshot.endpoints["payment"] == ()
        assert unusable.reason == f"label rgate.weight={label!r} is not a whole number from 0 to 1000"

    @given(
        st.dictionaries(st.text(), st.text(), max_size=6),
        st.dictionaries(st.text(), st.text(), min_size=1, max_size=4).map(lambda wanted: tuple(wanted.items())),
    )
    def test_any_labels_match_exactly_when_all_of_them_are_there(
        self, labels: dict[str, str], wanted: tuple[tuple[str, str], ...]
    ) -> None:
        backend = Backend("b", wanted)
        instance = Instance("i", "i", labels, Address("http", "h", 1))
        joined = table(Listing("l", instance), backends=[backend])
        joined.refresh()
        expected = all(labels.get(name) == value for name, value in wanted)
        assert bool(joined.snapshot.endpoints["b"]) is expected
        assert (mismatch_reasons(instance, backend) == ()) is expected

    def test_mismatch_reasons_name_each_missing_label_with_what_is_there_and_the_reason(self) -> None:
        assert mismatch_reasons(payment("a"), PAYMENT) == ()
        assert mismatch_reasons(found("a", env="staging", reason="paused"), PAYMENT) == (
            "missing label app_name=payment",
            "missing label env=production (has env=staging)",
            "paused",
        )
        assert mismatch_reasons(payment("a"), FIXED) == ("backend fixed has no match_labels",)
        assert mismatch_reasons(found("a", backend="fixed"), FIXED) == ()
        assert mismatch_reasons(found("a", None, backend="fixed"), FIXED) == ("paused",)

    @pytest.mark.parametrize(
        ("labels", "near"),
        [
            ({"app_name": "payment", "env": "Prod"}, "app_name=payment, but env=Prod instead of env=production"),
            ({"app_name": "payment"}, "app_name=payment, but no env=production"),
            ({"app_name": "payment", "env": "x" * 5_000}, f"app_name=payment, but env={'x' * 50}… instead of env=production"),
            ({"app_name": "payment", "env": "a\n\x1b"}, "app_name=payment, but env=a\\n\\x1b instead of env=production"),
            ({"app_name": "paiment", "env": "production"}, "env=production, but app_name=paiment instead of app_name=payment"),
            ({"app_name": "Payment", "env": "production"}, "env=production, but app_name=Payment instead of app_name=payment"),
            ({"app_name": "catalog", "env": "production"}, None),
            ({"env": "production"}, None),
            ({"app_name": "else"}, None),
            ({}, None),
        ],
    )
    def test_instance_with_some_of_the_labels_is_a_near_miss_of_the_backend_it_is_meant_for(
        self, labels: dict[str, str], near: str | None
    ) -> None:
        joined = table(Listing("l", Instance("a", "a", labels, Address("http", "h", 1))))
        joined.refresh()
        misses = {name: [miss.detail for miss in group] for name, group in joined.snapshot.near_misses.items()}
        assert misses == ({"payment": [near]} if near else {})

    def test_instance_of_one_backend_is_not_a_near_miss_of_another(self) -> None:
        joined = table(Listing("l", payment("a")))
        joined.refresh()
        assert dict(joined.snapshot.near_misses) == {}

    def test_two_sources_of_one_name_are_refused(self) -> None:
        with pytest.raises(PluginError, match="two discovery sources are named 'one'"):
            table(Listing("one"), Listing("one"))


class TestSnapshots:
    def test_table_before_any_list_has_every_backend_empty(self) -> None:
        source = Listing("l", payment("a"))
        fresh = table(source).snapshot
        assert dict(fresh.endpoints) == {"payment": (), "orders": (), "fixed": ()}
        assert (fresh.sources["l"].listed_at, fresh.sources["l"].error) == (None, None)
        assert source.lists == 0, "construction must not list"

    def test_snapshot_cannot_be_changed(self) -> None:
        joined = table(Listing("l", payment("a")))
        joined.refresh()
        for mapping in (joined.snapshot.endpoints, joined.snapshot.unusable, joined.snapshot.sources):
            with pytest.raises(TypeError):
                mapping["payment"] = ()  # type: ignore[index]

    def test_load_goes_along_while_id_and_address_stay(self) -> None:
        source = Listing("l", payment("a", 81), payment("b", 82))
        joined = table(source)
        joined.refresh()
        before = {endpoint.id: endpoint for endpoint in joined.snapshot.endpoints["payment"]}
        before["a"].state.active_exchanges.add(Exchange())

        source.instances = [Instance("a", "renamed", payment("a").labels, Address("http", "127.0.0.1", 81)), payment("b", 99)]
        joined.refresh()
        after = {endpoint.id: endpoint for endpoint in joined.snapshot.endpoints["payment"]}
        assert after["a"].name == "renamed"
        assert after["a"].state is before["a"].state
        assert after["a"].state.in_flight == 1
        assert after["b"].state is not before["b"].state, "another address is another endpoint"

    def test_endpoints_that_stay_are_the_same_tuple(self) -> None:
        source = Listing("l", payment("a"))
        joined = table(source)
        joined.refresh()
        before = joined.snapshot
        source.instances = [payment("a"), found("b", 81, app_name="orders", env="production")]
        joined.refresh()
        assert joined.snapshot.endpoints["payment"] is before.endpoints["payment"]
        assert ids(joined.snapshot, "orders") == ["b"]

    def test_labels_that_change_make_a_new_endpoint_with_the_old_load(self) -> None:
        source = Listing("l", payment("a", colour="blue"))
        joined = table(source)
        joined.refresh()
        before = joined.snapshot.endpoints["payment"][0]
        source.instances = [payment("a", colour="green")]
        joined.refresh()
        after = joined.snapshot.endpoints["payment"][0]
        assert after.labels["colour"] == "green"
        assert after.state is before.state

    def test_failing_source_keeps_its_last_good_list_and_says_how_old_it_is(self, caplog: pytest.LogCaptureFixture) -> None:
        now = [100.0]
        source = Listing("docker", payment("a"))
        joined = table(source, clock=lambda: now[0])
        joined.refresh()
        now[0], source.error = 112.0, RgateError("engine away")
        with caplog.at_level(logging.INFO, "rgate.discovery"):
            joined.refresh()
            now[0] = 115.0
            joined.refresh()
            state = joined.snapshot.sources["docker"]
            assert ids(joined.snapshot, "payment") == ["a"]
            assert (state.listed_at, state.error, state.failed_at) == (100.0, "engine away", 115.0)
            now[0], source.error = 120.0, None
            joined.refresh()
        state = joined.snapshot.sources["docker"]
        assert (state.listed_at, state.error, state.failed_at) == (120.0, None, 115.0)
        assert caplog.messages == [
            "docker: engine away (keeping the list of 12 s ago, trying again)",
            "docker: answers again",
        ], "one line for each change of state, none for a retry"

    def test_source_that_fails_from_the_start_says_so_once(self, caplog: pytest.LogCaptureFixture) -> None:
        source = Listing("docker", payment("a"))
        source.error = RgateError("engine away")
        joined = table(source)
        with caplog.at_level(logging.INFO, "rgate.discovery"):
            joined.refresh()
            joined.refresh()
            source.error = None
            joined.refresh()
        assert [r.getMessage() for r in caplog.records if r.name == "rgate.discovery"] == [
            "docker: engine away (no list yet, trying again)",
            "docker: answers now",
        ]

    @pytest.mark.parametrize("nonsense", [[object()], None, [found("a"), "b"]])
    def test_source_that_lists_nonsense_counts_as_failing(self, nonsense: Any, caplog: pytest.LogCaptureFixture) -> None:
        source = Listing("third", payment("a"))
        joined = table(source)
        joined.refresh()
        source.instances = nonsense
        joined.refresh()
        assert ids(joined.snapshot, "payment") == ["a"]
        assert "Error: " in (joined.snapshot.sources["third"].error or "")
        assert caplog.records[-1].exc_info, "a defect of a plugin is logged with its traceback"

    def test_one_failing_source_leaves_the_others_alone(self) -> None:
        bad = Listing("bad")
        bad.error = OSError("away")
        joined = table(bad, Listing("good", payment("a")))
        joined.refresh()
        assert ids(joined.snapshot, "payment") == ["a"]
        assert joined.snapshot.sources["bad"].error == "away"


class TestChanges:
    @pytest.fixture
    def source(self) -> Listing:
        return Listing("l")

    @pytest.fixture
    def seen(self) -> list[str]:
        return []

    @pytest.fixture
    def followed(self, source: Listing, seen: list[str]) -> EndpointTable:
        followed = table(source)
        followed.on_change(lambda changes: seen.extend(map(str, changes)))
        return followed

    def listed(self, followed: EndpointTable, source: Listing, seen: list[str], *instances: Instance) -> list[str]:
        seen.clear()
        source.instances = instances
        followed.refresh()
        return list(seen)

    def test_changes_endpoint_comes_moves_and_goes(self, followed: EndpointTable, source: Listing, seen: list[str]) -> None:
        come = self.listed(followed, source, seen, payment("a", 81))
        assert come == ["backend payment: + name-of-a http://127.0.0.1:81"]
        moved = self.listed(followed, source, seen, payment("a", 82))
        assert moved == ["backend payment: - name-of-a http://127.0.0.1:81", "backend payment: + name-of-a http://127.0.0.1:82"]
        assert self.listed(followed, source, seen, payment("a", 82)) == []
        assert self.listed(followed, source, seen) == ["backend payment: - name-of-a http://127.0.0.1:82"]

    def test_changes_endpoint_that_becomes_unusable_says_why_in_one_line(
        self, followed: EndpointTable, source: Listing, seen: list[str]
    ) -> None:
        self.listed(followed, source, seen, payment("a", 81))
        out = self.listed(followed, source, seen, payment("a", 81, reason="paused"))
        assert out == ["backend payment: - name-of-a http://127.0.0.1:81 (paused)"]
        assert self.listed(followed, source, seen, payment("a", 81)) == ["backend payment: + name-of-a http://127.0.0.1:81"]

    def test_changes_unusable_instance_is_told_once_and_again_with_another_reason(
        self, followed: EndpointTable, source: Listing, seen: list[str]
    ) -> None:
        first = self.listed(followed, source, seen, payment("a", reason="several ports"))
        assert first == ["backend payment: name-of-a is not usable: several ports"]
        assert self.listed(followed, source, seen, payment("a", reason="several ports"), payment("b")) != first
        again = self.listed(followed, source, seen, payment("a", reason="paused"), payment("b"))
        assert again == ["backend payment: name-of-a is not usable: paused"]

    def test_changes_many_with_one_reason_are_one_line(self, followed: EndpointTable, source: Listing, seen: list[str]) -> None:
        old = [payment(f"{number:03}", reason="not running (exited)") for number in range(200)]
        assert self.listed(followed, source, seen, *old) == [
            "backend payment: name-of-000, name-of-001, name-of-002 and 197 more are not usable: not running (exited)"
        ]

    def test_changes_tell_notes_once_whatever_else_becomes_of_the_instance(
        self, followed: EndpointTable, source: Listing, seen: list[str]
    ) -> None:
        def noted(id: str, *notes: str, reason: str | None = None) -> Instance:
            return replace(payment(id, {"a": 80, "b": 81}[id], reason=reason), notes=notes)

        told = self.listed(followed, source, seen, noted("a", "unknown label x"), noted("b", "unknown label x"))
        assert told[-1] == "name-of-a, name-of-b: unknown label x"
        stopped = self.listed(
            followed, source, seen, noted("a", "unknown label x", reason="paused"), noted("b", "unknown label x")
        )
        assert stopped == ["backend payment: - name-of-a http://127.0.0.1:80 (paused)"]
        again = self.listed(followed, source, seen, noted("a", "unknown label x", "another"), noted("b", "unknown label x"))
        assert again == ["backend payment: + name-of-a http://127.0.0.1:80", "name-of-a: another"]

    def test_changes_tell_a_note_once_for_an_instance_of_two_backends(self, caplog: pytest.LogCaptureFixture) -> None:
        other = Backend("other", (("env", "production"),))
        joined = table(Listing("l", replace(payment("a"), notes=("unknown label x",))), backends=[PAYMENT, other])
        with caplog.at_level(logging.INFO, "rgate.discovery.changes"):
            joined.refresh()
        assert [(r.levelname, r.getMessage()) for r in caplog.records if "unknown" in r.getMessage()] == [
            ("WARNING", "name-of-a: unknown label x")
        ]

    def test_changes_tell_near_misses_once_and_some_of_many(
        self, followed: EndpointTable, source: Listing, seen: list[str], caplog: pytest.LogCaptureFixture
    ) -> None:
        alike = [found(f"a{n}", 81, app_name="payment", env="Prod") for n in range(5)]
        with caplog.at_level(logging.INFO, "rgate.discovery.changes"):
            first = self.listed(followed, source, seen, *alike)
        assert first == [
            "backend payment: name-of-a0, name-of-a1, name-of-a2 and 2 more have app_name=payment, but env=Prod"
            " instead of env=production"
        ]
        assert [r.levelname for r in caplog.records] == ["INFO"]
        assert self.listed(followed, source, seen, *alike, found("z", 82, app_name="else")) == []
        stopped = found("s", app_name="payment", env="old", reason="stopped")
        assert self.listed(followed, source, seen, *alike, stopped) == [], "it is not an endpoint for another reason, too"
        assert self.listed(followed, source, seen) == []
        assert self.listed(followed, source, seen, found("r", reason="paused", app_name="payment", env="Prod")) == []
        assert len(self.listed(followed, source, seen, found("r", 82, app_name="payment", env="Prod"))) == 1
        assert self.listed(followed, source, seen, found("r", reason="paused", app_name="payment", env="Prod")) == []
        assert self.listed(followed, source, seen, found("r", 82, app_name="payment", env="Prod")) == [], "it was told before"
        self.listed(followed, source, seen, *alike)
        others = [found(f"b{n}", 81, app_name="payment", env=f"e{n}") for n in range(20)]
        assert len(self.listed(followed, source, seen, *alike, *others)) == 3
        assert len(followed.snapshot.near_misses["payment"]) == 25

    def test_remarks_are_what_is_known_when_a_gateway_starts(self, source: Listing) -> None:
        source.instances = [
            replace(payment("a"), notes=("unknown label x",)),
            found("b", 81, app_name="payment", env="Prod"),
        ]
        joined = table(source)
        joined.refresh()
        assert list(map(str, remarks(joined.snapshot))) == [
            "name-of-a: unknown label x",
            "backend payment: name-of-b has app_name=payment, but env=Prod instead of env=production",
        ]

    def test_changes_of_a_name_or_of_no_backend_are_none(self, followed: EndpointTable, source: Listing, seen: list[str]) -> None:
        self.listed(followed, source, seen, payment("a"))
        renamed = Instance("a", "renamed", payment("a").labels, Address("http", "127.0.0.1", 80))
        assert self.listed(followed, source, seen, renamed, found("z", 99, app_name="else")) == []

    def test_changes_are_logged_at_their_level(
        self, followed: EndpointTable, source: Listing, seen: list[str], caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.INFO, "rgate.discovery.changes"):
            self.listed(followed, source, seen, payment("a", 81), payment("b", reason="paused"))
        assert [(r.levelname, r.getMessage()) for r in caplog.records] == [("INFO", seen[0]), ("WARNING", seen[1])]

    def test_callback_that_raises_is_logged_and_stops_nothing(
        self, followed: EndpointTable, source: Listing, seen: list[str], caplog: pytest.LogCaptureFixture
    ) -> None:
        more: list[Sequence[Change]] = []

        def failing(changes: Sequence[Change]) -> None:
            raise RuntimeError("broken console")

        followed.on_change(failing)
        followed.on_change(more.append)
        self.listed(followed, source, seen, payment("a"))
        assert len(more) == 1
        assert "broken console" in caplog.text
        assert followed.snapshot.sources["l"].error is None
