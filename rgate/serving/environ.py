"""The parts of a WSGI environ that do not come from the request's head."""

from __future__ import annotations

import re
import sys
from io import BytesIO
from typing import TYPE_CHECKING, Any, Final

from werkzeug.wsgi import FileWrapper

from ..http1.environ import FIELDS_KEY, REJECTION_KEY, TARGET_KEY, UNPARSED_KEY
from ..http1.fields import Fields
from ..http1.target import Target
from ..version import VERSION

if TYPE_CHECKING:
    from ..errors import GatewayError

__all__ = ["NO_BODY", "base_environ", "rejected_environ"]

NO_BODY: Final = BytesIO()
MAX_SENT_BYTES: Final = 4_096
_ROOT = Target("/", "/", "/", "")
_REQUEST_LINE = re.compile(r"[\r\n]{0,2}([!-~]{1,32}) +(\S+)")
_HOST = re.compile(r"\nhost[ \t]*:[ \t]*([^\r\n]*)", re.IGNORECASE)


def base_environ(server_name: str, port: int, scheme: str, multiprocess: bool) -> dict[str, Any]:
    """The part of the environ that is the same for every request of a server."""
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


def rejected_environ(error: GatewayError, head: bytes) -> dict[str, Any]:
    """The environ of a request that the server rejects: REJECTION_KEY has the outer chain answer `error`.

    It looks like a GET of /, so that no middleware fails on it. UNPARSED_KEY has what `head`, the received part, shows of
    the request.
    """
    return {
        UNPARSED_KEY: _sent(head[:MAX_SENT_BYTES].decode("latin-1")),
        "REQUEST_METHOD": "HEAD" if head.startswith(b"HEAD ") else "GET",
        "PATH_INFO": "/",
        "QUERY_STRING": "",
        "RAW_URI": "/",
        "REQUEST_URI": "/",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "wsgi.input": NO_BODY,
        TARGET_KEY: _ROOT,
        FIELDS_KEY: Fields(),
        REJECTION_KEY: error,
    }


def _sent(head: str) -> tuple[str, str, str]:
    """Method, target and Host of an incomplete or invalid head; "" for each that cannot be found."""
    line, host = _REQUEST_LINE.match(head), _HOST.search(head)
    method, target = line.groups() if line is not None else ("", "")
    return method, target, host[1].strip() if host is not None else ""
