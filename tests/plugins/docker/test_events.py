"""Event, signals, and rgate's own container. No I/O, but for files in a directory of the test's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rgate.plugins.docker.events import Event, is_stop, stop_signal, stop_timeout_seconds
from rgate.plugins.docker.self_container import own_container_id

ANYTHING = st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.none())
ACTOR = st.dictionaries(st.sampled_from(["ID", "Attributes"]), ANYTHING | st.dictionaries(st.just("signal"), ANYTHING))


def test_event_of_a_container_is_read() -> None:
    attributes = {"app": "a", "image": "web", "signal": "15"}
    record = {"Type": "container", "Action": "kill", "Actor": {"ID": "c", "Attributes": attributes}, "timeNano": 7}
    read = Event.read(record)
    assert read == Event("kill", "c", attributes, 7)
    assert read.signal == 15
    assert read.has_any_label(["env", "app"])
    assert not read.has_any_label(["env"])


def test_event_of_a_network_is_about_its_container() -> None:
    record = {"Type": "network", "Action": "connect", "Actor": {"ID": "n", "Attributes": {"container": "c", "name": "front"}}}
    assert (Event.read(record).action, Event.read(record).container) == ("connect", "c")


def test_event_of_health_is_read_without_what_it_says() -> None:
    assert Event.read({"Type": "container", "Action": "health_status: unhealthy"}).action == "health_status"


@given(st.dictionaries(st.sampled_from(["Type", "Action", "timeNano"]), ANYTHING), ANYTHING | ACTOR)
def test_no_event_makes_reading_crash(record: dict[str, Any], actor: Any) -> None:
    read = Event.read({**record, "Actor": actor})
    assert isinstance(is_stop(read.signal), bool)
    assert not read.has_any_label(["app"])


@pytest.mark.parametrize(
    ("signal", "number"),
    [
        ("SIGTERM", 15),
        ("TERM", 15),
        ("15", 15),
        (15, 15),
        ("SIGRTMIN+3", 37),
        ("RTMIN", 34),
        ("", 15),
        (None, 15),
        ("SIGX", 15),
    ],
)
def test_stop_signal_is_read_in_every_form(signal: Any, number: int) -> None:
    assert stop_signal({"Config": {"StopSignal": signal}}) == number


@pytest.mark.parametrize(("config", "seconds"), [({"StopTimeout": 30}, 30), ({"StopTimeout": 0}, 0), ({}, 10), (None, 10)])
def test_stop_timeout_is_the_containers_or_ten_seconds(config: Any, seconds: float) -> None:
    assert stop_timeout_seconds({"Config": config}) == seconds


@given(st.text())
def test_any_signal_text_is_a_number(text: str) -> None:
    signal = Event.read({"Actor": {"Attributes": {"signal": text}}}).signal
    assert isinstance(is_stop(signal), bool)


ID = "0123456789abcdef" * 4


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "proc/self").mkdir(parents=True)
    return tmp_path


@pytest.mark.parametrize(
    "source",
    [
        f"/var/lib/docker/containers/{ID}/hostname /etc/hostname",
        f"/@docker/containers/{ID}/resolv.conf /etc/resolv.conf",
        f"/lib/containers/storage/overlay-containers/{ID}/userdata/hosts /etc/hosts",
    ],
)
def test_own_id_is_in_the_mounts(root: Path, source: str) -> None:
    (root / "proc/self/mountinfo").write_text(f"1 2 0:1 / / rw - overlay\n677 671 8:1 {source} rw,relatime - ext4 /dev/sda1 rw\n")
    assert own_container_id(root, "host") == ID


def test_own_id_is_not_that_of_a_container_whose_mounts_the_host_shows(root: Path) -> None:
    (root / "proc/self/mountinfo").write_text(
        f"90 2 0:5 / /var/lib/docker/containers/{ID}/mounts/shm rw - tmpfs shm rw\n"
        f"91 2 8:1 / /var/lib/docker/containers/{ID}/hostname rw - ext4 /dev/sda1 rw\n"
    )
    assert own_container_id(root, "host") == ""


@pytest.mark.parametrize("group", [f"12:memory:/docker/{ID}", f"0::/system.slice/docker-{ID}.scope"])
def test_own_id_is_in_the_control_group(root: Path, group: str) -> None:
    (root / "proc/self/cgroup").write_text(f"13:cpu:/\n{group}\n1:name=systemd:/\n")
    assert own_container_id(root, "host") == ID


def test_own_id_is_the_host_name_in_a_container_only(root: Path) -> None:
    assert own_container_id(root, "0123456789ab") == ""
    (root / ".dockerenv").touch()
    assert own_container_id(root, "0123456789ab") == "0123456789ab"
    assert own_container_id(root, "web") == ""


def test_own_id_is_empty_where_there_is_no_proc(tmp_path: Path) -> None:
    assert own_container_id(tmp_path, "0123456789ab") == ""
