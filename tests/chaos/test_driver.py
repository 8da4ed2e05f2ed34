"""A short run of the driver; `scripts/chaos` has the long ones."""

import pytest

from tests.chaos import machine
from tests.needs import needs

SEEDS = (2, 9, 13)
STEPS = 10


@pytest.mark.slow
@needs("root", "cgroup", "program:unshare")
@pytest.mark.parametrize("number", SEEDS)
def test_all_holds_after_each_step(number):
    assert machine.run(number, STEPS) == STEPS
