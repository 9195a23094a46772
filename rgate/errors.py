"""All exceptions that rgate raises, as one tree.

    RgateError
    ├── ConfigError                 config.yml has problems; all of them are in it
    ├── PluginError                 a plugin cannot be loaded or misuses the API
    └── GatewayError                a fault: the gateway answers this request itself
        ├── NoRoute                 no route matches                            default_response
        ├── RequestError            the client's mistake                        400
        │   ├── AmbiguousPath       a backend may read the path as one of another route
        │   ├── NotTLS              plain HTTP on a port for TLS
        │   ├── HTTPSOnly           plain HTTP; redirected to https             308
        │   ├── MethodNotAllowed    a method that a local route does not allow  405
        │   ├── RequestTimeout      head or body arrived too slowly             408
        │   ├── LengthRequired      a body without a length                     411
        │   ├── ClientClosed        the client left before the end              499
        │   ├── BodyTooLarge        body over the limit                         413
        │   ├── TargetTooLong       request target over the limit               414
        │   ├── ExpectationFailed   unknown Expect                              417
        │   ├── HeadTooLarge        head or number of headers over the limit    431
        │   ├── NotImplementedByGateway  method or transfer coding not supported    501
        │   └── VersionNotSupported HTTP version not supported                  505
        ├── Unavailable             no attempt reached a backend                503
        │   ├── NoEndpoint          the backend has no endpoint
        │   ├── ConnectionRefused   connection refused
        │   ├── Unreachable         no route to the host, or no such host
        │   ├── ConnectTimeout      no connection in time
        │   └── Overloaded          too many requests in flight
        ├── ResponseTimeout         connected, but no response in time          504
        ├── BadGateway              no valid response                           502
        │   ├── UpstreamClosed      closed or reset before a whole head
        │   ├── BadResponse         malformed response
        │   ├── TLSFailed           no TLS, or an invalid certificate
        │   └── UpstreamTruncated   broke off after the head was passed on: the client's connection is cut
        ├── LoopDetected            the request has our own Via                 508
        └── InternalError           a plugin or rgate itself failed             500

A GatewayError raised inside the `faults` middleware becomes the answer. Its `message` goes to the client and reveals nothing
about the gateway; `detail` goes to the log only.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

__all__ = [
    "AmbiguousPath",
    "BadGateway",
    "BadResponse",
    "BodyTooLarge",
    "ClientClosed",
    "ConfigError",
    "ConfigProblem",
    "ConnectTimeout",
    "ConnectionRefused",
    "ExpectationFailed",
    "GatewayError",
    "HTTPSOnly",
    "HeadTooLarge",
    "InternalError",
    "LengthRequired",
    "LoopDetected",
    "MethodNotAllowed",
    "NoEndpoint",
    "NoRoute",
    "NotImplementedByGateway",
    "NotTLS",
    "Overloaded",
    "PluginError",
    "RequestError",
    "RequestTimeout",
    "ResponseTimeout",
    "RgateError",
    "TLSFailed",
    "TargetTooLong",
    "Unavailable",
    "Unreachable",
    "UpstreamClosed",
    "UpstreamTruncated",
    "VersionNotSupported",
    "is_process_exit",
]


class RgateError(Exception):
    """Base of everything rgate raises on purpose."""


@dataclass(frozen=True, slots=True)
class ConfigProblem:
    """One thing wrong with the config.

    `path` is its place, as keys and indexes from the top: ("routes", 1, "backend"). `message` says what is wrong and what to do.
    `location` ("config.yml:12") is filled in by the loader.
    """

    path: tuple[str | int, ...]
    message: str
    location: str = ""

    def __str__(self) -> str:
        dotted = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in self.path).lstrip(".")
        return ": ".join(part for part in (self.location, dotted, self.message) if part)


class ConfigError(RgateError):
    """The config cannot be used. `problems` holds every problem found, in file order; str() has one line for each."""

    def __init__(self, problems: Iterable[ConfigProblem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


class PluginError(RgateError):
    """A plugin cannot be imported, registered, ordered or configured. The message names it, its distribution and version."""


class GatewayError(RgateError):
    """A fault that the gateway answers itself: base of everything that may be raised inside the `faults` middleware.

    `detail` is for the log. `retry_after_seconds` becomes the header Retry-After and `location` the header Location, if set;
    `headers` are others, such as WWW-Authenticate.
    """

    status: int = 500
    reason: ClassVar[str] = "internal"
    message: str = "The gateway failed."
    retry_after_seconds: int | None = None
    location: str | None = None
    headers: tuple[tuple[str, str], ...] = ()
    content_type: str | None = None

    def __init__(self, detail: str = "") -> None:
        super().__init__(detail)
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else self.reason

    def json(self, request_id: str) -> bytes:
        """The common shape of the gateway's own answers: a JSON object in UTF-8, with a newline at the end."""
        answer = {"status_code": self.status, "body": self.message, "reason": self.reason, "request_id": request_id}
        return json.dumps(answer, ensure_ascii=False).encode("utf-8", "replace") + b"\n"


class NoRoute(GatewayError):
    """No route matches: answered with the config's default_response.

    With a `content_type` the body is sent as it is, with that type; otherwise in the common shape.
    """

    status = 404
    reason = "no_route"

    def __init__(self, body: str = "No route matches.", status_code: int = 404, content_type: str | None = None) -> None:
        super().__init__()
        self.message = body
        self.status = status_code
        self.content_type = content_type


