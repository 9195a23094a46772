"""The core's part of config.yml as frozen pydantic classes. Unknown keys are errors; options have defaults, units and limits.

Route, Backend, Timeouts and UpstreamTLS are what the gateway and plugins use at runtime, too. They are dataclasses with slots,
because their attributes are read in every request: that takes half the time of an attribute of a pydantic model. The keys of
plugins are declared by them (ConfigSection).

docs/configuration.md documents the same keys for the operator; a test compares the two.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from copy import copy
from dataclasses import field
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, PrivateAttr, ValidationError
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticKnownError

from ..errors import ConfigProblem
from .fields import (
    CertificateHost,
    Flag,
    HostName,
    Labels,
    ListenHost,
    MediaType,
    Method,
    Model,
    Name,
    Network,
    PathPrefix,
    RequestHeaders,
    Seconds,
    ServerName,
    StrictFloat,
    StrictInt,
    one_or_more,
)
from .file_watch import fingerprint
from .redaction import redacted
from .tree import Path

__all__ = [
    "Backend",
    "CertificateConfig",
    "ClientCertificatesConfig",
    "Config",
    "DefaultResponseConfig",
    "LogConfig",
    "Model",
    "PluginCommonConfig",
    "PluginsConfig",
    "Route",
    "ServerConfig",
    "TLSConfig",
    "Timeouts",
    "UpstreamTLS",
    "WSGIMiddlewareConfig",
    "changed",
]

_Entry = TypeVar("_Entry", "Backend", "Route")


@dataclass(frozen=True, slots=True, config=ConfigDict(extra="forbid"))
class Timeouts:
    """`timeouts` of a route: how long the gateway waits for a backend, in seconds. Each is above 0 and at most a day.

    `connect_seconds` limits one connection attempt. `read_seconds` limits every single wait for bytes of the response:
    the head after the request has been sent, then each following block. It does not limit the whole response, so a download
    or an event stream may last as long as bytes keep coming.
    """

    connect_seconds: Seconds = 4.0
    read_seconds: Seconds = 30.0


@dataclass(frozen=True, slots=True, config=ConfigDict(extra="forbid"))
class UpstreamTLS:
    """`tls` of a backend: how its https endpoints are spoken to. All values but `server_name` and `verify` concern PEM files.

    `ca` replaces the system's certificate authorities. `server_name` is what the backend's certificate must be for, by default
    the endpoint's host. `certificate` and `key` (by default in the same file) identify the gateway to a backend that asks for
    a client certificate. `fingerprint` is a digest of the files, read when the object is made, so that two of these are
    different when the same files have other contents.
    """

    ca: str | None = None
    certificate: str | None = None
    key: str | None = None
    key_password: str | None = field(default=None, repr=False)
    server_name: ServerName | None = None
    verify: Flag = True
    fingerprint: str = field(default="", init=False, repr=False)

    def __post_init__(self) -> None:
        if self.files:
            object.__setattr__(self, "fingerprint", fingerprint(self.files))

    @property
    def files(self) -> tuple[str, ...]:
        """Every file that is named here."""
        return tuple(file for file in (self.ca, self.certificate, self.key) if file is not None)


@dataclass(
    frozen=True, slots=True, config=ConfigDict(extra="ignore")
)  # unknown keys may be of plugins; the loader reports the others
class Backend:
    """One entry of `backends`: a named pool of endpoints.

    An instance that a discovery source lists belongs to the backend when it carries every one of `match_labels` (pairs of name
    and value; "name=value" in the file), or when its source says so by name, as for fixed addresses. `queue_seconds` is how long
    a request waits for an endpoint when the last one is gone or refuses connections; 0: not at all.

    `options` holds the plugin sections that the backend has, validated, by plugin name; None stands for "off for this backend".
    Read them with Config.options() or Gateway.options(), which know the defaults.
    """

    name: Name
    match_labels: Labels = ()
    queue_seconds: Annotated[StrictFloat, Field(ge=0, le=300)] = 10.0
    tls: UpstreamTLS = UpstreamTLS()
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)


def changed(entry: _Entry, **values: Any) -> _Entry:
    """A copy of a route or backend with other values, which are not validated."""
    copied = copy(entry)
    for name, value in values.items():
        object.__setattr__(copied, name, value)
    return copied


def _backend_by_name(value: object) -> object:
    """In the file a route has the name of its backend; the loader replaces this by the backend itself."""
    if isinstance(value, Backend):
        return value
    if not isinstance(value, str):
        raise PydanticKnownError("string_type")
    try:
        return Backend(value)
    except ValidationError:
        raise ValueError(f"no backend named {value!r}") from None


@dataclass(frozen=True, slots=True, config=ConfigDict(extra="forbid"))
class Route:
    """One entry of `routes`: which requests go to which backend, and with what options. The arguments are the keys of the file.

    `path_prefix` has no trailing slash ("" matches every path). `name` is by default the path_prefix, and unique once a config
    is loaded. `hosts` (key: `host`, one name or several) are lower-case names without port, `methods` upper-case tokens,
    `headers` names with their exact values; each is empty when it does not restrict. `max_body_bytes` is None when the server's
    own limit is enough.

    `options` (key: `plugins`) holds the plugin sections that the route has, validated once a config is loaded, by plugin name;
    None stands for "off for this route". Read them with Config.options() or Gateway.options(), which know the defaults.
    """

    path_prefix: PathPrefix
    backend: Annotated[Backend, BeforeValidator(_backend_by_name), PlainSerializer(lambda backend: backend.name)]
    name: Name = ""
    hosts: Annotated[tuple[HostName, ...], BeforeValidator(one_or_more), Field(alias="host")] = ()
    methods: tuple[Method, ...] = ()
    headers: RequestHeaders = field(default_factory=dict, hash=False)
    strip_prefix: Flag = False
    max_body_bytes: Annotated[StrictInt, Field(ge=0)] | None = None
    timeouts: Timeouts = Timeouts()
    options: Annotated[Mapping[str, Any], Field(alias="plugins")] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", self.path_prefix or "/")


class DefaultResponseConfig(Model):
    """The response when no route matches. With `content_type` the body is sent as it is."""

    body: str = "No route matches."
    status_code: Annotated[StrictInt, Field(ge=200, le=599)] = 404
    content_type: MediaType | None = None


class CertificateConfig(Model):
    """One entry of `server.tls.certificates`: PEM files, and the hosts that they are for.

    Without `key` the key is in the file of the certificate; without `hosts` the names in the certificate are used.
    """

    certificate: str
    key: str | None = None
    key_password: str | None = None
    hosts: tuple[CertificateHost, ...] = ()


class ClientCertificatesConfig(Model):
    """`server.tls.client_certificates`: clients must present a certificate that a CA in `ca` has issued and that no list in `crl`
    has revoked. With `require: false` they may also present none."""

    ca: str
    crl: str | None = None
    require: Flag = True


class TLSConfig(Model):
    """`server.tls`: the listener uses TLS. The first certificate is for clients that name no host or an unknown one.

    `redirect_port` is a second listener, for plain HTTP, which redirects clients to https at `public_port` (by default the
    port of the first listener).
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
        """Every file that is named here or in a nested section."""
        files = [self.certificate, self.key, *(file for pair in self.certificates for file in (pair.certificate, pair.key))]
        files += [self.client_certificates.ca, self.client_certificates.crl] if self.client_certificates is not None else []
        return tuple(file for file in files if file is not None)

    def certificate_entries(self) -> Iterator[tuple[tuple[str | int, ...], CertificateConfig]]:
        """Every certificate with its path below `server.tls`; the first is for clients that name no host."""
        if self.certificate is not None:
            yield (), CertificateConfig(certificate=self.certificate, key=self.key, key_password=self.key_password)
        for index, entry in enumerate(self.certificates):
            yield ("certificates", index), entry


