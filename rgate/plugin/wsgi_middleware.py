"""`use:` in the config: makes any WSGI middleware part of the chain.

    use:
      - app: "werkzeug.middleware.proxy_fix:ProxyFix"      # module:callable, called as callable(app, **options)
        options: {x_for: 1}
      - app: "egg:SomeDist#main"                           # a PasteDeploy filter; PasteDeploy itself is not needed
        before: routing

An entry has the last part of its `app` as its name, unless it has a `name`. A route turns it off with `plugins: {NAME: false}`.
"""

from __future__ import annotations

import copy
import importlib
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, distribution
from typing import TYPE_CHECKING, Any, TypeAlias

from ..chain.middleware import Middleware
from ..chain.pipeline import STANDARD_ORDER
from ..config.messages import did_you_mean, join_names
from ..config.models import WSGIMiddlewareConfig
from ..errors import ConfigProblem, PluginError

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

__all__ = ["check_entries", "load_middleware"]

Factory: TypeAlias = "Callable[..., WSGIApplication]"

PASTE_APP_FACTORY = "paste.filter_app_factory"  # factory(app, global_conf, **local_conf) → app
PASTE_FACTORY = "paste.filter_factory"  # factory(global_conf, **local_conf) → a callable that takes the app


def load_middleware(entry: WSGIMiddlewareConfig) -> Middleware:
    """The middleware of a `use` entry. Raises PluginError if it cannot be imported."""
    factory = _resolve(entry)

    def wrap(app: WSGIApplication, _options: object) -> WSGIApplication:
        return factory(app, **copy.deepcopy(entry.options))

    return Middleware(entry.name or entry.default_name, wrap, entry.before, entry.after)


def check_entries(entries: Sequence[WSGIMiddlewareConfig], taken: Collection[str]) -> Iterator[ConfigProblem]:
    """Every problem of the `use` entries. `taken` are names that they cannot have."""
    seen: set[str] = set()
    for index, entry in enumerate(entries):
        name = entry.name or entry.default_name
        if name in seen or name in taken or name in STANDARD_ORDER:
            owner = "another entry" if name in seen else "a plugin"
            yield ConfigProblem(("use", index), f"{owner} is called {name!r}; give this one another `name`")
        seen.add(name)
        if entry.before is not None and entry.after is not None:
            yield ConfigProblem(("use", index, "after"), "cannot be combined with `before`")
        for side in ("before", "after"):
            anchor = getattr(entry, side)
            if anchor is not None and anchor not in STANDARD_ORDER:
                hint = did_you_mean(anchor, STANDARD_ORDER) or f"; the names are {', '.join(STANDARD_ORDER)}"
                yield ConfigProblem(("use", index, side), f"no built-in middleware is named {anchor!r}{hint}")
        try:
            factory = _resolve(entry)
        except PluginError as error:
            yield ConfigProblem(("use", index, "app"), str(error))
        else:
            yield from _check_options(index, entry, factory)


def _check_options(index: int, entry: WSGIMiddlewareConfig, factory: Factory) -> Iterator[ConfigProblem]:
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):  # some callables written in C have no signature
        return
    try:
        signature.bind(None, **entry.options)
    except TypeError as error:
        names = [p.name for p in signature.parameters.values() if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
        yield ConfigProblem(("use", index, "options"), f"{entry.app} takes the options {join_names(names[1:])}: {error}")


def _resolve(entry: WSGIMiddlewareConfig) -> Factory:
    scheme, _, rest = entry.app.partition(":")
    if scheme == "egg":
        return _paste(*rest.partition("#")[::2])
    if not scheme or not rest:
        raise PluginError(f"{entry.app!r} is neither module:callable nor egg:Distribution#name")
    try:
        found: Any = importlib.import_module(scheme)
        for attribute in rest.split("."):
            found = getattr(found, attribute)
    except (Exception, SystemExit) as error:
        raise PluginError(f"{entry.app!r} cannot be imported: {type(error).__name__}: {error}") from error
    if not callable(found):
        raise PluginError(f"{entry.app!r} is not callable, it is {type(found).__name__}")
    factory: Factory = found
    return factory


def _paste(dist: str, name: str) -> Factory:
    try:
        entry_points = distribution(dist).entry_points
    except (PackageNotFoundError, ValueError):
        raise PluginError(f"no distribution named {dist!r} is installed") from None
    filters = [point for point in entry_points if point.group in (PASTE_APP_FACTORY, PASTE_FACTORY)]
    for point in filters:
        if point.name == (name or "main"):
            try:
                factory = point.load()
            except (Exception, SystemExit) as error:
                raise PluginError(f"{point.value!r} of {dist} cannot be imported: {type(error).__name__}: {error}") from error
            return _filter_app(factory) if point.group == PASTE_APP_FACTORY else _filter(factory)
    raise PluginError(f"{dist} has no PasteDeploy filter named {name or 'main'!r}; it has {join_names(p.name for p in filters)}")


def _filter_app(factory: Callable[..., WSGIApplication]) -> Factory:
    def make(app: WSGIApplication, **options: Any) -> WSGIApplication:
        return factory(app, _global_conf(), **options)

    return make


def _filter(factory: Callable[..., Callable[[WSGIApplication], WSGIApplication]]) -> Factory:
    def make(app: WSGIApplication, **options: Any) -> WSGIApplication:
        return factory(_global_conf(), **options)(app)

    return make


def _global_conf() -> Mapping[str, str]:
    return {}
