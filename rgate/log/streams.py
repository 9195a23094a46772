"""The process's own streams, and the log on stderr: start() when the process is to serve, end() when it has."""

from __future__ import annotations

import faulthandler
import io
import logging
import os
import sys
from time import monotonic
from typing import BinaryIO, Final, TextIO, cast

from .formats import JSONFormatter, TextFormatter
from .handler import LogHandler
from .writer import StreamWriter

__all__ = ["adjust", "end", "start", "trouble"]

END_SECONDS: Final = 1.0
_writers: dict[object, StreamWriter] = {}
_handlers: list[tuple[LogHandler, bool]] = []  # the log's, and whether it is in colour
_log = logging.getLogger("rgate.log")


class _Written(io.RawIOBase):
    """What is written here goes to a StreamWriter."""

    def __init__(self, writer: StreamWriter, descriptor: int) -> None:
        self.writer = writer
        self._descriptor = descriptor

    def writable(self) -> bool:
        return True

    def write(self, data: object, /) -> int:
        block = bytes(data)  # type: ignore[call-overload]
        self.writer.write(block)
        return len(block)

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)


def start(level: str = "info", form: str = "text") -> None:
    """From now on nothing that this process writes to stdout or stderr waits for a reader: not its log, which goes to stderr
    from `level` on, nor warnings of others, nor what a plugin prints."""
    sys.stdout = _replaced(sys.stdout, "stdout")
    sys.stderr = _replaced(sys.stderr, "stderr")
    handler = LogHandler(sys.stderr)
    # Changes of endpoints are logged as they happen by every process; the one that tells the operator does so itself.
    handler.addFilter(lambda record: record.name != "rgate.discovery.changes")
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    _handlers[:] = [(handler, sys.stderr.isatty() and "NO_COLOR" not in os.environ)]
    adjust(level, form)
    sys.unraisablehook = _unraisable
    if sys.__stderr__ is not None:
        faulthandler.enable(sys.__stderr__)  # where it was, when it is ended with SIGABRT because it hangs


def adjust(level: str, form: str) -> None:
    """Log from `level` on, as `form` says ("text" or "json"), where start() has been called."""
    for handler, colours in _handlers:
        handler.setFormatter(JSONFormatter() if form == "json" else TextFormatter(colours))
        logging.getLogger("rgate").setLevel(level.upper())


def end(seconds: float = END_SECONDS) -> None:
    """Write what is left, for `seconds` at most: a reader that has stopped reading keeps no process from ending."""
    for handler, _ in _handlers:
        handler.settle()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(getattr(stream, "buffer", None), _Written):
            stream.flush()
    until = monotonic() + seconds
    for writer in _writers.values():
        writer.flush(max(0.0, until - monotonic()))


def trouble() -> str:
    """What an operator should know of the streams: why lines are being lost at present, or ""."""
    found = [f"lines for {writer.name} are lost: {why}" for writer in list(_writers.values()) if (why := writer.trouble)]
    return "; ".join(found)


def _replaced(stream: TextIO | None, name: str) -> TextIO:
    """A stream whose write() never waits, for the descriptor of `stream`; the same one if that cannot be."""
    if stream is None:  # it was closed before the process began
        return open(os.devnull, "w", encoding="utf-8")
    try:
        descriptor = stream.fileno()
        status = os.fstat(descriptor)
    except (OSError, ValueError):
        return stream
    # Two descriptors of one terminal, pipe or file have one writer, so that their lines keep their order.
    writer = _writers.setdefault((status.st_dev, status.st_ino), StreamWriter.of_descriptor(descriptor, name))
    return io.TextIOWrapper(
        cast(BinaryIO, _Written(writer, descriptor)),
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=True,
    )


def _unraisable(unraisable: sys.UnraisableHookArgs) -> None:
    if isinstance(unraisable.exc_value, UnicodeDecodeError) and isinstance(unraisable.object, bytes):
        # The ssl module, about a client that has asked for a host by a name that is no text. Nobody wants a line for each.
        _log.debug("a TLS client asked for %r", unraisable.object)
    else:
        sys.__unraisablehook__(unraisable)
