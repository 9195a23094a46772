"""The log and the streams that it goes to. Whoever has something to tell never waits: see writer.py.

handler.py  what goes wrong again and again is written once, and counted
formats.py  text and JSON
writer.py   a stream that a thread of its own writes
streams.py  the process's own stdout and stderr
"""

from .formats import json_line, printable, timestamp
from .handler import LogHandler, about
from .streams import adjust, end, start, trouble
from .writer import StreamWriter

__all__ = [
    "LogHandler",
    "StreamWriter",
    "about",
    "adjust",
    "end",
    "json_line",
    "printable",
    "start",
    "timestamp",
    "trouble",
]
