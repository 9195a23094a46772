"""Files that change under a watch, by every way that there is, at times that the test decides."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rgate.config.file_watch import DEBOUNCE_SECONDS, POLL_SECONDS, FileWatch, fingerprint


class Clock:
    """A clock that stands until it is moved."""

    now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "config.yml"
    path.write_text("one")
    return path


def looks(watch: FileWatch, times: int = 2) -> list[bool]:
    """What so many looks find."""
    return [watch.changed() for _ in range(times)]


def test_file_as_it_was_has_not_changed(file: Path) -> None:
    assert looks(FileWatch(str(file)), 3) == [False] * 3


def test_file_written_to_has_changed_once_it_is_at_rest(file: Path) -> None:
    watch = FileWatch(str(file))
    file.write_text("half of")
    assert looks(watch, 1) == [False], "it may be half of what is to come"
    file.write_text("half of it, and the other")
    assert looks(watch, 1) == [False], "it is not at rest yet"
    assert looks(watch) == [True, False], "and it is said once"


def test_file_replaced_by_another_has_changed(file: Path) -> None:
    watch = FileWatch(str(file))
    other = file.with_name("config.yml.new")
    other.write_text("two")
    other.replace(file)
    assert looks(watch) == [False, True]


def test_file_of_the_same_content_has_not_changed(file: Path) -> None:
    watch = FileWatch(str(file))
    other = file.with_name("config.yml.new")
    other.write_text("one")
    other.replace(file)
    os.utime(file, (1, 1))
    assert looks(watch, 3) == [False] * 3


def test_file_of_the_same_size_and_time_has_changed(file: Path) -> None:
    watch = FileWatch(str(file))
    times = file.stat()
    file.write_text("two")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert looks(watch) == [False, True]


def test_link_that_leads_elsewhere_has_changed(tmp_path: Path) -> None:
    """As Kubernetes mounts a ConfigMap: config.yml → ..data/config.yml, ..data → ..2026_11_24, which is replaced."""
    for version, text in (("..1", "one"), ("..2", "two")):
        (tmp_path / version).mkdir()
        (tmp_path / version / "config.yml").write_text(text)
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "config.yml").symlink_to("..data/config.yml")
    watch = FileWatch(str(tmp_path / "config.yml"))
    (tmp_path / "..data_tmp").symlink_to("..2")
    (tmp_path / "..data_tmp").replace(tmp_path / "..data")
    assert looks(watch) == [False, True]


def test_file_that_is_gone_for_a_moment_has_not_changed(file: Path) -> None:
    watch = FileWatch(str(file))
    file.unlink()
    assert not watch.changed()
    file.write_text("one")
    assert looks(watch, 3) == [False] * 3


def test_file_that_is_gone_has_changed_and_changes_when_it_comes_back(file: Path) -> None:
    watch = FileWatch(str(file))
    file.unlink()
    assert looks(watch, 3) == [False, True, False]
    file.write_text("one")
    assert looks(watch, 3) == [False, True, False]


def test_mark_read_makes_a_change_known(file: Path) -> None:
    watch = FileWatch(str(file))
    file.write_text("two")
    watch.mark_read()
    assert looks(watch, 3) == [False] * 3


def test_set_files_another_file_as_well_is_no_change_of_its_own(file: Path) -> None:
    watch = FileWatch(str(file))
    key = file.with_name("key.pem")
    key.write_text("key")
    watch.set_files([str(file), str(key)])
    assert looks(watch, 3) == [False] * 3
    key.write_text("another")
    assert looks(watch) == [False, True]


def test_set_files_keeps_in_mind_what_has_not_been_told(file: Path) -> None:
    watch = FileWatch(str(file))
    file.write_text("two")
    watch.set_files([str(file)])
    assert looks(watch) == [False, True]


def test_next_poll_at_is_soon_while_something_moves(file: Path, clock: Clock) -> None:
    watch = FileWatch(str(file), clock=clock)
    assert watch.next_poll_at == clock.now + POLL_SECONDS
    file.write_text("two")
    watch.changed()
    assert watch.next_poll_at == clock.now + DEBOUNCE_SECONDS
    watch.changed()
    assert watch.next_poll_at == clock.now + POLL_SECONDS


def test_contents_are_equal_only_with_equal_files(file: Path) -> None:
    other = file.with_name("other")
    other.write_text("two")
    before = fingerprint([str(file), str(other)])
    assert fingerprint([str(file), str(other)]) == before
    assert fingerprint([str(other), str(file)]) != before
    other.unlink()
    assert fingerprint([str(file), str(other)]) != before
