"""The innermost app: one attempt at one endpoint, `exchange.endpoint`.

What the client sent goes on byte for byte, but for what belongs to its own connection; what the backend answers comes
back the same way. Nothing is decoded, followed, retried elsewhere or made up here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from io import BytesIO
from typing import TYPE_CHECKING, Any, Final

from ..chain.exchange import ENVIRON_KEY, Exchange
from ..errors import BadResponse, ClientClosed, InternalError, UpstreamClosed, UpstreamTruncated
from ..http1.cache import RepeatCache
from ..http1.chunked import LAST_CHUNK, ChunkedDecoder, chunk_head, last_chunk
from ..http1.environ import CONNECTION_KEY, FIELDS_KEY, PEER_KEY, TARGET_KEY, edited_fields, edited_target, sent_host
from ..http1.fields import forward_line
from ..http1.trailers import read_trailers
from .forwarded import CDN_LOOP_KEY, VIA_KEY, forwarded_headers, trusted_forwarded_headers
from .response_body import ResponseBody, Upload
from .upstream import StaleConnection, Upstream, UpstreamConnection, UpstreamPools

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

    from ..config import Route
    from ..discovery.model import Address, Endpoint
    from ..http1.response import ResponseHead
    from ..http1.target import Target

__all__ = ["Forwarder"]

# Sending these twice has the same effect as once (RFC 9110 §9.2.2).
IDEMPOTENT: Final = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE"})

# A server that has not read a request to its end may close the connection although it has said that it stays open, milliseconds
# or seconds after its answer (gunicorn's gthread worker does). So none is used again after more than this.
READ_BYTES: Final = 65_536

_TE: Final = b"TE: trailers\r\nConnection: TE\r\n"


# One for all routes: Via or CDN-Loop, prefix taken away, client, scheme, Host, protocol → what goes to the backend about them.
_forwarded_lines: Final[RepeatCache[tuple[str, str, str, str, str, str], bytes]] = RepeatCache(
    "forwarding header lines", 1_048_576
)


class Forwarder:
    """The WSGI app at the end of a route's chain. `edited` says that something in the chain may have changed environ."""

    def __init__(self, upstreams: UpstreamPools, route: Route, edited: bool, via: bool = True) -> None:
        self._upstreams = upstreams
        self._timeouts = route.timeouts
        self._tls = route.backend.tls
        self._strip = route.path_prefix if route.strip_prefix else ""
        self._edited = edited
        self._passed_key = VIA_KEY if via else CDN_LOOP_KEY

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        exchange: Exchange = environ[ENVIRON_KEY]
        endpoint = exchange.endpoint
        if endpoint is None:
            raise InternalError("nothing in the chain has set exchange.endpoint")
        state = endpoint.state
        upstream = state.upstream
        if upstream is None or (upstream.tls is not self._tls and upstream.tls != self._tls):  # the load may be another's, too
            upstream = state.upstream = self._upstreams.at(endpoint.address, self._tls)
            if state.stopping:
                upstream.pool.rest(False)
        head = self._head(environ, upstream)
        if exchange.tunnel is None:
            if "HTTP_TE" in environ and CONNECTION_KEY in environ:  # under another server trailers would get no further than here
                head += _TE
        else:
            head += f"Connection: Upgrade\r\nUpgrade: {exchange.tunnel.protocol}\r\n".encode("latin-1")
        exchange.attempts += 1
        if exchange._response_trailers:
            exchange._response_trailers.clear()  # an earlier attempt's
        running = state.active_exchanges
        running.add(exchange)
        try:
            return self._attempt(environ, start_response, exchange, endpoint, upstream, head)
        except BaseException as error:
            running.discard(exchange)
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
        client = environ.get(CONNECTION_KEY)
        method = environ["REQUEST_METHOD"]
        connection, response, block, upload, reusable = self._exchange(environ, exchange, client, method, upstream, head)
        if endpoint.state.on_response is not None:
            endpoint.state.on_response(exchange, response.code)
        if response.code < 200:
            _switch(client, exchange, endpoint, connection, response, block)
            start_response(response.status, response.headers.copy())
            return []
        if upload is not None:
            if upload.complete:
                upload = None
            elif response.code >= 300 or upload.is_held:
                # The backend has refused the request; the rest of its body goes nowhere (RFC 9112 §9.3).
                upload.close(answered=True)
                upload = None
        length = response.length
        chunked = response.chunked
        if method == "HEAD" or response.code == 204 or response.code == 304:
            if length or chunked:
                # There is none, but whoever announces one may send it: it would be the answer to the next request.
                reusable = False
            length, chunked = 0, False
        elif chunked and block.endswith(LAST_CHUNK):
            block, length = _whole(connection, block)
            chunked = length is None
        if length is not None and len(block) >= length and upload is None:
            # More than was announced: nothing after it on this connection can be trusted.
            if reusable and len(block) == length and not (client is not None and client.client_disconnected):
                upstream.pool.give_back(connection)
            else:
                connection.close()
            endpoint.state.active_exchanges.discard(exchange)
            start_response(response.status, response.headers.copy())
            return [block[:length]] if length else []
        if client is not None:
            client.on_disconnect = connection.abort
            if client.client_disconnected:
                connection.abort()
        done = partial(_done, upstream, connection, endpoint, exchange, client, reusable)
        body = ResponseBody(length, chunked, block, connection, upload, done, self._timeouts.read_seconds)
        if exchange.upstream_body is not None:
            exchange.upstream_body.close()  # of an earlier attempt that something in the chain has given up
        exchange.upstream_body = body
        headers = response.headers.copy()
        if chunked and response.trailer and client is not None and "HTTP_TE" in environ:
            headers.append(("Trailer", response.trailer))
        try:
            start_response(response.status, headers)
            if client is not None and not block and connection.is_quiet():
                client.flush_head()
        except BaseException:
            body.close()
            raise
        return body

    def _exchange(
        self, environ: WSGIEnvironment, exchange: Exchange, client: Any, method: str, upstream: Upstream, head: bytes
    ) -> tuple[UpstreamConnection, ResponseHead, bytes, Upload | None, bool]:
        """Send the request and read the response's head; once more on a new connection when the pooled one was stale. The last
        of what is returned says whether the connection may carry another request, as far as is known by then."""
        stream = length = None
        expects = False
        if "CONTENT_LENGTH" in environ or "HTTP_TRANSFER_ENCODING" in environ:
            if "HTTP_EXPECT" in environ and getattr(environ["wsgi.input"], "awaits_continue", False):
                expects = True
                head += b"Expect: 100-continue\r\n"
            stream, length, head = _framing(environ, exchange, head)
        else:
            head += b"\r\n"
        repeatable = stream is None and method in IDEMPOTENT
        timeouts = self._timeouts
        connection = upstream.pool.take(timeouts)
        while True:
            upload = None
            try:
                connection.allow(timeouts.read_seconds)
                if client is not None:
                    client.on_disconnect = connection.abort
                    if client.client_disconnected:
                        raise ClientClosed("before the request was sent")
                connection.send_bytes(head)
                if stream is None:
                    reused = connection.used
                    response, block = connection.read_head(client)
                    if response.code == 408 and reused and not response.keep_alive:
                        # The request was whole: this is the end of a connection that has rested too long, said in words.
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
                connection.close()
                if connection.aborted:
                    raise ClientClosed("before the response") from error
                if isinstance(error, UpstreamClosed) or not repeatable:
                    raise UpstreamClosed(str(error)) from error
                connection = upstream.pool.fresh(timeouts)
            except BaseException:
                if upload is not None:
                    upload.close()
                connection.close()
                raise
            finally:
                if client is not None:
                    client.on_disconnect = None
        return connection, response, block, upload, response.keep_alive and stream is None and len(head) <= READ_BYTES

    def _head(self, environ: WSGIEnvironment, upstream: Upstream) -> bytes:
        """The request head, all but the framing and the empty line."""
        if self._edited:
            target, lines = _edited(environ)
        else:
            target, lines = environ[TARGET_KEY], environ[FIELDS_KEY].lines
        raw = _without_prefix(self._strip, target) if self._strip else target.raw
        first = f"{environ['REQUEST_METHOD']} {upstream.address.base_path}{raw} HTTP/1.1\r\n".encode("latin-1")
        return b"%b%b%b" % (first, lines, self._forwarded(environ, upstream.address))

    def _forwarded(self, environ: WSGIEnvironment, address: Address) -> bytes:
        """What goes to the backend about the way the request has come, and its Host when it has none."""
        get = environ.get
        own = host = get("HTTP_HOST", "")
        if self._edited:
            host = sent_host(environ)
        if PEER_KEY in environ:
            lines = trusted_forwarded_headers(environ, self._passed_key, self._strip, host)
        else:
            scheme, protocol = environ["wsgi.url_scheme"], environ["SERVER_PROTOCOL"]
            key = (self._passed_key, self._strip, get("REMOTE_ADDR", ""), scheme, host, protocol)
            if host and "HTTP_X_FORWARDED_FOR" not in environ and self._passed_key not in environ:
                lines = _forwarded_lines.get(key) or _remembered_lines(key)
            else:
                lines = forwarded_headers(get("HTTP_X_FORWARDED_FOR", ""), get(self._passed_key, ""), *key)
        # A client of HTTP/1.0 may leave Host out, HTTP/1.1 must have one.
        return lines if own else lines + forward_line("Host", address.authority)


