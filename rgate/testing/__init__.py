"""Helpers for the tests of a plugin.

A middleware alone, around any WSGI app:

    exchange = make_exchange()
    app = my_plugin.rgate_middlewares(make_gateway()).wrap(respond_with(b"hello"), None)
    response = client(app, exchange).get("/x")

In a gateway, with the public hooks and without a socket; backends are WSGI apps:

    with running_gateway({}, {"orders": respond_with(b"hello"), "empty": ()}, {"my_plugin": my_plugin}) as gateway:
        assert client(gateway).get("/orders/17").data == b"hello"
        assert_error(client(gateway).get("/empty"), 503, "no_endpoint")

Over a real socket, where the exact bytes matter:

    with ScriptedBackend(http_response(b"hello")) as backend:
        ...
    assert backend.requests[0].head.startswith(b"GET /x HTTP/1.1\\r\\n")

Nothing here needs pytest, waits without a deadline, or is for production.
"""

from .gateways import make_gateway, running_gateway
from .isolated import assert_error, client, make_endpoint, make_environ, make_exchange, respond_with
from .sockets import RawRequest, ScriptedBackend, ScriptedConnection, closed_port_url, http_response

__all__ = [
    "RawRequest",
    "ScriptedBackend",
    "ScriptedConnection",
    "assert_error",
    "client",
    "closed_port_url",
    "http_response",
    "make_endpoint",
    "make_environ",
    "make_exchange",
    "make_gateway",
    "respond_with",
    "running_gateway",
]
