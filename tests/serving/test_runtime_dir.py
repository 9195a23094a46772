"""runtime_dir: where admin sockets are, and which of them a process listens on."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from rgate.serving.runtime_dir import admin_sockets, directories, make_directory, socket_name


@pytest.fixture
def folder() -> Iterator[Path]:
    with TemporaryDirectory(prefix="rgate-") as name:
        yield Path(name)


def listening(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    sock.listen()
    return sock


def test_directories_are_of_the_unit_the_system_the_user_and_one_in_tmp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rgate.serving.runtime_dir.SYSTEM", "/run/rgate")
    own = f"/tmp/rgate-{os.geteuid()}"
    assert directories({}) == ["/run/rgate", own]
    assert directories({"XDG_RUNTIME_DIR": "/run/user/7"}) == ["/run/rgate", "/run/user/7/rgate", own]
    assert directories({"RUNTIME_DIRECTORY": "/run/a:/run/b"}) == ["/run/a", "/run/rgate", own]
    assert directories({"RUNTIME_DIRECTORY": "/run/rgate", "XDG_RUNTIME_DIR": "relative"}) == ["/run/rgate", own]


@pytest.mark.parametrize(
    ("host", "name"),
    [("127.0.0.1", "8080.sock"), ("0.0.0.0", "8080.sock"), ("::", "8080.sock"), ("192.0.2.1", "192.0.2.1:8080.sock")],
)
def test_socket_name_has_the_port_and_a_specific_address(host: str, name: str) -> None:
    assert socket_name(host, 8080) == name


def test_only_sockets_with_a_listener_are_found(folder: Path) -> None:
    (folder / "8081.sock").touch()
    (folder / "other.sock").touch()
    listening(folder / "8082.sock").close()
    with listening(folder / "8083.sock"), listening(folder / "[::1]:8084.sock"):
        found = admin_sockets({"RUNTIME_DIRECTORY": str(folder)})
        assert [(Path(each.path).name, each.host, each.port, each.accessible) for each in found] == [
            ("8083.sock", "", 8083, True),
            ("[::1]:8084.sock", "[::1]", 8084, True),
        ]
        assert [each.port for each in admin_sockets({"RUNTIME_DIRECTORY": str(folder)}, port=8083)] == [8083]


def test_directory_is_made_for_its_user_alone(folder: Path) -> None:
    make_directory(str(folder / "rgate" / "8080.sock"))
    assert (folder / "rgate").stat().st_mode & 0o777 == 0o700
    make_directory(str(folder / "rgate" / "8080.sock"))


def test_directory_in_tmp_that_others_may_write_to_is_not_used(folder: Path) -> None:
    """Another user may have made it, and would receive requests meant for the gateway."""
    with listening(folder / "8080.sock"):
        folder.chmod(0o777)
        with pytest.raises(OSError, match="accessible to other users"):
            make_directory(str(folder / "8080.sock"))
        assert admin_sockets({"RUNTIME_DIRECTORY": str(folder)}) == []
        folder.chmod(0o700)
        link = folder / "link"
        link.symlink_to(folder)
        with pytest.raises(OSError, match="accessible to other users"):
            make_directory(str(link / "8080.sock"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_directory_in_tmp_of_another_user_is_not_used(folder: Path) -> None:
    os.chown(folder, 12_345, -1)
    with pytest.raises(OSError, match="accessible to other users"):
        make_directory(str(folder / "8080.sock"))
    os.chown(folder, os.geteuid(), -1)


def test_path_that_is_too_long_for_a_socket_is_refused(folder: Path) -> None:
    with pytest.raises(OSError, match="more than 96 bytes"):
        make_directory(str(folder / ("x" * 90) / "8080.sock"))
