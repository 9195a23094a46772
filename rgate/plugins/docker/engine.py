"""Engine: the talk with one Docker engine. Read-only: GET /version once, then /containers/json, /containers/{id}/json, /events.

This is the only module that knows docker-py. Everything that goes wrong comes out as EngineError.
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
from docker.types import CancellableStream
from docker.utils import kwargs_from_env
from requests.exceptions import RequestException
from urllib3.exceptions import HTTPError

from rgate import RgateError

__all__ = ["EVENT_ACTIONS", "Engine", "EngineError", "EventStream", "machine_of"]

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
"""What the engine is asked to tell. The rest changes nothing for a gateway: a container that is created is no endpoint before
it starts, and each HEALTHCHECK is three exec events."""

# In the moment in which a proxy of the socket is taken from its network, what is sent to its address is lost without a trace.
# Long enough for a second SYN, which goes out after a second; and within FOUND_SECONDS with the pause after it.
_CONNECT_SECONDS = 1.5
_REQUEST_SECONDS = 10
_QUIET_SECONDS = 45
_EVENT_LIMIT_BYTES = 1 << 20
_DEFAULT_HOST = "unix:///var/run/docker.sock"


class EngineError(RgateError):
    """The engine cannot be reached, refuses, or says something that cannot be understood."""


class Engine:
    """A connection to a Docker engine. Safe for several threads; close it after an error and make another.

    `url` is the option `plugins.docker.host`; without it DOCKER_HOST counts, else the current Docker context, else the usual
    socket. DOCKER_TLS_VERIFY and DOCKER_CERT_PATH hold for all of them. To connect may take 1.5 seconds, each wait for an
    answer 10.
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
            self._probe()
            self._api = _Client(self._where, version="auto", timeout=_REQUEST_SECONDS, tls=tls or False)

    @property
    def machine(self) -> str:
        """The machine that the engine runs on, as published ports are reached; empty when it is this one."""
        return machine_of(self._where)

    def containers(self, label: str) -> Sequence[Mapping[str, Any]]:
        """Every container, running or not, that carries `label` with whatever value."""
        with self._translated():
            self._probe()
            found = self._api.containers(all=True, filters={"label": [label]})
        if not isinstance(found, list) or not all(isinstance(record, dict) for record in found):
            raise EngineError(f"the Docker engine at {self._where} does not answer with a list of containers")
        return found

    def container(self, id: str) -> Mapping[str, Any] | None:
        """One container, or None when there is none of this id."""
        try:
            with self._translated():
                self._probe()
                found = self._api.inspect_container(id)
        except EngineError as error:
            if isinstance(error.__cause__, NotFound):
                return None
            raise
        if not isinstance(found, dict):
            raise EngineError(f"the Docker engine at {self._where} does not describe container {id[:12]}")
        return found

    def events(self, since: str) -> EventStream:
        """The events from `since` (seconds since the epoch, by the engine's clock) on. The engine listens when this returns."""
        filters = {"type": ["container", "network"], "event": list(EVENT_ACTIONS)}
        with self._translated():
            self._probe()
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

    def _probe(self) -> None:
        # docker-py leaves its socket to the garbage collector when nobody listens on a Unix socket.
        if self._where.startswith("unix://"):
            with socket.socket(socket.AF_UNIX) as probe:
                probe.settimeout(_CONNECT_SECONDS)
                probe.connect("/" + self._where.removeprefix("unix://").lstrip("/"))

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except EngineError:
            raise
        except Exception as error:  # docker-py lets KeyError, TypeError and more out at answers it does not expect
            raise EngineError(f"cannot use the Docker engine at {self._where}: {_plain(error)}") from error


class _Client(APIClient):
    def _set_request_timeout(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        # Left alone, connecting may take as long as an answer.
        kwargs.setdefault("timeout", (_CONNECT_SECONDS, self.timeout))
        return kwargs

    def merge_environment_settings(self, url: Any, proxies: Any, stream: Any, verify: Any, cert: Any) -> Any:
        # Left alone, REQUESTS_CA_BUNDLE goes before the certificate authority of DOCKER_CERT_PATH.
        return super().merge_environment_settings(url, proxies, stream, self.verify if verify is None else verify, cert)


class EventStream:
    """Iterates over events as they come. It ends when the engine ends it, or when it was silent for 45 seconds.

    Silence may be a dead connection, so it has to be looked at again. Raises EngineError for what is no event.
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
                    raise EngineError(f"the Docker engine at {self._where} sent an event without end")
                yield from map(self._event, filter(bytes.strip, lines))
        except (HTTPError, OSError, ValueError, AttributeError):  # the last two when close() takes the socket away
            return

    def _event(self, line: bytes) -> Mapping[str, Any]:
        try:
            event = json.loads(line)
        except ValueError:
            event = None
        if not isinstance(event, dict):
            raise EngineError(f"the Docker engine at {self._where} sent what is no event: {line[:80]!r}")
        return event

    def close(self) -> None:
        """End the iteration, from any thread."""
        with suppress(Exception):  # it may be ending by itself at this moment
            CancellableStream(iter(()), self._response).close()


def machine_of(url: str) -> str:
    """The host name in an engine's address; empty when it is this machine."""
    parts = urlsplit(url if "://" in url else f"tcp://{url}")
    host = parts.hostname or ""
    local = parts.scheme not in ("tcp", "http", "https", "ssh") or host in ("", "localhost", "::1") or host.startswith("127.")
    return "" if local else host


def _plain(error: BaseException) -> str:
    """The reason within: docker-py, requests and urllib3 wrap it up several times."""
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
