"""normalize: cleans the headers of every response, and optionally puts text and JSON bodies into an envelope.

    plugins:
      normalize:
        format: envelope           # default: passthrough
        max_body_bytes: 1048576    # default, 1 MiB; larger bodies pass through unchanged

A route can have options of its own (`plugins: {normalize: {format: passthrough}}`), or `normalize: false` for no normalization.

Headers, in both formats: hop-by-hop headers (RFC 9110 §7.6.1) that a plugin added are removed, and a field that can have only one
value is sent once (the last one, which is the one that browsers use). Nothing is added.

`envelope` gives JSON and text responses the form of the gateway's own responses, `{"status_code": 200, "body": …}`. A JSON body
becomes the value itself, byte for byte, so that no number and no order of keys changes. A string is made of text; of JSON that
is not valid (RFC 8259: NaN, an encoding other than UTF-8); and of JSON that is too expensive to check (nested some 1,000 levels
deep, over 50,000 brackets or 500,000 commas). The client always gets valid JSON in UTF-8. Text is decoded by its charset if that
is one of those in charset.py, else as UTF-8, else as Latin-1. These responses are not changed:

- the gateway's own, `default_response` included;
- other media types, event streams and JSON in lines (NDJSON);
- 1xx, 204, 205, 206 and 304; responses with a Content-Encoding; attachments; `Cache-Control: no-transform` (RFC 9110 §7.7);
  `X-Accel-Buffering: no`, by which backends mark a stream;
- bodies over `max_body_bytes`. A body of unknown length is collected up to that size; if it is longer, it is passed on as it is.

The headers that describe the body change with it: Content-Type and Content-Length are written again, a strong ETag becomes weak
(RFC 9110 §8.8.1), Accept-Ranges and digests are removed. A response to HEAD has the headers that GET would get, except for
Content-Length, which cannot be known without the body (§8.6).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from operator import itemgetter
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, NamedTuple, NoReturn

from pydantic import BaseModel, ConfigDict, Field

from rgate import CONTENTLESS_STATUSES, BodyWrapper, ConfigSection, Exchange, Gateway, Middleware, RepeatCache, hookimpl

from .charset import codec

if TYPE_CHECKING:
    from _typeshed import OptExcInfo
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    Headers = list[tuple[str, str]]

__all__ = ["NormalizeOptions", "enveloped"]

_HOP_BY_HOP = frozenset({"connection", "keep-alive", "proxy-connection", "te", "transfer-encoding", "upgrade"})
_SINGLE = frozenset({"age", "content-length", "content-location", "content-range", "content-type", "date", "etag", "expires",
                     "last-modified", "location", "retry-after", "server"})  # fmt: skip
_BODY_HEADERS = frozenset({"accept-ranges", "content-digest", "content-length", "content-md5", "content-type", "digest",
                              "repr-digest"})  # fmt: skip
_UNCHANGED = frozenset({*map(str, CONTENTLESS_STATUSES), "206"})  # 206: a part of something else
_STREAMS = frozenset({"text/event-stream", "application/stream+json"})
_CHARSET = re.compile(r""";\s*charset\s*=\s*["']?([\w.:-]+)""", re.IGNORECASE)
_JSON_SPACE = b" \t\r\n"
_BOM = b"\xef\xbb\xbf"

# The parser is one call of C code, during which no other thread runs. Most time is spent on creating values: a MiB of "[]," takes
# 160 ms, one of "1," 43 ms, one of ordinary objects 30 ms. Within these limits it takes some 60 ms at most.
MAX_CONTAINERS: Final = 50_000
MAX_COMMAS: Final = 500_000


