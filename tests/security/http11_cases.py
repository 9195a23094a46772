"""The requests of public probes of HTTP/1.1 servers (Http11Probe, h1spec), in our own words, with the answer that rgate gives.

A case is the bytes that a client sends, in one or more steps, each after the answer to the one before, and what comes of it:

refused   that status and the end of the connection; nothing of it is answered beyond that, and no backend hears of it
passed    a final answer to each step, and the connection stays (or ends, where the client or HTTP/1.0 wants that)
waiting   nothing yet: the request is not whole

Where a probe would have 400 and takes a pass for a warning (spaces round a value, an empty line before a request, an escaped
line break in a path), RFC 9110 §5.5, RFC 9112 §2.2 and RFC 3986 §2.1 allow what is sent, and it has one reading only.
"""

from __future__ import annotations

import random
from typing import NamedTuple


class Case(NamedTuple):
    """One case; see above. `body` is that of the last answer, `has` and `lacks` are headers of it."""

    steps: tuple[bytes, ...]
    statuses: tuple[int, ...] = ()
    closes: bool = False
    body: bytes | None = None
    has: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()


def refused(*steps: bytes, status: int = 400) -> Case:
    return Case(steps, (status,), closes=True)


def passed(
    *steps: bytes,
    status: int = 200,
    body: bytes | None = None,
    closes: bool = False,
    has: tuple[str, ...] = (),
    lacks: tuple[str, ...] = (),
) -> Case:
    return Case(steps, (200,) * (len(steps) - 1) + (status,), closes, body, has, lacks)


def waiting(request: bytes) -> Case:
    return Case((request,))


def get(*lines: bytes, first: bytes = b"GET / HTTP/1.1", host: bytes = b"Host: example.org") -> bytes:
    return b"".join(line + b"\r\n" for line in (first, *([host] if host else []), *lines, b""))


def post(*lines: bytes, body: bytes = b"", target: bytes = b"/", version: bytes = b"HTTP/1.1") -> bytes:
    return get(*lines, first=b"POST %b %b" % (target, version)) + body


def chunked(body: bytes) -> bytes:
    return post(TE, body=body)


def options(*lines: bytes, body: bytes = b"") -> bytes:
    return get(*lines, first=b"OPTIONS / HTTP/1.1") + body


def websocket(*lines: bytes, first: bytes = b"GET / HTTP/1.1", version: bytes = b"13") -> bytes:
    return get(*lines, b"Upgrade: websocket", b"Sec-WebSocket-Key: " + KEY, b"Sec-WebSocket-Version: " + version, first=first)


TE = b"Transfer-Encoding: chunked"
CL5 = b"Content-Length: 5"
KEY = b"AQIDBAUGBwgJCgsMDQ4PEA=="
NEXT = get(first=b"GET /next HTTP/1.1")
HIDDEN = get(first=b"GET /hidden HTTP/1.1")
END = b"0\r\n\r\n"
UPGRADE = b"Connection: Upgrade"


def hiding(*lines: bytes, body: bytes = END + HIDDEN) -> bytes:
    """A request with another one in its body, or behind it, as its framing is read."""
    return post(*(line.replace(b"SIZE", b"%d" % len(body)) for line in lines), body=body)


