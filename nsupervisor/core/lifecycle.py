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

from nsupervisor.config.model import Workload
from nsupervisor.core import backoff
from nsupervisor.core.actions import Action, Complain, FreezeAll, KillAll, Signal, Spawn, ThawAll
from nsupervisor.core.events import (
    SHUTDOWN,
    Emptied,
    Event,
    Execed,
    Exited,
    Fact,
    Freeze,
    Kill,
    Ready,
    Recycle,
    Restart,
    Start,
    Stop,
    Thaw,
    Timeout,
    Unhealthy,
    Wish,
)
from nsupervisor.core.exits import RESTARTS, Exit, Outcome
from nsupervisor.core.states import ALIVE
from nsupervisor.core.states import State as State
from nsupervisor.wire import wire


class Then(enum.Enum):
    """The continuation after a stopping generation is dead."""

    REST = "rest"
    """Stay down: the workload was stopped."""
    START = "start"
    """Start the next generation at once: a restart was requested."""
    RECYCLE = "recycle"
    """Start the next generation after the back-off: a rule requested a restart."""
    DECIDE = "decide"
    """Ask the restart policy what to do."""


@attrs.frozen
class Moment:
    """The time of an input, in seconds of a monotonic clock, and its `jitter`, a random number from [0, 1)."""

    now: float
    chance: float = 0.0


@attrs.frozen
class Life:
    """The complete lifecycle state of a workload. Times are seconds of the monotonic clock."""

    state: State = attrs.field(default=State.STOPPED, metadata=wire("state"))
    reason: str = attrs.field(default="", metadata=wire("reason"))
    """Why the workload is in this state, in words."""
    wanted: bool = attrs.field(default=False, metadata=wire("wanted"))
    """Whether the last command wants the workload to run."""
    generation: int = attrs.field(default=0, metadata=wire("generation"))
    deadline: float | None = attrs.field(default=None, metadata=wire("deadline"))
    then: Then = attrs.field(default=Then.DECIDE, metadata=wire("then"))
    killed: bool = attrs.field(default=False, metadata=wire("killed"))
    """SIGKILL was sent to every process of this generation."""
    exit: Exit | None = attrs.field(default=None, metadata=wire("exit"))
    """The exit of this generation's program; once it is dead, of the last one."""
    fault: Outcome | None = attrs.field(default=None, metadata=wire("fault"))
    """The outcome for the restart policy if the supervisor ended the program for a fault of its own.

    It replaces the outcome of the exit status.
    """
    thawed_to: State = attrs.field(default=State.RUNNING, metadata=wire("thawed_to"))
    """While frozen: the state to return to."""
    to_freeze: str = attrs.field(default="", metadata=wire("to_freeze"))
    """While starting: the source of a freeze that waits until the program runs; "" if there is none."""
    started_at: float = attrs.field(default=0.0, metadata=wire("started_at"))
    starts: tuple[float, ...] = attrs.field(default=(), metadata=wire("starts"))
    """The times of the latest starts, oldest first: as many as the start limit needs."""
    failures: int = attrs.field(default=0, metadata=wire("failures"))
    """Consecutive ends that led to a back-off; the exponent of the next delay."""
    restarts: int = attrs.field(default=0, metadata=wire("restarts"))
    """Starts that the supervisor decided on since it began."""

    @property
    def alive(self) -> bool:
        """Whether processes of the current generation may live."""
        return self.state in ALIVE


Step = tuple[Life, tuple[Action, ...]]
Cell = Callable[[Life, Event, Moment, Workload], Step]


def step(life: Life, input_: Event, moment: Moment, workload: Workload) -> Step:
    """Compute the lifecycle after an input, and the actions to take, in order."""
    if isinstance(input_, Fact) and input_.generation != life.generation:
        return life, ()
    if isinstance(input_, Timeout) and (life.deadline is None or moment.now < life.deadline):
        return life, ()
    return TABLE[type(input_)][life.state](life, input_, moment, workload)


# ---------------------------------------------------------------------------------------------------------------------
# The cells: the functions that the table names


def ignore(life: Life, input_: Event, moment: Moment, workload: Workload) -> Step:
    """Change nothing: the workload is in the wanted state already, or the input cannot matter now."""
    return life, ()


def start(life: Life, input_: Event, moment: Moment, workload: Workload) -> Step:
    """Start at once; an operator's command resets the back-off and the start limit."""
    assert isinstance(input_, Wish)
    life = attrs.evolve(life, wanted=True, starts=(), failures=0)
    return _spawn(life, moment, workload, f"started by {input_.by}")


def retry(life: Life, input_: Event, moment: Moment, workload: Workload) -> Step:
    """Start after the back-off has passed."""
    return _respawn(life, moment, workload, life.reason)


