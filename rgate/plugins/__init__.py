"""The built-in plugins: modules of this package, loaded like any other plugin, in this order."""

BUILTIN = (
    "docker",
    "static_endpoints",
    "routing",
    "bulkhead",
    "retry",
    "selection",
    "health",
    "faults",
    "normalize",
    "stats",
    "access_log",
    "websocket",
    "admin",
)
