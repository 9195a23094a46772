"""WebSocket clients that account for every tunnel: what it was told comes back, until somebody ends it."""

from __future__ import annotations

import http.client
import itertools
import secrets
import ssl
import threading
import time
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from .clients import Outcome, Threads, connection_to, judged, lost

__all__ = ["TUNNELS", "Tunnel", "TunnelClients"]

TUNNELS: Mapping[str, float] = MappingProxyType({"WebSocket": float("inf"), "WebSocket, short": 2.0})
"""How long a client keeps a tunnel before it closes it and opens another, in seconds."""

PAUSE_SECONDS = 0.05
TEXT, CLOSE = 0x81, 0x88  # each a whole message


@dataclass(frozen=True, slots=True)
class Tunnel(Outcome):
    """One tunnel, or what became of the attempt to open one.

    status  101 once it was open
    reason  why it ended, when the client did not end it itself: reset, closed, timeout; not_mine when something else came back,
            no_tunnel for a good answer that opens none
    sent    when that was told of which no echo has come, so that what happened before does not explain it
    echoes  how many have come
    """

    echoes: int = 0

    @property
    def good(self) -> bool:
        return self.status == 101 and not self.reason


class TunnelClients(Threads):
    """`each` clients of every kind, that open tunnels at `path` while inside `with`.

    A tunnel that has ended is opened again at once. The backend has to be an echo, as bench/backend/echo.py is. `tunnels`, in
    the order of their ends, may be read at any time; at the end all of them are there.
    """

    def __init__(
        self,
        port: int,
        path: str,
        kinds: Mapping[str, float] = TUNNELS,
        each: int = 3,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.tunnels: list[Tunnel] = []
        super().__init__()
        self._port, self._path, self._tls = port, path, tls
        self._threads = [
            threading.Thread(target=self._run, args=(kind, seconds), name=f"tunnel-{number}", daemon=True)
            for number in range(each)
            for kind, seconds in kinds.items()
        ]

    def _run(self, kind: str, seconds: float) -> None:
        while not self._stop.is_set():
            self.tunnels.append(self._keep(kind, seconds))
            self._stop.wait(PAUSE_SECONDS)

    def _keep(self, kind: str, seconds: float) -> Tunnel:
        """Open one, use it for so long, and close it."""
        sent = time.monotonic()
        status, reason, who, echoes = 0, "", "", 0
        connection = connection_to(self._port, self._tls)
        try:
            connection.request("GET", self._path, headers=_handshake())
            response = connection.getresponse()
            status = response.status
            if status != 101:
                reason, who = judged(status, response.read(), self._path)
                reason = reason or "no_tunnel"
            else:
                who = response.headers.get("X-Instance", "")
                until = time.monotonic() + seconds
                for number in itertools.count():
                    over = self._stop.wait(PAUSE_SECONDS) or time.monotonic() > until
                    sent = time.monotonic()
                    if not _echoed(connection, CLOSE if over else TEXT, b"" if over else b"%d %s" % (number, kind.encode())):
                        reason = "not_mine"
                    if over or reason:
                        break
                    echoes += 1
        except (OSError, http.client.HTTPException) as error:
            reason = lost(error)
        finally:
            connection.close()
        return Tunnel(kind, sent, time.monotonic(), status, reason, who, echoes)


def _handshake() -> dict[str, str]:
    key = b64encode(secrets.token_bytes(16)).decode()
    return {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Key": key, "Sec-WebSocket-Version": "13"}


def _echoed(connection: http.client.HTTPConnection, kind: int, said: bytes) -> bool:
    """Say something, and whether the same comes back. Raises OSError and HTTPException."""
    mask = secrets.token_bytes(4)
    masked = bytes(byte ^ mask[at % 4] for at, byte in enumerate(said))
    connection.sock.sendall(bytes([kind, 0x80 | len(said)]) + mask + masked)
    expected = bytes([kind, len(said)]) + said
    came = b""
    while len(came) < len(expected):
        piece = connection.sock.recv(len(expected) - len(came))
        if not piece:
            raise http.client.RemoteDisconnected("within a tunnel")
        came += piece
    return came == expected