def _remembered_lines(key: tuple[str, str, str, str, str, str]) -> bytes:
    lines = forwarded_headers("", "", *key)
    if _forwarded_lines.comes_again(key):
        _forwarded_lines.keep(key, lines, 350 + 2 * len(lines))
    return lines


def _edited(environ: WSGIEnvironment) -> tuple[Target, bytes]:
    """The target and the header lines as middleware has left them."""
    try:
        forward_line(environ["REQUEST_METHOD"], "")  # a method is a token, like a header's name
        return edited_target(environ), b"".join(edited_fields(environ))
    except ValueError as error:
        raise InternalError(f"a middleware has made a request that cannot be sent: {error}") from error


def _without_prefix(prefix: str, target: Target) -> str:
    """The raw target without the route's prefix, in whatever spelling it came."""
    raw = target.raw
    if not _is_below(prefix, raw):
        if not _is_below(prefix, target.route):
            return raw  # a middleware has led it elsewhere
        raw = f"{target.route}?{target.query}" if target.query else target.route
    raw = raw[len(prefix) :]
    return raw if raw.startswith("/") else "/" + raw


def _is_below(prefix: str, path: str) -> bool:
    return path.startswith(prefix) and path[len(prefix) : len(prefix) + 1] in ("", "/", "?")


