"""The head of a request: bytes in, a RequestHead or a refusal out (RFC 9112 §2 to §6).

Where the RFC leaves a choice between tolerating and refusing, this refuses: a message that two implementations can read
differently can be used to smuggle a request past one of them.
"""

from __future__ import annotations

import re
from typing import Any, Final

from ..errors import (
    BodyTooLarge,
    ExpectationFailed,
    HeadTooLarge,
    NotImplementedByGateway,
    RequestError,
    TargetTooLong,
    VersionNotSupported,
)
from . import fields
from .cache import RepeatCache
from .environ import FIELDS_KEY, TARGET_KEY, UPGRADE_KEY
from .fields import Field, FieldParser, Fields, has_credentials
from .grammar import TCHAR, environ_key, is_token, valid_host
from .target import Target, parse_target
from .trailers import announced_trailers

__all__ = ["RequestHead", "RequestParser"]

_TOKEN_START = frozenset(b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
_HOPS = re.compile(r"[0-9]{1,9}")
_ASTERISK = Target("*", "*", "*", "")
MAX_METHOD_BYTES: Final = 64  # the longest registered method has 17
_REQUEST_LINE = re.compile(rb"(" + TCHAR + rb"{1,%d}) ([!-~\x80-\xff]+) HTTP/([0-9])\.([0-9])" % MAX_METHOD_BYTES)


class RequestHead:
    """One parsed request head. Requests whose heads are the same byte for byte may share it, so it is never changed.

    method, target    the method as sent; the target in its views
    http_minor        1 for HTTP/1.1, 0 for HTTP/1.0
    fields            the fields that are forwarded, in order
    environ           what the head contributes to a WSGI environ
    content_length    bytes of body, or None
    chunked           the body is chunked
    keep_alive        the client lets the connection stay open
    expects_continue  the client waits for 100 (Continue)
    takes_interim     interim responses are sent to the client
    upgrade           the protocol asked for with Connection: upgrade, lower-case, or ""
    """

    # Defaults are class attributes: most requests set few of them.
    content_length: int | None = None
    chunked = False
    expects_continue = False
    takes_interim = False
    upgrade = ""

    def __init__(self, method: str, target: Target, http_minor: int) -> None:
        self.method = method
        self.target = target
        self.http_minor = http_minor
        self.keep_alive = http_minor == 1
        self.fields = Fields()
        self.environ: dict[str, Any] = {
            "REQUEST_METHOD": method,
            "PATH_INFO": target.path,
            "QUERY_STRING": target.query,
            "RAW_URI": target.raw,
            "REQUEST_URI": target.raw,
            "SERVER_PROTOCOL": "HTTP/1.1" if http_minor else "HTTP/1.0",
            TARGET_KEY: target,
            FIELDS_KEY: self.fields,
        }


class RequestParser:
    """Parses request heads within limits. A server has one; its threads share it.

    max_target_bytes   → 414
    max_headers        → 431
    max_body_bytes     → 413 when a Content-Length is over it; None: no limit
    upgrades           whether an Upgrade header has any effect
    interim_responses  which clients of HTTP/1.1 are sent interim responses: "all", "none", or with "auto" those that show that
                       they can handle them: browsers that navigate (Sec-Fetch-Mode) and clients that send Expect

    The size of the whole head is checked by the connection, which must not even buffer more than that. A head of at most 1 KiB
    that repeats byte for byte (a client that polls, a service that calls another) is found in `head_cache`.
    """

    MAX_LINES_BYTES: Final = 1_048_576
    MAX_LINE_BYTES: Final = 512
    MAX_HEADS_BYTES: Final = 4_194_304
    MAX_HEAD_BYTES: Final = 1_024

    def __init__(self, max_target_bytes: int = 16_384, max_headers: int = 200, max_body_bytes: int | None = None) -> None:
        self.max_target_bytes = max_target_bytes
        self.max_headers = max_headers
        self.max_body_bytes = max_body_bytes
        self.upgrades = True
        self.interim_responses = "auto"
        self.head_cache: RepeatCache[bytes, RequestHead] = RepeatCache("request heads", self.MAX_HEADS_BYTES)
        self._field_parser = FieldParser("request header lines")
        self._line_cache: RepeatCache[bytes, tuple[str, Target, int]] = RepeatCache("request lines", self.MAX_LINES_BYTES)

    def parse(self, head: bytes) -> RequestHead:
        """The request in `head`, which ends before its empty line. Raises RequestError. Callers look into `head_cache` first."""
        lines = head.split(b"\r\n")
        first = lines[0]
        request = RequestHead(*(self._line_cache.get(first) or self._parse_first_line(first)))
        if len(lines) > self.max_headers + 1:
            raise HeadTooLarge(f"{len(lines) - 1} headers")
        cached = self._field_parser.cache
        environ = request.environ
        forwarded = request.fields
        hosts = 0
        cacheable = len(head) <= self.MAX_HEAD_BYTES
        nominated: frozenset[str] | None = None
        expect = upgrade = codings = trailer = None
        takes_trailers = False
        del lines[0]
        for line in lines:
            field = cached.get(line)
            if field is None:
                try:
                    field = self._field_parser.parse(line)
                except ValueError as error:
                    raise RequestError(str(error)) from None
                cacheable = cacheable and not field.uncacheable
            kind = field.kind
            if kind:
                if kind == fields.HOST:
                    hosts += 1
                    if hosts > 1 or not field.valid:
                        raise RequestError("not exactly one valid Host")
                elif kind == fields.CONTENT_LENGTH:
                    if request.content_length is not None or field.number is None:
                        raise RequestError("not exactly one valid Content-Length")
                    if field.value[0] == "0" != field.value:  # allowed by the grammar, and octal to some
                        raise RequestError("Content-Length with zeros in front")
                    request.content_length = field.number
                    environ["CONTENT_LENGTH"] = field.value
                    continue
                elif kind == fields.TRANSFER_ENCODING:
                    codings = field.value if codings is None else f"{codings}, {field.value}"
                    continue
                elif kind == fields.CONNECTION:
                    nominated = field.tokens if nominated is None else nominated | field.tokens
                    continue
                elif kind == fields.EXPECT:
                    expect = field.value if expect is None else f"{expect}, {field.value}"
                    continue
                elif kind == fields.UPGRADE:
                    upgrade = field.value if upgrade is None else f"{upgrade}, {field.value}"
                    continue
                elif kind == fields.HOP_BY_HOP or kind == fields.UNDERSCORE:
                    continue
                elif kind == fields.TE:
                    takes_trailers = takes_trailers or "trailers" in field.tokens
                    continue
                elif kind == fields.TRAILER:
                    trailer = field.value if trailer is None else f"{trailer}, {field.value}"
                    continue
            key = field.key
            if key in environ:
                if key == "CONTENT_TYPE":  # what the body is must not depend on the reader (RFC 9110 §5.3)
                    raise RequestError("more than one Content-Type")
                separator = "; " if kind == fields.COOKIE else ", "
                environ[key] = f"{environ[key]}{separator}{field.value}"
            else:
                environ[key] = field.value
            if not fields.FORWARDED <= kind <= fields.VIA:
                forwarded.append(field)
            elif kind != fields.VIA:
                forwarded.proxy_fields.append(field)

        if not hosts and request.http_minor:
            raise RequestError("no Host")
        if request.target.host:
            self._apply_target_host(request)
        if request.method == "OPTIONS":
            self._apply_max_forwards(request)
        if codings is not None:
            self._apply_codings(request, codings)
        if self.max_body_bytes is not None and (request.content_length or 0) > self.max_body_bytes:
            raise BodyTooLarge(f"{request.content_length} bytes")
        if nominated is not None:
            self._apply_connection(request, nominated, upgrade if self.upgrades else None)
        if expect is not None and request.http_minor:
            if expect.lower() != "100-continue":
                raise ExpectationFailed(expect)
            request.expects_continue = True
            environ["HTTP_EXPECT"] = "100-continue"
        if takes_trailers and request.http_minor:
            environ["HTTP_TE"] = "trailers"
        if request.http_minor and self.interim_responses != "none":
            navigates = environ.get("HTTP_SEC_FETCH_MODE") == "navigate"
            request.takes_interim = self.interim_responses == "all" or navigates or request.expects_continue
        if trailer is not None and request.chunked:
            self._announce_trailers(request, trailer)
        if cacheable and self.head_cache.admits(head) and not has_credentials(head):
            size_bytes = 1_500 + 5 * len(head) + sum(field.size_bytes + 100 for field in (*forwarded, *forwarded.proxy_fields))
            self.head_cache.add(head, request, size_bytes)
        return request

    def check_partial(self, head: bytes, scanned: int, max_head_bytes: int) -> None:
        """Check an incomplete head, but for its first `scanned` bytes. Raises RequestError when it cannot become a valid one."""
        if head[0] not in _TOKEN_START and head != b"\r":
            raise RequestError("not HTTP")
        line_end = head.find(b"\r\n")
        if line_end < 0 and len(head) > self.max_target_bytes + 64:
            if b" " not in head[: self.max_target_bytes]:
                raise RequestError("the method has no end")
            raise TargetTooLong("the request line has no end")
        if line_end >= 0 and line_end > scanned - 2:
            self.check_request_line(head[:line_end])
        if len(head) > max_head_bytes:
            raise HeadTooLarge(f"more than {max_head_bytes} bytes")
        at = max(scanned - 1, 0)
        if head.startswith(b"\n", at):
            at += 1  # it has been checked
        # Counting takes a hundredth of the time of a regular expression over up to 64 KiB.
        pairs = head.count(b"\r\n", at)
        if head.count(b"\n", at) != pairs or head.count(b"\r", at) - head.endswith(b"\r") != pairs:
            raise RequestError("CR or LF alone in the head")

    def check_request_line(self, line: bytes) -> None:
        """Check a request line whose headers have not arrived yet. Raises RequestError."""
        if line not in self._line_cache:
            self._parse_first_line(line)

    def _parse_first_line(self, line: bytes) -> tuple[str, Target, int]:
        match = _REQUEST_LINE.fullmatch(line)
        if match is None:
            if len(line) > self.max_target_bytes and b" " in line[: self.max_target_bytes]:
                raise TargetTooLong(f"{len(line)} bytes")
            raise RequestError("malformed request line")
        if match[3] != b"1":
            raise VersionNotSupported(f"HTTP/{match[3].decode()}.{match[4].decode()}")
        if len(match[2]) > self.max_target_bytes:
            raise TargetTooLong(f"{len(match[2])} bytes")
        method = match[1].decode()
        if method in ("CONNECT", "TRACE"):
            # A gateway does not open tunnels, and a reflected request would show what proxies have added to it.
            raise NotImplementedByGateway(method)
        try:
            target = parse_target(method, match[2].decode("latin-1"))
        except ValueError as error:
            raise RequestError(str(error)) from None
        if target.host and not valid_host(target.host):
            raise RequestError("malformed authority in the request target")
        parsed = (method, target, 0 if match[4] == b"0" else 1)
        if len(line) <= self.MAX_LINE_BYTES and self._line_cache.admits(line) and not has_credentials(line):
            self._line_cache.add(line, parsed, 500 + 5 * len(line))
        return parsed

    @staticmethod
    def _apply_codings(request: RequestHead, codings: str) -> None:
        """Only a single `chunked` is supported. Codings that do not end in it leave the body without a length (400; RFC 9112
        §6.3); others before it are not implemented (501; §6.1)."""
        if request.content_length is not None or not request.http_minor:
            raise RequestError("Transfer-Encoding beside Content-Length, or in HTTP/1.0")
        *others, last = (coding.strip(" \t").lower() for coding in codings.split(","))
        if last != "chunked" or "chunked" in others or not all(map(is_token, others)):
            raise RequestError("Transfer-Encoding that does not end in one chunked")
        if others:
            raise NotImplementedByGateway(f"Transfer-Encoding {', '.join(others)}")
        request.chunked = True
        request.environ["HTTP_TRANSFER_ENCODING"] = "chunked"

    @staticmethod
    def _announce_trailers(request: RequestHead, trailer: str) -> None:
        announced = Field("Trailer", announced_trailers(trailer))
        if announced.value:
            request.fields.append(announced)
            request.environ[announced.key] = announced.value

    @staticmethod
    def _apply_target_host(request: RequestHead) -> None:
        # The authority of an absolute-form target replaces the Host header (RFC 9112 §3.2.2).
        host = Field("Host", request.target.host)
        request.environ["HTTP_HOST"] = host.value
        request.fields[:] = [host, *(f for f in request.fields if f.kind != fields.HOST)]

    @staticmethod
    def _apply_max_forwards(request: RequestHead) -> None:
        """Max-Forwards: how many more gateways an OPTIONS may pass. At 0 it is a request to this one (RFC 9110 §7.6.2)."""
        field = next((f for f in request.fields if f.name == "max-forwards"), None)
        if field is None or not _HOPS.fullmatch(field.value):
            return
        left = int(field.value)
        if not left:
            request.target = _ASTERISK
            request.environ |= {"PATH_INFO": "*", "QUERY_STRING": "", TARGET_KEY: _ASTERISK}
            return
        counted = Field(field.pair[0], str(left - 1))
        request.fields[:] = [counted if f is field else f for f in request.fields]
        request.environ[field.key] = counted.value

    @staticmethod
    def _apply_connection(request: RequestHead, nominated: frozenset[str], upgrade: str | None) -> None:
        if "close" in nominated:
            request.keep_alive = False
        elif not request.http_minor:
            request.keep_alive = "keep-alive" in nominated
        if upgrade is not None and "upgrade" in nominated and request.http_minor:
            request.upgrade = request.environ[UPGRADE_KEY] = upgrade.lower()
        named = fields.connection_nominated(nominated)
        if named and any(field.name in named for field in request.fields):
            request.fields[:] = [field for field in request.fields if field.name not in named]
            for name in named:
                request.environ.pop(environ_key(name), None)
