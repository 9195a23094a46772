"""rgate: an HTTP gateway whose behaviour is a chain of WSGI middleware.

What is exported here is the public API, all of which stands in `api.py`; everything else may change. It is imported when the
first of it is asked for, so that a small command (`rgate healthcheck`) need not load a whole gateway.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .api import *  # noqa: F403
    from .api import __all__ as __all__
else:

    def __getattr__(name):
        api = import_module("rgate.api")
        if name != "__all__" and name not in api.__all__:
            raise AttributeError(f"module 'rgate' has no attribute {name!r}")
        globals().update({exported: getattr(api, exported) for exported in ("__all__", *api.__all__)})
        return globals()[name]
