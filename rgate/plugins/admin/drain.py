"""`/-/drain`: endpoints that get no new requests because an operator says so.

    GET   /-/drain                         those that are drained
    POST  /-/drain?endpoint=orders_1       no new requests for it; what it has goes on
    POST  /-/drain?endpoint=orders_1&undo  new requests again

An endpoint is named by its name, its id (the first characters will do) or its address. All worker processes are told. It stays
drained over reloads, until that is undone or the endpoint is gone.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final

from rgate import Address, Endpoint, RequestError

from .answer import Answer
from .backends import shown_endpoint

if TYPE_CHECKING:
    from rgate import Gateway

__all__ = ["BY", "Drain"]

BY: Final = "drain"
REASON: Final = "drained by an operator"
TELL: Final = "admin.drain"
ASK: Final = "admin.drained"
SHORTEST_ID: Final = 4
NAMES_SHOWN: Final = 8


class UnknownEndpoint(RequestError):
    """No endpoint is called so, or several are."""

    status = 404
    reason = "unknown_endpoint"


class Drain:
    """Drains the endpoints of one gateway, in this process and in its siblings."""

    def __init__(self, gateway: Gateway) -> None:
        self._table = gateway.table
        self._workers = gateway.workers
        self._workers.on_command(TELL, self._told)
        self._workers.on_command(ASK, self._asked)
        self._workers.on_connect(lambda: self._workers.broadcast(ASK))  # this may be the process that follows one that died

    def show(self) -> Answer:
        """What is drained."""
        return 200, {"drained": [shown_endpoint(endpoint) for endpoint in self._drained()]}

    def act(self, query: Mapping[str, str]) -> Answer:
        """Drain the endpoints that `query` names, or undo that. Raises UnknownEndpoint."""
        undo = "undo" in query
        wanted = query.get("endpoint", "")
        found = self._named(wanted)
        were = {endpoint.key for endpoint in self._drained()}
        changed = [endpoint for endpoint in found if (endpoint.key in were) is undo]
        told = True
        for endpoint in changed:
            self._apply(endpoint, undo)
            told = self._workers.broadcast(TELL, _message(endpoint, undo)) and told
        shown = [shown_endpoint(endpoint) for endpoint in found]
        return 200, {"endpoints": shown, "drained": not undo, "changed": len(changed), "workers_told": told}

    def _drained(self) -> list[Endpoint]:
        asides = (aside for several in self._table.snapshot.excluded.values() for aside in several)
        return list({aside.endpoint.key: aside.endpoint for aside in asides if BY in aside.reasons}.values())

    def _named(self, wanted: str) -> list[Endpoint]:
        """The endpoints of that name or address, else the one whose id begins so."""
        every = {endpoint.key: endpoint for several in self._table.snapshot.found.values() for endpoint in several}
        found = [endpoint for endpoint in every.values() if wanted in _names(endpoint)]
        if not found and len(wanted) >= SHORTEST_ID:
            found = [endpoint for endpoint in every.values() if endpoint.id.startswith(wanted)]
            if len({endpoint.id for endpoint in found}) > 1:
                raise _unknown(f"{len(found)} endpoints have ids that begin with {wanted!r}; give more of it")
        if not found:
            names = sorted({endpoint.name for endpoint in every.values()})
            more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
            there = f"there are {', '.join(names[:NAMES_SHOWN])}{more}" if names else "there are none"
            raise _unknown(f"no endpoint is called {wanted!r}; {there}")
        return found

    def _apply(self, endpoint: Endpoint, undo: bool) -> None:
        if undo:
            self._table.readmit(endpoint, BY)
        else:
            self._table.exclude(endpoint, BY, REASON)

    def _asked(self, _: str) -> None:
        """Tell a new sibling what is drained; in a thread of its own, because this one has to read the answers."""
        drained = self._drained()
        if drained:
            threading.Thread(target=self._tell_all, args=(drained,), name="rgate-admin-drain", daemon=True).start()

    def _tell_all(self, drained: list[Endpoint]) -> None:
        for endpoint in drained:
            self._workers.broadcast(TELL, _message(endpoint, undo=False))

    def _told(self, message: str) -> None:
        said = json.loads(message)
        address = Address(said["scheme"], said["host"], said["port"], said["base_path"])
        self._apply(Endpoint(said["id"], said["name"], "", address), said["undo"])


def _names(endpoint: Endpoint) -> Iterator[str]:
    yield from (endpoint.name, endpoint.id, str(endpoint.address), endpoint.address.authority)


def _message(endpoint: Endpoint, undo: bool) -> str:
    address = endpoint.address
    known = {"scheme": address.scheme, "host": address.host, "port": address.port, "base_path": address.base_path}
    return json.dumps({"id": endpoint.id, "name": endpoint.name, "undo": undo, **known})


def _unknown(message: str) -> UnknownEndpoint:
    fault = UnknownEndpoint(message)
    fault.message = f"{message[0].upper()}{message[1:]}."
    return fault
