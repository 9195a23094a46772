"""The server: a listener, connections on one epoll, and threads that take turns.

Leader/followers: all threads wait on the same epoll, edge-triggered. The thread that wakes has the connection to itself
while it holds its `turn`; an event that comes meanwhile is left with the connection and seen before the turn ends. So
there is no queue, no hand-over between threads, no system call but the wait, and a connection that is idle costs no
thread.

A few threads are enough while backends are fast; more of them would only contend for the interpreter. The main thread
ticks, and the crew grows while all threads wait for backends, up to `max_in_flight`. Where there is no epoll, every
connection has a thread of its own.
"""

from __future__ import annotations

import contextlib
import heapq
import logging
import select
import socket
import threading
from collections.abc import Callable
from functools import partial
from itertools import count
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from werkzeug.serving import BaseWSGIServer

from ..errors import Overloaded
from ..http1.client_address import TrustedProxies, normalize_address
from ..http1.grammar import bracket_host
from ..http1.request import RequestParser
from ..log import about
from ..tls.server_context import ServerTLS
from .acceptor import Acceptor
from .connection import Connection
from .connection_limits import TURNED_AWAY, ConnectionLimits
from .environ import template
from .events import EDGE, EPOLL, FAILED, GONE, READABLE, WRITABLE
from .heap import Heap
from .inflight import InFlightRequests
from .listeners import Listeners
from .proxy_protocol_connection import announced
from .readiness import Readiness
from .response import HeadEncoder
from .slow_clients import SlowClients
from .sockets import sockname
from .spool import Spool
from .stream_relay import Streams
from .thread_pool import ThreadPool
from .threads import ThreadPerConnection
from .tls_connection import RedirectConnection, TLSConnection
from .tunnels import TunnelRelay, Tunnels

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

    from ..chain.suspended import SuspendedResponse
    from ..config.models import ServerConfig

__all__ = ["Server"]

BUSY_TICK_SECONDS: Final = 0.01
QUIET_TICK_SECONDS: Final = 0.1
LAST_HANDSHAKES_SECONDS: Final = 1.0  # for clients on their way in when the server stops
BEAT_SECONDS: Final = 1.0  # expired connections are looked for as often
TEST_SECONDS: Final = 0.25  # so long a response may take before a client that has ended its side is tested
LAST_ANSWERS_SECONDS: Final = 1.0  # before the end of drain_seconds, for requests that are suspended
CUT_SECONDS: Final = 1.0  # how long threads have at the very end, after their connections have been cut

_WATCHED: Final = READABLE | GONE | EDGE
_WATCHED_FOR_ROOM: Final = _WATCHED | WRITABLE
_log = logging.getLogger("rgate.serving")


