"""The lifecycle as a table: every cell filled, every invariant kept for any sequence of inputs."""

import gc
import signal

import attrs
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from nsupervisor.config.model import WorkloadConfig
from nsupervisor.config.probes import LivenessConfig, ReadinessConfig, StartupConfig, TcpSocket
from nsupervisor.core import actions, backoff, events
from nsupervisor.core.exits import Exit, Outcome
from nsupervisor.core.initiators import OPERATOR, SHUTDOWN
from nsupervisor.core.lifecycle import (
    TABLE,
    AfterStop,
    Instant,
    Lifecycle,
    State,
    apply_input,
    awaits_daemon,
    is_up,
    service_result,
    unfinished_actions,
)
from nsupervisor.core.phases import Phase
from nsupervisor.core.records import transition_records

OK = Exit(code=0)
CRASH = Exit(code=1)
KILLED = Exit(signal=signal.SIGKILL)


def workload(**keys):
    return WorkloadConfig("web", command=("web",), **keys)


class Run:
    """Sends inputs to a lifecycle as the service would, at times that the test sets."""

    def __init__(self, **keys):
        self.workload = workload(**keys)
        self.lifecycle = Lifecycle()
        self.now = 1000.0
        self.actions = ()

    def __call__(self, event, *, after=0.0, jitter=0.0):
        self.now += after
        self.lifecycle, self.actions = apply_input(self.lifecycle, event, Instant(self.now, jitter), self.workload)
        return self

    def fact(self, kind, *args, after=0.0, **more):
        return self(kind(self.lifecycle.generation, *args, **more), after=after)

    def dies(self, exit_, *, after=0.0, populated=False):
        return self.fact(events.Exited, exit_, populated, after=after)

    def up(self):
        self(events.Start())
        return self.fact(events.Execed)

    @property
    def state(self):
        return self.lifecycle.state


def subclasses(kind):
    for sub in kind.__subclasses__():
        yield from subclasses(sub)
        if not sub.__subclasses__():
            yield sub


def test_every_cell_of_the_table_is_filled():
    gc.collect()  # attrs makes each class again, with slots, and the first one may still be there
    assert set(TABLE) == set(subclasses(events.Input))
    for event, row in TABLE.items():
        assert set(row) == set(State), event.__name__
        assert all(callable(cell) and cell.__doc__ for cell in row.values()), event.__name__


def test_a_good_life():
    run = Run()
    assert run(events.Start("boot")).actions == (actions.Spawn(1),)
    assert run.state is State.STARTING
    assert run.fact(events.Execed).state is State.RUNNING
    assert run.lifecycle.deadline is None
    assert run(events.Stop(), after=5).actions == (actions.Signal(signal.SIGTERM),)
    assert run.state is State.STOPPING
    assert run.dies(Exit(signal=signal.SIGTERM)).state is State.STOPPED
    assert run.lifecycle.reason == "stopped by operator"


def test_stop_is_done_only_when_the_cgroup_is_empty():
    """In the field: a stop that returns when the leader exits leaves grandchildren behind."""
    run = Run().up()
    run(events.Stop())
    assert run.dies(OK, populated=True).state is State.STOPPING
    assert run.actions == (actions.Signal(signal.SIGTERM, whole_cgroup=True),)
    assert run.fact(events.Emptied).state is State.STOPPED


def test_what_a_program_leaves_behind_is_ended_before_it_starts_again():
    run = Run(restart="always", restart_sec=0.0).up()
    assert run.dies(CRASH, populated=True).actions == (actions.Signal(signal.SIGTERM, whole_cgroup=True),)
    assert run.state is State.STOPPING
    assert run(events.Timeout(), after=10).actions == (actions.KillAll(),)
    assert run.fact(events.Emptied).actions == (actions.Spawn(2),)


def test_an_empty_cgroup_before_the_exit_is_known_waits_for_it():
    run = Run().up()
    run(events.Stop())
    assert run.fact(events.Emptied).state is State.STOPPING
    assert run.dies(OK).state is State.STOPPED


@pytest.mark.fault("C8")
def test_stop_insists_with_sigkill_and_says_when_even_that_does_not_help():
    run = Run(timeout_stop_sec=3.0).up()
    run(events.Stop())
    assert run.lifecycle.deadline == run.now + 3
    assert run(events.Timeout(), after=2.9).actions == ()  # too early: a stale timer
    assert run(events.Timeout(), after=0.1).actions == (actions.KillAll(),)
    assert run(events.Timeout(), after=3).actions == (actions.ReleaseSurvivors(3.0, False), actions.KillAll())
    # It was reported at each time-out, with the same number of seconds.
    assert run(events.Timeout(), after=4).actions == (actions.ReleaseSurvivors(3.0, True), actions.KillAll())
    assert run.dies(KILLED).state is State.STOPPED


def test_a_restart_during_backoff_starts_at_once_and_forgives():
    run = Run(restart_sec=8.0).up()
    assert run.dies(CRASH).state is State.BACKOFF
    assert run(events.Restart()).actions == (actions.Spawn(2),)
    assert run.lifecycle.consecutive_failures == 0


def test_a_stop_during_backoff_is_final():
    """In the field: a restart in flight that overrides a stop."""
    run = Run().up().dies(CRASH)
    assert run(events.Stop()).state is State.STOPPED
    assert run(events.Timeout(), after=100).actions == ()
    assert run.state is State.STOPPED


@pytest.mark.parametrize(
    ("commands", "state"),
    [
        ([events.Stop(), events.Start()], State.STARTING),
        ([events.Stop(), events.Restart()], State.STARTING),
        ([events.Restart(), events.Stop()], State.STOPPED),
        ([events.Stop(), events.Start(), events.Stop()], State.STOPPED),
        ([events.Stop(), events.PolicyRestart("policy[0]")], State.STOPPED),
        ([events.PolicyRestart("policy[0]"), events.Stop()], State.STOPPED),
        ([events.Kill(), events.Stop()], State.STOPPED),
        ([events.Stop(), events.Kill()], State.STOPPED),
        ([events.Kill(), events.PolicyRestart("policy[0]")], State.BACKOFF),
    ],
)
def test_the_last_command_wins_and_rules_do_not_overrule_people(commands, state):
    run = Run().up()
    for command in commands:
        run(command)
    assert run.dies(KILLED).state is state


def test_the_end_of_the_service_does_not_replace_the_reason_of_a_stop():
    """The next supervisor starts what only the end of the service stopped."""
    run = Run().up()
    run(events.Stop())
    run(events.Stop(SHUTDOWN))
    assert run.lifecycle.reason == "stopped by operator"


@pytest.mark.parametrize("requested_by", [SHUTDOWN, OPERATOR])
def test_a_kill_does_not_replace_the_reason_of_the_stop_that_it_hurries(requested_by):
    """An operator's kill during the end of the service was taken for a stop, and the end's kill for no stop."""
    run = Run().up()
    run(events.Stop(requested_by))
    run(events.Kill({SHUTDOWN: OPERATOR, OPERATOR: SHUTDOWN}[requested_by]))
    assert run.dies(KILLED).state is State.STOPPED
    assert run.lifecycle.reason == f"stopped by {requested_by}"


def test_frozen_keeps_its_place_and_can_still_be_stopped():
    run = Run().up()
    assert run(events.Freeze()).actions == (actions.FreezeAll(),)
    assert run(events.Thaw()).state is State.RUNNING
    run(events.Freeze())
    assert run(events.Stop()).actions == (actions.Signal(signal.SIGTERM), actions.ThawAll())
    assert run.dies(OK).state is State.STOPPED


def test_a_program_killed_while_frozen_thaws_those_it_leaves():
    run = Run().up()
    run(events.Freeze())
    assert run.dies(KILLED, populated=True).actions == (
        actions.Signal(signal.SIGTERM, whole_cgroup=True),
        actions.ThawAll(),
    )


def test_notify_must_become_ready_in_its_time():
    run = Run(type="notify", timeout_start_sec=4.0).up()
    assert run.lifecycle.deadline is not None
    assert run(events.Timeout(), after=4).state is State.STOPPING
    assert run.lifecycle.reason == "not ready within 4 s"
    assert run.dies(Exit(signal=signal.SIGTERM)).state is State.BACKOFF  # a time-out, not SIGTERM's clean end
    run(events.Timeout(), after=1)
    run.fact(events.Execed)
    assert run.fact(events.Ready).state is State.READY
    assert run.lifecycle.deadline is None


