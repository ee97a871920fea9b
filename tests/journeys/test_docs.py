"""What docs/ names is there: tests, and files of lmkit."""

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
DOCS = TESTS.parent / "docs"
# `file.py`, `file.py::test`, and `::test` of the file before it.
NAMED = re.compile(r"`(?P<file>[\w/]+\.py)?(?:::(?P<test>test_\w+))?`")


@pytest.mark.parametrize(
    ("name", "fewest"), [("reliability.md", 20), ("security.md", 20), ("suites.md", 10)]
)
def test_every_test_that_a_promise_names_is_there(name, fewest):
    text = (DOCS / name).read_text().rpartition("## What tests show")[2]
    rows = [row for row in text.splitlines() if row.startswith("| ")]
    num_tests = 0
    for row in rows[1:]:
        promised = row.split(" | ")[-1]
        found = [match for match in NAMED.finditer(promised) if match["file"] or match["test"]]
        assert found, row
        file = TESTS
        for match in found:
            file = TESTS / match["file"] if match["file"] else file
            assert file.is_file(), row
            if match["test"]:
                assert f"\ndef {match['test']}(" in file.read_text(), match["test"]
                num_tests += 1
    assert num_tests > fewest


def test_every_file_that_the_architecture_names_is_there():
    text = (DOCS / "architecture.md").read_text()
    files = set(re.findall(r"`(\w[\w/]*\.(?:py|h|yaml))`", text)) - {"config.yaml"}
    roots = (TESTS.parent / "lmkit", TESTS.parent)
    assert len(files) > 30
    assert [name for name in files if not any((root / name).is_file() for root in roots)] == []