def cancel(life: Life, input_: Event, moment: Moment, workload: Workload) -> Step:
    """Cancel what would start the workload; no process lives."""
    assert isinstance(input_, Wish)
    return attrs.evolve(
        life, state=State.STOPPED, wanted=False, deadline=None, failures=0, reason=f"stopped by {input_.by}"
    ), ()


def keep(life: Life, input_: Event, moment: Moment, workload: Workload) -> Step:
    """Record that the workload shall run; it runs already."""
    return attrs.evolve(life, wanted=True), ()


def stop(life: Life, input_: Event, moment: Moment, workload: Workload) -> Step:
    """Ask the program to stop; the command decides what follows."""
    assert isinstance(input_, Wish)
    wanted, then, verb = _STOP_COMMANDS[type(input_)]
    life = attrs.evolve(life, wanted=life.wanted if wanted is None else wanted, then=then)
    return _enter_stopping(life, moment, workload, f"{verb} by {input_.by}", Signal(workload.kill_signal))


def stop_frozen(life: Life, input_: Event, moment: Moment, workload: Workload) -> Step:
    """Do as `stop` does, with the signal first: the thawed program handles it before anything else."""
    life, actions = stop(life, input_, moment, workload)
    return life, (*actions, ThawAll())


def retarget(life: Life, input_: Event, moment: Moment, workload: Workload) -> Step:
    """Replace what follows the stop that is under way: the last command wins.

    A rule does not overrule an operator's command.
    """
    assert isinstance(input_, Wish)
    wanted, then, verb = _STOP_COMMANDS[type(input_)]
    if isinstance(input_, Recycle) and life.then is not Then.DECIDE:
        return life, ()
    return attrs.evolve(
        life, wanted=life.wanted if wanted is None else wanted, then=then, reason=f"{verb} by {input_.by}"
    ), ()


def kill(life: Life, input_: Event, moment: Moment, workload: Workload) -> Step:
    """Send SIGKILL to all processes; the restart policy decides what follows, unless an earlier command has."""
    assert isinstance(input_, Wish)
    then = life.then if life.state is State.STOPPING else Then.DECIDE
    life = attrs.evolve(life, then=then, killed=True)
    return _enter_stopping(life, moment, workload, f"killed by {input_.by}", KillAll())


def freeze(life: Life, input_: Event, moment: Moment, workload: Workload) -> Step:
    """Freeze, and drop the deadline: a frozen program cannot report that it is ready."""
    assert isinstance(input_, Wish)
    return _enter_frozen(life, input_.by)


def defer_freeze(life: Life, input_: Event, moment: Moment, workload: Workload) -> Step:
    """Freeze as soon as the program runs.

    Until then the set-up is the supervisor's own, and the keeper waits for its report.
    """
    assert isinstance(input_, Wish)
    return attrs.evolve(life, to_freeze=input_.by), ()


def cancel_freeze(life: Life, input_: Event, moment: Moment, workload: Workload) -> Step:
    """Cancel a freeze that has not happened yet."""
    return (attrs.evolve(life, to_freeze="") if life.to_freeze else life), ()


def thaw(life: Life, input_: Event, moment: Moment, workload: Workload) -> Step:
    """Return to the state before the freeze; a program that is not ready yet gets its full time again."""
    assert isinstance(input_, Wish)
    waits = life.thawed_to is State.RUNNING and waits_for_ready(workload)
    deadline = _deadline(moment, workload.timeout_start_sec) if waits else None
    return attrs.evolve(life, state=life.thawed_to, deadline=deadline, reason=f"thawed by {input_.by}"), (ThawAll(),)


def mark_running(life: Life, input_: Event, moment: Moment, workload: Workload) -> Step:
    """Record that the program runs; if it has to become ready, its start deadline stays."""
    deadline = life.deadline if waits_for_ready(workload) else None
    life = attrs.evolve(life, state=State.RUNNING, deadline=deadline)
    return _enter_frozen(life, life.to_freeze) if life.to_freeze else (life, ())


def mark_ready(life: Life, input_: Event, moment: Moment, workload: Workload) -> Step:
    """Record that the program is ready."""
    life = attrs.evolve(life, state=State.READY, deadline=None)
    return _enter_frozen(life, life.to_freeze) if life.to_freeze else (life, ())


def ready_frozen(life: Life, input_: Event, moment: Moment, workload: Workload) -> Step:
    """Record readiness that was sent before the freeze and received after it; it counts after the thaw."""
    return attrs.evolve(life, thawed_to=State.READY), ()