@pytest.mark.fault("B6")
@pytest.mark.parametrize("exit_", [OK, Exit(signal=signal.SIGTERM)])
def test_a_program_that_ends_before_it_is_ready_has_failed(exit_):
    """Exit code 0 before READY=1 was a success, and what required it was refused with "exit code 0"."""
    run = Run(type="notify", restart="no").up()
    assert run.dies(exit_).state is State.FAILED
    assert run.lifecycle.reason.startswith(f"{exit_} before it was ready")
    assert run.lifecycle.fault_outcome is Outcome.PROTOCOL
    run = Run(type="notify", restart="on-failure").up()
    assert run.dies(exit_, populated=True).state is State.STOPPING
    assert run.fact(events.Emptied).state is State.BACKOFF
    assert "before it was ready" in run.lifecycle.reason


@pytest.mark.fault("B6")
def test_other_ends_of_a_notify_program_are_what_they_were():
    for restart, state in (("no", State.EXITED), ("always", State.BACKOFF)):
        run = Run(type="notify", restart=restart).up()
        run.fact(events.Ready)
        assert run.dies(OK).state is state, "it has been ready"
        assert run.lifecycle.fault_outcome is None
    run = Run(type="notify").up()
    run.fact(events.Ready)
    run(events.Freeze())
    assert run.dies(OK).state is State.EXITED, "it has been ready before it was frozen"
    run = Run(type="notify").up()
    run(events.Stop())
    assert run.dies(OK).state is State.STOPPED, "its stop was requested"
    run = Run(type="notify", restart="on-watchdog").up()
    run.dies(CRASH)
    assert run.lifecycle.reason == "exit code 1"
    run = Run(type="notify", timeout_start_sec=4.0, restart="on-watchdog").up()
    run(events.Timeout(), after=4)
    run.dies(OK)
    assert run.lifecycle.reason == "not ready within 4 s"


def test_a_freeze_while_it_starts_is_done_once_it_runs():
    """A rule on a counter may fire while the program is being set up; that freeze was lost."""
    run = Run()
    run(events.Start())
    assert run(events.Freeze("policy[0]")).actions == ()  # the set-up is the supervisor's own: the keeper waits for it
    assert run.state is State.STARTING
    assert run.lifecycle.deadline is not None
    assert run.fact(events.Execed).actions == (actions.FreezeAll(),)
    assert (run.state, run.lifecycle.reason, run.lifecycle.deadline) == (State.FROZEN, "frozen by policy[0]", None)
    assert run(events.Thaw()).state is State.RUNNING
    run(events.Restart())
    run.dies(OK)
    assert run.fact(events.Execed).state is State.RUNNING  # the freeze was about that one generation


def test_a_freeze_while_it_starts_can_be_taken_back_or_overtaken():
    run = Run()
    run(events.Start())
    run(events.Freeze())
    run(events.Thaw())
    assert run.fact(events.Execed).state is State.RUNNING
    run = Run()
    run(events.Start())
    run(events.Freeze())
    run(events.Restart())
    assert run.dies(OK).actions == (actions.Spawn(2),)
    assert run.fact(events.Execed).state is State.RUNNING


def test_one_that_is_ready_before_it_is_known_to_run_freezes_ready():
    run = Run(type="notify")
    run(events.Start())
    run(events.Freeze())
    assert run.fact(events.Ready).actions == (actions.FreezeAll(),)
    assert run.fact(events.Execed).state is State.FROZEN
    assert run(events.Thaw()).state is State.READY


def test_ready_said_while_frozen_counts_after_the_thaw():
    run = Run(type="notify").up()
    run(events.Freeze())
    run.fact(events.Ready)
    assert run.state is State.FROZEN
    assert run(events.Thaw()).state is State.READY


def test_a_hanging_program_is_aborted_and_restarted_on_watchdog():
    run = Run(restart="on-watchdog").up()
    assert run.fact(events.Unhealthy, "no WATCHDOG=1 for 2 s").actions == (actions.Signal(signal.SIGABRT),)
    assert run.dies(Exit(signal=signal.SIGABRT)).state is State.BACKOFF
    assert run.lifecycle.reason == "no WATCHDOG=1 for 2 s"


def test_a_program_that_needs_more_time_gets_it():
    run = Run(type="notify", timeout_start_sec=4.0, timeout_stop_sec=3.0, runtime_max_sec=20.0).up()
    run.fact(events.Extend, 60.0, after=3)
    assert run.lifecycle.deadline == run.now + 60
    assert run.fact(events.Extend, 1.0).lifecycle.deadline == run.now + 60, "never nearer"
    run.fact(events.Ready, after=50)
    run.fact(events.Extend, 100.0)
    assert run(events.Freeze()).lifecycle.deadline is None
    run(events.Thaw())
    assert run(events.Timeout(), after=99).state is State.READY, "runtime_max_sec is extended, too"
    run(events.Stop())
    run.fact(events.Extend, 30.0)
    assert run(events.Timeout(), after=29).actions == ()
    assert run(events.Timeout(), after=1).actions == (actions.KillAll(),)
    deadline = run.lifecycle.deadline
    assert run.fact(events.Extend, 30.0).lifecycle.deadline == deadline, "not after SIGKILL"


def test_a_program_without_a_limit_needs_no_more_time():
    run = Run().up()
    assert run.fact(events.Extend, 30.0).lifecycle.deadline is None


def reloading(**keys):
    """Return a program that is ready, was told to reload, and has answered."""
    run = Run(type="notify-reload", timeout_start_sec=4.0, **keys).up()
    run.fact(events.Ready)
    run(events.Reload(), after=1)
    return run


def test_a_reload_by_a_signal_alone_is_over_when_it_is_sent():
    run = Run(reload_signal=signal.SIGUSR2).up()
    before = run.lifecycle
    assert run(events.Reload()).actions == (actions.Signal(signal.SIGUSR2, resumes=False),)
    assert run.lifecycle == before
    assert Run().up()(events.Reload()).actions == (), "it has no signal"


def test_a_program_reports_its_reload():
    run = reloading(runtime_max_sec=100.0)
    assert run.actions == (actions.Signal(signal.SIGHUP, resumes=False),)
    assert (run.state, run.lifecycle.phase) == (State.READY, Phase.RELOAD_SIGNAL)
    assert is_up(run.lifecycle, run.workload)
    assert run.lifecycle.deadline == run.now + 4
    assert run(events.Reload()).actions == (), "one is under way"
    assert run.fact(events.Ready).lifecycle.is_reloading, "it is not an answer"
    run.fact(events.Reloading, run.now - 0.5)
    assert run.lifecycle.phase is Phase.RELOAD_SIGNAL, "it has begun before the signal"
    assert run.fact(events.Reloading).lifecycle.phase is Phase.RELOAD_SIGNAL, "it does not say when it has begun"
    assert run.fact(events.Reloading, run.now).lifecycle.phase is Phase.RELOAD_NOTIFY
    run.fact(events.Ready, after=1)
    assert (run.lifecycle.phase, run.lifecycle.reload_failure) == (Phase.NONE, "")
    assert run.lifecycle.deadline == run.lifecycle.runs_until == run.now + 98


def test_a_microsecond_of_the_program_may_round_down():
    run = reloading()
    run.fact(events.Reloading, int(run.now * 1e6) / 1e6)
    assert run.lifecycle.phase is Phase.RELOAD_NOTIFY


def test_a_reload_without_an_answer_fails_and_the_program_runs_on():
    run = reloading()
    assert run(events.Timeout(), after=4).actions == ()
    assert (run.state, run.lifecycle.phase, run.lifecycle.deadline) == (State.READY, Phase.NONE, None)
    assert run.lifecycle.reload_failure.endswith("within 4 s")
    run(events.Reload())
    run.fact(events.Reloading, run.now)
    run.fact(events.Extend, 10.0)
    assert run(events.Timeout(), after=4).lifecycle.is_reloading, "it has asked for more time"
    run(events.Timeout(), after=6)
    assert run.lifecycle.reload_failure == "not ready again (READY=1) within 4 s"


def test_a_reload_does_not_prolong_the_longest_run():
    run = reloading(runtime_max_sec=8.0)
    run.fact(events.Extend, 60.0)
    assert run(events.Timeout(), after=7).state is State.STOPPING
    assert run.lifecycle.reason.startswith("ran for longer")
    assert run.lifecycle.phase is Phase.NONE


@pytest.mark.parametrize(
    "end", [lambda run: run(events.Stop()), lambda run: run(events.Freeze()), lambda run: run.dies(CRASH)]
)
def test_a_reload_fails_by_what_comes_in_between(end):
    run = reloading()
    end(run)
    assert not run.lifecycle.is_reloading
    assert run.lifecycle.reload_failure


