"""The command line: without a command rgate serves; the commands ask a running gateway or check a config.

Exit codes: 0 for success; 1 if a gateway or database does not answer; 2 for a config, plugin, port or command line that cannot
be used (one line for each problem on stderr); 130 after Ctrl-C.
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
from ..process.runner import serve, summary
from ..runtime.gateway import Gateway, build
from ..runtime.reload import ConfigFile
from ..serving.listeners import can_bind
from ..version import VERSION
from . import demo as demo_command
from . import drain as drain_command
from . import healthcheck as healthcheck_command
from . import reload as reload_command
from . import stats as stats_command
from .console import Console
from .find_gateway import DEFAULT_CONFIG, find, impossible_commands
from .http_client import GatewayUnreachable

__all__ = ["main"]

_log = logging.getLogger("rgate.cli")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line (default: that of the process) and return its exit code. A user's mistake is printed, never raised."""
    try:
        return command.main(arguments, standalone_mode=False) or 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except GatewayUnreachable as error:
        _print_error(str(error))
        return 1
    except RgateError as error:
        _print_error(str(error))
        return 2
    except (click.Abort, KeyboardInterrupt):
        return 130
    except BrokenPipeError:  # rgate plugins | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    finally:
        log.flush()


def _print_error(text: str) -> None:
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
@click.option("-c", "--config", "path", metavar="FILE", default="config.yml", show_default=True, help="The config file.")
@click.option(
    "--host",
    metavar="ADDRESS",
    callback=_without_brackets,
    help="Address to listen on; 0.0.0.0 for all.  [default: the config's, else 127.0.0.1]",
)
@click.option(
    "-p",
    "--port",
    type=click.IntRange(0, 65_535),
    help="Port to listen on; 0 for a free one.  [default: the config's, else 8080]",
)
@click.option(
    "--access-log",
    type=click.Choice(["text", "json"]),
    is_flag=False,
    flag_value="text",
    help="Print one line per request on stdout.",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    help="How much rgate logs on stderr.  [default: the config's, else info]",
)
@click.option("--log-format", type=click.Choice(["text", "json"]), help="Form of the log.  [default: the config's, else text]")
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

    Without a command rgate serves as config.yml says: it routes requests by path, through a chain of plugins, to backends, which
    are containers selected by label or fixed addresses. SIGTERM or Ctrl-C stops it after the requests in flight are answered.

    \b
      rgate demo                             serve three small backends, to try it
      rgate --port 8080 --config config.yml  serve
      rgate --port 0 --access-log json       serve on a free port, log requests
      rgate check config.yml                 list every problem, with its line
      rgate plugins --config config.yml      list plugins, and the chains
      rgate stats --by route --since 1h      count requests, and how fast
      rgate healthcheck                      exit code 0 if it is ready
      rgate drain orders_1                   send an endpoint no new requests
      rgate reload                           apply a changed config.yml now

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
            ctx.fail(f"{given[0]} is an option of serving; the options of {ctx.invoked_subcommand!r} come after it.")
        return None
    log.start(log_level or "info", log_format or "text")
    listen = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    log_options = {name: value for name, value in (("level", log_level), ("format", log_format)) if value is not None}
    source = ConfigFile(path, lambda config, registry: _override(config, registry, listen, log_options, access_log))
    try:
        gateway = source.build_gateway()
        # A program may read the access log on stdout, so nothing else is printed there then.
        console = Console(sys.stderr if access_log_is_on(gateway.config) else sys.stdout)
        return serve(gateway, console, source=source)
    except RgateError as error:
        if log_format != "json":
            raise
        _log.error("%s", error)
        return 2


def _override(
    config: Config, registry: Registry, listen: dict[str, Any], log_options: dict[str, Any], access_log: str | None
) -> Config:
    plugins = config.plugins
    if access_log:
        section = registry.sections.get("access_log")
        if section is None:
            raise PluginError("--access-log: the plugin access_log is disabled in the config")
        options = plugins.get("access_log") or section.model()
        plugins = {**plugins, "access_log": options.model_copy(update={"requests": "all", "format": access_log})}
    server = config.server.model_copy(update=listen)
    return config.model_copy(update={"server": server, "log": config.log.model_copy(update=log_options), "plugins": plugins})