class ServerConfig(Model):
    """`server`: where to listen, limits and timeouts of the client's side, and the limits of response heads."""

    host: ListenHost = "127.0.0.1"
    port: Annotated[StrictInt, Field(ge=0, le=65_535)] = 8080
    workers: Annotated[StrictInt, Field(ge=1, le=512)] | Literal["auto"] = 1
    threads: Annotated[StrictInt, Field(ge=1, le=1_000)] = 8
    max_in_flight: Annotated[StrictInt, Field(ge=1, le=10_000)] = 256
    max_queued: Annotated[StrictInt, Field(ge=0, le=100_000)] = 2_000
    shutdown_delay_seconds: Annotated[StrictFloat, Field(ge=0, le=3_600)] = 0.0
    drain_seconds: Annotated[StrictFloat, Field(ge=0, le=3_600)] = 10.0
    idle_drain_seconds: Annotated[StrictFloat, Field(ge=0, le=3_600)] = 1.0
    worker_timeout_seconds: Annotated[StrictFloat, Field(ge=2, le=86_400)] = 30.0
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
        """The number of worker processes: `auto` is one per core that this process may use."""
        if self.workers != "auto":
            return self.workers
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class LogConfig(Model):
    """`log`: the lowest level of the gateway's log on stderr, and its format."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["text", "json"] = "text"


class DisableAfter(Model):
    """A plugin that fails this many times in a row is removed from the chains."""

    disable_after: Annotated[StrictInt, Field(ge=1, le=1_000_000)]


def _on_error(value: object) -> object:
    """One message in place of three, one for each member of the union."""
    try:
        return value if value in ("fail", "skip") else DisableAfter.model_validate(value)
    except ValidationError:
        raise ValueError("must be fail, skip, or {disable_after: N} with N from 1 to 1,000,000") from None


class PluginCommonConfig(Model):
    """The keys that every plugin can have in its section, in addition to its own: how the core handles its middleware.

    `on_error` says what happens to a request in which it fails, `timed` whether its own time is measured.
    """

    on_error: Annotated[Literal["fail", "skip"] | DisableAfter, BeforeValidator(_on_error)] = "fail"
    timed: Flag = False


class WSGIMiddlewareConfig(PluginCommonConfig):
    """One entry of `use`: any WSGI middleware, by dotted name or PasteDeploy entry point, with keyword arguments.

    `name` is set once the config is loaded, by default the last part of `app`.
    """

    app: str
    name: Name | None = None
    before: str | None = None
    after: str | None = None
    options: dict[str, Any] = Field(default={})

    @property
    def default_name(self) -> str:
        """The last part of `app`: ProxyFix in "werkzeug.middleware.proxy_fix:ProxyFix"."""
        return re.split("[:#.]", self.app)[-1]


class PluginsConfig(BaseModel):
    """The key `plugins` in the file: `disable`, and one section per plugin."""

    model_config = ConfigDict(frozen=True, extra="allow")

    disable: tuple[str, ...] = ()


class Config(Model):
    """The whole of config.yml.

    `plugins` maps every active plugin's name to its *validated* options once the config is loaded: a model instance, or
    None for a plugin that has no options. `disabled` are the built-ins under `plugins: {disable: …}`; it is not a key of the
    file.
    """

    routes: tuple[Route, ...] = ()
    backends: tuple[Backend, ...] = ()
    default_response: DefaultResponseConfig = DefaultResponseConfig()
    server: ServerConfig = ServerConfig()
    log: LogConfig = LogConfig()
    plugins: dict[str, Any] = Field(default={})
    disabled: frozenset[str] = Field(default=frozenset(), init=False)
    use: tuple[WSGIMiddlewareConfig, ...] = ()
    pipeline: tuple[str, ...] | None = None
    _sources: dict[Path, str] = PrivateAttr(default_factory=dict)
    _plugin_common: dict[str, PluginCommonConfig] = PrivateAttr(default_factory=dict)
    _inline: frozenset[str] = PrivateAttr(default=frozenset())
    _warnings: list[ConfigProblem] = PrivateAttr(default_factory=list)

    @property
    def warnings(self) -> tuple[ConfigProblem, ...]:
        """Mistakes that do not keep the gateway from running, with their place in the file."""
        return tuple(self._warnings)

    def options(self, name: str, route: Route | None = None, backend: Backend | None = None) -> Any:
        """The validated options of an active plugin: an instance of its section's model, or None if it has no section.

        The route's own options are returned if it has some, else those of `backend` (by default the route's backend), else
        the global ones; each has taken what it does not say from the next. None stands also for a plugin that the route or
        the backend has turned off.
        """
        if route is not None:
            if name in route.options:
                return route.options[name]
            backend = backend or route.backend
        if backend is not None and name in backend.options:
            return backend.options[name]
        return self.plugins.get(name)

    def backend_share(self, limit: int) -> int:
        """How much of a limit that all backends share one of them may use by default: 80 %, at least 1, so that one backend
        cannot starve the others; all of it if there is only one backend."""
        return limit if len(self.backends) == 1 else max(1, limit * 4 // 5)

    def plugin_common(self, name: str) -> PluginCommonConfig:
        """The keys that every plugin can have (`on_error`, `timed`), of a plugin or an entry of `use`."""
        return self._plugin_common.get(name) or PluginCommonConfig()

    @property
    def timed(self) -> frozenset[str]:
        """The plugins and entries of `use` whose own time is measured."""
        return frozenset(name for name, common in self._plugin_common.items() if common.timed)

    @property
    def files(self) -> tuple[str, ...]:
        """Every certificate, key, CA and revocation list that the config names."""
        listener = self.server.tls.files if self.server.tls is not None else ()
        return tuple(dict.fromkeys([*listener, *(file for backend in self.backends for file in backend.tls.files)]))

    def redacted(self) -> dict[str, Any]:
        """The active config, defaults included, as plain values without secrets: a value under a key that is named like a
        secret is hidden, so is a password in a URL, and a value from the environment is shown as the text in the file."""
        return redacted(self, self._sources, self._inline)
