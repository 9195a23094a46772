"""A request that the server refuses is logged as what it was, and nothing of it steers the terminal of who reads that."""

from __future__ import annotations

import re
from pathlib import Path

from rgate.testing import ScriptedBackend, http_response

from ..support.processes import GatewayProcess
from ..support.raw_client import RawClient

CONFIG = """\
routes: [{{path_prefix: /, backend: a}}]
backends: [{{name: a, endpoints: ["{url}"]}}]
plugins: {{disable: [stats]}}
"""
SENT = [  # what is sent, and method, target, status and reason in the log, and what was wrong
    (
        b"DELETE /a/up HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        '"DELETE /a/up" 400 ',
        "not exactly one valid Content-Length",
    ),
    (b"GET /a/../x HTTP/1.1\r\nHost: shop.example\r\n\r\n", '"GET /a/../x" 400 ', "dot segment in the path"),
    (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", '"PRI *" 505 ', "HTTP/2.0"),
    (b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03" + bytes(64), '"- -" 400 ', "not HTTP"),
    (b"hello\r\n\r\n", '"- -" 400 ', "malformed request line"),
    (b"GET /\x1b[2J\x9b31m HTTP/1.1\r\nHost: \x9b2J\r\n\r\n", '"GET /\\x1b[2J\\x9b31m" 400 ', ""),
    (b"GET / HTTP/1.1\r\nHost: a\r\nVia: 1.1 rgate, 1.1 \x9b2J\x85\r\n\r\n", '"GET /" 508 ', "\\x9b2J\\x85"),
]


def test_refused_request_is_logged_as_it_was_sent(tmp_path: Path) -> None:
    config = tmp_path / "config.yml"
    with ScriptedBackend(http_response(b"x")) as backend:
        config.write_text(CONFIG.format(url=backend.url))
        with GatewayProcess(config) as gateway:
            url = gateway.url
            for sent, _, _ in SENT:
                with RawClient(url) as client:
                    client.send(sent)
                    assert client.response().status >= 400
            gateway.stop_all(gateway.process.pid)
    lines = [line for line in gateway.output.lines if " rgate.access: " in line]
    assert len(lines) == len(SENT), lines
    for line, (_, request, detail) in zip(lines, SENT, strict=True):
        assert request in line and detail in line
        assert line.isascii() and line.isprintable()
    assert re.search(r" host=shop\.example ", lines[0])
