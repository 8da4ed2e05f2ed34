"""What is counted follows the lifecycle, step by step."""

import signal

import pytest

from nsupervisor.config.model import WorkloadConfig
from nsupervisor.core import events
from nsupervisor.core.exits import Exit
from nsupervisor.core.lifecycle import Instant, Lifecycle, State, apply_input
from nsupervisor.core.phases import Phase
from nsupervisor.metrics.counters import EXIT_KINDS, RESTART_CAUSES, Counters, OutputVolume, exit_kind

OOM = Exit(signal=signal.SIGKILL, oom_killed=True)


class Lived:
    """A life without a shell around it, and its counters."""

    def __init__(self, **keys):
        self.workload = WorkloadConfig("web", ("true",), **{"restart": "always", "restart_sec": 1.0, **keys})
        self.lifecycle, self.counters, self.now = Lifecycle(), Counters(), 1000.0

    def happen(self, event):
        old = self.lifecycle
        self.lifecycle, _ = apply_input(old, event, Instant(self.now), self.workload)
        if self.lifecycle is old:
            return  # as the actor does: nothing has happened
        self.counters.count_transition(old, event, self.lifecycle, self.workload, self.now)

    def run(self):
        self.happen(events.Start())
        self.happen(events.Execed(self.lifecycle.generation))

    def end(self, exit_, populated=False):
        self.happen(events.Exited(self.lifecycle.generation, exit_, populated))

    def wait(self):
        self.now = self.lifecycle.deadline
        self.happen(events.Timeout())


@pytest.mark.parametrize(
    ("exit_", "kind", "cause"),
    [
        (Exit(code=0), "code", "success"),
        (Exit(code=3), "code", "exit-code"),
        (Exit(signal=signal.SIGSEGV), "signal", "signal"),
        (Exit(signal=signal.SIGTERM), "signal", "success"),
        (OOM, "oom", "oom"),
        (Exit(setup_failure="cannot enter /nowhere: No such file or directory"), "failure", "failure"),
    ],
)
@pytest.mark.parametrize("restart_sec", [0.0, 1.0])
def test_an_end_and_the_restart_after_it_are_counted_by_kind_and_cause(exit_, kind, cause, restart_sec):
    it = Lived(restart_sec=restart_sec)
    it.run()
    it.end(exit_)
    if restart_sec:
        assert it.counters.restarts == {}, "it has not started again yet"
        it.wait()
    assert it.lifecycle.generation == 2
    assert (it.counters.exits, it.counters.restarts) == ({kind: 1}, {cause: 1})


def test_an_end_that_leaves_processes_behind_is_counted_once():
    it = Lived()
    it.run()
    it.end(Exit(code=3), populated=True)
    it.happen(events.Emptied(1))
    it.wait()
    assert (it.counters.exits, it.counters.restarts) == ({"code": 1}, {"exit-code": 1})


def test_a_rules_restart_is_the_rules_whatever_the_program_ended_with():
    it = Lived(restart="no")
    it.run()
    it.happen(events.PolicyRestart("policy[0]"))
    it.end(Exit(code=3))
    it.wait()
    assert it.counters.restarts == {"rule": 1}


def test_what_we_ended_ourselves_is_counted_for_what_it_did_wrong():
    it = Lived()
    it.run()
    it.happen(events.Unhealthy(1, "no WATCHDOG=1 for 1 s"))
    it.end(Exit(signal=signal.SIGABRT))
    it.wait()
    assert it.counters.restarts == {"watchdog": 1}


@pytest.mark.fault("B6")
@pytest.mark.parametrize("restart_sec", [0.0, 1.0])
def test_an_exit_before_the_program_is_ready_is_a_protocol_failure(restart_sec):
    it = Lived(type="notify", restart_sec=restart_sec)
    it.run()
    it.end(Exit(code=0))
    it.wait()
    assert it.counters.restarts == {"protocol": 1}


def test_an_operators_restart_and_late_news_count_nothing():
    it = Lived()
    it.run()
    it.happen(events.Restart())
    it.end(Exit(signal=signal.SIGTERM))
    it.happen(events.Exited(1, OOM, populated=False))
    assert (it.lifecycle.generation, it.lifecycle.state) == (2, State.STARTING)
    assert (it.counters.exits, it.counters.restarts) == ({"signal": 1}, {})


def test_the_causes_add_up_to_what_status_says():
    it = Lived(restart_sec=0.0, start_limit_burst=100)
    it.run()
    for exit_ in (Exit(code=1), Exit(code=0), OOM, Exit(setup_failure="no"), Exit(signal=11)):
        it.end(exit_)
    assert sum(it.counters.restarts.values()) == it.lifecycle.restarts == 5
    assert it.counters.restarts.keys() <= set(RESTART_CAUSES)
    assert it.counters.exits.keys() <= set(EXIT_KINDS)


def test_every_kind_of_end_has_a_name():
    assert {exit_kind(one) for one in (Exit(code=0), Exit(signal=9), OOM, Exit(setup_failure=""))} == set(EXIT_KINDS)


def test_actions_and_output_add_up():
    counters, volume = Counters(), OutputVolume()
    counters.count_firing("policy[0]", "log")
    counters.count_firing("policy[0]", "log")
    counters.count_firing("policy[0]", "kill")
    assert counters.actions == {("policy[0]", "log"): 2, ("policy[0]", "kill"): 1}
    for chunk in (b"one\ntw", b"o\n", b"three"):
        volume.add(len(chunk), chunk.count(b"\n"))
    assert (volume.bytes, volume.lines) == (13, 2)


HOOKS = {"exec_start_pre": (("-true",), ("true",)), "timeout_start_sec": 4.0, "timeout_stop_sec": 2.0}


def hook_done(it, step, is_success, after):
    it.now += after
    it.happen(events.HookDone(it.lifecycle.generation, Phase.START_PRE, step, is_success))


def test_the_commands_of_a_hook_are_measured_and_their_failures_counted():
    it = Lived(**HOOKS)
    it.happen(events.Start())
    hook_done(it, 0, False, 0.5)
    assert (it.counters.hook_seconds, it.counters.hook_failures) == ({"exec_start_pre": 0.5}, {}), "it is ignored"
    hook_done(it, 1, False, 1.5)
    assert (it.counters.hook_seconds, it.counters.hook_failures) == ({"exec_start_pre": 1.5}, {"exec_start_pre": 1})


def test_a_command_of_a_hook_that_takes_too_long_fails_once():
    it = Lived(**HOOKS)
    it.happen(events.Start())
    hook_done(it, 0, True, 0)
    it.wait()
    it.wait()
    hook_done(it, 1, False, 1)
    assert (it.counters.hook_seconds, it.counters.hook_failures) == ({"exec_start_pre": 7.0}, {"exec_start_pre": 1})
    assert it.lifecycle.hook_failure == "exec_start_pre[1] has not ended within 4 s"
