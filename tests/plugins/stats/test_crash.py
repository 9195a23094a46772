"""kill -9: at most a second is lost, and the file is sound."""

from __future__ import annotations

import signal
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from subprocess import PIPE, Popen

from rgate.plugins.stats.report import report

from .traffic import success_of

SERVING = """
import sys, threading, time
from rgate.plugins.stats.aggregator import Aggregator
from rgate.plugins.stats.recorder import Recorder
from rgate.plugins.stats.store import Store
from tests.plugins.stats.traffic import finished
pause = threading.Event()
recorder = Recorder(Store("sqlite:///" + sys.argv[1]), Aggregator(), flush_seconds=0.2)
with recorder:
    for number in range(1, 10**9):
        recorder.aggregator.record(finished(ms=1 + number % 50))
        if number % 100 == 0:
            print(number, time.monotonic(), flush=True)
            pause.wait(0.002)  # requests come with gaps, in which the writer gets its turn
"""
KILLED_AFTER_SECONDS = 2.0


def test_process_killed_loses_a_second_at_most_and_leaves_the_file_sound(tmp_path: Path) -> None:
    path = tmp_path / "rgate.db"
    root = Path(__file__).parents[3]
    recorded: list[tuple[int, float]] = []
    with Popen([sys.executable, "-c", SERVING, str(path)], cwd=root, stdout=PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            number, at = line.split()
            recorded.append((int(number), float(at)))
            if recorded[-1][1] - recorded[0][1] > KILLED_AFTER_SECONDS:
                process.send_signal(signal.SIGKILL)
                break
        process.stdout.read()
    assert process.returncode == -signal.SIGKILL
    killed_at = recorded[-1][1]
    a_second_before = max(number for number, at in recorded if at <= killed_at - 1)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    saved = success_of(report(f"sqlite:///{path}"))
    assert isinstance(saved, int)
    assert saved >= a_second_before, f"{a_second_before} were recorded a second before the end, {saved} are saved"
