"""rgate: an HTTP gateway whose behaviour is a chain of WSGI middleware.

The names exported here are the public API, which is `plugin/api.py`; everything else may change. That is imported when the first
of its names is used, so that a small command (`rgate healthcheck`) does not import the whole gateway.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .plugin.api import *  # noqa: F403
    from .plugin.api import __all__ as __all__
else:

    def __getattr__(name):
        api = import_module("rgate.plugin.api")
        if name != "__all__" and name not in api.__all__:
            raise AttributeError(f"module 'rgate' has no attribute {name!r}")
        globals().update({exported: getattr(api, exported) for exported in ("__all__", *api.__all__)})
        return globals()[name]
