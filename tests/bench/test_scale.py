"""How many machines."""

from __future__ import annotations

from bench.scale import CORES, UTILISATION, efficiency, machines, scale

from .figures import measured, small_table


def test_machines_for_one_busy_second_of_every_core_is_one() -> None:
    assert machines(CORES * UTILISATION * 10_000, 100.0) == 1


def test_machines_are_rounded_up() -> None:
    assert machines(CORES * UTILISATION * 10_000 + 1, 100.0) == 2


def test_machines_grow_as_efficiency_falls() -> None:
    assert machines(1_000_000, 100.0, efficiency=0.5) > machines(1_000_000, 100.0)


def test_efficiency_is_what_one_worker_takes_of_what_two_take() -> None:
    assert efficiency(measured(rgate=20.0, rgate_2_workers=25.0)) == 0.8
    assert efficiency(small_table()) == 1.0


def test_scale_tells_what_an_idle_connection_costs() -> None:
    results = measured()
    results.begin("browser-32", "heads", {})
    results.begin("idle-10k", "idle", {})
    results.add("idle-10k", "rgate", {"more_mb": 20.0, "held": 10_000})

    assert "An idle connection costs rgate 2.0 kB" in "\n".join(scale(results))
