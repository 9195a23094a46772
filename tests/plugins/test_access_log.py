"""access_log: a line for every request that fails, or for every request, in text or JSON."""

from __future__ import annotations

import io
import json
import logging
from typing import Any

import pytest

from rgate import ConnectionRefused, Exchange, Gateway, Middleware, RequestError, StreamWriter, UpstreamTruncated, hookimpl
from rgate.plugins import access_log
from rgate.plugins.access_log import FIELDS, AccessLog, AccessLogOptions, Record, Sent
from rgate.testing import client, make_endpoint, make_environ, make_exchange, make_gateway, respond_with, running_gateway

ENDED = 1_795_509_675.123


def record(target: str = "/api/orders?x=1", sent: dict[str, str] | None = None, **attributes: Any) -> Record:
    exchange = make_exchange()
    exchange.endpoint = make_endpoint("orders-1")
    exchange.started, exchange.finished = 100.0, 100.0123
    exchange.status, exchange.bytes_sent, exchange.attempts = 200, 312, 1
    for name, value in attributes.items():
        setattr(exchange, name, value)
    request = Sent("127.0.0.1", "shop.example", "GET", target, "HTTP/1.1", "https", "17", 'curl "8"', "https://a.example/")
    return Record(ENDED, exchange, request._replace(**(sent or {})), 100.01)


def bare() -> Record:
    """A request whose head could not be parsed."""
    nothing = dict.fromkeys(Sent._fields, "")
    it = record(sent=nothing, route=None, endpoint=None, attempts=0, error=ConnectionRefused("10.1.2.3"), status=400)
    return it._replace(begun=0.0)


def line(record: Record, form: str = "text", **options: Any) -> str:
    return AccessLog(AccessLogOptions(**options), form).line(record)


def test_text_has_what_is_asked_most_in_one_line() -> None:
    logged = record()
    assert line(logged) == (
        f'2026-11-24T08:41:15.123Z {logged.exchange.id} 127.0.0.1 "GET /api/orders?x=1" 200 312 12.3ms'
        " host=shop.example route=/ backend=orders endpoint=orders-1 attempts=1"
    )


def test_text_says_dash_for_what_is_not_known_and_the_reason_of_a_fault() -> None:
    assert line(bare()).endswith(
        ' - "- -" 400 312 12.3ms host=- route=- backend=- endpoint=- attempts=0 reason=refused detail="10.1.2.3"'
    )


def test_json_has_every_field() -> None:
    logged = record()
    entry = json.loads(line(logged, "json"))
    assert tuple(entry) == FIELDS
    assert entry == {
        "time": "2026-11-24T08:41:15.123Z",
        "request_id": logged.exchange.id,
        "client": "127.0.0.1",
        "host": "shop.example",
        "method": "GET",
        "target": "/api/orders?x=1",
        "protocol": "HTTP/1.1",
        "scheme": "https",
        "status": 200,
        "reason": None,
        "detail": None,
        "bytes": 312,
        "request_bytes": 17,
        "duration_ms": 12.3,
        "first_byte_ms": 10.0,
        "route": "/",
        "backend": "orders",
        "endpoint": "orders-1",
        "attempts": 1,
        "user_agent": 'curl "8"',
        "referer": "https://a.example/",
    }


def test_json_says_null_for_what_is_not_known() -> None:
    entry = json.loads(line(bare(), "json"))
    known = {"time", "request_id", "status", "reason", "detail", "bytes", "duration_ms", "attempts"}
    assert {name for name, value in entry.items() if value is not None} == known


