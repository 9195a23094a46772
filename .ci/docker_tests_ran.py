"""python docker_tests_ran.py REPORT.xml: fail unless every test of tests/docker was run, none skipped or deselected. Those of
systemd may be skipped, as not every machine lets it run in a container.

The report is pytest's `--junitxml`; what should be in it is read from the sources.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from xml.etree import ElementTree

MAY_BE_SKIPPED = "tests.docker.test_systemd"
FOLDER = Path(__file__).parents[1] / "tests" / "docker"


def written() -> set[tuple[str, str]]:
    """The (module, test function) pairs in the sources."""
    return {
        (f"tests.docker.{file.stem}", node.name)
        for file in FOLDER.glob("test_*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def ran(report: str) -> set[tuple[str, str]]:
    """The pairs of which every case in the report was run to its end."""
    cases = [
        ((".".join(case.get("classname", "").split(".")[:3]), case.get("name", "").partition("[")[0]), case.find("skipped"))
        for case in ElementTree.parse(report).iter("testcase")
    ]
    return {test for test, _ in cases} - {test for test, skipped in cases if skipped is not None and test[0] != MAY_BE_SKIPPED}


if __name__ == "__main__":
    expected = written()
    absent = sorted(expected - ran(sys.argv[1]))
    if absent or not expected:
        sys.exit(
            "ci: these Docker tests were skipped or not run:\n" + "\n".join(f"  {module}::{test}" for module, test in absent)
        )
    print(f"ci: all {len(expected)} Docker tests were run")