def abort(life: Life, input_: Event, moment: Moment, workload: Workload) -> Step:
    """Send SIGABRT to a hanging program, as systemd's watchdog does, so that a core dump shows where it hangs."""
    assert isinstance(input_, Unhealthy)
    life = attrs.evolve(life, then=Then.DECIDE, fault=Outcome.WATCHDOG)
    return _enter_stopping(life, moment, workload, input_.why, Signal(signal.SIGABRT))


def start_timeout(life: Life, input_: Event, moment: Moment, workload: Workload) -> Step:
    """Stop a program that did not start in time."""
    life = attrs.evolve(life, then=Then.DECIDE, fault=Outcome.TIMEOUT)
    reason = f"not {'ready' if waits_for_ready(workload) else 'started'} within {workload.timeout_start_sec:g} s"
    return _enter_stopping(life, moment, workload, reason, Signal(workload.kill_signal))


def stop_timeout(life: Life, input_: Event, moment: Moment, workload: Workload) -> Step:
    """Send SIGKILL after a stop that took too long; if SIGKILL did not help, warn and keep trying."""
    warnings = (Complain(_UNKILLABLE.format(workload.timeout_stop_sec)),) if life.killed else ()
    # A stop that took SIGKILL is a time-out to the policy (systemd's "timeout"), even after another fault.
    fault = life.fault or (Outcome.TIMEOUT if life.exit is None else None)
    deadline = _deadline(moment, workload.timeout_stop_sec)
    return attrs.evolve(life, killed=True, fault=fault, deadline=deadline), (*warnings, KillAll())


def exited(life: Life, input_: Event, moment: Moment, workload: Workload) -> Step:
    """Record the exit; ask the processes that the program left to stop too, else this generation is dead."""
    assert isinstance(input_, Exited)
    was_frozen, was_stopping = life.state is State.FROZEN, life.state is State.STOPPING
    life = attrs.evolve(life, exit=input_.exit)
    if not input_.populated:
        life, actions = _choose_next(life, moment, workload)
        return life, (
            (ThawAll(), *actions) if was_frozen else actions
        )  # otherwise the next generation would start frozen
    stop_rest = Signal(workload.kill_signal, everyone=True)
    if was_stopping:  # the deadline stays: the remaining processes have the time that the program would have had
        return life, (stop_rest,)
    life, actions = _enter_stopping(
        attrs.evolve(life, then=Then.DECIDE), moment, workload, f"{input_.exit}; ending what it left", stop_rest
    )
    return life, ((*actions, ThawAll()) if was_frozen else actions)


def emptied(life: Life, input_: Event, moment: Moment, workload: Workload) -> Step:
    """Record that the cgroup is empty; before the program's exit is known, wait for it.

    `Exited` says again whether the cgroup is populated.
    """
    return _choose_next(life, moment, workload) if life.exit is not None else (life, ())


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
_ROWS: dict[type[Event], tuple[Cell, ...]] = {
    #           stopped  starting       running        ready   stopping      backoff  exited  failed  frozen
    Start:     (start,   keep,          keep,          keep,   retarget,     start,   start,  start,  keep),
    Stop:      (ignore,  stop,          stop,          stop,   retarget,     cancel,  cancel, cancel, stop_frozen),
    Restart:   (start,   stop,          stop,          stop,   retarget,     start,   start,  start,  stop_frozen),
    Recycle:   (ignore,  stop,          stop,          stop,   retarget,     ignore,  ignore, ignore, stop_frozen),
    Kill:      (ignore,  kill,          kill,          kill,   kill,         ignore,  ignore, ignore, kill),
    Freeze:    (ignore,  defer_freeze,  freeze,        freeze, ignore,       ignore,  ignore, ignore, ignore),
    Thaw:      (ignore,  cancel_freeze, ignore,        ignore, ignore,       ignore,  ignore, ignore, thaw),
    Execed:    (ignore,  mark_running,  ignore,        ignore, ignore,       ignore,  ignore, ignore, ignore),
    Ready:     (ignore,  mark_ready,    mark_ready,    ignore, ignore,       ignore,  ignore, ignore, ready_frozen),
    Unhealthy: (ignore,  abort,         abort,         abort,  ignore,       ignore,  ignore, ignore, ignore),
    Exited:    (ignore,  exited,        exited,        exited, exited,       ignore,  ignore, ignore, exited),
    Emptied:   (ignore,  ignore,        ignore,        ignore, emptied,      ignore,  ignore, ignore, ignore),
    Timeout:   (ignore,  start_timeout, start_timeout, ignore, stop_timeout, retry,   ignore, ignore, ignore),
}
# fmt: on

TABLE: dict[type[Event], dict[State, Cell]] = {
    kind: dict(zip(_STATES, row, strict=True)) for kind, row in _ROWS.items()
}

