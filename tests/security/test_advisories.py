"""Every advisory we know of, of this and of other servers and proxies, as one named test: raw bytes in, raw bytes out.

A case that is refused is answered once, the connection ends, and the backend has heard nothing of it. A case that passes
reaches the backend as strictly valid HTTP (strict.py), as exactly the requests that are named here. Each is also sent byte by
byte. The names say where it was seen first, as far as there is a number; what concerns responses is in
test_hostile_backends.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from pydantic import BaseModel

from rgate import ConfigSection, Middleware, hookimpl
from rgate.testing import ScriptedBackend, running_gateway

from ..support.forwarding import Forwarding, forwarding
from ..support.raw_client import RawClient
from ..support.serving import serving
from .strict import StrictBackend

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
ZERO = b"0\r\n\r\n"


def get(
    *lines: bytes, target: bytes = b"/", method: bytes = b"GET", version: bytes = b"HTTP/1.1", host: bytes = b"Host: x\r\n"
) -> bytes:
    return b"%b %b %b\r\n" % (method, target, version) + host + b"".join(line + b"\r\n" for line in lines) + b"\r\n"


def post(*lines: bytes, body: bytes = b"") -> bytes:
    return get(*lines, method=b"POST") + body


def chunks(*lines: bytes) -> bytes:
    """A chunked request with these bytes as its body."""
    return post(b"Transfer-Encoding: chunked", body=b"".join(lines))


CL, TE = b"Content-Length: %d", b"Transfer-Encoding: chunked"

# What has more than one reading, or none. The status is what a client gets; 400 if not said.
REFUSED: dict[str, bytes | tuple[bytes, int]] = {
    # Content-Length and Transfer-Encoding together: CL.TE and TE.CL
    "CL.TE (Watchfire 2005; Kettle 2019)": post(CL % 6, TE, body=b"0\r\n\r\nG" + SMUGGLED),
    "TE.CL (Watchfire 2005; Kettle 2019)": post(TE, CL % 4, body=b"5c\r\n" + SMUGGLED + ZERO),
    "CVE-2019-20445 Netty: length beside coding": post(CL % 0, TE, body=ZERO),
    "CVE-2020-10109 Twisted: length before coding": post(CL % 100, TE, body=ZERO),
    "CVE-2022-26377 Apache: coding to a backend that counts": post(TE, CL % 44, body=ZERO + SMUGGLED),
    "TE.TE: both codings, one hidden": post(TE, b"Transfer-encoding: cow", body=ZERO + SMUGGLED),
    "CVE-2020-8287 Node: two codings, the first counts": post(TE, TE, body=ZERO + SMUGGLED),
    "CVE-2024-1135 gunicorn: coding list that ends in another": post(b"Transfer-Encoding: chunked, gzip", body=ZERO),
    "CVE-2024-6827 gunicorn: unknown coding taken for none": post(b"Transfer-Encoding: xchunked", CL % 5, body=b"hello"),
    "CVE-2019-16786 waitress: coding list": (post(b"Transfer-Encoding: gzip, chunked", body=ZERO), 501),
    "CVE-2022-32213 Node: chunked, identity": post(b"Transfer-Encoding: chunked, identity", body=ZERO),
    "CVE-2022-1705 Go: identity and chunked": (post(b"Transfer-Encoding: identity", TE, body=ZERO), 501),
    "TE.0: coding that a server ignores": post(b"Transfer-Encoding: ", CL % 5, body=b"hello"),
    "identity is no coding any more": post(b"Transfer-Encoding: identity", CL % 5, body=b"hello"),
    "coding with a parameter": post(b"Transfer-Encoding: chunked;q=1", body=ZERO),
    "coding in quotes": post(b'Transfer-Encoding: "chunked"', body=ZERO),
    "coding with a comma": post(b"Transfer-Encoding: ,chunked", body=ZERO),
    "coding twice in one line": post(b"Transfer-Encoding: chunked, chunked", body=ZERO),
    "CVE-2019-18277 HAProxy: coding behind a vertical tab": post(b"Transfer-Encoding:\x0bchunked", CL % 5, body=b"hello"),
    "CVE-2019-16789 waitress: coding before a form feed": post(b"Transfer-Encoding: chunked\x0c", CL % 5, body=b"hello"),
    "coding behind a no-break space": post(b"Transfer-Encoding:\xa0chunked", CL % 5, body=b"hello"),
    "coding before a next-line": post(b"Transfer-Encoding: chunked\x85", CL % 5, body=b"hello"),
    "coding behind a NUL": post(b"Transfer-Encoding: \0chunked", CL % 5, body=b"hello"),
    "coding in HTTP/1.0 (RFC 9112 6.1)": get(TE, method=b"POST", version=b"HTTP/1.0") + ZERO,
    "name with a space: Transfer-Encoding :": post(b"Transfer-Encoding : chunked", CL % 5, body=b"hello"),
    "name with a tab": post(b"Transfer-Encoding\t: chunked", CL % 5, body=b"hello"),
    "name with a NUL": post(b"Transfer-Encoding\0: chunked", CL % 5, body=b"hello"),
    "name with a byte above ASCII": post(b"Transfer-Encoding\xa0: chunked", CL % 5, body=b"hello"),
    "name in front of which something stands": post(b"X: y\rTransfer-Encoding: chunked", CL % 5, body=b"hello"),
    # Content-Length
    "CVE-2019-16792 waitress: two lengths": post(CL % 0, CL % 37, body=SMUGGLED),
    "CVE-2020-10108 Twisted: two lengths": post(CL % 5, CL % 0, body=b"hello"),
    "CVE-2017-7658 Jetty: two lengths": post(CL % 5, CL % 6, body=b"hello!"),
    "length list": post(b"Content-Length: 5, 6", body=b"hello!"),
    "length list of equals": post(b"Content-Length: 5, 5", body=b"hello"),
    "two equal lengths": post(CL % 5, CL % 5, body=b"hello"),
    "CVE-2023-40225 HAProxy: empty length": post(b"Content-Length:", body=b"hello"),
    "CVE-2023-40167 Jetty: +5": post(b"Content-Length: +5", body=b"hello"),
    "CVE-2021-32715 hyper: +3": post(b"Content-Length: +3", body=b"abc"),
    "CVE-2020-15049 Squid: -5": post(b"Content-Length: -5", body=b"hello"),
    "CVE-2022-24761 waitress: 1_0": post(b"Content-Length: 1_0", body=b"0123456789"),
    "length in hexadecimal": post(b"Content-Length: 0x5", body=b"hello"),
    "length with a point": post(b"Content-Length: 5.0", body=b"hello"),
    "length with an exponent": post(b"Content-Length: 5e0", body=b"hello"),
    "length in Arabic digits": post(b"Content-Length: \xd9\xa5", body=b"hello"),
    "length in superscript": post(b"Content-Length: \xb2", body=b"he"),
    "length with a space inside": post(b"Content-Length: 5 5", body=b"hello"),
    "length over 64 bit": post(b"Content-Length: 18446744073709551621", body=b"hello"),
    "length over 63 bit": post(b"Content-Length: 9223372036854775813", body=b"hello"),
    "length with zeros in front, octal to some": post(b"Content-Length: 0200", body=b"x" * 200),
    "CVE-2015-5739 Go: a space for a hyphen": post(b"Content Length: 5", body=b"hello"),
    "CVE-2024-27982 Node: space before the name": post(b" Content-Length: 5", body=b"hello"),
    # Header lines
    "CVE-2019-16276 Go: space before the colon": get(b"X-Auth : me"),
    "CVE-2019-16869 Netty: space before the colon": post(b"Transfer-Encoding : chunked", body=ZERO),
    "CVE-2021-22959 Node: space before the colon": post(b"Content-Length : 5", body=b"hello"),
    "CVE-2016-8743 Apache: space before the colon of Host": get(host=b"Host : x\r\n"),
    "CVE-2023-25725 HAProxy: empty name": get(b": x", b"X: y"),
    "CVE-2019-20444 Netty: no colon": get(b"X"),
    "no colon, and it names a coding": post(b"Transfer-Encoding chunked", CL % 5, body=b"hello"),
    "CVE-2022-32215 Node: folded coding": post(b"Transfer-Encoding:", b" chunked", CL % 5, body=b"hello"),
    "folded line": get(b"X: a", b" b"),
    "folded line with a tab": get(b"X: a", b"\tContent-Length: 5"),
    "fold before the first header": b"GET / HTTP/1.1\r\n Host: x\r\nHost: x\r\n\r\n",
    "fold in the request line": b"GET / HTTP/1.1\r\n\tX: y\r\nHost: x\r\n\r\n",
    "CVE-2019-9900 Envoy: NUL in a value": get(b"X: a\0b"),
    "bell in a value": get(b"X: a\x07b"),
    "delete in a value": get(b"X: a\x7fb"),
    "name with an at sign": get(b"X@Y: z"),
    "name with a bracket": get(b"X[Y]: z"),
    "name in quotes": get(b'"X": z'),
    "name with a slash": get(b"X/Y: z"),
    "name above ASCII": get(b"X\xff: z"),
    # Line ends
    "CVE-2019-16785 waitress: LF for CRLF": b"GET / HTTP/1.1\nHost: x\n\n",
    "CVE-2022-32214 Node: LF between headers": b"GET / HTTP/1.1\r\nHost: x\nX: y\r\n\r\n",
    "CVE-2022-35256 Node: a line that ends in nothing": b"GET / HTTP/1.1\r\nHost: x\r\nX: y\n\r\n",
    "CVE-2023-30589 Node: CR between headers": b"GET / HTTP/1.1\r\nHost: x\r\nX: y\rTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "CVE-2020-8201 Node: CR in a name": post(b"Content\rLength: 5", body=b"hello"),
    "LF before the empty line": b"GET / HTTP/1.1\r\nHost: x\r\n\n",
    "CR before CRLF": b"GET / HTTP/1.1\r\nHost: x\r\r\n\r\n",
    "CR in the request line": b"GET /\r HTTP/1.1\r\nHost: x\r\n\r\n",
    "CR first": b"\rGET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "LF first": b"\nGET / HTTP/1.1\r\nHost: x\r\n\r\n",
    # Host
    "no Host": get(host=b""),
    "two Hosts": get(b"Host: y"),
    "two equal Hosts": get(b"Host: x"),
    "empty Host": get(host=b"Host:\r\n"),
    "Host with a path (CVE-2023-29406 Go)": get(host=b"Host: x/y\r\n"),
    "Host with user information": get(host=b"Host: user@x\r\n"),
    "Host list": get(host=b"Host: x, y\r\n"),
    "Host with a space": get(host=b"Host: x y\r\n"),
    "Host with a port that is none": get(host=b"Host: x:http\r\n"),
    "Host with a port too large": get(host=b"Host: x:65536\r\n"),
    "Host with two ports": get(host=b"Host: x:80:81\r\n"),
    "Host with an address without brackets": get(host=b"Host: ::1\r\n"),
    "Host with half a bracket": get(host=b"Host: [::1\r\n"),
    "Host above ASCII": get(host=b"Host: caf\xe9\r\n"),
    "Host behind a space (CVE-2024-27982 kin)": get(host=b" Host: x\r\n"),
    "Host with a comma": get(host=b"Host: x,y\r\n"),
    # The request line
    "HTTP/0.9": b"GET /\r\n\r\n",
    "HTTP/0.9 with headers": b"GET /\r\nHost: x\r\n\r\n",
    "HTTP/0.9 by number": (get(version=b"HTTP/0.9"), 505),
    "HTTP/2.0": (get(version=b"HTTP/2.0"), 505),
    "preface of HTTP/2 (h2c with prior knowledge)": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    "HTTP/1.10": get(version=b"HTTP/1.10"),
    "HTTP/1": get(version=b"HTTP/1"),
    "HTTP/+1.1": get(version=b"HTTP/+1.1"),
    "http/1.1": get(version=b"http/1.1"),
    "HTTPS/1.1": get(version=b"HTTPS/1.1"),
    "two spaces": get(target=b" /"),
    "tab for a space": b"GET\t/ HTTP/1.1\r\nHost: x\r\n\r\n",
    "space at the end": get(version=b"HTTP/1.1 "),
    "CVE-2013-4547 nginx: space in the target": get(target=b"/a \0.php"),
    "space in the target (CVE-2016-8743 Apache)": get(target=b"/a b"),
    "NUL in the target": get(target=b"/a\0b"),
    "delete in the target": get(target=b"/\x7f"),
    "target above ASCII that is not UTF-8": get(target=b"/\xc4\x8d\xc4"),
    "target with a slash in overlong UTF-8": get(target=b"/public\xc0\xafadmin"),
    "method that is no token": get(method=b"GE(T"),
    "method in brackets": get(method=b"<GET>"),
    "method of 65 bytes": get(method=b"M" * 65),
    "method of 100,000 bytes": get(method=b"M" * 100_000),
    "empty method": b" / HTTP/1.1\r\nHost: x\r\n\r\n",
    "no method": b"/ HTTP/1.1\r\nHost: x\r\n\r\n",
    # The target
    "CVE-2021-32779 Envoy: fragment": get(target=b"/admin#/../public"),
    "CVE-2023-45539 HAProxy: fragment": get(target=b"/index.html#.png"),
    "CVE-2023-47106 Traefik: fragment": get(target=b"/a?b#c"),
    "CVE-2025-32431 Traefik: dot segments": get(target=b"/public/../admin"),
    "CVE-2025-47952 Traefik: dot segments in escapes": get(target=b"/public/%2e%2e/admin"),
    "CVE-2026-48020 Traefik kin: half in escapes": get(target=b"/public/.%2E/admin"),
    "CVE-2019-9901 Envoy: dot segments not normalised": get(target=b"/public/../admin"),
    "CVE-2021-29492 Envoy: an escaped slash round dots": get(target=b"/public%2F..%2Fadmin"),
    "CVE-2021-29492 Envoy: an escaped backslash round dots": get(target=b"/public/..%5cadmin"),
    "backslash": get(target=b"/public\\..\\admin"),
    "CVE-2021-41773 Apache: .%2e": get(target=b"/cgi-bin/.%2e/.%2e/etc/passwd"),
    "dots with a parameter (Tomcat, Spring)": get(target=b"/public/..;/admin"),
    "dots with a parameter in escapes": get(target=b"/public/%2e%2e%3b/admin"),
    "dots at the end": get(target=b"/public/.."),
    "one dot with a parameter": get(target=b"/public/.;/admin"),
    "one dot between escaped slashes": get(target=b"/public%2F.%2Fadmin"),
    "one dot, then two": get(target=b"/public/./../admin"),
    "dots before an escaped question mark": get(target=b"/public/..%3f"),
    "escaped NUL": get(target=b"/a%00.html"),
    "escape that is none": get(target=b"/a%zz"),
    "escape that is cut": get(target=b"/a%2"),
    "escape of Microsoft's": get(target=b"/a%u002e"),
    "target without a slash": get(target=b"admin"),
    "target that is a host": get(target=b"@evil.example/"),
    "target of another scheme": get(target=b"ftp://x/"),
    "target that is a file": get(target=b"file:///etc/passwd"),
    "absolute target without a host": get(target=b"http:///admin"),
    "absolute target with user information": get(target=b"http://user@x/"),
    "absolute target with two hosts": get(target=b"http://x,y/"),
    "absolute target with a backslash": get(target=b"http://x\\y/"),
    "absolute target with dot segments": get(target=b"http://x/public/../admin"),
    "* for another method": get(target=b"*"),
    # Chunks
    "CVE-2013-2028 nginx: chunk size that is negative": chunks(b"ffffffffffffffed\r\n", b"x" * 100),
    "CVE-2021-32714 hyper: chunk size over 64 bit": chunks(b"10000000000000005\r\nhello\r\n0\r\n\r\n"),
    "chunk size 0x5": chunks(b"0x5\r\nhello\r\n0\r\n\r\n"),
    "chunk size +5": chunks(b"+5\r\nhello\r\n0\r\n\r\n"),
    "chunk size -5": chunks(b"-5\r\nhello\r\n0\r\n\r\n"),
    "chunk size 0_5": chunks(b"0_5\r\nhello\r\n0\r\n\r\n"),
    "chunk size empty": chunks(b"\r\nhello\r\n0\r\n\r\n"),
    "chunk size behind a space": chunks(b" 5\r\nhello\r\n0\r\n\r\n"),
    "chunk size before a space": chunks(b"5 \r\nhello\r\n0\r\n\r\n"),
    "chunk size and more": chunks(b"5 5\r\nhello\r\n0\r\n\r\n"),
    "chunk size with a point": chunks(b"5.\r\nhello\r\n0\r\n\r\n"),
    "CVE-2025-22871 Go: LF after the size": chunks(b"5\nhello\r\n0\r\n\r\n"),
    "CR after the size": chunks(b"5\rhello\r\n0\r\n\r\n"),
    "CVE-2025-58056 Netty: LF in an extension": chunks(b"5;a\nhello\r\n0\r\n\r\n"),
    "funky chunks: CR in an extension": chunks(b"5;a\rb\r\nhello\r\n0\r\n\r\n"),
    "funky chunks: NUL in an extension": chunks(b"5;a\0\r\nhello\r\n0\r\n\r\n"),
    "CVE-2025-43859 h11: no CRLF after a chunk": chunks(b"5\r\nhelloXX0\r\n\r\n"),
    "CVE-2025-47905 Varnish: one byte too many": chunks(b"5\r\nhellox\r\n0\r\n\r\n"),
    "chunk that is longer than it says": chunks(b"3\r\nhello\r\n0\r\n\r\n"),
    "LF after a chunk": chunks(b"5\r\nhello\n0\r\n\r\n"),
    "CR after a chunk": chunks(b"5\r\nhello\r0\r\n\r\n"),
    "LF after the last chunk": chunks(b"0\n\n"),
    "LF for the end of the trailers": chunks(b"0\r\n\n" + SMUGGLED),
    "trailer without a colon": chunks(b"0\r\nX\r\n\r\n"),
    "trailer that is folded": chunks(b"0\r\nX: a\r\n b\r\n\r\n"),
    "trailer with a space before its colon": chunks(b"0\r\nX : a\r\n\r\n"),
    "CVE-2023-45648 Tomcat: trailer with a control byte": chunks(b"0\r\nX: \0\r\n\r\n"),
    "CVE-2023-46589 Tomcat: trailers that are too many": chunks(b"0\r\n" + b"X: y\r\n" * 5_000 + b"\r\n" + SMUGGLED),
    "CVE-2024-22019 Node: extension without end": chunks(b"5;" + b"a" * 10_000 + b"\r\nhello\r\n0\r\n\r\n"),
    "CVE-2024-21647 Puma: extension of many kilobytes": chunks(b"0;" + b"a=b;" * 2_000 + b"\r\n\r\n"),
    "CVE-2025-55315 Kestrel, funky chunks: semicolon and nothing": chunks(b"5;\r\nhello\r\n0\r\n\r\n"),
    "extension without a name": chunks(b"5;=a\r\nhello\r\n0\r\n\r\n"),
    "extension whose name is no token": chunks(b"5;a[=b\r\nhello\r\n0\r\n\r\n"),
    "extension whose quote does not end": chunks(b'5;a="b\r\nhello\r\n0\r\n\r\n'),
    "CVE-2023-39326 Go: more extensions than payload": chunks(b"1;a=" + b"b" * 2_000 + b"\r\nx\r\n", b"0\r\n\r\n")
    .replace(b"x\r\n", (b"x\r\n1;a=" + b"b" * 2_000 + b"\r\n") * 9 + b"x\r\n", 1),
    "zeros without end": chunks(b"0" * 10_000),
    # Methods and expectations
    "CONNECT": (get(target=b"x:443", method=b"CONNECT"), 501),
    "CONNECT to a path": (get(method=b"CONNECT"), 501),
    "TRACE (XST)": (get(b"Cookie: secret=1", method=b"TRACE"), 501),
    "Expect of something else": (post(b"Expect: 200-ok", CL % 5, body=b"hello"), 417),
    "Expect twice": (post(b"Expect: 100-continue", b"Expect: x", CL % 5, body=b"hello"), 417),
    "Expect obfuscated (Kettle 2025)": (post(b"Expect: y 100-continue", CL % 5, body=b"hello"), 417),
    "Expect with a line before it": post(b"Expect: \r100-continue", CL % 5, body=b"hello"),
    # Size
    "target of 20,000 bytes": (get(target=b"/" + b"a" * 20_000), 414),
    "300 headers": (get(*[b"X: y"] * 300), 431),
    "header of 70,000 bytes": (get(b"X: " + b"y" * 70_000), 431),
    "CVE-2020-5236 waitress: header of spaces (quadratic)": (get(b"X:" + b" " * 70_000 + b"\x10"), 431),
}  # fmt: skip

# What looks bad and has one reading. The requests that the backend gets: request line, some of its headers, body.
Passed = tuple[bytes, list[tuple[str, dict[str, list[str]], bytes]]]
PASSED: dict[str, Passed] = {
    "body that looks like a request": (
        post(CL % len(SMUGGLED), body=SMUGGLED) + get(target=b"/next"),
        [("POST / HTTP/1.1", {}, SMUGGLED), ("GET /next HTTP/1.1", {}, b"")],
    ),
    "CVE-2024-28869 Traefik: GET with a length and a body": (
        get(CL % 5) + b"hello" + get(target=b"/next"),
        [("GET / HTTP/1.1", {"Content-Length": ["5"]}, b"hello"), ("GET /next HTTP/1.1", {}, b"")],
    ),
    "CL.0 and 0.CL: a body that a server may not expect": (
        get(CL % len(SMUGGLED), target=b"/favicon.ico", method=b"HEAD") + SMUGGLED,
        [("HEAD /favicon.ico HTTP/1.1", {}, SMUGGLED)],
    ),
    "TE.0: OPTIONS with chunks": (
        get(TE, method=b"OPTIONS") + b"24\r\n%b\r\n0\r\n\r\n" % (SMUGGLED + b"x") + get(target=b"/next"),
        [("OPTIONS / HTTP/1.1", {}, SMUGGLED + b"x"), ("GET /next HTTP/1.1", {}, b"")],
    ),
    "CVE-2021-40346 HAProxy: name that overflows a length": (
        post(b"Content-Length0" + b"a" * 255 + b":", CL % 5, body=b"hello") + get(target=b"/next"),
        [("POST / HTTP/1.1", {"Content-Length": ["5"]}, b"hello"), ("GET /next HTTP/1.1", {}, b"")],
    ),
    "CVE-2021-22960 Node, CVE-2023-39326 Go: chunk extensions are dropped": (
        chunks(b'5;a=b;c="d e"\r\nhello\r\n0;x\r\n\r\n') + get(target=b"/next"),
        [("POST / HTTP/1.1", {}, b"hello"), ("GET /next HTTP/1.1", {}, b"")],
    ),
    "trailers are never merged, whatever they name": (
        chunks(b"5\r\nhello\r\n0\r\nContent-Length: 99\r\nTransfer-Encoding: x\r\nHost: evil\r\nX-Forwarded-For: 1\r\n\r\n"),
        [("POST / HTTP/1.1", {"Host": ["x"], "Content-Length": ["5"], "X-Forwarded-For": ["127.0.0.1"]}, b"hello")],
    ),
    "Trailer announces nothing but trailers": (
        post(TE, b"Trailer: X-Sum, Host", b"TE: trailers, gzip", body=b"0\r\nX-Sum: 1\r\n\r\n"),
        [("POST / HTTP/1.1", {"Trailer": ["X-Sum"], "TE": ["trailers"], "Connection": ["TE"], "X-Sum": []}, b"")],
    ),
    "CVE-2016-4553 Squid: Host beside an absolute target": (
        get(target=b"http://real.example/x?y"),
        [("GET /x?y HTTP/1.1", {"Host": ["real.example"], "X-Forwarded-Host": ["real.example"]}, b"")],
    ),
    "CVE-2024-45410 Traefik: Connection names what the gateway says": (
        get(b"Connection: close, X-Forwarded-For, X-Forwarded-Host, X-Forwarded-Proto, Via"),
        [("GET / HTTP/1.1", {"X-Forwarded-For": ["127.0.0.1"], "X-Forwarded-Host": ["x"], "X-Forwarded-Proto": ["http"]}, b"")],
    ),
    "CVE-2021-33197 Go: Connection is empty": (
        get(b"Connection:", b"X: y"),
        [("GET / HTTP/1.1", {"X": ["y"], "X-Forwarded-For": ["127.0.0.1"]}, b"")],
    ),
    "CVE-2022-45059 Varnish: Connection names framing and Host": (
        post(b"Connection: Content-Length, Host, Transfer-Encoding", CL % 5, body=b"hello") + get(target=b"/next"),
        [("POST / HTTP/1.1", {"Content-Length": ["5"], "Host": ["x"]}, b"hello"), ("GET /next HTTP/1.1", {}, b"")],
    ),
    "Connection names credentials": (
        get(b"Connection: Cookie, Authorization", b"Cookie: a=1", b"Authorization: Basic x"),
        [("GET / HTTP/1.1", {"Cookie": ["a=1"], "Authorization": ["Basic x"]}, b"")],
    ),
    "CVE-2015-0219 Django: underscores": (
        get(b"X_Auth_User: admin", b"X-Auth-User: me", b"Content_Length: 5", b"Transfer_Encoding: chunked"),
        [("GET / HTTP/1.1", {"X_Auth_User": [], "X-Auth-User": ["me"], "Content-Length": [], "Transfer_Encoding": []}, b"")],
    ),
    "h2c by Upgrade (Bishop Fox 2020)": (
        get(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA"),
        [("GET / HTTP/1.1", {"Upgrade": [], "Connection": [], "HTTP2-Settings": []}, b"")],
    ),
    "h2c with Connection that does not name it": (
        get(b"Upgrade: h2c", b"Connection: keep-alive"),
        [("GET / HTTP/1.1", {"Upgrade": [], "Connection": []}, b"")],
    ),
    "websocket beside h2c, where no route allows it": (
        get(b"Connection: Upgrade", b"Upgrade: websocket, h2c"),
        [("GET / HTTP/1.1", {"Upgrade": []}, b"")],
    ),
    "CVE-2023-25690 Apache: escaped line break in the path stays escaped": (
        get(target=b"/a%20HTTP/1.1%0d%0aFoo:%20baz"),
        [("GET /a%20HTTP/1.1%0d%0aFoo:%20baz HTTP/1.1", {"Foo": []}, b"")],
    ),
    "CVE-2020-15129 Traefik: X-Forwarded-Prefix of anybody": (
        get(b"X-Forwarded-Prefix: //evil.example"),
        [("GET / HTTP/1.1", {"X-Forwarded-Prefix": []}, b"")],
    ),
    "CVE-2024-45806 Envoy: headers that only a proxy may say": (
        get(b"X-Forwarded-User: admin", b"X-Forwarded-Client-Cert: Hash=1", b"X-Real-IP: 127.0.0.1", b"Forwarded: for=127.0.0.1"),
        [("GET / HTTP/1.1", {"X-Forwarded-User": [], "X-Forwarded-Client-Cert": [], "X-Real-IP": [], "Forwarded": []}, b"")],
    ),
    "CVE-2022-2880 Go: query with a semicolon and bad escapes goes on as it came": (
        get(target=b"/?a=1;b=2&%zz&c"),
        [("GET /?a=1;b=2&%zz&c HTTP/1.1", {}, b"")],
    ),
    "CVE-2021-29492 Envoy: escaped slash alone is part of a segment": (
        get(target=b"/@scope%2fname"),
        [("GET /@scope%2fname HTTP/1.1", {}, b"")],
    ),
    "CVE-2018-12116 Node: target above ASCII is written in escapes": (
        get(target=b"/\xc4\x8d\xc4\x8a?q=\xc4\x8d"),
        [("GET /%C4%8D%C4%8A?q=%C4%8D HTTP/1.1", {}, b"")],
    ),
    "one dot is removed (apt asks for /./Packages)": (get(target=b"/./Packages"), [("GET /Packages HTTP/1.1", {}, b"")]),
    "one dot in an escape, at the end, and in the query": (
        get(target=b"/public/%2e/./admin/.?/./"),
        [("GET /public/admin/?/./ HTTP/1.1", {}, b"")],
    ),
    "two slashes stay": (get(target=b"//evil.example/x"), [("GET //evil.example/x HTTP/1.1", {}, b"")]),
    "method in lower case is another method": (get(method=b"get"), [("get / HTTP/1.1", {}, b"")]),
    "method that hides a length (X-HTTP-Method-Override is the backend's)": (
        get(b"X-HTTP-Method-Override: DELETE"),
        [("GET / HTTP/1.1", {"X-HTTP-Method-Override": ["DELETE"]}, b"")],
    ),
    "empty lines before a request": (b"\r\n\r\n" + get(target=b"/a") + b"\r\n" + get(target=b"/b"),
        [("GET /a HTTP/1.1", {}, b""), ("GET /b HTTP/1.1", {}, b"")],
    ),
    "spaces and tabs round a value": (
        post(b"Content-Length: \t 5 \t", body=b"hello"),
        [("POST / HTTP/1.1", {"Content-Length": ["5"]}, b"hello")],
    ),
    "coding in capitals": (
        post(b"TRANSFER-ENCODING: CHUNKED", body=ZERO),
        [("POST / HTTP/1.1", {"Transfer-Encoding": [], "Content-Length": ["0"]}, b"")],
    ),
    "chunk size with zeros in front": (chunks(b"000005\r\nhello\r\n0000\r\n\r\n"), [("POST / HTTP/1.1", {}, b"hello")]),
    "cookies stay apart (RFC 6265)": (get(b"Cookie: a=1", b"Cookie: b=2"), [("GET / HTTP/1.1", {"Cookie": ["a=1", "b=2"]}, b"")]),
    "CVE-2024-24791 Go: Expect with a body that comes at once": (
        post(b"Expect: 100-continue", CL % 5, body=b"hello") + get(target=b"/next"),
        [("POST / HTTP/1.1", {"Expect": []}, b"hello"), ("GET /next HTTP/1.1", {}, b"")],
    ),
    "Expect on a request without a body": (
        get(b"Expect: 100-continue") + get(target=b"/next"),
        [("GET / HTTP/1.1", {"Expect": []}, b""), ("GET /next HTTP/1.1", {}, b"")],
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def strict() -> StrictBackend:
    return StrictBackend()


@pytest.fixture(scope="module")
def live(strict: StrictBackend) -> Iterator[Forwarding]:
    with ScriptedBackend(strict) as backend, forwarding(backend) as running:
        yield running


def send(client: RawClient, request: bytes, apart: bool) -> None:
    with suppress(ConnectionError):  # what comes after a refusal need not be taken
        client.send(*([request[at : at + 1] for at in range(len(request))] if apart else [request]))


def bytes_of(case: bytes | tuple[bytes, int]) -> bytes:
    return case if isinstance(case, bytes) else case[0]


ONCE = {name: (case, False) for name, case in REFUSED.items()}
APART = {f"{name}, byte by byte": (case, True) for name, case in REFUSED.items() if len(bytes_of(case)) < 3_000}


@pytest.mark.parametrize(("case", "apart"), [*ONCE.values(), *APART.values()], ids=[*ONCE, *APART])
def test_request_of_an_advisory_is_refused(
    live: Forwarding, strict: StrictBackend, case: bytes | tuple[bytes, int], apart: bool
) -> None:
    request, status = case if isinstance(case, tuple) else (case, 400)
    whole = len(strict.requests)
    with RawClient(live.url) as client:
        send(client, request, apart)
        response = client.response()
        assert (response.status, response.value("Connection")) == (status, "close"), response
        assert client.is_closed(), "the connection goes on after what has no single reading"
    assert not strict.invalid, "the backend was sent something that is not valid"
    assert len(strict.requests) == whole, f"the backend got a request: {strict.requests[whole:]}"


@pytest.mark.parametrize("apart", [False, True], ids=["at once", "byte by byte"])
@pytest.mark.parametrize(("request_", "expected"), PASSED.values(), ids=PASSED)
def test_request_of_an_advisory_has_one_reading(
    live: Forwarding, strict: StrictBackend, request_: bytes, expected: list[tuple[str, dict[str, list[str]], bytes]], apart: bool
) -> None:
    whole = len(strict.requests)
    with RawClient(live.url) as client:
        send(client, request_, apart)
        for line, _, _ in expected:
            response = client.response(line.split(" ")[0])
            while response.status == 100:
                response = client.response(line.split(" ")[0])
            assert response.status == 200
    assert not strict.invalid, "the backend was sent something that is not valid"
    got = strict.requests[whole:]
    assert [(request.line, request.body) for request in got] == [(line, body) for line, _, body in expected]
    for request, (_, fields, _) in zip(got, expected, strict=True):
        assert {name: request.values(name) for name in fields} == fields


@pytest.mark.parametrize(("request_", "expected"), PASSED.values(), ids=PASSED)
def test_request_of_an_advisory_has_one_reading_at_every_split(
    live: Forwarding, strict: StrictBackend, request_: bytes, expected: list[tuple[str, dict[str, list[str]], bytes]]
) -> None:
    whole = len(strict.requests)
    splits = range(1, len(request_), 1 + len(request_) // 60)
    with RawClient(live.url) as client:
        for at in splits:
            if b"Connection: close" in request_:
                client.close()
                client = RawClient(live.url)
            client.send(request_[:at], request_[at:])
            for line, _, _ in expected:
                response = client.response(line.split(" ")[0])
                while response.status == 100:
                    response = client.response(line.split(" ")[0])
                assert response.status == 200, f"cut at {at}"
        client.close()
    assert not strict.invalid
    got = strict.requests[whole:]
    assert [(request.line, request.body) for request in got] == [(line, body) for line, _, body in expected] * len(splits)


def test_request_refused_behind_a_good_one_ends_the_connection(live: Forwarding, strict: StrictBackend) -> None:
    """CVE-2024-49768 waitress, CVE-2022-24801 and CVE-2023-46137 Twisted: what stands behind a bad request is not looked at."""
    whole = len(strict.requests)
    with RawClient(live.url) as client:
        client.send(get(target=b"/good") + post(CL % 5, TE, body=ZERO) + SMUGGLED)
        assert client.response().status == 200
        assert client.response().status == 400
        assert client.is_closed()
    assert [request.line for request in strict.requests[whole:]] == ["GET /good HTTP/1.1"]


UNREAD = {
    "no route (CVE-2019-20372 nginx, CVE-2022-23959 Varnish)": b"POST /nowhere HTTP/1.1\r\nHost: x\r\n",
    "refused for its expectation": b"POST / HTTP/1.1\r\nHost: x\r\nExpect: y\r\n",
    "refused for its method": b"TRACE / HTTP/1.1\r\nHost: x\r\n",
    "answered by the gateway itself": b"OPTIONS * HTTP/1.1\r\nHost: x\r\n",
    "refused for its size": b"POST /limited HTTP/1.1\r\nHost: x\r\n",
}


@pytest.mark.parametrize("head", UNREAD.values(), ids=UNREAD)
@pytest.mark.parametrize("framing", ["length", "length, split", "chunked", "chunked, split"])
def test_body_that_nobody_read_is_never_the_next_request(head: bytes, framing: str) -> None:
    """CVE-2019-20372 nginx, CVE-2022-22720 Apache, CVE-2022-23959 Varnish; Kettle 2022 (CL.0, pause-based)."""
    strict = StrictBackend()
    if framing.startswith("length"):
        framed, body = b"Content-Length: %d\r\n\r\n" % len(SMUGGLED), SMUGGLED
    else:
        framed, body = b"Transfer-Encoding: chunked\r\n\r\n", b"%x\r\n%b\r\n0\r\n\r\n" % (len(SMUGGLED), SMUGGLED)
    route = {"path_prefix": "/limited", "max_body_bytes": 10}
    with ScriptedBackend(strict) as backend, forwarding(backend, route=route) as live, RawClient(live.url) as client:
        send(client, head + framed + (b"" if "split" in framing else body), apart=False)
        if "split" in framing:
            client.sock.settimeout(0.2)
            with suppress(TimeoutError):
                client.until(b"\r\n\r\n")
            client.sock.settimeout(10)
            send(client, body, apart=False)
        answers = client.unread
        client.half_close()
        with suppress(TimeoutError):
            answers = client.rest() or answers
    assert answers.count(b"HTTP/1.1 ") <= 1, f"the body was answered as a request: {answers!r}"
    assert not strict.requests and b"smuggled" not in strict.received, f"the backend was sent {bytes(strict.received)!r}"


SPLIT_VIEWS = {
    "CVE-2025-66490 Traefik: escaped slash": b"/admin%2Fusers",
    "CVE-2025-66490 Traefik: escaped backslash": b"/admin%5cusers",
    "CVE-2025-66490 Traefik: escaped semicolon": b"/admin%3Busers",
    "CVE-2025-66490 Traefik: escaped question mark": b"/admin%3Fusers",
    "CVE-2025-66490 Traefik: escaped number sign": b"/admin%23users",
    "escaped twice": b"/admin%252Fusers",
    "overlong slash": b"/admin%c0%afusers",
    "CVE-2020-1957 Shiro, CVE-2022-22978 Spring: parameters": b"/admin;/users",
    "CVE-2023-34478 Shiro, Jetty: parameters in front": b"/;x/admin/users",
}


class _Nothing(BaseModel):
    pass


@pytest.fixture(scope="module")
def guarded(strict: StrictBackend) -> Iterator[Forwarding]:
    """/admin with a plugin that lets nobody in, /public with its prefix taken away, all else open; one backend."""

    def admit(app: WSGIApplication, options: object) -> WSGIApplication:
        def refuse(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
            start_response("401 Unauthorized", [("Content-Length", "0")])
            return []

        return refuse

    class Guard:
        @hookimpl
        def rgate_config_sections(self) -> ConfigSection:
            return ConfigSection("guard", _Nothing, per_route=True)

        @hookimpl
        def rgate_middlewares(self) -> Middleware:
            return Middleware("guard", admit, modifies_request=False)

    with ScriptedBackend(strict) as backend:
        routes = [
            {"path_prefix": "/admin", "backend": "backend"},
            {"path_prefix": "/public", "backend": "backend", "strip_prefix": True, "plugins": {"guard": False}},
            {"path_prefix": "/", "backend": "backend", "plugins": {"guard": False}},
        ]
        config = {"backends": [{"name": "backend", "endpoints": [backend.url]}], "routes": routes, "plugins": {"guard": {}}}
        with running_gateway(config, plugins={"guard": Guard()}) as gateway, serving(gateway) as server:
            yield Forwarding(gateway, server)


@pytest.mark.parametrize("target", SPLIT_VIEWS.values(), ids=SPLIT_VIEWS)
@pytest.mark.parametrize("before", [b"", b"/public"], ids=["", "behind a prefix that is taken away"])
def test_path_that_another_route_guards_in_a_reading_of_the_backend_is_refused(
    guarded: Forwarding, strict: StrictBackend, target: bytes, before: bytes
) -> None:
    whole = len(strict.requests)
    with RawClient(guarded.url) as client:
        client.send(get(target=b"/admin/users"))
        assert client.response().status == 401
        client.send(get(target=before + target))
        response = client.response()
    if before:
        assert response.status == 200, "/public/admin is nobody's, in every reading"
        assert [request.line for request in strict.requests[whole:]] == [f"GET {target.decode()} HTTP/1.1"]
    else:
        assert response.status == 400
        assert json.loads(response.body)["reason"] == "ambiguous_path"
        assert strict.requests[whole:] == []


@pytest.mark.parametrize("target", [b"/public../admin", b"/public%2e%2e/admin", b"/public%2e/admin", b"/public./admin"])
def test_prefix_that_is_taken_away_ends_with_its_segment(guarded: Forwarding, strict: StrictBackend, target: bytes) -> None:
    """CVE-2026-48020 and CVE-2026-40912 Traefik: what is left of /public../admin must not become /../admin."""
    whole = len(strict.requests)
    with RawClient(guarded.url) as client:
        client.send(get(target=target))
        assert client.response().status == 200
    assert [request.line for request in strict.requests[whole:]] == [f"GET {target.decode()} HTTP/1.1"]


EARLY = {
    "length": b"Content-Length: 10\r\n\r\nhello",
    "between chunks": b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
    "within a chunk": b"Transfer-Encoding: chunked\r\n\r\n9\r\nhello",
    "within the end of a chunk": b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r",
    "within the last chunk": b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n",
    "CVE-2017-7657 Jetty: chunk size over 32 bit": b"Transfer-Encoding: chunked\r\n\r\n100000005\r\nhello\r\n0\r\n\r\n"
    + SMUGGLED,
}


@pytest.mark.parametrize("framed", EARLY.values(), ids=EARLY)
def test_body_that_ends_early_is_never_whole_at_the_backend(framed: bytes) -> None:
    """RFC 9112 8; HAProxy's fix of chunked uploads that were aborted: the last chunk is the client's word, not ours."""
    strict = StrictBackend()
    with ScriptedBackend(strict) as backend, forwarding(backend) as live, RawClient(live.url) as client:
        client.send(b"POST / HTTP/1.1\r\nHost: x\r\n" + framed)
        client.half_close()
        client.rest()
    assert not strict.requests, f"{framed!r} became a whole request"
    assert not strict.invalid
