"""request_id: gives every request an id that the backend and the client both see.

    plugins:
      request_id:
        header: X-Request-ID       # default
        trust_incoming: true       # default; false replaces what the client sends

An id that the client sends is kept if it is a short plain word, and replaced otherwise. A new id is the one that rgate's own
logs and fault answers have for the request.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field

from rgate import ConfigSection, Exchange, Gateway, Middleware, hookimpl

if TYPE_CHECKING:
    from _typeshed import OptExcInfo
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

_PLAIN_WORD = re.compile(r"[A-Za-z0-9._~+/=-]{1,128}")


class RequestIdOptions(BaseModel):
    """The options under `plugins: {request_id: …}`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    header: Annotated[str, Field(pattern="^[A-Za-z0-9-]+$")] = "X-Request-ID"
    trust_incoming: bool = True


@hookimpl
def rgate_config_sections() -> ConfigSection:
    return ConfigSection("request_id", RequestIdOptions)


@hookimpl
def rgate_middlewares(gateway: Gateway) -> Middleware[RequestIdOptions]:
    # Outside of `faults`, so that the gateway's own answers have the id too.
    return Middleware("request_id", wrap, before="faults")


def wrap(app: WSGIApplication, options: RequestIdOptions) -> WSGIApplication:
    key = "HTTP_" + options.header.upper().replace("-", "_")

    def request_id(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        sent = environ.get(key, "") if options.trust_incoming else ""
        environ[key] = given = sent if _PLAIN_WORD.fullmatch(sent) else Exchange.of(environ).id

        def start(status: str, headers: list[tuple[str, str]], exc_info: OptExcInfo | None = None) -> Callable[[bytes], object]:
            others = [(name, value) for name, value in headers if name.lower() != options.header.lower()]
            return start_response(status, [*others, (options.header, given)], exc_info)

        return app(environ, start)

    return request_id
