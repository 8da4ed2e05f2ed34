"""Lifecycle of one workload: a table of states and inputs, and the few functions that its cells name.

Two rules hold for this module:

1. Everything that decides what becomes of a workload is here.
2. Nothing here knows how anything is done. There is no clock, file, process or random number: `apply_input` is a
   function of the lifecycle so far, an input, and the instant (the monotonic time and a random number for the jitter).

Theory of operation
===================

A workload is one program with all the processes that it leaves in its cgroup. Each run of it is a *generation*,
numbered from 1. A generation is *dead* when both have been observed: its program has exited, and its cgroup is empty.
Only then may the next one start, so at most one generation lives at any time.

A lifecycle is in one of nine states:

    stopped    no process; the workload shall not run       starting   requested; the program does not run yet
    backoff    no process; the next start has a time        running    the program runs
    exited     no process; the program ended successfully   ready      the program runs, and reported that it is ready
    failed     no process; the supervisor has given up      frozen     the program runs, but is never scheduled
                                                            stopping   being stopped, or has ended in part

In `stopping` the only question is what comes afterwards (`AfterStop`): stay down, start again, or ask the restart
policy. A later command replaces an earlier one there: the last command wins, and no command waits for another.

A lifecycle has at most one deadline; the shell sends `Timeout` when it has passed. A deadline that was moved or dropped
in the meantime makes that input stale, and `apply_input` ignores it, as it ignores events about an earlier generation.
These two are the only decisions made outside the table.
"""

import enum
import signal
from collections.abc import Callable

import attrs

from nsupervisor.config.model import DEFAULT_START_LIMIT, NOTIFY_TYPES, WorkloadConfig
from nsupervisor.core import backoff
from nsupervisor.core.actions import (
    Action,
    EndHook,
    FreezeAll,
    KillAll,
    ReleaseSurvivors,
    ReportLeft,
    RunHook,
    Signal,
    Spawn,
    ThawAll,
)
from nsupervisor.core.events import (
    Command,
    Emptied,
    Event,
    Execed,
    Exited,
    Extend,
    Freeze,
    HookDone,
    Input,
    Kill,
    NewMain,
    NotReady,
    PolicyRestart,
    Ready,
    Reload,
    Reloading,
    Restart,
    RestartReset,
    Start,
    Stop,
    Stopping,
    Thaw,
    Timeout,
    Unhealthy,
)
from nsupervisor.core.evolve import evolve
from nsupervisor.core.exits import RESTARTED_OUTCOMES, Exit, Outcome
from nsupervisor.core.initiators import SHUTDOWN, Initiator
from nsupervisor.core.phases import HOOK_KEYS, PHASES_BEFORE_PROGRAM, PHASES_WITHOUT_PROGRAM, RELOAD_PHASES, Phase
from nsupervisor.core.states import ALIVE_STATES
from nsupervisor.core.states import State as State
from nsupervisor.wire_names import wire


class AfterStop(enum.Enum):
    """The continuation after a stopping generation is dead."""

    STAY_DOWN = "rest"
    """Stay down: the workload was stopped."""
    START = "start"
    """Start the next generation at once: a restart was requested."""
    BACKOFF = "recycle"
    """Start the next generation after the back-off: a rule requested a restart."""
    POLICY = "decide"
    """Ask the restart policy what to do."""


@attrs.frozen
class Instant:
    """The time of an input, in seconds of a monotonic clock, and its `jitter`, a random number from [0, 1)."""

    now: float
    jitter: float = 0.0


@attrs.frozen
class Lifecycle:
    """The complete lifecycle state of a workload. Times are seconds of the monotonic clock."""

    state: State = attrs.field(default=State.STOPPED, metadata=wire("state"))
    reason: str = attrs.field(default="", metadata=wire("reason"))
    """Why the workload is in this state, in words."""
    should_run: bool = attrs.field(default=False, metadata=wire("wanted"))
    """Whether the last command wants the workload to run."""
    generation: int = attrs.field(default=0, metadata=wire("generation"))
    deadline: float | None = attrs.field(default=None, metadata=wire("deadline"))
    after_stop: AfterStop = attrs.field(default=AfterStop.POLICY, metadata=wire("then"))
    final_signal_sent: bool = attrs.field(default=False, metadata=wire("final_sent"))
    """`final_kill_signal`, if it is not SIGKILL, was sent to what is left of this generation."""
    sigkill_sent: bool = attrs.field(default=False, metadata=wire("killed"))
    """SIGKILL was sent to every process of this generation."""
    killed_at: float | None = attrs.field(default=None, metadata=wire("killed_at"))
    """When SIGKILL was first sent to them; None once it has been reported that they live on."""
    exit: Exit | None = attrs.field(default=None, metadata=wire("exit"))
    """The exit of this generation's program; once it is dead, of the last one.

    While it is up: other processes run on (`exit_type = "cgroup"`), or the daemon that it has become is not known yet.
    """
    has_left: bool = attrs.field(default=False, metadata=wire("left"))
    """Processes of this generation ran on when it was dead, as `kill_mode = "process"` says."""
    fault_outcome: Outcome | None = attrs.field(default=None, metadata=wire("fault"))
    """The outcome for the restart policy if the supervisor ended the program for a fault of its own.

    It replaces the outcome of the exit status.
    """
    state_before_freeze: State = attrs.field(default=State.RUNNING, metadata=wire("thawed_to"))
    """While frozen: the state to return to."""
    freeze_requested_by: str = attrs.field(default="", metadata=wire("to_freeze"))
    """While starting: the source of a freeze that waits until the program runs; "" if there is none."""
    started_at: float = attrs.field(default=0.0, metadata=wire("started_at"))
    recent_starts: tuple[float, ...] = attrs.field(default=(), metadata=wire("starts"))
    """The times of the latest starts, oldest first: as many as the start limit needs."""
    consecutive_failures: int = attrs.field(default=0, metadata=wire("failures"))
    """Consecutive ends that led to a back-off; the exponent of the next delay."""
    restarts: int = attrs.field(default=0, metadata=wire("restarts"))
    """Starts that the supervisor decided on since it began."""
    runs_until: float | None = attrs.field(default=None, metadata=wire("runs_until"))
    """When `runtime_max_sec` ends this generation; None if it has no such end, or its start is not complete."""
    started_type: str = attrs.field(default="", metadata=wire("type"))
    """`start_type` of the workload when this generation was started; "" if it is not known: then it is the present one.

    It says how it becomes known that the program is ready, so a program keeps the one that it was started with.
    """
    is_debug: bool = attrs.field(default=False, metadata=wire("debug"))
    """Whether this generation was started after a failure with `restart_mode = "debug"`: it has DEBUG_INVOCATION=1."""
    complete_at: float | None = attrs.field(default=None, metadata=wire("complete_at"))
    """When `min_ready_sec` completes the start of this generation; None before it is up, and afterwards."""
    was_ready: bool = attrs.field(default=False, metadata=wire("was_ready"))
    """Whether a probe has found this generation ready before, or its daemon is known: its start is complete."""
    phase: Phase = attrs.field(default=Phase.NONE, metadata=wire("phase"))
    step: int = attrs.field(default=0, metadata=wire("step"))
    """The command that runs, in a phase that has some; from 0 on."""
    step_since: float = attrs.field(default=0.0, metadata=wire("step_since"))
    """When it was begun."""
    phase_since: float = attrs.field(default=0.0, metadata=wire("phase_since"))
    """When the reload in `phase` began."""
    reload_failure: str = attrs.field(default="", metadata=wire("reload_failure"))
    """Why the last reload of this generation has failed, in words; "" if it has not."""
    hook_failure: str = attrs.field(default="", metadata=wire("hook_failure"))
    """How the last command of a hook that has failed in this generation did so, in words; "" if none has."""
    end_reason: str = attrs.field(default="", metadata=wire("end_reason"))
    """While commands of `exec_stop_post` run, and afterwards: why the program has ended, in words."""
    skipped_by_hook: bool = attrs.field(default=False, metadata=wire("skipped_by_hook"))
    """Whether a command of `exec_condition` has skipped this start."""
    stops_by_itself: bool = attrs.field(default=False, metadata=wire("by_itself"))
    """While stopping: the program has begun to stop by itself, and no signal was sent."""

    @property
    def is_alive(self) -> bool:
        """Whether processes of the current generation may live."""
        return self.state in ALIVE_STATES

    @property
    def is_ending_program(self) -> bool:
        """Whether the supervisor has sent a signal to end the program, and the program has not exited yet."""
        was_sent = not self.stops_by_itself or self.final_signal_sent or self.sigkill_sent
        return self.state is State.STOPPING and self.exit is None and was_sent

    @property
    def is_reloading(self) -> bool:
        """Whether the program reads its configuration again."""
        return self.phase in RELOAD_PHASES


