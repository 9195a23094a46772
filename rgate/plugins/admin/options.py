"""The options of the admin pages: `plugins: {admin: …}` in config.yml."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from rgate import AllowedClients

__all__ = ["AdminOptions"]

LOOPBACK = ("127.0.0.0/8", "::1")


class AdminOptions(BaseModel):
    """Where the admin pages are answered, and to whom.

    allow          networks whose machines get an answer. Default ["127.0.0.0/8", "::1"]; [] is nobody
    probes         "allowed": `/-/live` and `/-/ready` are like the others. "public": everybody gets them, for load balancers;
                   who is not allowed learns nothing but yes or no. Default "allowed"
    stale_seconds  how old the list of a discovery source may be before the gateway is not ready. Default 300, 1 to 86,400;
                   None: any age will do
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    allow: tuple[str, ...] = LOOPBACK
    probes: Literal["allowed", "public"] = "allowed"
    stale_seconds: Annotated[float, Field(ge=1, le=86_400)] | None = 300

    @field_validator("allow")
    @classmethod
    def _are_networks(cls, allow: tuple[str, ...]) -> tuple[str, ...]:
        AllowedClients(allow)
        return allow
