"""How gateways are configured and found."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.gateways import GATEWAYS, Gateway, fill
from bench.workloads import WORKLOADS, Workload
from rgate.config import load
from rgate.plugin.registry import Registry

OURS = [gateway for name, gateway in GATEWAYS.items() if name.startswith("rgate")]


@pytest.mark.parametrize("gateway", OURS, ids=lambda gateway: gateway.name)
def test_config_of_rgate_is_valid(gateway: Gateway, tmp_path: Path) -> None:
    (tmp_path / "config.yml").write_text(fill(gateway.files["config.yml"], {"backend": "9", "folder": str(tmp_path)}))

    config = load(tmp_path / "config.yml", Registry())

    assert config.options("static_endpoints", backend=config.backends[0]).endpoints == ("http://127.0.0.1:9",)
    assert ("stats" in config.disabled) == (gateway.name == "rgate-no-stats")


@pytest.mark.parametrize("gateway", GATEWAYS.values(), ids=lambda gateway: gateway.name)
def test_nothing_is_left_to_fill_in(gateway: Gateway) -> None:
    texts = [fill(text, {"port": "1", "backend": "2", "folder": "/f"}) for text in gateway.files.values()]

    assert not [text for text in texts if any(place in text for place in ("@PORT@", "@BACKEND@", "@FOLDER@"))]


def test_gateway_that_lacks_its_program_says_how_to_get_it() -> None:
    gateway = Gateway("some", "one", ["no-such-program"], program="no-such-program", install="apt-get install some")

    assert gateway.missing == "some needs no-such-program: apt-get install some"


def test_gateway_that_lacks_its_module_says_how_to_get_it() -> None:
    assert Gateway("some", "one", ["python"], module="no_such_module", install="pip install some").missing.endswith(
        "pip install some"
    )


@pytest.mark.parametrize("workload", WORKLOADS.values(), ids=lambda workload: workload.name)
def test_workload_names_gateways_that_there_are(workload: Workload) -> None:
    named = {*workload.only, *workload.also, *(workload.without or {})}

    assert named <= GATEWAYS.keys()


def test_workload_takes_variants_only_together_with_rgate() -> None:
    start = WORKLOADS["start"]

    assert start.gateways(("rgate", "nginx")) == ("rgate", "nginx", "rgate-2-workers", "rgate-3-workers")
    assert start.gateways(("nginx",)) == ("nginx",)
    assert WORKLOADS["middlewares"].gateways(("nginx",)) == ()
    assert "flask" not in WORKLOADS["gigabyte"].gateways(("rgate", "flask"))
