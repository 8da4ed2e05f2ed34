"""The readings that the rules see, sample by sample."""

from types import SimpleNamespace
from typing import Any

import trio
from trio.testing import MockClock

from nsupervisor.config.conditions import parse_condition
from nsupervisor.config.model import Rule, WorkloadConfig
from nsupervisor.core import events
from nsupervisor.core.decider import WorkloadState
from nsupervisor.core.exits import Exit
from nsupervisor.core.lifecycle import Lifecycle, State
from nsupervisor.core.rules.rules import Engine
from nsupervisor.service.instance.decisions import Decisions
from nsupervisor.service.instance.rule_observer import RuleObserver


def make_observer(*rules: Rule) -> tuple[RuleObserver, Decisions]:
    """An observer of a workload that runs; no cgroup is read, as samples are given to it."""
    workload = WorkloadConfig("web", command=("web",), policy=rules, restart_sec=0.0)
    state = WorkloadState(Lifecycle(state=State.RUNNING, generation=1), Engine.for_rules(rules))
    cgroup: Any = SimpleNamespace(read_limits=lambda keys: {})
    nothing: Any = None
    decisions = Decisions("web", workload, set(), lambda: None, state, lambda: 0.5)
    return RuleObserver(cgroup, nothing, decisions, nothing), decisions


def live_again(decisions: Decisions) -> None:
    """Kill the program, and start the next one."""
    generation = decisions.lifecycle.generation
    decisions.handle(events.Kill("operator"))
    decisions.handle(events.Exited(generation, Exit(signal=9), populated=False))
    decisions.handle(events.Timeout())
    decisions.handle(events.Execed(generation + 1))
    assert decisions.lifecycle.state is State.RUNNING


async def test_what_a_program_used_is_not_held_against_the_next_one(autojump_clock: MockClock) -> None:
    """A level that stood still was shown once more, as of then, with the next program's first sample: a rule on it went
    off at once, with a number that nothing has used."""
    observer, decisions = make_observer(
        Rule(when=parse_condition("pids.current >= 4"), action="restart", name="policy[0]", line=1)
    )
    full, empty = {"": 4.0}, {"": 1.0}
    observer.sample({"pids.current": full})
    assert len(decisions.state.pending) == 1
    for _ in range(5):  # nothing is new, so the rules are not shown it
        await trio.sleep(1)
        observer.sample({"pids.current": full})
    live_again(decisions)
    await trio.sleep(1)
    observer.sample({"pids.current": empty})
    assert len(decisions.state.pending) == 1
    observer.sample({"pids.current": {"": 5.0}})
    assert [pending.generation for pending in decisions.state.pending] == [1, 2]


async def test_a_rate_knows_until_when_nothing_happened(autojump_clock: MockClock) -> None:
    rule = Rule(when=parse_condition("cpu.stat nr_throttled rate > 5/s"), action="log", name="policy[0]", line=1)
    (observer, decisions), calm = make_observer(rule), {"nr_throttled": 0.0}
    for _ in range(20):
        observer.sample({"cpu.stat": calm})
        await trio.sleep(1)
    observer.sample({"cpu.stat": {"nr_throttled": 8.0}})  # within a second, not within twenty
    assert [pending.firing.cause.after for pending in decisions.state.pending] == [8.0]


async def test_without_rules_nothing_is_sampled_and_no_limit_is_read(autojump_clock: MockClock) -> None:
    """Each program without rules had ten samples after its start, and two files were read for its limits."""
    observer, _ = make_observer()
    observer.watcher = None  # type: ignore[assignment]  # a sample would need it
    observer.cgroup.read_limits = lambda keys: {"memory.max": 1.0}  # type: ignore[method-assign]
    observer.program_started()
    assert observer._limits is None
    assert observer.limits == {"memory.max": 1.0}
    observer.cgroup.read_limits = lambda keys: {"memory.max": 2.0}  # type: ignore[method-assign]
    assert observer.limits == {"memory.max": 1.0}
    observer.refresh_limits()
    assert observer.limits == {"memory.max": 2.0}
