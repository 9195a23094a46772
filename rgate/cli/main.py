"""The command line: bare options serve, subcommands stand beside.

Exit codes: 0 for success, 1 when a gateway or database has no answer, 2 for a config, plugin, port or command line
that cannot be used (one clear line each on stderr), 130 after Ctrl-C.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import platform
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from .. import log
from ..config import Config, load
from ..errors import ConfigError, ConfigProblem, PluginError, RgateError
from ..http1.grammar import unbracket_host
from ..plugin.registry import Registry
from ..process.runner import counted, serve
from ..runtime.config_file import ConfigFile
from ..runtime.gateway import Gateway, build
from ..serving.listeners import is_here
from ..version import VERSION
from . import demo, healthcheck
from . import drain as draining
from . import find_gateway as finding
from . import reload as reloading
from . import stats as statistics
from .console import Console
from .http_client import GatewayUnreachable

__all__ = ["main"]

_log = logging.getLogger("rgate.cli")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line (default: the process's) and return its exit code. A user's mistake is told, never raised."""
    try:
        return command.main(arguments, standalone_mode=False) or 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except GatewayUnreachable as error:
        _complain(str(error))
        return 1
    except RgateError as error:
        _complain(str(error))
        return 2
    except (click.Abort, KeyboardInterrupt):
        return 130
    except BrokenPipeError:  # rgate plugins | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    finally:
        log.end()


def _complain(text: str) -> None:
    for line in text.splitlines():
        click.echo(line, err=True)


class _Commands(click.Group):
    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if self.get_command(ctx, args[0]) is None and os.path.isfile(args[0]):
            ctx.fail(f"To serve {args[0]}: rgate --config {args[0]}. To check it: rgate check {args[0]}.")
        return super().resolve_command(ctx, args)


def _without_brackets(ctx: click.Context, parameter: click.Parameter, host: str | None) -> str | None:
    return host and unbracket_host(host)


@click.group(
    cls=_Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "-c", "--config", "path", metavar="FILE", default="config.yml", show_default=True, help="Routes, backends and options."
)
@click.option(
    "--host",
    metavar="ADDRESS",
    callback=_without_brackets,
    help="Where to listen; 0.0.0.0 is everywhere.  [default: the config's, else 127.0.0.1]",
)
@click.option("-p", "--port", type=click.IntRange(0, 65_535), help="0 takes a free one.  [default: the config's, else 8080]")
@click.option(
    "--access-log", type=click.Choice(["text", "json"]), is_flag=False, flag_value="text", help="One line a request on stdout."
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    help="How much of its own doings rgate tells on stderr.  [default: the config's, else info]",
)
@click.option("--log-format", type=click.Choice(["text", "json"]), help="How.  [default: the config's, else text]")
@click.version_option(VERSION, message=f"rgate %(version)s (Python {platform.python_version()})")
@click.pass_context
def command(
    ctx: click.Context,
    path: str,
    host: str | None,
    port: int | None,
    access_log: str | None,
    log_level: str | None,
    log_format: str | None,
) -> int | None:
    """An HTTP gateway for services in Docker containers.

    Without a command it serves what config.yml says: requests go by their path to backends, which are containers picked by
    label or fixed addresses, through a chain of plugins. SIGTERM or Ctrl-C ends it once what is in flight is answered.

    \b
      rgate demo                             three small backends to try it with
      rgate --port 8080 --config config.yml  serve
      rgate --port 0 --access-log json       serve on a free port, log requests
      rgate check config.yml                 every problem, with its line
      rgate plugins --config config.yml      what is installed, and the chains
      rgate stats --by route --since 1h      how many requests, and how fast
      rgate healthcheck                      whether it is ready, by exit code
      rgate drain orders_1                   no new requests for one endpoint
      rgate reload                           take up a changed config.yml now

    The smallest config.yml:

    \b
      routes:
        - path_prefix: /api/orders
          backend: orders
      backends:
        - name: orders
          match_labels: [app_name=orders]
          # or without Docker: endpoints: ["http://127.0.0.1:9000"]
    """
    if ctx.invoked_subcommand is not None:
        given = [
            p.opts[-1]
            for p in ctx.command.params
            if ctx.get_parameter_source(p.name or "") is click.core.ParameterSource.COMMANDLINE
        ]
        if given:
            ctx.fail(f"{given[0]} is for serving; the options of {ctx.invoked_subcommand!r} come after it.")
        return None
    log.start(log_level or "info", log_format or "text")
    listen = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    own_log = {name: value for name, value in (("level", log_level), ("format", log_format)) if value is not None}
    source = ConfigFile(path, lambda config, registry: _overridden(config, registry, listen, own_log, access_log))
    try:
        gateway = source.compose()
        # What the access log writes to stdout may be read by a program, so nothing else goes there then.
        console = Console(sys.stderr if access_log_is_on(gateway.config) else sys.stdout)
        return serve(gateway, console, source=source)
    except RgateError as error:
        if log_format != "json":
            raise
        _log.error("%s", error)
        return 2


