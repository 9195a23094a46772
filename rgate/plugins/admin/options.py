"""AdminOptions: the options of `plugins: {admin: …}` in config.yml."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from rgate import IPAllowlist

__all__ = ["AdminOptions"]

_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,252})")
_ADDRESS = re.compile(r"unix:(?P<path>/[!-~]{1,90})|(?P<host>\[[0-9A-Fa-f:.]+\]|[^\[\]:/\s]+):(?P<port>[0-9]{1,5})")


class AdminOptions(BaseModel):
    """The options of `plugins: {admin: …}`: where the admin pages are served, and to which clients.

    address        where the pages, `/stats` and all other local routes are served. Default None: at a unix socket in a runtime
                   directory, /run/rgate/8080.sock for the gateway on port 8080, where the commands find it.
                   "unix:/run/rgate/admin.sock": at this one. "127.0.0.1:9901" or "[::1]:9901": at a port of their own.
                   False: only on the gateway's port, for the clients that `allow` names
    mode           of the unix socket, in octal: "600", the default, is for this user only, "660" for its group too
    allow          networks whose clients get an answer at a port: that of `address`, or else the gateway's. Default None:
                   every client at the port of `address`, no client on the gateway's
    hosts          host names by which those clients may address this machine at a port, beside its addresses and localhost.
                   Default ()
    probes         which clients get `/-/live` and `/-/ready` on the gateway's port. "public", the default: every client, but
                   those that are not allowed get yes or no only. "allowed": those that `allow` names
    stale_seconds  how old the list of a discovery source may be before the gateway is not ready. Default 300, 1 to 86,400;
                   None: any age
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    address: str | Literal[False] | None = None
    mode: Annotated[str, Field(pattern="^0?[0-7]{3}$")] = "600"
    allow: tuple[str, ...] | None = None
    hosts: tuple[str, ...] = ()
    probes: Literal["allowed", "public"] = "public"
    stale_seconds: Annotated[float, Field(ge=1, le=86_400)] | None = 300

    @field_validator("address", mode="before")
    @classmethod
    def _is_an_address(cls, address: Any) -> Any:
        if address is None or address is False:
            return address
        found = _ADDRESS.fullmatch(address) if isinstance(address, str) else None
        if found is None or int(found["port"] or 0) > 65_535:
            like = (
                "127.0.0.1:9901 or [::1]:9901, or the path of a unix socket like unix:/run/rgate/admin.sock; false turns it off"
            )
            raise ValueError(f"{address!r} is not an address with a port; write one like {like}")
        return address

    @field_validator("allow")
    @classmethod
    def _are_networks(cls, allow: tuple[str, ...] | None) -> tuple[str, ...] | None:
        IPAllowlist(allow or ())
        return allow

    @field_validator("hosts")
    @classmethod
    def _are_names(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        for host in hosts:
            if _HOST.fullmatch(host) is None:
                raise ValueError(f"{host!r} is not a host name; write the name alone, like gateway.internal")
        return hosts

    @model_validator(mode="after")
    def _go_together(self) -> AdminOptions:
        if not self.is_unix and "mode" in self.model_fields_set:
            raise ValueError("mode has no effect without a unix socket")
        return self

    @property
    def is_unix(self) -> bool:
        """Whether the pages are served at a unix socket."""
        return self.address is None or (self.address is not False and self.address.startswith("unix:"))

    @property
    def allow_at_port(self) -> tuple[str, ...]:
        """The networks whose clients get all pages on the gateway's port."""
        return (self.allow or ()) if self.is_unix or self.address is False else ()

    @property
    def listen(self) -> tuple[str, int] | None:
        """Host and port of `address`; None for the default and for False. A unix socket is returned as a host with port 0."""
        if self.address is None or self.address is False:
            return None
        if self.is_unix:
            return self.address, 0
        host, _, port = self.address.rpartition(":")
        return host.strip("[]"), int(port)
