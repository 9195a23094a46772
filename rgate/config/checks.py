"""Checks across the entries of a config: names are unique, references exist, every route can get requests."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from ..errors import ConfigProblem
from .messages import did_you_mean, join_names
from .models import Config, Route, changed
from .tree import Node, Report, is_secret

__all__ = ["assign_names", "check", "warnings"]


def check(config: Config, root: Node, backends: Collection[str], report: Report) -> Iterator[ConfigProblem]:
    """The problems of a config whose entries are each valid on their own.

    `root` is the tree that the config was made from, `backends` are all names that routes may use, and `report` knows what was
    dropped from the tree because it was not valid.
    """
    yield from _routes(config, root, backends, report)
    yield from _backends(config, root)
    yield from _pipeline(config)


def _routes(config: Config, root: Node, backends: Collection[str], report: Report) -> Iterator[ConfigProblem]:
    names: dict[str, int] = {}
    same_prefix: dict[str, list[int]] = {}
    for index, route in enumerate(config.routes):
        backend = route.backend.name
        if backend not in backends:
            suggestion = did_you_mean(backend, backends) or f"; the backends are {join_names(backends)}"
            yield ConfigProblem(("routes", index, "backend"), f"no backend named {backend!r}{suggestion}")
        if (first := names.setdefault(route.name, index)) != index:
            line = _line(root, "routes", first)
            yield ConfigProblem(("routes", index, "name"), f"another route is named {route.name!r}, on line {line}")
        limit, own = config.server.max_body_bytes, route.max_body_bytes
        if limit is not None and own is not None and own > limit:
            yield ConfigProblem(("routes", index, "max_body_bytes"), f"has no effect: server.max_body_bytes is lower ({limit})")
        earlier = same_prefix.setdefault(route.path_prefix, [])
        if (first := next((i for i in earlier if _shadows(config.routes[i], route)), index)) != index:
            line = _line(root, "routes", first)
            message = f"never used: the route on line {line} takes all of its requests"
            yield ConfigProblem(("routes", index, "path_prefix"), message)
        if report.intact(root.find(("routes", index))[0].path):
            earlier.append(index)


def _shadows(first: Route, second: Route) -> bool:
    """Whether `first`, an earlier route of the same prefix, gets all requests that `second` could get.

    Routes with more conditions are tried before those with fewer, so both must have the same kinds of conditions.
    """
    return (
        bool(first.hosts) == bool(second.hosts)
        and bool(first.methods) == bool(second.methods)
        and set(first.hosts) >= set(second.hosts)
        and set(first.methods) >= set(second.methods)
        and _lower(first.headers) == _lower(second.headers)
    )


def _lower(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def _backends(config: Config, root: Node) -> Iterator[ConfigProblem]:
    names: dict[str, int] = {}
    for index, backend in enumerate(config.backends):
        if (first := names.setdefault(backend.name, index)) != index:
            line = _line(root, "backends", first)
            yield ConfigProblem(("backends", index, "name"), f"another backend is named {backend.name!r}, on line {line}")


def _line(root: Node, *path: str | int) -> int:
    return root.find(path)[0].line


def warnings(config: Config) -> Iterator[ConfigProblem]:
    """Mistakes that do not keep the gateway from running: unused backends, a config without routes."""
    if not config.routes:
        yield ConfigProblem(("routes",), "there are no routes, so every request gets the default_response")
    used = {route.backend.name for route in config.routes}
    for index, backend in enumerate(config.backends):
        if backend.name not in used:
            yield ConfigProblem(("backends", index), f"no route leads to {backend.name!r}, so it is not used")


def _pipeline(config: Config) -> Iterator[ConfigProblem]:
    seen: set[str] = set()
    for index, name in enumerate(config.pipeline or ()):
        if name in seen:
            yield ConfigProblem(("pipeline", index), f"{name!r} is in the pipeline twice")
        seen.add(name)


def assign_names(config: Config, root: Node) -> Config:
    """Give a unique name to every route and a name to every `use` entry that has none in the file.

    The name of a route is its path_prefix, followed by its other conditions in brackets if several routes have that prefix. The
    name of a `use` entry is the last part of its `app`.
    """
    node = root.get("routes")
    own = ["name" in entry.items() for entry in node.entries()] if node is not None else []
    taken = {route.name for route, has_name in zip(config.routes, own, strict=False) if has_name}
    prefixes = [route.path_prefix for route, has_name in zip(config.routes, own, strict=False) if not has_name]
    routes = []
    for route, has_name in zip(config.routes, own, strict=False):
        if not has_name:
            alone = prefixes.count(route.path_prefix) == 1 and route.name not in taken
            name = unnumbered = route.name if alone else f"{route.name}{_qualified(route)}"
            number = 1
            while name in taken:
                number += 1
                name = f"{unnumbered} #{number}"
            taken.add(name)
            route = changed(route, name=name)
        routes.append(route)
    use = [entry.model_copy(update={"name": entry.name or entry.default_name}) for entry in config.use]
    return config.model_copy(update={"routes": tuple(routes), "use": tuple(use)})


def _qualified(route: Route) -> str:
    parts = [f"host={','.join(route.hosts)}"] * bool(route.hosts) + [f"method={','.join(route.methods)}"] * bool(route.methods)
    parts += [name if is_secret(name) else f"{name}={value}" for name, value in sorted(route.headers.items())]
    return f" [{' '.join(parts)}]" if parts else ""