LifecycleResult = tuple[Lifecycle, tuple[Action, ...]]
Handler = Callable[[Lifecycle, Input, Instant, WorkloadConfig], LifecycleResult]


def apply_input(lifecycle: Lifecycle, input_: Input, instant: Instant, workload: WorkloadConfig) -> LifecycleResult:
    """Compute the lifecycle after an input, and the actions to take, in order."""
    if isinstance(input_, Event) and input_.generation != lifecycle.generation:
        return lifecycle, ()
    if isinstance(input_, Timeout) and (lifecycle.deadline is None or instant.now < lifecycle.deadline):
        return lifecycle, ()
    return TABLE[type(input_)][lifecycle.state](lifecycle, input_, instant, workload)


# ---------------------------------------------------------------------------------------------------------------------
# The cells: the functions that the table names


def ignore(lifecycle: Lifecycle, input_: Input, instant: Instant, workload: WorkloadConfig) -> LifecycleResult:
    """Change nothing: the workload is in the wanted state already, or the input cannot matter now."""
    return lifecycle, ()


def start(lifecycle: Lifecycle, input_: Input, instant: Instant, workload: WorkloadConfig) -> LifecycleResult:
    """Start at once; an operator's command resets the back-off and the start limit."""
    assert isinstance(input_, Command)
    lifecycle = evolve(lifecycle, should_run=True, recent_starts=(), consecutive_failures=0)
    return _spawn(lifecycle, instant, workload, f"started {input_.requested_by.phrase}")


def retry(lifecycle: Lifecycle, input_: Input, instant: Instant, workload: WorkloadConfig) -> LifecycleResult:
    """Start after the back-off has passed."""
    return _respawn(lifecycle, instant, workload, lifecycle.reason)


def cancel(lifecycle: Lifecycle, input_: Input, instant: Instant, workload: WorkloadConfig) -> LifecycleResult:
    """Cancel what would start the workload; no process lives."""
    assert isinstance(input_, Command)
    return evolve(
        lifecycle,
        state=State.STOPPED,
        should_run=False,
        deadline=None,
        consecutive_failures=0,
        reason=f"stopped {input_.requested_by.phrase}",
    ), ()


def confirm(lifecycle: Lifecycle, input_: Input, instant: Instant, workload: WorkloadConfig) -> LifecycleResult:
    """Note that an operator or a rule wants a stopped workload to stay down, so that no other one starts it.

    A start that waits for others, and is given up for one that conflicts with it, is noted, too.
    """
    assert isinstance(input_, Command)
    reason = f"stopped {input_.requested_by.phrase}"
    is_noted = _is_noted(input_.requested_by) and reason != lifecycle.reason
    return (evolve(lifecycle, reason=reason), ()) if is_noted else (lifecycle, ())


def _is_noted(initiator: Initiator) -> bool:
    return initiator.is_request or initiator.detail == "conflicts"


def keep(lifecycle: Lifecycle, input_: Input, instant: Instant, workload: WorkloadConfig) -> LifecycleResult:
    """Record that the workload shall run; it runs already."""
    return evolve(lifecycle, should_run=True), ()


def stop(lifecycle: Lifecycle, input_: Input, instant: Instant, workload: WorkloadConfig) -> LifecycleResult:
    """Ask the program to stop; the command decides what follows."""
    assert isinstance(input_, Command)
    should_run, after_stop, verb = _STOP_COMMANDS[type(input_)]
    lifecycle = evolve(
        lifecycle, should_run=lifecycle.should_run if should_run is None else should_run, after_stop=after_stop
    )
    reason = f"{verb} {input_.requested_by.phrase}"
    if workload.exec_stop and _has_been_up(lifecycle, workload):
        lifecycle, actions = _enter_stopping(lifecycle, instant, workload, reason)
        lifecycle, run = _begin_hooks(lifecycle, instant, Phase.STOP)
        return lifecycle, (*actions, *run)
    return _enter_stopping(lifecycle, instant, workload, reason, *_stop_signals(workload, _has_no_program(lifecycle)))


def stop_frozen(lifecycle: Lifecycle, input_: Input, instant: Instant, workload: WorkloadConfig) -> LifecycleResult:
    """Do as `stop` does, with the signal first: the thawed program handles it before anything else.

    A command of `exec_stop` would be frozen, too, so it begins after the thaw.
    """
    lifecycle, actions = stop(lifecycle, input_, instant, workload)
    return lifecycle, ((ThawAll(), *actions) if lifecycle.phase is Phase.STOP else (*actions, ThawAll()))


def retarget(lifecycle: Lifecycle, input_: Input, instant: Instant, workload: WorkloadConfig) -> LifecycleResult:
    """Replace what follows the stop that is under way: the last command wins.

    A rule does not overrule an operator's command. A stop that follows from one about another workload, or from the end
    of the service, does not replace the reason of a stop of this one: the next supervisor must not start it.
    """
    assert isinstance(input_, Command)
    should_run, after_stop, verb = _STOP_COMMANDS[type(input_)]
    if isinstance(input_, PolicyRestart) and lifecycle.after_stop is not AfterStop.POLICY:
        return lifecycle, ()
    is_consequence = input_.requested_by.kind in ("dependency", "shutdown")
    if is_consequence and lifecycle.after_stop is after_stop and not lifecycle.should_run:
        return lifecycle, ()
    return evolve(
        lifecycle,
        should_run=lifecycle.should_run if should_run is None else should_run,
        after_stop=after_stop,
        reason=f"{verb} {input_.requested_by.phrase}",
    ), ()


def kill(lifecycle: Lifecycle, input_: Input, instant: Instant, workload: WorkloadConfig) -> LifecycleResult:
    """Send SIGKILL to all processes; the restart policy decides what follows, unless an earlier command has."""
    assert isinstance(input_, Command)
    after_stop = lifecycle.after_stop if lifecycle.state is State.STOPPING else AfterStop.POLICY
    lifecycle = evolve(_mark_killed(lifecycle, instant), after_stop=after_stop)
    return _enter_stopping(lifecycle, instant, workload, _kill_reason(lifecycle, input_.requested_by), KillAll())


def _kill_reason(lifecycle: Lifecycle, requested_by: str) -> str:
    """Return the reason after a kill. That of a stop stays.

    The next supervisor starts what only the end of the service has stopped, and nothing that an operator has stopped.
    """
    stays_down = lifecycle.state is State.STOPPING and lifecycle.after_stop is AfterStop.STAY_DOWN
    return lifecycle.reason if stays_down else f"{_KILLED_BY}{requested_by}"


def freeze(lifecycle: Lifecycle, input_: Input, instant: Instant, workload: WorkloadConfig) -> LifecycleResult:
    """Freeze, and drop the deadline: a frozen program cannot report that it is ready. A reload fails by that.

    During `exec_start_post` the freeze waits until the start is complete.
    """
    assert isinstance(input_, Command)
    if lifecycle.phase is Phase.START_POST:
        return evolve(lifecycle, freeze_requested_by=input_.requested_by), ()
    return _enter_frozen(lifecycle, input_.requested_by)


def awaits_freeze(lifecycle: Lifecycle) -> bool:
    """Check whether a freeze that was requested has to wait: for the program, or for `exec_start_post`."""
    return bool(lifecycle.freeze_requested_by) and (
        lifecycle.state is State.STARTING or (lifecycle.is_alive and lifecycle.phase is Phase.START_POST)
    )


def defer_freeze(lifecycle: Lifecycle, input_: Input, instant: Instant, workload: WorkloadConfig) -> LifecycleResult:
    """Freeze as soon as the program runs.

    Until then the set-up is the supervisor's own, and the keeper waits for its report.
    """
    assert isinstance(input_, Command)
    return evolve(lifecycle, freeze_requested_by=input_.requested_by), ()


def cancel_freeze(lifecycle: Lifecycle, input_: Input, instant: Instant, workload: WorkloadConfig) -> LifecycleResult:
    """Cancel a freeze that has not happened yet."""
    return (evolve(lifecycle, freeze_requested_by="") if lifecycle.freeze_requested_by else lifecycle), ()


