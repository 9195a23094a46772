"""docs/architecture.md names every module once, in the folder it stands in, and draws the layers as they are."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from .source import FILES, PACKAGE, ROOT
from .test_imports import LAYERS

MOST_LOOSE_FILES = 4  # at the top of rgate/, beside __init__.py
MODULES = [str(path.relative_to(PACKAGE)) for path in FILES.values() if path.name != "__init__.py"]


def section(title: str) -> str:
    """The text below `## title`, up to the next heading of that level."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    assert found, f"docs/architecture.md has no section '## {title}'"
    return found[1]


def named() -> Iterator[str]:
    """The path below rgate/ of every file that `## Folders` names: at the start of a list item or of a row, in backticks.

    Several files may share an item or the first cell of a row. A heading `### name/` gives the folder; under any
    other heading, and before the first, are the files at the top. An item may name a file in a subfolder: `name/file.py`.
    """
    folder = ""
    for line in section("Folders").splitlines():
        if line.startswith("### "):
            heading = re.match(r"### `?(?:rgate/)?((?:\w+/)*)", line)
            folder = heading[1] if heading else ""
        elif item := re.match(r"\s*(?:[-*]|\|)\s*((?:`[\w/]+\.py`(?:,| and)?\s*)+)", line):
            yield from (folder + name for name in re.findall(r"`([\w/]+\.py)`", item[1]))


def test_every_module_is_named_once_in_its_folder() -> None:
    counts = Counter(name for name in named() if not name.endswith("__init__.py"))
    missing = sorted(set(MODULES) - counts.keys())
    gone = sorted(counts.keys() - set(MODULES))
    repeated = sorted(name for name, count in counts.items() if count > 1)
    assert not missing, f"docs/architecture.md, ## Folders, does not name {missing}"
    assert not gone, f"docs/architecture.md, ## Folders, names what does not exist: {gone}"
    assert not repeated, f"docs/architecture.md, ## Folders, names more than once: {repeated}"


def test_layers_are_drawn_as_they_are() -> None:
    fences = re.findall(r"^```\w*\n(.*?)^```", section("Layers"), re.MULTILINE | re.DOTALL)
    assert len(fences) == 1, "docs/architecture.md, ## Layers, has one fenced block, the lowest layer first"
    assert [set(line.split()) for line in fences[0].splitlines() if line.strip()] == list(LAYERS)


def test_few_files_are_loose_at_the_top() -> None:
    loose = [name for name in MODULES if "/" not in name]
    assert len(loose) <= MOST_LOOSE_FILES, f"{loose}: put modules into the folders of their subjects"
