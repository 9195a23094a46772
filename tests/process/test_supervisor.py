"""The supervisor between its workers, in a process of its own: it forks, and so wants no threads beside it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from ..support.waiting import PROCESS_DEADLINE_SECONDS

ROOT = Path(__file__).parent.parent.parent

ASKING = """
import os, threading
from rgate.config.models import ServerConfig
from rgate.serving.listeners import Listeners
from rgate.process.supervisor import Supervisor
from rgate.runtime.worker_channel import WorkerChannel

def say(line):
    os.write(1, line.encode() + b"\\n")

def main(index, first_time, channel):
    workers = WorkerChannel()
    ended = threading.Event()
    workers.on_command("note", lambda argument: say(f"worker {index} is asked {argument!r}"))
    workers.connect(channel, on_lost=ended.set, on_notice={"stop": ended.set})
    if index == 2:  # the others are there already
        while not workers.broadcast("note", "all of it: 100 %", timeout_seconds=20):
            pass
        say("and worker 2 has its answer")
        os.kill(os.getppid(), 15)
    ended.wait(20)
    return 0

config = ServerConfig(port=0, workers=3)
print(Supervisor(main, Listeners.open(config, 3), config).run())
"""


def test_ask_reaches_every_other_worker_and_waits_for_all() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", ASKING],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PROCESS_DEADLINE_SECONDS,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    *asked, answered, code = ended.stdout.splitlines()
    assert sorted(asked) == [f"worker {index} is asked 'all of it: 100 %'" for index in (0, 1)], ended.stderr
    assert (answered, code) == ("and worker 2 has its answer", "0"), ended.stderr
