"""Which gateway a command asks, and where: at the admin socket that it finds, or at the address that the config says."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import urlsplit

from ..errors import ConfigError
from ..http1.client_address import IPAllowlist, TrustedProxies
from ..http1.grammar import bracket_host
from ..serving.runtime_dir import admin_sockets, socket_name, socket_paths
from .healthcheck import DEFAULT_URL
from .http_client import GatewayUnreachable

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..config import Config
    from ..serving.runtime_dir import AdminSocket

__all__ = ["DEFAULT_CONFIG", "Where", "find", "impossible"]

DEFAULT_CONFIG: Final = "config.yml"
_LOOPBACK: Final = "127.0.0.1"
_LOOPBACK_OF: Final = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}


class Where(NamedTuple):
    """The URL of a gateway, unix:PATH for a unix socket; and what whoever has typed the command should know of it."""

    url: str
    remark: str = ""


def find(url: str | None, path: str | None, load: Callable[[str], Config], *, at_port: bool, any_gateway: bool = True) -> Where:
    """Where the gateway is that is meant: by its `url`, else by its config at `path`, else by config.yml if that is there, else
    the only one that runs on this machine and has an admin socket.

    A URL of this machine without a path stands for the admin socket of the gateway at its port, if there is one. `load` reads a
    config. `at_port` says that what is asked for may be answered on the gateway's port as well, `any_gateway` that the only one
    will do although config.yml speaks of another. Raises GatewayUnreachable where none, or one of several, could be meant, and for a socket
    of another user; ConfigError for the config at `path`.
    """
    if url is not None:
        return Where(_socket_for(url) or url)
    if path is not None:
        return _of_config(load(path), path, at_port)
    remark, port_url = "", DEFAULT_URL
    if os.path.isfile(DEFAULT_CONFIG):
        try:
            config = load(DEFAULT_CONFIG)
        except ConfigError:
            remark = f"{DEFAULT_CONFIG} cannot be used"
        else:
            sockets = _named(config)
            if sockets or _address(config) is not None or not any_gateway:
                return _of_config(config, DEFAULT_CONFIG, at_port)
            port_url = _url_of(config)
            remark = f"no gateway has an admin socket for port {config.server.port}, which {DEFAULT_CONFIG} says"
    sockets = admin_sockets()
    validate_app = [each for each in sockets if each.validate_app]
    if len(validate_app) > 1:
        several = ", ".join(f"unix:{each.path}" for each in validate_app)
        raise GatewayUnreachable(f"several gateways run here: {several}; name one with --url, or its config with --config")
    if validate_app:
        asked = f"unix:{validate_app[0].path}"
        return Where(asked, f"{remark}; asking at {asked}" if remark else "")
    if sockets and not at_port:
        raise _denied(sockets[0])
    why = str(_denied(sockets[0])) if sockets else f"no admin socket in {_directories()}"
    return Where(port_url, f"{remark or why}; asking at {port_url}")


def impossible(config: Config) -> Iterator[str]:
    """A sentence for each command that this config makes impossible on the gateway's own machine."""
    server, tls = config.server, config.server.tls
    port = ""
    if tls is not None and tls.client_certificates is not None and tls.client_certificates.require:
        port = "the port asks for client certificates"
    elif server.proxy_protocol and (not server.trusted_proxies or _LOOPBACK in TrustedProxies(server.trusted_proxies)):
        port = "the port wants a PROXY header"
    address, allow = _address(config), getattr(config.plugins.get("admin"), "allow", None)
    here = allow is not None and _LOOPBACK in TrustedProxies(allow)
    if "admin" in config.disabled:
        yield "rgate reload, drain and healthcheck cannot ask this gateway: the plugin admin is disabled"
    elif address is False and (port or not here):
        why = port or f"plugins.admin.allow does not name {_LOOPBACK}"
        yield f"rgate reload and drain cannot ask this gateway: plugins.admin.address is false, and {why}"
        if port:
            yield f"rgate healthcheck cannot ask this gateway: plugins.admin.address is false, and {port}"
    elif isinstance(address, str) and not address.startswith("unix:") and allow is not None and not here:
        yield f"rgate reload, drain, stats and healthcheck cannot ask at {address}: plugins.admin.allow does not name {_LOOPBACK}"
    if "stats" in config.disabled:
        yield "rgate stats has nothing to show: the plugin stats is disabled"
    elif address is False and port:
        yield f"rgate stats cannot ask this gateway: there is no admin socket, and {port}"


def _directories() -> str:
    return ", ".join(os.path.dirname(path) for path in socket_paths("", 0))


def _of_config(config: Config, path: str, at_port: bool) -> Where:
    address = _address(config)
    if isinstance(address, str):
        return Where(address if address.startswith("unix:") else f"http://{_reachable(address)}")
    sockets = _named(config) if address is None else []
    validate_app = [each for each in sockets if each.validate_app]
    if validate_app:
        exact = socket_name(config.server.host, config.server.port)
        best = next((each for each in validate_app if os.path.basename(each.path) == exact), validate_app[0])
        return Where(f"unix:{best.path}")
    if sockets and not at_port:
        raise _denied(sockets[0])
    return Where(_url_of(config))


def _address(config: Config) -> Any:
    """plugins.admin.address: a text, None for the admin socket in a runtime directory, False for none (or no plugin)."""
    return False if "admin" in config.disabled else getattr(config.plugins.get("admin"), "address", None)


def _named(config: Config) -> list[AdminSocket]:
    return admin_sockets(port=config.server.port)


def _socket_for(url: str) -> str:
    """The admin socket of the gateway at a URL of this machine; "" for any other URL and where there is none."""
    try:
        parts = urlsplit(url if "//" in url else f"//{url}", scheme="http")
        host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        return ""
    if parts.scheme not in ("http", "https") or parts.path.strip("/"):
        return ""
    here = host == "localhost" or host in TrustedProxies(IPAllowlist.LOOPBACK)
    for each in admin_sockets(port=port):
        if each.validate_app and (each.host.strip("[]") == host or (here and not each.host)):
            return f"unix:{each.path}"
    return ""


def _url_of(config: Config) -> str:
    server = config.server
    host = _LOOPBACK_OF.get(server.host, server.host)
    return f"{'https' if server.tls else 'http'}://{bracket_host(host)}:{server.port}"


def _reachable(address: str) -> str:
    return address.replace("0.0.0.0:", "127.0.0.1:").replace("[::]:", "[::1]:")


def _denied(socket: AdminSocket) -> GatewayUnreachable:
    return GatewayUnreachable(f"unix:{socket.path}: no permission; ask as root, or as the user that the gateway runs as")