# ---------------------------------------------------------------------------------------------------------------------
# Helpers that the cells share

_STOP_COMMANDS: dict[type[Event], tuple[bool | None, Then, str]] = {
    # the new `should_run` (None: unchanged), what follows the stop, and the verb for the reason
    Start: (True, Then.START, "started again"),
    Stop: (False, Then.REST, "stopped"),
    Restart: (True, Then.START, "restarted"),
    Recycle: (None, Then.RECYCLE, "restarted"),
}

_UNKILLABLE = (
    "still populated {:g} s after SIGKILL: a process waits in the kernel (state D in ps), "
    "often for a disk or a network file system; nothing new starts until it is gone"
)


def cut_short(life: Life) -> bool:
    """Check whether the workload ended, or was about to, only because the service did."""
    return life.reason in (f"stopped by {SHUTDOWN}", f"killed by {SHUTDOWN}")


def waits_for_ready(workload: Workload) -> bool:
    """Check whether the program itself reports when it is ready; until then its start is not complete."""
    return workload.type == "notify"


def _deadline(moment: Moment, seconds: float) -> float | None:
    """Compute a deadline; 0 and infinity mean none, as in systemd.service(5)."""
    return moment.now + seconds if 0 < seconds < float("inf") else None


def _spawn(life: Life, moment: Moment, workload: Workload, reason: str) -> Step:
    recent = backoff.within(life.starts, moment.now, workload.start_limit_interval_sec)
    life = attrs.evolve(
        life,
        state=State.STARTING,
        reason=reason,
        generation=life.generation + 1,
        deadline=_deadline(moment, workload.timeout_start_sec),
        then=Then.DECIDE,
        killed=False,
        exit=None,
        fault=None,
        to_freeze="",
        started_at=moment.now,
        starts=(*recent, moment.now),
    )
    return life, (Spawn(life.generation),)


def _respawn(life: Life, moment: Moment, workload: Workload, why: str) -> Step:
    reason = why if life.then is Then.RECYCLE else f"restarted: {why}"
    return _spawn(attrs.evolve(life, restarts=life.restarts + 1), moment, workload, reason)


def _enter_frozen(life: Life, by: str) -> Step:
    life = attrs.evolve(
        life, state=State.FROZEN, thawed_to=life.state, to_freeze="", deadline=None, reason=f"frozen by {by}"
    )
    return life, (FreezeAll(),)


def _enter_stopping(life: Life, moment: Moment, workload: Workload, reason: str, first: Action) -> Step:
    deadline = _deadline(moment, workload.timeout_stop_sec)
    return attrs.evolve(life, state=State.STOPPING, deadline=deadline, reason=reason), (first,)


def _choose_next(life: Life, moment: Moment, workload: Workload) -> Step:
    """Decide what follows a dead generation; this is the only place that decides it.

    The program has exited and its cgroup is empty.
    """
    exit_ = life.exit
    assert exit_ is not None
    life = attrs.evolve(life, deadline=None)
    if life.then is Then.REST:
        return attrs.evolve(life, state=State.STOPPED, failures=0), ()
    if life.then is Then.START:
        return _spawn(attrs.evolve(life, starts=(), failures=0), moment, workload, life.reason)
    outcome = life.fault or exit_.outcome(workload.success_exit_status)
    # The supervisor's own reason says more than the exit: "not ready within 30 s", not "killed by SIGTERM".
    reason = life.reason if life.fault or life.killed or life.then is Then.RECYCLE else str(exit_)
    if life.then is Then.RECYCLE or outcome in RESTARTS[workload.restart]:
        return _back_off(life, moment, workload, reason)
    return attrs.evolve(life, state=State.EXITED if outcome is Outcome.SUCCESS else State.FAILED, reason=reason), ()


def _back_off(life: Life, moment: Moment, workload: Workload, why: str) -> Step:
    """Start again after the back-off, unless the start limit is reached."""
    lived_well = moment.now - life.started_at >= workload.restart_reset_sec
    failures = 0 if lived_well else life.failures
    wait = backoff.delay(workload.restart_sec, workload.restart_max_delay_sec, failures, moment.chance)
    recent = backoff.within(life.starts, moment.now + wait, workload.start_limit_interval_sec)
    if workload.start_limit_burst and len(recent) >= workload.start_limit_burst:
        limit = f"{len(recent)} starts within {workload.start_limit_interval_sec:g} s"
        return attrs.evolve(life, state=State.FAILED, reason=f"given up after {limit}; the last: {why}"), ()
    life = attrs.evolve(life, failures=failures + 1)
    if wait <= 0:
        return _respawn(life, moment, workload, why)
    return attrs.evolve(life, state=State.BACKOFF, deadline=moment.now + wait, reason=why), ()
