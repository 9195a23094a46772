"""api_keys: admits only clients with a key, each with a limit of requests per minute.

    plugins:
      api_keys:
        keys: {shop: "${SHOP_KEY}", billing: "${BILLING_KEY}"}
        header: X-API-Key            # default
        requests_per_minute: 600     # default; for each client, who may use all of it at once

A route may have another `requests_per_minute`, or `api_keys: false` to admit every client. The backend gets the client's name in
X-Client and never the key. Every worker process counts separately; a reload keeps the counts as long as the keys are the same.
"""

from __future__ import annotations

import hmac
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from time import monotonic
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from rgate import (
    Config,
    ConfigProblem,
    ConfigSection,
    Exchange,
    Gateway,
    LocalRoute,
    LocalRoutes,
    Middleware,
    RequestError,
    hookimpl,
    json_app,
)

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


class Unauthorized(RequestError):
    status = 401
    reason = "unauthorized"
    message = "A valid API key is needed."

    def __init__(self, header: str) -> None:
        super().__init__()
        self.headers = (("WWW-Authenticate", f'ApiKey header="{header}"'),)  # required by RFC 9110 §11.6.1


class TooManyRequests(RequestError):
    status = 429
    reason = "too_many_requests"
    message = "Too many requests."

    def __init__(self, client: str, retry_after_seconds: int) -> None:
        super().__init__(client)
        self.retry_after_seconds = retry_after_seconds


class ApiKeysOptions(BaseModel):
    """The options under `plugins: {api_keys: …}`, and in a route."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    keys: dict[str, Annotated[SecretStr, Field(min_length=16)]] = {}
    header: Annotated[str, Field(pattern="^[A-Za-z0-9-]+$")] = "X-API-Key"
    requests_per_minute: Annotated[int, Field(ge=1, le=1_000_000)] = 600


class Bucket:
    """A token bucket. acquire() takes a token and returns 0, or returns the seconds until there is one again."""

    def __init__(self, per_minute: int, clock: Callable[[], float]) -> None:
        self._per_minute = per_minute
        self._clock = clock
        self._tokens = float(per_minute)
        self._filled = clock()
        self._lock = threading.Lock()

    def acquire(self) -> float:
        with self._lock:
            now = self._clock()
            self._tokens = min(self._per_minute, self._tokens + (now - self._filled) * self._per_minute / 60)
            self._filled = now
            if self._tokens < 1:
                return (1 - self._tokens) * 60 / self._per_minute
            self._tokens -= 1
            return 0.0


class Clients:
    """The clients by key, with their buckets and the number of their requests: one object for all routes of a process."""

    def __init__(self, keys: Mapping[str, SecretStr], clock: Callable[[], float] = monotonic) -> None:
        self._names = {key.get_secret_value().encode(): name for name, key in keys.items()}
        self._clock = clock
        self._buckets: dict[tuple[str, int], Bucket] = {}
        self.requests = dict.fromkeys(keys, 0)

    def find(self, key: str) -> str | None:
        # Compares with all keys, each in constant time, so that a client cannot learn how much of a key is right.
        sent = key.encode("latin-1", "replace")
        found = [name for known, name in self._names.items() if hmac.compare_digest(known, sent)]
        return found[0] if found else None

    def acquire(self, name: str, per_minute: int) -> float:
        self.requests[name] += 1
        bucket = self._buckets.get((name, per_minute))
        if bucket is None:
            bucket = self._buckets.setdefault((name, per_minute), Bucket(per_minute, self._clock))
        return bucket.acquire()


def clients_of(gateway: Gateway) -> Clients:
    options: ApiKeysOptions = gateway.options("api_keys")
    return gateway.resource("api_keys", options.keys, lambda: Clients(options.keys))


@hookimpl
def rgate_config_sections() -> ConfigSection:
    return ConfigSection("api_keys", ApiKeysOptions, per_route=True)


@hookimpl
def rgate_check_config(config: Config) -> Iterator[ConfigProblem]:
    options: ApiKeysOptions = config.plugins["api_keys"]
    owners: dict[str, str] = {}
    for name, key in options.keys.items():
        if (owner := owners.setdefault(key.get_secret_value(), name)) != name:
            yield ConfigProblem(("plugins", "api_keys", "keys", name), f"is the key of {owner!r} too")
    for index, route in enumerate(config.routes):
        own = route.options.get("api_keys")
        if own and own.keys != options.keys:
            yield ConfigProblem(("routes", index, "plugins", "api_keys", "keys"), "belong under the top-level 'plugins' only")


@hookimpl
def rgate_middlewares(gateway: Gateway) -> Middleware[ApiKeysOptions]:
    clients = clients_of(gateway)

    def wrap(app: WSGIApplication, options: ApiKeysOptions) -> WSGIApplication:
        key_in_environ = "HTTP_" + options.header.upper().replace("-", "_")
        per_minute = options.requests_per_minute

        def api_keys(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            name = clients.find(environ.pop(key_in_environ, ""))
            if name is None:
                raise Unauthorized(options.header)
            if wait_seconds := clients.acquire(name, per_minute):
                raise TooManyRequests(name, int(wait_seconds) + 1)
            Exchange.of(environ).state["api_keys"] = name
            environ["HTTP_X_CLIENT"] = name
            return app(environ, start_response)

        return api_keys

    return Middleware("api_keys", wrap, essential=True)


@hookimpl
def rgate_local_routes(gateway: Gateway) -> LocalRoutes:
    clients = clients_of(gateway)
    return {"/-/api-keys": LocalRoute(json_app(lambda environ: (200, clients.requests)))}
