"""Containers to instances, from plain records: every rule of the address is a row here. No engine, no I/O."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rgate.plugins.docker.container import Container, Port
from rgate.plugins.docker.mapping import NetworkContext, to_instance

HOST = NetworkContext()
INSIDE = NetworkContext(networks=frozenset(["back", "front"]))
REMOTE = NetworkContext(engine_host="docker.example")

EIGHTY = Port(80, "0.0.0.0", 32768)
MANY = tuple(Port(number, "0.0.0.0", 30_000 + number) for number in range(1, 1_001))

# The ways out, as they stand at the end of a reason.
PUBLISH = "; publish it, or set rgate.network to a network that rgate can reach"
CONNECT = "; connect it, or set rgate.network"
PICK = "; set rgate.port to the one"


def container(
    *ports: Port,
    labels: Mapping[str, str] | None = None,
    networks: Mapping[str, str] | None = None,
    **more: Any,
) -> Container:
    return Container(
        "c" * 64, "web", labels or {}, networks={"bridge": "172.17.0.2"} if networks is None else networks, ports=ports, **more
    )


@pytest.mark.parametrize(
    ("found", "context", "address"),
    [
        # published ports
        (container(EIGHTY), HOST, "http://127.0.0.1:32768"),
        (container(Port(80, "::", 32769)), HOST, "http://[::1]:32769"),
        (container(Port(80, "::", 32769), EIGHTY), HOST, "http://127.0.0.1:32768"),
        (container(Port(80, "", 32768)), HOST, "http://127.0.0.1:32768"),
        (container(Port(80, "127.0.0.1", 8080)), HOST, "http://127.0.0.1:8080"),
        (container(Port(80, "10.1.2.3", 8080)), HOST, "http://10.1.2.3:8080"),
        (container(Port(80, "2001:db8::7", 8080)), HOST, "http://[2001:db8::7]:8080"),
        (container(Port(80, "::1", 8080)), HOST, "http://[::1]:8080"),
        (container(Port(80, "a-name", 8080)), HOST, "http://a-name:8080"),
        (container(Port(80, "0.0.0.0", 8002), Port(80, "0.0.0.0", 8001)), HOST, "http://127.0.0.1:8001"),
        (container(Port(80, "10.1.2.3", 8001), EIGHTY), HOST, "http://127.0.0.1:32768"),
        (container(EIGHTY, Port(443)), HOST, "http://127.0.0.1:32768"),
        # the port label
        (container(EIGHTY, Port(81, "0.0.0.0", 32770), labels={"rgate.port": "81"}), HOST, "http://127.0.0.1:32770"),
        (container(EIGHTY, labels={"rgate.port": " 80 "}), HOST, "http://127.0.0.1:32768"),
        (container(EIGHTY, labels={"rgate.port": ""}), HOST, "http://127.0.0.1:32768"),
        # the scheme label
        (container(EIGHTY, labels={"rgate.scheme": "https"}), HOST, "https://127.0.0.1:32768"),
        (container(EIGHTY, labels={"rgate.scheme": "HTTP"}), HOST, "http://127.0.0.1:32768"),
        (container(EIGHTY, labels={"rgate.scheme": ""}), HOST, "http://127.0.0.1:32768"),
        # the engine on another machine
        (container(EIGHTY), REMOTE, "http://docker.example:32768"),
        (container(Port(80, "::", 32769)), REMOTE, "http://docker.example:32769"),
        (container(Port(80, "10.1.2.3", 8080)), REMOTE, "http://10.1.2.3:8080"),
        (container(Port(80, "127.0.0.1", 8080), EIGHTY), REMOTE, "http://docker.example:32768"),
        (container(EIGHTY), NetworkContext(engine_host="2001:db8::1"), "http://[2001:db8::1]:32768"),
        # a network by name
        (container(Port(80), labels={"rgate.network": "bridge"}), HOST, "http://172.17.0.2:80"),
        (container(EIGHTY, labels={"rgate.network": "bridge"}), HOST, "http://172.17.0.2:80"),
        (container(EIGHTY), NetworkContext(network="bridge"), "http://172.17.0.2:80"),
        (
            container(EIGHTY, networks={"a": "10.0.0.1", "b": "10.0.0.2"}, labels={"rgate.network": "b"}),
            NetworkContext(network="a"),
            "http://10.0.0.2:80",
        ),
        (container(labels={"rgate.network": "bridge", "rgate.port": "9000"}), HOST, "http://172.17.0.2:9000"),
        (container(Port(80), networks={"six": "fd00::7"}, labels={"rgate.network": "six"}), HOST, "http://[fd00::7]:80"),
        # rgate in a container
        (container(EIGHTY, networks={"front": "10.2.0.2"}), INSIDE, "http://10.2.0.2:80"),
        (container(EIGHTY, networks={"front": "10.2.0.2", "back": "10.1.0.2"}), INSIDE, "http://10.1.0.2:80"),
        (container(EIGHTY, networks={"other": "10.3.0.2", "front": "10.2.0.2"}), INSIDE, "http://10.2.0.2:80"),
        (container(EIGHTY, networks={"other": "10.3.0.2"}, labels={"rgate.network": "other"}), INSIDE, "http://10.3.0.2:80"),
        # the host's network
        (container(network_mode="host", networks={}, labels={"rgate.port": "9000"}), HOST, "http://127.0.0.1:9000"),
        (container(network_mode="host", networks={}, labels={"rgate.port": "9000"}), REMOTE, "http://docker.example:9000"),
        (
            container(network_mode="host", networks={}, labels={"rgate.port": "9000"}),
            NetworkContext(network="front"),
            "http://127.0.0.1:9000",
        ),
        # a service's own container, as compose labels it
        (container(EIGHTY, labels={"com.docker.compose.oneoff": "False"}), HOST, "http://127.0.0.1:32768"),
        # health
        (container(EIGHTY, health="healthy"), HOST, "http://127.0.0.1:32768"),
    ],
)
def test_container_that_can_be_reached_has_its_address(found: Container, context: NetworkContext, address: str) -> None:
    instance = to_instance(found, context)
    assert instance.reason is None
    assert str(instance.address) == address
    assert (instance.id, instance.name, instance.labels, instance.backend) == (found.id, "web", found.labels, None)


@pytest.mark.parametrize(
    ("found", "context", "reason"),
    [
        (container(), HOST, "no published tcp port (none exposed either)" + PUBLISH),
        (container(Port(80)), HOST, "no published tcp port (exposed: 80)" + PUBLISH),
        (container(EIGHTY, Port(81, "0.0.0.0", 32770)), HOST, "several tcp ports: 80, 81" + PICK),
        (container(*MANY), HOST, "several tcp ports: 1, 2, 3, 4, 5, 6, 7, 8 and 992 more" + PICK),
        (container(EIGHTY, labels={"rgate.port": "81"}), HOST, "port 81 is not published" + PUBLISH),
        (container(EIGHTY, labels={"rgate.port": "http"}), HOST, "label rgate.port='http' is not a port from 1 to 65535"),
        (container(EIGHTY, labels={"rgate.port": "0"}), HOST, "label rgate.port='0' is not a port from 1 to 65535"),
        (container(EIGHTY, labels={"rgate.port": "65536"}), HOST, "label rgate.port='65536' is not a port from 1 to 65535"),
        (container(EIGHTY, labels={"rgate.port": "-80"}), HOST, "label rgate.port='-80' is not a port from 1 to 65535"),
        (container(EIGHTY, labels={"rgate.port": "٨٠"}), HOST, "label rgate.port='٨٠' is not a port from 1 to 65535"),
        (container(EIGHTY, labels={"rgate.port": "80/tcp"}), HOST, "label rgate.port='80/tcp' is not a port from 1 to 65535"),
        (
            container(EIGHTY, labels={"com.docker.compose.oneoff": "True"}),
            HOST,
            "a one-off container of `docker compose run` (label com.docker.compose.oneoff)",
        ),
        (
            container(EIGHTY, labels={"com.docker.compose.oneoff": "True"}, state="exited"),
            HOST,
            "a one-off container of `docker compose run` (label com.docker.compose.oneoff)",
        ),
        (container(EIGHTY, labels={"rgate.scheme": "h2c"}), HOST, "label rgate.scheme='h2c' is neither http nor https"),
        (
            container(Port(80, "127.0.0.1", 8080)),
            REMOTE,
            "port 80 is published on 127.0.0.1 of docker.example only; publish it on 0.0.0.0",
        ),
        (container(EIGHTY, labels={"rgate.network": "front"}), HOST, "not in network 'front' (it is in: bridge)" + CONNECT),
        (container(EIGHTY), NetworkContext(network="front"), "not in network 'front' (it is in: bridge)" + CONNECT),
        (container(EIGHTY, networks={}), NetworkContext(network="front"), "not in network 'front' (it is in: none)" + CONNECT),
        (
            container(networks={"a": "10.0.0.1"}, labels={"rgate.network": "a"}),
            HOST,
            "no tcp port; expose one, or set rgate.port",
        ),
        (container(Port(80), Port(81), networks={"front": "10.0.0.1"}), INSIDE, "several tcp ports: 80, 81" + PICK),
        (
            container(EIGHTY, networks={"a": "10.0.0.1"}),
            INSIDE,
            "in no network with rgate's own container (it is in: a; rgate is in: back, front); connect one of them",
        ),
        (container(network_mode="host", networks={}), HOST, "on the host's network, where ports are not listed; set rgate.port"),
        (
            container(network_mode="host", networks={}, labels={"rgate.port": "80"}),
            INSIDE,
            "on the host's network, where rgate's own container is not; run both on one network",
        ),
        (container(network_mode="none", networks={}), HOST, "no published tcp port (none exposed either)" + PUBLISH),
        (
            container(network_mode="container:" + "d" * 64),
            HOST,
            "it uses the network of container dddddddddddd, which does not exist",
        ),
        (container(EIGHTY, health="unhealthy"), HOST, "unhealthy, its HEALTHCHECK says"),
        (container(EIGHTY, health="starting"), HOST, "starting, its HEALTHCHECK says"),
        (container(EIGHTY, state="created"), HOST, "not started"),
        (container(EIGHTY, state="paused"), HOST, "paused"),
        (container(EIGHTY, state="paused", health="unhealthy"), HOST, "paused"),
        (container(EIGHTY, state="restarting"), HOST, "restarting"),
        (container(EIGHTY, state="stopping"), HOST, "stopped or stopping"),
        (container(EIGHTY, state="exited"), HOST, "stopped or stopping"),
        (container(EIGHTY, state="removing"), HOST, "stopped or stopping"),
        (container(EIGHTY, state="dead"), HOST, "stopped or stopping"),
        (container(EIGHTY, state="configured"), HOST, "not running (configured)"),
    ],
)
def test_container_that_cannot_be_reached_says_why_and_the_way_out(
    found: Container, context: NetworkContext, reason: str
) -> None:
    instance = to_instance(found, context)
    assert instance.address is None
    assert instance.reason == reason


OWNER = container(EIGHTY, networks={"front": "10.2.0.2"})
GUEST_MODE = "container:" + OWNER.id


@pytest.mark.parametrize(
    ("guest", "owner", "context", "expected"),
    [
        (container(network_mode=GUEST_MODE, networks={}), OWNER, HOST, "http://127.0.0.1:32768"),
        (container(network_mode=GUEST_MODE, networks={}), OWNER, INSIDE, "http://10.2.0.2:80"),
        (container(network_mode=GUEST_MODE, networks={}, labels={"rgate.port": "9"}), OWNER, INSIDE, "http://10.2.0.2:9"),
        (container(network_mode=GUEST_MODE, networks={}, labels={"rgate.port": "9"}), OWNER, HOST, "port 9 is not published"),
        (
            container(network_mode=GUEST_MODE, networks={}),
            container(EIGHTY, state="exited"),
            HOST,
            "container web, which is not running",
        ),
        (container(network_mode=GUEST_MODE, networks={}), container(EIGHTY, health="unhealthy"), HOST, "http://127.0.0.1:32768"),
        (
            container(network_mode=GUEST_MODE, networks={}, labels={"rgate.port": "9"}),
            container(network_mode="host"),
            HOST,
            "http://127.0.0.1:9",
        ),
    ],
)
def test_container_in_anothers_network_is_reached_there(
    guest: Container, owner: Container, context: NetworkContext, expected: str
) -> None:
    instance = to_instance(guest, context, owner)
    assert expected in str(instance.address or instance.reason)


LISTED = {
    "Id": "a" * 64,
    "Names": ["/other/alias", "/payment-1"],
    "Image": "payment",
    "Created": 1_700_000_000,
    "Ports": [
        {"IP": "0.0.0.0", "PrivatePort": 8000, "PublicPort": 32768, "Type": "tcp"},
        {"IP": "::", "PrivatePort": 8000, "PublicPort": 32768, "Type": "tcp"},
        {"PrivatePort": 9000, "Type": "tcp"},
        {"IP": "0.0.0.0", "PrivatePort": 53, "PublicPort": 53, "Type": "udp"},
    ],
    "Labels": {"app_name": "payment", "odd": "a=b", "": ""},
    "State": "running",
    "Status": "Up 3 minutes (healthy)",
    "HostConfig": {"NetworkMode": "default"},
    "NetworkSettings": {
        "Networks": {
            "bridge": {"IPAddress": "172.17.0.2", "GlobalIPv6Address": ""},
            "six": {"IPAddress": "", "GlobalIPv6Address": "fd00::2"},
            "detached": {"IPAddress": "", "GlobalIPv6Address": ""},
        }
    },
}

INSPECTED = {
    "Id": "a" * 64,
    "Name": "/payment-1",
    "Created": "2023-11-14T22:13:20.5Z",
    "State": {"Status": "running", "Health": {"Status": "healthy"}},
    "Config": {"Labels": LISTED["Labels"], "ExposedPorts": {"8000/tcp": {}, "9000/tcp": {}, "53/udp": {}}},
    "HostConfig": {"NetworkMode": "default"},
    "NetworkSettings": {
        "Networks": LISTED["NetworkSettings"]["Networks"],  # type: ignore[index]
        "Ports": {
            "8000/tcp": [{"HostIp": "0.0.0.0", "HostPort": "32768"}, {"HostIp": "::", "HostPort": "32768"}],
            "9000/tcp": None,
            "53/udp": [{"HostIp": "0.0.0.0", "HostPort": "53"}],
        },
    },
}


@pytest.mark.parametrize(
    ("read", "record", "created"), [(Container.from_list, LISTED, 1_700_000_000), (Container.from_inspect, INSPECTED, 0)]
)
def test_record_of_either_shape_is_read_alike(read: Any, record: Mapping[str, Any], created: int) -> None:
    assert read(record) == Container(
        id="a" * 64,
        name="payment-1",
        labels={"app_name": "payment", "odd": "a=b", "": ""},
        state="running",
        health="healthy",
        network_mode="default",
        networks={"bridge": "172.17.0.2", "six": "fd00::2"},
        ports=(Port(8000, "0.0.0.0", 32768), Port(8000, "::", 32768), Port(9000)),
        created=created,
    )


@pytest.mark.parametrize(
    ("status", "more", "health"),
    [
        ("Up 3 minutes", {}, ""),
        ("Up 3 minutes (healthy)", {}, "healthy"),
        ("Up 3 minutes (unhealthy)", {}, "unhealthy"),
        ("Up 1 second (health: starting)", {}, "starting"),
        ("Up 3 minutes (Paused)", {}, ""),
        ("Up 3 minutes", {"Health": {"Status": "unhealthy", "FailingStreak": 3}}, "unhealthy"),
        ("Up 3 minutes (healthy)", {"Health": {"Status": "none"}}, ""),
    ],
)
def test_health_is_read_from_status_or_from_its_own_field(status: str, more: Mapping[str, Any], health: str) -> None:
    assert Container.from_list({**LISTED, "Status": status, **more}).health == health


@pytest.mark.parametrize("read", [Container.from_list, Container.from_inspect])
def test_record_with_nothing_in_it_is_a_container_that_does_not_run(read: Any) -> None:
    instance = to_instance(read({}), HOST)
    assert instance.reason == "not running (unknown)"


def test_inspected_ports_before_they_are_attached_are_the_exposed_ones() -> None:
    record = {**INSPECTED, "NetworkSettings": {"Networks": {}, "Ports": {}}}
    assert Container.from_inspect(record).ports == (Port(8000), Port(9000))


_SCRAPS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(st.fixed_dictionaries({}, optional={key: _SCRAPS for key in [*LISTED, *INSPECTED, "Health"]}))
def test_no_record_makes_reading_crash(record: Mapping[str, Any]) -> None:
    for read in (Container.from_list, Container.from_inspect):
        instance = to_instance(read(record), HOST)
        assert (instance.address is None) != (instance.reason is None)


_PORTS = st.builds(
    Port,
    container_port=st.integers(1, 65_535),
    host_ip=st.sampled_from(["", "0.0.0.0", "::", "127.0.0.1", "::1", "10.1.2.3", "fe80::1%eth0", "no address"]),
    host_port=st.integers(0, 65_535),
)
_LABELS = st.dictionaries(
    st.sampled_from(["rgate.port", "rgate.network", "rgate.scheme"]) | st.text(), st.text() | st.integers().map(str)
)
_NETWORKS = st.dictionaries(st.sampled_from(["bridge", "front", "back"]), st.sampled_from(["172.17.0.2", "fd00::2"]))
_CONTAINERS = st.builds(
    Container,
    id=st.just("i"),
    name=st.just("n"),
    labels=_LABELS,
    state=st.sampled_from(["running", "running", "running", "paused"]),
    network_mode=st.sampled_from(["bridge", "host", "none", "container:x"]),
    networks=_NETWORKS,
    ports=st.lists(_PORTS, max_size=4).map(tuple),
)


@given(_CONTAINERS, st.sampled_from([HOST, INSIDE, REMOTE, NetworkContext(network="front")]), st.none() | _CONTAINERS)
def test_any_container_has_either_an_address_or_a_reason(
    found: Container, context: NetworkContext, owner: Container | None
) -> None:
    instance = to_instance(found, context, owner)
    assert (instance.address is None) != (instance.reason is None)
    if instance.address is not None:
        assert 1 <= instance.address.port <= 65_535
        assert instance.address.host not in ("", "0.0.0.0", "::"), "no address to connect to"
        assert instance == to_instance(found, context, owner), "the choice must stay the same from list to list"
    else:
        assert not re.search(r"[\r\n]", instance.reason or ""), "one reason, one line"


@given(st.lists(st.integers(1, 65_535), min_size=1, max_size=5))
def test_port_is_chosen_only_when_there_is_one(numbers: list[int]) -> None:
    found = container(*(Port(number, "0.0.0.0", number) for number in numbers))
    instance = to_instance(found, HOST)
    if len(set(numbers)) == 1:
        assert instance.address is not None
        assert instance.address.port == numbers[0]
    else:
        assert str(instance.reason).startswith("several tcp ports: ")


KNOWN = "rgate knows rgate.drain, rgate.network, rgate.port, rgate.scheme, rgate.weight"


@pytest.mark.parametrize(
    ("labels", "notes"),
    [
        ({}, ()),
        ({"rgate.port": "80", "rgate.weight": "2", "rgate.drain": "no", "rgate.scheme": "http", "rgate.network": ""}, ()),
        ({"rgate.prot": "80"}, ("unknown label rgate.prot; did you mean rgate.port?",)),
        ({"rgate.Port": "80"}, ("unknown label rgate.Port; did you mean rgate.port?",)),
        ({"rgate_port": "80"}, ("unknown label rgate_port; did you mean rgate.port?",)),
        ({"rgate.draining": "true"}, ("unknown label rgate.draining; did you mean rgate.drain?",)),
        ({"rgate.zzz": ""}, (f"unknown label rgate.zzz; {KNOWN}",)),
        ({"rgate.z\n\x1b": ""}, (f"unknown label rgate.z\\n\\x1b; {KNOWN}",)),
        ({"rgate": "yes", "rgates.port": "1", "my.rgate.port": "1", "traefik.enable": "true"}, ()),
        ({"rgate.asked": "x", "rgate.b": ""}, (f"unknown label rgate.b; {KNOWN}",)),
        ({f"rgate.x{n}": "" for n in range(1_000)}, tuple(f"unknown label rgate.x{n}; {KNOWN}" for n in (0, 1, 10, 100, 101))),
    ],
    ids=[
        "none",
        "known",
        "misspelt",
        "case",
        "underscore",
        "similar",
        "unlike",
        "control",
        "not ours",
        "asked for",
        "a thousand",
    ],
)
def test_unknown_labels_are_noted_and_take_nothing_out(labels: Mapping[str, str], notes: tuple[str, ...]) -> None:
    context = NetworkContext(network="bridge") if "rgate.network" in labels else HOST
    instance = to_instance(container(EIGHTY, labels=labels), context, matched=["rgate.asked"])
    assert instance.notes == notes
    assert instance.address is not None
