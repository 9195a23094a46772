"""The parts of a WSGI environ that do not come from the request's head."""

from __future__ import annotations

import sys
from io import BytesIO
from typing import TYPE_CHECKING, Any, Final

from werkzeug.wsgi import FileWrapper

from ..version import VERSION
from ..wire.environ import FIELDS_KEY, REFUSED_KEY, TARGET_KEY
from ..wire.fields import Fields
from ..wire.target import Target

if TYPE_CHECKING:
    from ..errors import GatewayError

__all__ = ["NO_BODY", "refused", "template"]

NO_BODY: Final = BytesIO()
_NOWHERE = Target("/", "/", "/", "")


def template(server_name: str, port: int, scheme: str, multiprocess: bool) -> dict[str, Any]:
    """What is the same in every environ of a server."""
    https = {"HTTPS": "on"} if scheme == "https" else {}
    return {
        **https,
        "SERVER_NAME": server_name,
        "SERVER_PORT": str(port),
        "SERVER_SOFTWARE": f"rgate/{VERSION}",
        "SCRIPT_NAME": "",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": scheme,
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": multiprocess,
        "wsgi.run_once": False,
        "wsgi.input_terminated": True,
        "wsgi.file_wrapper": FileWrapper,
    }


def refused(error: GatewayError, head: bytes) -> dict[str, Any]:
    """In place of a request that could not be read, as far as `head`: what has the outer chain answer `error`."""
    return {
        "REQUEST_METHOD": "HEAD" if head.startswith(b"HEAD ") else "GET",
        "PATH_INFO": "/",
        "QUERY_STRING": "",
        "RAW_URI": "/",
        "REQUEST_URI": "/",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "wsgi.input": NO_BODY,
        TARGET_KEY: _NOWHERE,
        FIELDS_KEY: Fields(),
        REFUSED_KEY: error,
    }
