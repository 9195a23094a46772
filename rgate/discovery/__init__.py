"""Discovery: instances that sources list, matched to backends, as one immutable snapshot.

    source.list() → Instances ─ labels decide ─→ Endpoints by backend ─→ Snapshot: one reference, swapped

model.py           Backend, Endpoint, Instance and the other nouns
source_watcher.py  lists one source again and again and keeps its watch running
endpoint_table.py  Discovery: all sources of this process; EndpointTable: the endpoints of one gateway's backends
snapshot.py        what a snapshot is, how it is made from instances, and what has changed between two; pure
exclusions.py      endpoints that are found but get no new requests
endpoint_queue.py  EndpointQueue: requests that wait for an endpoint
"""

from .endpoint_queue import EndpointQueue
from .endpoint_table import Discovery, EndpointTable
from .snapshot import Change, ExcludedEndpoint, NearMiss, Snapshot, SourceState, mismatch_reasons, remarks
from .source_watcher import Timing

__all__ = [
    "Change",
    "Discovery",
    "EndpointQueue",
    "EndpointTable",
    "ExcludedEndpoint",
    "NearMiss",
    "Snapshot",
    "SourceState",
    "Timing",
    "mismatch_reasons",
    "remarks",
]
