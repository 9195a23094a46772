"""A database that is locked, read-only, full, broken or gone: nothing is slow, nothing raises, and it is said."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from rgate.plugins.stats.aggregator import Aggregator
from rgate.plugins.stats.query import Query
from rgate.plugins.stats.recorder import Recorder
from rgate.plugins.stats.report import StorageError, report
from rgate.plugins.stats.store import Store

from ...support.waiting import eventually
from .traffic import NOON_MINUTE, Clock, answered, counted, finished, success_of


class Statistics:
    """A recorder over a real file, with clocks that stand still between its steps."""

    def __init__(self, url: str, **options: int) -> None:
        self.clock = Clock()
        self.store = Store(url, wall=self.clock, **options)  # type: ignore[arg-type]
        self.pending = Aggregator(wall=self.clock, max_keys=300)
        self.recorder = Recorder(self.store, self.pending, wall=self.clock, clock=self.clock)
        self.recorder._running = True  # its database stays open as in service, but nothing happens by itself

    def count(self, times: int = 1, ms: float = 1) -> None:
        for _ in range(times):
            self.pending.record(finished(ms=ms))

    def later(self) -> None:
        self.clock.seconds += 2

    def answer(self) -> dict[str, object]:
        return self.recorder.report(Query())

    def state(self) -> object:
        storage = self.answer().get("storage", {"state": "ok"})
        assert isinstance(storage, dict)
        return storage["state"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rgate.db"


@pytest.fixture
def begin(path: Path) -> Iterator[Callable[..., Statistics]]:
    begun: list[Statistics] = []

    def begin(url: str = f"sqlite:///{path}", **options: int) -> Statistics:
        begun.append(Statistics(url, **options))
        return begun[-1]

    yield begin
    for each in begun:
        each.store.close()


@pytest.fixture
def statistics(begin: Callable[..., Statistics]) -> Statistics:
    """Statistics that have saved one exchange."""
    statistics = begin()
    statistics.count()
    assert success_of(statistics.answer()) == 1
    return statistics


@contextmanager
def locked(path: Path, kind: str = "IMMEDIATE", mode: str = "NORMAL") -> Iterator[None]:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(f"PRAGMA locking_mode={mode}").close()
        connection.execute(f"BEGIN {kind}")
        connection.execute("INSERT INTO rgate_meta VALUES ('test', 'x')")
        yield
        connection.execute("ROLLBACK")


def storage_of(answer: dict[str, object]) -> dict[str, object]:
    storage = answer.get("storage")
    assert isinstance(storage, dict), f"the trouble is not shown in {answer}"
    return storage


def test_locked_database_is_waited_for_in_memory(statistics: Statistics, path: Path) -> None:
    statistics.count(2)
    with locked(path):
        answer = statistics.answer()
    assert success_of(answer) == 3, "what is saved can still be read"
    assert storage_of(answer) == {"state": "locked", "lost": 0, "unsaved": 2}
    statistics.later()
    assert (success_of(statistics.answer()), statistics.state()) == (3, "ok")
    assert success_of(answered(statistics.store)) == 3


def test_lock_that_keeps_readers_out_leaves_what_is_in_memory(statistics: Statistics, path: Path) -> None:
    statistics.store.close()
    statistics.count(2)
    with locked(path, "EXCLUSIVE", "EXCLUSIVE"):
        answer = statistics.answer()
    assert success_of(answer) == 2
    assert storage_of(answer) == {"state": "locked", "lost": 0, "unsaved": 2}
    statistics.later()
    assert (success_of(statistics.answer()), statistics.state()) == (3, "ok")


def test_lock_that_outlasts_the_memory_loses_counts_and_says_how_many(statistics: Statistics, path: Path) -> None:
    with locked(path):
        for at in range(400):
            statistics.count(ms=1.02**at)
            if at % 50 == 0:
                statistics.answer()
        lost = storage_of(statistics.answer())["lost"]
    assert isinstance(lost, int) and lost > 0
    statistics.later()
    answer = statistics.answer()
    assert storage_of(answer) == {"state": "ok", "lost": lost, "unsaved": 0}, "the loss must stay known"
    assert success_of(answer) == 401 - lost
    assert storage_of(report(f"sqlite:///{path}"))["lost"] == lost


def test_read_only_database_is_still_read(statistics: Statistics, path: Path, begin: Callable[..., Statistics]) -> None:
    reading = begin(f"sqlite:///file:{path}?mode=ro&uri=true")
    reading.count(2)
    answer = reading.answer()
    assert success_of(answer) == 3
    assert storage_of(answer) == {"state": "read_only", "lost": 0, "unsaved": 2}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anything")
@pytest.mark.parametrize("which", ["file", "folder"])
def test_file_or_folder_without_permission_is_trouble(path: Path, begin: Callable[..., Statistics], which: str) -> None:
    first = begin()
    first.answer()
    first.store.close()
    read_only = path if which == "file" else path.parent
    mode = read_only.stat().st_mode
    read_only.chmod(0o555)
    statistics = begin()
    statistics.count()
    try:
        assert statistics.state() in ("read_only", "unavailable")
    finally:
        read_only.chmod(mode)
        for log in path.parent.glob("rgate.db-*"):
            log.chmod(0o644)  # sqlite makes them as the file is
    statistics.later()
    statistics.answer()  # finds that its connection can only read, and opens another
    statistics.later()
    assert (success_of(statistics.answer()), statistics.state()) == (1, "ok")


def fill(statistics: Statistics, minute: int) -> int:
    """Add counts of one minute until the file is full; return how many there are."""
    for endpoint in range(1_000):
        try:
            statistics.store.add([counted([1.02**at for at in range(100)], minute=minute, endpoint=str(endpoint))])
        except StorageError as trouble:
            assert trouble.state == "full", trouble
            return endpoint * 100
    raise AssertionError("the file grew without bound")


def test_full_database_is_trouble(begin: Callable[..., Statistics], path: Path) -> None:
    statistics = begin(max_megabytes=1)
    stored = fill(statistics, NOON_MINUTE)
    assert path.stat().st_size <= 1024 * 1024
    for at in range(200):
        statistics.count(ms=1.02**at)
    answer = statistics.answer()
    assert success_of(answer) == stored + 200
    assert storage_of(answer) == {"state": "full", "lost": 0, "unsaved": 200}


def test_full_database_drops_its_oldest_minute_and_counts_it_as_lost(begin: Callable[..., Statistics], path: Path) -> None:
    statistics = begin(max_megabytes=1)
    stored = fill(statistics, NOON_MINUTE) + fill(statistics, NOON_MINUTE + 1)
    assert stored > 1_000
    now_minute = NOON_MINUTE + 2
    statistics.clock.seconds += 120
    steps = 0
    while statistics.store.compact(now_minute):
        steps += 1
        assert steps < 20, "compacting does not come to an end"
    statistics.count(5)
    answer = statistics.answer()
    lost = storage_of(answer)["lost"]
    assert isinstance(lost, int) and lost > 0
    assert storage_of(answer) == {"state": "ok", "lost": lost, "unsaved": 0}
    assert success_of(answer) == stored - lost + 5
    assert path.stat().st_size <= 1024 * 1024


BROKEN: dict[str, Callable[[bytes], bytes]] = {
    "all": lambda content: os.urandom(len(content)),
    "the first page": lambda content: os.urandom(4096) + content[4096:],
    "all but the header": lambda content: content[:100] + os.urandom(len(content) - 100),
    "all but the first page": lambda content: content[:4096] + os.urandom(len(content) - 4096),
}


@pytest.mark.parametrize("how", BROKEN)
def test_corrupt_database_is_set_aside_and_a_new_one_begun(
    statistics: Statistics, path: Path, begin: Callable[..., Statistics], how: str, caplog: pytest.LogCaptureFixture
) -> None:
    statistics.store.close()
    broken = BROKEN[how](path.read_bytes())
    path.write_bytes(broken)
    after = begin()
    after.count(2)
    answer = after.answer()
    assert success_of(answer) == 2
    assert storage_of(answer)["state"] == "corrupt"
    after.later()
    after.count()
    answer = after.answer()
    [aside] = path.parent.glob("rgate.db.corrupt-*Z")
    assert aside.read_bytes() == broken
    assert success_of(answer) == 3
    begun = storage_of(answer)["begun"]
    assert begun == {"at": "2027-01-15T12:00:00+00:00", "because": f"the file was corrupt and is set aside as {aside.name}"}
    assert f"renamed to {aside.name}" in caplog.text
    assert storage_of(report(f"sqlite:///{path}"))["begun"] == begun, "it must be known to every process"


def test_database_that_breaks_while_in_use_is_set_aside(statistics: Statistics, path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").close()
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(path.stat().st_size - 4096))
    statistics.store.close()
    statistics.count()
    assert statistics.state() == "corrupt"
    statistics.later()
    assert success_of(statistics.answer()) == 1


def test_corruption_is_repaired_by_one_of_several_processes(
    statistics: Statistics, path: Path, begin: Callable[..., Statistics]
) -> None:
    statistics.store.close()
    path.write_bytes(os.urandom(20_000))
    one, other = begin(), begin()
    one.store._file.note()  # type: ignore[union-attr]
    other.store._file.note()  # type: ignore[union-attr]
    assert one.store._file.set_aside(one.clock()) is not None  # type: ignore[union-attr]
    assert other.store._file.set_aside(one.clock()) is None  # type: ignore[union-attr]
    one.count()
    other.count()
    assert success_of(one.answer()) == 1
    assert success_of(other.answer()) == 2
    assert len(list(path.parent.glob("rgate.db.corrupt-*Z"))) == 1


def test_corrupt_file_takes_its_log_along(statistics: Statistics, path: Path, begin: Callable[..., Statistics]) -> None:
    statistics.store.close()
    path.write_bytes(os.urandom(20_000))
    path.with_name("rgate.db-wal").write_bytes(b"log")
    path.with_name("rgate.db-shm").write_bytes(b"index")
    statistics.store._file.note()  # type: ignore[union-attr]
    name = statistics.store._file.set_aside(statistics.clock())  # type: ignore[union-attr]
    assert {file.name for file in path.parent.iterdir()} == {name, f"{name}-wal"}


def test_files_set_aside_are_kept_three_at_most(path: Path, begin: Callable[..., Statistics]) -> None:
    statistics = begin()
    for _ in range(5):
        path.write_bytes(os.urandom(20_000))
        statistics.count()
        assert statistics.state() == "corrupt"
        statistics.later()
        assert statistics.state() == "ok"
        statistics.store.close()
    assert len(list(path.parent.glob("rgate.db.corrupt-*Z"))) == 3


def test_corrupt_file_that_cannot_be_moved_is_trouble(
    path: Path, begin: Callable[..., Statistics], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, target: object) -> Path:
        raise PermissionError("read-only file system")

    path.write_bytes(os.urandom(20_000))
    statistics = begin()
    statistics.count()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", refuse)
        assert storage_of(statistics.answer()) == {"state": "corrupt", "lost": 0, "unsaved": 1}
    statistics.later()
    assert statistics.state() == "corrupt"
    statistics.later()
    assert success_of(statistics.answer()) == 1


def test_file_that_may_be_somebody_elses_is_left_alone(tmp_path: Path, begin: Callable[..., Statistics]) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("not a database\n" * 1000)
    statistics = begin(f"sqlite:///{notes}")
    statistics.count()
    assert storage_of(statistics.answer()) == {"state": "corrupt", "lost": 0, "unsaved": 1}
    assert notes.read_text() == "not a database\n" * 1000
    assert list(tmp_path.iterdir()) == [notes]


@pytest.mark.parametrize("suffixes", [[""], ["", "-wal", "-shm"]])
def test_vanished_database_is_begun_anew(statistics: Statistics, path: Path, suffixes: list[str]) -> None:
    for suffix in suffixes:
        path.with_name(f"rgate.db{suffix}").unlink()
    statistics.count(2)
    answer = statistics.answer()
    assert success_of(answer) == 2
    assert storage_of(answer)["begun"] == {"at": "2027-01-15T12:00:00+00:00", "because": "the counts had vanished"}
    statistics.count()
    assert success_of(statistics.answer()) == 3
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_beginning_anew_is_shown_until_nothing_is_missing_any_more(statistics: Statistics, path: Path) -> None:
    path.unlink()
    statistics.answer()
    statistics.clock.seconds += 29 * 86_400
    assert "begun" in storage_of(statistics.answer())
    statistics.clock.seconds += 3 * 86_400
    assert "storage" not in statistics.answer()


def test_emptied_database_is_begun_anew(statistics: Statistics, path: Path) -> None:
    statistics.store.close()
    path.write_bytes(b"")
    statistics.count()
    answer = statistics.answer()
    assert success_of(answer) == 1
    assert "begun" in storage_of(answer)


def test_folder_that_vanishes_is_trouble_until_it_is_back(begin: Callable[..., Statistics], tmp_path: Path) -> None:
    folder = tmp_path / "var"
    folder.mkdir()
    statistics = begin(f"sqlite:///{folder}/rgate.db")
    statistics.count()
    statistics.answer()
    folder.rename(tmp_path / "away")
    statistics.count()
    answer = statistics.answer()
    assert (success_of(answer), storage_of(answer)["state"]) == (1, "read_only")
    (tmp_path / "away").rename(folder)
    statistics.later()
    assert (success_of(statistics.answer()), statistics.state()) == (2, "ok")


def test_database_replaced_by_another_is_opened(statistics: Statistics, path: Path, begin: Callable[..., Statistics]) -> None:
    other = path.with_name("other.db")
    elsewhere = begin(f"sqlite:///{other}")
    elsewhere.count(10)
    elsewhere.answer()
    elsewhere.store.close()
    other.replace(path)
    for suffix in ("-wal", "-shm"):
        path.with_name(f"rgate.db{suffix}").unlink()
    statistics.count()
    assert success_of(statistics.answer()) == 11


def test_batch_written_to_a_file_just_moved_away_is_written_again(
    statistics: Statistics, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = statistics.store._file
    assert file is not None
    moved = iter([False, True])
    monkeypatch.setattr(type(file), "moved", lambda self: next(moved, False))
    with pytest.raises(StorageError, match="moved away while it was written to"):
        statistics.store.add([counted()])


@pytest.mark.parametrize("statement", ["DELETE FROM rgate_meta WHERE name = 'rolled_up_to'", "UPDATE rgate_meta SET value = 'x'"])
def test_database_that_holds_something_else_is_trouble(statistics: Statistics, path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(statement)
        connection.commit()
    statistics.count()
    answer = statistics.answer()
    assert (success_of(answer), storage_of(answer)["state"]) == (1, "unavailable")


def test_locked_database_is_not_compacted(statistics: Statistics, path: Path) -> None:
    with locked(path), pytest.raises(StorageError, match="locked"):
        statistics.store.compact(NOON_MINUTE)


def test_database_that_cannot_be_made_is_told_at_the_start_with_its_place(
    begin: Callable[..., Statistics], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "none"
    statistics = begin(f"sqlite:///{folder}/rgate.db")
    with statistics.recorder as recorder:
        notice = eventually(lambda: recorder.warnings.get("statistics", ""), "before any request")
        assert f"{folder}/rgate.db" in notice and "plugins.stats.database" in notice
        assert notice.startswith("database read_only: ")
        assert notice.removeprefix("database read_only: ") in caplog.text
        folder.mkdir()
        statistics.later()
        statistics.count()
        assert recorder.flush() and not recorder.warnings
