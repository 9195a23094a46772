"""Break everything in turn under steady load, and account for every request and every tunnel.

    python -m bench.chaos --seconds 120 --seed 7
    python -m bench.chaos --docker --tls --only "engine away,endpoint restarted"

Clients send GET and POST on kept and on new connections, and others talk through WebSockets, while endpoints, workers, database,
config, certificates and, with --docker, the engine's connection are broken by a plan that the seed decides. In the end every
request and every tunnel is accounted for: what was not answered well, and a tunnel that its client has not ended, must be
explained by what was broken at that moment, most of all by what was broken last; and unless something was broken that changes
counts, /stats has to have them all. The exit code is 0 when that is so, 1 when it is not, and 2 when it cannot start. Only what
was started here is broken and ended.
"""

from __future__ import annotations

import argparse
import random
import signal
import ssl
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .breaks import BREAKS, Break, World
from .clients import Clients, Outcome, by_answer
from .endpoints import Containers, Processes
from .tunnels import Tunnel, TunnelClients

__all__ = ["Happened", "account", "main", "plan"]

AFTER_SECONDS = 2.0  # how long what has been mended may still show
CALM_SECONDS = 2.0


@dataclass(frozen=True)
class Step:
    """One thing to break: for how long, and how long nothing is broken then."""

    broken: Break
    hold_seconds: float
    pause_seconds: float


@dataclass(frozen=True)
class Happened:
    """A break that was, in monotonic seconds, and the only endpoints that it has to do with, if not all."""

    broken: Break
    began: float
    ended: float
    endpoints: frozenset[str] | None = None

    def explains(self, outcome: Outcome) -> bool:
        """Whether a request or tunnel was there then, and may have had this answer."""
        there = outcome.sent <= self.ended + AFTER_SECONDS and outcome.ended >= self.began
        concerned = not self.endpoints or not outcome.who or outcome.who in self.endpoints
        return there and concerned and str(outcome) in self.broken.explains


def plan(possible: Sequence[Break], seconds: float, chance: random.Random) -> Iterator[Step]:
    """All breaks in an order of chance, again and again, until `seconds` are used up."""
    while seconds > 0:
        for broken in chance.sample(possible, len(possible)):
            step = Step(broken, chance.uniform(0.5, 3.0), chance.uniform(0.5, 1.5))
            yield step
            seconds -= step.hold_seconds + step.pause_seconds
            if seconds <= 0:
                return


def account(outcomes: Sequence[Outcome], happened: Sequence[Happened]) -> tuple[list[str], int]:
    """The account as lines, and how many requests and tunnels are not explained."""
    explained: dict[str, Counter[str]] = {}
    unexplained: list[Outcome] = []
    for outcome in outcomes:
        if outcome.good:
            continue
        by = next((each for each in reversed(happened) if each.explains(outcome)), None)
        if by is None:
            unexplained.append(outcome)
        else:
            explained.setdefault(by.broken.name, Counter())[str(outcome)] += 1
    lines = [
        *_told([outcome for outcome in outcomes if not isinstance(outcome, Tunnel)]),
        *_told_of_tunnels([outcome for outcome in outcomes if isinstance(outcome, Tunnel)]),
        f"{len(happened):>8,} times something was broken:",
        *(
            f"{times:>8,} {name}{'; explains ' + _listed(explained[name]) if name in explained else ''}"
            for name, times in sorted(Counter(each.broken.name for each in happened).items())
        ),
        f"{len(unexplained):>8,} unexplained",
    ]
    began = min((outcome.sent for outcome in outcomes), default=0.0)
    for outcome in unexplained[:20]:
        near = [each.broken.name for each in happened if each.began - 1 <= outcome.ended and outcome.sent <= each.ended + 5]
        at = f"after {outcome.sent - began:.3f} s, {outcome.ended - outcome.sent:.3f} s long"
        lines.append(f"         {outcome.kind}: {outcome}, {at}; broken about then: {', '.join(near) or 'nothing'}")
    return lines, len(unexplained)