def thaw(lifecycle: Lifecycle, input_: Input, instant: Instant, workload: WorkloadConfig) -> LifecycleResult:
    """Return to the state before the freeze; a program that is not ready yet gets its full time again.

    `runtime_max_sec` goes on while it is frozen, as in systemd.
    """
    assert isinstance(input_, Command)
    waits = lifecycle.state_before_freeze is State.RUNNING and _start_is_incomplete(lifecycle, workload)
    deadline = _deadline(instant, workload.timeout_start_sec) if waits else lifecycle.runs_until
    if lifecycle.complete_at is not None:
        lifecycle = _mark_up(lifecycle, instant, workload)
        deadline = lifecycle.deadline
    elif lifecycle.state_before_freeze is State.READY and lifecycle.runs_until is None:  # it became ready while frozen
        lifecycle = _limit_runtime(lifecycle, instant, workload)
        deadline = lifecycle.runs_until
    return evolve(
        lifecycle, state=lifecycle.state_before_freeze, deadline=deadline, reason=f"thawed by {input_.requested_by}"
    ), (ThawAll(),)


def mark_running(lifecycle: Lifecycle, input_: Input, instant: Instant, workload: WorkloadConfig) -> LifecycleResult:
    """Record that the program runs; if it has to become ready, its start deadline stays."""
    actions: tuple[Action, ...] = ()
    if lifecycle.phase in HOOK_KEYS:
        return lifecycle, ()
    if not _start_is_incomplete(lifecycle, workload):
        lifecycle, actions = _complete_start(lifecycle, instant, workload)
    return _freeze_if_requested(evolve(lifecycle, state=State.RUNNING), actions)


def _freeze_if_requested(lifecycle: Lifecycle, actions: tuple[Action, ...] = ()) -> LifecycleResult:
    """Freeze a program for which that waits, unless a command of `exec_start_post` runs first."""
    if lifecycle.freeze_requested_by and lifecycle.phase is not Phase.START_POST:
        lifecycle, frozen = _enter_frozen(lifecycle, lifecycle.freeze_requested_by)
        return lifecycle, (*actions, *frozen)
    return lifecycle, actions


def mark_ready(lifecycle: Lifecycle, input_: Input, instant: Instant, workload: WorkloadConfig) -> LifecycleResult:
    """Record that the program is ready, or is ready again."""
    actions: tuple[Action, ...] = ()
    if lifecycle.phase in PHASES_BEFORE_PROGRAM:
        return lifecycle, ()
    if lifecycle.phase is Phase.START_POST:
        pass
    elif lifecycle.state is State.STARTING or _start_is_incomplete(lifecycle, workload):
        lifecycle, actions = _complete_start(lifecycle, instant, workload)
    elif not lifecycle.was_ready and lifecycle.complete_at is None:
        lifecycle = _limit_runtime(lifecycle, instant, workload)
    was_ready = lifecycle.was_ready or _start_type(lifecycle, workload) == PROBED
    return _freeze_if_requested(evolve(_finish_reload(lifecycle), state=State.READY, was_ready=was_ready), actions)


def ready_frozen(lifecycle: Lifecycle, input_: Input, instant: Instant, workload: WorkloadConfig) -> LifecycleResult:
    """Record readiness that was sent before the freeze and received after it; it counts after the thaw."""
    if lifecycle.state_before_freeze is State.RUNNING and _start_is_incomplete(lifecycle, workload):
        lifecycle = evolve(_mark_up(lifecycle, instant, workload), deadline=None, runs_until=None)
    return evolve(lifecycle, state_before_freeze=State.READY), ()


def reload(lifecycle: Lifecycle, input_: Input, instant: Instant, workload: WorkloadConfig) -> LifecycleResult:
    """Have the program read its configuration again, unless its start is incomplete or another reload is under way."""
    signum = workload.signal_of_reload
    if lifecycle.is_reloading or not is_started(lifecycle, workload):
        return lifecycle, ()
    if workload.exec_reload:
        lifecycle = _enter_reload(lifecycle, instant, workload, Phase.RELOAD)
        return _run_hook(lifecycle, instant, 0)
    if signum is None:
        return lifecycle, ()
    send = Signal(signum, resumes=False)
    if _start_type(lifecycle, workload) != "notify-reload":
        return lifecycle, (send,)  # whether the program obeys is not known
    return _enter_reload(lifecycle, instant, workload, Phase.RELOAD_SIGNAL), (send,)


def reloading(lifecycle: Lifecycle, input_: Input, instant: Instant, workload: WorkloadConfig) -> LifecycleResult:
    """Record that the program reads its configuration again. One that answers a signal has begun after the signal."""
    assert isinstance(input_, Reloading)
    if lifecycle.phase is Phase.RELOAD_SIGNAL:
        is_answer = input_.since is not None and input_.since + _TIME_RESOLUTION_S >= lifecycle.phase_since
        return (evolve(lifecycle, phase=Phase.RELOAD_NOTIFY) if is_answer else lifecycle), ()
    if lifecycle.is_reloading or not is_started(lifecycle, workload):
        return lifecycle, ()
    return _enter_reload(lifecycle, instant, workload, Phase.RELOAD_NOTIFY), ()


def hook_done(lifecycle: Lifecycle, input_: Input, instant: Instant, workload: WorkloadConfig) -> LifecycleResult:
    """Run the next command of the phase; after the last one, or the first that fails, the phase is over."""
    assert isinstance(input_, HookDone)
    if lifecycle.phase not in HOOK_KEYS or (input_.phase, input_.step) != (lifecycle.phase, lifecycle.step):
        return lifecycle, ()
    commands, failure = hook_commands(workload, lifecycle.phase), ""
    is_ignored = lifecycle.step < len(commands) and "-" in hook_prefixes(commands[lifecycle.step])
    if not (input_.is_success or is_ignored):
        took_s = round(instant.now - lifecycle.step_since, 3)
        failure = f"{_hook_name(lifecycle)} {input_.detail}, after {took_s:g} s"
        if has_timed_out(lifecycle):  # the signals after that have ended it
            failure = lifecycle.hook_failure
        lifecycle = evolve(lifecycle, hook_failure=failure)
    is_interrupted = lifecycle.state is State.STOPPING and lifecycle.phase in PHASES_BEFORE_PROGRAM
    if not failure and not is_interrupted and lifecycle.step + 1 < len(commands):
        return _run_hook(lifecycle, instant, lifecycle.step + 1)
    return _HOOK_ENDS[lifecycle.phase](lifecycle, input_, instant, workload, failure)


def _end_reload_hooks(
    lifecycle: Lifecycle, input_: HookDone, instant: Instant, workload: WorkloadConfig, failure: str
) -> LifecycleResult:
    return _end_reload(lifecycle, failure), ()


def _end_hooks_before_program(
    lifecycle: Lifecycle, input_: HookDone, instant: Instant, workload: WorkloadConfig, failure: str
) -> LifecycleResult:
    """Start the program, or end this generation without it: after a failure, or a stop that came meanwhile."""
    name = _hook_name(lifecycle)
    if lifecycle.state is State.STOPPING:
        exit_ = Exit(setup_failure=f"{name} {input_.detail or 'ended'}; {lifecycle.reason}")
    elif failure and lifecycle.phase is Phase.CONDITION and input_.code in _SKIPPING_CODES:
        exit_ = Exit(skipped=f"{name} (exit code {input_.code})")
    elif failure:
        exit_ = Exit(setup_failure=failure)
    elif lifecycle.phase is Phase.CONDITION and workload.exec_start_pre:
        return _begin_hooks(lifecycle, instant, Phase.START_PRE)
    else:
        return evolve(lifecycle, phase=Phase.NONE), (Spawn(lifecycle.generation),)
    ended = evolve(lifecycle, exit=exit_, skipped_by_hook=exit_.skipped is not None)
    if not input_.is_populated:
        return _finish_generation(ended, instant, workload)
    # It has left processes that are not below an init of their own.
    ended = evolve(ended, phase=Phase.NONE)
    if lifecycle.state is State.STOPPING:
        return ended, ()
    return _enter_stopping(ended, instant, workload, str(exit_), *_stop_signals(workload, everyone=True))


def _end_start_post(
    lifecycle: Lifecycle, input_: HookDone, instant: Instant, workload: WorkloadConfig, failure: str
) -> LifecycleResult:
    """Complete the start of the program, or stop it after a failure."""
    if failure:
        lifecycle = evolve(lifecycle, after_stop=AfterStop.POLICY, fault_outcome=Outcome.EXIT_CODE)
        everyone = lifecycle.exit is not None
        return _enter_stopping(lifecycle, instant, workload, failure, *_stop_signals(workload, everyone))
    return _freeze_if_requested(_mark_up(evolve(lifecycle, phase=Phase.NONE), instant, workload))


