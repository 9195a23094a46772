"""The innermost app of a route's chain: one attempt at one endpoint, `exchange.endpoint`.

The client's request goes to the backend byte for byte, except for fields that belong to the client's own connection, and the
response comes back the same way. Nothing is decoded, followed or retried on another endpoint here. The one retry that there is,
of a stale connection, is `_replace_stale_connection()`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from io import BytesIO
from typing import TYPE_CHECKING, Final

from ..chain.exchange import ENVIRON_KEY, Exchange
from ..errors import BadResponse, ClientClosed, InternalError, UpstreamClosed, UpstreamTruncated
from ..http1.cache import RepeatCache
from ..http1.chunked import LAST_CHUNK, ChunkedDecoder, chunk_head, last_chunk
from ..http1.environ import (
    CONNECTION_KEY,
    FIELDS_KEY,
    PEER_KEY,
    TARGET_KEY,
    edited_fields,
    edited_target,
    original_host,
)
from ..http1.fields import encode_field
from ..http1.grammar import BODILESS_STATUSES, IDEMPOTENT_METHODS, environ_key
from ..http1.trailers import read_trailers
from .connection import StaleConnection, UpstreamConnection
from .forwarded import CDN_LOOP_KEY, VIA_KEY, forwarded_headers, trusted_forwarded_headers
from .response_body import ResponseBody
from .upload import Upload, request_stream
from .upstream import Upstream, UpstreamPools

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

    from ..chain.client_connection import ClientConnection, RequestStream
    from ..config import Route
    from ..discovery.model import Address, Endpoint
    from ..http1.response import ResponseHead
    from ..http1.target import Target

__all__ = ["Forwarder"]

# A server that has not read a request completely may close the connection after its response although it announced keep-alive,
# milliseconds or seconds later (gunicorn's gthread worker does). So a connection is not reused after a request larger than this.
READ_BYTES: Final = 65_536

_TE: Final = b"TE: trailers\r\nConnection: TE\r\n"

# For all routes: (Via or CDN-Loop, stripped prefix, client, scheme, Host, protocol) → the header lines for the backend.
_forwarded_lines: Final[RepeatCache[tuple[str, str, str, str, str, str], bytes]] = RepeatCache(
    "forwarding header lines", 1_048_576
)


class Forwarder:
    """The WSGI app at the end of the chain of `route`.

    edited  whether a middleware in the chain may change the environ; if not, the head is forwarded as it was received
    via     whether requests of this gateway are marked with Via; otherwise with CDN-Loop

    For each attempt: it counts in `exchange.attempts`, the exchange is in `endpoint.state.active_exchanges` until the response is
    over, and `endpoint.state` hears of the status or the fault. Thread-safe.
    """

    def __init__(self, upstreams: UpstreamPools, route: Route, edited: bool, via: bool = True) -> None:
        self._upstreams = upstreams
        self._timeouts = route.timeouts
        self._tls = route.backend.tls
        self._strip = route.path_prefix if route.strip_prefix else ""
        self._edited = edited
        self._loop_key = VIA_KEY if via else CDN_LOOP_KEY

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        exchange: Exchange = environ[ENVIRON_KEY]
        endpoint = exchange.endpoint
        if endpoint is None:
            raise InternalError("no middleware has set exchange.endpoint")
        state = endpoint.state
        upstream = state.upstream
        # The state may be shared with a backend that has other TLS options.
        if upstream is None or (upstream.tls is not self._tls and upstream.tls != self._tls):
            upstream = state.upstream = self._upstreams.get(endpoint.address, self._tls)
            if state.stopping:
                upstream.pool.close_idle()
        head = self._head(environ, upstream)
        if exchange.tunnel is None:
            if "HTTP_TE" in environ and CONNECTION_KEY in environ:  # another server could not send the trailers
                head += _TE
        else:
            head += f"Connection: Upgrade\r\nUpgrade: {exchange.tunnel.protocol}\r\n".encode("latin-1")
        exchange.attempts += 1
        if exchange._response_trailers:
            exchange._response_trailers.clear()  # of an earlier attempt
        active = state.active_exchanges
        active.add(exchange)
        try:
            return self._attempt(environ, start_response, exchange, endpoint, upstream, head)
        except BaseException as error:
            active.discard(exchange)
            if state.on_failure is not None:
                state.on_failure(exchange, error)
            raise

    def _attempt(
        self,
        environ: WSGIEnvironment,
        start_response: StartResponse,
        exchange: Exchange,
        endpoint: Endpoint,
        upstream: Upstream,
        head: bytes,
    ) -> Iterable[bytes]:
        client: ClientConnection | None = environ.get(CONNECTION_KEY)
        method = environ["REQUEST_METHOD"]
        connection, response, block, upload, reusable = self._send_and_read_head(
            environ, exchange, client, method, upstream, head
        )
        if endpoint.state.on_response is not None:
            endpoint.state.on_response(exchange, response.code)
        if response.code < 200:
            _start_upgrade(client, exchange, endpoint, connection, response, block)
            start_response(response.status, response.headers.copy())
            return []
        if upload is not None:
            if upload.complete:
                upload = None
            elif response.code >= 300 or upload.is_held:
                # The backend has refused the request; the rest of the body is not sent (RFC 9112 §9.3).
                upload.close(answered=True)
                upload = None
        length = response.length
        chunked = response.chunked
        if method == "HEAD" or response.code in BODILESS_STATUSES:
            if length or chunked:
                # A backend that announces a body here may send it: it would be taken for the response to the next request.
                reusable = False
            length, chunked = 0, False
        elif chunked and block.endswith(LAST_CHUNK):
            block, length = _decode_if_complete(connection, block)
            chunked = length is None
        if length is not None and len(block) >= length and upload is None:
            # If the block is longer, nothing after it on this connection can be trusted.
            if reusable and len(block) == length and not (client is not None and client.client_disconnected):
                upstream.pool.release(connection)
            else:
                connection.close()
            endpoint.state.active_exchanges.discard(exchange)
            start_response(response.status, response.headers.copy())
            return [block[:length]] if length else []
        if client is not None:
            client.on_disconnect = connection.abort
            if client.client_disconnected:
                connection.abort()
        done = partial(_release, upstream, connection, endpoint, exchange, client, reusable)
        body = ResponseBody(length, chunked, block, connection, upload, done, self._timeouts.read_seconds)
        if exchange.upstream_body is not None:
            exchange.upstream_body.close()  # of an earlier attempt that a middleware has given up
        exchange.upstream_body = body
        headers = response.headers.copy()
        if chunked and response.trailer and client is not None and "HTTP_TE" in environ:
            headers.append(("Trailer", response.trailer))
        try:
            start_response(response.status, headers)
            if client is not None and not block and not connection.has_input():
                client.flush_head()
        except BaseException:
            body.close()
            raise
        return body

    def _send_and_read_head(
        self,
        environ: WSGIEnvironment,
        exchange: Exchange,
        client: ClientConnection | None,
        method: str,
        upstream: Upstream,
        head: bytes,
    ) -> tuple[UpstreamConnection, ResponseHead, bytes, Upload | None, bool]:
        """Send the request and read the head of the response.

        Returns the connection, the head, the bytes that arrived with it, the upload if the body streams, and whether the
        connection may carry another request, as far as is known at this point.
        """
        stream = length = None
        expects = False
        if "CONTENT_LENGTH" in environ or "HTTP_TRANSFER_ENCODING" in environ:
            if "HTTP_EXPECT" in environ and request_stream(environ).awaits_continue:
                expects = True
                head += b"Expect: 100-continue\r\n"
            stream, length, head = _framing(environ, exchange, head)
        else:
            head += b"\r\n"
        repeatable = stream is None and method in IDEMPOTENT_METHODS
        timeouts = self._timeouts
        connection = upstream.pool.acquire(timeouts)
        while True:
            upload = None
            try:
                connection.set_io_timeout(timeouts.read_seconds)
                if client is not None:
                    client.on_disconnect = connection.abort
                    if client.client_disconnected:
                        raise ClientClosed("before the request was sent")
                connection.send_bytes(head)
                if stream is None:
                    reused = connection.reused
                    response, block = connection.read_head(client)
                    if response.code == 408 and reused and not response.keep_alive:
                        # The request was complete: the backend closes a connection that was idle for too long, and says so.
                        raise StaleConnection("the backend has given up waiting for a request")
                else:
                    trailers = partial(_trailers, environ, exchange)
                    upload = Upload(stream, length, connection, timeouts.read_seconds, trailers)
                    if expects:
                        upload.hold()
                    upload.pump()
                    response, block = connection.read_head(client, upload)
                break
            except (StaleConnection, UpstreamClosed) as error:
                if upload is not None:
                    upload.close()
                connection = self._replace_stale_connection(error, connection, repeatable, upstream)
            except BaseException:
                if upload is not None:
                    upload.close()
                connection.close()
                raise
            finally:
                if client is not None:
                    client.on_disconnect = None
        return connection, response, block, upload, response.keep_alive and stream is None and len(head) <= READ_BYTES

    def _replace_stale_connection(
        self, error: StaleConnection | UpstreamClosed, connection: UpstreamConnection, repeatable: bool, upstream: Upstream
    ) -> UpstreamConnection:
        """Close `connection`, on which the backend closed before a response, and return a new one for the same request, or raise
        the fault.

        A backend may close an idle connection at any time, so a request that meets this moment on a pooled connection is sent
        once more on a new one, where closing is UpstreamClosed. Idempotent requests without a streamed body only: the backend may
        have executed it (RFC 9112 §9.3.1, RFC 9110 §9.2.2).

        Not to be confused with the plugin `retry`, which sends a failed attempt to *another* endpoint, is configured, and has a
        budget. This is the same attempt at the same endpoint: always on, not counted in `exchange.attempts`, not reported to
        `endpoint.state`, and without a budget, since there is at most one for each attempt.
        """
        connection.close()
        if connection.aborted:
            raise ClientClosed("before the response") from error
        if isinstance(error, UpstreamClosed):
            raise error
        if not repeatable:
            raise UpstreamClosed(str(error)) from error
        return upstream.pool.connect_new(self._timeouts)

    def _head(self, environ: WSGIEnvironment, upstream: Upstream) -> bytes:
        """The head of the request for the backend, without the framing and the empty line."""
        if self._edited:
            target, lines = _rebuild_head(environ)
        else:
            target, lines = environ[TARGET_KEY], environ[FIELDS_KEY].lines
        raw = _without_prefix(self._strip, target) if self._strip else target.raw
        first = f"{environ['REQUEST_METHOD']} {upstream.address.base_path}{raw} HTTP/1.1\r\n".encode("latin-1")
        return b"%b%b%b" % (first, lines, self._forwarded(environ, upstream.address))

    def _forwarded(self, environ: WSGIEnvironment, address: Address) -> bytes:
        """The header lines about the client and the proxies, and a Host if the request has none."""
        get = environ.get
        own = host = get("HTTP_HOST", "")
        if self._edited:
            host = original_host(environ)
        if PEER_KEY in environ:
            lines = trusted_forwarded_headers(environ, self._loop_key, self._strip, host)
        else:
            scheme, protocol = environ["wsgi.url_scheme"], environ["SERVER_PROTOCOL"]
            key = (self._loop_key, self._strip, get("REMOTE_ADDR", ""), scheme, host, protocol)
            if host and "HTTP_X_FORWARDED_FOR" not in environ and self._loop_key not in environ:
                lines = _forwarded_lines.get(key) or _cached_lines(key)
            else:
                lines = forwarded_headers(get("HTTP_X_FORWARDED_FOR", ""), get(self._loop_key, ""), *key)
        # HTTP/1.0 clients may omit Host; the request to the backend is HTTP/1.1 and must have one.
        return lines if own else lines + encode_field("Host", address.authority)


def _cached_lines(key: tuple[str, str, str, str, str, str]) -> bytes:
    lines = forwarded_headers("", "", *key)
    if _forwarded_lines.admits(key):
        _forwarded_lines.add(key, lines, 350 + 2 * len(lines))
    return lines


def _rebuild_head(environ: WSGIEnvironment) -> tuple[Target, bytes]:
    """The target and the header lines from an environ that middleware may have changed."""
    try:
        encode_field(environ["REQUEST_METHOD"], "")  # a method is a token, as a header's name
        return edited_target(environ), b"".join(edited_fields(environ))
    except ValueError as error:
        raise InternalError(f"a middleware has produced a request that cannot be sent: {error}") from error


def _without_prefix(prefix: str, target: Target) -> str:
    """The raw target without the route's prefix, in any spelling of it."""
    raw = target.raw
    if not _is_below(prefix, raw):
        if not _is_below(prefix, target.normalized_path):
            return raw  # a middleware has changed the path
        raw = f"{target.normalized_path}?{target.query}" if target.query else target.normalized_path
    raw = raw[len(prefix) :]
    return raw if raw.startswith("/") else "/" + raw


