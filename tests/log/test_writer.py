"""StreamWriter: callers never wait, lost lines are counted, and flush() keeps its time limit."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from time import monotonic

import pytest

from rgate.log import StreamWriter, writer
from rgate.log.writer import BATCH_ENTRIES, MAX_BYTES, MAX_ENTRIES

from ..support.waiting import DEADLINE_SECONDS, eventually, passed


class Reader:
    """A sink that blocks until `reads` is set, and raises `error` if there is one."""

    def __init__(self) -> None:
        self.read = bytearray()
        self.asked = threading.Event()
        self.reads = threading.Event()
        self.reads.set()
        self.error: OSError | None = None

    def __call__(self, data: memoryview) -> int:
        self.asked.set()
        passed(self.reads)
        if self.error is not None:
            raise self.error
        taken = min(len(data), 65_536)  # a pipe takes some at a time
        self.read += data[:taken]
        return taken

    @property
    def lines(self) -> list[str]:
        return self.read.decode().splitlines()


@pytest.fixture
def reader() -> Iterator[Reader]:
    reader = Reader()
    yield reader
    reader.reads.set()


@pytest.fixture
def stream(reader: Reader) -> Iterator[StreamWriter]:
    stream = StreamWriter(reader, "a pipe")
    yield stream
    reader.error = None
    reader.reads.set()
    assert stream.flush(DEADLINE_SECONDS)


def test_lines_are_written_in_order(reader: Reader, stream: StreamWriter) -> None:
    lines = [f"line {number}" for number in range(3 * BATCH_ENTRIES)]
    for line in lines:
        stream.write(f"{line}\n".encode())
    assert stream.flush(DEADLINE_SECONDS)
    assert reader.lines == lines


def test_line_is_written_without_a_flush(reader: Reader, stream: StreamWriter) -> None:
    stream.write(b"soon\n")
    eventually(lambda: reader.lines == ["soon"])
    stream.defer(10, lambda: "a little later")
    eventually(lambda: reader.lines == ["soon", "a little later"])


def test_writing_never_waits_for_the_reader_and_lost_lines_are_logged(
    reader: Reader, stream: StreamWriter, caplog: pytest.LogCaptureFixture
) -> None:
    reader.reads.clear()
    for number in range(MAX_ENTRIES + 1_234):
        stream.write(b"%d\n" % number)
    assert stream.loss_reason == "it is not read, or too slowly"
    assert not caplog.messages, "the loss is logged when the stream works again"
    reader.reads.set()
    eventually(lambda: caplog.messages == ["1,234 lines were lost: a pipe was not read, or not fast enough"])
    eventually(lambda: reader.lines == [str(number) for number in range(MAX_ENTRIES)])
    assert not stream.loss_reason
    stream.write(b"after\n")
    assert stream.flush(DEADLINE_SECONDS)
    assert reader.lines[-1] == "after" and len(caplog.messages) == 1


def test_memory_is_bounded_in_bytes_too(reader: Reader, stream: StreamWriter) -> None:
    reader.reads.clear()
    for _ in range(2 * MAX_BYTES // 100_000):
        stream.write(b"x" * 99_999 + b"\n")
    stream.defer(MAX_BYTES, lambda: "too much")
    assert stream._bytes <= MAX_BYTES
    reader.reads.set()
    assert stream.flush(DEADLINE_SECONDS)
    assert len(reader.lines) == MAX_BYTES // 100_000


def test_one_entry_over_the_limit_is_written_when_the_queue_is_empty(reader: Reader, stream: StreamWriter) -> None:
    stream.write(b"x" * (MAX_BYTES + 1) + b"\n")
    assert stream.flush(DEADLINE_SECONDS)
    assert len(reader.read) == MAX_BYTES + 2


def test_stream_that_fails_for_a_while_loses_nothing(
    reader: Reader, stream: StreamWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "RETRY_SECONDS", 0.001)
    reader.error = OSError(28, "No space left on device")
    stream.write(b"kept\n")
    passed(reader.asked)
    reader.error = None
    eventually(lambda: reader.lines == ["kept"])


def test_flush_of_a_stream_that_blocks_or_fails_keeps_its_time_limit(reader: Reader, stream: StreamWriter) -> None:
    reader.reads.clear()
    stream.write(b"held\n")
    passed(reader.asked)
    assert not stream.flush(0.01), "the thread is blocked in the sink"
    reader.error = OSError(28, "No space left on device")
    reader.reads.set()
    began = monotonic()
    assert stream.flush(DEADLINE_SECONDS), "lines that cannot be written at the end are lost, not waited for"
    assert monotonic() - began < DEADLINE_SECONDS
    assert stream.loss_reason == "[Errno 28] No space left on device"


def test_thread_ends_when_there_is_nothing_to_write(
    reader: Reader, stream: StreamWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "IDLE_SECONDS", 0.01)
    for line in (b"first\n", b"second\n"):
        stream.write(line)
        eventually(lambda: stream._thread is None)
    assert reader.lines == ["first", "second"]


def test_line_whose_formatting_fails_is_the_only_one_lost(
    reader: Reader, stream: StreamWriter, caplog: pytest.LogCaptureFixture
) -> None:
    stream.defer(10, lambda: str(1 / 0))
    stream.defer(10, lambda: "another")
    assert stream.flush(DEADLINE_SECONDS)
    assert reader.lines == ["another"]
    assert "formatting a line for a pipe failed" in caplog.text


def test_line_waits_when_no_thread_can_be_started(reader: Reader, stream: StreamWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_thread(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", no_thread)
        stream.write(b"first\n")
    stream.write(b"second\n")
    assert stream.flush(DEADLINE_SECONDS)
    assert reader.lines == ["first", "second"]


def test_pipe_that_another_process_made_non_blocking_is_polled() -> None:
    receiver, sender = os.pipe()
    os.set_blocking(sender, False)
    stream = StreamWriter.of_descriptor(sender, "a pipe")
    with open(receiver, "rb") as reading:
        for _ in range(8):
            stream.write(b"x" * 65_535 + b"\n")
        assert [len(reading.readline()) for _ in range(8)] == [65_536] * 8
    assert stream.flush(DEADLINE_SECONDS)
    os.close(sender)


def test_other_text_stream_is_written_through_its_own_write() -> None:
    text = io.StringIO()
    stream = StreamWriter.of(text)
    stream.write("grün\n".encode())
    assert stream.flush(DEADLINE_SECONDS)
    assert text.getvalue() == "grün\n"


FORK = """
import os, sys, threading
from rgate.log import StreamWriter
held, asked = threading.Event(), threading.Event()
def sink(data):
    asked.set()
    if os.getpid() == parent: held.wait()
    return os.write(1, data)
parent = os.getpid()
stream = StreamWriter(sink, "stdout")
stream.write(b"of the parent\\n")
asked.wait()
pid = os.fork()
if pid == 0:
    stream.write(b"of the child\\n")
    os._exit(0 if stream.flush(10) else 1)
code = os.waitpid(pid, 0)[1]
held.set()
stream.flush(10)
os._exit(code)
"""


def test_fork_while_a_stream_blocks_writes_nothing_twice() -> None:
    ended = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "of the child\nof the parent\n", "")


def test_loss_is_logged_in_the_stream_itself(reader: Reader, stream: StreamWriter) -> None:
    logger = logging.getLogger("rgate.log")
    handler = logging.Handler()
    handler.emit = lambda record: stream.write(f"{record.getMessage()}\n".encode())  # type: ignore[method-assign]
    logger.addHandler(handler)
    try:
        reader.reads.clear()
        for _ in range(MAX_ENTRIES + 1):
            stream.write(b"x\n")
        reader.reads.set()
        eventually(lambda: reader.lines[-1:] == ["1 line was lost: a pipe was not read, or not fast enough"])
    finally:
        logger.removeHandler(handler)
