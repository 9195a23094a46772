"""The server: listening sockets, connections on one epoll, and a pool of threads.

Leader/followers: all pool threads wait on the same epoll, edge-triggered. The thread that wakes has the connection to itself
while it holds its lock. An event that is reported meanwhile is added to `connection.events`, and the holder of the lock sees
it before it is done. So there is no queue, no hand-over between threads, no system call but the wait, and an idle connection
costs no thread.

A few threads are enough while backends are fast; more of them would only contend for the interpreter. The main thread
ticks, and the pool grows while all of its threads wait for backends, up to `max_in_flight`. Where there is no epoll, every
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
from time import monotonic
from typing import TYPE_CHECKING, Final

from werkzeug.serving import BaseWSGIServer

from ..errors import Overloaded
from ..http1.client_address import normalize_address
from ..http1.grammar import bracket_host
from ..log import exception_key
from ..tls.server_context import ServerTLS
from .acceptor import Acceptor
from .connection import Connection
from .connection_limits import MAX_REJECTING, ConnectionLimits
from .connection_owner import SharedServices
from .connection_state import IN_FLIGHT, UNUSED, State
from .environ import base_environ
from .events import EDGE_TRIGGERED, EPOLL, FAILED, RDHUP, READABLE, WRITABLE
from .head_encoder import HeadEncoder
from .heap import Heap
from .listeners import Listeners
from .proxy_protocol_connection import with_proxy_protocol
from .readiness import Readiness
from .settings import ServerSettings
from .slow_clients import SlowClients
from .sockets import sockname
from .spool import Spool
from .stream_relay import Streams
from .thread_per_connection import ThreadPerConnection
from .thread_pool import ThreadPool
from .tls_connection import RedirectConnection, TLSConnection
from .tunnels import Tunnels

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

    from ..chain.suspended import SuspendedResponse
    from ..config.models import ServerConfig

__all__ = ["Server"]

BUSY_TICK_SECONDS: Final = 0.01
QUIET_TICK_SECONDS: Final = 0.1
LAST_HANDSHAKES_SECONDS: Final = 1.0  # for clients that are connecting while the server stops
BEAT_SECONDS: Final = 1.0  # how often expired connections are looked for
CLIENT_CHECK_SECONDS: Final = 0.25  # how long a response may take before a half-closed client is checked
LAST_ANSWERS_SECONDS: Final = 1.0  # before the end of drain_seconds, for requests that are suspended
CUT_SECONDS: Final = 1.0  # how long threads have at the very end, after their connections have been aborted

_WATCHED: Final = READABLE | RDHUP | EDGE_TRIGGERED
_WATCHED_AND_WRITABLE: Final = _WATCHED | WRITABLE
_CLOSED_WHEN_DUE: Final = (*UNUSED, State.CLOSING_IDLE)
_ANSWERED: Final = (State.CLOSING_IDLE, State.LINGERING)
_log = logging.getLogger("rgate.serving")


class Server(BaseWSGIServer):
    """Serves a WSGI app on listening sockets.

    It is a Werkzeug server by its class, so that it can stand wherever one is expected; the event loop, threads, sockets and
    connections are its own, and nothing of Werkzeug's or socketserver's handling of requests is used.

    run() blocks the calling thread until stop() or hand_off() is called from another thread (not from a signal handler: run()
    may hold the lock that it needs) and everything in flight is answered, or `drain_seconds` have passed. `url` is where it
    listens. `heartbeat` is called about once a second by the thread that is in run().

    Without `listeners` it opens its own; listeners that are passed in are duplicated and remain the caller's to close. `tls`
    defaults to one made from config.tls (PemError). `readiness` is told whether the thread pool is calm.
    """

    def __init__(
        self,
        app: WSGIApplication,
        config: ServerConfig,
        listeners: Listeners | None = None,
        tls: ServerTLS | None = None,
        readiness: Readiness | None = None,
    ) -> None:
        # BaseWSGIServer.__init__ is not called: it would bind a socket, and the listening sockets belong to the acceptor.
        tls = tls if tls is not None or config.tls is None else ServerTLS(config.tls)
        self.settings = settings = ServerSettings(app, config, tls)
        self._epoll: select.epoll | ThreadPerConnection = select.epoll() if EPOLL else ThreadPerConnection(self._on_event)
        self._acceptor = Acceptor(self._epoll, self._on_accept, config.write_seconds, self._make_room)
        self.listeners = own = Listeners.open(config) if listeners is None else listeners.duplicate()
        self.server_address = self.host, self.port = sockname(own.main[0])
        self.now = monotonic()
        self.ticks = 0
        self.draining = False
        self._drain_began = 0.0
        self.readiness = readiness or Readiness()
        self.readiness.server.open_counts = self._load
        self.limits = ConnectionLimits(config, settings.trusted_proxies)
        self.uploads: set[Connection] = set()
        self.spool = Spool(*self._spool_limits(config))
        self.tunnels = Tunnels()
        self.streams = Streams() if EPOLL else None
        self.redirect_port: int | None = own.redirect[0].getsockname()[1] if own.redirect else None
        scheme = "https" if tls else "http"
        name = self.host if self.port else "localhost"  # without a port, the host is the path of a unix socket
        self.shared = SharedServices(
            base_environ(name, self.port, scheme, multiprocess=config.processes > 1),
            HeadEncoder(),
            self.limits,
            self.spool,
            self.streams,
            self.uploads,
            self.port,
            self.redirect_port,
        )
        # A heap by time; the number decides between equal times. Those that were resumed stay until their time has passed.
        self._suspended: list[tuple[float, int, SuspendedResponse]] = []
        self._numbers = count()
        self._half_closed: dict[Connection, float] = {}  # connections whose clients must be checked, and when
        self._connections: dict[int, Connection] = {}
        self._tick_seconds = QUIET_TICK_SECONDS
        self._stop = threading.Event()
        self._slow_clients = SlowClients(config, settings.trusted_proxies)
        self._thread_pool: ThreadPool | ThreadPerConnection
        if isinstance(self._epoll, ThreadPerConnection):
            self._thread_pool = self._epoll
        else:
            self._thread_pool = ThreadPool(self._epoll, self._on_event, config.threads, _max_threads(config), self._held_up)
        self._listeners_shared = own.externally_owned
        self._retiring = False
        kind = TLSConnection if tls else Connection
        for listener in own.main:
            self._acceptor.add(listener, kind)
        for listener in own.redirect:
            self._acceptor.add(listener, RedirectConnection)
        self.heartbeat: Callable[[], object] = lambda: None
        self._last_beat = 0.0
        self._heap = Heap()

    def _spool_limits(self, config: ServerConfig) -> tuple[str | None, int, int, int]:
        return config.spool_directory, config.max_spooled_body_bytes, config.max_spooled_bytes, self.limits.spool_files

    @property
    def config(self) -> ServerConfig:
        """The current config."""
        return self.settings.config

    @property
    def tls(self) -> ServerTLS | None:
        """The TLS settings for new connections; None: plain HTTP."""
        return self.settings.tls

    @property
    def app(self) -> WSGIApplication:
        """The app that requests are served with. Setting it affects requests that begin afterwards."""
        return self.settings.app

    @app.setter
    def app(self, app: WSGIApplication) -> None:
        self.reconfigure(app, self.settings.config, self.settings.tls)

    @property
    def url(self) -> str:
        """Where to reach the server."""
        host = "127.0.0.1" if self.host in ("0.0.0.0", "") else "[::1]" if self.host == "::" else self.host
        host = bracket_host(host)
        return f"{self.shared.base_environ['wsgi.url_scheme']}://{host}:{self.port}"

    @property
    def connections(self) -> list[Connection]:
        """The connections that are open now."""
        return list(self._connections.values())

    @property
    def threads(self) -> int:
        """How many pool threads there are."""
        return len(self._thread_pool)

    @property
    def idle_drain_seconds(self) -> float:
        """How long a connection without a request stays open while the server drains."""
        config = self.config
        return max(config.idle_drain_seconds, config.drain_seconds / 2) if self._retiring else config.idle_drain_seconds

    @property
    def _relayed(self) -> int:
        """How many streams and tunnels there are. Each has a connection to a backend."""
        return len(self.tunnels) + (len(self.streams) if self.streams is not None else 0)

    def _load(self) -> dict[str, int]:
        """How many connections, streams, tunnels and threads there are."""
        streams = len(self.streams) if self.streams is not None else 0
        open_ = {"connections": len(self._connections), "streams": streams, "tunnels": len(self.tunnels)}
        return {**open_, "threads": self.threads}

    @property
    def is_crowded(self) -> bool:
        """Whether there are more connections than allowed."""
        return len(self._connections) > self.limits.max_connections

    def run(self) -> None:
        """Serve until stop() or hand_off()."""
        self._acceptor.resume()
        self._thread_pool.start()
        try:
            self._run_ticks()
            self._drain()
        finally:
            self._end()

    serve_forever = run  # type: ignore[assignment]

    def reconfigure(self, app: WSGIApplication, config: ServerConfig, tls: ServerTLS | None) -> Callable[[], bool]:
        """Serve requests that begin from now on with this. Returns a callable: whether all requests begun before are over.

        A request keeps its settings from its first byte to its last: app, limits, timeouts, trusted proxies. Listeners,
        threads and connections stay, so `host`, `port`, `workers`, `threads` and whether there is TLS do not change.
        From any thread, one at a time.
        """
        settings = ServerSettings(app, config, tls, self.settings.generation + 1)
        self.limits.reconfigure(config, settings.trusted_proxies)
        self._slow_clients.reconfigure(config, settings.trusted_proxies)
        self.spool.reconfigure(*self._spool_limits(config))
        if isinstance(self._thread_pool, ThreadPool):
            self._thread_pool.max_threads = _max_threads(config)
        self._acceptor.write_seconds = config.write_seconds
        self.settings = settings
        # A thread makes the connection READING_HEAD before it reads the settings for a new request. So a request with earlier
        # settings is among these, or will be seen to have later ones.
        connections = self.connections
        in_flight = [connection for connection in connections if connection.state in IN_FLIGHT]
        for connection in connections:
            connection.adopt_if_idle(settings)

        def are_over() -> bool:
            in_flight[:] = [
                connection
                for connection in in_flight
                if connection.state in IN_FLIGHT and connection.settings.generation < settings.generation
            ]
            return not in_flight

        return are_over

    def stop(self) -> None:
        """Stop accepting, let requests in flight finish, have run() return. Returns at once; may be called again.

        Connections already established are served. Idle ones stay open for `idle_drain_seconds` in case one more request
        arrives.
        """
        self._stop.set()

    def hand_off(self) -> None:
        """The same when another process goes on to serve the listening sockets: idle connections then stay open for half of
        `drain_seconds`, because their clients have somewhere to go."""
        self._listeners_shared = self._retiring = True
        self._stop.set()

    def server_close(self) -> None:
        """Close the listening sockets."""
        self._acceptor.close()

    def _on_event(self, fd: int, event: int) -> None:
        """Act on an epoll event, in a pool thread."""
        connection = self._connections.get(fd)
        if connection is not None:
            connection.events.add(event)  # before the lock is tried: its holder looks for events after releasing it
            if connection.lock.acquire(False):
                self._run_connection(connection)
            elif event & (RDHUP | FAILED):
                connection.on_hangup()
        else:
            self._acceptor.accept_ready(fd)

    def _run_connection(self, connection: Connection) -> None:
        """Go on with a connection whose lock this thread holds, until no event is left."""
        events = connection.events
        while True:
            # An end of the client is reported once, so it is remembered until the connection has read up to it.
            while events or (connection.client_half_closed and not connection.has_stopped_reading):
                event = 0
                while events:
                    event |= events.pop()
                if event & RDHUP and not connection.client_half_closed and connection.peer_closed:
                    connection.client_half_closed = True
                try:
                    is_open = connection.on_ready(event)
                except BaseException as error:  # a plugin's SystemExit, too: it must not end the thread
                    _log.exception("a connection failed", extra={"dedup_key": exception_key(error)})
                    is_open = False
                if is_open:
                    continue
                if connection.state is not State.SUSPENDED:
                    self.hand_over(connection)
                elif not self._suspend(connection):
                    continue
                return  # without releasing the lock: the connection is not this thread's to go on with
            connection.lock.release()
            if not self._reacquire(connection):
                return

    def check_client_soon(self, connection: Connection) -> None:
        """Check in CLIENT_CHECK_SECONDS whether a half-closed client is still there; most have their response by then."""
        self._half_closed[connection] = monotonic() + CLIENT_CHECK_SECONDS

    def _suspend(self, connection: Connection) -> bool:
        """Keep the connection, with its lock held, until its request is resumed or its time is over.

        False without an epoll: the thread is the connection's own and has waited here.
        """
        suspended = connection.response.suspended
        assert suspended is not None
        connection.on_disconnect = suspended.cancel
        heapq.heappush(self._suspended, (suspended.deadline, next(self._numbers), suspended))
        if connection.client_disconnected:
            suspended.cancel()
        if EPOLL:
            suspended.when_resumed(partial(self._resume, connection))
            return True
        resumed = threading.Event()
        suspended.when_resumed(resumed.set)
        resumed.wait()
        connection.events.add(WRITABLE)
        return False

    def _resume(self, connection: Connection) -> None:
        connection.lock.release()
        with contextlib.suppress(OSError, ValueError):  # it has just been closed
            self.watch_writable(connection)

    @staticmethod
    def _reacquire(connection: Connection) -> bool:
        """Take the lock again for events that arrived between the last look and the release, when others found it taken."""
        return bool(connection.events) and connection.lock.acquire(False)

    def hand_over(self, connection: Connection) -> None:
        """Pass a connection, with its lock held, to the stream relay or the tunnels, or close it, as its state says.

        A relayed or tunnelled connection still counts as one of the server's.
        """
        if connection.state is State.RELAYED:
            assert self.streams is not None
            self.streams.add(connection)
        elif connection.state is State.TUNNELLED:
            tunnel = connection.tunnel
            assert tunnel is not None
            tunnel.close_client = partial(self.close_connection, connection)
            self._epoll.unregister(connection.fileno())
            self.tunnels.add(tunnel)
        else:
            self.close_connection(connection)

    def close_connection(self, connection: Connection) -> None:
        """Close it, and stop counting it. Called by the thread that holds its lock, which is never released again."""
        self._connections.pop(connection.fileno(), None)
        self._half_closed.pop(connection, None)
        if not EPOLL:  # an epoll forgets a descriptor that is closed
            with contextlib.suppress(OSError):
                self._epoll.unregister(connection.fileno())
        if connection.limited_address:
            self.limits.release(connection.limited_address)
        connection.close()

    def watch_writable(self, connection: Connection) -> None:
        """Have on_ready() called when the socket takes more bytes, too. Raises OSError, ValueError when it is closed."""
        self._epoll.modify(connection.fileno(), _WATCHED_AND_WRITABLE)

    def _on_accept(self, kind: type[Connection], sock: socket.socket, peer: tuple[str, int]) -> None:
        """Make a connection of an accepted socket. It is rejected when there are too many."""
        settings = self.settings
        proxies = settings.trusted_proxies
        proxied = settings.config.proxy_protocol and (not proxies or normalize_address(peer[0]) in proxies)
        connection = (with_proxy_protocol(kind) if proxied else kind)(self, sock, peer)
        self._connections[sock.fileno()] = connection
        error = None
        if not self.limits.make_room(self._connections.values(), self._relayed, connection, self.ticks, self.now):
            error = Overloaded(f"more than {self.limits.max_connections} connections")
        elif not proxied and not self.limits.acquire(connection):
            error = Overloaded(f"too many connections of {connection.address}")
        if error is not None:
            connection.lock.acquire()  # another thread may be about to expire it, to make room
            too_many = len(self._connections) > self.limits.max_connections + MAX_REJECTING
            if proxied or too_many or not connection.reject(error):
                self.close_connection(connection)
                return
            connection.lock.release()
        try:
            self._epoll.register(sock.fileno(), _WATCHED)
        except OSError as problem:
            _log.error("cannot watch a connection: %s", problem, extra={"dedup_key": str(problem)})
            connection.lock.acquire()
            self.close_connection(connection)

    def _run_ticks(self) -> None:
        while not self._stop.wait(self._tick_seconds):
            self._tick()
            self._acceptor.resume_if_due(self.now)
            if self._beats():
                self._expire_connections()

    def _tick(self) -> None:
        self.ticks += 1
        self.now = monotonic()
        quiet = self._thread_pool.resize(self.now)
        self.readiness.server.saturated = self._thread_pool.saturated
        ceiling = self._thread_pool.ceiling
        self.readiness.server.max_in_flight = None if ceiling is None else max(1, ceiling - 2 * self.config.threads)
        self._tick_seconds = QUIET_TICK_SECONDS if quiet else BUSY_TICK_SECONDS
        for connection, due in list(self._half_closed.items()):
            if due <= self.now:
                self._half_closed.pop(connection, None)
                if not connection.check_client():
                    self._half_closed.setdefault(connection, due)
        while self._suspended and self._suspended[0][0] <= self.now:
            heapq.heappop(self._suspended)[2].expire()

    def _beats(self) -> bool:
        if self.now - self._last_beat < BEAT_SECONDS:
            return False
        self._last_beat = self.now
        self.heartbeat()
        self._heap.trim_if_due(self.now, idle=self._tick_seconds == QUIET_TICK_SECONDS)
        return True

    def _held_up(self, most: int | None) -> int:
        return self._slow_clients.count(self._connections.values(), most)

    def _make_room(self) -> None:
        self.limits.evict(self._connections.values(), self.now)

    def _expire_connections(self) -> None:
        """Stop waiting for clients whose deadlines have passed, and for requests on idle connections when the server drains."""
        now = self.now
        for connection in self.connections:
            deadline = connection.deadline
            is_due = deadline is not None and deadline < now
            if connection.state in _CLOSED_WHEN_DUE:
                if is_due or self._is_idle_for_too_long(connection):
                    connection.close_if_idle()
            elif is_due:
                connection.expire(now)

    def _is_idle_for_too_long(self, connection: Connection) -> bool:
        since = max(self._drain_began, connection.idle_since)
        return self.draining and self.now - since >= self.idle_drain_seconds

    def _drain(self) -> None:
        self._drain_began = monotonic()
        self.draining = True
        if self._listeners_shared:
            self._acceptor.hand_off()
        else:
            self._acceptor.pause()
        closed = False
        pause = threading.Event()
        while True:
            self._tick()
            self._beats()
            passed = self.now - self._drain_began
            closed = closed or self._acceptor.drain_and_close(wait=passed < LAST_HANDSHAKES_SECONDS)
            for connection in self.connections:
                if connection.state in IN_FLIGHT:
                    connection.close_after_response()
            self._expire_connections()
            if passed >= self.config.drain_seconds - min(LAST_ANSWERS_SECONDS, self.config.drain_seconds / 2):
                while self._suspended:
                    heapq.heappop(self._suspended)[2].expire()
            # In this order: a thread that is accepting adds a connection before it is seen to be done.
            is_over = closed and not self._acceptor.accepting and not self._connections
            if is_over or passed >= self.config.drain_seconds:
                break
            pause.wait(BUSY_TICK_SECONDS)
        if cut := sum(connection.state not in _ANSWERED for connection in self.connections):
            _log.warning("%d connections were cut at the end of drain_seconds", cut)

    def _end(self) -> None:
        self.tunnels.stop()
        for connection in self.connections:
            connection.abort()
        if self.streams is not None:
            self.streams.stop()
        all_ended = self._thread_pool.shutdown(CUT_SECONDS)
        for connection in self.connections:
            if connection.state is State.SUSPENDED:
                connection.response.abandon_suspended()
                self.close_connection(connection)
            elif connection.lock.acquire(False):  # else it belongs to a thread that is stuck in the app
                self.close_connection(connection)
        self.server_close()
        if all_ended:
            self._epoll.close()


def _max_threads(config: ServerConfig) -> int:
    # `threads` requests may be waiting for backends without being counted (see ServerLoad.saturated), and as many are kept free.
    return 2 * config.threads + config.max_in_flight
