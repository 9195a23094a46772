"""The shape of config.yml: frozen pydantic models. Unknown keys are errors; every option says default, unit and limit."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "BackendConfig",
    "Config",
    "DefaultResponseConfig",
    "DockerConfig",
    "Model",
    "RouteConfig",
    "ServerConfig",
    "TimeoutsConfig",
    "UseConfig",
]

Seconds = Annotated[float, Field(gt=0, le=86_400)]


class Model(BaseModel):
    """Base of every config model: immutable, and strict about unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=False)


class TimeoutsConfig(Model):
    """How long to wait for a backend (see model.Timeouts)."""

    connect_seconds: Seconds = 2.0
    response_seconds: Seconds = 30.0


class RouteConfig(Model):
    """One entry of `routes`: which requests, to which backend."""

    path_prefix: str
    backend: str
    name: str | None = None
    hosts: tuple[str, ...] = Field(default=(), alias="host")
    methods: tuple[str, ...] = ()
    headers: dict[str, str] = {}
    strip_prefix: bool = False
    timeouts: TimeoutsConfig = TimeoutsConfig()
    plugins: dict[str, Literal[False] | dict[str, Any]] = {}


class BackendConfig(Model):
    """One entry of `backends`: containers picked by label, or fixed addresses, or both."""

    name: str
    match_labels: tuple[str, ...] = ()
    endpoints: tuple[str, ...] = ()
    policy: str = "random_of_two"


class DefaultResponseConfig(Model):
    """The answer when no route matches. With `content_type` the body is sent raw."""

    body: str = "No route matches."
    status_code: Annotated[int, Field(ge=200, le=599)] = 404
    content_type: str | None = None


class ServerConfig(Model):
    """The client's side."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65_535)] = 8080
    threads: Annotated[int, Field(ge=1, le=1_000)] = 8
    max_in_flight: Annotated[int, Field(ge=1, le=10_000)] = 256
    drain_seconds: Annotated[float, Field(ge=0, le=3_600)] = 10.0
    max_target_bytes: Annotated[int, Field(ge=8_000, le=65_536)] = 16_384
    max_head_bytes: Annotated[int, Field(ge=8_192, le=1_048_576)] = 65_536
    max_headers: Annotated[int, Field(ge=10, le=1_000)] = 200
    max_body_bytes: Annotated[int, Field(ge=0)] | None = None
    head_seconds: Seconds = 10.0
    body_seconds: Seconds = 30.0
    write_seconds: Seconds = 30.0
    keep_alive_seconds: Seconds = 75.0


class DockerConfig(Model):
    """How to reach the Docker engine and which address of a container to use."""

    host: str | None = None
    network: str | None = None


class UseConfig(Model):
    """One entry of `use`: any WSGI middleware, by dotted name or PasteDeploy entry point, with keyword arguments."""

    app: str
    name: str | None = None
    before: str | None = None
    after: str | None = None
    options: dict[str, Any] = {}


class Config(Model):
    """The whole of config.yml.

    `plugins` maps plugin names to their *validated* options once the config is loaded: a model instance, or None for a
    plugin without a section. `disabled` are the built-ins under `plugins: {disable: …}`.
    """

    routes: tuple[RouteConfig, ...] = ()
    backends: tuple[BackendConfig, ...] = ()
    default_response: DefaultResponseConfig = DefaultResponseConfig()
    server: ServerConfig = ServerConfig()
    docker: DockerConfig = DockerConfig()
    plugins: dict[str, Any] = {}
    disabled: frozenset[str] = frozenset()
    use: tuple[UseConfig, ...] = ()
    pipeline: tuple[str, ...] | None = None