COMMANDS = (("-nginx", "-t"), ("kill", "-HUP", "1"))


def test_commands_of_a_reload_run_one_after_the_other():
    run = Run(exec_reload=COMMANDS, timeout_start_sec=4.0).up()
    assert run(events.Reload(), after=1).actions == (actions.RunHook(Phase.RELOAD, 0),)
    assert (run.state, run.lifecycle.deadline) == (State.RUNNING, run.now + 4)
    assert is_up(run.lifecycle, run.workload)
    assert run.fact(events.HookDone, Phase.RELOAD, 1, True).actions == (), "another step"
    run.fact(events.HookDone, Phase.RELOAD, 0, False, "exit code 1", after=1)
    assert run.actions == (actions.RunHook(Phase.RELOAD, 1),), "its failure does not count"
    assert run.fact(events.HookDone, Phase.RELOAD, 1, True).lifecycle.phase is Phase.NONE
    assert (run.lifecycle.reload_failure, run.lifecycle.deadline, run.actions) == ("", None, ())
    run.fact(events.HookDone, Phase.RELOAD, 1, False, "exit code 1")
    assert run.lifecycle.reload_failure == "", "it is late"


def test_a_command_of_a_reload_that_fails_ends_the_reload():
    run = Run(exec_reload=COMMANDS[1:] * 2).up()
    run(events.Reload())
    run.fact(events.HookDone, Phase.RELOAD, 0, False, "exit code 3", after=1.25)
    assert (run.actions, run.state) == ((), State.RUNNING)
    assert run.lifecycle.reload_failure == "exec_reload[0] exit code 3, after 1.25 s"


def test_a_command_of_a_reload_that_takes_too_long_is_ended():
    run = Run(exec_reload=COMMANDS, timeout_start_sec=4.0).up()
    run(events.Reload())
    assert run(events.Timeout(), after=4).actions == (actions.EndHook(),)
    assert run.lifecycle.reload_failure == "exec_reload[0] has not ended within 4 s"
    assert run.state is State.RUNNING


@pytest.mark.parametrize(
    "end",
    [
        lambda run: run(events.Stop()),
        lambda run: run(events.Kill()),
        lambda run: run(events.Freeze()),
        lambda run: run.dies(CRASH),
        lambda run: run.dies(CRASH, populated=True),
    ],
)
def test_the_command_of_a_reload_ends_with_the_reload(end):
    run = Run(exec_reload=COMMANDS).up()
    run(events.Reload())
    end(run)
    assert run.actions[0] == actions.EndHook()
    assert not run.lifecycle.is_reloading


def test_a_program_may_reload_by_itself():
    run = Run(type="notify", timeout_start_sec=4.0).up()
    assert not run.fact(events.Reloading).lifecycle.is_reloading, "its start is not complete"
    run.fact(events.Ready)
    assert run.fact(events.Reloading).lifecycle.phase is Phase.RELOAD_NOTIFY
    assert run.fact(events.Ready).lifecycle.phase is Phase.NONE


def test_the_next_supervisor_sends_the_signal_of_a_reload_again():
    run = reloading()
    send = actions.Signal(signal.SIGHUP, resumes=False)
    assert unfinished_actions(run.lifecycle, run.workload) == (actions.ThawAll(), send)
    run.fact(events.Reloading, run.now)
    assert unfinished_actions(run.lifecycle, run.workload) == (actions.ThawAll(),)


def test_a_program_that_stops_by_itself_gets_no_signal():
    run = Run(type="notify", timeout_stop_sec=3.0, restart="always").up()
    assert run.fact(events.Stopping).state is State.RUNNING, "its start is not complete"
    run.fact(events.Ready)
    assert run.fact(events.Stopping).actions == ()
    assert (run.state, run.lifecycle.deadline) == (State.STOPPING, run.now + 3)
    assert not run.lifecycle.is_ending_program, "the rules judge its exit"
    assert run(events.Stop()).actions == ()
    assert run.dies(OK).state is State.STOPPED
    run = Run(type="notify", timeout_stop_sec=3.0).up()
    run.fact(events.Ready)
    run.fact(events.Stopping)
    assert run(events.Timeout(), after=3).actions == (actions.KillAll(),)
    assert run.dies(KILLED).state is State.BACKOFF


def test_a_start_that_does_not_count_yet_is_neither_reloaded_nor_a_clean_stop():
    """With `min_ready_sec`."""
    run = Run(type="notify-reload", min_ready_sec=5.0, restart="no").up()
    run.fact(events.Ready)
    assert run(events.Reload()).actions == ()
    assert not run.fact(events.Reloading).lifecycle.is_reloading
    assert run.fact(events.Stopping).state is State.READY
    assert run.dies(OK).state is State.FAILED


def test_a_program_forgives_its_own_failures():
    run = Run(restart_sec=1.0).up().dies(CRASH)
    run(events.Timeout(), after=1)
    run.fact(events.Execed)
    assert run.lifecycle.consecutive_failures == 1
    assert run.fact(events.RestartReset).lifecycle.consecutive_failures == 0
    assert run.lifecycle.recent_starts, "the start limit stays"


READINESS = ReadinessConfig(tcp_socket=TcpSocket(port=80))
STARTUP = StartupConfig(tcp_socket=TcpSocket(port=80))


@pytest.mark.parametrize("keys", [{"readiness": READINESS}, {"startup": STARTUP}])
def test_a_program_with_a_probe_is_up_once_it_is_ready(keys):
    run = Run(**keys, timeout_start_sec=4.0, runtime_max_sec=100.0).up()
    assert (run.state, is_up(run.lifecycle, run.workload)) == (State.RUNNING, False)
    assert run.lifecycle.deadline == run.now + 4, "it has to become ready in its time"
    run.fact(events.Ready, after=1)
    assert (run.state, is_up(run.lifecycle, run.workload)) == (State.READY, True)
    assert run.lifecycle.deadline == run.now + 100


def test_a_program_that_is_not_ready_any_more_is_never_ended_for_that():
    run = Run(readiness=READINESS, timeout_start_sec=4.0, runtime_max_sec=100.0).up()
    run.fact(events.Ready, after=1)
    ends_at = run.lifecycle.deadline
    assert run.fact(events.NotReady, "HTTP 503", after=1).actions == ()
    assert (run.state, run.lifecycle.reason) == (State.RUNNING, "HTTP 503")
    assert not is_up(run.lifecycle, run.workload)
    assert run(events.Timeout(), after=4).state is State.RUNNING
    run.fact(events.Ready)
    assert (run.state, run.lifecycle.deadline) == (State.READY, ends_at), "runtime_max_sec goes on"
    run.fact(events.NotReady, "HTTP 503")
    assert run.dies(OK).state is State.EXITED, "its start was complete"


def test_a_program_that_is_not_ready_any_more_gets_no_start_deadline_after_a_freeze():
    run = Run(readiness=READINESS, timeout_start_sec=4.0).up()
    run.fact(events.Ready)
    run.fact(events.NotReady, "HTTP 503")
    run(events.Freeze())
    assert run(events.Thaw()).lifecycle.deadline is None
    run.fact(events.Ready)
    run(events.Freeze())
    assert run.fact(events.NotReady, "no answer").state is State.FROZEN
    assert run(events.Thaw()).state is State.READY


def test_the_next_generation_has_its_start_deadline_again():
    run = Run(readiness=READINESS, timeout_start_sec=4.0, restart="always", restart_sec=0.0).up()
    run.fact(events.Ready)
    run.dies(CRASH)
    assert not run.lifecycle.was_ready
    run.fact(events.Execed)
    assert run(events.Timeout(), after=4).lifecycle.reason == "not ready within 4 s"


def test_a_clean_end_before_a_probe_has_succeeded_is_a_success():
    """The program itself has promised nothing, unlike one with type = "notify"."""
    assert Run(readiness=READINESS).up().dies(OK).state is State.EXITED


@pytest.mark.parametrize(
    ("probe", "restarting"), [("liveness", {"on-watchdog", "on-failure"}), ("startup", {"on-failure"})]
)
def test_a_failed_probe_ends_the_program_with_its_signal(probe, restarting):
    for restart in ("no", "on-watchdog", "on-failure"):
        run = Run(restart=restart, kill_signal=signal.SIGINT).up()
        run.fact(events.Unhealthy, "HTTP 500", probe)
        assert run.actions == (actions.Signal(signal.SIGINT),)
        assert run.lifecycle.deadline == run.now + 10
        assert (run.dies(OK).state is State.BACKOFF) is (restart in restarting)
        assert run.lifecycle.reason == "HTTP 500"


