"""The shape of config.yml: frozen pydantic models. Unknown keys are errors; every option has a default, unit and limit.

docs/configuration.md says the same for the operator; a test holds the two together.
"""

from __future__ import annotations

import os
import re
from ipaddress import IPv6Address, ip_network
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr
from pydantic_core import PydanticKnownError

from ..wire.target import read_target
from .shown import shown
from .tree import Path

__all__ = [
    "BackendConfig",
    "BackendTLSConfig",
    "CertificateConfig",
    "ClientCertificatesConfig",
    "Config",
    "DefaultResponseConfig",
    "DockerConfig",
    "Model",
    "PluginsConfig",
    "RouteConfig",
    "ServerConfig",
    "TLSConfig",
    "TimeoutsConfig",
    "UseConfig",
]

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110 §5.6.2
_FIELD_VALUE = re.compile(r"[!-~\x80-\xff](?:[ \t!-~\x80-\xff]*[!-~\x80-\xff])?")  # RFC 9110 §5.5, what may reach a server
_HOST_NAME = re.compile(r"[a-z0-9_](?:[a-z0-9_.-]*[a-z0-9_])?")
_MEDIA_TYPE = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+/[!#$%&'*+.^_`|~0-9A-Za-z-]+[ -~]*")


def _no_bool(kind: Literal["int_type", "float_type"]) -> BeforeValidator:
    """Python's bool is an int, so `port: yes` would be port 1."""

    def refuse(value: object) -> object:
        if isinstance(value, bool):
            raise PydanticKnownError(kind)
        return value

    return BeforeValidator(refuse)


def _name(text: str) -> str:
    if not text or text != text.strip() or not text.isprintable() or len(text) > 200:
        raise ValueError("a name is 1 to 200 printable characters, with no space at either end")
    return text


def _path_prefix(text: str) -> str:
    if not text.startswith("/"):
        raise ValueError(f"must begin with '/'; found {text!r}")
    for sign, meaning in (("?", "a query"), ("#", "a fragment")):
        if sign in text:
            raise ValueError(f"is a path without {meaning}; take away what begins at {sign!r}")
    try:
        canonical = read_target("GET", text).route
    except ValueError as error:
        why = str(error) if "path" in str(error) else "only visible ASCII stands in a path, anything else as %XX"
        raise ValueError(f"no request can have this path: {why}") from None
    if canonical != text:
        raise ValueError(f"must be in canonical form, which is {canonical!r}")
    return text


def _one_or_more(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _host(text: str) -> str:
    host = text.lower()
    if host.startswith("[") and host.endswith("]"):
        try:
            return f"[{IPv6Address(host[1:-1])}]"
        except ValueError:
            raise ValueError(f"{text!r} is no IPv6 address") from None
    if not host.isascii():
        raise ValueError(f"{text!r} must be written as it is sent, in its xn-- form")
    if not _HOST_NAME.fullmatch(host):
        raise ValueError(f"{text!r} is no host name; write the name alone, without scheme, port or wildcard")
    return host


def _method(text: str) -> str:
    if not _TOKEN.fullmatch(text):
        raise ValueError(f"{text!r} is no HTTP method")
    return text.upper()


def _headers(headers: dict[str, str]) -> dict[str, str]:
    seen: dict[str, str] = {}
    for name, value in headers.items():
        if not _TOKEN.fullmatch(name):
            raise ValueError(f"{name!r} is no header name")
        if "_" in name:
            raise ValueError(f"{name!r} never matches: headers whose name has an underscore are dropped")
        if not _FIELD_VALUE.fullmatch(value):
            raise ValueError(f"the value of {name!r} never matches: it is empty, or has a space at an end or a control character")
        if name.lower() in seen:
            raise ValueError(f"{seen[name.lower()]!r} and {name!r} are the same header")
        seen[name.lower()] = name
    return headers


def _label(text: str) -> str:
    name, equals, _ = text.partition("=")
    if not equals or not name or re.search(r"\s", name):
        raise ValueError(f"{text!r} is no label; write name=value, without spaces around the '='")
    return text


def _labels(labels: tuple[str, ...]) -> tuple[str, ...]:
    seen: dict[str, str] = {}
    for label in labels:
        name = label.partition("=")[0]
        if seen.setdefault(name, label) != label:
            raise ValueError(f"no container has both {seen[name]!r} and {label!r}")
    return labels


def _certificate_host(text: str) -> str:
    """A host as TLS names it: no address, but `*.` in front stands for one label."""
    host = _host(text.removeprefix("*."))
    if host.startswith("["):
        raise ValueError(f"{text!r} is an address; TLS clients name only hosts, so the first certificate serves it")
    return f"*.{host}" if text.startswith("*.") else host


def _server_name(text: str) -> str:
    return _host(f"[{text}]" if ":" in text and not text.startswith("[") else text).strip("[]")


def _network(text: str) -> str:
    try:
        return str(ip_network(text))
    except ValueError:
        pass
    try:
        wider = ip_network(text, strict=False)
    except ValueError:
        raise ValueError(f"{text!r} is no network; write one like 10.0.0.0/8, or an address like 192.0.2.1") from None
    raise ValueError(f"{text!r} has bits beyond the prefix; write {wider} or a longer prefix")


def _media_type(text: str) -> str:
    if not _MEDIA_TYPE.fullmatch(text):
        raise ValueError(f"{text!r} is no media type; write one like 'text/html; charset=utf-8'")
    return text


Whole = Annotated[int, _no_bool("int_type")]
Seconds = Annotated[float, _no_bool("float_type"), Field(gt=0, le=86_400)]
Name = Annotated[str, AfterValidator(_name)]
HostName = Annotated[str, AfterValidator(_host)]


class Model(BaseModel):
    """Base of every config model: immutable, and strict about unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=False)


class TimeoutsConfig(Model):
    """How long to wait for a backend (see model.Timeouts). Each is above 0 and at most a day."""

    connect_seconds: Seconds = 2.0
    response_seconds: Seconds = 30.0


class RouteConfig(Model):
    """One entry of `routes`: which requests, to which backend.

    `name` is unique once the config is loaded, by default the path_prefix. `hosts` is `host` in the file: one name or a
    list, lower-case here. `methods` are upper-case here. The values of `plugins` are the plugin's validated options for
    this route once the config is loaded, or False for "off".
    """

    path_prefix: Annotated[str, AfterValidator(_path_prefix)]
    backend: str
    name: Name | None = None
    hosts: Annotated[tuple[HostName, ...], BeforeValidator(_one_or_more)] = Field(default=(), alias="host")
    methods: tuple[Annotated[str, AfterValidator(_method)], ...] = ()
    headers: Annotated[dict[str, str], AfterValidator(_headers)] = {}
    strip_prefix: bool = False
    max_body_bytes: Annotated[Whole, Field(ge=0)] | None = None
    timeouts: TimeoutsConfig = TimeoutsConfig()
    plugins: dict[str, Any] = {}


class BackendTLSConfig(Model):
    """`tls` of a backend: how its https endpoints are spoken to. The values are files in PEM form, but for `server_name`.

    `ca` replaces the system's authorities; `certificate` and `key` are the gateway's own, for backends that ask for one;
    `server_name` is what the backend's certificate must be for, by default the endpoint's host.
    """

    ca: str | None = None
    certificate: str | None = None
    key: str | None = None
    key_password: str | None = None
    server_name: Annotated[str, AfterValidator(_server_name)] | None = None
    verify: bool = True


class BackendConfig(Model):
    """One entry of `backends`: containers picked by label, or fixed addresses, or both."""

    name: Name
    match_labels: Annotated[tuple[Annotated[str, AfterValidator(_label)], ...], AfterValidator(_labels)] = ()
    endpoints: tuple[str, ...] = ()
    policy: str = "random_of_two"
    tls: BackendTLSConfig = BackendTLSConfig()


class DefaultResponseConfig(Model):
    """The answer when no route matches. With `content_type` the body is sent raw."""

    body: str = "No route matches."
    status_code: Annotated[Whole, Field(ge=200, le=599)] = 404
    content_type: Annotated[str, AfterValidator(_media_type)] | None = None


class CertificateConfig(Model):
    """One entry of `server.tls.certificates`: files in PEM form, and the hosts that they are shown to.

    Without `key` the key is in the file of the certificate; without `hosts` the certificate's own names count.
    """

    certificate: str
    key: str | None = None
    key_password: str | None = None
    hosts: tuple[Annotated[str, AfterValidator(_certificate_host)], ...] = ()


class ClientCertificatesConfig(Model):
    """`server.tls.client_certificates`: clients show a certificate that one in `ca` has issued, or none if not `require`."""

    ca: str
    require: bool = True


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
    redirect_port: Annotated[Whole, Field(ge=0, le=65_535)] | None = None
    public_port: Annotated[Whole, Field(ge=1, le=65_535)] | None = None


class ServerConfig(Model):
    """The client's side: where to listen, how much to accept, how long to wait. And how much of a response head to take."""

    host: str = "127.0.0.1"
    port: Annotated[Whole, Field(ge=0, le=65_535)] = 8080
    workers: Annotated[Whole, Field(ge=1, le=512)] | Literal["auto"] = 1
    threads: Annotated[Whole, Field(ge=1, le=1_000)] = 8
    max_in_flight: Annotated[Whole, Field(ge=1, le=10_000)] = 256
    drain_seconds: Annotated[float, _no_bool("float_type"), Field(ge=0, le=3_600)] = 10.0
    max_target_bytes: Annotated[Whole, Field(ge=8_000, le=65_536)] = 16_384
    max_head_bytes: Annotated[Whole, Field(ge=8_192, le=1_048_576)] = 65_536
    max_headers: Annotated[Whole, Field(ge=10, le=1_000)] = 200
    max_body_bytes: Annotated[Whole, Field(ge=0)] | None = None
    max_requests_per_connection: Annotated[Whole, Field(ge=1, le=1_000_000_000)] = 10_000
    max_connections: Annotated[Whole, Field(ge=1, le=1_000_000)] = 16_384
    max_connections_per_client: Annotated[Whole, Field(ge=1)] | None = None
    max_slow_clients: Annotated[Whole, Field(ge=0, le=100_000)] = 1_024
    head_seconds: Seconds = 10.0
    body_seconds: Seconds = 30.0
    write_seconds: Seconds = 30.0
    keep_alive_seconds: Seconds = 75.0
    max_response_head_bytes: Annotated[Whole, Field(ge=8_192, le=1_048_576)] = 65_536
    max_response_headers: Annotated[Whole, Field(ge=10, le=10_000)] = 500
    proxy_protocol: bool = False
    trusted_proxies: tuple[Annotated[str, AfterValidator(_network)], ...] = ()
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


class UseConfig(Model):
    """One entry of `use`: any WSGI middleware, by dotted name or PasteDeploy entry point, with keyword arguments.

    `name` is set once the config is loaded, by default what stands last in `app`.
    """

    app: str
    name: Name | None = None
    before: str | None = None
    after: str | None = None
    options: dict[str, Any] = {}

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
    plugins: dict[str, Any] = {}
    disabled: frozenset[str] = Field(default=frozenset(), init=False)
    use: tuple[UseConfig, ...] = ()
    pipeline: tuple[str, ...] | None = None
    _sources: dict[Path, str] = PrivateAttr(default_factory=dict)

    def shown(self) -> dict[str, Any]:
        """The config in force, defaults included, as plain values that may be shown: what stands under a key that is called
        like a secret is hidden, a password in a URL too, and a value out of the environment is the text in the file."""
        return shown(self, self._sources)
