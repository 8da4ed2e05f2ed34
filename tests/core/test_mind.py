"""The mind of a workload: readings set rules off, turns let them act, facts and wishes move its life."""

import signal

import attrs

from nsupervisor.config.conditions import parse_condition
from nsupervisor.config.model import Rule, Workload
from nsupervisor.core import events
from nsupervisor.core.actions import FreezeAll, KillAll, Signal, Spawn
from nsupervisor.core.exits import Exit
from nsupervisor.core.lifecycle import Life, Moment, State
from nsupervisor.core.mind import Mind, Seen, Turn, take
from nsupervisor.core.rules import Engine

OOM = parse_condition("memory.events oom_kill")


class Run:
    """Drives a mind with one rule, second by second."""

    def __init__(self, **keys):
        rule = Rule(when=OOM, name="policy[0]", line=7, **keys)
        self.workload = Workload("web", command=("web",), policy=(rule,))
        self.mind = Mind(Life(), Engine.of((rule,)))
        self.now = 100.0
        self(Seen({"memory.events": {"oom_kill": 0}}, {}))
        self(events.Start())
        self(events.Execed(1))

    def __call__(self, what):
        self.now += 1
        thought = take(self.mind, what, Moment(self.now), self.workload)
        self.mind = thought.mind
        return thought

    def oom(self, count):
        return self(Seen({"memory.events": {"oom_kill": count}}, {}))


def test_a_rule_that_goes_off_waits_for_its_turn():
    it = Run(action="restart")
    seen = it.oom(1)
    assert (seen.actions, it.mind.life.state, len(it.mind.due)) == ((), State.RUNNING, 1)
    turn = it(Turn())
    assert turn.actions == (Signal(signal.SIGTERM),)
    assert turn.due is not None
    assert turn.due.fired.cause.after == 1
    assert turn.event == events.Recycle("policy[0] (memory.events oom_kill)")
    assert (it.mind.life.state, it.mind.due) == (State.STOPPING, ())
    assert it(Turn()).due is None  # nothing is left


def test_turns_come_in_the_order_in_which_rules_went_off():
    it = Run(action="log")
    it.oom(1)
    it.oom(3)
    assert [it(Turn()).due.fired.cause.after for _ in range(2)] == [1, 3]


def test_a_turn_that_comes_after_the_generations_end_does_nothing():
    it = Run(action="kill")
    it.oom(1)
    it(events.Exited(1, Exit(code=1), populated=False))
    late = it(Turn())
    assert (late.due, late.actions, late.event) == (None, (), None)


def test_a_rule_that_freezes_while_the_program_is_being_set_up_is_not_lost():
    it = Run(action="freeze")
    it(events.Restart())
    it(events.Exited(1, Exit(code=0), populated=False))
    it.oom(1)
    assert (it(Turn()).actions, it.mind.life.state) == ((), State.STARTING)
    assert it(events.Execed(2)).actions == (FreezeAll(),)
    assert it.mind.life.reason == "frozen by policy[0] (memory.events oom_kill)"


def test_each_action_asks_for_what_it_says():
    assert _actions(action="kill") == (KillAll(),)
    assert _actions(action="signal", signal=signal.SIGHUP) == (Signal(signal.SIGHUP),)
    assert _actions(action="log") == ()
    assert _actions(action="exec", exec_=("true",)) == ()
    assert _actions(action="kill", dry_run=True) == ()


def _actions(**keys):
    it = Run(**keys)
    it.oom(1)
    return it(Turn()).actions


def test_a_new_generation_has_to_hold_a_level_anew():
    level = Rule(when=parse_condition("pids.current >= 4"), action="log", for_=5.0)
    it = Run(action="log")
    it.mind = attrs.evolve(it.mind, engine=Engine.of((level,)))
    it(Seen({"pids.current": {"": 9}}, {}))
    assert it.mind.engine.memories[0].since is not None
    assert it(events.Restart()).actions == (Signal(signal.SIGTERM),)
    assert it.mind.engine.memories[0].since is not None
    assert it(events.Exited(1, Exit(signal=15), populated=False)).actions == (Spawn(2),)
    assert it.mind.engine.memories[0].since is None