def _end_stop_hooks(
    lifecycle: Lifecycle, input_: HookDone, instant: Instant, workload: WorkloadConfig, failure: str
) -> LifecycleResult:
    """Send the signals of the stop to what is left; the deadline stays."""
    lifecycle = evolve(lifecycle, phase=Phase.NONE)
    if lifecycle.exit is not None and not input_.is_populated:
        return _finish_generation(lifecycle, instant, workload)
    return lifecycle, _stop_signals(workload, everyone=lifecycle.exit is not None)


def _end_stop_post(
    lifecycle: Lifecycle, input_: HookDone, instant: Instant, workload: WorkloadConfig, failure: str
) -> LifecycleResult:
    """Decide what follows, once the cgroup is empty again. A failure makes a clean end a failure, as in systemd."""
    assert lifecycle.exit is not None
    if failure and exit_outcome(lifecycle, lifecycle.exit, workload) is Outcome.SUCCESS:
        lifecycle = evolve(lifecycle, fault_outcome=Outcome.EXIT_CODE, end_reason=failure)
    if not input_.is_populated:
        return _choose_next(lifecycle, instant, workload)
    return evolve(lifecycle, phase=Phase.FINAL_SIGTERM), _stop_signals(workload, everyone=True)


def ready_again(lifecycle: Lifecycle, input_: Input, instant: Instant, workload: WorkloadConfig) -> LifecycleResult:
    """Record that a reload is done, if one is under way that the program has reported."""
    return _finish_reload(lifecycle), ()


def stop_by_itself(lifecycle: Lifecycle, input_: Input, instant: Instant, workload: WorkloadConfig) -> LifecycleResult:
    """Record that the program has begun to stop: it gets no signal, but has the time of a stop.

    Before its start is complete this is ignored, as in systemd: an end is then a failure in any case.
    """
    if not is_started(lifecycle, workload):
        return lifecycle, ()
    lifecycle = evolve(lifecycle, after_stop=AfterStop.POLICY, stops_by_itself=True)
    return _enter_stopping(lifecycle, instant, workload, "stops by itself (STOPPING=1)")


def forgive(lifecycle: Lifecycle, input_: Input, instant: Instant, workload: WorkloadConfig) -> LifecycleResult:
    """Begin the delays of restarts with the first one again."""
    return (evolve(lifecycle, consecutive_failures=0) if lifecycle.consecutive_failures else lifecycle), ()


def unready(lifecycle: Lifecycle, input_: Input, instant: Instant, workload: WorkloadConfig) -> LifecycleResult:
    """Record that the program is not ready any more. It is never ended for that."""
    assert isinstance(input_, NotReady)
    return evolve(lifecycle, state=State.RUNNING, reason=input_.reason), ()


def new_main(lifecycle: Lifecycle, input_: Input, instant: Instant, workload: WorkloadConfig) -> LifecycleResult:
    """Continue with another process as the program; the start of a daemon is complete with that."""
    lifecycle = evolve(lifecycle, exit=None)
    if not is_forking(lifecycle, workload):
        return lifecycle, ()
    lifecycle = evolve(lifecycle, was_ready=True)
    if lifecycle.state is State.FROZEN:  # `exec_start_post` has to wait for the thaw
        return evolve(_mark_up(lifecycle, instant, workload), deadline=None), ()
    return _complete_start(lifecycle, instant, workload)


def extend(lifecycle: Lifecycle, input_: Input, instant: Instant, workload: WorkloadConfig) -> LifecycleResult:
    """Move the deadline of the start, the run or the stop away, never nearer; after SIGKILL there is no more time."""
    assert isinstance(input_, Extend)
    if lifecycle.deadline is None or lifecycle.sigkill_sent or _completes_start(lifecycle):
        return lifecycle, ()
    deadline = max(lifecycle.deadline, instant.now + input_.seconds)
    if lifecycle.is_reloading and lifecycle.deadline != lifecycle.runs_until:
        return evolve(lifecycle, deadline=_earlier(deadline, lifecycle.runs_until)), ()
    runs_until = deadline if lifecycle.deadline == lifecycle.runs_until else lifecycle.runs_until
    return evolve(lifecycle, deadline=deadline, runs_until=runs_until), ()


def abort(lifecycle: Lifecycle, input_: Input, instant: Instant, workload: WorkloadConfig) -> LifecycleResult:
    """End a program that hangs.

    Without signs of life it gets SIGABRT, as from systemd's watchdog, so that a core dump shows where it hangs. After a
    failed probe it gets `kill_signal`, and its time may be the probe's own, as in Kubernetes.
    """
    assert isinstance(input_, Unhealthy)
    outcome = Outcome.TIMEOUT if input_.probe == "startup" else Outcome.WATCHDOG
    lifecycle = evolve(lifecycle, after_stop=AfterStop.POLICY, fault_outcome=outcome)
    everyone = workload.kill_mode == "all" or lifecycle.exit is not None
    signals = _stop_signals(workload, everyone) if input_.probe else (Signal(signal.SIGABRT, whole_cgroup=everyone),)
    lifecycle, actions = _enter_stopping(lifecycle, instant, workload, input_.reason, *signals)
    probe = {"startup": workload.startup, "liveness": workload.liveness}.get(input_.probe)
    if probe is not None and probe.termination_grace_period_sec is not None:
        lifecycle = evolve(lifecycle, deadline=_deadline(instant, probe.termination_grace_period_sec))
    return lifecycle, actions


def start_timeout(lifecycle: Lifecycle, input_: Input, instant: Instant, workload: WorkloadConfig) -> LifecycleResult:
    """Stop a program that did not start in time."""
    if lifecycle.phase in HOOK_KEYS:
        reason = f"{_hook_name(lifecycle)} has not ended within {workload.timeout_start_sec:g} s"
        return _end_in_time(evolve(lifecycle, hook_failure=reason), instant, workload, reason)
    what = "ready" if _start_is_incomplete(lifecycle, workload) else "started"
    if is_forking(lifecycle, workload) and lifecycle.state is State.RUNNING:
        why = "it has not gone to the background" if lifecycle.exit is None else "pid_file names none of its processes"
        return _end_in_time(lifecycle, instant, workload, f"{why} within {workload.timeout_start_sec:g} s")
    return _end_in_time(lifecycle, instant, workload, f"not {what} within {workload.timeout_start_sec:g} s")


def run_timeout(lifecycle: Lifecycle, input_: Input, instant: Instant, workload: WorkloadConfig) -> LifecycleResult:
    """Complete a start after `min_ready_sec`; stop a program that did not start in time, or has run for too long.

    A reload that takes too long fails, and the program runs on.
    """
    if _completes_start(lifecycle):
        lifecycle = evolve(lifecycle, complete_at=None, recent_starts=(), consecutive_failures=0)
        return _limit_runtime(lifecycle, instant, workload), ()
    if lifecycle.is_reloading and (lifecycle.runs_until is None or instant.now < lifecycle.runs_until):
        hook = f"{_hook_name(lifecycle)} has not ended" if lifecycle.phase in HOOK_KEYS else ""
        what = hook or _RELOAD_TIMEOUTS[lifecycle.phase]
        failure = f"{what} within {workload.timeout_start_sec:g} s"
        return _end_reload(lifecycle, failure), _end_hook(lifecycle)
    if lifecycle.runs_until is None or lifecycle.phase is Phase.START_POST:
        return start_timeout(lifecycle, input_, instant, workload)
    reason = f"ran for longer than {workload.runtime_max_sec:g} s (runtime_max_sec)"
    return _end_in_time(lifecycle, instant, workload, reason)


def _end_in_time(lifecycle: Lifecycle, instant: Instant, workload: WorkloadConfig, reason: str) -> LifecycleResult:
    """Stop a program that has passed a limit; the restart policy takes that for a time-out."""
    lifecycle = evolve(lifecycle, after_stop=AfterStop.POLICY, fault_outcome=Outcome.TIMEOUT)
    return _enter_stopping(lifecycle, instant, workload, reason, *_stop_signals(workload, _has_no_program(lifecycle)))


