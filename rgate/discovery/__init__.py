"""Discovery: what the sources list, matched to backends, as one immutable snapshot.

    source.list() → Instances ─ labels decide ─→ Endpoints by backend ─→ Snapshot: one reference, swapped

snapshot.py  what a snapshot is and how one is joined from instances; pure
asides.py    endpoints that are found, but not for new requests while somebody says so
loop.py      lists one source over and over and keeps its watch alive
table.py     EndpointTable: all of it, running
queue.py     EndpointQueue: requests that wait for an endpoint
"""

from .endpoint_queue import EndpointQueue
from .endpoint_table import EndpointTable
from .snapshot import Change, ExcludedEndpoint, NearMiss, Snapshot, SourceState, remarks, why_not
from .source_watcher import Timing

__all__ = [
    "Change",
    "EndpointQueue",
    "EndpointTable",
    "ExcludedEndpoint",
    "NearMiss",
    "Snapshot",
    "SourceState",
    "Timing",
    "remarks",
    "why_not",
]