class NormalizeOptions(BaseModel):
    """`format` says what happens to bodies; `max_body_bytes` (0 to 4 MiB) limits the body that `envelope` collects."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["passthrough", "envelope"] = "passthrough"
    max_body_bytes: Annotated[int, Field(ge=0, le=4_194_304)] = 1_048_576


@hookimpl
def rgate_config_sections() -> ConfigSection:
    return ConfigSection("normalize", NormalizeOptions, per_route=True)


@hookimpl
def rgate_middlewares(gateway: Gateway) -> Middleware:
    def wrap(app: WSGIApplication, options: NormalizeOptions | None) -> WSGIApplication:
        otherwise = _limit(options or NormalizeOptions())
        # This middleware is outside of `routing`, so it looks up the options of a route when the route is known.
        limits = {r.name: _limit(r.options["normalize"]) for r in gateway.routes if "normalize" in r.options}
        if not limits and otherwise == _HEADERS_ONLY:
            return _passthrough(app)

        def normalize(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            response = _Response(environ, start_response, limits, otherwise)
            return response.body(app(environ, response.start))

        return normalize

    return Middleware("normalize", wrap, modifies_request=False)


_OFF, _HEADERS_ONLY = -2, -1


def _limit(options: Any) -> int:
    """The size limit for `envelope`; _HEADERS_ONLY for `passthrough`, _OFF for a route without this plugin."""
    if options is None:
        return _OFF
    return int(options.max_body_bytes) if options.format == "envelope" else _HEADERS_ONLY


def _passthrough(app: WSGIApplication) -> WSGIApplication:
    """The middleware if no route has envelopes: about half a microsecond per request."""

    def normalize(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        def start(status: str, headers: Headers, exc_info: OptExcInfo | None = None) -> Callable[[bytes], object]:
            if exc_info is None:
                return start_response(status, clean(status, headers))
            return start_response(status, clean(status, headers), exc_info)

        return app(environ, start)

    return normalize


class _Response:
    """One response: passed on at once, or held until its body is complete or too large."""

    __slots__ = ("_blocks", "_environ", "_held", "_limit", "_limits", "_passed", "_start_response")

    def __init__(
        self, environ: WSGIEnvironment, start_response: StartResponse, limits: Mapping[str, int], otherwise: int
    ) -> None:
        self._environ = environ
        self._start_response = start_response
        self._limits = limits
        self._limit = otherwise
        self._blocks: list[bytes] = []
        self._held: tuple[str, Headers, OptExcInfo | None, _Text] | None = None
        self._passed = False

    def start(self, status: str, headers: Headers, exc_info: OptExcInfo | None = None) -> Callable[[bytes], object]:
        exchange = Exchange.of(self._environ)
        if exchange.route is not None:
            self._limit = self._limits.get(exchange.route.name, self._limit)
        if self._limit != _OFF:
            headers = clean(status, headers)
        text = None
        if self._limit >= 0 and exchange.error is None and status >= "2" and status[:3] not in _UNCHANGED:
            text = _text(headers, self._limit)
        if text is None:
            return self._pass(status, headers, exc_info)
        if self._environ["REQUEST_METHOD"] == "HEAD":
            return self._pass(status, _described(headers, None), exc_info)
        self._held = status, headers, exc_info, text
        self._passed = False
        return self._blocks.append

    def _pass(self, status: str, headers: Headers, exc_info: OptExcInfo | None) -> Callable[[bytes], object]:
        self._held = None
        self._passed = True
        if exc_info is None:
            return self._start_response(status, headers)
        return self._start_response(status, headers, exc_info)

    def body(self, body: Iterable[bytes]) -> Iterable[bytes]:
        """The body to send instead of `body`, which is read here, either to its end or until it exceeds the limit."""
        if self._passed:
            return body
        exchange = Exchange.of(self._environ)
        if exchange.suspended is not None:
            return _SuspendedBody(self, body, exchange)
        close: Callable[[], object] = getattr(body, "close", _nothing)
        blocks, size = self._blocks, sum(map(len, self._blocks))  # what the app passed to write()
        try:
            more = iter(body)
            for block in more:
                blocks.append(block)
                size += len(block)
                if self._held is None or size > self._limit:  # None: the response has begun just now, and is passed on
                    break
            if self._held is None or size > self._limit:
                if self._held is not None:
                    self._pass(*self._held[:3])
                return _Rest(b"".join(blocks), more, close)
        except BaseException:
            close()
            raise
        close()
        status, headers, exc_info, text = self._held
        content = enveloped(status[:3], b"".join(blocks), text)
        self._pass(status, _described(headers, len(content)), exc_info)
        return [content]


class _SuspendedBody(BodyWrapper):
    """The body of a suspended response. Its blocks are empty until the response begins."""

    def __init__(self, response: _Response, body: Iterable[bytes], exchange: Exchange) -> None:
        super().__init__(body)
        self._response: _Response | None = response
        self._exchange = exchange

    def __next__(self) -> bytes:
        if self._response is not None:
            block = next(self.blocks, b"")
            if self._exchange.suspended is not None:
                return b""
            response, self._response = self._response, None
            self.blocks = iter(response.body(_Rest(block, self.blocks, _nothing)))
        return next(self.blocks)


def _nothing() -> None:
    """Stands in for the close() of a body without one."""


class _Rest:
    """A body that has been read in part."""

    def __init__(self, first: bytes, rest: Iterator[bytes], close: Callable[[], object]) -> None:
        self._first = first
        self._rest = rest
        self.close = close

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if first := self._first:
            self._first = b""
            return first
        return next(self._rest)


def clean(status: str, headers: Headers) -> Headers:
    """The headers without hop-by-hop ones, and with only the last of each single-valued one; the same list if nothing changes."""
    names = tuple(map(_name_of, headers))
    kept = _known_names.get(names, _UNKNOWN)
    if kept is _UNKNOWN:
        kept = _kept(names)
    if kept is None or status < "2":  # 101 has an Upgrade header
        return headers
    return [headers[at] for at in kept]


_name_of = itemgetter(0)
_UNKNOWN = (-1,)
# Almost every response has the same few names; with this cache, clean() takes 0.3 µs instead of 1.
_known_names: RepeatCache[tuple[str, ...], tuple[int, ...] | None] = RepeatCache("names of response headers", 524_288)


def _kept(names: tuple[str, ...]) -> tuple[int, ...] | None:
    """The indexes of the headers to keep; None for all of them."""
    lower = [name.lower() for name in names]
    last = {name: at for at, name in enumerate(lower)}
    kept = tuple(at for at, name in enumerate(lower) if name not in _HOP_BY_HOP and (name not in _SINGLE or last[name] == at))
    where = kept if len(kept) < len(names) else None
    if _known_names.admits(names):
        _known_names.add(names, where, 150 + 80 * len(names) + sum(map(len, names)))
    return where


class _Text(NamedTuple):
    """The type of a body to put into an envelope. `charset` is the name of a codec."""

    is_json: bool
    charset: str


def _text(headers: Headers, limit: int) -> _Text | None:
    """The type of the body; None for a response that passes through."""
    content_type = ""
    for name, value in headers:
        match name.lower():
            case "content-type":
                content_type = value
            case "content-length" if not value.isdecimal() or int(value) > limit:
                return None
            case "content-encoding" if value.strip().lower() not in ("", "identity"):
                return None
            case "content-disposition" if value.strip().lower().startswith("attachment"):
                return None
            case "cache-control" if "no-transform" in value.lower():
                return None
            case "x-accel-buffering" if value.strip().lower() == "no":
                return None
    text = _known_types.get(content_type, _UNKNOWN_TYPE)
    if text is not _UNKNOWN_TYPE:
        return text
    text = _text_of(content_type)
    if _known_types.admits(content_type):
        _known_types.add(content_type, text, 300 + 2 * len(content_type))
    return text


# There are few content types, and many responses.
_UNKNOWN_TYPE = _Text(False, "")
_known_types: RepeatCache[str, _Text | None] = RepeatCache("content types", 131_072)


def _text_of(content_type: str) -> _Text | None:
    media_type = content_type.partition(";")[0].strip().lower()
    charset = _CHARSET.search(content_type)
    text = _Text(media_type == "application/json" or media_type.endswith("+json"), codec(charset[1]) if charset else "utf-8")
    return text if (text.is_json or media_type.startswith("text/")) and media_type not in _STREAMS else None


def enveloped(status_code: str, body: bytes, text: _Text) -> bytes:
    """The envelope around `body`: valid JSON is inserted byte for byte, anything else as a string."""
    value = (_json(body) if text.is_json else None) or json.dumps(_decoded(body, text.charset), ensure_ascii=False).encode(
        "utf-8", "replace"
    )
    return b'{"status_code": %s, "body": %s}' % (status_code.encode(), value)


def _json(body: bytes) -> bytes | None:
    """The JSON value in `body`; None if it is not valid (RFC 8259), or too expensive to check."""
    value = body.removeprefix(_BOM).strip(_JSON_SPACE)
    if len(value) > MAX_CONTAINERS and (value.count(b"[") + value.count(b"{") > MAX_CONTAINERS or value.count(b",") > MAX_COMMAS):
        return None
    try:
        _decoder.decode(value.decode())
    except (ValueError, RecursionError):
        return None
    return value


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


# Numbers are not converted: that is slow, and int() refuses valid ones of more than 4,300 digits.
_decoder = json.JSONDecoder(parse_int=len, parse_float=len, parse_constant=_refuse)


def _decoded(body: bytes, charset: str) -> str:
    """The text of `body`: by its charset if that is known, else as UTF-8, else as Latin-1, which accepts every byte."""
    body = body.removeprefix(_BOM)
    for encoding in (charset, "utf-8"):
        try:
            return body.decode(encoding)
        except ValueError:
            continue
    return body.decode("latin-1")


def _described(headers: Headers, length_bytes: int | None) -> Headers:
    """The headers of the response with the envelope; without Content-Length if `length_bytes` is None."""
    described = []
    for pair in headers:
        name = pair[0].lower()
        if name == "etag" and not pair[1].startswith("W/"):
            described.append((pair[0], f"W/{pair[1]}"))
        elif name not in _BODY_HEADERS:
            described.append(pair)
    described.append(("Content-Type", "application/json"))
    if length_bytes is not None:
        described.append(("Content-Length", str(length_bytes)))
    return described
