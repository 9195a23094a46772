"""Fixtures for every ring."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from textwrap import dedent

import pytest
from hypothesis import settings

from .serving import checked_states

checked_states.install()
settings.register_profile("rgate", deadline=None)  # how long an example takes says more about the machine than about rgate
settings.load_profile("rgate")


@pytest.fixture(scope="session", autouse=True)
def runtime_directory() -> Iterator[Path]:
    """Where gateways of these tests have their admin sockets, and commands find them: no other gateway's, and a short path."""
    with tempfile.TemporaryDirectory(prefix="rgate-") as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("RUNTIME_DIRECTORY", folder)
        patch.setattr("rgate.serving.runtime_dir.SYSTEM", "")
        yield Path(folder)


@pytest.fixture(autouse=True)
def legal_states() -> Iterator[None]:
    """No connection of this test goes from one state to another that may not follow."""
    yield
    illegal, checked_states.illegal[:] = checked_states.illegal[:], []
    assert not illegal


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """install("dist", "1.0", {"group": {"name": "module:attribute"}}, module="source"): a distribution, for this test."""
    written: set[str] = set()

    def install(dist: str, version: str, entry_points: Mapping[str, Mapping[str, str]], **modules: str) -> None:
        folder = tmp_path / f"site-{dist}"
        metadata = folder / f"{dist.replace('-', '_')}-{version}.dist-info"
        metadata.mkdir(parents=True)
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {dist}\nVersion: {version}\n")
        lines = [f"[{group}]\n" + "".join(f"{n} = {v}\n" for n, v in points.items()) for group, points in entry_points.items()]
        (metadata / "entry_points.txt").write_text("".join(lines))
        for module, source in modules.items():
            (folder / f"{module}.py").write_text(dedent(source))
        written.update(modules)
        monkeypatch.syspath_prepend(str(folder))

    yield install
    for module in written:
        sys.modules.pop(module, None)
