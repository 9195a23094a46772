"""Finds the gateway that a command is for: its admin socket, or the address in its config."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ..errors import ConfigError
from ..http1.client_address import IPAllowlist, TrustedProxies
from ..http1.grammar import bracket_host
from ..serving.runtime_dir import admin_sockets, socket_name, socket_paths
from .http_client import DEFAULT_URL, GatewayUnreachable, parse_url

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..config import Config
    from ..serving.runtime_dir import AdminSocket

__all__ = ["DEFAULT_CONFIG", "Found", "find", "impossible_commands"]

DEFAULT_CONFIG: Final = "config.yml"
_LOOPBACK: Final = "127.0.0.1"
_LOOPBACK_OF: Final = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}


class Found(NamedTuple):
    """The URL of a gateway (unix:PATH for a unix socket), and a remark for the person at the terminal."""

    url: str
    remark: str = ""


def find(url: str | None, path: str | None, load: Callable[[str], Config], *, at_port: bool, any_gateway: bool = True) -> Found:
    """Find the gateway: by its `url`, else by its config at `path`, else by config.yml in the working directory, else the only
    gateway on this machine that has an admin socket.

    A URL of this machine without a path means the admin socket of the gateway at that port, if it has one. `load` reads a
    config. `at_port` is whether the gateway's port answers the command too. `any_gateway` is whether the only gateway may be
    used even if config.yml describes another one.

    Raises GatewayUnreachable if there is no gateway, if it could be one of several, or if its socket belongs to another user;
    ConfigError for the config at `path`.
    """
    if url is not None:
        return Found(_socket_for(url) or url)
    if path is not None:
        return _find_by_config(load(path), path, at_port)
    remark, port_url = "", DEFAULT_URL
    if os.path.isfile(DEFAULT_CONFIG):
        try:
            config = load(DEFAULT_CONFIG)
        except ConfigError:
            remark = f"{DEFAULT_CONFIG} cannot be used"
        else:
            if _sockets_of(config) or _admin_address(config) is not None or not any_gateway:
                return _find_by_config(config, DEFAULT_CONFIG, at_port)
            port_url = _port_url(config)
            remark = f"no gateway has an admin socket for port {config.server.port}, which {DEFAULT_CONFIG} says"
    sockets = admin_sockets()
    accessible = [each for each in sockets if each.accessible]
    if len(accessible) > 1:
        several = ", ".join(f"unix:{each.path}" for each in accessible)
        raise GatewayUnreachable(f"several gateways run here: {several}; name one with --url, or its config with --config")
    if accessible:
        socket_url = f"unix:{accessible[0].path}"
        return Found(socket_url, f"{remark}; asking at {socket_url}" if remark else "")
    if sockets and not at_port:
        raise _no_permission(sockets[0])
    reason = str(_no_permission(sockets[0])) if sockets else f"no admin socket in {_runtime_directories()}"
    return Found(port_url, f"{remark or reason}; asking at {port_url}")


def impossible_commands(config: Config) -> Iterator[str]:
    """A sentence for each command that cannot work on the gateway's own machine with this config."""
    server, tls = config.server, config.server.tls
    port = ""  # why the gateway's port does not answer commands
    if tls is not None and tls.client_certificates is not None and tls.client_certificates.require:
        port = "the port asks for client certificates"
    elif server.proxy_protocol and (not server.trusted_proxies or _LOOPBACK in TrustedProxies(server.trusted_proxies)):
        port = "the port requires a PROXY header"
    address, allow = _admin_address(config), getattr(config.plugins.get("admin"), "allow", None)
    loopback_allowed = allow is not None and _LOOPBACK in TrustedProxies(allow)
    if "admin" in config.disabled:
        yield "rgate reload, drain and healthcheck cannot ask this gateway: the plugin admin is disabled"
    elif address is False and (port or not loopback_allowed):
        reason = port or f"plugins.admin.allow does not name {_LOOPBACK}"
        yield f"rgate reload and drain cannot ask this gateway: plugins.admin.address is false, and {reason}"
        if port:
            yield f"rgate healthcheck cannot ask this gateway: plugins.admin.address is false, and {port}"
    elif isinstance(address, str) and not address.startswith("unix:") and allow is not None and not loopback_allowed:
        yield f"rgate reload, drain, stats and healthcheck cannot ask at {address}: plugins.admin.allow does not name {_LOOPBACK}"
    if "stats" in config.disabled:
        yield "rgate stats has nothing to show: the plugin stats is disabled"
    elif address is False and port:
        yield f"rgate stats cannot ask this gateway: there is no admin socket, and {port}"


def _runtime_directories() -> str:
    return ", ".join(os.path.dirname(path) for path in socket_paths("", 0))


def _find_by_config(config: Config, path: str, at_port: bool) -> Found:
    address = _admin_address(config)
    if isinstance(address, str):
        return Found(address if address.startswith("unix:") else f"http://{_with_loopback(address)}")
    sockets = _sockets_of(config) if address is None else []
    accessible = [each for each in sockets if each.accessible]
    if accessible:
        exact = socket_name(config.server.host, config.server.port)
        best = next((each for each in accessible if os.path.basename(each.path) == exact), accessible[0])
        return Found(f"unix:{best.path}")
    if sockets and not at_port:
        raise _no_permission(sockets[0])
    return Found(_port_url(config))


def _admin_address(config: Config) -> Any:
    """plugins.admin.address: a string, None for the admin socket in a runtime directory, False for none (or no plugin)."""
    return False if "admin" in config.disabled else getattr(config.plugins.get("admin"), "address", None)


def _sockets_of(config: Config) -> list[AdminSocket]:
    return admin_sockets(port=config.server.port)


def _socket_for(url: str) -> str:
    """The admin socket of the gateway at a URL of this machine; "" for any other URL, or if it has no admin socket."""
    try:
        address = parse_url(url)
    except ValueError:
        return ""
    if address.path or address.socket_path:
        return ""
    host = address.host.strip("[]")
    is_loopback = host == "localhost" or host in TrustedProxies(IPAllowlist.LOOPBACK)
    for each in admin_sockets(port=address.port):
        if each.accessible and (each.host.strip("[]") == host or (is_loopback and not each.host)):
            return f"unix:{each.path}"
    return ""


def _port_url(config: Config) -> str:
    server = config.server
    host = _LOOPBACK_OF.get(server.host, server.host)
    return f"{'https' if server.tls else 'http'}://{bracket_host(host)}:{server.port}"


def _with_loopback(address: str) -> str:
    return address.replace("0.0.0.0:", "127.0.0.1:").replace("[::]:", "[::1]:")


def _no_permission(socket: AdminSocket) -> GatewayUnreachable:
    return GatewayUnreachable(f"unix:{socket.path}: no permission; ask as root, or as the user that the gateway runs as")