def access_log_is_on(config: Config) -> bool:
    """Whether the built-in access log writes to stdout."""
    return getattr(config.plugins.get("access_log"), "which", None) == "all"


@command.command()
@click.argument("path", metavar="[FILE]", default="config.yml")
@click.option("--json", "as_json", is_flag=True, help="Print the problems as JSON.")
def check(path: str, as_json: bool) -> int:
    """List every problem of a config, each with its line.

    The default for FILE is config.yml. Nothing is started or connected to. The exit code is 0 if rgate can serve the config and
    2 if it cannot. Notices about what is probably a mistake do not change it: backends that no route leads to, an address that
    is not this machine's, commands that cannot work with this config.
    """
    registry = Registry()
    problems: tuple[ConfigProblem, ...] = ()
    warnings: tuple[ConfigProblem, ...] = ()
    try:
        gateway = build(load(path, registry), registry)
        warnings = (*gateway.config.warnings, *_local_warnings(gateway.config, path))
    except ConfigError as error:
        problems = error.problems
    except PluginError as error:
        problems = (ConfigProblem((), str(error), path),)
    if as_json:
        found = {"problems": _as_json(problems), "warnings": _as_json(warnings)}
        click.echo(json.dumps({"file": path, "ok": not problems, **found}, indent=2))
    elif problems:
        _print_error("\n".join(map(str, problems)))
    else:
        for warning in warnings:
            click.echo(str(warning))
        click.echo(f"{path}: OK ({summary(gateway)})")
    return 2 if problems else 0


def _as_json(problems: Sequence[ConfigProblem]) -> list[dict[str, Any]]:
    return [{"location": p.location, "path": list(p.path), "message": p.message} for p in problems]


def _local_warnings(config: Config, path: str) -> Sequence[ConfigProblem]:
    """Warnings about what may be right for another machine but not for this one, and about commands that cannot work."""
    warnings = [ConfigProblem((), sentence, path) for sentence in impossible_commands(config)]
    if not can_bind(config.server.host):
        message = f"{config.server.host!r} is not an address of this machine"
        warnings.append(ConfigProblem(("server", "host"), message, path))
    return warnings


