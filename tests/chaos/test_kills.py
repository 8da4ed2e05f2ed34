"""A short run of `scripts/chaos --kills`, and that it can fail."""

import pytest

from tests.chaos.kills import Kills, gaps
from tests.needs import needs


@pytest.mark.slow
@needs("root", "cgroup", "pids")
def test_some_kills():
    print(Kills(1, workloads=10).run(5))


def test_that_missing_numbers_are_counted():
    assert gaps({("a", 1): [1, 2, 3], ("a", 2): [1]}) == ({}, 0)
    assert gaps({("a", 1): [1, 3, 3, 5]}) == ({("a", 1): "2 of 5, 2, 4"}, 1)