def stop_timeout(lifecycle: Lifecycle, input_: Input, instant: Instant, workload: WorkloadConfig) -> LifecycleResult:
    """Send `final_kill_signal` after a stop that took too long, and SIGKILL if that does not help within the same time.

    If SIGKILL did not help, report that once and keep trying.
    """
    before: tuple[Action, ...] = ()
    if lifecycle.phase in HOOK_KEYS and not has_timed_out(lifecycle):
        reason = f"{_hook_name(lifecycle)} has not ended within {workload.timeout_stop_sec:g} s"
        lifecycle = evolve(lifecycle, hook_failure=reason)
    if lifecycle.phase is Phase.STOP:
        before, lifecycle = (EndHook(),), evolve(lifecycle, phase=Phase.NONE)
    if lifecycle.sigkill_sent:
        is_reported = lifecycle.killed_at is None
        seconds = workload.timeout_stop_sec if lifecycle.killed_at is None else instant.now - lifecycle.killed_at
        before = *before, ReleaseSurvivors(seconds, is_reported)
        lifecycle = evolve(lifecycle, killed_at=None)
    # A stop that took SIGKILL is a time-out to the policy (systemd's "timeout"), even after another fault.
    fault = lifecycle.fault_outcome or (Outcome.TIMEOUT if lifecycle.exit is None else None)
    lifecycle = evolve(lifecycle, fault_outcome=fault, deadline=_deadline(instant, workload.timeout_stop_sec))
    is_last = lifecycle.final_signal_sent or lifecycle.sigkill_sent or workload.final_kill_signal == signal.SIGKILL
    if not is_last:
        lifecycle = evolve(lifecycle, final_signal_sent=True)
        return lifecycle, (*before, _final_signal(lifecycle, workload))
    return _mark_killed(lifecycle, instant), (*before, _last_kill(lifecycle, workload))


def _final_signal(lifecycle: Lifecycle, workload: WorkloadConfig) -> Action:
    return Signal(workload.final_kill_signal, whole_cgroup=not _spares_others(lifecycle, workload))


def _last_kill(lifecycle: Lifecycle, workload: WorkloadConfig) -> Action:
    """Return the SIGKILL that ends a stop."""
    return Signal(signal.SIGKILL, resumes=False) if _spares_others(lifecycle, workload) else KillAll()


def _spares_others(lifecycle: Lifecycle, workload: WorkloadConfig) -> bool:
    """Check whether a stop is about the program alone, `kill_mode = "process"`.

    A kill is about all processes, and so is a stop after the program has gone to the background and its daemon is not
    known yet.
    """
    return workload.kill_mode == "process" and lifecycle.exit is None and not lifecycle.reason.startswith(_KILLED_BY)


_KILLED_BY = "killed by "


def _mark_killed(lifecycle: Lifecycle, instant: Instant) -> Lifecycle:
    if lifecycle.sigkill_sent:
        return lifecycle
    return evolve(lifecycle, sigkill_sent=True, killed_at=instant.now)


def exited(lifecycle: Lifecycle, input_: Input, instant: Instant, workload: WorkloadConfig) -> LifecycleResult:
    """Record the exit; ask the processes that the program left to stop too, else this generation is dead."""
    assert isinstance(input_, Exited)
    was_frozen, was_stopping = lifecycle.state is State.FROZEN, lifecycle.state is State.STOPPING
    if lifecycle.phase in (Phase.STOP_POST, Phase.FINAL_SIGTERM):  # the exit is known
        return lifecycle, ()
    if goes_to_background(lifecycle, input_.exit, input_.populated, workload):
        return evolve(lifecycle, exit=input_.exit), ()
    if lifecycle.phase is Phase.STOP and input_.populated:  # the command that runs may have caused it, and goes on
        return evolve(lifecycle, exit=input_.exit), ()
    if input_.populated and _outlives_program(lifecycle, workload):
        reason = f"its program has ended ({input_.exit}); other processes run on (exit_type)"
        after = evolve(_cancel_reload(lifecycle, str(input_.exit)), exit=input_.exit, reason=reason)
        return after, _end_hook(lifecycle)
    if exit_outcome(lifecycle, input_.exit, workload) is Outcome.PROTOCOL:
        lifecycle = evolve(lifecycle, fault_outcome=Outcome.PROTOCOL)
    ends_hook = _end_hook(lifecycle)
    is_left = input_.populated and _spares_others(lifecycle, workload)
    lifecycle = evolve(_cancel_hooks(_cancel_reload(lifecycle, str(input_.exit))), exit=input_.exit)
    if not input_.populated or is_left:
        lifecycle, actions = _finish_generation(evolve(lifecycle, has_left=is_left), instant, workload)
        return lifecycle, (
            *ends_hook,
            *((ReportLeft(),) if is_left else ()),
            *((ThawAll(), *actions) if was_frozen else actions),
        )  # otherwise the next generation would start frozen
    stop_rest = _stop_signals(workload, everyone=True)
    if was_stopping:  # the deadline stays: the remaining processes have the time that the program would have had
        # With kill_mode = "all" they have the signal already, and a second one may mean more to them than the first.
        return lifecycle, () if workload.kill_mode == "all" else stop_rest
    lifecycle, actions = _enter_stopping(
        evolve(lifecycle, after_stop=AfterStop.POLICY),
        instant,
        workload,
        f"{input_.exit}; ending what it left",
        *ends_hook,
        *stop_rest,
    )
    return lifecycle, ((*actions, ThawAll()) if was_frozen else actions)


def emptied(lifecycle: Lifecycle, input_: Input, instant: Instant, workload: WorkloadConfig) -> LifecycleResult:
    """Record that the cgroup is empty; before the program's exit is known, wait for it.

    `Exited` says again whether the cgroup is populated.
    """
    if lifecycle.exit is None or lifecycle.phase is Phase.STOP_POST:
        return lifecycle, ()
    was_frozen, ends_hook = lifecycle.state is State.FROZEN, _end_hook(lifecycle)
    if exit_outcome(lifecycle, lifecycle.exit, workload) is Outcome.PROTOCOL:
        lifecycle = evolve(lifecycle, fault_outcome=Outcome.PROTOCOL)
    lifecycle, actions = _finish_generation(lifecycle, instant, workload)
    return lifecycle, (*ends_hook, *((ThawAll(), *actions) if was_frozen else actions))


# ---------------------------------------------------------------------------------------------------------------------
# The table: for each input, the cell of each state

_STATES = (
    State.STOPPED,
    State.STARTING,
    State.RUNNING,
    State.READY,
    State.STOPPING,
    State.BACKOFF,
    State.EXITED,
    State.FAILED,
    State.FROZEN,
)

# fmt: off
_ROWS: dict[type[Input], tuple[Handler, ...]] = {
    #               stopped  starting       running        ready   stopping      backoff  exited  failed  frozen
    Start:         (start,   keep,          keep,          keep,   retarget,     start,   start,  start,  keep),
    Stop:          (confirm, stop,          stop,          stop,   retarget,     cancel,  cancel, cancel, stop_frozen),
    Restart:       (start,   stop,          stop,          stop,   retarget,     start,   start,  start,  stop_frozen),
    PolicyRestart: (ignore,  stop,          stop,          stop,   retarget,     ignore,  ignore, ignore, stop_frozen),
    Kill:          (ignore,  kill,          kill,          kill,   kill,         ignore,  ignore, ignore, kill),
    Freeze:        (ignore,  defer_freeze,  freeze,        freeze, ignore,       ignore,  ignore, ignore, ignore),
    Thaw:          (ignore,  cancel_freeze, cancel_freeze, cancel_freeze, ignore,       ignore,  ignore, ignore, thaw),
    Reload:        (ignore,  ignore,        reload,        reload, ignore,       ignore,  ignore, ignore, ignore),
    Execed:        (ignore,  mark_running,  ignore,        ignore, ignore,       ignore,  ignore, ignore, ignore),
    Ready:         (ignore,  mark_ready,    mark_ready,    ready_again, ignore,  ignore,  ignore, ignore, ready_frozen),
    Reloading:     (ignore,  ignore,        reloading,     reloading, ignore,    ignore,  ignore, ignore, ignore),
    HookDone:      (ignore,  hook_done,     hook_done,     hook_done, hook_done, ignore,  ignore, ignore, ignore),
    Stopping:      (ignore,  ignore, stop_by_itself, stop_by_itself, ignore,     ignore,  ignore, ignore, ignore),
    RestartReset:  (ignore,  forgive,       forgive,       forgive, forgive,     ignore,  ignore, ignore, forgive),
    NewMain:       (ignore,  ignore,        new_main,      new_main, ignore,     ignore,  ignore, ignore, new_main),
    Extend:        (ignore,  extend,        extend,        extend, extend,       ignore,  ignore, ignore, ignore),
    NotReady:      (ignore,  ignore,        ignore,        unready, ignore,      ignore,  ignore, ignore, ignore),
    Unhealthy:     (ignore,  abort,         abort,         abort,  ignore,       ignore,  ignore, ignore, ignore),
    Exited:        (ignore,  exited,        exited,        exited, exited,       ignore,  ignore, ignore, exited),
    Emptied:       (ignore,  ignore,        emptied,       emptied, emptied,     ignore,  ignore, ignore, emptied),
    Timeout:       (ignore,  start_timeout, run_timeout, run_timeout, stop_timeout, retry, ignore, ignore, ignore),
}
# fmt: on

