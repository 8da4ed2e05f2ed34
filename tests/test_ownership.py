"""Each piece of the service's state has one owner, whose methods change it."""

import ast
from textwrap import dedent

import pytest

from tests.needs import ROOT
from tests.ownership import foreign_assignments, read_foreign_assignments

SERVICE = ROOT / "nsupervisor" / "service"

KNOWN_ASSIGNMENTS = {
    "run.py": {"journal.listener"},
}
"""Assignments to attributes of other objects that are left."""


def test_no_module_assigns_attributes_of_objects_that_it_does_not_own() -> None:
    found = {
        str(path.relative_to(SERVICE)): {assignment.target for assignment in read_foreign_assignments(path)}
        for path in sorted(SERVICE.rglob("*.py"))
    }
    assert {path: targets for path, targets in found.items() if targets} == KNOWN_ASSIGNMENTS


@pytest.mark.parametrize(
    ("statement", "target"),
    [
        ("actor.pid = 1", "actor.pid"),
        ("actor.pid: int = 1", "actor.pid"),
        ("actor.count += 1", "actor.count"),
        ("del actor.pid", "actor.pid"),
        ("self.checkpoint.process = None", "self.checkpoint.process"),
        ("actor.pid, other = 1, 2", "actor.pid"),
        ("[*actor.pids] = ()", "actor.pids"),
        ("for actor.pid in (1, 2): pass", "actor.pid"),
        ("with open('x') as actor.file: pass", "actor.file"),
        ("setattr(actor, 'pid', 1)", "actor.pid"),
        ("object.__setattr__(actor, 'pid', 1)", "actor.pid"),
        ("delattr(actor, name)", "actor.…"),
        ("found = actors[0]; found.pid = 1", "found.pid"),
        ("found = find(); found.pid = 1", "found.pid"),
        ("made = Actor(); made = actors[0]; made.pid = 1", "made.pid"),
        ("for made in actors:\n    made.pid = 1", "made.pid"),
        ("Actor.count = 1", "Actor.count"),
        ("run = lambda: setattr(actor, 'pid', 1)", "actor.pid"),
    ],
)
def test_a_planted_violation_is_found(statement: str, target: str) -> None:
    source = dedent(
        """
        class Owner:
            def method(self, actor, actors):
        {}
        """
    ).format("\n".join(" " * 8 + line for line in statement.splitlines()))
    assert [assignment.target for assignment in foreign_assignments(ast.parse(source))] == [target]


@pytest.mark.parametrize(
    "statement",
    [
        "self.pid = 1",
        "self.pid, self.count = 1, 2",
        "made = Actor(); made.pid = 1",
        "made = Actor.from_name('web'); made.pid = 1",
        "made = attrs.evolve(actor, pid=2); made.pid = 1",
        "self.pids['web'] = 1",
        "pids['web'] = 1",
    ],
)
def test_an_owner_may_assign(statement: str) -> None:
    source = f"class Owner:\n    def method(self, actor, pids):\n        {statement}\n"
    assert foreign_assignments(ast.parse(source)) == []