def test_a_failed_probe_may_have_a_grace_period_of_its_own():
    liveness = LivenessConfig(tcp_socket=TcpSocket(port=80), termination_grace_period_sec=0.5)
    run = Run(liveness=liveness, timeout_stop_sec=60.0).up()
    run.fact(events.Unhealthy, "no answer", "liveness")
    assert run(events.Timeout(), after=0.5).actions == (actions.KillAll(),)


def test_a_program_started_without_probes_stays_up_when_it_gets_some():
    run = Run().up()
    run.workload = workload(readiness=READINESS)
    assert is_up(run.lifecycle, run.workload)
    run.fact(events.Ready)
    run.fact(events.NotReady, "HTTP 503")
    assert is_up(run.lifecycle, run.workload), "what requires it did not wait for its readiness either"


@pytest.mark.parametrize(
    ("policy", "restarting"),
    [
        ("no", set()),
        ("always", {"ok", "crash", "kill", "timeout", "watchdog", "protocol"}),
        ("on-success", {"ok"}),
        ("on-failure", {"crash", "kill", "timeout", "watchdog", "protocol"}),
        ("on-abnormal", {"kill", "timeout", "watchdog", "protocol"}),
        ("on-watchdog", {"watchdog"}),
    ],
)
def test_restart_policies_answer_what_systemd_says_they_answer(policy, restarting):
    ends = {
        "ok": (OK, None),
        "crash": (CRASH, None),
        "kill": (KILLED, None),
        "timeout": (OK, Outcome.TIMEOUT),
        "watchdog": (OK, Outcome.WATCHDOG),
        "protocol": (OK, Outcome.PROTOCOL),
    }
    for name, (exit_, fault) in ends.items():
        run = Run(restart=policy).up()
        run.lifecycle = attrs.evolve(run.lifecycle, fault_outcome=fault)
        run.dies(exit_)
        expected = State.BACKOFF if name in restarting else State.EXITED if name == "ok" else State.FAILED
        assert run.state is expected, name


def test_backoff_doubles_and_starts_over_after_a_healthy_time():
    """In the field: a back-off that never resets keeps a healthy service waiting for its first crash in a month."""
    run = Run(restart_sec=1.0, restart_max_delay_sec=5.0, restart_reset_sec=60.0, start_limit_burst=100)
    run.up()
    waits = []
    for _ in range(5):
        run.dies(CRASH)
        waits.append(run.lifecycle.deadline - run.now)
        run(events.Timeout(), after=waits[-1])
        run.fact(events.Execed)
    assert waits == [1, 2, 4, 5, 5]
    run.dies(CRASH, after=60)
    assert run.lifecycle.deadline - run.now == 1


def test_the_start_limit_is_a_sliding_window():
    run = Run(restart_sec=0.0, start_limit_burst=3, start_limit_interval_sec=10.0).up()
    for _ in range(10):  # one crash every 4 s: never more than 3 starts in 10 s
        assert run.dies(CRASH, after=4).state is State.STARTING
    run.dies(CRASH)
    assert run.state is State.FAILED
    assert run.lifecycle.reason == "given up after 3 starts within 10 s; the last: exit code 1"
    assert run(events.Start()).state is State.STARTING  # an operator starts it, which resets back-off and start limit
    assert run.dies(CRASH).state is State.STARTING


@pytest.mark.fault("B14")
def test_a_workload_that_is_always_restarted_is_never_given_up():
    """It was failed after 5 starts within a minute; supervisord, Docker and Kubernetes go on with a capped delay."""
    run = Run(restart="always", restart_sec=1.0, restart_max_delay_sec=5.0).up()
    delays = []
    for _ in range(50):
        assert run.dies(CRASH).state is State.BACKOFF
        delays.append(run.lifecycle.deadline - run.now)
        run(events.Timeout(), after=delays[-1])
        run.fact(events.Execed)
    assert delays == [1, 2, 4, *[5] * 47]
    assert len(run.lifecycle.recent_starts) <= 6
    run.workload = workload(restart="always", start_limit_burst=3)
    assert run.dies(CRASH).state is State.FAILED, "a limit that is set counts"


@pytest.mark.fault("B14")
def test_a_program_without_a_start_limit_is_not_restarted_in_a_busy_loop():
    run = Run(restart="always", restart_sec=0.0).up()
    assert run.dies(CRASH).state is State.STARTING, "the first restart comes at once"
    run.fact(events.Execed)
    assert run.dies(CRASH).lifecycle.deadline == run.now + 2 * backoff.UNLIMITED_BASE_S
    run = Run(restart="always", restart_sec=0.0, start_limit_burst=50).up()
    for _ in range(49):
        assert run.dies(CRASH).state is State.STARTING, "the limit ends the loop"
        run.fact(events.Execed)


def test_an_operators_restarts_never_meet_the_start_limit():
    run = Run(start_limit_burst=2).up()
    for _ in range(10):
        run(events.Restart())
        assert run.dies(OK).state is State.STARTING


def test_a_rules_restart_works_whatever_the_restart_policy_but_is_bounded():
    run = Run(restart="no", restart_sec=0.0, start_limit_burst=3).up()
    for _ in range(2):
        run(events.PolicyRestart("policy[0]"))
        assert run.dies(KILLED).state is State.STARTING
    run(events.PolicyRestart("policy[0]"))
    assert run.dies(KILLED).state is State.FAILED


def test_a_rule_does_not_raise_the_dead():
    for state in (State.STOPPED, State.EXITED, State.FAILED, State.BACKOFF):
        lifecycle = Lifecycle(state=state)
        assert apply_input(lifecycle, events.PolicyRestart("policy[0]"), Instant(0.0), workload()) == (lifecycle, ())


def test_a_failing_set_up_step_is_the_reason_shown():
    run = Run(restart="no")
    run(events.Start())
    run.dies(Exit(setup_failure="cannot enter /srv/site: No such file or directory"))
    assert run.state is State.FAILED
    assert run.lifecycle.reason == "cannot enter /srv/site: No such file or directory"


def test_late_news_of_an_earlier_generation_changes_nothing():
    """In the field: an exit attributed to the process that replaced the one that exited."""
    run = Run(restart="always", restart_sec=0.0).up().dies(CRASH)
    assert run.lifecycle.generation == 2
    before = run.lifecycle
    for late in (events.Exited(1, CRASH, False), events.Emptied(1), events.Ready(1), events.Execed(1)):
        assert run(late).actions == ()
        assert run.lifecycle == before


# ---------------------------------------------------------------------------------------------------------------------
# Any sequence of commands, events and time-outs, against processes that behave as the kernel's do

DURATIONS = st.sampled_from([0.0, 0.1, 1.0, 7.0])