class RequestError(GatewayError):
    """The client sent something invalid or ambiguous."""

    status = 400
    reason = "bad_request"
    message = "The request is malformed."


class AmbiguousPath(RequestError):
    """The path can be interpreted in more than one way, and not all of them lead to the same route."""

    reason = "ambiguous_path"
    message = "The path can be read in more than one way; send it without escaped slashes, semicolons and the like."


class NotTLS(RequestError):
    """Plain HTTP was sent to a port for TLS."""

    reason = "not_tls"
    message = "This port speaks TLS; use https://."


class HTTPSOnly(RequestError):
    """A request in plain HTTP that must be sent over TLS. `location` is its https URL."""

    status = 308
    reason = "https_only"
    message = "Use https://."

    def __init__(self, location: str) -> None:
        super().__init__(location)
        self.location = location


class MethodNotAllowed(RequestError):
    """A local route does not allow this method; the answer's header Allow lists those that it does."""

    status = 405
    reason = "method_not_allowed"
    message = "This method is not answered here."


class RequestTimeout(RequestError):
    """The request's head or body did not arrive in time."""

    status = 408
    reason = "request_timeout"
    message = "The request did not arrive in time."


class ClientClosed(RequestError):
    """The client has closed the connection: before its request was complete, before the response, or during the response.

    That is neither a success nor an error, because no client has seen an answer. 499 is the status that nginx logs for it. A
    client that has only closed its sending side within a request (`incomplete`) can still read an answer, which is 400
    (RFC 9112 §8).
    """

    status = 499
    reason = "client_closed"
    message = "The client closed the connection."

    def __init__(self, detail: str = "", *, incomplete: bool = False) -> None:
        super().__init__(detail)
        if incomplete:
            self.status = 400
            self.message = "The request is incomplete."


class LengthRequired(RequestError):
    """A request body without a length."""

    status = 411
    reason = "length_required"
    message = "The request needs a Content-Length."


class BodyTooLarge(RequestError):
    """The request body is over the limit."""

    status = 413
    reason = "body_too_large"
    message = "The request body is too large."


class TargetTooLong(RequestError):
    """The request target is over the limit."""

    status = 414
    reason = "target_too_long"
    message = "The request target is too long."


class ExpectationFailed(RequestError):
    """An Expect header other than 100-continue."""

    status = 417
    reason = "expectation_failed"
    message = "The expectation cannot be met."


class HeadTooLarge(RequestError):
    """The request head, or the number of its headers, is over the limit."""

    status = 431
    reason = "head_too_large"
    message = "The request head is too large."


class NotImplementedByGateway(RequestError):
    """A method or transfer coding that the gateway does not support."""

    status = 501
    reason = "not_implemented"
    message = "The gateway does not implement this."


class VersionNotSupported(RequestError):
    """An HTTP version that the gateway does not support."""

    status = 505
    reason = "version_not_supported"
    message = "The HTTP version is not supported."


class Unavailable(GatewayError):
    """No attempt reached a backend, so the request can safely be sent again."""

    status = 503
    reason = "unavailable"
    message = "The service is not available."
    retry_after_seconds = 1


class NoEndpoint(Unavailable):
    """The route's backend has no endpoint at present."""

    reason = "no_endpoint"


class ConnectionRefused(Unavailable):
    """The endpoint refused the connection."""

    reason = "refused"


class Unreachable(Unavailable):
    """There is no network route to the endpoint, or its name has no address."""

    reason = "unreachable"


class ConnectTimeout(Unavailable):
    """The endpoint did not accept a connection in time."""

    reason = "connect_timeout"


class Overloaded(Unavailable):
    """Too many requests are in flight."""

    reason = "overloaded"
    message = "The gateway is overloaded."


class ResponseTimeout(GatewayError):
    """The backend was reached but did not answer in time. `begun`: part of a response had arrived."""

    status = 504
    reason = "response_timeout"
    message = "The service did not answer in time."

    def __init__(self, detail: str = "", *, begun: bool = False) -> None:
        super().__init__(detail)
        self.begun = begun


class BadGateway(GatewayError):
    """The backend was reached but did not send a valid response."""

    status = 502
    reason = "bad_gateway"
    message = "The service gave no valid answer."


class UpstreamClosed(BadGateway):
    """The backend closed or reset the connection before a complete response head."""

    reason = "closed"


class BadResponse(BadGateway):
    """The backend's response is malformed."""

    reason = "bad_response"


class TLSFailed(BadGateway):
    """The backend does not speak TLS, or only in ways that the gateway does not accept, or its certificate is not valid."""

    reason = "tls_failed"
    message = "The service could not be reached securely."


class UpstreamTruncated(BadGateway):
    """The response ended before it was complete, after its head had been passed on."""

    reason = "truncated"


class LoopDetected(GatewayError):
    """The request has already passed through this gateway."""

    status = 508
    reason = "loop"
    message = "The request runs in a loop."


class InternalError(GatewayError):
    """A plugin, or rgate itself, raised an unexpected exception."""


def is_process_exit(error: BaseException) -> bool:
    """Whether `error` should end the process, like the exception of a signal that arrives in the main thread.

    In any other thread SystemExit and the like come from a plugin's code, and fail one request like any other exception.
    """
    return not isinstance(error, Exception) and threading.current_thread() is threading.main_thread()
