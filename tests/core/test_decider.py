"""Decisions about a workload: observations fire rules, their actions are pending, and inputs change the lifecycle."""

import signal

import attrs
import pytest

from nsupervisor.config.conditions import parse_condition
from nsupervisor.config.model import Rule, WorkloadConfig
from nsupervisor.core import events
from nsupervisor.core.actions import FreezeAll, KillAll, Signal, Spawn
from nsupervisor.core.decider import Observation, RunPending, WorkloadState, handle
from nsupervisor.core.exits import Exit
from nsupervisor.core.lifecycle import Instant, Lifecycle, State
from nsupervisor.core.rules.rules import Engine

OOM = parse_condition("memory.events oom_kill")


class Run:
    """Runs the decisions of one rule, second by second."""

    def __init__(self, **keys):
        rule = Rule(when=OOM, name="policy[0]", line=7, **keys)
        self.workload = WorkloadConfig("web", command=("web",), policy=(rule,))
        self.state = WorkloadState(Lifecycle(), Engine.for_rules((rule,)))
        self.now = 100.0
        self(Observation({"memory.events": {"oom_kill": 0}}, {}))
        self(events.Start())
        self(events.Execed(1))

    def __call__(self, what):
        self.now += 1
        transition = handle(self.state, what, Instant(self.now), self.workload)
        self.state = transition.state
        return transition

    def oom(self, count):
        return self(Observation({"memory.events": {"oom_kill": count}}, {}))


def test_a_rule_that_goes_off_waits_for_its_turn():
    run = Run(action="restart")
    seen = run.oom(1)
    assert (seen.actions, run.state.lifecycle.state, len(run.state.pending)) == ((), State.RUNNING, 1)
    turn = run(RunPending())
    assert turn.actions == (Signal(signal.SIGTERM),)
    assert turn.executed is not None
    assert turn.executed.firing.cause.after == 1
    assert turn.lifecycle_input == events.PolicyRestart("policy[0] (memory.events oom_kill)")
    assert (run.state.lifecycle.state, run.state.pending) == (State.STOPPING, ())
    assert run(RunPending()).executed is None  # no action is pending any more


def test_turns_come_in_the_order_in_which_rules_went_off():
    run = Run(action="log")
    run.oom(1)
    run.oom(3)
    assert [run(RunPending()).executed.firing.cause.after for _ in range(2)] == [1, 3]


def test_a_turn_that_comes_after_the_generations_end_does_nothing():
    run = Run(action="kill")
    run.oom(1)
    run(events.Exited(1, Exit(code=1), populated=False))
    late = run(RunPending())
    assert (late.executed, late.actions, late.lifecycle_input) == (None, (), None)


def test_a_rule_that_freezes_while_the_program_is_being_set_up_is_not_lost():
    run = Run(action="freeze")
    run(events.Restart())
    run(events.Exited(1, Exit(code=0), populated=False))
    run.oom(1)
    assert (run(RunPending()).actions, run.state.lifecycle.state) == ((), State.STARTING)
    assert run(events.Execed(2)).actions == (FreezeAll(),)
    assert run.state.lifecycle.reason == "frozen by policy[0] (memory.events oom_kill)"


def test_each_action_asks_for_what_it_says():
    assert _actions(action="kill") == (KillAll(),)
    assert _actions(action="signal", signal=signal.SIGHUP) == (Signal(signal.SIGHUP, resumes=False),)
    assert _actions(action="log") == ()
    assert _actions(action="exec", exec_=("true",)) == ()
    assert _actions(action="kill", dry_run=True) == ()


def _actions(**keys):
    run = Run(**keys)
    run.oom(1)
    return run(RunPending()).actions


def test_a_new_generation_has_to_hold_a_level_anew():
    level = Rule(when=parse_condition("pids.current >= 4"), action="log", for_=5.0)
    run = Run(action="log")
    run.state = attrs.evolve(run.state, engine=Engine.for_rules((level,)))
    run(Observation({"pids.current": {"": 9}}, {}))
    assert run.state.engine.states[0].holding_since is not None
    assert run(events.Restart()).actions == (Signal(signal.SIGTERM),)
    assert run.state.engine.states[0].holding_since is not None
    assert run(events.Exited(1, Exit(signal=15), populated=False)).actions == (Spawn(2),)
    assert run.state.engine.states[0].holding_since is None


@pytest.mark.fault("H8")
@pytest.mark.parametrize(
    ("command", "after"),
    [(events.Restart(), State.STARTING), (events.Stop(), State.STOPPED), (events.Kill(), State.BACKOFF)],
)
def test_rules_do_not_judge_an_exit_that_the_supervisor_caused(command, after):
    """`trap 'exit 3' TERM`: the rule below turned a person's restart into a stop."""
    rule = Rule(when=parse_condition("exit code != 0"), action="stop", name="policy[0]", line=7)
    run = Run(action="log")
    run.workload = WorkloadConfig("web", command=("web",), policy=(rule,), restart="always")
    run.state = attrs.evolve(run.state, engine=Engine.for_rules((rule,)))
    run(command)
    exit_ = Exit(code=3)
    run(Observation({"exit": exit_.condition_values()}, {}))
    assert run.state.pending == ()
    run(events.Exited(1, exit_, populated=False))
    assert run.state.lifecycle.state is after


def test_rules_judge_an_exit_that_happens_by_itself():
    rule = Rule(when=parse_condition("exit code != 0"), action="stop", name="policy[0]", line=7)
    run = Run(action="log")
    run.state = attrs.evolve(run.state, engine=Engine.for_rules((rule,)))
    run(Observation({"exit": Exit(code=3).condition_values()}, {}))
    assert len(run.state.pending) == 1


def test_other_files_of_such_an_observation_count():
    run = Run(action="log")
    run(events.Stop())
    run(Observation({"exit": Exit(code=3).condition_values(), "memory.events": {"oom_kill": 1}}, {}))
    assert [pending.firing.cause.file for pending in run.state.pending] == ["memory.events"]