class AnyLife(RuleBasedStateMachine):
    """Model of the processes: at most one generation lives, if the lifecycle keeps its invariant."""

    @initialize(
        restart=st.sampled_from(["no", "always", "on-success", "on-failure", "on-abnormal", "on-watchdog"]),
        restart_sec=DURATIONS,
        stop=DURATIONS,
        burst=st.integers(1, 5),
        type_=st.sampled_from(["simple", "notify", "notify-reload", "oneshot", "probed"]),
    )
    def begin(self, restart, restart_sec, stop, burst, type_):
        self.run = Run(
            restart=restart,
            restart_sec=restart_sec,
            restart_max_delay_sec=20.0,
            timeout_stop_sec=stop,
            start_limit_burst=burst,
            start_limit_interval_sec=30.0,
            **({"readiness": READINESS} if type_ == "probed" else {"type": type_}),
        )
        self.program = False  # the generation's first program lives
        self.others = 0  # processes that it left or made
        self.stopped_by_operator = False
        self.automatic: list[float] = []  # times of automatic starts since the last requested one

    def feed(self, event, jitter=0.0):
        operator = isinstance(event, events.Start | events.Restart)
        if operator:
            self.stopped_by_operator = False
            self.automatic.clear()
        elif isinstance(event, events.Stop):
            self.stopped_by_operator = True
        before = self.run.lifecycle
        self.run(event, jitter=jitter)
        for action in self.run.actions:
            if isinstance(action, actions.Spawn):
                assert not self.program, "a second live generation"
                assert not self.others, "started while the old cgroup was populated"
                assert not self.stopped_by_operator, "restarted after an operator's stop"
                assert action.generation == before.generation + 1
                self.program = True
                self.automatic.append(self.run.now)
            elif isinstance(action, actions.KillAll):
                self.doomed = True
        if self.run.state is State.BACKOFF and before.state is not State.BACKOFF:
            wait = self.run.lifecycle.deadline - self.run.now
            full = min(self.run.workload.restart_sec * 2 ** (self.run.lifecycle.consecutive_failures - 1), 20.0)
            assert full * (1 - backoff.JITTER_FRACTION) - 1e-6 <= wait <= full + 1e-6

    @rule(
        command=st.sampled_from(
            [events.Start, events.Stop, events.Restart, events.PolicyRestart, events.Kill, events.Freeze, events.Thaw]
        )
    )
    def command(self, command):
        self.feed(command())

    @rule(seconds=st.sampled_from([0.0, 0.05, 0.5, 3.0, 40.0, 400.0]))
    def time_passes(self, seconds):
        self.run.now += seconds
        self.feed(events.Timeout())

    @precondition(lambda self: self.run.lifecycle.deadline is not None)
    @rule(late=st.sampled_from([0.0, 0.3]))
    def deadline(self, late):
        self.run.now = max(self.run.now, self.run.lifecycle.deadline) + late
        self.feed(events.Timeout())

    @precondition(lambda self: self.program)
    @rule(fact=st.sampled_from([events.Execed, events.Ready]))
    def progress(self, fact):
        self.feed(fact(self.run.lifecycle.generation))

    @rule()
    def reload(self):
        before = self.run.lifecycle
        self.feed(events.Reload())
        assert self.run.state is before.state
        assert not self.run.actions or self.program

    @precondition(lambda self: self.program)
    @rule(ago=st.sampled_from([None, 0.0, 1.0]))
    def reports_a_reload(self, ago):
        before = self.run.lifecycle
        self.feed(events.Reloading(before.generation, None if ago is None else self.run.now - ago))
        assert (self.run.state, self.run.actions) == (before.state, ())

    @precondition(lambda self: self.program)
    @rule()
    def forgives_itself(self):
        self.feed(events.RestartReset(self.run.lifecycle.generation))
        assert self.run.lifecycle.consecutive_failures == 0

    @precondition(lambda self: self.program)
    @rule()
    def stops_by_itself(self):
        self.feed(events.Stopping(self.run.lifecycle.generation))
        assert self.run.actions == ()

    @precondition(lambda self: self.program)
    @rule()
    def gets_unready(self):
        before = self.run.lifecycle
        self.feed(events.NotReady(before.generation, "HTTP 503"))
        assert self.run.actions == ()
        assert self.run.state is (State.RUNNING if before.state is State.READY else before.state)

    @precondition(lambda self: self.program)
    @rule()
    def forks(self):
        self.others += 1

    @precondition(lambda self: self.program)
    @rule()
    def hangs(self):
        self.feed(events.Unhealthy(self.run.lifecycle.generation, "hangs"))

    @precondition(lambda self: self.program)
    @rule(probe=st.sampled_from(["startup", "liveness"]))
    def fails_a_probe(self, probe):
        self.feed(events.Unhealthy(self.run.lifecycle.generation, "HTTP 503", probe))

    @precondition(lambda self: self.program)
    @rule(
        exit_=st.sampled_from([OK, CRASH, KILLED, Exit(signal=15), Exit(setup_failure="cannot")]),
        jitter=st.floats(0, 0.999),
    )
    def program_ends(self, exit_, jitter):
        self.program = False
        self.feed(events.Exited(self.run.lifecycle.generation, exit_, self.others > 0), jitter)

    @precondition(lambda self: self.others and not self.program)
    @rule(jitter=st.floats(0, 0.999))
    def others_end(self, jitter):
        self.others = 0
        self.feed(events.Emptied(self.run.lifecycle.generation), jitter)

    @rule(
        late=st.sampled_from([events.Emptied, events.Ready, events.Execed]),
        generations=st.integers(1, 3),
    )
    def late_news(self, late, generations):
        before = self.run.lifecycle
        self.feed(late(self.run.lifecycle.generation - generations))
        assert self.run.lifecycle == before

    @invariant()
    def promises(self):
        if not hasattr(self, "run"):
            return
        lifecycle = self.run.lifecycle
        assert lifecycle.is_alive == (self.program or self.others > 0)
        assert lifecycle.state is not State.BACKOFF or lifecycle.deadline is not None
        assert (
            lifecycle.state not in (State.STOPPED, State.EXITED, State.FAILED, State.READY)
            or lifecycle.deadline is None
            or lifecycle.is_reloading
        )
        assert not lifecycle.is_reloading or lifecycle.state in (State.RUNNING, State.READY)
        limit = self.run.workload
        for start in self.automatic:
            window = [t for t in self.automatic if start - limit.start_limit_interval_sec < t <= start]
            assert len(window) <= limit.start_limit_burst
        if self.stopped_by_operator:
            assert lifecycle.state in (State.STOPPED, State.STOPPING)
            assert lifecycle.after_stop is AfterStop.STAY_DOWN or lifecycle.state is State.STOPPED


AnyLife.TestCase.settings = settings(max_examples=300, stateful_step_count=60, deadline=None)
test_any_life = AnyLife.TestCase


@pytest.mark.fault("H6")
def test_a_program_keeps_the_type_that_it_was_started_with():
    """After a takeover with type = "notify" in the file, a program that was started as "simple" never became ready."""
    run = Run().up()
    run.workload = workload(type="notify", timeout_start_sec=5.0)
    assert is_up(run.lifecycle, run.workload)
    run(events.Freeze())(events.Thaw())
    assert run.lifecycle.deadline is None  # otherwise it would be stopped, as it never reports
    run(events.Restart()).dies(OK)
    run.fact(events.Execed)
    assert (run.lifecycle.deadline is not None, is_up(run.lifecycle, run.workload)) == (True, False)


@pytest.mark.fault("H6")
def test_a_program_that_is_starting_keeps_its_type_and_its_deadline():
    run = Run(type="notify", timeout_start_sec=5.0)(events.Start())
    run.workload = workload(type="simple")
    run.fact(events.Execed)
    assert run.lifecycle.deadline is not None
    assert not is_up(run.lifecycle, run.workload)
    run.fact(events.Ready)
    assert is_up(run.lifecycle, run.workload)


def test_a_generation_of_unknown_type_has_the_present_one():
    """Version 0.1.0 does not save the type."""
    run = Run().up()
    run.lifecycle = attrs.evolve(run.lifecycle, started_type="")
    assert is_up(run.lifecycle, workload())
    assert not is_up(run.lifecycle, workload(type="notify"))


# ---- exit statuses that decide, and the longest run


@pytest.mark.parametrize(
    ("exit_", "policy", "state"),
    [
        (Exit(code=2), "always", State.FAILED),  # systemd.service(5), RestartPreventExitStatus=
        (Exit(signal=signal.SIGUSR1), "on-failure", State.FAILED),
        (Exit(code=75), "no", State.BACKOFF),  # RestartForceExitStatus=
        (Exit(code=0), "on-failure", State.BACKOFF),
        (Exit(code=9), "always", State.FAILED),  # in both: prevented
        (Exit(code=3), "on-failure", State.BACKOFF),
        (Exit(code=3), "no", State.FAILED),
        (Exit(setup_failure="cannot execute web"), "no", State.FAILED),
    ],
)
def test_exit_statuses_that_prevent_or_force_a_restart(exit_, policy, state):
    run = Run(restart=policy, restart_prevent_exit_status=(2, 9, "SIGUSR1"), restart_force_exit_status=(0, 9, 75)).up()
    assert run.dies(exit_).state is state


def test_a_restart_of_a_rule_is_not_prevented_by_the_exit_status():
    run = Run(restart_prevent_exit_status=(0,)).up()
    run(events.PolicyRestart("rule"))
    assert run.dies(OK).state is State.BACKOFF


def test_a_program_that_has_run_for_its_longest_time_is_stopped_and_has_failed():
    run = Run(runtime_max_sec=60.0, restart="on-failure").up()
    assert run.lifecycle.deadline == run.now + 60
    assert run(events.Timeout(), after=59.9).state is State.RUNNING
    assert run(events.Timeout(), after=0.1).actions == (actions.Signal(signal.SIGTERM),)
    assert run.lifecycle.reason == "ran for longer than 60 s (runtime_max_sec)"
    assert run.dies(OK).state is State.BACKOFF, "a timeout is a failure, whatever the exit status"
    run(events.Timeout(), after=1)
    assert (run.state, run.lifecycle.runs_until) == (State.STARTING, None)
    assert run.lifecycle.deadline == run.now + 30, "its start has the time of a start"


def test_the_longest_run_counts_from_readiness_and_has_a_random_part():
    run = Run(type="notify", runtime_max_sec=60.0, runtime_randomized_extra_sec=10.0).up()
    assert run.lifecycle.deadline == run.now + 30
    run(events.Ready(1), after=20, jitter=0.5)
    assert (run.state, run.lifecycle.deadline) == (State.READY, run.now + 65)
    assert run(events.Timeout(), after=65).state is State.STOPPING


