"""The shape of config.yml: frozen pydantic models. Unknown keys are errors; every option has a default, unit and limit.

docs/configuration.md says the same for the operator; a test holds the two together.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, ValidationError

from ..errors import ConfigProblem
from .backends import BackendConfig, BackendTLSConfig, EndpointConfig, HealthConfig, StickyConfig
from .fields import (
    CertificateHost,
    Flag,
    HostName,
    ListenHost,
    MediaType,
    Method,
    Model,
    Name,
    Network,
    PathPrefix,
    RequestHeaders,
    Seconds,
    StrictFloat,
    StrictInt,
    one_or_more,
)
from .redaction import shown
from .tree import Path

__all__ = [
    "BackendConfig",
    "BackendTLSConfig",
    "CertificateConfig",
    "ClientCertificatesConfig",
    "Config",
    "DefaultResponseConfig",
    "DockerConfig",
    "EndpointConfig",
    "HealthConfig",
    "LogConfig",
    "Model",
    "PluginCommonConfig",
    "PluginsConfig",
    "RouteConfig",
    "ServerConfig",
    "StickyConfig",
    "TLSConfig",
    "TimeoutsConfig",
    "WSGIMiddlewareConfig",
]


class TimeoutsConfig(Model):
    """How long to wait for a backend (see model.Timeouts). Each is above 0 and at most a day."""

    connect_seconds: Seconds = 4.0
    response_seconds: Seconds = 30.0


class RouteConfig(Model):
    """One entry of `routes`: which requests, to which backend.

    `name` is unique once the config is loaded, by default the path_prefix. `hosts` is `host` in the file: one name or a
    list, lower-case here. `methods` are upper-case here. The values of `plugins` are the plugin's validated options for
    this route once the config is loaded, or False for "off".
    """

    path_prefix: PathPrefix
    backend: str
    name: Name | None = None
    hosts: Annotated[tuple[HostName, ...], BeforeValidator(one_or_more)] = Field(default=(), alias="host")
    methods: tuple[Method, ...] = ()
    headers: RequestHeaders = Field(default={})
    strip_prefix: Flag = False
    max_body_bytes: Annotated[StrictInt, Field(ge=0)] | None = None
    timeouts: TimeoutsConfig = TimeoutsConfig()
    plugins: dict[str, Any] = Field(default={})


class DefaultResponseConfig(Model):
    """The answer when no route matches. With `content_type` the body is sent raw."""

    body: str = "No route matches."
    status_code: Annotated[StrictInt, Field(ge=200, le=599)] = 404
    content_type: MediaType | None = None


class CertificateConfig(Model):
    """One entry of `server.tls.certificates`: files in PEM form, and the hosts that they are shown to.

    Without `key` the key is in the file of the certificate; without `hosts` the certificate's own names count.
    """

    certificate: str
    key: str | None = None
    key_password: str | None = None
    hosts: tuple[CertificateHost, ...] = ()


class ClientCertificatesConfig(Model):
    """`server.tls.client_certificates`: clients show a certificate that one in `ca` has issued, or none if not `require`, and
    none that the lists in `crl` have revoked."""

    ca: str
    crl: str | None = None
    require: Flag = True


class TLSConfig(Model):
    """`server.tls`: the listener speaks TLS. The first certificate is for clients that name no host, or an unknown one.

    `redirect_port` is a second listener, for plain HTTP, which sends clients to https at `public_port` (by default the
    port of the first).
    """

    certificate: str | None = None
    key: str | None = None
    key_password: str | None = None
    certificates: tuple[CertificateConfig, ...] = ()
    client_certificates: ClientCertificatesConfig | None = None
    redirect_port: Annotated[StrictInt, Field(ge=0, le=65_535)] | None = None
    public_port: Annotated[StrictInt, Field(ge=1, le=65_535)] | None = None

    @property
    def files(self) -> tuple[str, ...]:
        """Every file that is named here and in what stands below."""
        files = [self.certificate, self.key, *(file for pair in self.certificates for file in (pair.certificate, pair.key))]
        files += [self.client_certificates.ca, self.client_certificates.crl] if self.client_certificates is not None else []
        return tuple(file for file in files if file is not None)

    def certificate_entries(self) -> Iterator[tuple[tuple[str | int, ...], CertificateConfig]]:
        """Every certificate and its path below `server.tls`; the first is the one for clients that name no host."""
        if self.certificate is not None:
            yield (), CertificateConfig(certificate=self.certificate, key=self.key, key_password=self.key_password)
        for index, entry in enumerate(self.certificates):
            yield ("certificates", index), entry


class ServerConfig(Model):
    """The client's side: where to listen, how much to accept, how long to wait. And how much of a response head to take."""

    host: ListenHost = "127.0.0.1"
    port: Annotated[StrictInt, Field(ge=0, le=65_535)] = 8080
    workers: Annotated[StrictInt, Field(ge=1, le=512)] | Literal["auto"] = 1
    threads: Annotated[StrictInt, Field(ge=1, le=1_000)] = 8
    max_in_flight: Annotated[StrictInt, Field(ge=1, le=10_000)] = 256
    max_waiting: Annotated[StrictInt, Field(ge=0, le=100_000)] = 2_000
    shutdown_delay_seconds: Annotated[StrictFloat, Field(ge=0, le=3_600)] = 0.0
    drain_seconds: Annotated[StrictFloat, Field(ge=0, le=3_600)] = 10.0
    idle_drain_seconds: Annotated[StrictFloat, Field(ge=0, le=3_600)] = 1.0
    hang_seconds: Annotated[StrictFloat, Field(ge=2, le=86_400)] = 30.0
    max_target_bytes: Annotated[StrictInt, Field(ge=8_000, le=65_536)] = 16_384
    max_head_bytes: Annotated[StrictInt, Field(ge=8_192, le=1_048_576)] = 65_536
    max_headers: Annotated[StrictInt, Field(ge=10, le=1_000)] = 200
    max_body_bytes: Annotated[StrictInt, Field(ge=0)] | None = None
    max_requests_per_connection: Annotated[StrictInt, Field(ge=1, le=1_000_000_000)] = 10_000
    max_connections: Annotated[StrictInt, Field(ge=1, le=1_000_000)] = 16_384
    max_connections_per_client: Annotated[StrictInt, Field(ge=1)] | None = None
    max_slow_clients: Annotated[StrictInt, Field(ge=0, le=100_000)] = 1_024
    max_slow_clients_per_client: Annotated[StrictInt, Field(ge=1)] | None = 256
    body_buffer_bytes: Annotated[StrictInt, Field(ge=0, le=1_048_576)] = 65_536
    max_spooled_body_bytes: Annotated[StrictInt, Field(ge=0)] = 16_777_216
    max_spooled_bytes: Annotated[StrictInt, Field(ge=0)] = 268_435_456
    spool_directory: str | None = None
    min_body_bytes_per_second: Annotated[StrictFloat, Field(ge=0, le=1_000_000)] = 240.0
    head_seconds: Seconds = 10.0
    body_seconds: Seconds = 30.0
    write_seconds: Seconds = 30.0
    keep_alive_seconds: Seconds = 75.0
    interim_responses: Literal["auto", "all", "none"] = "auto"
    max_response_head_bytes: Annotated[StrictInt, Field(ge=8_192, le=1_048_576)] = 65_536
    max_response_headers: Annotated[StrictInt, Field(ge=10, le=10_000)] = 500
    proxy_protocol: Flag = False
    trusted_proxies: tuple[Network, ...] = ()
    via: Flag = True
    reload_on_change: Flag = True
    tls: TLSConfig | None = None

    @property
    def processes(self) -> int:
        """The number of worker processes: `auto` is one for each core that this process may use."""
        if self.workers != "auto":
            return self.workers
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class DockerConfig(Model):
    """How to reach the Docker engine and which address of a container to use."""

    host: str | None = None
    network: str | None = None


