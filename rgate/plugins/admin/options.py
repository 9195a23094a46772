"""The options of the admin pages: `plugins: {admin: …}` in config.yml."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from rgate import AllowedClients

__all__ = ["LOOPBACK", "AdminOptions"]

_ADDRESS = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^\[\]:/\s]+):(?P<port>[0-9]{1,5})")
LOOPBACK = ("127.0.0.0/8", "::1")


class AdminOptions(BaseModel):
    """Where the admin pages are answered, and to whom.

    address        "127.0.0.1:9901" or "[::1]:9901": they are answered there, as are `/stats` and all other local routes; on the
                   port of the gateway only `/-/live` and `/-/ready` stay. Default None
    allow          networks whose machines get an answer; [] is nobody. Default None: loopback ("127.0.0.0/8", "::1"), or at an
                   address of their own whoever reaches it
    probes         "allowed": `/-/live` and `/-/ready` are like the others. "public": on the port of the gateway everybody gets
                   them, for load balancers; who is not allowed learns nothing but yes or no. Default "allowed"
    stale_seconds  how old the list of a discovery source may be before the gateway is not ready. Default 300, 1 to 86,400;
                   None: any age will do
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    address: str | None = None
    allow: tuple[str, ...] | None = None
    probes: Literal["allowed", "public"] = "allowed"
    stale_seconds: Annotated[float, Field(ge=1, le=86_400)] | None = 300

    @field_validator("address")
    @classmethod
    def _is_an_address(cls, address: str | None) -> str | None:
        found = None if address is None else _ADDRESS.fullmatch(address)
        if address is not None and (found is None or int(found["port"]) > 65_535):
            raise ValueError(f"{address!r} is no address with a port; write one like 127.0.0.1:9901 or [::1]:9901")
        return address

    @field_validator("allow")
    @classmethod
    def _are_networks(cls, allow: tuple[str, ...] | None) -> tuple[str, ...] | None:
        AllowedClients(allow or ())
        return allow

    @property
    def listen(self) -> tuple[str, int] | None:
        """Host and port of `address`."""
        if self.address is None:
            return None
        host, _, port = self.address.rpartition(":")
        return host.strip("[]"), int(port)