def test_the_longest_run_goes_on_while_frozen_and_ends_it_after_the_thaw():
    run = Run(runtime_max_sec=60.0).up()
    until = run.lifecycle.deadline
    run(events.Freeze(), after=10)
    assert run.lifecycle.deadline is None
    assert run(events.Timeout(), after=60).state is State.FROZEN
    run(events.Thaw())
    assert run.lifecycle.deadline == until
    assert run(events.Timeout()).state is State.STOPPING


def test_one_that_became_ready_while_frozen_has_its_longest_run_from_the_thaw():
    run = Run(type="notify", runtime_max_sec=60.0).up()
    run(events.Freeze())
    run.fact(events.Ready, after=5)
    run(events.Thaw(), after=5)
    assert (run.state, run.lifecycle.deadline) == (State.READY, run.now + 60)


EVERYONE = actions.Signal(signal.SIGTERM, whole_cgroup=True)
HANGUP = actions.Signal(signal.SIGHUP, resumes=False)


@pytest.mark.parametrize("cause", ["stop", "time", "probe"])
def test_kill_mode_all_signals_all_processes_at_once_and_no_process_twice(cause):
    run = Run(kill_mode="all", runtime_max_sec=60.0).up()
    if cause == "stop":
        run(events.Stop())
    elif cause == "time":
        run(events.Timeout(), after=60)
    else:
        run.fact(events.Unhealthy, "it hangs", "liveness")
    assert run.actions == (EVERYONE,)
    assert run.dies(OK, populated=True).actions == (), "a second signal may mean more than the first"
    assert run(events.Timeout(), after=10).actions == (actions.KillAll(),)


def test_kill_mode_all_aborts_all_processes_of_a_program_that_hangs():
    run = Run(kill_mode="all").up().fact(events.Unhealthy, "no WATCHDOG=1")
    assert run.actions == (actions.Signal(signal.SIGABRT, whole_cgroup=True),)


def test_what_a_program_leaves_by_itself_gets_the_signal_with_kill_mode_all_too():
    run = Run(kill_mode="all").up()
    assert run.dies(OK, populated=True).actions == (EVERYONE,)


@pytest.mark.parametrize("cause", ["stop", "time", "probe", "watchdog"])
def test_kill_mode_process_signals_the_program_alone(cause):
    run = Run(kill_mode="process", runtime_max_sec=60.0, final_kill_signal=signal.SIGQUIT).up()
    if cause == "stop":
        run(events.Stop())
    elif cause == "time":
        run(events.Timeout(), after=60)
    else:
        run.fact(events.Unhealthy, "it hangs", "liveness" if cause == "probe" else "")
    first = signal.SIGABRT if cause == "watchdog" else signal.SIGTERM
    assert run.actions == (actions.Signal(first),)
    assert unfinished_actions(run.lifecycle, run.workload)[-1] == actions.ThawAll()
    assert run(events.Timeout(), after=10).actions == (actions.Signal(signal.SIGQUIT),)
    assert unfinished_actions(run.lifecycle, run.workload)[0] == actions.Signal(signal.SIGQUIT)
    assert run(events.Timeout(), after=10).actions == (actions.Signal(signal.SIGKILL, resumes=False),)
    assert unfinished_actions(run.lifecycle, run.workload) == (actions.Signal(signal.SIGKILL, resumes=False),)


def test_kill_mode_process_leaves_the_rest_and_is_down():
    run = Run(kill_mode="process").up()
    run(events.Stop())
    assert run.dies(KILLED, populated=True).actions == (actions.ReportLeft(),)
    assert (run.state, run.lifecycle.has_left) == (State.STOPPED, True)
    assert run(events.Start()).actions == (actions.Spawn(2),)
    assert not run.lifecycle.has_left


def test_kill_mode_process_restarts_a_program_that_leaves_processes_by_itself():
    run = Run(kill_mode="process", restart="always", restart_sec=0.0).up()
    assert run.dies(Exit(code=1), populated=True).actions == (actions.ReportLeft(), actions.Spawn(2))


def test_a_kill_ends_all_processes_with_kill_mode_process_too():
    run = Run(kill_mode="process").up()
    assert run(events.Kill()).actions == (actions.KillAll(),)
    assert unfinished_actions(run.lifecycle, run.workload) == (actions.KillAll(),)
    run.dies(KILLED, populated=True)
    assert (run.state, run.lifecycle.has_left) == (State.STOPPING, False)


def test_send_sighup_follows_the_signal_of_a_stop_but_not_that_of_the_watchdog():
    run = Run(send_sighup=True).up()
    assert run(events.Stop()).actions == (actions.Signal(signal.SIGTERM), HANGUP)
    assert run.dies(OK, populated=True).actions == (EVERYONE, attrs.evolve(HANGUP, whole_cgroup=True))
    run = Run(send_sighup=True).up().fact(events.Unhealthy, "no WATCHDOG=1")
    assert run.actions == (actions.Signal(signal.SIGABRT),)
    assert len(Run(send_sighup=True, kill_signal=signal.SIGHUP).up()(events.Stop()).actions) == 1


def test_the_final_signal_comes_before_sigkill_and_has_as_much_time():
    run = Run(final_kill_signal=signal.SIGQUIT, timeout_stop_sec=3.0, restart="on-abnormal").up()
    run(events.Restart())
    final = actions.Signal(signal.SIGQUIT, whole_cgroup=True)
    assert run(events.Timeout(), after=3).actions == (final,)
    assert not run.lifecycle.sigkill_sent
    assert run(events.Timeout(), after=3).actions == (actions.KillAll(),)
    assert run(events.Timeout(), after=3).actions == (actions.ReleaseSurvivors(3.0, False), actions.KillAll())
    assert run.dies(KILLED).actions == (actions.Spawn(2),)
    assert not run.lifecycle.final_signal_sent, "it is about one generation"


def test_the_next_supervisor_repeats_the_signals_of_a_stop():
    run = Run(kill_mode="all", send_sighup=True, final_kill_signal=signal.SIGQUIT).up()
    run(events.Stop())
    first = unfinished_actions(run.lifecycle, run.workload)
    assert first == (EVERYONE, attrs.evolve(HANGUP, whole_cgroup=True), actions.ThawAll())
    run(events.Timeout(), after=10)
    assert unfinished_actions(run.lifecycle, run.workload)[0] == actions.Signal(signal.SIGQUIT, whole_cgroup=True)
    run(events.Timeout(), after=10)
    assert unfinished_actions(run.lifecycle, run.workload) == (actions.KillAll(),)


@pytest.mark.parametrize(("mode", "exit_", "expected"), [
    ("debug", CRASH, True), ("debug", KILLED, True), ("debug", OK, False), ("normal", CRASH, False),
])  # fmt: skip
def test_a_restart_after_a_failure_is_a_debug_invocation(mode, exit_, expected):
    run = Run(restart="always", restart_mode=mode).up().dies(exit_)
    assert run.state is State.BACKOFF
    assert not run.lifecycle.is_debug
    run(events.Timeout(), after=1)
    assert (run.state, run.lifecycle.is_debug) == (State.STARTING, expected)


def test_no_start_by_an_operator_or_a_rule_is_a_debug_invocation():
    run = Run(restart="always", restart_mode="debug").up().dies(CRASH)
    assert not run(events.Restart()).lifecycle.is_debug
    run = Run(restart="always", restart_mode="debug", restart_sec=0.0).up().dies(CRASH)
    assert run.lifecycle.is_debug, "at once, without a back-off"
    run.fact(events.Execed)
    run(events.PolicyRestart("rule"))
    run.dies(Exit(signal=signal.SIGTERM))
    run(events.Timeout(), after=1)
    assert (run.state, run.lifecycle.is_debug) == (State.STARTING, False)


def test_a_start_counts_after_min_ready_sec():
    run = Run(min_ready_sec=2.0, runtime_max_sec=60.0, restart_sec=0.0)
    run(events.Start())
    run.fact(events.Execed).dies(CRASH)
    run.fact(events.Execed, after=1)
    assert (run.state, is_up(run.lifecycle, run.workload)) == (State.RUNNING, False)
    assert run(events.Timeout(), after=1.9).lifecycle.complete_at is not None
    run(events.Timeout(), after=0.1)
    assert is_up(run.lifecycle, run.workload)
    assert (run.lifecycle.recent_starts, run.lifecycle.consecutive_failures) == ((), 0)
    assert run.lifecycle.deadline == run.now + 60, "the longest run begins with the end of the start"
    assert run(events.Timeout(), after=60).state is State.STOPPING