class Server(BaseWSGIServer):
    """Serves a WSGI app on listening sockets.

    run() blocks the calling thread until stop() or retire() is called from another thread (not from a signal handler: run()
    may hold the lock that it needs) and everything in flight is answered, or `drain_seconds` have passed. `url` says where
    it listens. `beat` is called about once a second by the thread that is in run().

    The sockets it makes itself when they are not given; those that are given it duplicates, so they are the giver's to
    close. `tls` is what new connections speak TLS with; with config.tls it is made of that when it is not given (PemError),
    and may be exchanged for another at any time. `condition` is told whether it is calm.
    """

    def __init__(
        self,
        app: WSGIApplication,
        config: ServerConfig,
        listeners: Listeners | None = None,
        tls: ServerTLS | None = None,
        readiness: Readiness | None = None,
    ) -> None:
        self.tls = tls if tls is not None or config.tls is None else ServerTLS(config.tls)
        self._epoll: select.epoll | ThreadPerConnection = select.epoll() if EPOLL else ThreadPerConnection(self._take)
        self._doors = Acceptor(self._epoll, self._take_in, config.write_seconds, self._make_room)
        self.listeners = own = Listeners.open(config) if listeners is None else listeners.duplicate()
        name, port = sockname(own.main[0])
        super().__init__(name, port, app, fd=own.main[0].fileno())  # takes one more duplicate, which nobody needs
        super().server_close()
        self.config = config
        self.now = monotonic()
        self.ticks = 0
        self.draining = False
        self._drain_began = 0.0
        self.trusted_proxies = TrustedProxies(config.trusted_proxies)
        self.readiness = readiness or Readiness()
        self.admission = ConnectionLimits(config, self.trusted_proxies)
        self.heads = HeadEncoder()
        self.requests = self._requests(config)
        self.template: dict[str, Any] = template(
            name if port else "localhost", port, "https" if self.tls else "http", multiprocess=config.processes > 1
        )
        self.readiness.load = self._load
        self.uploads: set[Connection] = set()  # whose threads wait for more of their bodies
        self.lowest_body_limit, self.seconds_per_body_byte = _upload_limits(app, config)
        self.spool = Spool(*self._spool_limits(config))
        self.tunnels = Tunnels()
        self.streams = Streams() if EPOLL else None
        self._suspended: list[
            tuple[float, int, SuspendedResponse]
        ] = []  # a heap; those that were woken stay in it until their time
        self._numbers = count()
        self._half_closed: dict[Connection, float] = {}  # whose clients are to be tested, and when
        self._connections: dict[int, Connection] = {}
        self._tick_seconds = QUIET_TICK_SECONDS
        self._stop = threading.Event()
        self._slow_clients = SlowClients(config, self.trusted_proxies)
        self._crew: ThreadPool | ThreadPerConnection
        if isinstance(self._epoll, ThreadPerConnection):
            self._crew = self._epoll
        else:
            self._crew = ThreadPool(self._epoll, self._take, config.threads, _most_threads(config), self._held_up)
        self._lent = own.lent
        self._retiring = False
        kind = TLSConnection if self.tls else Connection
        self._announced = {each: announced(each) for each in (kind, RedirectConnection)}
        for listener in own.main:
            self._doors.add(listener, kind)
        for listener in own.redirect:
            self._doors.add(listener, RedirectConnection)
        self.redirect_port: int | None = own.redirect[0].getsockname()[1] if own.redirect else None
        self.beat: Callable[[], object] = lambda: None
        self._beaten = 0.0
        self._heap = Heap()

    def _requests(self, config: ServerConfig) -> RequestParser:
        requests = RequestParser(config.max_target_bytes, config.max_headers, config.max_body_bytes)
        requests.upgrades = EPOLL  # tunnels need it
        requests.interim_responses = config.interim_responses
        return requests

    def _spool_limits(self, config: ServerConfig) -> tuple[str | None, int, int, int]:
        return config.spool_directory, config.max_spooled_body_bytes, config.max_spooled_bytes, self.admission.spool_files

    @property
    def url(self) -> str:
        """Where to reach the server."""
        host = "127.0.0.1" if self.host in ("0.0.0.0", "") else "[::1]" if self.host == "::" else self.host
        return f"{self.template['wsgi.url_scheme']}://{bracket_host(host)}:{self.port}"

    @property
    def public_port(self) -> int:
        """The port that clients are to use."""
        return (self.config.tls and self.config.tls.public_port) or self.port

    @property
    def threads(self) -> int:
        """How many worker threads there are at present."""
        return len(self._crew)

    @property
    def idle_drain_seconds(self) -> float:
        """How long a connection without a request stays open while the server drains."""
        config = self.config
        return max(config.idle_drain_seconds, config.drain_seconds / 2) if self._retiring else config.idle_drain_seconds

    @property
    def _relayed(self) -> int:
        """How many connections are relayed, and so have one to a backend each."""
        return len(self.tunnels) + (len(self.streams) if self.streams is not None else 0)

    def _load(self) -> dict[str, int]:
        """What is open at present."""
        streams = len(self.streams) if self.streams is not None else 0
        open_ = {"connections": len(self._connections), "streams": streams, "tunnels": len(self.tunnels)}
        return {**open_, "threads": self.threads}

    @property
    def has_thread_for_upload(self) -> bool:
        """Whether one more thread may wait for the rest of a large body: `threads` may at one time."""
        return len(self.uploads) < self.config.threads or not EPOLL  # without epoll each connection has a thread anyway

    @property
    def is_crowded(self) -> bool:
        """Whether there are more connections than may be."""
        return len(self._connections) > self.admission.most

    def run(self) -> None:
        """Serve until stop() or retire()."""
        self._doors.open()
        self._crew.start()
        try:
            self._run_ticks()
            self._drain()
        finally:
            self._end()

    serve_forever = run  # type: ignore[assignment]

    def reconfigure(self, app: WSGIApplication, config: ServerConfig, tls: ServerTLS | None) -> Callable[[], bool]:
        """Serve requests with this from now on. What is returned tells whether all requests are over that had begun before.

        Listeners, threads and connections stay, so `host`, `port`, `workers`, `threads` and whether there is TLS do not
        change. Limits and timeouts are those of `config` when they are looked at next. From any thread.
        """
        self.trusted_proxies = TrustedProxies(config.trusted_proxies)
        self.admission.change(config, self.trusted_proxies)
        self.requests = self._requests(config)
        self._slow_clients.change(config, self.trusted_proxies)
        self.lowest_body_limit, self.seconds_per_body_byte = _upload_limits(app, config)
        self.spool.change(*self._spool_limits(config))
        if isinstance(self._crew, ThreadPool):
            self._crew.most = _most_threads(config)
        self._doors.write_seconds = config.write_seconds
        self.tls, self.config = tls, config
        self.app = app
        for connection in list(self._connections.values()):
            connection.limit_writes(config.write_seconds)
        # Whoever has taken the app of before has made the connection busy first.
        return InFlightRequests(self._connections.values()).is_over

    def stop(self) -> None:
        """Stop accepting, let what is in flight finish, have run() return. Returns at once; may be called again.

        Who is connected by now is served. Connections without a request stay open for `idle_drain_seconds`, for a last one.
        """
        self._stop.set()

    def retire(self) -> None:
        """The same, but others serve the sockets on, so there is no hurry: connections without a request have half of
        `drain_seconds`."""
        self._lent = self._retiring = True
        self._stop.set()

    def server_close(self) -> None:
        """Close the listening sockets."""
        super().server_close()
        self._doors.close()

    def _take(self, fd: int, event: int) -> None:
        """Act on what epoll has told, in a worker thread."""
        connection = self._connections.get(fd)
        if connection is not None:
            connection.events |= event
            if connection.turn.acquire(False):
                self._advance(connection)
            elif event & (GONE | FAILED):
                connection.note_end()
        else:
            self._doors.knock(fd)

    def _advance(self, connection: Connection) -> None:
        """Go on with a connection whose turn this thread has, until no event is left."""
        while True:
            while connection.events or connection.ended:
                event, connection.events = connection.events, 0
                connection.ended = ended = connection.ended or bool(event & GONE and connection.left)
                if event & WRITABLE or ended:
                    connection.queued = False
                try:
                    open_ = connection.advance()
                except BaseException as error:  # a plugin's SystemExit, too: it must not end the thread
                    _log.exception("a connection failed", extra={"about": about(error)})
                    open_ = False
                if not open_:
                    if connection.suspended is not None:
                        if not self._suspend(connection, connection.suspended):
                            continue
                    elif connection.relayed:
                        self.streams.add(connection)  # type: ignore[union-attr]
                    elif not connection.tunnelled:
                        self.close_connection(connection)
                    return  # and keep its turn: nobody may have it again
            connection.turn.release()
            if not self._again(connection):
                return

    def test_soon(self, connection: Connection) -> None:
        """Test a client that has ended its side, unless it has its response by then: most of them just wait for that."""
        self._half_closed[connection] = monotonic() + TEST_SECONDS

    def _suspend(self, connection: Connection, suspended: SuspendedResponse) -> bool:
        """Leave a connection alone, with its turn taken, until its request is woken, or the time is over.

        False without an epoll, where the thread is the connection's own and has waited.
        """
        connection.on_disconnect = suspended.cancel
        heapq.heappush(self._suspended, (suspended.until, next(self._numbers), suspended))
        if connection.client_disconnected:
            suspended.cancel()
        if EPOLL:
            suspended.when_resumed(partial(self._resume, connection))
            return True
        woken = threading.Event()
        suspended.when_resumed(woken.set)
        woken.wait()
        connection.events |= WRITABLE
        return False

    def _resume(self, connection: Connection) -> None:
        connection.turn.release()
        with contextlib.suppress(OSError, ValueError):  # closed at this moment
            self.wait_to_send(connection)

    @staticmethod
    def _again(connection: Connection) -> bool:
        """Take the turn once more for what came between the last look and the release, and so found the turn taken."""
        return bool(connection.events) and connection.turn.acquire(False)

    def relay(self, connection: Connection, tunnel: TunnelRelay) -> None:
        """Leave a connection to the tunnels. It stays one of the server's connections until its tunnel is over."""
        tunnel.close_client = lambda: self.close_connection(connection)
        self._epoll.unregister(connection.fileno())
        self.tunnels.add(tunnel)

    def close_connection(self, connection: Connection) -> None:
        """Close it, and count it no more. Called by the thread that has its turn, or in the end."""
        self._connections.pop(connection.fileno(), None)
        self._half_closed.pop(connection, None)
        if not EPOLL:  # an epoll forgets what is closed
            with contextlib.suppress(OSError):
                self._epoll.unregister(connection.fileno())
        if connection.counted:
            self.admission.leave(connection.counted)
        connection.close()

    def wait_to_send(self, connection: Connection) -> None:
        """Have advance() called when the socket takes more, too."""
        self._epoll.modify(connection.fileno(), _WATCHED_FOR_ROOM)

    def _take_in(self, kind: type[Connection], sock: socket.socket, peer: tuple[str, int]) -> None:
        """Make a connection of a socket, or turn it away when there are too many."""
        proxies = self.trusted_proxies
        waits = self.config.proxy_protocol and (not proxies or normalize_address(peer[0]) in proxies)
        connection = (self._announced[kind] if waits else kind)(self, sock, peer)
        self._connections[sock.fileno()] = connection
        error = None
        if not self.admission.has_room(self._connections.values(), self._relayed, connection, self.ticks, self.now):
            error = Overloaded(f"more than {self.admission.most} connections")
        elif not waits and not self.admission.enter(connection):
            error = Overloaded(f"too many connections of {connection.address}")
        if error is not None:
            too_many = len(self._connections) > self.admission.most + TURNED_AWAY
            if waits or too_many or not connection.turn_away(error):
                self.close_connection(connection)
                return
        try:
            self._epoll.register(sock.fileno(), _WATCHED)
        except OSError:
            self._connections.pop(sock.fileno(), None)
            raise

    def _run_ticks(self) -> None:
        while not self._stop.wait(self._tick_seconds):
            self._tick()
            self._doors.look(self.now)
            if self._beats():
                self._expire_connections()

    def _tick(self) -> None:
        self.ticks += 1
        self.now = monotonic()
        quiet = self._crew.look(self.now)
        self.readiness.calm = self._crew.calm
        ceiling = self._crew.ceiling
        self.readiness.max_in_flight = None if ceiling is None else max(1, ceiling - 2 * self.config.threads)
        self._tick_seconds = QUIET_TICK_SECONDS if quiet else BUSY_TICK_SECONDS
        for connection, due in list(self._half_closed.items()):
            if due <= self.now:
                self._half_closed.pop(connection, None)
                if not connection.test_client():
                    self._half_closed.setdefault(connection, due)
        while self._suspended and self._suspended[0][0] <= self.now:
            heapq.heappop(self._suspended)[2].expire()

    def _beats(self) -> bool:
        if self.now - self._beaten < BEAT_SECONDS:
            return False
        self._beaten = self.now
        self.beat()
        self._heap.look(self.now, quiet=self._tick_seconds == QUIET_TICK_SECONDS)
        return True

    def _held_up(self, most: int | None) -> int:
        return self._slow_clients.count(self._connections.values(), most)

    def _make_room(self) -> None:
        self.admission.make_room(self._connections.values(), self.now)

    def _expire_connections(self) -> None:
        """Give up waiting where a deadline has passed, or at the end, for a request that nothing has come of."""
        for connection in list(self._connections.values()):
            if connection.busy or connection.late:
                continue
            due = connection.deadline < self.now
            if not connection.idle:
                if due:
                    connection.expire()
            elif (due or self._idle_for_too_long(connection)) and not connection.leaving:
                connection.retire()

    def _idle_for_too_long(self, connection: Connection) -> bool:
        begun = max(self._drain_began, connection.idle_since)
        return self.draining and self.now - begun >= self.idle_drain_seconds

    def _drain(self) -> None:
        self._drain_began = monotonic()
        self.draining = True
        if self._lent:
            self._doors.leave()
        else:
            self._doors.shut()
        closed = False
        pause = threading.Event()
        while True:
            self._tick()
            self._beats()
            passed = self.now - self._drain_began
            closed = closed or self._doors.close_behind_the_last(wait=passed < LAST_HANDSHAKES_SECONDS)
            for connection in list(self._connections.values()):
                if connection.busy:
                    connection.end_after_response()
            self._expire_connections()
            if passed >= self.config.drain_seconds - min(LAST_ANSWERS_SECONDS, self.config.drain_seconds / 2):
                while self._suspended:
                    heapq.heappop(self._suspended)[2].expire()
            over = closed and not self._doors.taking_in and not self._connections  # in this order
            if over or passed >= self.config.drain_seconds:
                break
            pause.wait(BUSY_TICK_SECONDS)
        if cut := sum(not connection.leaving for connection in list(self._connections.values())):
            _log.warning("%d connections were cut at the end of drain_seconds", cut)

    def _end(self) -> None:
        self.tunnels.stop()
        for connection in list(self._connections.values()):
            connection.cut()
        if self.streams is not None:
            self.streams.stop()
        all_ended = self._crew.end(CUT_SECONDS)
        for connection in list(self._connections.values()):
            if connection.suspended is not None:
                connection.give_up_parked()
                self.close_connection(connection)
            elif not connection.busy:  # else it is the thread's, which is stuck in the app
                self.close_connection(connection)
        self.server_close()
        if all_ended:
            self._epoll.close()


def _most_threads(config: ServerConfig) -> int:
    # Of those that wait for backends, base threads may have begun uncounted (see Condition.calm). As many are kept free.
    return 2 * config.threads + config.max_in_flight


def _upload_limits(app: WSGIApplication, config: ServerConfig) -> tuple[float, float]:
    """The lowest limit for which `app` may refuse a body by its length, and the seconds that a byte of a body may take."""
    lowest: float | None = getattr(app, "lowest_body_limit", None)
    rate = config.min_body_bytes_per_second
    return inf if lowest is None else lowest, 1 / rate if rate else inf
