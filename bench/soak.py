"""Millions of requests with faults mixed in: does what the gateway holds stay the same?

    python -m bench.soak --requests 5000000

wrk sends as fast as it is answered, some seconds at a time, while one thing is broken: an endpoint killed or restarted, the
config changed or spoiled, the database locked, clients that send garbage or nothing. After each of these slices, when the load
is off, memory, descriptors, threads and the size of the database are taken down. The exit code is 0 when all of them are flat
over the last half, and every error has a reason that the fault of its slice explains; else 1. Into the folder --output go
soak.json, soak.svg and soak.png.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .breaks import BREAKS, World
from .endpoints import Nginxes
from .gateways import ROOT
from .load import Figures, wrk
from .machine import Cores, held, raise_file_limit
from .provenance import provenance

__all__ = ["flat", "main"]

FAULTS = (
    "",
    "endpoint killed",
    "config changed",
    "clients broken",
    "endpoint ended",
    "",
    "database locked",
    "config spoiled",
    "endpoint hangs",
    "clients broken",
)
SLICE_SECONDS = 5.0
CONNECTIONS = 64
SETTLE_SECONDS = 0.7  # until the last counts are saved
TOLERANCE = {"pss_mb": (0.05, 2.0), "descriptors": (0.25, 32.0), "threads": (0.5, 32.0), "database_kb": (0.25, 512.0)}
"""How much the last quarter may be above the one before it: a share of it, or so much. Connections and threads come and go."""
_FAULT = re.compile(r"WARNING rgate\.faults: \S+: (\w+):")


def flat(samples: Sequence[dict[str, Any]]) -> dict[str, str]:
    """What has grown over the last half, and from what to what; empty when all is flat. Too few samples are flat."""
    quarter = len(samples) // 4
    grown = {}
    for name, (share, amount) in TOLERANCE.items() if quarter else ():
        before = statistics.median(sample[name] for sample in samples[-2 * quarter : -quarter])
        after = statistics.median(sample[name] for sample in samples[-quarter:])
        if after > before + max(before * share, amount):
            grown[name] = f"{before:.1f} → {after:.1f}"
    return grown


def main() -> int:
    """Run it; 0 when all is flat and every error explained."""
    options = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started ends too
    raise_file_limit()
    with tempfile.TemporaryDirectory(prefix="rgate-soak-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # nginx may run as another user
        world = World(folder, Nginxes(folder), tls=False)
        try:
            world.start()
            told = _run(world, options.requests, random.Random(options.seed))
        except OSError as error:
            print(error, file=sys.stderr)
            return 2
        finally:
            world.close()
    grown = flat(told["samples"])
    (options.output / "soak.json").write_text(json.dumps({**provenance(()), **told, "grown": grown}, indent=1) + "\n")
    _draw(told["samples"], options.output)
    print(f"{told['requests']:,} requests in {told['seconds']:.0f} s; errors by fault: {json.dumps(told['errors'])}")
    print(f"unexplained: {json.dumps(told['unexplained'])}; grown: {json.dumps(grown)}")
    return 1 if told["unexplained"] or grown else 0


def _run(world: World, wanted: int, chance: random.Random) -> dict[str, Any]:
    samples: list[dict[str, Any]] = []
    errors: dict[str, Counter[str]] = {}
    unexplained: Counter[str] = Counter()
    requests, number, began = 0, 0, time.monotonic()
    _slice(world, "", chance)  # until everything there is has been used once
    while requests < wanted:
        fault = FAULTS[number % len(FAULTS)]
        figures, seen = _slice(world, fault, chance)
        requests += figures.requests
        number += 1
        sample = {"requests": requests, "seconds": time.monotonic() - began, "fault": fault, **_held(world)}
        samples.append({name: round(value, 2) if isinstance(value, float) else value for name, value in sample.items()})
        rate = figures.requests / figures.seconds
        print(f"{requests:>10,}  {rate:7,.0f}/s  {json.dumps(samples[-1])} {dict(seen)}", flush=True)
        errors.setdefault(fault or "nothing", Counter()).update(seen)
        allowed = {answer.partition(" ")[2] for answer in BREAKS[fault].explains} if fault else set()
        unexplained.update({f"{fault or 'nothing'}: {why}": count for why, count in seen.items() if why not in allowed})
    return {
        "requests": requests,
        "seconds": round(time.monotonic() - began, 1),
        "errors": {fault: dict(seen) for fault, seen in errors.items() if seen},
        "unexplained": dict(unexplained),
        "samples": samples,
    }


def _slice(world: World, fault: str, chance: random.Random) -> tuple[Figures, Counter[str]]:
    """Some seconds of load with a fault in their middle: what wrk saw, and why requests failed."""
    told = world.log.stat().st_size
    url = f"http://127.0.0.1:{world.port}{world.endpoints.path}"
    cores = Cores.of_this_process()
    figures: list[Figures] = []
    load = threading.Thread(target=lambda: figures.append(wrk(url, CONNECTIONS, SLICE_SECONDS, cores.both)))
    load.start()
    if fault:
        time.sleep(SLICE_SECONDS / 4)
        running = BREAKS[fault].run(world, chance)
        next(running)
        time.sleep(SLICE_SECONDS / 4)
        next(running, None)
    load.join()
    time.sleep(SETTLE_SECONDS)
    with world.log.open("rb") as log:
        log.seek(told)
        seen = Counter(_FAULT.findall(log.read().decode(errors="replace")))
    untold = figures[0].errors - figures[0].lost - sum(seen.values())
    late = 0 if fault == "endpoint hangs" else figures[0].timeouts
    seen.update({"lost": figures[0].lost, "no reason told": max(untold, 0), "no answer in 2 s": late})
    return figures[0], +seen  # without zeros


def _held(world: World) -> dict[str, float]:
    size = sum(path.stat().st_size for path in world.database.parent.glob("rgate.db*"))
    return {**held(world.pids), "database_kb": size // 1024}


def _draw(samples: Sequence[dict[str, Any]], folder: Path) -> None:
    try:
        import matplotlib
    except ImportError:
        print("no plot: pip install matplotlib", file=sys.stderr)
        return
    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "rgate"  # the same figures give the same file
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(11, 6))
    millions = [sample["requests"] / 1e6 for sample in samples]
    titles = {"pss_mb": "memory, MB (Pss)", "descriptors": "descriptors", "threads": "threads", "database_kb": "database, KB"}
    for axis, (name, title) in zip(axes.flat, titles.items(), strict=True):
        axis.plot(millions, [sample[name] for sample in samples], color="#c2410c", linewidth=1.2)
        axis.set_ylim(bottom=0)
        axis.set_title(f"{title}, all processes" if name != "database_kb" else title, fontsize=9, loc="left")
        axis.set_xlabel("million requests", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(folder / "soak.svg", metadata={"Date": None})
    figure.savefig(folder / "soak.png", dpi=110, metadata={"Software": None})
    pyplot.close(figure)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=5_000_000, help="default 5000000")
    parser.add_argument("--seed", type=int, default=7, help="decides which endpoint is broken; default 7")
    parser.add_argument("--output", type=Path, default=ROOT / "docs", metavar="FOLDER", help="default docs/")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