@pytest.mark.parametrize(("restart", "state"), [("on-failure", State.BACKOFF), ("on-success", State.FAILED)])
def test_an_end_before_min_ready_sec_is_a_failure_with_any_status(restart, state):
    run = Run(min_ready_sec=2.0, restart=restart).up().dies(OK, after=1)
    assert run.state is state
    assert run.lifecycle.reason == "exit code 0 before it had been up for 2 s (min_ready_sec)"
    assert run.lifecycle.fault_outcome is Outcome.PROTOCOL
    run = Run(min_ready_sec=2.0, restart="no").up()(events.Timeout(), after=2).dies(OK)
    assert (run.state, run.lifecycle.reason) == (State.EXITED, "exit code 0")


def test_a_stop_before_min_ready_sec_is_no_failure():
    run = Run(min_ready_sec=2.0).up()
    run(events.Stop(), after=1)
    assert run.dies(OK).state is State.STOPPED


def test_min_ready_sec_begins_with_readiness_and_again_after_a_thaw():
    run = Run(type="notify", min_ready_sec=2.0).up()
    run.fact(events.Ready, after=5)
    assert (run.state, run.lifecycle.deadline) == (State.READY, run.now + 2)
    assert run.fact(events.Extend, 60.0).lifecycle.deadline == run.now + 2, "it is no limit that could be extended"
    run(events.Freeze(), after=1)
    run(events.Thaw(), after=60)
    assert (run.lifecycle.deadline, is_up(run.lifecycle, run.workload)) == (run.now + 2, False)
    run(events.Timeout(), after=2)
    assert is_up(run.lifecycle, run.workload)
    run(events.Freeze())
    run(events.Thaw())
    assert is_up(run.lifecycle, run.workload), "once"


def test_one_that_becomes_ready_while_frozen_has_min_ready_sec_after_the_thaw():
    run = Run(type="notify", min_ready_sec=2.0).up()
    run(events.Freeze())
    run.fact(events.Ready, after=5)
    assert run.lifecycle.deadline is None
    run(events.Thaw(), after=5)
    assert (run.state, run.lifecycle.deadline) == (State.READY, run.now + 2)


def test_a_simple_program_that_says_that_it_is_ready_does_not_begin_min_ready_sec_again():
    run = Run(min_ready_sec=2.0).up()
    completes_at = run.lifecycle.complete_at
    run.fact(events.Ready, after=1)
    assert run.lifecycle.complete_at == completes_at
    run(events.Timeout(), after=1)
    assert is_up(run.lifecycle, run.workload)


def test_a_program_that_goes_to_the_background_is_up_once_its_daemon_is_known():
    run = Run(type="forking", timeout_start_sec=30.0, runtime_max_sec=60.0).up()
    assert not is_up(run.lifecycle, run.workload)
    assert run.dies(OK, populated=True, after=1).actions == ()
    assert awaits_daemon(run.lifecycle, run.workload)
    assert not is_up(run.lifecycle, run.workload)
    assert run.lifecycle.deadline == run.now + 29, "the time of its start goes on"
    run.fact(events.NewMain, after=1)
    assert (run.state, run.lifecycle.exit, run.lifecycle.deadline) == (State.RUNNING, None, run.now + 60)
    assert is_up(run.lifecycle, run.workload)
    assert not awaits_daemon(run.lifecycle, run.workload)
    assert run(events.Stop()).actions == (actions.Signal(signal.SIGTERM),)
    assert run.dies(OK).state is State.STOPPED


def test_a_daemon_that_is_not_known_in_time_is_stopped_with_all_others():
    run = Run(type="forking", timeout_start_sec=5.0, restart="no").up()
    run.dies(OK, populated=True)
    assert run(events.Timeout(), after=5).actions == (EVERYONE,)
    assert run.fact(events.Emptied).state is State.FAILED
    assert run.lifecycle.reason == "pid_file names none of its processes within 5 s"
    run = Run(type="forking", timeout_start_sec=5.0).up()(events.Timeout(), after=5)
    assert run.lifecycle.reason == "it has not gone to the background within 5 s"


@pytest.mark.parametrize("leaves", [False, True])
def test_a_program_that_leaves_no_daemon_has_not_kept_the_protocol(leaves):
    run = Run(type="forking", restart="on-success").up().dies(OK, populated=leaves)
    if leaves:
        run.fact(events.Emptied)
    assert (run.state, run.lifecycle.fault_outcome) == (State.FAILED, Outcome.PROTOCOL)
    assert run.lifecycle.reason.startswith("exit code 0 without leaving the daemon")


def test_the_parent_of_a_daemon_that_fails_has_failed():
    run = Run(type="forking").up().dies(CRASH, populated=True)
    assert (run.state, run.actions) == (State.STOPPING, (EVERYONE,))
    assert run.fact(events.Emptied).state is State.BACKOFF


def test_a_stop_before_the_daemon_is_known_signals_all():
    run = Run(type="forking").up().dies(OK, populated=True)
    assert run(events.Stop()).actions == (EVERYONE,)
    assert run.fact(events.NewMain).lifecycle.exit is not None, "too late"
    assert run.fact(events.Emptied).state is State.STOPPED


def test_a_workload_outlives_its_program_until_its_cgroup_is_empty():
    run = Run(exit_type="cgroup", restart="on-failure").up().dies(CRASH, populated=True)
    assert (run.state, run.actions) == (State.RUNNING, ())
    assert is_up(run.lifecycle, run.workload)
    assert run.fact(events.Emptied).state is State.BACKOFF, "the exit status of the program counts"
    run = Run(exit_type="cgroup").up().dies(OK, populated=True)
    assert run(events.Stop()).actions == (EVERYONE,), "there is no program that the signal could go to first"
    assert run.fact(events.Emptied).state is State.STOPPED


def test_a_frozen_workload_that_outlived_its_program_is_thawed_for_the_next_start():
    run = Run(exit_type="cgroup", restart="always", restart_sec=0.0).up().dies(OK, populated=True)
    run(events.Freeze())
    assert run.fact(events.Emptied).actions == (actions.ThawAll(), actions.Spawn(2))


def test_a_program_that_is_not_ready_yet_ends_the_start_with_any_exit_type():
    run = Run(exit_type="cgroup", type="notify").up().dies(OK, populated=True)
    assert (run.state, run.actions) == (State.STOPPING, (EVERYONE,))


# ---------------------------------------------------------------------------------------------------------------------
# Commands before and after the program

ONE = (("true",),)
HOOKED = {"exec_stop_post": ONE, "restart": "no"}


def hook(run, phase, step=0, success=True, detail="exit code 0", **more):
    """Report the end of the command that runs."""
    return run.fact(events.HookDone, phase, step, success, detail, **more)


def test_commands_run_before_the_program():
    run = Run(exec_condition=ONE, exec_start_pre=COMMANDS, timeout_start_sec=4.0)
    assert run(events.Start()).actions == (actions.RunHook(Phase.CONDITION, 0),)
    assert (run.state, run.lifecycle.generation, run.lifecycle.deadline) == (State.STARTING, 1, run.now + 4)
    assert hook(run, Phase.CONDITION).actions == (actions.RunHook(Phase.START_PRE, 0),)
    assert hook(run, Phase.START_PRE, 0, False).actions == (actions.RunHook(Phase.START_PRE, 1),)
    assert hook(run, Phase.START_PRE, 0).actions == (), "it is late"
    assert hook(run, Phase.START_PRE, 1).actions == (actions.Spawn(1),)
    assert run.lifecycle.phase is Phase.NONE
    assert run.fact(events.Execed).state is State.RUNNING


@pytest.mark.parametrize(
    ("code", "state"), [(1, State.EXITED), (254, State.EXITED), (255, State.FAILED), (None, State.FAILED)]
)
def test_a_condition_skips_the_start(code, state):
    run = Run(exec_condition=ONE, **HOOKED)
    run(events.Start())
    assert hook(run, Phase.CONDITION, 0, False, "no", code=code).actions == (actions.RunHook(Phase.STOP_POST, 0),)
    assert service_result(run.lifecycle, run.workload) == ("exec-condition" if state is State.EXITED else "exit-code")
    assert hook(run, Phase.STOP_POST).state is state
    assert not is_up(run.lifecycle, run.workload)


