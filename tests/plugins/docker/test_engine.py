"""The talk with an engine over a real socket: requests and events."""

from __future__ import annotations

import json
import socket
import threading
import time
from contextlib import closing
from urllib.parse import parse_qs, urlsplit

import pytest

from rgate import RgateError
from rgate.discovery.source_watcher import DEFAULT_TIMING
from rgate.plugins.docker import engine as talk
from rgate.plugins.docker.engine import Engine, EngineError

from .fake_engine import DEADLINE_SECONDS, FakeEngine, Request, line


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(talk, "_REQUEST_SECONDS", 0.2)
    monkeypatch.setattr(talk, "_QUIET_SECONDS", 0.2)


class TestRequests:
    def test_engine_is_asked_with_its_own_version(self, engine: Engine, fake: FakeEngine) -> None:
        assert engine.containers("app") == [{"Id": "a"}]
        assert engine.container("a") == {"Id": "a"}
        version, listed, inspected = fake.asked
        assert (version, inspected) == ("/version", "/v1.41/containers/a/json")
        assert urlsplit(listed).path == "/v1.41/containers/json"
        query = parse_qs(urlsplit(listed).query)
        assert query["all"] == ["1"]
        assert query.get("limit", ["-1"]) == ["-1"]
        assert json.loads(query["filters"][0]) == {"label": ["app"]}

    @pytest.mark.parametrize("label", ["", "a=b", "ünicode ☃", 'with "quotes"', "a.b/c"])
    def test_label_of_any_kind_reaches_the_engine_whole(self, engine: Engine, fake: FakeEngine, label: str) -> None:
        engine.containers(label)
        assert json.loads(parse_qs(urlsplit(fake.asked[-1]).query)["filters"][0]) == {"label": [label]}

    def test_container_that_is_not_there_is_none(self, engine: Engine) -> None:
        assert engine.container("b") is None

    def test_everything_works_behind_a_proxy_that_allows_reading_only(self, fake: FakeEngine) -> None:
        allowed = ("/version", "/containers/json", "/containers/a/json", "/events")
        fake.answers["/events"] = lambda request: request.stream(line("start"), end=True)
        fake.answers = {**{end: fake.answers[end] for end in allowed}, "": (403, b"<html>403 Forbidden</html>")}
        engine = Engine(fake.url)
        assert engine.containers("app")
        assert engine.container("a")
        assert [event["Action"] for event in engine.events("1.0")] == ["start"]
        engine.close()
        assert [urlsplit(path).path.removeprefix("/v1.41") for path in fake.asked] == list(allowed), "nothing else is asked for"

    def test_proxy_that_allows_too_little_is_said_to(self, engine: Engine, fake: FakeEngine) -> None:
        fake.answers["/containers/json"] = (403, b"<html><body>\n<h1>403 Forbidden</h1>\n</body></html>")
        with pytest.raises(EngineError) as caught:
            engine.containers("app")
        assert str(caught.value) == (
            f"cannot use the Docker engine at {fake.url}: it answers 403 Forbidden to /v1.41/containers/json;"
            " a proxy must allow GET of version, containers and events"
        )

    @pytest.mark.parametrize(
        ("answer", "words"),
        [
            ((500, b'{"message": "out of order"}'), "it answers 500 Internal Server Error to /v1.41/containers/json"),
            ((200, b"<html>"), "cannot use the Docker engine"),
            ((200, b""), "cannot use the Docker engine"),
            ((200, b"null"), "does not answer with a list of containers"),
            ((200, b'{"message": "hello"}'), "does not answer with a list of containers"),
            ((200, b"[1, 2]"), "does not answer with a list of containers"),
            ((200, b"\xff\xfe"), "cannot use the Docker engine"),
        ],
    )
    def test_answer_that_is_none_is_an_error_in_one_line(
        self, engine: Engine, fake: FakeEngine, answer: tuple[int, bytes], words: str
    ) -> None:
        fake.answers["/containers/json"] = answer
        with pytest.raises(EngineError) as caught:
            engine.containers("app")
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)
        assert isinstance(caught.value, RgateError)

    def test_inspection_that_is_none_is_an_error(self, engine: Engine, fake: FakeEngine) -> None:
        fake.answers["/containers/a/json"] = (200, b"[]")
        with pytest.raises(EngineError, match="does not describe container a"):
            engine.container("a")
        fake.answers["/containers/a/json"] = (500, b"{}")
        with pytest.raises(EngineError, match="it answers 500"):
            engine.container("a")

    def test_answer_that_never_comes_is_an_error(self, impatient: None, engine: Engine, fake: FakeEngine) -> None:
        fake.answers["/containers/json"] = Request.hang
        with pytest.raises(EngineError, match=r"timed out|Read timed out"):
            engine.containers("app")

    def test_connect_of_which_nothing_is_heard_is_given_up_long_before_an_answer(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(talk, "_CONNECT_SECONDS", 0.2)
        monkeypatch.setattr(talk, "_REQUEST_SECONDS", 2 * DEADLINE_SECONDS)
        with closing(socket.socket()) as full, closing(socket.socket()) as queued:
            full.bind(("127.0.0.1", 0))
            full.listen(0)
            queued.connect(full.getsockname())  # takes the only place in the queue; the kernel drops what comes after it
            began = time.monotonic()
            with pytest.raises(EngineError, match="timed out"):
                Engine(f"tcp://127.0.0.1:{full.getsockname()[1]}")
            assert time.monotonic() - began < DEADLINE_SECONDS

    def test_connect_and_the_pause_after_it_end_within_what_is_promised(self) -> None:
        for failures in range(1, 20):
            pause = DEFAULT_TIMING.retry_after(failures, 0.0, talk._CONNECT_SECONDS)
            assert talk._CONNECT_SECONDS + pause <= 3.0

    def test_answer_that_breaks_off_is_an_error(self, engine: Engine, fake: FakeEngine) -> None:
        fake.answers["/containers/json"] = lambda request: request.stream(b'[{"Id": "a"}')
        with pytest.raises(EngineError, match="cannot use the Docker engine"):
            engine.containers("app")

    @pytest.mark.parametrize("version", [b"{}", b"[]", b"nonsense", b'{"ApiVersion": "1.1"}', b'{"ApiVersion": 7}'])
    def test_engine_without_a_usable_version_is_an_error(self, fake: FakeEngine, version: bytes) -> None:
        fake.answers["/version"] = (200, version)
        with pytest.raises(EngineError, match="cannot use the Docker engine"):
            Engine(fake.url)


class TestEvents:
    def test_events_are_asked_for_from_a_time_and_of_two_kinds(self, engine: Engine, fake: FakeEngine) -> None:
        fake.answers["/events"] = lambda request: request.stream(end=True)
        assert list(engine.events("1700000000.000000001")) == []
        query = parse_qs(urlsplit(fake.asked[-1]).query)
        assert query["since"] == ["1700000000.000000001"]
        filters = json.loads(query["filters"][0])
        assert filters["type"] == ["container", "network"]
        assert {"start", "die", "kill", "health_status", "connect", "disconnect"} <= set(filters["event"])

    def test_events_are_read_however_they_are_cut_into_pieces(self, engine: Engine, fake: FakeEngine) -> None:
        told = line("start", app="ünïcode") + line("die") + b"\n" + line("kill", signal="15")
        for size in (1, 7, 64, len(told)):
            pieces = [told[at : at + size] for at in range(0, len(told), size)]
            fake.answers["/events"] = lambda request, pieces=pieces: request.stream(*pieces, end=True)  # type: ignore[misc]
            assert [event["Action"] for event in engine.events("1")] == ["start", "die", "kill"]

    def test_event_is_there_before_the_next_one_comes(self, engine: Engine, fake: FakeEngine) -> None:
        go_on = threading.Event()

        def tell(request: Request) -> None:
            request.stream(line("start"))
            assert go_on.wait(DEADLINE_SECONDS)
            request.wfile.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(line("die")), line("die")))

        fake.answers["/events"] = tell
        events = iter(engine.events("1"))
        assert next(events)["Action"] == "start"
        go_on.set()
        assert [event["Action"] for event in events] == ["die"]

    def test_events_without_chunks_are_read_as_they_come(self, engine: Engine, fake: FakeEngine) -> None:
        read = threading.Event()

        def tell(request: Request) -> None:
            request.wfile.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + line("start"))
            assert read.wait(DEADLINE_SECONDS), "the first event is held back"

        fake.answers["/events"] = tell
        for event in engine.events("1"):
            assert event["Action"] == "start"
            read.set()
        assert read.is_set()

    def test_stream_that_is_cut_ends(self, engine: Engine, fake: FakeEngine) -> None:
        fake.answers["/events"] = lambda request: request.stream(line("start"), line("die")[:20])
        assert [event["Action"] for event in engine.events("1")] == ["start"]

    def test_stream_that_is_silent_ends(self, impatient: None, engine: Engine, fake: FakeEngine) -> None:
        def tell(request: Request) -> None:
            request.stream(line("start"))
            request.hang()

        fake.answers["/events"] = tell
        assert [event["Action"] for event in engine.events("1")] == ["start"]

    def test_stream_that_does_not_begin_is_an_error(self, impatient: None, engine: Engine, fake: FakeEngine) -> None:
        fake.answers["/events"] = Request.hang
        with pytest.raises(EngineError, match="timed out"):
            engine.events("1")

    def test_stream_that_is_refused_is_an_error(self, engine: Engine, fake: FakeEngine) -> None:
        fake.answers["/events"] = (403, b"no")
        with pytest.raises(EngineError, match=r"it answers 403 Forbidden to /v1\.41/events; a proxy must allow"):
            engine.events("1")

    @pytest.mark.parametrize("garbage", [b"garbage\n", b"[1]\n", b"null\n", b"\xff\xfe\n", b'{"half": \n'])
    def test_line_that_is_no_event_is_an_error(self, engine: Engine, fake: FakeEngine, garbage: bytes) -> None:
        fake.answers["/events"] = lambda request: request.stream(line("start") + garbage, end=True)
        events = iter(engine.events("1"))
        assert next(events)["Action"] == "start"
        with pytest.raises(EngineError, match="sent something that is not an event"):
            next(events)

    def test_event_without_end_is_an_error(self, engine: Engine, fake: FakeEngine) -> None:
        fake.answers["/events"] = lambda request: request.stream(*[b"x" * 65_536] * 20)
        with pytest.raises(EngineError, match="an endless event"):
            list(engine.events("1"))

    def test_close_from_another_thread_ends_the_iteration(self, engine: Engine, fake: FakeEngine) -> None:
        def tell(request: Request) -> None:
            request.stream(line("start"))
            request.hang()

        fake.answers["/events"] = tell
        stream, begun, seen = engine.events("1"), threading.Event(), []

        def read() -> None:
            for event in stream:
                seen.append(event["Action"])
                begun.set()

        reading = threading.Thread(target=read, daemon=True)
        reading.start()
        assert begun.wait(DEADLINE_SECONDS)
        stream.close()
        reading.join(DEADLINE_SECONDS)
        assert not reading.is_alive(), "the iteration goes on"
        assert seen == ["start"]
        stream.close()
