"""access_log: one line per request, in text or JSON, written behind the requests' back."""

from __future__ import annotations

import io
import json
import threading
from typing import Any

import pytest

from rgate import Refused
from rgate.plugins import access_log
from rgate.plugins.access_log import AccessLog, Record, Writing, as_json, as_text
from rgate.testing import answering, client, make_endpoint, make_exchange, make_gateway, running_gateway

ENDED = 1_795_509_675.123


def record(target: str = "/api/orders?x=1", client: str = "127.0.0.1", method: str = "GET", **attributes: Any) -> Record:
    exchange = make_exchange()
    exchange.endpoint = make_endpoint("orders-1")
    exchange.started, exchange.finished = 100.0, 100.0123
    exchange.status, exchange.bytes_sent, exchange.attempts = 200, 312, 1
    for name, value in attributes.items():
        setattr(exchange, name, value)
    return Record(ENDED, exchange, client, method, target)


def bare() -> Record:
    """What is known of a request whose head could not be read."""
    return record("", "", "", route=None, endpoint=None, attempts=0, error=Refused("10.1.2.3"), status=400)


def test_text_has_everything_in_one_line() -> None:
    logged = record()
    assert as_text(logged) == (
        f'2026-11-24T08:41:15.123Z {logged.exchange.id} 127.0.0.1 "GET /api/orders?x=1" 200 312 12.3ms'
        " route=/ backend=orders endpoint=orders-1 attempts=1"
    )


def test_text_says_dash_for_what_is_not_known_and_the_reason_of_a_fault() -> None:
    line = as_text(bare())
    assert line.endswith(' - "- -" 400 312 12.3ms route=- backend=- endpoint=- attempts=0 reason=refused')
    assert "10.1.2.3" not in line


def test_json_has_everything_in_one_line() -> None:
    logged = record()
    assert json.loads(as_json(logged)) == {
        "time": "2026-11-24T08:41:15.123Z",
        "request_id": logged.exchange.id,
        "client": "127.0.0.1",
        "method": "GET",
        "target": "/api/orders?x=1",
        "status": 200,
        "reason": None,
        "bytes": 312,
        "duration_ms": 12.3,
        "route": "/",
        "backend": "orders",
        "endpoint": "orders-1",
        "attempts": 1,
    }


def test_json_says_null_for_what_is_not_known_and_the_reason_of_a_fault() -> None:
    entry = json.loads(as_json(bare()))
    assert entry["reason"] == "refused"
    assert {name for name, value in entry.items() if value is None} == {
        "client",
        "method",
        "target",
        "route",
        "backend",
        "endpoint",
    }


@pytest.mark.parametrize("line", [as_text, as_json])
@pytest.mark.parametrize(
    "target", ["/\r\n2026 forged", "/\x1b[2J", "/\x85\u2028", '/" 200 "', "/\\n", "/ü€", "/\x00\x7f"], ids=ascii
)
def test_line_of_a_hostile_target_is_one_printable_line(line: Any, target: str) -> None:
    written = line(record(target))
    assert written.isascii() and written.isprintable(), written
    if line is as_text:
        assert written.count('"') == 2 and written.count(" ") == as_text(record("/x")).count(" "), written
    else:
        assert json.loads(written)["target"] == target


def test_flush_writes_records_in_order() -> None:
    log, stream = AccessLog(lambda logged: logged.target), io.StringIO()
    for number in range(3):
        log.add(record(f"/{number}"))
    log.flush(stream)
    log.flush(stream)
    assert stream.getvalue() == "/0\n/1\n/2\n"


def test_records_over_the_bound_are_lost_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    log, stream = AccessLog(lambda logged: logged.target), io.StringIO()
    logged = record("/x")
    for _ in range(AccessLog.MAX_RECORDS + 7):
        log.add(logged)
    log.flush(stream)
    assert stream.getvalue() == "/x\n" * AccessLog.MAX_RECORDS
    assert "at least 7 lines are lost" in caplog.text
    log.add(logged)
    caplog.clear()
    log.flush(stream)
    assert stream.getvalue().count("\n") == AccessLog.MAX_RECORDS + 1
    assert not caplog.records, "a loss is told once"


class Broken(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError("nobody reads")


@pytest.mark.parametrize("stream", [Broken(), io.StringIO()], ids=["broken", "closed"])
def test_stream_that_fails_loses_lines_and_nothing_else(stream: io.StringIO, caplog: pytest.LogCaptureFixture) -> None:
    if not isinstance(stream, Broken):
        stream.close()
    log = AccessLog(as_text)
    log.add(record())
    log.flush(stream)
    log.flush(stream)
    assert "at least 1 lines are lost" in caplog.text


def test_writing_writes_soon_and_the_rest_at_the_end() -> None:
    written = threading.Event()

    class Stream(io.StringIO):
        def flush(self) -> None:
            written.set()

    log, stream = AccessLog(lambda logged: logged.target), Stream()
    with Writing(log, stream):
        log.add(record("/soon"))
        assert written.wait(10), "nothing was written"
        log.add(record("/last"))
    assert stream.getvalue() == "/soon\n/last\n"
    assert not [thread for thread in threading.enumerate() if thread.name == "rgate-access-log"]


@pytest.mark.parametrize("options", [{}, {"plugins": {"access_log": {}}}], ids=str)
def test_gateway_without_a_format_has_nothing_in_the_chain(options: dict[str, Any]) -> None:
    gateway = make_gateway(options, {"orders": answering()})
    assert "access_log" not in gateway.chains["/orders"]
    assert access_log.rgate_lifespan(gateway) is None


@pytest.mark.parametrize("form", ["text", "json"])
def test_gateway_logs_what_the_client_sent_and_got(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    def inner(environ: Any, start_response: Any) -> Any:
        environ.update(PATH_INFO="/changed", RAW_URI="/changed", REQUEST_METHOD="PUT")
        return answering(b"hello")(environ, start_response)

    config = {"plugins": {"access_log": {"format": form}}}
    with running_gateway(config, {"orders": inner}) as gateway:
        client(gateway).get("/orders/%7e?x=%20", environ_overrides={"REMOTE_ADDR": "192.0.2.7"})
        client(gateway).get("/nowhere")
    found, missed = capsys.readouterr().out.splitlines()
    if form == "json":
        entry, other = json.loads(found), json.loads(missed)
        assert (entry["client"], entry["method"], entry["target"]) == ("192.0.2.7", "GET", "/orders/%7e?x=%20")
        assert (entry["status"], entry["bytes"]) == (200, 5)
        assert (entry["route"], entry["endpoint"], entry["attempts"]) == ("/orders", "orders-1", 1)
        assert (other["status"], other["reason"], other["route"]) == (404, "no_route", None)
    else:
        assert ' 192.0.2.7 "GET /orders/%7e?x=%20" 200 5 ' in found
        assert missed.endswith("route=- backend=- endpoint=- attempts=0 reason=no_route")
