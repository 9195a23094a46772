"""`/-/drain`: endpoints that get no new requests because an operator drained them.

    GET   /-/drain                         the drained endpoints
    POST  /-/drain?endpoint=orders_1       drain it: no new requests; those in flight go on
    POST  /-/drain?endpoint=orders_1&undo  give it new requests again

An endpoint is given by its name, its id (four or more of its first characters will do) or its address. The drain applies in all
worker processes. It survives reloads, and ends when it is undone or the endpoint is gone.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl

from rgate import Address, Endpoint, RequestError

from .pages import shown_endpoint

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

    from rgate import Gateway

__all__ = ["BY", "Drain"]

BY: Final = "drain"
REASON: Final = "drained by an operator"
APPLY: Final = "admin.drain"  # the command that applies a drain in another worker process
ASK: Final = "admin.drained"  # the command by which a new worker process asks the others for theirs
SHORTEST_ID: Final = 4
NAMES_SHOWN: Final = 8


class UnknownEndpoint(RequestError):
    """No endpoint has this name, id or address, or several ids begin so."""

    status = 404
    reason = "unknown_endpoint"


class Drain:
    """Drains endpoints of one gateway, in this process and in the other worker processes."""

    def __init__(self, gateway: Gateway) -> None:
        self._table = gateway.table
        self._workers = gateway.workers
        self._workers.on_command(APPLY, self._apply_message)
        self._workers.on_command(ASK, self._answer)
        self._workers.on_connect(lambda: self._workers.broadcast(ASK))  # this process may replace one that died

    def get(self, environ: WSGIEnvironment) -> tuple[int, dict[str, Any]]:
        """The drained endpoints."""
        return 200, {"drained": [shown_endpoint(endpoint) for endpoint in self._drained()]}

    def post(self, environ: WSGIEnvironment) -> tuple[int, dict[str, Any]]:
        """Drain the endpoints that the query names, or undo that. Raises UnknownEndpoint."""
        query = dict(parse_qsl(environ.get("QUERY_STRING", ""), keep_blank_values=True))
        undo = "undo" in query
        found = self._find(query.get("endpoint", ""))
        drained = {endpoint.key for endpoint in self._drained()}
        changed = [endpoint for endpoint in found if (endpoint.key in drained) is undo]
        told = True
        for endpoint in changed:
            self._apply(endpoint, undo)
            told = self._workers.broadcast(APPLY, _message(endpoint, undo)) and told
        shown = [shown_endpoint(endpoint) for endpoint in found]
        return 200, {"endpoints": shown, "drained": not undo, "changed": len(changed), "workers_told": told}

    def _drained(self) -> list[Endpoint]:
        excluded = (each for several in self._table.snapshot.excluded.values() for each in several)
        return list({each.endpoint.key: each.endpoint for each in excluded if BY in each.reasons}.values())

    def _find(self, wanted: str) -> list[Endpoint]:
        """The endpoints with that name, id or address, else the one whose id begins so."""
        every = {endpoint.key: endpoint for several in self._table.snapshot.found.values() for endpoint in several}
        found = [endpoint for endpoint in every.values() if wanted in _names(endpoint)]
        if not found and len(wanted) >= SHORTEST_ID:
            found = [endpoint for endpoint in every.values() if endpoint.id.startswith(wanted)]
            if len({endpoint.id for endpoint in found}) > 1:
                raise _unknown(f"{len(found)} endpoints have ids that begin with {wanted!r}; give more of it")
        if not found:
            names = sorted({endpoint.name for endpoint in every.values()})
            more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
            there = f"there are {', '.join(names[:NAMES_SHOWN])}{more}" if names else "there are no endpoints"
            raise _unknown(f"no endpoint is called {wanted!r}; {there}")
        return found

    def _apply(self, endpoint: Endpoint, undo: bool) -> None:
        if undo:
            self._table.readmit(endpoint, BY)
        else:
            self._table.exclude(endpoint, BY, REASON)

    def _answer(self, _: str) -> None:
        """Send the drained endpoints to a new worker process, from a separate thread: this one has to read the replies."""
        drained = self._drained()
        if drained:
            threading.Thread(target=self._send_all, args=(drained,), name="rgate-admin-drain", daemon=True).start()

    def _send_all(self, drained: list[Endpoint]) -> None:
        for endpoint in drained:
            self._workers.broadcast(APPLY, _message(endpoint, undo=False))

    def _apply_message(self, message: str) -> None:
        fields = json.loads(message)
        address = Address(fields["scheme"], fields["host"], fields["port"], fields["base_path"])
        self._apply(Endpoint(fields["id"], fields["name"], "", address), fields["undo"])


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
