"""Measure gateways side by side.

    python -m bench                 everything: about an hour
    python -m bench --targets       what rgate promises, and whether it holds: about twenty minutes
    python -m bench --gateways rgate,envoy,traefik --workloads json-32,json-256 --rounds 3 --seconds 4
    python -m bench --list

The gateway under test has one core to itself; load and backends share another. Gateways are measured in turn (A B C, A B C,
…) and medians compared. Traffic stays on 127.0.0.1, and only what was started here is ended. Into the folder --output go
performance.json, performance-tables.md, a plot, and the generated sections of performance.md. Workloads that are not
measured keep their earlier figures.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from . import report
from .gateways import GATEWAYS, ROOT, program
from .machine import Cores, raise_file_limit
from .provenance import provenance
from .results import Results
from .rig import CannotStart, Rig, on_one_line
from .targets import PLAN, TARGETS
from .workloads import WORKLOADS

NEEDED = {"wrk": "apt-get install wrk", "nginx": "apt-get install nginx-light"}
NEEDED_FILES = 12_000
Plan = Mapping[str, tuple[str, ...]]


def main() -> int:
    """Run it; 0 when all is measured and, with --targets, all is kept, else 1. 2 when something that is needed is missing."""
    options = _arguments()
    if options.list:
        _list()
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started ends too
    plan = _possible(_plan(options), options.gateways_named)
    results = Results.read(options.output / "performance.json")
    try:
        complete = _measure(plan, results, options)
    except KeyboardInterrupt:
        return 130
    if options.targets or not options.workloads_named:
        print("\n".join(report.targets([target.judge(results) for target in TARGETS])))
    if options.targets:
        complete = complete and all(target.judge(results).met for target in TARGETS)
    return 0 if complete else 1


def _plan(options: argparse.Namespace) -> Plan:
    chosen = PLAN if options.targets else dict.fromkeys(options.workloads, options.gateways)
    return {name: WORKLOADS[name].gateways(gateways) for name, gateways in chosen.items()}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--gateways", metavar="A,B", type=_names(GATEWAYS), help="in this order; the first is what others are compared with"
    )
    parser.add_argument("--workloads", metavar="A,B", type=_names(WORKLOADS))
    parser.add_argument("--targets", action="store_true", help="only what the table of promises needs")
    parser.add_argument("--rounds", type=int, default=3, help="default 3")
    parser.add_argument("--seconds", type=int, default=4, help="of load in each round, after one of warm-up; default 4")
    parser.add_argument("--minutes", type=float, default=180, help="begin nothing more after so long; default 180")
    parser.add_argument("--output", type=Path, default=ROOT / "docs", metavar="FOLDER", help="default docs/")
    parser.add_argument("--list", action="store_true", help="all gateways and workloads")
    options = parser.parse_args()
    options.gateways_named, options.workloads_named = bool(options.gateways), bool(options.workloads)
    options.gateways = options.gateways or tuple(name for name, gateway in GATEWAYS.items() if gateway.chosen)
    options.workloads = options.workloads or tuple(WORKLOADS)
    if min(options.rounds, options.seconds) < 1:
        parser.error("--rounds and --seconds are at least 1")
    if not options.output.is_dir():
        parser.error(f"--output: there is no folder {options.output}")
    return options


def _names(known: Mapping[str, object]) -> Callable[[str], tuple[str, ...]]:
    def read(text: str) -> tuple[str, ...]:
        names = tuple(filter(None, text.split(",")))
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(known)}")
        return names

    return read


def _list() -> None:
    for title, lines in (
        ("gateways", {g.name: g.what for g in GATEWAYS.values()}),
        ("workloads", {w.name: w.what for w in WORKLOADS.values()}),
    ):
        print(f"{title}:")
        for name, what in lines.items():
            print(f"  {name:16} {what}")


def _possible(plan: Plan, named: bool) -> Plan:
    """The plan without what this machine lacks. Exits when nothing can be measured, or when what was asked for is missing."""
    lacking = [f"{name} is needed: {install}" for name, install in NEEDED.items() if not program(name)]
    missing = {name: GATEWAYS[name].missing for names in plan.values() for name in names if GATEWAYS[name].missing}
    for line in (*lacking, *missing.values()):
        print(line, file=sys.stderr)
    if lacking or (missing and named):
        raise SystemExit(2)
    if missing:
        print(f"left out: {', '.join(missing)}", file=sys.stderr)
    return {workload: tuple(name for name in names if name not in missing) for workload, names in plan.items()}


def _measure(plan: Plan, results: Results, options: argparse.Namespace) -> bool:
    """Everything in the plan; whether all of it could be measured. What is measured is written after every workload."""
    files = raise_file_limit()
    if files < NEEDED_FILES:
        print(f"only {files} files may be open (ulimit -n): idle-10k will hold fewer connections", file=sys.stderr)
    until = time.monotonic() + options.minutes * 60
    run = {
        **provenance(sorted({name for names in plan.values() for name in names})),
        "rounds": options.rounds,
        "seconds": options.seconds,
    }
    complete = True
    try:
        with Rig(Cores.of_this_process(), options.seconds) as rig:
            for workload in (name for name, gateways in plan.items() if gateways):
                if time.monotonic() > until:
                    print(f"{workload} and what follows is left out: --minutes {options.minutes:g} are over", file=sys.stderr)
                    return False
                rounds = options.rounds * WORKLOADS[workload].times
                results.begin(workload, WORKLOADS[workload].what, {**run, "rounds": rounds})
                complete &= _compare(rig, workload, plan[workload], results, rounds)
                print("\n" + "\n".join(report.workload_table(results, workload)) + "\n", flush=True)
                _write(results, options.output)
    except (CannotStart, OSError) as error:
        print(f"the rig cannot start: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    return complete


def _compare(rig: Rig, workload: str, gateways: Sequence[str], results: Results, rounds: int) -> bool:
    """One workload: the gateways in turn, round after round. One that fails is told and left out of further rounds."""
    failed: set[str] = set()
    for number in range(1, rounds + 1):
        for name in gateways:
            if name in failed:
                continue
            try:
                metrics = WORKLOADS[workload].measure(rig, GATEWAYS[name])
            except (CannotStart, OSError, ValueError) as error:
                failed.add(name)
                results.fail(workload, name, str(error).splitlines()[-1] if str(error) else type(error).__name__)
                print(f"{workload} {number}/{rounds} {name} FAILED: {error}", file=sys.stderr)
            else:
                results.add(workload, name, metrics)
                print(f"{workload} {number}/{rounds} {name} {on_one_line(metrics)}", file=sys.stderr)
    return not failed


def _write(results: Results, folder: Path) -> None:
    results.write(folder / "performance.json")
    (folder / "performance-tables.md").write_text("\n".join(report.details(results)) + "\n")
    document = folder / "performance.md"
    text = (document if document.exists() else ROOT / "docs" / "performance.md").read_text()
    document.write_text(report.with_sections(text, report.sections(results)))
    try:
        from .plot import draw

        draw(results, folder)
    except ImportError:
        print("no plot: pip install matplotlib", file=sys.stderr)


if __name__ == "__main__":
    raise SystemExit(main())