TABLE: dict[type[Input], dict[State, Handler]] = {
    kind: dict(zip(_STATES, row, strict=True)) for kind, row in _ROWS.items()
}

# ---------------------------------------------------------------------------------------------------------------------
# Helpers that the cells share

_STOP_COMMANDS: dict[type[Input], tuple[bool | None, AfterStop, str]] = {
    # the new `should_run` (None: unchanged), what follows the stop, and the verb for the reason
    Start: (True, AfterStop.START, "started again"),
    Stop: (False, AfterStop.STAY_DOWN, "stopped"),
    Restart: (True, AfterStop.START, "restarted"),
    PolicyRestart: (None, AfterStop.BACKOFF, "restarted"),
}

_HOOK_ENDS: dict[Phase, Callable[[Lifecycle, HookDone, Instant, WorkloadConfig, str], LifecycleResult]] = {
    Phase.RELOAD: _end_reload_hooks,
    Phase.CONDITION: _end_hooks_before_program,
    Phase.START_PRE: _end_hooks_before_program,
    Phase.START_POST: _end_start_post,
    Phase.STOP: _end_stop_hooks,
    Phase.STOP_POST: _end_stop_post,
}
"""By phase: what follows the last command, or the first one that fails (`failure` says how, in words; else "")."""
_SKIPPING_CODES = range(1, 255)
"""Exit statuses of `exec_condition` that skip the start, systemd.service(5)."""
_NO_DAEMON = '{} without leaving the daemon that type = "forking" and pid_file announce'
_EXITED_BEFORE_READY = '{} before it was ready: with type = "notify" its start is complete when it sends READY=1'
_RELOAD_TIMEOUTS = {
    Phase.RELOAD_SIGNAL: "no answer to the signal (RELOADING=1 with MONOTONIC_USEC)",
    Phase.RELOAD_NOTIFY: "not ready again (READY=1)",
}
_TIME_RESOLUTION_S = 1e-6
"""MONOTONIC_USEC is a whole number of microseconds."""


def adopt_generation(
    lifecycle: Lifecycle, generation: int, reason: str, instant: Instant, workload: WorkloadConfig
) -> Lifecycle:
    """Return the lifecycle with a generation that was started but not saved; its start must have been requested."""
    lifecycle = _begin_generation(lifecycle, generation, lifecycle.recent_starts, reason, instant, workload)
    return evolve(lifecycle, should_run=True, started_type="")


def unfinished_actions(lifecycle: Lifecycle, workload: WorkloadConfig) -> tuple[Action, ...]:
    """Return the actions that led to this state, for a supervisor that cannot know whether they were carried out."""
    match lifecycle.state:
        case State.STARTING | State.STOPPING if lifecycle.phase in HOOK_KEYS and not lifecycle.sigkill_sent:
            return (ThawAll(),) if lifecycle.phase is Phase.STOP else ()  # the command is waited for, or begun
        case State.STOPPING if lifecycle.sigkill_sent:
            return (_last_kill(lifecycle, workload),)
        case State.STOPPING if lifecycle.final_signal_sent:
            return _final_signal(lifecycle, workload), ThawAll()
        case State.STOPPING:
            # It may have been frozen; then it gets the signal only when it is thawed.
            return *_stop_signals(workload, everyone=lifecycle.exit is not None), ThawAll()
        case State.FROZEN:
            return (FreezeAll(),)
        case State.RUNNING | State.READY if lifecycle.phase is Phase.RELOAD_SIGNAL and workload.signal_of_reload:
            return ThawAll(), Signal(workload.signal_of_reload, resumes=False)
        case State.RUNNING | State.READY:
            return (ThawAll(),)
    return ()


def stopped_by_shutdown(lifecycle: Lifecycle) -> bool:
    """Check whether the workload ended, or was about to, only because the service did."""
    return lifecycle.reason in (f"stopped by {SHUTDOWN}", f"killed by {SHUTDOWN}")


PROBED = "probed"
"""The `start_type` of a program that a probe finds to be ready."""


def start_type(workload: WorkloadConfig) -> str:
    """Return how it becomes known that a start is complete: the `type` of the workload, or `PROBED`."""
    is_probed = workload.type == "simple" and (workload.startup is not None or workload.readiness is not None)
    return PROBED if is_probed else workload.type


def _start_type(lifecycle: Lifecycle, workload: WorkloadConfig) -> str:
    return lifecycle.started_type or start_type(workload)


def reports_readiness(lifecycle: Lifecycle, workload: WorkloadConfig) -> bool:
    """Check whether the program itself reports when it is ready; until then its start is not complete."""
    return _start_type(lifecycle, workload) in NOTIFY_TYPES


def is_forking(lifecycle: Lifecycle, workload: WorkloadConfig) -> bool:
    """Check whether the program has yet to become a daemon, and the daemon to be known."""
    return _start_type(lifecycle, workload) == "forking" and not lifecycle.was_ready


def _state_if_thawed(lifecycle: Lifecycle) -> State:
    return lifecycle.state_before_freeze if lifecycle.state is State.FROZEN else lifecycle.state


def goes_to_background(lifecycle: Lifecycle, exit_: Exit, populated: bool, workload: WorkloadConfig) -> bool:
    """Check whether an exit is that of a program that leaves its daemon behind, with `type = "forking"`.

    An exit status that is lost, as supervisor and keeper died, is taken for a good one: the pid file tells.
    """
    is_starting = _state_if_thawed(lifecycle) is State.RUNNING and is_forking(lifecycle, workload)
    is_clean = exit_.is_unknown or exit_.outcome(workload.success_exit_status) is Outcome.SUCCESS
    return is_starting and populated and is_clean


def awaits_daemon(lifecycle: Lifecycle, workload: WorkloadConfig) -> bool:
    """Check whether the program has gone to the background, and the daemon has yet to be found by `pid_file`."""
    return lifecycle.state is State.RUNNING and lifecycle.exit is not None and is_forking(lifecycle, workload)


def is_up_without_program(lifecycle: Lifecycle) -> bool:
    """Check whether processes run on although the exit of the program is known."""
    return lifecycle.exit is not None and lifecycle.state in (State.RUNNING, State.READY, State.FROZEN)


def _outlives_program(lifecycle: Lifecycle, workload: WorkloadConfig) -> bool:
    """Check whether the workload runs on for as long as one of its processes does, `exit_type = "cgroup"`."""
    state = _state_if_thawed(lifecycle)
    if lifecycle.phase is Phase.START_POST:
        return False
    is_complete = state is State.READY or (state is State.RUNNING and not _start_is_incomplete(lifecycle, workload))
    return workload.exit_type == "cgroup" and is_complete


def _start_is_incomplete(lifecycle: Lifecycle, workload: WorkloadConfig) -> bool:
    """Check whether a program that is starting or running has yet to become ready for the first time."""
    return _start_type(lifecycle, workload) in (*NOTIFY_TYPES, PROBED, "forking") and not lifecycle.was_ready


def is_started(lifecycle: Lifecycle, workload: WorkloadConfig) -> bool:
    """Check whether the program runs, and its start is complete."""
    if lifecycle.complete_at is not None or lifecycle.exit is not None or lifecycle.phase is Phase.START_POST:
        return False
    runs = lifecycle.state is State.RUNNING and not _start_is_incomplete(lifecycle, workload)
    return runs or lifecycle.state is State.READY


def is_watchdog_active(lifecycle: Lifecycle, workload: WorkloadConfig) -> bool:
    """Check whether the program must send keep-alives: its start is complete, and it is not frozen or stopping.

    Until then `timeout_start_sec` limits it. The first period begins when this becomes true, as in systemd.
    """
    if lifecycle.exit is not None:
        return False
    runs = lifecycle.state is State.RUNNING and not _start_is_incomplete(lifecycle, workload)
    return runs or lifecycle.state is State.READY


