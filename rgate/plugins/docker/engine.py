"""Engine: the client of one Docker engine. Read-only: GET /version once, then /containers/json, /containers/{id}/json, /events.

This is the only module that imports docker-py. Every failure is raised as EngineError.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

from docker import APIClient
from docker.context import ContextAPI
from docker.errors import DockerException, NotFound
from docker.transport.unixconn import UnixHTTPAdapter, UnixHTTPConnection, UnixHTTPConnectionPool
from docker.types import CancellableStream
from docker.utils import kwargs_from_env
from requests.exceptions import RequestException
from urllib3.exceptions import HTTPError

from rgate import RgateError

__all__ = ["EVENT_ACTIONS", "Engine", "EngineError", "EventStream", "remote_host_of"]

EVENT_ACTIONS = (
    "start",
    "restart",
    "die",
    "stop",
    "kill",
    "pause",
    "unpause",
    "destroy",
    "rename",
    "health_status",
    "connect",
    "disconnect",
)
"""The events that the engine is asked for. Others change nothing for a gateway: a created container is not an endpoint before it
starts, and each HEALTHCHECK causes three exec events."""

# While a proxy of the socket is being disconnected from its network, packets to its address are lost silently. This is long
# enough for a second SYN, sent after one second, and short enough to find the engine again within 3 s, pause included.
_CONNECT_SECONDS = 1.5
_REQUEST_SECONDS = 10
_QUIET_SECONDS = 45
_EVENT_LIMIT_BYTES = 1 << 20
_DEFAULT_HOST = "unix:///var/run/docker.sock"


class EngineError(RgateError):
    """The engine cannot be reached, refuses a request, or sends an answer that cannot be understood."""


class Engine:
    """A connection to a Docker engine, for several threads. After an error, close it and make another.

    `url` is the option `plugins.docker.host`; without it, DOCKER_HOST, else the current Docker context, else the usual socket.
    DOCKER_TLS_VERIFY and DOCKER_CERT_PATH apply to all of them. Connecting may take 1.5 seconds, an answer 10. Raises
    EngineError.
    """

    def __init__(self, url: str | None = None) -> None:
        self._where = url or _DEFAULT_HOST
        with self._translated():
            environment = kwargs_from_env()
            tls = environment.get("tls")
            self._where = url or environment.get("base_url", "")
            if not self._where:
                name = os.environ.get("DOCKER_CONTEXT")
                context = ContextAPI.get_context(name)
                if context is None:
                    raise EngineError(f"no Docker context is named {name!r}; see `docker context ls`")
                self._where, tls = context.Host or _DEFAULT_HOST, tls or context.TLSConfig
            self._api = _Client(self._where, version="auto", timeout=_REQUEST_SECONDS, tls=tls or False)

    @property
    def remote_host(self) -> str:
        """The host name of the engine's machine, at which published ports are reached; empty if it is this machine."""
        return remote_host_of(self._where)

    def containers(self, label: str) -> Sequence[Mapping[str, Any]]:
        """Every container, running or not, that has `label` with any value."""
        with self._translated():
            found = self._api.containers(all=True, filters={"label": [label]})
        if not isinstance(found, list) or not all(isinstance(record, dict) for record in found):
            raise EngineError(f"the Docker engine at {self._where} does not answer with a list of containers")
        return found

    def container(self, id: str) -> Mapping[str, Any] | None:
        """One container, or None if there is no container with this id."""
        try:
            with self._translated():
                found = self._api.inspect_container(id)
        except EngineError as error:
            if isinstance(error.__cause__, NotFound):
                return None
            raise
        if not isinstance(found, dict):
            raise EngineError(f"the Docker engine at {self._where} does not describe container {id[:12]}")
        return found

    def events(self, since: str) -> EventStream:
        """The events since `since` (seconds since the epoch, by the engine's clock). The engine listens when this returns."""
        filters = {"type": ["container", "network"], "event": list(EVENT_ACTIONS)}
        with self._translated():
            # Not APIClient.events(): that waits without limit, and a dead engine or proxy would never be noticed.
            response = self._api.get(
                f"{self._api.base_url}/v{self._api.api_version}/events",
                params={"since": since, "filters": json.dumps(filters)},
                stream=True,
                timeout=(_CONNECT_SECONDS, _QUIET_SECONDS),
            )
            try:
                response.raise_for_status()
            except RequestException:
                response.close()
                raise
        return EventStream(response, self._where)

    def close(self) -> None:
        self._api.close()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except EngineError:
            raise
        except Exception as error:  # docker-py raises KeyError, TypeError and more for answers that it does not expect
            raise EngineError(f"cannot use the Docker engine at {self._where}: {_plain(error)}") from error


