"""docker compose, or its elder sister docker-compose: whichever is here."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

__all__ = ["Compose"]


class Compose:
    """One project of one compose file. Called with the arguments of a command; fails with what the command wrote."""

    def __init__(self, file: Path, project: str, **environment: str) -> None:
        program = ["docker-compose"] if shutil.which("docker-compose") else ["docker", "compose"]
        self._command = [*program, "--project-name", project, "--file", str(file)]
        self._environment = {**os.environ, **environment}

    def __call__(self, *arguments: str) -> None:
        done = subprocess.run(
            [*self._command, *arguments],
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, f"{' '.join([*self._command, *arguments])} failed:\n{done.stdout}"
