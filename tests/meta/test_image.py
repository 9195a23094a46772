"""deploy/requirements.txt, which the image is made of, is what pyproject.toml asks for."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
TEXT = re.sub(r"\\\n", " ", re.sub(r"^\s*#.*\n", "", (ROOT / "deploy" / "requirements.txt").read_text(), flags=re.MULTILINE))
PINNED = {
    canonicalize_name(line.split("==")[0]): Version(line.split("==")[1].split()[0]) for line in TEXT.splitlines() if line.strip()
}
WANTED = [*PROJECT["project"]["dependencies"], *PROJECT["build-system"]["requires"]]


@pytest.mark.parametrize("wanted", WANTED)
def test_image_has_a_release_that_the_project_allows(wanted: str) -> None:
    requirement = Requirement(wanted)
    assert requirement.specifier.contains(PINNED[canonicalize_name(requirement.name)])


@pytest.mark.parametrize("wanted", WANTED)
def test_image_has_what_its_packages_need(wanted: str) -> None:
    """As far as the releases that are installed here say; `pip check` in the Dockerfile asks the ones that it installs."""
    for needed in map(Requirement, requires(Requirement(wanted).name) or ()):
        if needed.marker is None or needed.marker.evaluate({"extra": ""}):
            assert canonicalize_name(needed.name) in PINNED


@pytest.mark.parametrize("line", [line for line in TEXT.splitlines() if line.strip()], ids=lambda line: line.split("==")[0])
def test_image_holds_every_release_to_its_hashes(line: str) -> None:
    assert re.fullmatch(r"[a-z0-9.-]+==\S+(?: ; [^-]*?)?(?:\s+--hash=sha256:[0-9a-f]{64})+\s*", line)