LINES = {
    "a plain request": passed(get(), has=("Date", "Content-Type")),
    "LF after the request line": refused(b"GET / HTTP/1.1\nHost: example.org\r\n\r\n"),
    "LF after a header": refused(b"GET / HTTP/1.1\r\nHost: example.org\nX-A: b\r\n\r\n"),
    "CR after the request line": refused(b"GET / HTTP/1.1\rHost: example.org\r\n\r\n"),
    "CR before a header": refused(b"GET / HTTP/1.1\r\nHost: example.org\r\n\rX-A: b\r\n\r\n"),
    "CR within a value": refused(post(CL5, b"X-A: b\rc", body=b"hello")),
    "folded header": refused(get(b"X-A: b", b" c")),
    "space before a colon": refused(get(b"X-A : b")),
    "two spaces in the request line": refused(get(first=b"GET  / HTTP/1.1")),
    "tab in the request line": refused(get(first=b"GET\t/ HTTP/1.1")),
    "words before the method": refused(get(first=b"Some lineGET / HTTP/1.1")),
    "no Host": refused(get(host=b"")),
    "no Host, but a length": refused(get(CL5, host=b"")),
    "no Host in HTTP/1.0": passed(get(first=b"GET / HTTP/1.0", host=b""), closes=True),
    "two Hosts": refused(get(b"Host: example.com")),
    "one Host twice": refused(get(b"Host: example.org")),
    "empty Host": refused(get(host=b"Host: ")),
    "Host with a user": refused(get(host=b"Host: me@example.org")),
    "Host with a path": refused(get(host=b"Host: example.org/a")),
    "Hosts in one line": refused(get(host=b"Host: example.org, example.com")),
    "empty header name": refused(get(b": b")),
    "bracket in a header name": refused(get(b"X[A: b")),
    "two brackets in a header name": refused(get(b"X-A[]: b")),
    "header without a colon": refused(get(b"X-A")),
    "empty value": passed(get(b"X-A: ")),
    "name in another case, tab before the value, empty value": passed(get(b"x-A:", host=b"hoST:\texample.org")),
    "control byte in a value": refused(get(b"X-A: b\x07")),
    "several control bytes in a value": refused(get(b"X-A: a\x07\x08\x0bb")),
    "NUL in a value": refused(get(b"X-A: a\0b")),
    "name above ASCII": refused(get(b"X-\xc3\xab: b")),
    "space line before the headers": refused(b"GET / HTTP/1.1\r\n \r\nHost: example.org\r\n\r\n"),
    "empty lines before a request": passed(b"\r\n\r\n" + get()),
    "no target": refused(get(first=b"GET HTTP/1.1")),
    "no version": refused(b"GET / \r\n\r\n"),
    "fragment": refused(get(first=b"GET /a#b HTTP/1.1")),
    "space in the target": refused(get(first=b"GET /a b HTTP/1.1")),
    "NUL in the target": refused(get(first=b"GET /\0a HTTP/1.1")),
    "target above ASCII, in UTF-8": passed(get(first=b"GET /caf\xc3\xa9 HTTP/1.1")),
    "target above ASCII, not in UTF-8": refused(get(first=b"GET /caf\xe9 HTTP/1.1")),
    "overlong slash in the target": refused(get(first=b"GET /\xc0\xaf HTTP/1.1")),
    "backslash in the target": refused(get(first=b"GET /a\\b HTTP/1.1")),
    "escaped NUL": refused(get(first=b"GET /a%00.html HTTP/1.1")),
    "escaped line break": passed(get(first=b"GET /a%0d%0aX-B:%20c HTTP/1.1"), lacks=("X-B",)),
    "target of 7,901 bytes": passed(get(first=b"GET /" + b"a" * 7_900 + b" HTTP/1.1")),
    "target of 100,001 bytes": refused(get(first=b"GET /" + b"a" * 100_000 + b" HTTP/1.1"), status=414),
    "value of 100,000 bytes": refused(get(b"X-A: " + b"b" * 100_000), status=431),
    "name of 100,000 bytes": refused(get(b"a" * 100_000 + b": b"), status=431),
    "method of 100,000 bytes": refused(get(first=b"A" * 100_000 + b" / HTTP/1.1")),
    "10,000 headers": refused(get(*(b"X-%d: a" % n for n in range(10_000))), status=431),
    "asterisk for GET": refused(get(first=b"GET * HTTP/1.1")),
    "asterisk for OPTIONS": passed(get(first=b"OPTIONS * HTTP/1.1"), status=204),
    "absolute target": passed(get(first=b"GET http://example.org/ HTTP/1.1")),
    "absolute target for another host": passed(get(first=b"GET http://example.com/ HTTP/1.1")),
    "HTTP/9.9": refused(get(first=b"GET / HTTP/9.9"), status=505),
    "HTTP/1 without a minor version": refused(get(first=b"GET / HTTP/1")),
    "HTTP/01.01": refused(get(first=b"GET / HTTP/01.01")),
    "space in the version": refused(get(first=b"GET / HTTP/ 1.1")),
    "version in lower case": refused(get(first=b"GET / http/1.1")),
    "HTTP/1.2 is answered as HTTP/1.1": passed(get(first=b"GET / HTTP/1.2")),
    "HTTP/0.9": refused(b"GET /\r\n"),
    "preface of HTTP/2": refused(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", status=505),
    "random bytes": refused(bytes([0x8E]) + random.Random(7).randbytes(255)),
    "spaces for a request line": refused(b"   \r\n\r\n"),
    "nothing": waiting(b""),
    "a head without its end": waiting(get(b"X-A: b")[:-4]),
}  # fmt: skip

# Every place where a head can be cut: the server waits.
CUT = {
    f"a head up to {part!r}": waiting(get(first=b"GET /hello HTTP/1.1")[: at + len(part)])
    for part in (b"G", b"GET ", b"/hello", b"/hello ", b" HTTP", b"HTTP/1.1", b"1.1\r", b"1.1\r\n", b"Hos", b"Host:", b"Host: ",
                 b"example.org", b"example.org\r", b"example.org\r\n", b"example.org\r\n\r")
    for at in [get(first=b"GET /hello HTTP/1.1").find(part)]
}  # fmt: skip

BODIES = {
    "body with a length": passed(post(CL5, body=b"hello"), body=b"hello"),
    "length of 0": passed(post(b"Content-Length: 0"), body=b""),
    "POST without a body": passed(post(), body=b""),
    "body that is too short": waiting(post(b"Content-Length: 10", body=b"hello")),
    "length of a billion, and nothing": waiting(post(b"Content-Length: 999999999")),
    "one chunk": passed(chunked(b"5\r\nhello\r\n" + END), body=b"hello"),
    "one long chunk": passed(chunked(b"c\r\nHello, world\r\n" + END), body=b"Hello, world"),
    "two chunks": passed(chunked(b"5\r\nhello\r\n6\r\n world\r\n" + END), body=b"hello world"),
    "no chunk but the last": passed(chunked(END), body=b""),
    "no last chunk": waiting(chunked(b"5\r\nhello\r\n")),
    "chunk extension": passed(chunked(b"5;a=b\r\nhello\r\n" + END), body=b"hello"),
    "trailer": passed(chunked(b"5\r\nhello\r\n0\r\nX-Sum: abc\r\n\r\n"), body=b"hello"),
    "size in capitals": passed(chunked(b"A\r\nhelloworld\r\n" + END), body=b"helloworld"),
    "GET with a body": passed(get(CL5) + b"hello", NEXT),
    "Range of a POST": passed(post(CL5, b"Range: bytes=0-10", body=b"hello"), body=b"hello"),
    "invalid Range": passed(get(b"Range: bytes=abc-xyz")),
    "a thousand ranges": passed(get(b"Range: bytes=" + b",".join([b"0-"] * 1_000))),
    "two types": refused(post(CL5, b"Content-Type: text/plain", b"Content-Type: text/html", body=b"hello")),
    "unknown type": passed(post(CL5, b"Content-Type: application/x-nonsense", body=b"hello"), body=b"hello"),
    "unknown Accept": passed(get(b"Accept: application/x-nonsense")),
    "Expect of something else": refused(get(b"Expect: 200-ok"), status=417),
    "Expect without a body": passed(get(b"Expect: 100-continue")),
    "Expect with its body": passed(post(CL5, b"Expect: 100-continue", body=b"hello"), body=b"hello"),
    "Expect in HTTP/1.0": passed(
        post(CL5, b"Expect: 100-continue", body=b"hello", version=b"HTTP/1.0"), body=b"hello", closes=True
    ),
    "length that is a word": refused(post(b"Content-Length: abc")),
    "length with a plus": refused(post(b"Content-Length: +5", body=b"hello")),
    "length below 0": refused(post(b"Content-Length: -1")),
    "length far below 0": refused(post(b"Content-Length: -1234")),
    "length far below what fits": refused(post(b"Content-Length: -123456789123456789123456789")),
    "length of -0": refused(post(b"Content-Length: -0")),
    "length of 00": refused(post(b"Content-Length: 00")),
    "length of 005": refused(post(b"Content-Length: 005", body=b"hello")),
    "length of 0200": refused(post(b"Content-Length: 0200", body=b"a" * 200)),
    "length in octal": refused(post(b"Content-Length: 0o5", body=b"hello")),
    "length in hexadecimal": refused(post(b"Content-Length: 0x5", body=b"hello")),
    "length with a space": refused(post(b"Content-Length: 1 0", body=b"hello12345")),
    "length with an underscore": refused(post(b"Content-Length: 1_0", body=b"helloworld")),
    "length over 64 bit": refused(post(b"Content-Length: 99999999999999999999")),
    "empty length": refused(post(b"Content-Length: ")),
    "length behind a tab": passed(post(b"Content-Length:\t5", body=b"hello"), body=b"hello"),
    "length before a space": passed(post(b"Content-Length: 5 ", body=b"hello"), body=b"hello"),
    "length behind two spaces": passed(post(b"Content-Length:  5", body=b"hello"), body=b"hello"),
    "two lengths": refused(post(CL5, b"Content-Length: 10", body=b"helloworld")),
    "two lengths in one line": refused(post(b"Content-Length: 5, 10", body=b"hello")),
    "one length twice in one line": refused(post(b"Content-Length: 5, 5", body=b"hello")),
    "one length three times in one line": refused(post(b"Content-Length: 5, 5, 5", body=b"hello")),
    "body behind a length of 0": refused(post(b"Content-Length: 0", body=b""), b"X" + get(first=b"\x01 / HTTP/1.1"))._replace(
        statuses=(200, 400)
    ),
}  # fmt: skip

CHUNKS = {
    "size over 64 bit": refused(chunked(b"FFFFFFFFFFFFFFFF0\r\nhello\r\n" + END)),
    "semicolon and nothing": refused(chunked(b"5;\r\nhello\r\n" + END)),
    "extension that is not a token": refused(chunked(b"5;a[=b\r\nhello\r\n" + END)),
    "extension of 64 KB": refused(chunked(b"5;a=" + b"b" * 65_536 + b"\r\nhello\r\n" + END)),
    "NUL in an extension": refused(chunked(b"5;\0a\r\nhello\r\n" + END)),
    "CR in an extension": refused(chunked(b"5;a\rb\r\nhello\r\n" + END)),
    "LF in an extension": refused(chunked(b"5;\nhello\r\n" + END)),
    "underscore in a size": refused(chunked(b"1_0\r\nhello, world!!!!\r\n" + END)),
    "0x before a size": refused(chunked(b"0x5\r\nhello\r\n" + END)),
    "plus before a size": refused(chunked(b"+5\r\nhello\r\n" + END)),
    "minus before a size": refused(chunked(b"-1\r\nhello\r\n" + END)),
    "space after a size": refused(chunked(b"5 \r\nhello\r\n" + END)),
    "space before a size": refused(chunked(b" 5\r\nhello\r\n" + END)),
    "CR after a size": refused(chunked(b"5\rhello\r\n" + END)),
    "no CRLF after a chunk": refused(chunked(b"5\r\nhello" + END)),
    "LF after a chunk": refused(chunked(b"5\r\nhello\n" + END)),
    "chunk that is too long": refused(chunked(b"5\r\nhello!!\r\n" + END)),
    "LF at the end": refused(chunked(b"5\r\nhello\r\n0\r\n\n")),
    "+0 for the last chunk": refused(chunked(b"+0\r\n\r\nX"), NEXT),
    "length as a trailer": passed(chunked(b"5\r\nhello\r\n0\r\nContent-Length: 50\r\n\r\n"), NEXT),
    "coding as a trailer": passed(chunked(b"5\r\nhello\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n"), NEXT),
    "Host as a trailer": passed(chunked(b"5\r\nhello\r\n0\r\nHost: evil.example\r\n\r\n"), NEXT),
    "credentials as a trailer": passed(chunked(b"5\r\nhello\r\n0\r\nAuthorization: Bearer evil\r\n\r\n"), NEXT),
    "type as a trailer": passed(chunked(b"5\r\nhello\r\n0\r\nContent-Type: text/evil\r\n\r\n"), NEXT),
}  # fmt: skip

CODINGS = {
    "unknown coding": refused(post(b"Transfer-Encoding: gzip")),
    "coding beside a length": refused(post(b"Content-Length: 24", TE, body=b"d\r\nhello-bananas\r\n" + END)),
    "coding beside a length, in another case": refused(post(b"content-LengtH: 5", b"TransFer-Encoding: chunked", body=END)),
    "coding that is nearly chunked": refused(post(b"Transfer-Encoding: xchunked", CL5, body=b"hello")),
    "coding before a space": refused(post(b"Transfer-Encoding: chunked ", CL5, body=b"hello")),
    "space before its colon": refused(post(b"Transfer-Encoding : chunked", CL5, body=b"hello")),
    "coding twice in one line": refused(post(b"Transfer-Encoding: chunked, chunked", CL5, body=b"hello")),
    "coding in capitals": refused(post(b"Transfer-Encoding: Chunked", CL5, body=b"hello")),
    "coding that is not the last": refused(post(b"Transfer-Encoding: chunked, gzip", body=END)),
    "coding in HTTP/1.0": refused(post(TE, CL5, version=b"HTTP/1.0", body=b"hello")),
    "empty coding": refused(post(b"Transfer-Encoding: ", CL5, body=b"hello")),
    "comma before the coding": refused(post(b"Transfer-Encoding: , chunked", CL5, body=b"hello")),
    "comma after the coding": refused(post(b"Transfer-Encoding: chunked,", CL5, body=b"hello")),
    "two codings": refused(post(TE, b"Transfer-Encoding: identity", CL5, body=b"hello")),
    "vertical tab before the coding": refused(post(b"Transfer-Encoding: \x0bchunked", CL5, body=b"hello")),
    "form feed before the coding": refused(post(b"Transfer-Encoding: \x0cchunked", CL5, body=b"hello")),
    "NUL after the coding": refused(post(b"Transfer-Encoding: chunked\0", CL5, body=b"hello")),
    "identity": refused(post(b"Transfer-Encoding: identity", CL5, body=b"hello")),
    "coding with a parameter": refused(post(b"Transfer-Encoding: chunked;a=b", CL5, body=b"hello")),
    "folded coding": refused(post(b"Transfer-Encoding:", b" chunked", CL5, body=b"hello")),
    "tab before the coding": refused(post(b"Transfer-Encoding:\tchunked", CL5, body=b"hello")),
    "coding with an underscore": passed(post(b"Transfer_Encoding: chunked", CL5, body=b"hello"), body=b"hello"),
    "HEAD with a body": passed(get(CL5, first=b"HEAD / HTTP/1.1") + b"hello", NEXT),
    "OPTIONS with a body": passed(options(CL5, body=b"hello"), NEXT)._replace(statuses=(204, 200)),
    "folded coding of OPTIONS": refused(options(b"Transfer-Encoding:", b" chunked", CL5, body=b"hello"), NEXT),
    # The request in the same packet must not be answered, nor any after it
    "CL.TE, and a next request": refused(post(CL5, TE, body=END), NEXT),
    "TE.CL, and a next request": refused(post(TE, CL5, body=END), NEXT),
    "CL.TE, pipelined": refused(post(b"Content-Length: 4", TE, body=END + NEXT)),
    "TE.CL, pipelined": refused(post(TE, b"Content-Length: 30", body=END + NEXT)),
    "CL.TE with a byte left": refused(post(b"Content-Length: 6", TE, body=END + b"X"), NEXT),
    "TE.CL with a byte left": refused(post(TE, b"Content-Length: 30", body=END + b"X"), NEXT),
    "CL.TE that hides a request": refused(hiding(b"Content-Length: SIZE", TE)),
    "the same with a plus": refused(hiding(b"Content-Length: +SIZE", TE)),
    "the same with a letter": refused(hiding(b"Content-Length: SIZEx", TE)),
    "the same, folded": refused(hiding(b"Transfer-Encoding:", b" chunked", b"Content-Length: SIZE")),
    "the same with HEAD": refused(hiding(b"Content-Length: SIZE", TE, body=END + get(first=b"HEAD /hidden HTTP/1.1"))),
    "the same with a space": refused(hiding(b"Content-Length: SIZE", b"Transfer-Encoding: chunked ")),
    "the same with a comma": refused(hiding(b"Content-Length: SIZE", b"Transfer-Encoding: , chunked")),
    "the same in capitals": refused(hiding(b"Content-Length: SIZE", b"Transfer-Encoding: Chunked")),
    "the same with two codings": refused(hiding(TE, b"Transfer-Encoding: identity", b"Content-Length: SIZE")),
    "TE.CL that hides a request": refused(
        post(TE, b"Content-Length: 4", body=b"%x\r\n%b\r\n0\r\n\r\n" % (len(HIDDEN), HIDDEN))
    ),
    "two lengths that hide a request": refused(hiding(b"Content-Length: 4", b"Content-Length: SIZE", body=b"PING" + HIDDEN)),
    "beginning of a request as a body": passed(
        get(b"Content-Length: %d" % len(HIDDEN[:-2])) + HIDDEN[:-2], get(first=b"GET /a HTTP/1.1")
    ),
    "OPTIONS with a body, and a next request": passed(options(CL5, body=b"hello"), NEXT)._replace(statuses=(204, 200)),
    "Expect with its body, and a next request": passed(post(CL5, b"Expect: 100-continue", body=b"hello"), NEXT),
    "two requests in a row": passed(get(), NEXT),
}  # fmt: skip

METHODS = {
    "CONNECT": refused(get(first=b"CONNECT example.com:443 HTTP/1.1", host=b"Host: example.com:443"), status=501),
    "TRACE": refused(get(first=b"TRACE / HTTP/1.1"), status=501),
    "TRACE with credentials": refused(get(b"Authorization: Bearer secret", first=b"TRACE / HTTP/1.1"), status=501),
    "TRACE with a body": refused(get(CL5, first=b"TRACE / HTTP/1.1") + b"hello", status=501),
    "method in lower case": passed(get(first=b"get / HTTP/1.1"), status=501),
    "unknown method": passed(get(first=b"FOOBAR / HTTP/1.1"), status=501),
    "method that is not allowed": passed(get(first=b"DELETE / HTTP/1.1"), status=405, has=("Allow",)),
    "OPTIONS": passed(options(), status=204, has=("Allow",), lacks=("Content-Length",)),
    "HEAD": passed(get(first=b"HEAD / HTTP/1.1"), body=b""),
    "Connection: close": passed(get(b"Connection: close"), closes=True),
    "HTTP/1.0": passed(get(first=b"GET / HTTP/1.0"), closes=True),
    "upgrade by POST": passed(websocket(UPGRADE, first=b"POST / HTTP/1.1")),
    "upgrade that Connection does not name": passed(websocket()),
    "upgrade to something": passed(get(UPGRADE, b"Upgrade: something/1.0")),
    "upgrade of another version": passed(websocket(UPGRADE, version=b"99"), status=426),
    "upgrade in HTTP/1.0": passed(websocket(UPGRADE, first=b"GET / HTTP/1.0"), closes=True),
    "cookie of 64 KB": refused(get(b"Cookie: a=" + b"b" * 65_536), status=431),
    "empty cookie": passed(get(b"Cookie: ")),
    "cookie with a NUL": refused(get(b"Cookie: a=\0b")),
    "cookie with control bytes": refused(get(b"Cookie: a=\x01\x02\x03")),
    "a thousand cookies": passed(get(b"Cookie: " + b"; ".join(b"a%d=b" % n for n in range(1_000)))),
    "cookie that is malformed": passed(get(b"Cookie: ===;;;")),
    "cookie with a space": passed(get(b"Cookie: a=b c; d=e=f")),
    "length with an underscore in its name": passed(post(CL5, b"Content_Length: 99", body=b"hello"), body=b"hello"),
    "length with a space before its colon": refused(post(CL5, b"Content-Length : 3", body=b"hello")),
    "length with a tab in its name": refused(post(CL5, b"Content\tLength: 99", body=b"hello")),
    "coding in capitals beside a length": refused(post(CL5, b"TRANSFER-ENCODING: chunked", body=b"hello")),
}  # fmt: skip

CASES = {
    f"{group}: {name}": case
    for group, cases in {
        "lines": LINES, "cut": CUT, "bodies": BODIES, "chunks": CHUNKS, "codings": CODINGS, "others": METHODS,
    }.items()
    for name, case in cases.items()
}  # fmt: skip
