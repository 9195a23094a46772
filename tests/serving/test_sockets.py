"""sockets: refusing new connections, and pending handshakes."""

from __future__ import annotations

import errno
import select
import socket
import sys
from pathlib import Path

import pytest

from rgate.serving.sockets import drop_new_syns, has_pending_handshakes, listen

HEADING = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
ROW = "   0: 0100007F:{port:04X} 0100007F:C350 {state} 00000000:00000000 00:00000000 00000000 0 0 12345\n"


@pytest.mark.skipif(sys.platform != "linux", reason="socket filters exist on Linux only")
def test_new_connections_are_dropped_and_established_ones_are_not() -> None:
    with listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()) as before:
        drop_new_syns(listener)
        with socket.socket() as after:
            after.setblocking(False)
            assert after.connect_ex(listener.getsockname()) == errno.EINPROGRESS
            assert not select.select([], [after], [], 0.05)[1], "as if the packet had been lost"
            before.sendall(b"hello")
            accepted, peer = listener.accept()
            with accepted:
                assert peer == before.getsockname()
                assert accepted.recv(5) == b"hello"
            listener.setblocking(False)
            with pytest.raises(BlockingIOError):
                listener.accept()


@pytest.mark.parametrize(("port", "state", "pending"), [(8080, "03", True), (8080, "01", False), (8081, "03", False)])
def test_pending_handshakes_are_found_by_port(tmp_path: Path, port: int, state: str, pending: bool) -> None:
    table = tmp_path / "tcp"
    table.write_text(HEADING + ROW.format(port=9, state="03") + ROW.format(port=port, state=state))
    assert has_pending_handshakes(8080, (str(tmp_path / "none"), str(table))) is pending


def test_port_without_new_connections_has_no_pending_handshakes() -> None:
    with listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        assert not has_pending_handshakes(listener.getsockname()[1])
