"""Field types that the config models share, each with messages for values that are not valid."""

from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import IPv6Address, ip_network
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer
from pydantic_core import PydanticKnownError

from ..http1.grammar import bracket_host, is_token, unbracket_host
from ..http1.target import parse_target

__all__ = [
    "CertificateHost",
    "Flag",
    "HostName",
    "Labels",
    "ListenHost",
    "MediaType",
    "Method",
    "Model",
    "Name",
    "Network",
    "PathPrefix",
    "RequestHeaders",
    "Seconds",
    "ServerName",
    "StrictFloat",
    "StrictInt",
    "one_or_more",
]

_FIELD_VALUE = re.compile(
    r"[!-~\x80-\xff](?:[ \t!-~\x80-\xff]*[!-~\x80-\xff])?"
)  # RFC 9110 §5.5, without what cannot reach a server
# Signs of regular expressions, globs and templates. "*" and "$" are valid in paths, but very rare.
_PATTERN = re.compile(r"^[\^~]|\.[*+]|\*|\(\?|\{[^}]*\}?|\[[^\]]*\]?|[\^|]|\$$")
_HOST_NAME = re.compile(r"[a-z0-9_](?:[a-z0-9_.-]*[a-z0-9_])?")
_MEDIA_TYPE = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+/[!#$%&'*+.^_`|~0-9A-Za-z-]+[ -~]*")


def _no_bool(kind: Literal["int_type", "float_type"]) -> BeforeValidator:
    """Python's bool is an int, so `port: yes` would be port 1."""

    def refuse(value: object) -> object:
        if isinstance(value, bool):
            raise PydanticKnownError(kind)
        return value

    return BeforeValidator(refuse)


def _flag(value: object) -> object:
    """true or false, or the same as text, because environment variables are text. (pydantic would accept "yes", "on" and 1.)"""
    if isinstance(value, bool):
        return value
    if value in ("true", "false"):
        return value == "true"
    raise PydanticKnownError("bool_type")


def _name(text: str) -> str:
    if not text or text != text.strip() or not text.isprintable() or len(text) > 200:
        raise ValueError("a name is 1 to 200 printable characters, without spaces at the ends")
    return text


def _path_prefix(text: str) -> str:
    if pattern := _PATTERN.search(text):
        found = f"is a prefix, not a pattern: {pattern[0]!r} would be taken literally"
        raise ValueError(f"{found}; write {_without_pattern(text)}, which also matches all paths below it")
    if not text.startswith("/"):
        raise ValueError(f"must begin with '/'; found {text!r}")
    for sign, meaning in (("?", "a query"), ("#", "a fragment")):
        if sign in text:
            raise ValueError(f"is a path and cannot have {meaning}; remove everything from {sign!r} on")
    try:
        canonical = parse_target("GET", text if text.isascii() else "").normalized_path
    except ValueError as error:
        why = str(error) if "path" in str(error) else "only visible ASCII is allowed in a path, anything else as %XX"
        raise ValueError(f"no request can have this path: {why}") from None
    if canonical != text:
        raise ValueError(f"must be in canonical form, {canonical!r}")
    return text.rstrip("/")


def _without_pattern(text: str) -> str:
    """The complete segments before the part that looks like a pattern."""
    path = text.lstrip("^~ ")
    pattern = _PATTERN.search(path)
    if pattern is not None:
        at_the_end = pattern[0] in (".*", "*", "$") and pattern.end() == len(path)
        path = path[: pattern.start() if at_the_end else path.rfind("/", 0, pattern.start()) + 1]
    return f"/{path.strip('/')}"


def one_or_more(value: object) -> object:
    """For a field that is a list but may be written as a single string."""
    return [value] if isinstance(value, str) else value


def _host(text: str) -> str:
    host = text.lower()
    if host.startswith("[") and host.endswith("]"):
        try:
            return f"[{IPv6Address(host[1:-1])}]"
        except ValueError:
            raise ValueError(f"{text!r} is not an IPv6 address") from None
    if not host.isascii():
        raise ValueError(f"{text!r} must be written in its xn-- form, as it is sent")
    if not _HOST_NAME.fullmatch(host):
        raise ValueError(f"{text!r} is not a host name; write the name alone, without scheme, port or wildcard")
    return host


def _method(text: str) -> str:
    if not is_token(text):
        raise ValueError(f"{text!r} is not an HTTP method")
    return text.upper()


def _headers(headers: Mapping[str, str]) -> Mapping[str, str]:
    seen: dict[str, str] = {}
    for name, value in headers.items():
        if not is_token(name):
            raise ValueError(f"{name!r} is not a header name")
        if "_" in name:
            raise ValueError(f"{name!r} never matches: headers whose name has an underscore are dropped")
        if not _FIELD_VALUE.fullmatch(value):
            raise ValueError(f"the value of {name!r} never matches: it is empty, or has a space at an end or a control character")
        if name.lower() in seen:
            raise ValueError(f"{seen[name.lower()]!r} and {name!r} are the same header")
        seen[name.lower()] = name
    return headers


def _label(value: object) -> object:
    """ "name=value" as a pair; a pair is one already."""
    if isinstance(value, tuple):
        return value
    if not isinstance(value, str):
        raise PydanticKnownError("string_type")
    name, equals, wanted = value.partition("=")
    if not equals or not name or re.search(r"\s", name):
        raise ValueError(f"{value!r} is not a label; write name=value, without spaces around the '='")
    return name, wanted


def _label_text(label: tuple[str, str]) -> str:
    return "=".join(label)


def _labels(labels: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    seen: dict[str, tuple[str, str]] = {}
    for label in labels:
        first = seen.setdefault(label[0], label)
        if first != label:
            raise ValueError(f"no container has both {_label_text(first)!r} and {_label_text(label)!r}")
    return labels


def _listen_host(text: str) -> str:
    if text == "*":
        raise ValueError("'*' is not an address; write 0.0.0.0 for all IPv4 addresses, or '::' for IPv6 as well")
    host = unbracket_host(text)
    if re.search(r"[\s/\[\]]", host) or (host.count(":") == 1 and not host.startswith(":")):
        raise ValueError(f"{text!r} is not an address to listen on; write one like 0.0.0.0 or ::1, and the port under 'port'")
    return host


def _certificate_host(text: str) -> str:
    """A host name as in TLS: not an address; a leading `*.` stands for one label."""
    host = _host(text.removeprefix("*."))
    if host.startswith("["):
        raise ValueError(f"{text!r} is an address; TLS clients name only hosts, so the first certificate is used for it")
    return f"*.{host}" if text.startswith("*.") else host


def _server_name(text: str) -> str:
    return _host(bracket_host(text)).strip("[]")


def _network(text: str) -> str:
    try:
        return str(ip_network(text))
    except ValueError:
        pass
    try:
        wider = ip_network(text, strict=False)
    except ValueError:
        raise ValueError(f"{text!r} is not a network; write one like 10.0.0.0/8, or an address like 192.0.2.1") from None
    raise ValueError(f"{text!r} has bits set beyond its prefix length; write {wider}, or a longer prefix")


def _media_type(text: str) -> str:
    if not _MEDIA_TYPE.fullmatch(text):
        raise ValueError(f"{text!r} is not a media type; write one like 'text/html; charset=utf-8'")
    return text


Flag = Annotated[bool, BeforeValidator(_flag)]
StrictInt = Annotated[int, _no_bool("int_type")]
StrictFloat = Annotated[float, _no_bool("float_type")]
Seconds = Annotated[float, _no_bool("float_type"), Field(gt=0, le=86_400)]
Name = Annotated[str, AfterValidator(_name)]
ListenHost = Annotated[str, AfterValidator(_listen_host)]
HostName = Annotated[str, AfterValidator(_host)]
PathPrefix = Annotated[str, AfterValidator(_path_prefix), PlainSerializer(lambda prefix: prefix or "/")]
Method = Annotated[str, AfterValidator(_method)]
RequestHeaders = Annotated[Mapping[str, str], AfterValidator(_headers)]
Label = Annotated[tuple[str, str], BeforeValidator(_label), PlainSerializer(_label_text)]
Labels = Annotated[tuple[Label, ...], AfterValidator(_labels)]
CertificateHost = Annotated[str, AfterValidator(_certificate_host)]
ServerName = Annotated[str, AfterValidator(_server_name)]
Network = Annotated[str, AfterValidator(_network)]
MediaType = Annotated[str, AfterValidator(_media_type)]


class Model(BaseModel):
    """Base of the config models: immutable, with unknown keys as errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=False)