def _framing(environ: WSGIEnvironment, exchange: Exchange, head: bytes) -> tuple[Any, int | None, bytes]:
    """The stream still to be sent (None when there is none), its length (None: chunked), and the head made complete.

    A body that is wholly at hand goes out with the head, chunked only when there are trailers for it.
    """
    length = environ.get("CONTENT_LENGTH")
    if length:
        stream = environ["wsgi.input"]
        if getattr(stream, "is_small", False):
            # It has come so far only, so that a route's limit could be told early. A cut one must not reach the backend.
            stream = environ["wsgi.input"] = BytesIO(stream.read(int(length)))
        if type(stream) is BytesIO:
            body = stream.read(int(length))
            if len(body) < int(length):
                raise InternalError("a middleware has read the request body and put none in its place")
            trailers = _trailers(environ, exchange) if exchange._request_trailers else []
            if trailers:
                chunk = b"%b%b\r\n" % (chunk_head(len(body)), body) if body else b""
                return None, None, b"%bTransfer-Encoding: chunked\r\n\r\n%b%b" % (head, chunk, last_chunk(trailers))
            return None, None, b"%bContent-Length: %d\r\n\r\n%b" % (head, int(length), body)
        head += b"Content-Length: %d\r\n\r\n" % int(length)
        return (stream, int(length), head) if int(length) else (None, None, head)
    if environ.get("HTTP_TRANSFER_ENCODING", "").lower() == "chunked":
        return environ["wsgi.input"], None, head + b"Transfer-Encoding: chunked\r\n\r\n"
    return None, None, head + b"\r\n"


def _trailers(environ: WSGIEnvironment, exchange: Exchange) -> list[tuple[str, str]]:
    """The request's trailer fields, but those that stand in its head: whoever merges the two must find what the chain has
    seen or set."""
    return [pair for pair in exchange.request_trailers if "HTTP_" + pair[0].upper().replace("-", "_") not in environ]


def _whole(connection: UpstreamConnection, block: bytes) -> tuple[bytes, int | None]:
    """A chunked body decoded, and its length, when all of it came with the head and nothing is behind it; else as it is, and
    None."""
    chunks = ChunkedDecoder()
    try:
        payload = chunks.feed(block)
    except ValueError as error:
        connection.close()
        raise BadResponse(str(error)) from error
    whole = chunks.complete and not chunks.trailers
    return (payload + chunks.trailing_data, len(payload)) if whole else (block, None)


def _switch(
    client: Any, exchange: Exchange, endpoint: Endpoint, connection: UpstreamConnection, response: ResponseHead, block: bytes
) -> None:
    """The backend has switched protocols (101): have the server connect the client to it, once it has its response.

    Raises BadResponse when that is not what the client has asked for: the backend would go on to speak something else than
    what the client takes it for.
    """
    tunnel = exchange.tunnel
    if tunnel is None or response.upgrade != tunnel.protocol or client is None:
        connection.close()
        raise BadResponse(f"switched protocols unasked, to {response.upgrade or 'none'!r}")

    def close() -> None:
        connection.close()
        endpoint.state.active_exchanges.discard(exchange)

    tunnel.established = True
    client.upgrade(tunnel, connection.sock, block, close)


def _done(
    upstream: Upstream,
    connection: UpstreamConnection,
    endpoint: Endpoint,
    exchange: Exchange,
    client: Any,
    reusable: bool,
    whole: bool,
    fault: UpstreamTruncated | None,
    trailers: Sequence[bytes],
) -> None:
    if trailers:
        exchange.response_trailers.extend(read_trailers(trailers))
    if client is not None:
        client.on_disconnect = None
    if reusable and whole and not (client is not None and client.client_disconnected):
        upstream.pool.give_back(connection)
    else:
        connection.close()
    endpoint.state.active_exchanges.discard(exchange)
    if fault is not None and endpoint.state.on_failure is not None:
        endpoint.state.on_failure(exchange, fault)
