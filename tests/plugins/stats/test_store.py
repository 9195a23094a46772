"""store: what is added is read again, by minute, hour and day, from however many processes."""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import Popen

import pytest
from sqlalchemy import Connection
from sqlalchemy.dialects import postgresql

from rgate import PluginError
from rgate.plugins.stats import store as store_module
from rgate.plugins.stats.aggregator import Kind
from rgate.plugins.stats.databases import limit_postgresql
from rgate.plugins.stats.report import StorageError, report
from rgate.plugins.stats.resolutions import DAY_MINUTES
from rgate.plugins.stats.store import Store

from .traffic import NOON, NOON_MINUTE, Clock, answered, counted, rows_in, success_of


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rgate.db"


@pytest.fixture
def open_store(path: Path) -> Iterator[Callable[..., Store]]:
    opened: list[Store] = []

    def open_store(**options: object) -> Store:
        opened.append(Store(f"sqlite:///{path}", **{"wall": Clock(), **options}))  # type: ignore[arg-type]
        return opened[-1]

    yield open_store
    for store in opened:
        store.close()


@pytest.fixture
def store(open_store: Callable[..., Store]) -> Store:
    return open_store()


def compact_all(store: Store, now_minute: int) -> int:
    steps = 0
    while store.compact(now_minute):
        steps += 1
        assert steps < 1_000, "compacting does not come to an end"
    return steps


def test_clients_that_have_left_are_read_apart(store: Store) -> None:
    store.add([counted([1]), counted([70_000], status=499), counted([4], status=500)])
    answer = answered(store)
    assert answer["requests_count"] == {"success": 1, "error": 1, "client_closed": 1}
    assert answer["latency_ms"]["average"] == 2.5


def test_counts_added_are_read(store: Store) -> None:
    store.add([counted([1, 2, 3]), counted([4], status=500)])
    answer = answered(store)
    assert answer["requests_count"] == {"success": 3, "error": 1}
    assert answer["latency_ms"] == {
        "average": 2.5,
        "p95": pytest.approx(4, rel=0.01),
        "p99": pytest.approx(4, rel=0.01),
    }
    assert answer.keys() == {"requests_count", "latency_ms"}


def test_counts_of_one_key_add_up(store: Store) -> None:
    for _ in range(3):
        store.add([counted([1, 1])])
    assert success_of(answered(store)) == 6


def test_attempts_and_times_in_plugins_are_read_beside_the_requests(store: Store) -> None:
    store.add(
        [
            counted([4]),
            counted([0, 0], endpoint="", kind=Kind.RETRIED),
            counted([0, 0, 0], endpoint="", kind=Kind.RETRY),
            counted([1, 3], endpoint="auth", kind=Kind.PLUGIN),
            counted([2], endpoint="limit", kind=Kind.PLUGIN),
        ]
    )
    by_route = answered(store, "route")
    assert by_route["requests_count"] == {"success": 1, "error": 0}
    assert by_route["retries"] == {"requests": 2, "attempts": 5}
    by_plugin = answered(store, "plugin", "route")
    assert by_plugin["requests_count"] == {"success": 1, "error": 0}
    groups = by_plugin["groups"]
    assert isinstance(groups, list)
    assert [(group["plugin"], group["route"], group["count"], group["latency_ms"]["average"]) for group in groups] == [
        ("auth", "/api/orders", 2, 2.0),
        ("limit", "/api/orders", 1, 2.0),
    ]
    assert answered(store).keys() == {"requests_count", "latency_ms"}


