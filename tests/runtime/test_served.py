"""A changed config under a server and its clients, all in this process."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml

from rgate import Gateway
from rgate.runtime.reload import ConfigFile
from rgate.runtime.runtime import Runtime
from rgate.serving.server import Server
from rgate.testing import ScriptedBackend, ScriptedConnection, http_response

from ..support.certificates import authority
from ..support.raw_client import RawClient
from ..support.serving import serving
from ..support.tls_client import SecureClient
from ..support.waiting import eventually, passed
from ..tls.test_backends import SecureBackend


class Served:
    """config.yml, what is served by it, and the way to change it."""

    def __init__(self, folder: Path, *urls: str) -> None:
        self.path = folder / "config.yml"
        self.folder = folder
        self.config: dict[str, Any] = {
            "routes": [{"path_prefix": "/a", "backend": "one"}],
            "backends": [{"name": "one", "endpoints": list(urls)}],
            "plugins": {"stats": {"database": f"sqlite:///{folder}/rgate.db"}},
            "server": {"port": 0, "threads": 2},
        }
        self.write()
        self.source = ConfigFile(str(self.path))

    def write(self) -> None:
        self.path.write_text(yaml.safe_dump(self.config))

    def route(self, path: str) -> None:
        self.config["routes"][0]["path_prefix"] = path
        self.write()

    @contextmanager
    def serving(self) -> Iterator[Server]:
        """Inside, the gateway runs and is served."""
        first = self.source.build_gateway()
        self.runtime: Runtime = first.runtime
        tls = first.config.server.tls
        with serving(first, **({"tls": tls} if tls else {})) as server, first.running():
            self.server = server
            yield server
            server.stop()
            eventually(lambda: not server._connections, "the connections end")

    @property
    def gateway(self) -> Gateway:
        assert self.runtime.current is not None
        return self.runtime.current

    def reload(self) -> str:
        return self.runtime.reload(
            self.source.build_gateway,
            lambda gateway: self.server.reconfigure(gateway.app, gateway.config.server, gateway.tls),
        )


@pytest.fixture
def backend() -> Iterator[ScriptedBackend]:
    with ScriptedBackend(http_response(b"hello")) as backend:
        yield backend


@pytest.fixture
def served(backend: ScriptedBackend, tmp_path: Path) -> Iterator[Served]:
    served = Served(tmp_path, backend.url)
    with served.serving():
        yield served


def get(served: Served, path: str) -> int:
    with RawClient(served.server.url) as client:
        return client.get(path).status


def test_connection_that_is_kept_alive_survives_many_reloads(served: Served, backend: ScriptedBackend) -> None:
    with RawClient(served.server.url) as client:
        for number in range(100):
            served.route(f"/{number}")
            assert served.reload() == ""
            assert client.get(f"/{number}").status == 200
            assert client.get(f"/{number - 1}").status == 404
    assert len(backend.connections) == 1, "connections to backends go on too"


def test_clients_in_full_flight_lose_nothing_and_everything_is_counted(served: Served) -> None:
    over = threading.Event()
    statuses: list[int] = []

    def ask() -> None:
        with RawClient(served.server.url) as client:
            while not over.is_set():
                statuses.append(client.get("/a").status)

    clients = [threading.Thread(target=ask) for _ in range(3)]
    for client in clients:
        client.start()
    for number in range(25):
        served.config["default_response"] = {"body": str(number)}
        served.write()
        assert served.reload() == ""
    over.set()
    for client in clients:
        client.join()
    assert set(statuses) == {200}
    with RawClient(served.server.url, host="localhost") as client:
        counted = client.get("/stats").body
    assert b'"success": %d' % len(statuses) in counted and b'"error": 0' in counted, (len(statuses), counted)


def test_response_across_a_reload_is_completed_by_the_chain_it_began_with(tmp_path: Path) -> None:
    go_on = threading.Event()

    def slow(connection: ScriptedConnection) -> None:
        while connection.read_request() is not None:
            connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfirst")
            passed(go_on)
            connection.send(b" half")

    with ScriptedBackend(slow) as backend:
        served = Served(tmp_path, backend.url)
        with served.serving() as server, RawClient(server.url) as client:
            client.send(b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n")
            assert client.until(b"\r\n\r\nfirst").endswith(b"first")
            served.route("/b")
            assert served.reload() == ""
            assert get(served, "/a") == 404, "the next request finds the next config"
            assert [thread.name for thread in threading.enumerate()].count("rgate-drain") == 1, "the old one waits for it"
            go_on.set()
            assert client.read(5) == b" half"
            assert client.get("/b").status == 200, "on the same connection"
            eventually(lambda: "rgate-drain" not in [t.name for t in threading.enumerate()], "the old one ends after it")


def test_load_of_an_endpoint_goes_on(served: Served) -> None:
    assert get(served, "/a") == 200
    before = served.gateway.table.snapshot.endpoints["one"][0]
    served.route("/b")
    served.reload()
    after = served.gateway.table.snapshot.endpoints["one"][0]
    assert after.state is before.state


def test_limits_and_timeouts_of_the_server_change(served: Served) -> None:
    served.config["server"] |= {"max_body_bytes": 10, "keep_alive_seconds": 33.0, "threads": 7}
    served.write()
    assert served.reload() == ""
    assert served.source.needs_restart == ("server.threads stays 2 until a restart (the config says 7)",)
    assert served.server.config.keep_alive_seconds == 33.0
    with RawClient(served.server.url) as client:
        client.send(b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 11\r\n\r\n12345678901")
        assert client.response().status == 413


def test_config_that_is_refused_changes_nothing(served: Served) -> None:
    served.path.write_text("routes: [{path_prefix: /b, backend: one}")
    problems = served.reload()
    assert "config.yml:1: not valid YAML" in problems
    assert (get(served, "/a"), get(served, "/b")) == (200, 404)
    assert served.gateway.readiness.warnings == {"config": f"refused, the config before stays active: {problems}"}


def issue(served: Served, name: str) -> trustme.CA:
    ca = trustme.CA()
    new = served.folder / "new.pem"
    ca.issue_cert(name).private_key_and_cert_chain_pem.write_to_path(str(new))
    new.replace(served.folder / "server.pem")
    return ca


def test_certificate_that_is_exchanged_is_shown_and_a_bad_one_is_not(backend: ScriptedBackend, tmp_path: Path) -> None:
    def trusted(ca: trustme.CA) -> bool:
        context = ssl.create_default_context()
        ca.configure_trust(context)
        try:
            with SecureClient(server.url, context=context) as client:
                return client.get("/a").status == 200
        except ssl.SSLCertVerificationError:
            return False

    served = Served(tmp_path, backend.url)
    first = issue(served, "localhost")
    served.config["server"]["tls"] = {"certificate": str(served.folder / "server.pem")}
    served.write()
    with served.serving() as server:
        assert trusted(first)
        kept = served.gateway.tls
        assert served.reload() == ""
        assert served.gateway.tls is kept, "what has not changed goes on, with its sessions"
        second = issue(served, "localhost")
        assert served.reload() == ""
        assert (trusted(first), trusted(second)) == (False, True)
        (served.folder / "server.pem").write_text("no certificate")
        assert "contains no certificate in PEM form" in served.reload()
        assert trusted(second)


def test_authority_of_a_backend_that_is_exchanged_counts_for_the_next_request(tmp_path: Path) -> None:
    """The file stays where it is; what is in it is another authority's."""
    ours, theirs = authority(), authority("theirs")
    with SecureBackend(ours.issue("127.0.0.1")) as backend:
        served = Served(tmp_path, backend.url)
        ca = tmp_path / "ca.pem"
        served.config["backends"][0]["tls"] = {"ca": str(ca)}
        served.write()
        ca.write_bytes(Path(theirs.file).read_bytes())
        with served.serving():
            assert get(served, "/a") == 502
            ca.write_bytes(Path(ours.file).read_bytes())
            assert served.reload() == ""
            assert get(served, "/a") == 200
            backend_of = served.gateway.backends["one"]
            assert served.reload() == ""
            assert served.gateway.backends["one"] is backend_of, "what is equal is the same"
            assert get(served, "/a") == 200
            assert len(backend.connections) == 2, "one that was refused, and then the same one"
            ca.write_text("nothing")
            assert "ca.pem contains no certificate in PEM form" in served.reload()
            assert get(served, "/a") == 200