class _UnixConnection(UnixHTTPConnection):
    def connect(self) -> None:
        # docker-py leaves its socket to the garbage collector if connecting fails.
        self.sock = socket.socket(socket.AF_UNIX)
        try:
            self.sock.settimeout(self.timeout)
            self.sock.connect(self.unix_socket)
        except BaseException:
            self.close()
            raise


class _UnixPool(UnixHTTPConnectionPool):
    def _new_conn(self) -> Any:
        timeout: Any = self.timeout
        return _UnixConnection(self.base_url, self.socket_path, timeout)


class _UnixAdapter(UnixHTTPAdapter):
    def get_connection(self, url: Any, proxies: Any = None) -> Any:
        with self.pools.lock:
            pool = self.pools.get(url)
            if pool is None:
                pool = self.pools[url] = _UnixPool(url, self.socket_path, self.timeout, maxsize=self.max_pool_size)
            return pool


class _Client(APIClient):
    def mount(self, prefix: Any, adapter: Any) -> None:
        if isinstance(adapter, UnixHTTPAdapter):  # which APIClient has made for a Unix socket
            adapter = _UnixAdapter(adapter.socket_path, adapter.timeout, max_pool_size=adapter.max_pool_size)
        super().mount(prefix, adapter)

    def _set_request_timeout(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        # By default, connecting may take as long as an answer.
        kwargs.setdefault("timeout", (_CONNECT_SECONDS, self.timeout))
        return kwargs

    def merge_environment_settings(self, url: Any, proxies: Any, stream: Any, verify: Any, cert: Any) -> Any:
        # By default, REQUESTS_CA_BUNDLE takes precedence over the certificate authority in DOCKER_CERT_PATH.
        return super().merge_environment_settings(url, proxies, stream, self.verify if verify is None else verify, cert)


class EventStream:
    """Iterates over events as they arrive. Ends when the engine ends the stream, or after 45 seconds without an event.

    Silence may mean a dead connection, so the caller connects again. Raises EngineError for a line that is not an event.
    """

    def __init__(self, response: Any, where: str) -> None:
        self._response = response
        self._where = where

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        pending = b""
        try:
            while block := self._response.raw.read1(65_536):
                *lines, pending = (pending + block).split(b"\n")
                if len(pending) > _EVENT_LIMIT_BYTES:
                    raise EngineError(f"the Docker engine at {self._where} sent an endless event")
                yield from map(self._event, filter(bytes.strip, lines))
        except (HTTPError, OSError, ValueError, AttributeError):  # the last two are raised when close() removes the socket
            return
        finally:
            with suppress(Exception):  # as above
                self._response.close()

    def _event(self, line: bytes) -> Mapping[str, Any]:
        try:
            event = json.loads(line)
        except ValueError:
            event = None
        if not isinstance(event, dict):
            raise EngineError(f"the Docker engine at {self._where} sent something that is not an event: {line[:80]!r}")
        return event

    def close(self) -> None:
        """End the iteration, from any thread."""
        with suppress(Exception):  # the stream may end by itself at the same moment
            CancellableStream(iter(()), self._response).close()


def remote_host_of(url: str) -> str:
    """The host name in an engine's address; empty if that is this machine."""
    parts = urlsplit(url if "://" in url else f"tcp://{url}")
    host = parts.hostname or ""
    local = parts.scheme not in ("tcp", "http", "https", "ssh") or host in ("", "localhost", "::1") or host.startswith("127.")
    return "" if local else host


def _plain(error: BaseException) -> str:
    """A message for the innermost cause: docker-py, requests and urllib3 wrap it several times."""
    cause: BaseException | None = error
    while cause is not None:
        match cause:
            case FileNotFoundError() | ConnectionRefusedError():
                return "nothing listens there; start Docker, or set DOCKER_HOST or plugins.docker.host"
            case PermissionError():
                return "no permission; let this user into the group `docker`, or set DOCKER_HOST or plugins.docker.host"
            case DockerException() | RequestException() if (response := getattr(cause, "response", None)) is not None:
                hint = "; a proxy must allow GET of version, containers and events" if response.status_code == 403 else ""
                return f"it answers {response.status_code} {response.reason} to {urlsplit(response.url).path}{hint}"
        cause = cause.__cause__ or cause.__context__
    return str(error)