class LogConfig(Model):
    """What the gateway says of itself on stderr: from which level on, and as text or as JSON."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["text", "json"] = "text"


class DisableAfter(Model):
    """A plugin that fails this many times in a row is disabled."""

    disable_after: Annotated[StrictInt, Field(ge=1, le=1_000_000)]


def _on_error(value: object) -> object:
    """In one message what the members of the union would say in three."""
    try:
        return value if value in ("fail", "skip") else DisableAfter.model_validate(value)
    except ValidationError:
        raise ValueError("must be fail, skip, or {disable_after: N} with N from 1 to 1,000,000") from None


class PluginCommonConfig(Model):
    """How the core treats a plugin's part in the chain: keys that every plugin can have in its section, beside its own.

    `on_error` is what becomes of a request in which it fails, `timed` whether its own time is taken.
    """

    on_error: Annotated[Literal["fail", "skip"] | DisableAfter, BeforeValidator(_on_error)] = "fail"
    timed: Flag = False


class WSGIMiddlewareConfig(PluginCommonConfig):
    """One entry of `use`: any WSGI middleware, by dotted name or PasteDeploy entry point, with keyword arguments.

    `name` is set once the config is loaded, by default what stands last in `app`.
    """

    app: str
    name: Name | None = None
    before: str | None = None
    after: str | None = None
    options: dict[str, Any] = Field(default={})

    @property
    def default_name(self) -> str:
        """What stands last in `app`: ProxyFix in "werkzeug.middleware.proxy_fix:ProxyFix"."""
        return re.split("[:#.]", self.app)[-1]


class PluginsConfig(BaseModel):
    """The key `plugins` as it stands in the file: `disable`, and beside it one section for each plugin."""

    model_config = ConfigDict(frozen=True, extra="allow")

    disable: tuple[str, ...] = ()


class Config(Model):
    """The whole of config.yml.

    `plugins` maps every active plugin's name to its *validated* options once the config is loaded: a model instance, or
    None for a plugin that has none. `disabled` are the built-ins under `plugins: {disable: …}`; it is no key of the file.
    """

    routes: tuple[RouteConfig, ...] = ()
    backends: tuple[BackendConfig, ...] = ()
    default_response: DefaultResponseConfig = DefaultResponseConfig()
    server: ServerConfig = ServerConfig()
    docker: DockerConfig = DockerConfig()
    log: LogConfig = LogConfig()
    plugins: dict[str, Any] = Field(default={})
    disabled: frozenset[str] = Field(default=frozenset(), init=False)
    use: tuple[WSGIMiddlewareConfig, ...] = ()
    pipeline: tuple[str, ...] | None = None
    _sources: dict[Path, str] = PrivateAttr(default_factory=dict)
    _treatments: dict[str, PluginCommonConfig] = PrivateAttr(default_factory=dict)
    _notices: list[ConfigProblem] = PrivateAttr(default_factory=list)

    @property
    def notices(self) -> tuple[ConfigProblem, ...]:
        """What keeps nothing from running, but is probably not meant, with its place in the file."""
        return tuple(self._notices)

    def treatment(self, name: str) -> PluginCommonConfig:
        """How the core treats what a plugin, or an entry of `use`, has in the chain."""
        return self._treatments.get(name) or PluginCommonConfig()

    @property
    def timed(self) -> frozenset[str]:
        """The plugins, and entries of `use`, whose own time is taken."""
        return frozenset(name for name, treatment in self._treatments.items() if treatment.timed)

    @property
    def files(self) -> tuple[str, ...]:
        """The certificates, keys and authorities that are named anywhere."""
        listener = self.server.tls.files if self.server.tls is not None else ()
        return tuple(dict.fromkeys([*listener, *(file for backend in self.backends for file in backend.tls.files)]))

    def shown(self) -> dict[str, Any]:
        """The config in force, defaults included, as plain values that may be shown: what stands under a key that is called
        like a secret is hidden, a password in a URL too, and a value out of the environment is the text in the file."""
        return shown(self, self._sources)