def _is_below(prefix: str, path: str) -> bool:
    return path.startswith(prefix) and path[len(prefix) : len(prefix) + 1] in ("", "/", "?")


def _framing(environ: WSGIEnvironment, exchange: Exchange, head: bytes) -> tuple[RequestStream | None, int | None, bytes]:
    """The stream that is still to be sent (or None), its length (None: chunked), and the complete head.

    A body that is complete in memory is sent with the head; with the chunked coding only when it has trailers.
    """
    length = environ.get("CONTENT_LENGTH")
    if length:
        stream = environ["wsgi.input"]
        if type(stream) is not BytesIO and request_stream(environ).is_small:
            # Passed incomplete so that a route's limit could be checked early. The backend must not get a partial one.
            stream = environ["wsgi.input"] = BytesIO(stream.read(int(length)))
        if type(stream) is BytesIO:
            body = stream.read(int(length))
            if len(body) < int(length):
                raise InternalError("a middleware has read the request body without replacing wsgi.input")
            trailers = _trailers(environ, exchange) if exchange._request_trailers else []
            if trailers:
                chunk = b"%b%b\r\n" % (chunk_head(len(body)), body) if body else b""
                return None, None, b"%bTransfer-Encoding: chunked\r\n\r\n%b%b" % (head, chunk, last_chunk(trailers))
            return None, None, b"%bContent-Length: %d\r\n\r\n%b" % (head, int(length), body)
        head += b"Content-Length: %d\r\n\r\n" % int(length)
        return (request_stream(environ), int(length), head) if int(length) else (None, None, head)
    if environ.get("HTTP_TRANSFER_ENCODING", "").lower() == "chunked":
        return request_stream(environ), None, head + b"Transfer-Encoding: chunked\r\n\r\n"
    return None, None, head + b"\r\n"


