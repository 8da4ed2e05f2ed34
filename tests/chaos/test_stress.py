"""A short run of the stress; `scripts/stress` has the long ones. How quickly neighbours answer decides nothing here."""

import pytest

from tests.chaos import stress
from tests.needs import needs

OOM = {"event": "exited", "workload": "w", "generation": 1, "signal": "SIGKILL", "oom_killed": True}
KILL = {**OOM, "oom_killed": False}
RULE = {"event": "action", "action": "restart", "cause": {"rule": "policy.1", "line": 3}}


@pytest.mark.slow
@needs("root", "cgroup", "memory", "pids", "cpu", "cpuset", "program:stress-ng")
def test_neighbours_run_on_and_each_kill_has_a_cause():
    report = stress.stress(1.5, 1)
    print("\n".join(report.lines()))
    assert report.unexplained == []
    assert all(report.ends[name]["acts of rules"] for name in ("memory", "processes"))
    assert all(phase.all for phase in report.phases.values())


def test_an_end_without_a_cause_is_seen():
    assert stress.unexplained([OOM]) == []
    assert stress.unexplained([RULE, KILL]) == []
    assert stress.unexplained([KILL]) == ["w#1 ended by SIGKILL: no cause is told"]
