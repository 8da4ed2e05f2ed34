"""The faults that were found are listed, and each one that is said to be fixed has a test."""

import subprocess
import sys
from pathlib import Path

from tests.faults import MarkedTest, Row, contradictions, find_marks, read_rows
from tests.needs import ROOT

SOURCE = """
import pytest

@pytest.mark.fault("D8", "F6")
async def test_one(): ...

@pytest.mark.fault("B1")
class TestGroup:
    @pytest.mark.parametrize("x", [1, pytest.param(2, marks=pytest.mark.fault("B2"))])
    def test_two(self, x): ...

def test_without(): ...
"""


def test_markers_and_rows_agree() -> None:
    assert contradictions(read_rows(), find_marks()) == []


def test_markers_are_found_on_functions_classes_and_parameters(tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_some.py").write_text(SOURCE)
    one = MarkedTest("tests/test_some.py", "test_one")
    two = MarkedTest("tests/test_some.py", "TestGroup::test_two")
    assert find_marks(tmp_path / "tests") == {"D8": [one], "F6": [one], "B1": [two], "B2": [two]}


def test_an_unknown_row_and_a_fixed_one_without_a_test_are_reported() -> None:
    rows = {"A1": Row("a title", True), "A2": Row("another title", False)}
    assert contradictions(rows, {"Z9": [MarkedTest("tests/test_x.py", "test_y")]}) == [
        "tests/test_x.py::test_y is marked with Z9, which tests/faults.toml lacks",
        "A1 is said to be fixed, but no test is marked with it",
    ]


def test_each_row_is_printed_with_its_tests_or_as_open() -> None:
    command = [sys.executable, ROOT / "scripts" / "faults"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    rows, marked = read_rows(), find_marks()
    assert [line.split()[0] for line in printed if not line.startswith(" ")][:-1] == list(rows)
    tests = [f"            {test}" for name in rows for test in marked.get(name, [])]
    assert [line for line in printed if line.startswith(" ")] == tests
    assert f"{sum(name not in marked for name in rows)} open" in printed[-1]


def test_an_unknown_row_is_refused_with_those_there_are() -> None:
    command = [sys.executable, ROOT / "scripts" / "faults", "Z9"]
    refused = subprocess.run(command, capture_output=True, text=True)
    assert refused.returncode == 2
    assert "there is no row Z9; tests/faults.toml has A1, A2" in refused.stderr