def test_a_command_before_the_program_that_fails_is_a_failed_start():
    run = Run(exec_start_pre=ONE, exec_stop_post=ONE, restart="on-failure")
    run(events.Start())
    hook(run, Phase.START_PRE, 0, False, "exit code 3", after=1.2)
    assert run.actions == (actions.RunHook(Phase.STOP_POST, 0),)
    assert hook(run, Phase.STOP_POST).state is State.BACKOFF
    assert run.lifecycle.reason == "exec_start_pre[0] exit code 3, after 1.2 s"
    assert run(events.Timeout(), after=60).actions == (actions.RunHook(Phase.START_PRE, 0),)


def test_a_stop_ends_the_command_before_the_program():
    run = Run(exec_start_pre=ONE * 2)
    run(events.Start())
    assert run(events.Stop()).actions == (actions.Signal(signal.SIGTERM, whole_cgroup=True),)
    assert run.state is State.STOPPING
    assert hook(run, Phase.START_PRE, 0, True).state is State.STOPPED, "the next one does not run"
    assert run.actions == ()


def test_a_command_before_the_program_that_takes_too_long_is_ended():
    run = Run(exec_start_pre=ONE, timeout_start_sec=4.0, timeout_stop_sec=2.0, restart="no")
    run(events.Start())
    assert run(events.Timeout(), after=4).actions == (actions.Signal(signal.SIGTERM, whole_cgroup=True),)
    assert run(events.Timeout(), after=2).actions == (actions.KillAll(),)
    assert hook(run, Phase.START_PRE, 0, False, "killed by SIGKILL").state is State.FAILED
    assert run.lifecycle.reason == "exec_start_pre[0] has not ended within 4 s"


@pytest.mark.parametrize("type_", ["simple", "notify"])
def test_the_start_is_complete_after_the_commands_that_follow_it(type_):
    run = Run(type=type_, exec_start_post=ONE, runtime_max_sec=20.0, timeout_start_sec=4.0).up()
    if type_ == "notify":
        assert run.actions == ()
        run.fact(events.Ready)
    assert run.actions == (actions.RunHook(Phase.START_POST, 0),)
    assert not is_up(run.lifecycle, run.workload)
    assert run.lifecycle.deadline == run.now + 4
    hook(run, Phase.START_POST, after=1)
    assert is_up(run.lifecycle, run.workload)
    assert run.lifecycle.deadline == run.now + 20


def test_a_freeze_waits_for_the_commands_that_follow_the_start():
    run = Run(exec_start_post=ONE).up()
    assert run(events.Freeze()).actions == ()
    assert hook(run, Phase.START_POST).actions == (actions.FreezeAll(),)
    assert run(events.Thaw()).state is State.RUNNING
    run = Run(exec_start_post=ONE).up()
    run(events.Freeze())
    run(events.Thaw())
    assert hook(run, Phase.START_POST).state is State.RUNNING


@pytest.mark.parametrize("is_slow", [False, True])
def test_a_command_after_the_start_that_fails_stops_the_program(is_slow):
    run = Run(exec_start_post=ONE, exec_stop=ONE, timeout_start_sec=4.0, **HOOKED).up()
    if is_slow:
        run(events.Timeout(), after=4)
        assert run.actions == (actions.EndHook(), actions.Signal(signal.SIGTERM))
    else:
        hook(run, Phase.START_POST, 0, False, "exit code 3", after=1)
        assert run.actions[-1] == actions.Signal(signal.SIGTERM), "without exec_stop"
    run.dies(OK)
    assert service_result(run.lifecycle, run.workload) == ("timeout" if is_slow else "exit-code")
    assert hook(run, Phase.STOP_POST).state is State.FAILED


def test_commands_stop_the_program_before_the_signal():
    run = Run(exec_stop=COMMANDS, timeout_stop_sec=4.0).up()
    assert run(events.Stop()).actions == (actions.RunHook(Phase.STOP, 0),)
    deadline = run.lifecycle.deadline
    assert hook(run, Phase.STOP, 0, False, after=1).actions == (actions.RunHook(Phase.STOP, 1),)
    assert hook(run, Phase.STOP, 1, False).actions == (actions.Signal(signal.SIGTERM),)
    assert (run.state, run.lifecycle.deadline) == (State.STOPPING, deadline)
    assert run.dies(Exit(signal=signal.SIGTERM)).state is State.STOPPED


def test_the_program_may_end_while_a_command_stops_it():
    run = Run(exec_stop=ONE).up()
    run(events.Restart())
    assert run.dies(OK, populated=True).actions == (), "the command goes on"
    assert run.lifecycle.phase is Phase.STOP
    assert hook(run, Phase.STOP, is_populated=False).actions == (actions.Spawn(2),)


def test_a_command_that_stops_the_program_for_too_long_ends_with_it():
    run = Run(exec_stop=ONE, timeout_stop_sec=4.0).up()
    run(events.Stop())
    assert run(events.Timeout(), after=4).actions == (actions.EndHook(), actions.KillAll())
    assert run.dies(Exit(signal=signal.SIGKILL)).state is State.STOPPED


def test_a_frozen_program_is_thawed_for_the_command_that_stops_it():
    run = Run(exec_stop=ONE).up()
    run(events.Freeze())
    assert run(events.Stop()).actions == (actions.ThawAll(), actions.RunHook(Phase.STOP, 0))


def test_a_program_that_was_never_up_gets_the_signal_alone():
    run = Run(type="notify", exec_stop=ONE).up()
    assert run(events.Stop()).actions == (actions.Signal(signal.SIGTERM),)


@pytest.mark.parametrize(
    ("exit_", "result"),
    [
        (OK, "success"),
        (Exit(code=3), "exit-code"),
        (Exit(signal=signal.SIGSEGV), "signal"),
        (Exit(signal=signal.SIGSEGV, core_dumped=True), "core-dump"),
        (Exit(signal=signal.SIGKILL, oom_killed=True), "oom-kill"),
        (Exit(setup_failure="no such user"), "resources"),
    ],
)
def test_commands_run_after_each_end(exit_, result):
    run = Run(**HOOKED).up()
    assert run.dies(exit_).actions == (actions.RunHook(Phase.STOP_POST, 0),)
    assert (run.state, service_result(run.lifecycle, run.workload)) == (State.STOPPING, result)
    assert run.fact(events.Emptied).actions == (), "that was known"
    hook(run, Phase.STOP_POST)
    assert run.state is (State.EXITED if result == "success" else State.FAILED)
    assert run.lifecycle.reason == str(exit_)


def test_what_the_commands_after_the_end_leave_is_ended():
    run = Run(timeout_stop_sec=4.0, **HOOKED).up()
    run.dies(OK)
    hook(run, Phase.STOP_POST, is_populated=True)
    assert run.actions == (actions.Signal(signal.SIGTERM, whole_cgroup=True),)
    assert run.state is State.STOPPING
    assert run(events.Timeout(), after=4).actions == (actions.KillAll(),)
    assert run.fact(events.Emptied).state is State.EXITED


def test_a_command_after_the_end_that_fails_makes_that_a_failure():
    run = Run(timeout_stop_sec=4.0, **HOOKED).up()
    run.dies(OK)
    assert run(events.Timeout(), after=4).actions == (actions.KillAll(),)
    assert hook(run, Phase.STOP_POST, 0, False, "killed by SIGKILL").state is State.FAILED
    assert run.lifecycle.reason == "exec_stop_post[0] has not ended within 4 s"


def test_a_command_that_takes_too_long_fails_once():
    run = Run(exec_start_pre=ONE, timeout_start_sec=4.0, timeout_stop_sec=2.0)
    run(events.Start())
    run(events.Timeout(), after=4)
    before, done = run.lifecycle, events.HookDone(1, Phase.START_PRE, 0, False, "killed by SIGTERM")
    after = hook(run, Phase.START_PRE, 0, False, "killed by SIGTERM").lifecycle
    records = transition_records(before, done, after, None, run.workload, run.now)
    assert "hook failed" not in [record.event for record in records], "that was recorded at the time-out"
    assert after.hook_failure == "exec_start_pre[0] has not ended within 4 s"


def test_a_kill_does_not_lose_the_commands_after_the_end():
    run = Run(exec_stop_post=ONE * 2).up()
    assert run(events.Kill()).actions == (actions.KillAll(),)
    run.dies(Exit(signal=signal.SIGKILL))
    assert run.actions == (actions.RunHook(Phase.STOP_POST, 0),)
    assert run(events.Kill()).actions == (actions.KillAll(),)
    assert run.dies(OK).actions == (), "that was known"
    assert run(events.Stop()).lifecycle.phase is Phase.STOP_POST
    assert hook(run, Phase.STOP_POST, 0, False, "killed by SIGKILL").state is State.STOPPED
