"""When a config is read again in a single process, and what is logged about it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from rgate.config.file_watch import DEBOUNCE_SECONDS, POLL_SECONDS
from rgate.process.reload import RETRY_SECONDS, ReloadThread, ReloadTrigger
from rgate.runtime.reload import ConfigFile

from ..support.waiting import eventually

CONFIG = """
plugins: {{disable: [stats]}}
server: {{reload_on_change: {watch}}}
default_response: {{body: "{body}"}}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return written(tmp_path / "config.yml", "one")


def written(file: Path, body: str, watch: bool = True) -> Path:
    new = file.with_name("new")
    new.write_text(CONFIG.format(body=body, watch=str(watch).lower()))
    new.replace(file)
    return file


class Running:
    """A runtime whose gateway is reloaded by a ReloadThread."""

    def __init__(self, file: Path) -> None:
        source = ConfigFile(str(file))
        first = source.build_gateway()
        self.runtime = first.runtime
        self.runtime.start(first)
        self.reloads = ReloadThread(
            self.runtime, source, lambda: self.runtime.reload(source.build_gateway, lambda gateway: lambda: True)
        )
        self.reloads.start()

    @property
    def body(self) -> str:
        assert self.runtime.current is not None
        return self.runtime.current.config.default_response.body

    def end(self) -> None:
        self.reloads.stop()
        self.runtime.stop()


@pytest.fixture
def running(file: Path) -> Iterator[Running]:
    running = Running(file)
    yield running
    running.end()


def test_changed_file_is_made_active_and_logged(running: Running, file: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "rgate.process")
    written(file, "two")
    eventually(lambda: running.body == "two", "it is active")
    eventually(lambda: caplog.messages == [f"{file} reloaded"], "it is logged")


def test_requested_reload_makes_the_file_active(file: Path) -> None:
    running = Running(written(file, "one", watch=False))
    written(file, "two", watch=False)
    running.reloads.request()
    eventually(lambda: running.body == "two", "it is active")
    assert running.reloads.reload() == ""
    running.end()


def test_checking_files_begins_when_a_reload_turns_it_on(file: Path) -> None:
    running = Running(written(file, "one", watch=False))
    written(file, "two", watch=True)
    assert running.reloads.reload() == ""
    written(file, "three")
    eventually(lambda: running.body == "three", "it is seen")
    running.end()


def test_stop_does_not_wait_for_the_next_check(file: Path) -> None:
    running = Running(written(file, "one", watch=False))
    running.end()
    written(file, "two")
    assert running.body == "one"


class Clock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


def test_refused_config_is_tried_again_and_logged_once(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "rgate.process")
    clock = Clock()
    trigger = ReloadTrigger(ConfigFile(str(file), clock=clock), clock)
    trigger.on_finished("config.yml:1: no", requested=False)
    assert not trigger.is_due()
    clock.now += RETRY_SECONDS
    assert trigger.is_due()
    trigger.on_finished("config.yml:1: no", requested=False)
    assert caplog.text.count("is refused") == 1
    trigger.on_finished("config.yml:1: no", requested=True)
    assert caplog.text.count("is refused") == 2, "again for a caller that waits"
    trigger.on_finished("config.yml:2: another", requested=False)
    assert caplog.text.count("is refused") == 3
    trigger.on_finished("", requested=False)
    assert caplog.messages[-1] == f"{file} reloaded"
    clock.now += RETRY_SECONDS
    assert not trigger.is_due()


def test_systemd_is_notified_of_a_requested_reload_and_of_every_refusal(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, ...]] = []
    monkeypatch.setattr("rgate.process.systemd.notify", lambda *assignments: told.append(assignments))
    trigger = ReloadTrigger(ConfigFile(str(file)))
    trigger.on_start(requested=False)
    trigger.on_finished("config.yml:1: no\nconfig.yml:2: no", requested=False)
    refused = "STATUS=refused, the config before stays active: config.yml:1: no; config.yml:2: no"
    assert told == [(refused,)], "it is still ready, and no caller waits"
    trigger.on_start(requested=True)
    trigger.on_finished("", requested=True)
    assert told[1][0] == "RELOADING=1"
    assert told[2:] == [("READY=1", "STATUS=")]


def test_change_is_due_when_the_file_is_at_rest(file: Path) -> None:
    clock = Clock()
    trigger = ReloadTrigger(ConfigFile(str(file), clock=clock), clock)
    written(file, "two")
    assert not trigger.is_due(), "it is not time to look"
    clock.now += POLL_SECONDS
    assert not trigger.is_due(), "it may still be written"
    clock.now += DEBOUNCE_SECONDS
    assert trigger.is_due()


def test_keys_that_need_a_restart_are_logged(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = ConfigFile(str(file))
    before = source.build_gateway()
    file.write_text(file.read_text().replace("server: {", "server: {port: 9, host: 0.0.0.0, workers: 3, threads: 9, "))
    after = source.build_gateway(before.runtime)
    assert (after.config.server.port, after.config.server.host, after.config.server.workers) == (8080, "127.0.0.1", 1)
    with caplog.at_level(logging.WARNING):
        ReloadTrigger(source).on_finished("", requested=False)
    assert caplog.messages == [
        "server.host stays 127.0.0.1 until a restart (the config says 0.0.0.0)",
        "server.port stays 8080 until a restart (the config says 9)",
        "server.workers stays 1 until a restart (the config says 3)",
        "server.threads stays 8 until a restart (the config says 9)",
    ]
