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


THREAD_NAMES = re.compile(r'"(rgate-(?:\w+(?:-\w+)*)?)')
LOCKS = re.compile(r"threading\.(?:Lock|RLock|Condition)\(\)")


def threads_page() -> str:
    return (ROOT / "docs" / "threads.md").read_text()


def test_every_thread_is_on_the_page() -> None:
    sources = {str(path.relative_to(PACKAGE)): path.read_text() for path in FILES.values()}
    rows = [line for line in threads_page().splitlines() if line.startswith("|")]
    starts = {name: text for name, text in sources.items() if re.search(r"Thread\(|Timer\(", text) and "testing/" not in name}
    missing = sorted(name for name in starts if not any(f"`{name}`" in row for row in rows))
    assert not missing, f"docs/threads.md says nothing of the threads of {missing}"
    names = {name for text in starts.values() for name in THREAD_NAMES.findall(text) if not name.endswith("-")}
    assert names, "thread names begin with rgate-"
    unnamed = sorted(name for name in names if not re.search(rf"`{name}[`-]", threads_page()))
    assert not unnamed, f"docs/threads.md does not name {unnamed}"


def test_every_lock_is_on_the_page() -> None:
    rows = [line for line in threads_page().splitlines() if line.startswith("|")]
    for name, path in FILES.items():
        count, relative = len(LOCKS.findall(path.read_text())), str(path.relative_to(PACKAGE))
        if count and not relative.startswith("testing/"):
            assert any(f"`{relative}`" in row for row in rows), f"docs/threads.md says nothing of the locks of {name}"


def test_folders_of_tests_that_ci_names_exist() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    named = re.findall(r"\btests/\w+", script)
    assert named and [name for name in named if not (ROOT / name).is_dir()] == []