def test_attempts_and_times_in_plugins_are_rolled_up_like_requests(store: Store) -> None:
    store.add([counted([0], endpoint="", kind=kind) for kind in (Kind.RETRIED, Kind.RETRY)])
    store.add([counted([1], endpoint="auth", kind=Kind.PLUGIN)])
    compact_all(store, NOON_MINUTE + 400 * DAY_MINUTES // 24)
    answer = answered(store, "plugin", now_minute=NOON_MINUTE + 400 * DAY_MINUTES // 24)
    assert answer["retries"] == {"requests": 1, "attempts": 2}
    assert [group["count"] for group in answer["groups"]] == [1]  # type: ignore[attr-defined]


VERSION_2 = """
CREATE TABLE rgate_meta (name TEXT NOT NULL, value TEXT NOT NULL, PRIMARY KEY (name));
CREATE TABLE rgate_traffic (
    span_minutes INTEGER NOT NULL, start_minute INTEGER NOT NULL, route TEXT NOT NULL, backend TEXT NOT NULL,
    endpoint TEXT NOT NULL, status INTEGER NOT NULL, bucket INTEGER NOT NULL, count BIGINT NOT NULL, sum_us BIGINT NOT NULL,
    PRIMARY KEY (span_minutes, start_minute, route, backend, endpoint, status, bucket)
) WITHOUT ROWID;
"""


def write_version(path: Path, version: int, rows: list[tuple[object, ...]]) -> None:
    """A database as the schema versions 1 and 2 wrote it: statuses below 0 for everything but requests."""
    with sqlite3.connect(path) as connection:
        connection.executescript(VERSION_2)
        meta = {
            "schema_version": str(version),
            "begun": '{"at": "2027-01-15T11:00:00+00:00", "because": ""}',
            "added_up_to": str(NOON_MINUTE - 1),
        }
        connection.executemany("INSERT INTO rgate_meta VALUES (?, ?)", meta.items())
        connection.executemany("INSERT INTO rgate_traffic VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
    connection.close()


def old_rows(span_minutes: int, minute: int) -> list[tuple[object, ...]]:
    """Two requests of 2 ms, one client gone, one lost, two retried with five attempts in all, two passages through a plugin."""
    start = minute - minute % span_minutes
    series: list[tuple[str, int, dict[int, int], int]] = [
        ("orders-1", 200, {7_500: 2}, 4_000),
        ("orders-1", 499, {7_600: 1}, 9_000),
        ("", -1, {0: 1}, 0),
        ("", -3, {6_900: 1, 6_950: 1}, 3),
        ("auth", -2, {7_000: 2}, 600),
    ]
    rows: list[tuple[object, ...]] = []
    for endpoint, status, buckets, sum_us in series:
        names = ("", "") if status == -1 else ("/api/orders", "orders")
        rows += [(span_minutes, start, *names, endpoint, status, bucket, count, 0) for bucket, count in buckets.items()]
        rows.append((span_minutes, start, *names, endpoint, status, -1, 0, sum_us))
    return rows


@pytest.mark.parametrize("span_minutes", [1, 60, DAY_MINUTES])
def test_database_of_the_second_version_is_migrated_with_its_counts(
    path: Path, open_store: Callable[..., Store], span_minutes: int
) -> None:
    now_minute = NOON_MINUTE if span_minutes == 1 else NOON_MINUTE + DAY_MINUTES
    write_version(path, 2, old_rows(span_minutes, NOON_MINUTE))
    store = open_store()
    since = None if span_minutes == DAY_MINUTES else NOON_MINUTE - NOON_MINUTE % span_minutes
    answer = answered(store, "route", since_minute=since, now_minute=now_minute)
    assert answer["requests_count"] == {"success": 2, "error": 0, "client_closed": 1}
    assert answer["latency_ms"]["average"] == 2.0  # type: ignore[index]
    assert answer["retries"] == {"requests": 2, "attempts": 5}
    assert answer["storage"] == {"state": "ok", "lost": 1, "unsaved": 0}
    [group] = answered(store, "plugin", since_minute=since, now_minute=now_minute)["groups"]  # type: ignore[misc, attr-defined]
    assert (group["plugin"], group["count"], group["latency_ms"]["average"]) == ("auth", 2, 0.3)
    assert rows_in(path, "status < 0") == []


def test_migrated_database_is_added_to_and_rolled_up(path: Path, open_store: Callable[..., Store]) -> None:
    write_version(path, 2, old_rows(1, NOON_MINUTE))
    store, other = open_store(), open_store()
    store.add([counted([2])])
    other.add([counted([2]), counted([0], endpoint="", kind=Kind.RETRIED), counted([0], endpoint="", kind=Kind.RETRY)])
    compact_all(store, NOON_MINUTE + 10)
    for since_minute in (NOON_MINUTE, NOON_MINUTE - 200, None):
        answer = answered(store, "route", since_minute=since_minute, now_minute=NOON_MINUTE + 10)
        assert answer["requests_count"] == {"success": 4, "error": 0, "client_closed": 1}
        assert answer["retries"] == {"requests": 3, "attempts": 7}
    connection = sqlite3.connect(path)
    assert dict(connection.execute("SELECT name, value FROM rgate_meta"))["schema_version"] == "3"
    assert [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")] == [
        "rgate_meta",
        "rgate_traffic",
    ]
    connection.close()


def test_database_of_the_first_version_is_migrated_with_its_counts(path: Path, open_store: Callable[..., Store]) -> None:
    write_version(path, 1, [row for row in old_rows(1, NOON_MINUTE) if row[5] not in (-2, -3)])
    answer = answered(open_store(), "route")
    assert answer["requests_count"] == {"success": 2, "error": 0, "client_closed": 1}
    assert answer["storage"] == {"state": "ok", "lost": 1, "unsaved": 0}


def test_file_near_its_limit_is_migrated_without_growing(path: Path, open_store: Callable[..., Store]) -> None:
    rows = [
        (1, NOON_MINUTE - 180 + minute, f"/route/{'x' * 40}", "orders", f"orders-{endpoint}", 200, bucket, 1, 0)
        for minute in range(150)
        for endpoint in range(2)
        for bucket in range(7_000, 7_025)
    ]
    write_version(path, 2, rows)
    size, limit = path.stat().st_size, 1024 * 1024
    assert limit / 2 < size < limit * 3 / 4, "a copy of all rows beside the old ones must not fit"
    store = open_store(max_megabytes=1)
    assert success_of(answered(store, since_minute=NOON_MINUTE - 180)) == len(rows)
    store.close()
    assert path.stat().st_size <= limit


def test_database_of_an_older_version_is_not_read_before_it_is_migrated(path: Path, open_store: Callable[..., Store]) -> None:
    write_version(path, 2, old_rows(1, NOON_MINUTE))
    before = path.read_bytes()
    with pytest.raises(StorageError, match="version 2; a gateway that uses it migrates it to 3 when it starts") as raised:
        report(f"sqlite:///{path}")
    assert raised.value.state == "older"
    assert path.read_bytes() == before


def test_counts_survive_the_store(store: Store, open_store: Callable[..., Store]) -> None:
    store.add([counted()])
    store.close()
    assert success_of(answered(open_store())) == 1


def test_counts_of_two_stores_add_up(store: Store, open_store: Callable[..., Store]) -> None:
    other = open_store()
    for _ in range(3):
        store.add([counted([1])])
        other.add([counted([1])])
    assert success_of(answered(store)) == success_of(answered(other)) == 6


@pytest.mark.parametrize(
    ("by", "expected"),
    [
        (("route",), {("/a",): 3, ("/b",): 1}),
        (("backend",), {("x",): 2, ("y",): 2}),
        (("endpoint",), {("x-1",): 1, ("x-2",): 1, ("y-1",): 2}),
        (("status",), {(200,): 3, (201,): 1}),
        (("route", "backend"), {("/a", "x"): 2, ("/a", "y"): 1, ("/b", "y"): 1}),
    ],
)
def test_reading_is_divided_as_asked(store: Store, by: tuple[str, ...], expected: dict[tuple[object, ...], int]) -> None:
    store.add(
        [
            counted(route="/a", backend="x", endpoint="x-1"),
            counted(route="/a", backend="x", endpoint="x-2"),
            counted(route="/a", backend="y", endpoint="y-1"),
            counted(route="/b", backend="y", endpoint="y-1", status=201),
        ]
    )
    groups = answered(store, *by)["groups"]
    assert isinstance(groups, list)
    assert {tuple(group[name] for name in by): group["requests_count"]["success"] for group in groups} == expected


def test_losses_are_read_as_losses(store: Store) -> None:
    store.add([counted([1, 1], kind=Kind.LOST, route="", backend="", endpoint=""), counted()])
    answer = answered(store, "route")
    assert answer["storage"] == {"state": "ok", "lost": 2, "unsaved": 0}
    assert success_of(answer) == 1


def test_minutes_that_are_over_are_rolled_up_once(store: Store, path: Path) -> None:
    for minutes_ago in (0, 1, 2, 3):
        store.add([counted([1], minute=NOON_MINUTE + 3 - minutes_ago)])
    assert rows_in(path, "span_minutes > 1") == []
    compact_all(store, NOON_MINUTE + 3)
    compact_all(store, NOON_MINUTE + 3)
    assert rows_in(path, "span_minutes > 1") == [(60, NOON_MINUTE, 2), (DAY_MINUTES, NOON_MINUTE - 720, 2)]
    compact_all(store, NOON_MINUTE + 5)
    assert rows_in(path, "span_minutes > 1") == [(60, NOON_MINUTE, 4), (DAY_MINUTES, NOON_MINUTE - 720, 4)]


def test_minutes_are_rolled_up_by_one_of_several_processes(store: Store, open_store: Callable[..., Store]) -> None:
    other = open_store()
    store.add([counted()])
    for now_minute in range(NOON_MINUTE, NOON_MINUTE + 5):
        compact_all(store, now_minute)
        compact_all(other, now_minute)
    assert success_of(answered(store)) == success_of(answered(other)) == 1


def test_counts_that_come_late_are_added_to_all_three(store: Store, path: Path) -> None:
    compact_all(store, NOON_MINUTE + 100)
    store.add([counted(minute=NOON_MINUTE), counted(minute=NOON_MINUTE + 1), counted(minute=NOON_MINUTE + 99)])
    assert rows_in(path) == [
        (1, NOON_MINUTE, 1),
        (1, NOON_MINUTE + 1, 1),
        (1, NOON_MINUTE + 99, 1),
        (60, NOON_MINUTE, 2),
        (DAY_MINUTES, NOON_MINUTE - 720, 2),
    ]
    compact_all(store, NOON_MINUTE + 200)
    assert success_of(answered(store, now_minute=NOON_MINUTE + 200)) == 3


@pytest.mark.parametrize("compacted", [False, True])
@pytest.mark.parametrize(
    ("minutes_ago", "expected", "since"),
    [
        (5, 1, "2027-01-15T11:55:00Z"),
        (30, 2, "2027-01-15T11:30:00Z"),
        (181, 4, "2027-01-15T08:00:00Z"),
        (3 * DAY_MINUTES, 5, "2027-01-12T12:00:00Z"),
        (20 * DAY_MINUTES, 6, "2026-12-26T00:00:00Z"),
    ],
)
def test_since_reads_what_is_younger(
    open_store: Callable[..., Store], compacted: bool, minutes_ago: int, expected: int, since: str
) -> None:
    store = open_store(wall=Clock(NOON - 40 * 86_400))
    for age in (0, 20, 120, 200, 2 * DAY_MINUTES, 15 * DAY_MINUTES, 29 * DAY_MINUTES):
        store.add([counted(minute=NOON_MINUTE - age)])
    if compacted:
        compact_all(store, NOON_MINUTE)
        answer = answered(store, since_minute=NOON_MINUTE - minutes_ago)
        assert (success_of(answer), answer["since"]) == (expected, since)
    assert success_of(answered(store)) == 7


def test_counts_past_their_age_are_dropped(store: Store, path: Path) -> None:
    for days_ago in (0, 1, 8, 9, 30, 31):
        store.add([counted(minute=NOON_MINUTE - days_ago * DAY_MINUTES)])
    compact_all(store, NOON_MINUTE + 2)
    days = {span: [(NOON_MINUTE - start) // DAY_MINUTES for s, start, _ in rows_in(path) if s == span] for span in (1, 60, 1440)}
    assert days == {1: [0], 60: [8, 1, 0], 1440: [30, 9, 8, 1, 0]}
    assert success_of(answered(store, now_minute=NOON_MINUTE + 2)) == 5


def test_retention_is_what_the_options_say(open_store: Callable[..., Store], path: Path) -> None:
    store = open_store(retention_days=2)
    for days_ago in (0, 2, 3):
        store.add([counted(minute=NOON_MINUTE - days_ago * DAY_MINUTES)])
    compact_all(store, NOON_MINUTE + 2)
    assert success_of(answered(store)) == 2


def fill(store: Store, minute: int) -> None:
    store.add([counted([1.02**at for at in range(400)], minute=minute, endpoint=f"orders-{n}") for n in range(2)])


def test_file_that_is_nearly_full_loses_its_oldest_minutes_first(open_store: Callable[..., Store], path: Path) -> None:
    store = open_store(max_megabytes=1)
    for minute in range(NOON_MINUTE, NOON_MINUTE + 25):
        fill(store, minute)
        compact_all(store, minute + 1)
    now_minute = NOON_MINUTE + 25
    minutes = [start for span, start, _ in rows_in(path) if span == 1]
    assert minutes == list(range(minutes[0], now_minute)) and minutes[0] > NOON_MINUTE
    assert path.stat().st_size <= 1024 * 1024
    assert success_of(answered(store, now_minute=now_minute)) == 25 * 800, "hours and days must still have everything"
    answer = answered(store, since_minute=minutes[0] - 1, now_minute=now_minute)
    assert answer["since"] == "2027-01-15T12:00:00Z", "minutes are no longer complete that far back, so hours must answer"
    assert success_of(answered(store, since_minute=minutes[0], now_minute=now_minute)) == len(minutes) * 800


def test_question_about_recent_counts_reads_no_other(store: Store, path: Path) -> None:
    store.add([counted()])
    connection = sqlite3.connect(path)
    _, these = store._row_filter(NOON_MINUTE - 5000, NOON_MINUTE, {"rolled_up_to": str(NOON_MINUTE)})
    for query in (store_module._traffic_query(("route",)), store_module._plugin_time_query(("plugin",))):
        text = str(query.where(these).compile(compile_kwargs={"literal_binds": True}))
        plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {text}")]
        assert [step for step in plan if "SCAN" in step] == [], plan
        assert sum("SEARCH rgate_traffic" in step for step in plan) == 2, plan
    connection.close()


def test_schema_of_an_older_version_is_migrated(
    store: Store, open_store: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    store.add([counted()])

    def add_a_column(connection: Connection) -> None:
        connection.exec_driver_sql("ALTER TABLE rgate_traffic ADD COLUMN attempts INTEGER NOT NULL DEFAULT 1")

    monkeypatch.setattr(store_module, "MIGRATIONS", (*store_module.MIGRATIONS, add_a_column))
    migrated, again = open_store(), open_store()
    migrated.add([counted()])
    again.add([counted()])
    assert success_of(answered(migrated)) == 3


def test_migration_that_fails_leaves_the_database_as_it_was(
    store: Store, open_store: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    store.add([counted()])

    def fail(connection: Connection) -> None:
        connection.exec_driver_sql("ALTER TABLE rgate_traffic ADD COLUMN attempts INTEGER NOT NULL DEFAULT 1")
        raise OSError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(store_module, "MIGRATIONS", (*store_module.MIGRATIONS, fail))
        with pytest.raises(StorageError, match="power cut"):
            open_store().add([counted()])
    assert success_of(answered(open_store())) == 1


def test_schema_of_a_later_version_is_left_alone(store: Store, path: Path, open_store: Callable[..., Store]) -> None:
    store.add([counted()])
    connection = sqlite3.connect(path)
    connection.execute("UPDATE rgate_meta SET value = '7' WHERE name = 'schema_version'")
    connection.commit()
    connection.close()
    with pytest.raises(StorageError, match="version 7; this rgate knows up to 3") as raised:
        open_store().add([counted()])
    assert raised.value.state == "newer"
    assert rows_in(path) == [(1, NOON_MINUTE, 1)]


def test_report_of_a_file_is_what_the_gateway_would_answer(store: Store, path: Path) -> None:
    store.add([counted(), counted(status=500)])
    answer = report(f"sqlite:///{path}", ["status"])
    assert answer["requests_count"] == {"success": 1, "error": 1}
    assert [group["status"] for group in answer["groups"]] == [200, 500]


def test_report_of_an_empty_file_is_zeros_and_leaves_it_empty(path: Path) -> None:
    path.touch()
    assert report(f"sqlite:///{path}")["requests_count"] == {"success": 0, "error": 0}
    assert path.stat().st_size == 0


def test_relative_path_is_where_the_process_was_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = Store("sqlite:///rgate.db")
    monkeypatch.chdir("/")
    store.add([counted()])
    store.close()
    assert (tmp_path / "rgate.db").exists()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("postgresql+nodriver://host/name", "Can't load plugin|nodriver"),
        ("mysql://host/name", "mysql is not one of sqlite, postgresql"),
        ("what is this", "Could not parse"),
    ],
)
def test_url_that_cannot_be_used_is_refused(url: str, message: str) -> None:
    with pytest.raises(PluginError, match=message):
        Store(url)


def test_postgresql_adds_to_the_row_that_is_there() -> None:
    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
    text = str(store_module._addition("postgresql").compile(dialect=dialect))  # type: ignore[attr-defined]
    assert "jsonb_array_elements" in text
    assert "ON CONFLICT (span_minutes, start_minute, route, backend, endpoint, status, kind, bucket) DO UPDATE" in text
    assert "count = (rgate_traffic.count + excluded.count)" in text


def test_postgresql_waits_no_longer_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    class Refusing:
        """A driver whose server does not answer; a connection that notes what it is told."""

        paramstyle, __version__, Error = "pyformat", "2.9.9 (dt dec pq3 ext lo64)", ConnectionError
        extensions = extras = None

        def connect(self, *_: object, **options: object) -> None:
            said.append(f"connect_timeout={options['connect_timeout']}")
            raise ConnectionError("refused")

        cursor, close, commit = (lambda self: self), (lambda self: None), (lambda self: said.append("commit"))

        def execute(self, statement: str) -> None:
            said.append(statement)

    monkeypatch.setitem(sys.modules, "psycopg2", Refusing())
    with pytest.raises(StorageError, match="refused") as raised:
        Store("postgresql+psycopg2://db/rgate").add([counted()])
    assert raised.value.state == "unavailable"
    limit_postgresql(Refusing(), None)
    assert said == ["connect_timeout=2", "SET lock_timeout = 500", "SET statement_timeout = 5000", "commit"]


ADDING = """
import sys
from rgate.plugins.stats.store import Store
from rgate.plugins.stats.report import StorageError
from tests.plugins.stats.traffic import NOON_MINUTE, Clock, counted
store = Store("sqlite:///" + sys.argv[1], wall=Clock())
for at in range(16):
    batch = [counted([1, 2, 4], minute=NOON_MINUTE + at % 7)]
    for step in (lambda: store.add(batch), lambda: store.compact(NOON_MINUTE + at // 4)):
        for attempt in range(80):
            try:
                step()
                break
            except StorageError as trouble:
                assert trouble.state == "locked", trouble
        else:
            raise SystemExit("locked for twenty seconds")
store.close()
"""


def test_processes_that_add_at_once_lose_nothing(path: Path, store: Store) -> None:
    root = Path(__file__).parents[3]
    processes: list[Popen[bytes]] = [Popen([sys.executable, "-c", ADDING, str(path)], cwd=root) for _ in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    assert success_of(answered(store, now_minute=NOON_MINUTE + 7)) == 3 * 16 * 3
    compact_all(store, NOON_MINUTE + 20)
    assert success_of(answered(store, now_minute=NOON_MINUTE + 20)) == 3 * 16 * 3


def test_batch_is_added_as_a_whole_or_not_at_all(store: Store) -> None:
    store.add([counted()])
    bad = counted(route="/z", endpoint=None)  # type: ignore[arg-type]  # which no column takes
    with pytest.raises(StorageError):
        store.add([counted(route="/a"), bad])
    assert success_of(answered(store)) == 1