def exit_outcome(lifecycle: Lifecycle, exit_: Exit, workload: WorkloadConfig) -> Outcome:
    """Classify an exit for the restart policy. `lifecycle` is the one before the exit, or later in this generation.

    A program that ends by itself, cleanly, before it has reported that it is ready has failed, as in systemd.
    """
    if lifecycle.fault_outcome is not None:
        return lifecycle.fault_outcome
    if exit_.skipped is not None:
        return Outcome.SUCCESS
    outcome = exit_.outcome(workload.success_exit_status)
    state = _state_if_thawed(lifecycle)
    reports = reports_readiness(lifecycle, workload) or is_forking(lifecycle, workload)
    is_incomplete = state in (State.STARTING, State.RUNNING) and reports
    was_up_briefly = state in (State.RUNNING, State.READY) and lifecycle.complete_at is not None
    return Outcome.PROTOCOL if outcome is Outcome.SUCCESS and (is_incomplete or was_up_briefly) else outcome


def is_up(lifecycle: Lifecycle, workload: WorkloadConfig) -> bool:
    """Check whether dependents may start: the workload is up, or has done its single job."""
    if lifecycle.complete_at is not None or lifecycle.phase is Phase.START_POST:
        return False
    if lifecycle.state is State.RUNNING:
        return _start_type(lifecycle, workload) == "simple" or (
            _start_type(lifecycle, workload) == "forking" and lifecycle.was_ready
        )
    if lifecycle.state is State.EXITED and workload.type == "oneshot":
        return not is_skipped(lifecycle)
    return lifecycle.state is State.READY


def is_skipped(lifecycle: Lifecycle) -> bool:
    """Check whether the last start was skipped, because a condition of it was not met."""
    return lifecycle.state is State.EXITED and lifecycle.exit is not None and lifecycle.exit.skipped is not None


def _deadline(instant: Instant, seconds: float) -> float | None:
    """Compute a deadline; 0 and infinity mean none, as in systemd.service(5)."""
    return instant.now + seconds if 0 < seconds < float("inf") else None


def _stop_signals(workload: WorkloadConfig, everyone: bool = False) -> tuple[Action, ...]:
    """Return the signals of a stop; `everyone`: the program has exited, so they are for what it has left."""
    everyone = everyone or workload.kill_mode == "all"
    first = Signal(workload.kill_signal, whole_cgroup=everyone)
    if not workload.send_sighup or workload.kill_signal == signal.SIGHUP:
        return (first,)
    return first, Signal(signal.SIGHUP, whole_cgroup=everyone, resumes=False)


def _completes_start(lifecycle: Lifecycle) -> bool:
    """Check whether the deadline is the one that completes the start."""
    return lifecycle.state in (State.RUNNING, State.READY) and lifecycle.complete_at is not None


def _complete_start(lifecycle: Lifecycle, instant: Instant, workload: WorkloadConfig) -> LifecycleResult:
    """Complete the start of a program that is up; first the commands of `exec_start_post` run."""
    if workload.exec_start_post:
        return _begin_hooks(lifecycle, instant, Phase.START_POST)
    return _mark_up(lifecycle, instant, workload), ()


def _mark_up(lifecycle: Lifecycle, instant: Instant, workload: WorkloadConfig) -> Lifecycle:
    """Complete the start of a program that is up, or wait for `min_ready_sec` for that."""
    if not workload.min_ready_sec or workload.type == "oneshot":
        return _limit_runtime(evolve(lifecycle, complete_at=None), instant, workload)
    complete_at = instant.now + workload.min_ready_sec
    return evolve(lifecycle, complete_at=complete_at, deadline=complete_at)


def _limit_runtime(lifecycle: Lifecycle, instant: Instant, workload: WorkloadConfig) -> Lifecycle:
    """Set the deadline of a program whose start is complete."""
    extra_s = workload.runtime_randomized_extra_sec * instant.jitter
    runs_until = _deadline(instant, workload.runtime_max_sec + extra_s)
    return evolve(lifecycle, runs_until=runs_until, deadline=runs_until)


def _spawn(lifecycle: Lifecycle, instant: Instant, workload: WorkloadConfig, reason: str) -> LifecycleResult:
    recent = backoff.starts_within(lifecycle.recent_starts, instant.now, workload.start_limit_interval_sec)
    if not workload.start_limit:
        recent = recent[-DEFAULT_START_LIMIT:]  # for a reload that sets the limit; otherwise they would be without end
    lifecycle = _begin_generation(lifecycle, lifecycle.generation + 1, recent, reason, instant, workload)
    for phase, commands in (Phase.CONDITION, workload.exec_condition), (Phase.START_PRE, workload.exec_start_pre):
        if commands:
            return _begin_hooks(lifecycle, instant, phase)
    return lifecycle, (Spawn(lifecycle.generation),)


def _begin_generation(
    lifecycle: Lifecycle,
    generation: int,
    recent_starts: tuple[float, ...],
    reason: str,
    instant: Instant,
    workload: WorkloadConfig,
) -> Lifecycle:
    return evolve(
        lifecycle,
        state=State.STARTING,
        reason=reason,
        generation=generation,
        deadline=_deadline(instant, workload.timeout_start_sec),
        after_stop=AfterStop.POLICY,
        final_signal_sent=False,
        sigkill_sent=False,
        killed_at=None,
        exit=None,
        has_left=False,
        fault_outcome=None,
        runs_until=None,
        complete_at=None,
        is_debug=False,
        freeze_requested_by="",
        started_at=instant.now,
        started_type=start_type(workload),
        was_ready=False,
        phase=Phase.NONE,
        step=0,
        reload_failure="",
        hook_failure="",
        end_reason="",
        skipped_by_hook=False,
        stops_by_itself=False,
        recent_starts=(*recent_starts, instant.now),
    )


def _respawn(lifecycle: Lifecycle, instant: Instant, workload: WorkloadConfig, reason: str) -> LifecycleResult:
    start_reason = reason if lifecycle.after_stop is AfterStop.BACKOFF else f"restarted: {reason}"
    has_failed = lifecycle.exit is not None and exit_outcome(lifecycle, lifecycle.exit, workload) is not Outcome.SUCCESS
    lifecycle, actions = _spawn(evolve(lifecycle, restarts=lifecycle.restarts + 1), instant, workload, start_reason)
    return evolve(lifecycle, is_debug=has_failed and workload.restart_mode == "debug"), actions


def _enter_frozen(lifecycle: Lifecycle, requested_by: str) -> LifecycleResult:
    ends_hook = _end_hook(lifecycle)
    lifecycle = evolve(
        _cancel_reload(lifecycle, f"frozen by {requested_by}"),
        state=State.FROZEN,
        state_before_freeze=lifecycle.state,
        freeze_requested_by="",
        deadline=None,
        reason=f"frozen by {requested_by}",
    )
    return lifecycle, (*ends_hook, FreezeAll())


def _enter_stopping(
    lifecycle: Lifecycle, instant: Instant, workload: WorkloadConfig, reason: str, *actions: Action
) -> LifecycleResult:
    # The commands that run without a program end by the signals to the cgroup, and their end is waited for.
    if lifecycle.phase not in PHASES_WITHOUT_PROGRAM:
        actions = (*_end_hook(lifecycle), *actions)
        lifecycle = _cancel_hooks(_cancel_reload(lifecycle, reason))
    deadline = _deadline(instant, workload.timeout_stop_sec)
    return evolve(lifecycle, state=State.STOPPING, deadline=deadline, reason=reason), actions


def _enter_reload(lifecycle: Lifecycle, instant: Instant, workload: WorkloadConfig, phase: Phase) -> Lifecycle:
    """Begin a reload. It has as much time as a start, and does not prolong `runtime_max_sec`."""
    deadline = _earlier(_deadline(instant, workload.timeout_start_sec), lifecycle.runs_until)
    return evolve(lifecycle, phase=phase, phase_since=instant.now, deadline=deadline, reload_failure="")


def hook_commands(workload: WorkloadConfig, phase: Phase) -> tuple[tuple[str, ...], ...]:
    """Return the commands of a phase, with their prefixes."""
    return getattr(workload, HOOK_KEYS[phase])  # type: ignore[no-any-return]


def hook_prefixes(command: tuple[str, ...]) -> str:
    """Return the prefixes of a command, such as "-"."""
    return command[0][: len(command[0]) - len(command[0].lstrip("-+"))]


def _begin_hooks(lifecycle: Lifecycle, instant: Instant, phase: Phase) -> LifecycleResult:
    return _run_hook(evolve(lifecycle, phase=phase, phase_since=instant.now), instant, 0)


def _run_hook(lifecycle: Lifecycle, instant: Instant, step: int) -> LifecycleResult:
    return evolve(lifecycle, step=step, step_since=instant.now), (RunHook(lifecycle.phase, step),)