def _trailers(environ: WSGIEnvironment, exchange: Exchange) -> list[tuple[str, str]]:
    """The request's trailer fields without those that are in its head: a backend that merges the two must find the values that
    the chain has seen or set."""
    return [pair for pair in exchange.request_trailers if environ_key(pair[0]) not in environ]


def _decode_if_complete(connection: UpstreamConnection, block: bytes) -> tuple[bytes, int | None]:
    """A chunked body, decoded, and its length, if all of it arrived with the head and has no trailers; otherwise the block
    itself, and None."""
    chunks = ChunkedDecoder()
    try:
        payload = chunks.feed(block)
    except ValueError as error:
        connection.close()
        raise BadResponse(str(error)) from error
    complete = chunks.complete and not chunks.trailers
    return (payload + chunks.trailing_data, len(payload)) if complete else (block, None)


def _start_upgrade(
    client: ClientConnection | None,
    exchange: Exchange,
    endpoint: Endpoint,
    connection: UpstreamConnection,
    response: ResponseHead,
    block: bytes,
) -> None:
    """The backend has switched protocols (101): make the server connect the client to it after the response.

    Raises BadResponse unless it has switched to the protocol of `exchange.tunnel`: the client would take its bytes for those of
    another protocol.
    """
    tunnel = exchange.tunnel
    if tunnel is None or response.upgrade != tunnel.protocol or client is None:
        connection.close()
        raise BadResponse(f"switched protocols without a request for it, to {response.upgrade!r}")

    def close() -> None:
        connection.close()
        endpoint.state.active_exchanges.discard(exchange)

    tunnel.established = True
    client.upgrade(tunnel, connection.sock, block, close)


def _release(
    upstream: Upstream,
    connection: UpstreamConnection,
    endpoint: Endpoint,
    exchange: Exchange,
    client: ClientConnection | None,
    reusable: bool,
    complete: bool,
    fault: UpstreamTruncated | None,
    trailers: Sequence[bytes],
) -> None:
    """End the attempt when its response body has ended: release or close the connection and report a fault. See ResponseBody.

    The response may be over in the thread of the request or in the server's relay.
    """
    if trailers:
        exchange.response_trailers.extend(read_trailers(trailers))
    if client is not None:
        client.on_disconnect = None
    if reusable and complete and not (client is not None and client.client_disconnected):
        upstream.pool.release(connection)
    else:
        connection.close()
    endpoint.state.active_exchanges.discard(exchange)
    if fault is not None and endpoint.state.on_failure is not None:
        endpoint.state.on_failure(exchange, fault)
