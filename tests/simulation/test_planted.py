"""Planted defects: the histories find them, and shrink what they have found to a few steps.

Each is planted by replacing one function. The seed is the first that finds it.
"""

from collections.abc import Callable

import pytest

from nsupervisor.core.rules.rules import Engine
from nsupervisor.service.instance.actor import Actor
from nsupervisor.service.instance.exit_reports import ExitReports
from tests.simulation import history


def lose_an_exit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the exits that an earlier supervisor may not have written."""
    monkeypatch.setattr(ExitReports, "redeliver", lambda _self, _undelivered: None)


def start_a_second_generation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take each cgroup for empty."""
    monkeypatch.setattr(Actor, "is_populated", lambda _self: False)


def let_a_rule_fire_for_the_next_generation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let levels that held in one generation count in the next."""
    monkeypatch.setattr(Engine, "for_new_generation", lambda self: self)


@pytest.mark.parametrize(
    ("plant", "seed", "problem", "length"),
    [
        (lose_an_exit, 10, "no exit lost", 2),
        (start_a_second_generation, 1, "one generation", 0),
        (let_a_rule_fire_for_the_next_generation, 7, "own generation", 1),
    ],
)
def test_a_planted_defect_is_found(
    monkeypatch: pytest.MonkeyPatch, plant: Callable[[pytest.MonkeyPatch], None], seed: int, problem: str, length: int
) -> None:
    assert history.run(seed).problems == ()
    plant(monkeypatch)
    assert history.run(seed).problems[0].startswith(problem)
    _, steps = history.shrink(seed, lambda shorter: bool(shorter.problems))
    assert len(steps) == length
