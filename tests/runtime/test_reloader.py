"""Who reloads in a single process, and what is told of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rgate import Gateway
from rgate.config.file_watch import LOOK_SECONDS, REST_SECONDS
from rgate.process.reload_trigger import RETRY_SECONDS, ReloadTrigger
from rgate.process.reloader import Reloader
from rgate.runtime.config_file import ConfigFile
from rgate.runtime.reload_coordinator import ReloadCoordinator

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


class GatewayRuntime:
    """A succession and its reloader."""

    def __init__(self, file: Path) -> None:
        self.source = ConfigFile(str(file))
        self.succession = ReloadCoordinator(self.source.compose(), self.source.compose, self._serve)
        self.reloader = Reloader(self.succession, self.source)
        self.reloader.start()

    def _serve(self, gateway: Gateway) -> Callable[[], bool]:
        return lambda: True

    @property
    def body(self) -> str:
        return self.succession.gateway.config.default_response.body

    def end(self) -> None:
        self.reloader.end()
        self.succession.close()


@pytest.fixture
def running(file: Path) -> Iterator[GatewayRuntime]:
    running = GatewayRuntime(file)
    yield running
    running.end()


def test_changed_file_is_taken_up_and_told(running: GatewayRuntime, file: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "rgate.process")
    written(file, "two")
    eventually(lambda: running.body == "two", "it is taken up")
    eventually(lambda: caplog.messages == [f"{file} reloaded"], "it is told")


def test_wanted_reload_takes_up_what_is_there(file: Path) -> None:
    running = GatewayRuntime(written(file, "one", watch=False))
    written(file, "two", watch=False)
    running.reloader.want()
    eventually(lambda: running.body == "two", "it is taken up")
    assert running.reloader.reload() == ""
    running.end()


def test_watching_that_is_turned_on_by_a_reload_begins(file: Path) -> None:
    running = GatewayRuntime(written(file, "one", watch=False))
    written(file, "two", watch=True)
    assert running.reloader.reload() == ""
    written(file, "three")
    eventually(lambda: running.body == "three", "it is seen")
    running.end()


def test_end_waits_for_no_look(file: Path) -> None:
    running = GatewayRuntime(written(file, "one", watch=False))
    running.end()
    written(file, "two")
    assert running.body == "one"


class Clock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


def test_refused_config_is_tried_again_and_told_once(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "rgate.process")
    clock = Clock()
    watching = ReloadTrigger(ConfigFile(str(file), clock=clock), clock)
    watching.concluded("config.yml:1: no", asked=False)
    assert not watching.is_due()
    clock.now += RETRY_SECONDS
    assert watching.is_due()
    watching.concluded("config.yml:1: no", asked=False)
    assert caplog.text.count("is refused") == 1
    watching.concluded("config.yml:1: no", asked=True)
    assert caplog.text.count("is refused") == 2, "who asks is told"
    watching.concluded("config.yml:2: another", asked=False)
    assert caplog.text.count("is refused") == 3
    watching.concluded("", asked=False)
    assert caplog.messages[-1] == f"{file} reloaded"
    clock.now += RETRY_SECONDS
    assert not watching.is_due()


def test_systemd_is_told_of_a_wanted_reload_and_of_every_refusal(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, ...]] = []
    monkeypatch.setattr("rgate.process.systemd.notify", lambda *assignments: told.append(assignments))
    watching = ReloadTrigger(ConfigFile(str(file)))
    watching.begins(asked=False)
    watching.concluded("config.yml:1: no\nconfig.yml:2: no", asked=False)
    refused = "STATUS=refused, the one before is in force: config.yml:1: no; config.yml:2: no"
    assert told == [(refused,)], "it is still ready, and nobody waits"
    watching.begins(asked=True)
    watching.concluded("", asked=True)
    assert told[1][0] == "RELOADING=1"
    assert told[2:] == [("READY=1", "STATUS=")]


def test_change_is_due_when_the_file_is_at_rest(file: Path) -> None:
    clock = Clock()
    watching = ReloadTrigger(ConfigFile(str(file), clock=clock), clock)
    written(file, "two")
    assert not watching.is_due(), "it is not time to look"
    clock.now += LOOK_SECONDS
    assert not watching.is_due(), "it may still be written"
    clock.now += REST_SECONDS
    assert watching.is_due()


def test_what_stays_is_logged(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = ConfigFile(str(file))
    before = source.compose()
    file.write_text(file.read_text().replace("server: {", "server: {port: 9, host: 0.0.0.0, workers: 3, threads: 9, "))
    after = source.compose(before)
    assert (after.config.server.port, after.config.server.host, after.config.server.workers) == (8080, "127.0.0.1", 1)
    with caplog.at_level(logging.WARNING):
        ReloadTrigger(source).concluded("", asked=False)
    assert caplog.messages == [
        "server.host stays 127.0.0.1 until a restart (the config says 0.0.0.0)",
        "server.port stays 8080 until a restart (the config says 9)",
        "server.workers stays 1 until a restart (the config says 3)",
        "server.threads stays 8 until a restart (the config says 9)",
    ]


def test_tls_that_comes_or_goes_stays_as_it_was(file: Path) -> None:
    certificate = str(Path(__file__).parent.parent / "forwarding" / "certificates" / "server.pem")
    source = ConfigFile(str(file))
    before = source.compose()
    file.write_text(file.read_text().replace("server: {", f"server: {{tls: {{certificate: {certificate}}}, "))
    after = source.compose(before)
    assert (after.tls, source.stays) == (None, ("server.tls stays off until a restart",))
    with_tls = ConfigFile(str(file)).compose()
    file.write_text(file.read_text().replace("tls: {", "tls: {redirect_port: 0, "))
    after = source.compose(with_tls)
    assert after.config.server.tls is not None and after.config.server.tls.redirect_port is None
    assert source.stays == ("server.tls.redirect_port stays until a restart",)
    assert after.tls is not None