def test_fields_may_be_chosen() -> None:
    assert tuple(json.loads(line(record(), "json", fields=["status", "host"]))) == ("status", "host")
    text = line(record(), fields=["status", "user_agent", "scheme"])
    assert text.endswith('"GET /api/orders?x=1" 200 312 12.3ms user_agent="curl \\x228\\x22" scheme=https')


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("name", ["target", "host", "method", "user_agent", "referer", "client"])
@pytest.mark.parametrize(
    "text", ["/\r\n2026 forged", "/\x1b[2J", "/\x9b2J\x85", "/\u2028", '/" 200 "', "/\\n", "/ü€", "/\x00\x7f"], ids=ascii
)
def test_line_of_hostile_bytes_is_one_printable_line(form: str, name: str, text: str) -> None:
    written = line(record(sent={name: text}), form, fields=FIELDS)
    assert written.isascii() and written.isprintable(), written
    if form == "text":
        plain = line(record(sent={name: "/x"}), form, fields=FIELDS)
        assert written.count('"') == plain.count('"'), written
        assert name in ("user_agent", "referer") or written.count(" ") == plain.count(" "), written
    else:
        assert json.loads(written)[name] == text


@pytest.mark.parametrize("form", ["text", "json"])
def test_line_is_bounded_whatever_is_sent(form: str) -> None:
    long = "x" * 60_000
    hostile = record("/" + long, sent={"host": long, "method": long, "user_agent": long, "referer": long})
    assert len(line(hostile, form, fields=FIELDS)) < 6_000


@pytest.mark.parametrize(
    ("target", "written"),
    [
        ("/x?token=t&a=1", "/x?token=***&a=1"),
        ("/x?a=1&ACCESS_TOKEN=t", "/x?a=1&ACCESS_TOKEN=***"),
        ("/x?a=1;password=p;b=2", "/x?a=1;password=***;b=2"),
        ("/x?X-Amz-Signature=s", "/x?X-Amz-Signature=***"),
        ("/x?my_token=t&tokens=3", "/x?my_token=t&tokens=3"),
        ("/token=t", "/token=t"),
    ],
)
def test_secrets_in_the_query_are_not_written(target: str, written: str) -> None:
    assert json.loads(line(record(target), "json"))["target"] == written
    referer = f"https://a.example{target}"
    assert json.loads(line(record(sent={"referer": referer}), "json"))["referer"] == f"https://a.example{written}"


def test_names_of_secrets_may_be_chosen() -> None:
    assert json.loads(line(record("/?ticket=1&token=2"), "json", redact=["ticket"]))["target"] == "/?ticket=***&token=2"
    assert json.loads(line(record("/?token=2"), "json", redact=[]))["target"] == "/?token=2"


@pytest.mark.parametrize(
    ("options", "which"),
    [
        ({}, "failed"),
        ({"format": "json"}, "all"),
        ({"requests": "failed", "format": "json"}, "failed"),
        ({"requests": "none"}, "none"),
    ],
    ids=str,
)
def test_a_format_alone_means_all_requests(options: dict[str, Any], which: str) -> None:
    assert AccessLogOptions(**options).which == which


# In a gateway


class Failing:
    """Answers by the path: with a fault, or with a status."""

    @hookimpl
    def rgate_middlewares(self, gateway: Gateway) -> Middleware:
        def wrap(app: Any, options: object) -> Any:
            def fail(environ: Any, start_response: Any) -> Any:
                environ.update(PATH_INFO="/changed")
                if environ["QUERY_STRING"] == "bug":
                    raise ZeroDivisionError
                if environ["QUERY_STRING"] == "fault":
                    raise ConnectionRefused("\x9b2J")
                if environ["QUERY_STRING"] == "request":
                    raise RequestError("wrong")
                return respond_with(b"x", status=f"{environ['QUERY_STRING'] or 200} Said")(environ, start_response)

            return fail

        return Middleware("failing", wrap)


def logged(caplog: pytest.LogCaptureFixture, query: str, config: dict[str, Any] | None = None) -> list[logging.LogRecord]:
    caplog.set_level(logging.INFO)
    with running_gateway(config or {}, {"orders": respond_with(b"x")}, {"failing": Failing()}) as gateway:
        client(gateway).get(f"/orders?{query}", headers={"Host": "shop.example"})
    return [each for each in caplog.records if each.name not in ("rgate.discovery.changes", "rgate.plugin")]


