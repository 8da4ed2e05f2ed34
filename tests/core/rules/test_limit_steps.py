"""The limits that the action `set` computes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsupervisor.config.conditions import parse_condition
from nsupervisor.config.model import Rule
from nsupervisor.config.units import RelativeChange
from nsupervisor.core.rules.limit_steps import PAGE_SIZE, next_limits

M = 1 << 20
WHEN = parse_condition("pids.events max")


def rule(set_, limit=None):
    return Rule(when=WHEN, action="set", set_=set_, limit=limit or {})


@pytest.mark.parametrize(
    ("key", "wanted", "bound", "now", "after"),
    [
        ("memory_high", RelativeChange(25.0), None, 64 * M, 80 * M),
        ("memory_high", RelativeChange(25.0), 70 * M, 64 * M, 70 * M),
        ("memory_high", RelativeChange(25.0), 64 * M, 64 * M, "nothing"),
        (
            "memory_high",
            RelativeChange(25.0),
            32 * M,
            64 * M,
            "nothing",
        ),  # past its bound already: it does not return to the bound
        ("memory_high", RelativeChange(-50.0), 48 * M, 64 * M, 48 * M),
        ("memory_high", RelativeChange(amount=64 * M), None, 64 * M, 128 * M),
        ("memory_high", RelativeChange(25.0), None, None, "nothing"),  # 25% more than no limit is no limit
        ("memory_max", 32 * M, None, 64 * M, 32 * M),
        ("memory_max", None, None, 64 * M, None),
        ("memory_max", RelativeChange(-99.0), None, PAGE_SIZE, "nothing"),
        ("pids_max", RelativeChange(10.0), None, 4.0, 5),  # at least one more
        ("pids_max", RelativeChange(-10.0), None, 4.0, 3),
        ("pids_max", RelativeChange(amount=-9), None, 4.0, 1),
        ("cpu_max", (50_000, 100_000), None, 1.5, 0.5),
        ("cpu_max", RelativeChange(-50.0), (30_000, 100_000), 1.0, 0.5),
        ("cpu_max", (None, 100_000), None, 1.5, None),
    ],
)
def test_one_limit(key, wanted, bound, now, after):
    limits = {key.replace("_", "."): now}
    changes = next_limits(rule({key: wanted}, {key: bound} if bound is not None else None), limits)
    assert changes == ({} if after == "nothing" else {key: after})


def test_what_the_host_has_not_is_left_out():
    assert next_limits(rule({"memory_high": 64 * M, "pids_max": 5}), {"pids.max": 9.0}) == {"pids_max": 5}


@given(
    now=st.integers(1, 2**20).map(lambda pages: pages * PAGE_SIZE),
    percent=st.floats(-99, 1000).filter(lambda percent: abs(percent) >= 0.1),
    bound=st.integers(1, 2**40),
)
def test_it_arrives_at_its_bound_and_stays(now, percent, bound):
    it, steps = rule({"memory_high": RelativeChange(percent)}, {"memory_high": bound}), 0
    while changes := next_limits(it, {"memory.high": now}):
        after = changes["memory_high"]
        assert after % PAGE_SIZE == 0
        assert (
            (after > now and after <= bound) if percent > 0 else (after < now and after >= min(bound, now) - PAGE_SIZE)
        )
        now, steps = after, steps + 1
        assert steps < 20_000
