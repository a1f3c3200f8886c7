"""docs/acceptance.md names, for every row of the table, tests that exist."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "acceptance.md").read_text(encoding="utf-8")
ROWS = dict(re.findall(r"^\| (\d+) \|[^|]*\| (.*) \|$", PAGE, re.MULTILINE))


def missing(test_id):
    """What a test's id names that is not there."""
    path, *classes, name = test_id.split("::")
    if not (ROOT / path).is_file():
        return path
    body = ast.parse((ROOT / path).read_text(encoding="utf-8")).body
    for wanted in classes:
        body = next((node.body for node in body if isinstance(node, ast.ClassDef) and node.name == wanted), [])
    found = {node.name for node in body if isinstance(node, ast.FunctionDef)}
    return None if name.startswith("test_") and name in found else test_id


def test_every_row_is_on_the_page():
    assert list(ROWS) == [str(number) for number in range(1, 25)]


@pytest.mark.parametrize("row", sorted(ROWS, key=int))
def test_every_test_named_exists(row):
    ids = re.findall(r"`([^`]+)`", ROWS[row])
    assert ids
    assert [found for found in map(missing, ids) if found] == []


def test_a_test_that_is_gone_is_noticed():
    assert missing("tests/test_no.py::test_no") == "tests/test_no.py"
    assert missing("tests/test_acceptance.py::test_no") == "tests/test_acceptance.py::test_no"
    assert missing("tests/test_acceptance.py::missing")  # not a test
