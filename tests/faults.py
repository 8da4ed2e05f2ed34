"""The rows of `faults.toml` and the tests that are marked with them. `scripts/faults` prints both."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

TESTS = Path(__file__).resolve().parent


class Row(NamedTuple):
    """A fault that was found, and whether its tests cover all of it."""

    title: str
    is_fixed: bool


class MarkedTest(NamedTuple):
    """A test that is marked with a row: its file, relative to the repository, and its name."""

    path: str
    name: str

    def __str__(self) -> str:
        return f"{self.path}::{self.name}"


def read_rows(path: Path = TESTS / "faults.toml") -> dict[str, Row]:
    """Return the rows by their ids, in the order of the file."""
    tables = tomllib.loads(path.read_text())
    return {name: Row(table["title"], table.get("fixed", False)) for name, table in tables.items()}


def find_marks(root: Path = TESTS) -> dict[str, list[MarkedTest]]:
    """Return the tests of each row that a marker names, found in the source: no test is imported."""
    marked: dict[str, list[MarkedTest]] = {}
    for path in sorted(root.rglob("test_*.py")):
        source = path.read_text()
        if "mark.fault" in source:
            for row, name in _marks_in(ast.parse(source)):
                marked.setdefault(row, []).append(MarkedTest(str(path.relative_to(root.parent)), name))
    return marked


def _marks_in(module: ast.Module) -> Iterator[tuple[str, str]]:
    """Yield (row, name of the test) for each marker, also of the module, of a class and of single parameters."""
    of_module = {
        row: None
        for node in module.body
        if isinstance(node, ast.Assign) and any(ast.unparse(target) == "pytestmark" for target in node.targets)
        for row in _rows_named(node.value)
    }
    for node in module.body:
        for function in _functions(node):
            owners = [node, function] if function is not node else [node]
            decorators = [decorator for owner in owners for decorator in getattr(owner, "decorator_list", ())]
            name = "::".join(getattr(owner, "name", "") for owner in owners)
            rows = {row: None for decorator in decorators for row in _rows_named(decorator)}
            if function.name.startswith("test_"):
                rows = of_module | rows
            yield from ((row, name) for row in rows)


def _functions(node: ast.stmt) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            yield node
        case ast.ClassDef(body=body):
            for inner in body:
                yield from _functions(inner)


def _rows_named(decorator: ast.expr) -> Iterator[str]:
    """Yield the arguments of each `pytest.mark.fault(…)` inside a decorator."""
    for node in ast.walk(decorator):
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Attribute(attr="mark"), attr="fault"), args=arguments):
                yield from (str(argument.value) for argument in arguments if isinstance(argument, ast.Constant))


def contradictions(rows: Mapping[str, Row], marked: Mapping[str, list[MarkedTest]]) -> list[str]:
    """Return what is wrong between the list of rows and the markers, in words."""
    unknown = [
        f"{test} is marked with {row}, which tests/faults.toml lacks"
        for row in marked.keys() - rows
        for test in marked[row]
    ]
    untested = [
        f"{name} is said to be fixed, but no test is marked with it"
        for name, row in rows.items()
        if row.is_fixed and name not in marked
    ]
    return sorted(unknown) + untested
