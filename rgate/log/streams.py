"""stdout and stderr of this process, and the log on stderr: start() before serving, flush() at the end."""

from __future__ import annotations

import faulthandler
import io
import logging
import os
import sys
from time import monotonic
from typing import BinaryIO, Final, TextIO, cast

from .formats import JSONFormatter, TextFormatter
from .handler import DedupingHandler
from .writer import StreamWriter

__all__ = ["configure", "flush", "loss_reasons", "start"]

FLUSH_SECONDS: Final = 1.0
_writers: dict[object, StreamWriter] = {}
_handlers: list[tuple[DedupingHandler, bool]] = []  # of the log, and whether its lines are coloured
_log = logging.getLogger("rgate.log")


class _WriterIO(io.RawIOBase):
    """Passes everything that is written to a StreamWriter."""

    def __init__(self, writer: StreamWriter, fd: int) -> None:
        self.writer = writer
        self._fd = fd

    def writable(self) -> bool:
        return True

    def write(self, data: object, /) -> int:
        block = bytes(data)  # type: ignore[call-overload]
        self.writer.write(block)
        return len(block)

    def fileno(self) -> int:
        return self._fd

    def isatty(self) -> bool:
        return os.isatty(self._fd)


def start(level: str = "info", form: str = "text") -> None:
    """Log to stderr from `level` on, and write stdout and stderr without waiting for their readers.

    This also covers warnings of other libraries and everything that plugins print.
    """
    sys.stdout = _unblocked(sys.stdout, "stdout")
    sys.stderr = _unblocked(sys.stderr, "stderr")
    handler = DedupingHandler(sys.stderr)
    # Every process logs endpoint changes; the one that shows them to the operator prints them itself.
    handler.addFilter(lambda record: record.name != "rgate.discovery.changes")
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    _handlers[:] = [(handler, sys.stderr.isatty() and "NO_COLOR" not in os.environ)]
    configure(level, form)
    sys.unraisablehook = _unraisable
    if sys.__stderr__ is not None:
        faulthandler.enable(sys.__stderr__)  # shows where a hung process was when the supervisor sends SIGABRT


def configure(level: str, form: str) -> None:
    """Log from `level` on, in `form` ("text" or "json"). Has no effect before start()."""
    for handler, colours in _handlers:
        handler.setFormatter(JSONFormatter() if form == "json" else TextFormatter(colours))
        logging.getLogger("rgate").setLevel(level.upper())


def flush(seconds: float = FLUSH_SECONDS) -> None:
    """Write everything that is buffered, for at most `seconds`, so that a stalled reader cannot keep the process from ending."""
    for handler, _ in _handlers:
        handler.flush_counts()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(getattr(stream, "buffer", None), _WriterIO):
            stream.flush()
    until = monotonic() + seconds
    for writer in _writers.values():
        writer.flush(max(0.0, until - monotonic()))


def loss_reasons() -> str:
    """Why lines are currently being lost, by stream, for the operator; "" while none are."""
    reasons = [
        f"lines for {writer.name} are lost: {reason}" for writer in list(_writers.values()) if (reason := writer.loss_reason)
    ]
    return "; ".join(reasons)


def _unblocked(stream: TextIO | None, name: str) -> TextIO:
    """A stream for the descriptor of `stream` whose write() never waits; `stream` itself if it has no descriptor."""
    if stream is None:  # it was closed before the process started
        return open(os.devnull, "w", encoding="utf-8")
    try:
        fd = stream.fileno()
        status = os.fstat(fd)
    except (OSError, ValueError):
        return stream
    # Descriptors of the same terminal, pipe or file share one writer, so that their lines stay in order.
    writer = _writers.setdefault((status.st_dev, status.st_ino), StreamWriter.of_descriptor(fd, name))
    return io.TextIOWrapper(
        cast(BinaryIO, _WriterIO(writer, fd)),
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=True,
    )


def _unraisable(unraisable: sys.UnraisableHookArgs) -> None:
    if isinstance(unraisable.exc_value, UnicodeDecodeError) and isinstance(unraisable.object, bytes):
        # The ssl module reports a client whose SNI is not text. That is not worth a traceback each time.
        _log.debug("a TLS client sent the server name %r", unraisable.object)
    else:
        sys.__unraisablehook__(unraisable)