@pytest.mark.parametrize(
    ("query", "level", "status"),
    [("bug", "WARNING", 500), ("fault", "WARNING", 503), ("request", "INFO", 400), ("502", "WARNING", 502)],
)
def test_failed_request_is_one_line_of_the_log_by_default(
    query: str, level: str, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    (told,) = logged(caplog, query)
    assert (told.name, told.levelname) == ("rgate.access", level)
    message = told.getMessage()
    assert f'"GET /orders?{query}" {status} ' in message
    assert " host=shop.example route=/orders backend=orders " in message
    assert message.isprintable()


@pytest.mark.parametrize("query", ["", "404"])
def test_good_request_and_what_its_backend_refuses_are_no_line(query: str, caplog: pytest.LogCaptureFixture) -> None:
    assert not logged(caplog, query)


def test_failed_request_in_json_has_its_fields(caplog: pytest.LogCaptureFixture) -> None:
    (told,) = logged(caplog, "fault", {"log": {"format": "json"}})
    fields = told.__dict__["fields"]
    assert (told.getMessage(), fields["reason"], fields["detail"], fields["host"]) == (
        "503 refused",
        "refused",
        "\x9b2J",
        "shop.example",
    )


def test_request_that_is_refused_by_the_server_is_logged_as_it_was_sent(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    gateway = make_gateway({}, {"orders": respond_with(b"x")})
    for seen in (("DELETE", "/a/up", "shop.example"), ("", "", "")):
        environ = make_environ()
        environ.update({"rgate.rejection": RequestError("two lengths"), "rgate.unparsed": seen})
        list(gateway(environ, lambda *_: lambda _: None))
    first, second = (each.getMessage() for each in caplog.records if each.name == "rgate.access")
    assert '"DELETE /a/up" 400 ' in first and " host=shop.example " in first and 'detail="two lengths"' in first
    assert '"- -" 400 ' in second and " host=- " in second


def test_local_route_that_fails_is_not_a_failed_request(caplog: pytest.LogCaptureFixture) -> None:
    class Local:
        @hookimpl
        def rgate_local_routes(self, gateway: Gateway) -> Any:
            return {"/local": respond_with(b"", status="500 Broken")}

    caplog.set_level(logging.INFO)
    with running_gateway({}, {"orders": respond_with(b"x")}, {"local": Local()}) as gateway:
        assert client(gateway).get("/local").status_code == 500
    assert not [each for each in caplog.records if each.name == "rgate.access"]


def test_without_an_access_log_faults_are_logged_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    records = logged(caplog, "fault", {"plugins": {"access_log": {"requests": "none"}}})
    assert [each.name for each in records] == [], "an outage is told by its endpoints"


@pytest.mark.parametrize(
    "options", [{}, {"plugins": {"access_log": {}}}, {"plugins": {"access_log": {"requests": "none"}}}], ids=str
)
def test_gateway_without_a_line_for_all_has_nothing_in_the_chain(options: dict[str, Any]) -> None:
    gateway = make_gateway(options, {"orders": respond_with()})
    assert "access_log" not in gateway.chains["/orders"]
    assert access_log.rgate_lifespan(gateway) is None


@pytest.mark.parametrize("form", ["text", "json"])
def test_gateway_logs_what_the_client_sent_and_got(
    form: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    def inner(environ: Any, start_response: Any) -> Any:
        environ.update(PATH_INFO="/changed", RAW_URI="/changed", REQUEST_METHOD="PUT", HTTP_HOST="changed")
        return respond_with(b"hello")(environ, start_response)

    config = {"plugins": {"access_log": {"format": form}}}
    with running_gateway(config, {"orders": inner}) as gateway:
        client(gateway).get("/orders/%7e?x=%20", environ_overrides={"REMOTE_ADDR": "192.0.2.7"}, headers={"Host": "shop.example"})
        client(gateway).get("/nowhere")
    found, missed = sorted(capsys.readouterr().out.splitlines(), key=lambda line: "nowhere" in line)
    if form == "json":
        entry, other = json.loads(found), json.loads(missed)
        assert (entry["client"], entry["method"], entry["target"]) == ("192.0.2.7", "GET", "/orders/%7e?x=%20")
        assert (entry["status"], entry["bytes"], entry["host"]) == (200, 5, "shop.example")
        assert (entry["route"], entry["endpoint"], entry["attempts"]) == ("/orders", "orders-1", 1)
        assert entry["first_byte_ms"] <= entry["duration_ms"]
        assert (other["status"], other["reason"], other["route"]) == (404, "no_route", None)
    else:
        assert ' 192.0.2.7 "GET /orders/%7e?x=%20" 200 5 ' in found
        assert missed.endswith(" route=- backend=- endpoint=- attempts=0 reason=no_route")
    assert not [each for each in caplog.records if each.name == "rgate.access"], "no failure has two lines"


def test_all_may_be_in_the_form_of_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    config = {"log": {"format": "json"}, "plugins": {"access_log": {"requests": "all", "fields": ["status"]}}}
    with running_gateway(config, {"orders": respond_with()}) as gateway:
        client(gateway).get("/orders")
    assert json.loads(capsys.readouterr().out) == {"status": 200}


def test_record_of_a_failed_request_is_not_kept_until_it_is_written() -> None:
    class Writer(StreamWriter):
        lines: list[bytes]

        def write(self, data: bytes) -> None:
            self.lines = [data]

        def defer(self, size: int, line: Any) -> None:
            raise AssertionError("its traceback would be kept")

    writer = Writer(lambda data: len(data), "x")
    AccessLog(AccessLogOptions(), "text", writer).add(bare())
    assert writer.lines[0].endswith(b'detail="10.1.2.3"\n')


def test_memory_of_what_waits_is_the_size_of_what_was_sent() -> None:
    sizes = []

    class Writer(StreamWriter):
        def defer(self, size: int, line: Any) -> None:
            sizes.append(size)

    log = AccessLog(AccessLogOptions(), "text", Writer(lambda data: len(data), "x"))
    log.add(record("/" + "x" * 60_000))
    assert sizes[0] > 60_000


def test_stream_that_fails_loses_lines_and_nothing_else() -> None:
    stream = io.StringIO()
    writer = StreamWriter.of(stream)
    stream.close()
    AccessLog(AccessLogOptions(), "text", writer).add(record())
    assert writer.flush(10)
    assert "closed file" in writer.loss_reason


def test_exchange_knows_where_it_has_come_to() -> None:
    exchange = make_exchange()
    assert exchange.whereabouts == " (route /, backend orders)"
    exchange.endpoint = make_endpoint("orders-1")
    assert exchange.whereabouts == " (route /, backend orders, endpoint orders-1)"
    assert Exchange().whereabouts == ""


class Cut:
    """A body that breaks off."""

    def __init__(self) -> None:
        self.blocks = iter([b"begun"])

    def __iter__(self) -> Cut:
        return self

    def __next__(self) -> bytes:
        for block in self.blocks:
            return block
        raise UpstreamTruncated("closed")


@pytest.mark.parametrize("requests", ["failed", "all", "none"])
def test_response_that_breaks_off_has_one_line_wherever_that_is(
    requests: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    def inner(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [("Content-Length", "10")])
        return Cut()

    def start(status: str, headers: Any, exc_info: Any = None) -> Any:
        if exc_info:
            raise exc_info[1]
        return lambda _: None

    config = {"plugins": {"access_log": {"requests": requests}}}
    with running_gateway(config, {"orders": inner}) as gateway:
        body: Any = gateway(make_environ("/orders"), start)
        with pytest.raises(UpstreamTruncated):
            list(body)
        body.close()
    written = capsys.readouterr().out.splitlines() + [each.getMessage() for each in caplog.records if each.levelno > logging.INFO]
    (line,) = written
    assert "backend" in line and "orders" in line and "truncated" in line