def _overridden(
    config: Config, registry: Registry, listen: dict[str, Any], own_log: dict[str, Any], access_log: str | None
) -> Config:
    plugins = config.plugins
    if access_log:
        section = registry.sections.get("access_log")
        if section is None:
            raise PluginError("--access-log: the plugin access_log is disabled in the config")
        said = plugins.get("access_log") or section.model()
        plugins = {**plugins, "access_log": said.model_copy(update={"requests": "all", "format": access_log})}
    server = config.server.model_copy(update=listen)
    return config.model_copy(update={"server": server, "log": config.log.model_copy(update=own_log), "plugins": plugins})


def access_log_is_on(config: Config) -> bool:
    """Whether the built-in access log writes to stdout."""
    return getattr(config.plugins.get("access_log"), "which", None) == "all"


@command.command()
@click.argument("path", metavar="[FILE]", default="config.yml")
@click.option("--json", "as_json", is_flag=True, help="The problems as JSON.")
def check(path: str, as_json: bool) -> int:
    """Tell every problem of a config, each with its line.

    FILE is config.yml unless given. Nothing is started and nothing is connected to. The exit code is 0 when rgate can serve the
    config and 2 when it cannot. What keeps nothing from running but is probably not meant is told too: backends that no route
    leads to, an address that is not this machine's, commands that it makes impossible.
    """
    registry = Registry()
    problems: tuple[ConfigProblem, ...] = ()
    notices: tuple[ConfigProblem, ...] = ()
    try:
        gateway = build(load(path, registry), registry)
        notices = (*gateway.config.notices, *_notices_here(gateway.config, path))
    except ConfigError as error:
        problems = error.problems
    except PluginError as error:
        problems = (ConfigProblem((), str(error), path),)
    if as_json:
        found = {"problems": _as_json(problems), "notices": _as_json(notices)}
        click.echo(json.dumps({"file": path, "ok": not problems, **found}, indent=2))
    elif problems:
        _complain("\n".join(map(str, problems)))
    else:
        for notice in notices:
            click.echo(str(notice))
        click.echo(f"{path}: OK ({counted(gateway)})")
    return 2 if problems else 0


def _as_json(problems: Sequence[ConfigProblem]) -> list[dict[str, Any]]:
    return [{"location": p.location, "path": list(p.path), "message": p.message} for p in problems]


def _notices_here(config: Config, path: str) -> Sequence[ConfigProblem]:
    """What may be meant for another machine, but would not do on this one; and the commands that would not work."""
    notices = [ConfigProblem((), sentence, path) for sentence in finding.impossible(config)]
    if not is_here(config.server.host):
        message = f"{config.server.host!r} is not an address of this machine"
        notices.append(ConfigProblem(("server", "host"), message, path))
    return notices


@command.command()
@click.option(
    "-c", "--config", "path", metavar="FILE", help="Show what is active with this config, and the chain of every route."
)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def plugins(path: str | None, as_json: bool) -> None:
    """List the plugins that are installed.

    A plugin is active when it is installed (pip install …) and named under `plugins:` in the config; those that come with rgate
    are active unless `plugins: {disable: [NAME]}` says otherwise.
    """
    registry = Registry()
    gateway: Gateway | None = None
    if path is None:
        registry.activate()
    else:
        gateway = build(load(path, registry), registry)
    chains = gateway.chains if gateway else {}
    if as_json:
        records = [dataclasses.asdict(record) for record in registry.records()]
        answer: dict[str, Any] = {"plugins": records}
        if gateway:
            answer["chains"] = {name: [*chain, "forwarder"] for name, chain in chains.items()}
        click.echo(json.dumps(answer, indent=2))
    else:
        Console().plugins(registry.records(), chains)


_F = TypeVar("_F", bound=Callable[..., Any])


def _which_gateway(function: _F) -> _F:
    """The options that say which gateway a command asks."""
    url = click.option("--url", metavar="URL", help="A running gateway: http://127.0.0.1:8080, or unix:PATH.")
    path = click.option(
        "-c",
        "--config",
        "path",
        metavar="FILE",
        help="The gateway of this config, on this machine.  [default: config.yml, if there]",
    )
    return url(path(function))


