"""The options of the admin pages: `plugins: {admin: …}` in config.yml."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from rgate import AllowedClients

__all__ = ["LOOPBACK", "AdminOptions"]

_ADDRESS = re.compile(r"unix:(?P<path>/[!-~]{1,90})|(?P<host>\[[0-9A-Fa-f:.]+\]|[^\[\]:/\s]+):(?P<port>[0-9]{1,5})")
LOOPBACK = ("127.0.0.0/8", "::1")


class AdminOptions(BaseModel):
    """Where the admin pages are answered, and to whom.

    address        "127.0.0.1:9901" or "[::1]:9901": they are answered there, as are `/stats` and all other local routes; on the
                   port of the gateway only `/-/live` and `/-/ready` stay. "unix:/run/rgate/admin.sock": at a unix socket,
                   for those whom its `mode` lets. Default None
    mode           of the unix socket, in octal: "600", the default, is for this user only, "660" for its group too
    allow          networks whose machines get an answer; [] is nobody. Default None: loopback ("127.0.0.0/8", "::1"), or at an
                   address of their own whoever reaches it
    probes         "allowed": `/-/live` and `/-/ready` are like the others. "public": on the port of the gateway everybody gets
                   them, for load balancers; who is not allowed learns nothing but yes or no. Default "allowed"
    stale_seconds  how old the list of a discovery source may be before the gateway is not ready. Default 300, 1 to 86,400;
                   None: any age will do
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    address: str | None = None
    mode: Annotated[str, Field(pattern="^0?[0-7]{3}$")] = "600"
    allow: tuple[str, ...] | None = None
    probes: Literal["allowed", "public"] = "allowed"
    stale_seconds: Annotated[float, Field(ge=1, le=86_400)] | None = 300

    @field_validator("address")
    @classmethod
    def _is_an_address(cls, address: str | None) -> str | None:
        found = None if address is None else _ADDRESS.fullmatch(address)
        if address is not None and (found is None or int(found["port"] or 0) > 65_535):
            like = "127.0.0.1:9901 or [::1]:9901, or the path of a unix socket like unix:/run/rgate/admin.sock"
            raise ValueError(f"{address!r} is no address with a port; write one like {like}")
        return address

    @field_validator("allow")
    @classmethod
    def _are_networks(cls, allow: tuple[str, ...] | None) -> tuple[str, ...] | None:
        AllowedClients(allow or ())
        return allow

    @model_validator(mode="after")
    def _go_together(self) -> AdminOptions:
        if self.is_unix and self.allow is not None:
            raise ValueError("allow has no effect at a unix socket, where nobody has an address; mode says who may connect")
        if not self.is_unix and "mode" in self.model_fields_set:
            raise ValueError("mode has no effect without an address that is a unix socket")
        return self

    @property
    def is_unix(self) -> bool:
        """Whether `address` is a unix socket."""
        return self.address is not None and self.address.startswith("unix:")

    @property
    def listen(self) -> tuple[str, int] | None:
        """Host and port of `address`; a unix socket is a host without a port."""
        if self.address is None:
            return None
        if self.is_unix:
            return self.address, 0
        host, _, port = self.address.rpartition(":")
        return host.strip("[]"), int(port)
