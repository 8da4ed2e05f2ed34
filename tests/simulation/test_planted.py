"""Planted defects: the histories find them, and shrink what they have found to a few steps."""

import re

import pytest

from tests.needs import ROOT
from tests.simulation import history
from tests.simulation.defects import PLANTED, REVERTED, Defect


def check_found(monkeypatch: pytest.MonkeyPatch, defect: Defect) -> None:
    """Check that the history of a defect's seed fails because of it, and shrinks to its length."""
    assert history.run(defect.seed).problems == ()
    defect.plant(monkeypatch)
    # A seed means another history after a change of the service or the simulation.
    instead = f"find a seed with `scripts/chaos --simulate 1000 --defects {defect.plant.__name__}`"
    assert [problem[: len(defect.problem)] for problem in history.run(defect.seed).problems[:1]] == [defect.problem], (
        instead
    )
    _, steps = history.shrink(defect.seed, lambda shorter: bool(shorter.problems))
    assert len(steps) == defect.length, instead


@pytest.mark.parametrize("defect", PLANTED, ids=lambda defect: defect.plant.__name__)
def test_a_planted_defect_is_found(monkeypatch: pytest.MonkeyPatch, defect: Defect) -> None:
    check_found(monkeypatch, defect)


def test_the_page_has_the_seed_and_the_length_of_each_defect() -> None:
    page = (ROOT / "docs/chaos.md").read_text()
    rows = re.findall(r"^\| .* \| `(\w+)` \| (\d+) \| (.+) \| (\d+) \|$", page, re.MULTILINE)
    defects = (*PLANTED, *REVERTED)
    assert rows == [(one.plant.__name__, str(one.seed), one.problem, str(one.length)) for one in defects]