@command.command()
@click.option("-c", "--config", "path", metavar="FILE", help="Show what this config activates, and the chain of every route.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def plugins(path: str | None, as_json: bool) -> None:
    """List the plugins that are installed.

    A plugin is active if it is installed (pip install …) and named under `plugins:` in the config. Those that come with rgate
    are active unless they are named in `plugins: {disable: [NAME]}`.
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


def _gateway_options(function: _F) -> _F:
    """The options that name the gateway which a command asks."""
    url = click.option("--url", metavar="URL", help="Ask this gateway: http://127.0.0.1:8080, or unix:PATH.")
    path = click.option(
        "-c",
        "--config",
        "path",
        metavar="FILE",
        help="Ask the gateway on this machine with this config.  [default: config.yml, if there]",
    )
    return url(path(function))


def _find_gateway(url: str | None, path: str | None, *, at_port: bool, any_gateway: bool = True) -> str:
    """The URL of the gateway to ask. Prints the remark about it on stderr."""
    if url is not None and path is not None:
        raise click.UsageError("--url and --config both name a gateway; give only one of them.")
    found = find(url, path, lambda file: load(file, Registry()), at_port=at_port, any_gateway=any_gateway)
    if found.remark:
        _print_error(found.remark)
    return found.url


@command.command()
@_gateway_options
@click.option("--database", metavar="FILE|URL", help="Read a database instead: a file, or a URL as in the config.")
@click.option("--by", help="Group by route, backend, endpoint, status or plugin; separate several with commas.")
@click.option("--since", help="Only count requests since then: 30m, 1h, 7d, or a time (2026-01-31T12:00).")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, in the form of /stats.")
def stats(url: str | None, path: str | None, database: str | None, by: str | None, since: str | None, as_json: bool) -> None:
    """Show the number of requests, and how long they took.

    The gateway is asked at its admin socket, which is found by --config, or without options if there is only one gateway;
    otherwise at its port, which does not show addresses.

    \b
      rgate stats --by route,status --since 1h
      rgate stats --database rgate.db
    """
    if database:
        report = stats_command.report_from_database(database, by, since)
    else:
        report = stats_command.report_from_gateway(_find_gateway(url, path, at_port=True), by, since)
    if as_json:
        click.echo(json.dumps(report, indent=2))
    else:
        Console().stats(report)


@command.command("healthcheck")
@_gateway_options
def healthcheck(url: str | None, path: str | None) -> int:
    """Check whether a gateway is ready for requests.

    It asks for /-/ready, or for the path of the URL, at the admin socket of the gateway, or with --url at exactly that URL, and
    prints one line. The exit code is 0 if it is ready, and 1 if it is not or does not answer. Certificates are not verified.
    """
    if url is None and (path is not None or os.path.isfile(DEFAULT_CONFIG)):
        return healthcheck_command.run(_find_gateway(None, path, at_port=True, any_gateway=False))
    if path is not None:
        _find_gateway(url, path, at_port=True)  # raises, because only one may be given
    return healthcheck_command.run(url)


@command.command()
@click.argument("endpoint", required=False)
@click.option("--undo", is_flag=True, help="Send it new requests again.")
@_gateway_options
def drain(endpoint: str | None, undo: bool, url: str | None, path: str | None) -> int:
    """Send an endpoint no new requests; those in flight continue.

    ENDPOINT is its name (a container's), its id or the beginning of that, or its address. It stays drained until that is undone
    or the endpoint is gone. Without ENDPOINT the drained endpoints are listed. The gateway is asked at its admin socket, which
    is found by --config, or without options if there is only one gateway.

    \b
      rgate drain orders_1
      rgate drain 127.0.0.1:32768 --undo
    """
    if endpoint is None:
        if undo:
            raise click.UsageError("--undo needs the name of an endpoint.")
        lines, confirmed = drain_command.list_drained(_find_gateway(url, path, at_port=False)) or ["nothing is drained"], True
    else:
        lines, confirmed = drain_command.drain(_find_gateway(url, path, at_port=False), endpoint, undo)
    for line in lines:
        click.echo(line)
    if not confirmed:
        _print_error("not every worker process has answered in time; run the command again to be sure")
    return 0 if confirmed else 1


@command.command("reload")
@_gateway_options
def reload(url: str | None, path: str | None) -> None:
    """Make a gateway read its config again, and wait until the new config is active.

    The exit code is 0 once it is active in every worker process; 2 if it is refused, with every problem, and then the previous
    config stays active; 1 if no gateway answers. SIGHUP does the same without an answer. The gateway is asked at its admin
    socket, which is found by --config, or without options if there is only one gateway.
    """
    for line in reload_command.reload(_find_gateway(url, path, at_port=False)):
        click.echo(line)


@command.command("demo")
@click.option(
    "--host", metavar="ADDRESS", default="127.0.0.1", callback=_without_brackets, show_default=True, help="Address to listen on."
)
@click.option(
    "-p", "--port", type=click.IntRange(0, 65_535), default=8080, show_default=True, help="Port to listen on; 0 for a free one."
)
@click.option("--docker", is_flag=True, help="Run the backends as containers, with docker compose.")
def demo(host: str, port: int, docker: bool) -> None:
    """Serve three small backends, and print what to try.

    They are one payment and two orders services, by default processes on this machine, and stop with the demo. It needs a
    checkout of rgate, for its config.yml and backends/.
    """
    log.start()
    update = {"host": host, "port": port}
    with demo_command.backends(docker) as (registry, hints, kill_backends):
        source = ConfigFile(
            str(demo_command.CONFIG),
            lambda config, _: config.model_copy(update={"server": config.server.model_copy(update=update)}),
            registry,
        )
        serve(source.build_gateway(), Console(), hints, kill_backends, source)