def _end_hook(lifecycle: Lifecycle) -> tuple[Action, ...]:
    """Return the action that ends the command that runs, if one does."""
    return (EndHook(),) if lifecycle.phase in HOOK_KEYS else ()


def _hook_name(lifecycle: Lifecycle) -> str:
    return f"{HOOK_KEYS[lifecycle.phase]}[{lifecycle.step}]"


def has_timed_out(lifecycle: Lifecycle) -> bool:
    """Check whether the command that runs has taken too long, which is its failure, and has yet to end."""
    return lifecycle.hook_failure.startswith(f"{_hook_name(lifecycle)} has not ended within ")


def _cancel_hooks(lifecycle: Lifecycle) -> Lifecycle:
    """Leave the phase: its commands do not matter any more."""
    return evolve(lifecycle, phase=Phase.NONE) if lifecycle.phase in HOOK_KEYS else lifecycle


def _has_no_program(lifecycle: Lifecycle) -> bool:
    """Check whether a signal is for all processes: the program has exited, or has not been started yet."""
    return lifecycle.exit is not None or lifecycle.phase in PHASES_BEFORE_PROGRAM


def _has_been_up(lifecycle: Lifecycle, workload: WorkloadConfig) -> bool:
    """Check whether the program runs, and its start was complete: only then commands of `exec_stop` run."""
    if lifecycle.exit is not None or lifecycle.phase is Phase.START_POST:
        return False
    state = _state_if_thawed(lifecycle)
    return state is State.READY or (state is State.RUNNING and not _start_is_incomplete(lifecycle, workload))


def _finish_reload(lifecycle: Lifecycle) -> Lifecycle:
    """End a reload that the program has reported to be done."""
    return _end_reload(lifecycle) if lifecycle.phase is Phase.RELOAD_NOTIFY else lifecycle


def _end_reload(lifecycle: Lifecycle, failure: str = "") -> Lifecycle:
    return evolve(lifecycle, phase=Phase.NONE, deadline=lifecycle.runs_until, reload_failure=failure)


def _cancel_reload(lifecycle: Lifecycle, reason: str) -> Lifecycle:
    return _end_reload(lifecycle, reason) if lifecycle.is_reloading else lifecycle


def _earlier(first: float | None, second: float | None) -> float | None:
    return min((deadline for deadline in (first, second) if deadline is not None), default=None)


def _finish_generation(lifecycle: Lifecycle, instant: Instant, workload: WorkloadConfig) -> LifecycleResult:
    """Run the commands of `exec_stop_post`, if there are some; then decide what follows the dead generation.

    They do not run after a start that a condition has skipped, except by `exec_condition`.
    """
    exit_ = lifecycle.exit
    assert exit_ is not None
    is_skipped_before = exit_.skipped is not None and not lifecycle.skipped_by_hook
    if not workload.exec_stop_post or is_skipped_before or lifecycle.phase is Phase.FINAL_SIGTERM:
        return _choose_next(lifecycle, instant, workload)
    if lifecycle.state is not State.STOPPING:
        lifecycle = evolve(lifecycle, after_stop=AfterStop.POLICY)
    ended = evolve(
        lifecycle,
        state=State.STOPPING,
        reason=lifecycle.reason if lifecycle.state is State.STOPPING else str(exit_),
        end_reason=_end_reason(lifecycle, exit_, workload),
        deadline=_deadline(instant, workload.timeout_stop_sec),
        final_signal_sent=False,
        sigkill_sent=False,
        killed_at=None,
    )
    return _begin_hooks(ended, instant, Phase.STOP_POST)


def service_result(lifecycle: Lifecycle, workload: WorkloadConfig) -> str:
    """Return systemd's word for the end of this generation, $SERVICE_RESULT of systemd.exec(5)."""
    exit_ = lifecycle.exit
    assert exit_ is not None
    if lifecycle.skipped_by_hook:
        return "exec-condition"
    if exit_.oom_killed:
        return "oom-kill"
    if not exit_.has_run and lifecycle.after_stop in (AfterStop.STAY_DOWN, AfterStop.START):
        return "success"  # a stop before the program was started
    if exit_.core_dumped and lifecycle.fault_outcome is None:
        return "core-dump"
    if lifecycle.fault_outcome is None and not exit_.has_run and not lifecycle.hook_failure:
        return "resources" if exit_.skipped is None else "exec-condition"
    return exit_outcome(lifecycle, exit_, workload).value


def _choose_next(lifecycle: Lifecycle, instant: Instant, workload: WorkloadConfig) -> LifecycleResult:
    """Decide what follows a dead generation; this is the only place that decides it.

    The program has exited and its cgroup is empty.
    """
    exit_ = lifecycle.exit
    assert exit_ is not None
    lifecycle = evolve(lifecycle, deadline=None, phase=Phase.NONE)
    if lifecycle.after_stop is AfterStop.STAY_DOWN:
        return evolve(lifecycle, state=State.STOPPED, consecutive_failures=0), ()
    if lifecycle.after_stop is AfterStop.START:
        return _spawn(evolve(lifecycle, recent_starts=(), consecutive_failures=0), instant, workload, lifecycle.reason)
    if exit_.skipped is not None and lifecycle.after_stop is AfterStop.POLICY and lifecycle.fault_outcome is None:
        return evolve(lifecycle, state=State.EXITED, reason=str(exit_)), ()
    outcome = exit_outcome(lifecycle, exit_, workload)
    reason = lifecycle.end_reason or _end_reason(lifecycle, exit_, workload)
    if lifecycle.after_stop is AfterStop.BACKOFF or _is_restarted(exit_, outcome, workload):
        return _back_off(lifecycle, instant, workload, reason)
    return evolve(lifecycle, state=State.EXITED if outcome is Outcome.SUCCESS else State.FAILED, reason=reason), ()


def _end_reason(lifecycle: Lifecycle, exit_: Exit, workload: WorkloadConfig) -> str:
    """Return why a generation has ended, in words."""
    if lifecycle.fault_outcome is Outcome.PROTOCOL and lifecycle.complete_at is not None:
        return f"{exit_} before it had been up for {workload.min_ready_sec:g} s (min_ready_sec)"
    if lifecycle.fault_outcome is Outcome.PROTOCOL and is_forking(lifecycle, workload):
        return _NO_DAEMON.format(exit_)
    if lifecycle.fault_outcome is Outcome.PROTOCOL:
        return _EXITED_BEFORE_READY.format(exit_)
    if lifecycle.fault_outcome or lifecycle.sigkill_sent or lifecycle.after_stop is AfterStop.BACKOFF:
        # The supervisor's own reason says more than the exit: "not ready within 30 s", not "killed by SIGTERM".
        return lifecycle.reason
    return str(exit_)


def _is_restarted(exit_: Exit, outcome: Outcome, workload: WorkloadConfig) -> bool:
    """Decide by the keys about restarts; `restart_prevent_exit_status` wins, as in systemd.service(5)."""
    if exit_.is_one_of(workload.restart_prevent_exit_status):
        return False
    return exit_.is_one_of(workload.restart_force_exit_status) or outcome in RESTARTED_OUTCOMES[workload.restart]


def _back_off(lifecycle: Lifecycle, instant: Instant, workload: WorkloadConfig, reason: str) -> LifecycleResult:
    """Start again after the back-off, unless the start limit is reached."""
    lived_well = instant.now - lifecycle.started_at >= workload.restart_reset_sec
    failures = 0 if lived_well else lifecycle.consecutive_failures
    base_s = workload.restart_sec
    if failures and not workload.start_limit:  # nothing else would slow down a program that ends at once
        base_s = max(base_s, backoff.UNLIMITED_BASE_S)
    delay_s = backoff.compute_delay(base_s, workload.restart_max_delay_sec, failures, instant.jitter)
    recent = backoff.starts_within(lifecycle.recent_starts, instant.now + delay_s, workload.start_limit_interval_sec)
    if workload.start_limit and len(recent) >= workload.start_limit:
        limit = f"{_count_starts(len(recent))} within {workload.start_limit_interval_sec:g} s"
        return evolve(lifecycle, state=State.FAILED, reason=f"given up after {limit}; the last: {reason}"), ()
    lifecycle = evolve(lifecycle, consecutive_failures=failures + 1)
    if delay_s <= 0:
        return _respawn(lifecycle, instant, workload, reason)
    return evolve(lifecycle, state=State.BACKOFF, deadline=instant.now + delay_s, reason=reason), ()


def _count_starts(count: int) -> str:
    return f"{count} start" if count == 1 else f"{count} starts"
