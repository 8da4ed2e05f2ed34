"""Each statement of docs/security-model.md has a test that exists."""

import ast
import re

from tests.needs import ROOT

PAGE = ROOT / "docs" / "security-model.md"
NAMED = re.compile(r"`([\w/]+\.py)::(\w+)`")


def functions(path):
    """The names of the test functions in a file."""
    tree = ast.parse(path.read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_the_tests_that_the_page_names_exist():
    named = NAMED.findall(PAGE.read_text())
    assert len(named) > 20, "the pattern finds them"
    assert [f"{file}::{name}" for file, name in named if name not in functions(ROOT / "tests" / file)] == []


def test_each_statement_names_a_test():
    rows = [line for line in PAGE.read_text().partition("## Statements")[2].splitlines() if line.startswith("| ")]
    statements = [row for row in rows if not row.startswith(("| statement |", "| gap |"))]
    assert statements
    assert [row for row in statements if not NAMED.search(row.split("|")[-2])] == []


def test_each_gap_is_expected_to_fail():
    text = (ROOT / "tests" / "attack" / "test_peers.py").read_text()
    gaps = NAMED.findall(PAGE.read_text().partition("## What does not hold yet")[2])
    assert gaps
    for _, name in gaps:
        before = text[: text.index(f"def {name}(")]
        assert "@pytest.mark.xfail(strict=True" in before[before.rindex("@") :].replace("(\n    ", "("), name