def _told(requests: Sequence[Outcome]) -> list[str]:
    lost = sum(request.status == 0 for request in requests)
    lines = [f"{len(requests):>8,} sent: {len(requests) - lost:,} answered, {lost:,} lost"]
    return lines + [f"{count:>8,} {answer}" for answer, count in by_answer(requests).most_common()]


def _told_of_tunnels(tunnels: Sequence[Tunnel]) -> list[str]:
    opened, echoes = sum(tunnel.status == 101 for tunnel in tunnels), sum(tunnel.echoes for tunnel in tunnels)
    lines = [f"{len(tunnels):>8,} tunnels asked for: {opened:,} opened, {echoes:,} echoes"]
    words = {"ok": "ended by their client"}
    return lines + [f"{count:>8,} {words.get(answer, answer)}" for answer, count in by_answer(tunnels).most_common()]


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count} of {answer}" for answer, count in counts.most_common())


def main() -> int:
    """Run it, and print the account."""
    options = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started ends too
    with tempfile.TemporaryDirectory(prefix="rgate-chaos-") as name:
        folder = Path(name)
        world = World(folder, Containers(folder) if options.docker else Processes(), options.tls)
        try:
            world.start()
            return _run(world, options)
        except OSError as error:
            print(error, file=sys.stderr)
            return 2
        finally:
            world.close()


def _run(world: World, options: argparse.Namespace) -> int:
    chosen = [BREAKS[name] for name in options.only or BREAKS if BREAKS[name].possible(world)]
    chance = random.Random(options.seed)
    happened: list[Happened] = []
    began = time.monotonic()
    port, path, tls = world.port, world.endpoints.path, _trusting() if world.tls else None
    with Clients(port, path, options.per_second, tls=tls) as clients, TunnelClients(port, path, tls=tls) as talking:
        time.sleep(CALM_SECONDS)
        for step in list(plan(chosen, options.seconds, chance)):
            print(f"{time.monotonic() - began:7.2f} s  {step.broken.name} for {step.hold_seconds:.1f} s", flush=True)
            happened.append(_break(world, step, chance))
            time.sleep(step.pause_seconds)
            if not world.running:
                break
        time.sleep(CALM_SECONDS)
    outcomes = [*clients.outcomes, *talking.tunnels]
    counted = world.counted(tls) if world.running else 0
    if counted != len(outcomes) and not any(each.broken.miscounts for each in happened):
        world.failed.append(f"/stats has {counted:,} requests instead of {len(outcomes):,}")
    code = world.stop() if world.running else None
    lines, unexplained = account(outcomes, happened)
    lines.append(f"{counted:>8,} in /stats")
    print("\n".join(["", f"seed {options.seed}, {time.monotonic() - began:.0f} s", *lines, *world.failed]))
    log = world.log.read_text(errors="replace")
    good = code == 0 and not unexplained and not world.failed and "Traceback" not in log
    if not good:
        print(f"the gateway ended with {code}; the end of its log:\n{log[-8_000:]}")
    return 0 if good else 1


def _break(world: World, step: Step, chance: random.Random) -> Happened:
    began = time.monotonic()
    running = step.broken.run(world, chance)
    endpoints = next(running)
    time.sleep(step.hold_seconds)
    next(running, None)
    return Happened(step.broken, began, time.monotonic(), endpoints)


def _trusting() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # the certificate changes on the way
    context.verify_mode = ssl.CERT_NONE
    return context


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=120, help="how long things are broken; default 120")
    parser.add_argument("--seed", type=int, default=7, help="decides what is broken when; default 7")
    parser.add_argument("--per-second", type=float, default=200, help="requests, of all clients together; default 200")
    parser.add_argument("--docker", action="store_true", help="containers as endpoints, found by label")
    parser.add_argument("--tls", action="store_true", help="the clients speak https")
    parser.add_argument("--only", metavar="A,B", type=_names, help=f"break only these: {', '.join(BREAKS)}")
    return parser.parse_args()


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in BREAKS:
            raise argparse.ArgumentTypeError(f"{name!r} is not one of: {', '.join(BREAKS)}")
    return names


if __name__ == "__main__":
    raise SystemExit(main())