def _find(url: str | None, path: str | None, *, at_port: bool, any_gateway: bool = True) -> str:
    """The URL of the gateway that is meant; a remark about it goes to stderr."""
    if url is not None and path is not None:
        raise click.UsageError("--url and --config both say which gateway; give one of them.")
    where = finding.find(url, path, lambda file: load(file, Registry()), at_port=at_port, any_gateway=any_gateway)
    if where.remark:
        _complain(where.remark)
    return where.url


@command.command()
@_which_gateway
@click.option("--database", metavar="FILE|URL", help="Read a database instead: a file, or a URL as in the config.")
@click.option("--by", help="Divide by route, backend, endpoint, status or plugin, or several with commas between.")
@click.option("--since", help="Leave out what is older: 30m, 1h, 7d, or a time (2026-01-31T12:00).")
@click.option("--json", "as_json", is_flag=True, help="As JSON, in the form of /stats.")
def stats(url: str | None, path: str | None, database: str | None, by: str | None, since: str | None, as_json: bool) -> None:
    """Show how many requests there were, and how long they took.

    A gateway is asked at its admin socket, where it is found by --config, or without anything if it is the only one; where there
    is none, at its port, which tells no addresses.

    \b
      rgate stats --by route,status --since 1h
      rgate stats --database rgate.db
    """
    if database:
        report = statistics.of_database(database, by, since)
    else:
        report = statistics.of_gateway(_find(url, path, at_port=True), by, since)
    if as_json:
        click.echo(json.dumps(report, indent=2))
    else:
        Console().stats(report)


@command.command("healthcheck")
@_which_gateway
def healthcheck_(url: str | None, path: str | None) -> int:
    """Tell whether a gateway is ready for requests.

    It asks at /-/ready, or at the path of the URL, and says one line: at the admin socket of the gateway, or with --url at this
    very URL. The exit code is 0 when it is ready, and 1 when it is not or nothing answers. Certificates are not verified.
    """
    if url is None and (path is not None or os.path.isfile(finding.DEFAULT_CONFIG)):
        return healthcheck.run(_find(None, path, at_port=True, any_gateway=False))
    if path is not None:
        _find(url, path, at_port=True)  # which says that one is too many
    return healthcheck.run(url)


@command.command()
@click.argument("endpoint", required=False)
@click.option("--undo", is_flag=True, help="Give it new requests again.")
@_which_gateway
def drain(endpoint: str | None, undo: bool, url: str | None, path: str | None) -> int:
    """Give an endpoint no new requests; those that it has go on.

    ENDPOINT is its name (a container's), its id or the beginning of it, or its address. It stays drained until that is undone or
    it is gone. Without ENDPOINT those that are drained are told. The gateway is asked at its admin socket, where it is found by
    --config, or without anything if it is the only one.

    \b
      rgate drain orders_1
      rgate drain 127.0.0.1:32768 --undo
    """
    if endpoint is None:
        if undo:
            raise click.UsageError("--undo needs the endpoint that is to have requests again.")
        lines, told = draining.drained(_find(url, path, at_port=False)) or ["nothing is drained"], True
    else:
        lines, told = draining.drain(_find(url, path, at_port=False), endpoint, undo)
    for line in lines:
        click.echo(line)
    if not told:
        _complain("not every worker process has answered in time; say it again to be sure")
    return 0 if told else 1


@command.command("reload")
@_which_gateway
def reload_(url: str | None, path: str | None) -> None:
    """Have a gateway read its config again, and wait until it is in force.

    The exit code is 0 when it is, in every worker process; 2 when it is refused, with every problem, and then the config before
    stays in force; 1 when no gateway answers. SIGHUP does the same without an answer. The gateway is asked at its admin socket,
    where it is found by --config, or without anything if it is the only one.
    """
    for line in reloading.reload(_find(url, path, at_port=False)):
        click.echo(line)


@command.command("demo")
@click.option(
    "--host", metavar="ADDRESS", default="127.0.0.1", callback=_without_brackets, show_default=True, help="Where to listen."
)
@click.option("-p", "--port", type=click.IntRange(0, 65_535), default=8080, show_default=True, help="0 takes a free one.")
@click.option("--docker", is_flag=True, help="The backends as containers, by docker compose.")
def demo_(host: str, port: int, docker: bool) -> None:
    """Serve three small backends, and tell what to try.

    They are one payment and two orders services, by default as processes of this machine, and they end with the demo. It needs
    a checkout of rgate, for its config.yml and backends/.
    """
    log.start()
    update = {"host": host, "port": port}
    with demo.backends(docker) as (registry, hints, at_once):
        source = ConfigFile(
            str(demo.CONFIG),
            lambda config, _: config.model_copy(update={"server": config.server.model_copy(update=update)}),
            registry,
        )
        serve(source.compose(), Console(), hints, at_once, source)
