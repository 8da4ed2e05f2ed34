"""A short run of the stress; `scripts/stress` has the long ones. How quickly neighbours answer decides nothing here, as
others use the processors meanwhile."""

import attrs
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
    assert all(len(phase.others) == 1 for phase in report.phases.values())


def test_an_end_without_a_cause_is_seen():
    assert stress.unexplained([OOM]) == []
    assert stress.unexplained([RULE, KILL]) == []
    assert stress.unexplained([KILL]) == ["w#1 ended by SIGKILL: no cause is told"]


@pytest.mark.parametrize(
    ("times", "others", "disk", "status", "words"),
    [
        (1.4, 0.02, "", 0, "passed"),
        (1.6, 0.02, "", 1, "FAILED: the neighbours took longer than 1.5 times beside processor 1.60"),
        (1.6, 0.30, "", 3, "NOT JUDGED: processor: others, or the kernel itself, used up to 30% of a processor"),
        (1.4, 0.30, "", 0, "passed"),
    ],
)
def test_what_is_too_slow_counts_where_limits_allow_better(times, others, disk, status, words):
    phases = {
        stress.QUIET: stress.Phase(stress.QUIET, [[1.0] * 200], [0.01]),
        "processor": stress.Phase("processor", [[times] * 200], [others]),
    }
    report = stress.Report(phases, {}, [], {}, disk)
    text, told = report.verdict()
    assert (told, text[: len(words)]) == (status, words)
    assert any(("OUTSIDE" in line) == (times > 1.5) for line in report.lines() if line.startswith("processor"))
    assert attrs.evolve(report, unexplained=["w#1 ended"]).verdict()[1] == 1


def test_a_disk_that_nothing_limits_is_not_judged():
    phases = {
        stress.QUIET: stress.Phase(stress.QUIET, [[1.0] * 200], [0.01]),
        "disk": stress.Phase("disk", [[9.0] * 200], [0.01]),
    }
    assert stress.Report(phases, {}, [], {}, "no disk").verdict()[1] == 3
    assert stress.Report(phases, {}, [], {}, "").verdict()[1] == 1
