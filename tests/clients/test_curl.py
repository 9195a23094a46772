"""curl through the gateway, where its versions of HTTP and its ways to upload differ."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rgate.testing import ScriptedBackend, ScriptedConnection, http_response

from .programs import gateway, program, run, wsgi_server


def service(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """Says how much has come, and how."""
    length = environ.get("CONTENT_LENGTH", "")
    size = len(environ["wsgi.input"].read())
    how = f"{environ['REQUEST_METHOD']} {environ['RAW_URI']} {size} bytes, length {length or 'unknown'}\n"
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [how.encode()]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    program("curl")
    with wsgi_server(service) as backend, gateway(tmp_path_factory.mktemp("gateway"), {"/": backend}) as url:
        yield url


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("files") / "large.bin"
    file.write_bytes(bytes(range(256)) * 40_000)
    return file


def curl(*arguments: str) -> str:
    return run("curl", "--silent", "--show-error", "--noproxy", "*", "--max-time", "30", *arguments)


@pytest.mark.parametrize("version", ["--http1.0", "--http1.1", "--http2", "--http0.9"])
def test_get_by_every_version_that_curl_offers(url: str, version: str) -> None:
    """--http2 asks for h2c by an upgrade, which it must do without."""
    shown = curl(version, "--include", f"{url}/a%2Fb//c?x=%20")
    assert shown.startswith("HTTP/1.1 200 OK\n"), shown
    assert shown.endswith("GET /a%2Fb//c?x=%20 0 bytes, length unknown\n"), shown


def test_upload_that_waits_for_100_continue(url: str, large: Path) -> None:
    """The time-out is a minute, so that curl waits for the 100 and does not go on without it."""
    shown = curl(
        "--include", "--expect100-timeout", "60", "--header", "Expect: 100-continue", "--upload-file", str(large), f"{url}/put"
    )
    assert shown.startswith("HTTP/1.1 100 Continue\n\nHTTP/1.1 200 OK\n"), shown
    assert shown.endswith("PUT /put 10240000 bytes, length 10240000\n"), shown


def test_upload_by_post(url: str, large: Path) -> None:
    assert curl("--data-binary", f"@{large}", f"{url}/post") == "POST /post 10240000 bytes, length 10240000\n"


def test_upload_of_a_form(url: str, large: Path) -> None:
    assert curl("--form", f"file=@{large}", f"{url}/form").startswith("POST /form 10240")


def test_upload_of_unknown_length(url: str, large: Path) -> None:
    shown = curl("--header", "Transfer-Encoding: chunked", "--upload-file", str(large), f"{url}/chunked")
    assert shown == "PUT /chunked 10240000 bytes, length unknown\n"


def test_upload_by_http_10(url: str, large: Path) -> None:
    assert curl("--http1.0", "--upload-file", str(large), f"{url}/old") == "PUT /old 10240000 bytes, length 10240000\n"


def test_connection_is_kept_for_several_requests(url: str) -> None:
    shown = curl("--verbose", "--stderr", "-", f"{url}/1", f"{url}/2", f"{url}/3")
    assert shown.count("Connected to") == 1 and shown.count("Re-using existing connection") == 2, shown


def respond_with(*blocks: bytes) -> Callable[[ScriptedConnection], None]:
    """A backend that answers by the head alone, and reads nothing more."""

    def script(connection: ScriptedConnection) -> None:
        while connection.read_head():
            for block in blocks:
                connection.send(block)

    return script


def test_upload_that_the_backend_refuses_by_its_head_is_not_sent(tmp_path: Path, large: Path) -> None:
    program("curl")
    with (
        ScriptedBackend(respond_with(http_response(b"", "401 Unauthorized"))) as backend,
        gateway(tmp_path, {"/": backend.url}) as url,
    ):
        shown = curl(
            "--expect100-timeout", "60", "--header", "Expect: 100-continue", "--upload-file", str(large),
            "--write-out", "%{http_code}, %{size_upload} bytes sent", f"{url}/put",
        )  # fmt: skip
    assert shown == "401, 0 bytes sent"


def test_early_hints_and_trailers_reach_who_takes_them(tmp_path: Path) -> None:
    program("curl")
    hint = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n"
    body = b"HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nok\n\r\n0\r\nX-Sum: 1\r\n\r\n"
    with ScriptedBackend(respond_with(hint, body)) as backend, gateway(tmp_path, {"/": backend.url}) as url:
        shown = curl("--include", "--header", "Sec-Fetch-Mode: navigate", "--header", "TE: trailers", url)
        plain = curl("--include", url)
    assert shown.startswith("HTTP/1.1 103 Early Hints\nLink: </a.css>; rel=preload\n\nHTTP/1.1 200 OK\n"), shown
    assert shown.endswith("\n\nok\nX-Sum: 1\n\n") or shown.endswith("\n\nok\nX-Sum: 1\n"), shown
    assert plain.startswith("HTTP/1.1 200 OK\n") and plain.endswith("\n\nok\n"), plain
