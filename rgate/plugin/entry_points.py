"""The installed plugins: entry points of the group `rgate`, which are imported only if the config names them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points

from ..config.messages import did_you_mean, join_names
from ..errors import PluginError
from ..plugins import BUILTIN
from ..version import VERSION
from .hookspecs import NAMESPACE

__all__ = ["InstalledPlugins", "PluginRecord", "builtin_record"]


@dataclass(frozen=True, slots=True)
class PluginRecord:
    """One plugin. `hooks` is None if they are not known, because the plugin is not active and so has not been imported."""

    name: str
    distribution: str = ""
    version: str = ""
    builtin: bool = False
    active: bool = False
    hooks: tuple[str, ...] | None = None

    def __str__(self) -> str:
        return f"{self.name!r} ({self.distribution} {self.version})" if self.distribution else repr(self.name)


def builtin_record(name: str) -> PluginRecord:
    """The record of a built-in plugin."""
    return PluginRecord(name, "rgate", VERSION, builtin=True)


class InstalledPlugins:
    """A snapshot of the entry points, by plugin name. Reading them imports nothing."""

    def __init__(self) -> None:
        self._by_name: dict[str, list[EntryPoint]] = {}
        for point in sorted(entry_points(group=NAMESPACE), key=lambda point: (_record(point).distribution, point.name)):
            self._by_name.setdefault(point.name, []).append(point)

    def __iter__(self) -> Iterator[PluginRecord]:
        """All installed plugins, by distribution and name."""
        found = [_record(point) for points in self._by_name.values() for point in points]
        return iter(sorted(found, key=lambda record: (record.distribution, record.name)))

    def __contains__(self, name: str) -> bool:
        return name in self._by_name

    def sorted_names(self, names: Collection[str]) -> list[str]:
        """`names` by distribution and name, independent of the config's order. Names that are not installed come first."""
        return sorted(set(names), key=lambda name: (*(_record(p).distribution for p in self._by_name.get(name, ())[:1]), name))

    def load(self, name: str, active: Mapping[str, PluginRecord]) -> tuple[object, PluginRecord]:
        """Import the plugin called `name`. Raises PluginError if there is no such plugin or more than one, or if it fails."""
        points = self._by_name.get(name, [])
        owners = join_names(f"{record.distribution} {record.version}" for record in map(_record, points))
        if not points:
            raise PluginError(self._not_found(name))
        if name in active:
            raise PluginError(
                f"{name!r} is built in, and {owners} has another plugin of that name: to use that one, "
                f"write disable: [{name}]; to use the built-in, uninstall the other"
            )
        if len(points) > 1:
            raise PluginError(f"more than one distribution has a plugin named {name!r}: {owners}; uninstall all but one")
        point, record = points[0], _record(points[0])
        try:
            return point.load(), record
        except (Exception, SystemExit) as error:
            advice = f"repair or upgrade {record.distribution or 'it'}, or remove {name!r} from the config"
            cause = f"{type(error).__name__}: {error}"
            raise PluginError(f"plugin {record}: {point.value} cannot be imported: {cause}; {advice}") from error

    def _not_found(self, name: str) -> str:
        if name in BUILTIN:
            return f"{name!r} is disabled and no other plugin of that name is installed; remove it from disable"
        installed = join_names((f"{record.name} ({record.distribution} {record.version})" for record in self), "no others")
        hint = did_you_mean(name, {*BUILTIN, *self._by_name}) or "; install it with pip"
        return f"no plugin named {name!r} is installed{hint} (built in are {join_names(BUILTIN)}; installed are {installed})"


def _record(point: EntryPoint) -> PluginRecord:
    dist = point.dist
    return PluginRecord(point.name, dist.name, dist.version) if dist is not None else PluginRecord(point.name)
