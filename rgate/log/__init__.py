"""The log, and the streams it is written to. Writing a line never waits for the reader of a stream: see writer.py.

handler.py  deduplicates: a failure that repeats is written once, then counted
formats.py  text and JSON
writer.py   StreamWriter: a thread of its own writes a stream
streams.py  stdout and stderr of this process
"""

from .formats import json_line, printable, timestamp
from .handler import DedupingHandler, exception_key
from .streams import configure, flush, loss_reasons, start
from .writer import StreamWriter

__all__ = [
    "DedupingHandler",
    "StreamWriter",
    "configure",
    "exception_key",
    "flush",
    "json_line",
    "loss_reasons",
    "printable",
    "start",
    "timestamp",
]
