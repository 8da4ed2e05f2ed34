"""The life of one workload: a table of states and events, and the few functions that its cells name.

Two rules hold for this page:

1. Everything that decides what becomes of a workload is here.
2. Nothing here knows how anything is done. There is no clock, file, process or random number: `step` is a function of
   the life so far, an event, and the moment (the monotonic time and a number drawn by chance).

Theory of operation
===================

A workload is one program with all the processes that it leaves in its cgroup. Each run of it is a *generation*,
numbered from 1. A generation is *dead* when both have been seen: its program has exited, and its cgroup is empty. Only
then may the next one start, so at most one generation lives at any time.

A life is in one of nine states::

    stopped    nothing lives, and nobody wants it to         starting   asked for; the program is not running yet
    backoff    nothing lives; the next start has a time      running    the program runs
    exited     nothing lives; it ended well, by itself       ready      the program runs, and says that it works
    failed     nothing lives; it was given up                frozen     the program runs, but gets no turn
                                                             stopping   it has been told to end, or has ended in part

In ``stopping`` the only question is what comes *then* (`Then`): stay down, start again, or ask the restart policy. A
later wish replaces an earlier one there, so the last wish wins, and none of them has to wait for another.

A life has at most one deadline; the shell sends `Timeout` when it has passed. A deadline that was moved or dropped in
the meantime makes that event stale, and `step` ignores it, as it ignores facts about a generation that is gone. These
two are the only decisions made outside the table.
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


class Then(enum.Enum):
    """What follows when a stopping generation is dead."""

    REST = "rest"
    """Nothing: it was stopped."""
    START = "start"
    """The next generation, at once: somebody asked for a restart."""
    RECYCLE = "recycle"
    """The next generation, after the back-off: a rule asked for a restart."""
    DECIDE = "decide"
    """What the restart policy says."""


@attrs.frozen
class Moment:
    """When something happens: ``now`` in seconds of a monotonic clock; ``chance`` drawn from [0, 1)."""

    now: float
    chance: float = 0.0


@attrs.frozen
class Life:
    """All that is remembered of a workload. Times are seconds of the monotonic clock."""

    state: State = State.STOPPED
    reason: str = ""
    """Why it is in this state, in words."""
    wanted: bool = False
    """The last wish of those who may wish: should it run?"""
    generation: int = 0
    deadline: float | None = None
    then: Then = Then.DECIDE
    killed: bool = False
    """SIGKILL has gone to every process of this generation."""
    exit: Exit | None = None
    """How this generation's program ended; once dead, how the last one did."""
    fault: Outcome | None = None
    """Set when we ended it for a fault of its own: that, not its exit status, is what the restart policy judges."""
    thawed_to: State = State.RUNNING
    """While frozen: the state to go back to."""
    to_freeze: str = ""
    """While starting: who wants it frozen as soon as it runs; "" where nobody does."""
    started_at: float = 0.0
    starts: tuple[float, ...] = ()
    """When the latest starts were, oldest first: as many as the start limit needs."""
    failures: int = 0
    """Ends in a row that led to a back-off; the exponent of the next delay."""
    restarts: int = 0
    """Starts that the supervisor decided on, since it began."""

    @property
    def alive(self) -> bool:
        """Processes of the current generation may live."""
        return self.state in ALIVE


Step = tuple[Life, tuple[Action, ...]]
Cell = Callable[[Life, Event, Moment, Workload], Step]


def step(life: Life, event: Event, moment: Moment, workload: Workload) -> Step:
    """The life after ``event``, and what has to be done about it, in order."""
    if isinstance(event, Fact) and event.generation != life.generation:
        return life, ()
    if isinstance(event, Timeout) and (life.deadline is None or moment.now < life.deadline):
        return life, ()
    return TABLE[type(event)][life.state](life, event, moment, workload)


# ---------------------------------------------------------------------------------------------------------------------
# The cells: what the table's names mean


def ignore(life: Life, event: Event, moment: Moment, workload: Workload) -> Step:
    """It changes nothing: it is so already, or it cannot matter now."""
    return life, ()


def launch(life: Life, event: Event, moment: Moment, workload: Workload) -> Step:
    """Start at once; a person's wish wipes the slate clean."""
    assert isinstance(event, Wish)
    life = attrs.evolve(life, wanted=True, starts=(), failures=0)
    return _spawn(life, moment, workload, f"started by {event.by}")


def retry(life: Life, event: Event, moment: Moment, workload: Workload) -> Step:
    """The back-off is over."""
    return _respawn(life, moment, workload, life.reason)


def rest(life: Life, event: Event, moment: Moment, workload: Workload) -> Step:
    """Nothing lives; from now on nothing shall."""
    assert isinstance(event, Wish)
    return attrs.evolve(
        life, state=State.STOPPED, wanted=False, deadline=None, failures=0, reason=f"stopped by {event.by}"
    ), ()


def want(life: Life, event: Event, moment: Moment, workload: Workload) -> Step:
    """It runs already, which is now somebody's wish."""
    return attrs.evolve(life, wanted=True), ()


def end(life: Life, event: Event, moment: Moment, workload: Workload) -> Step:
    """Ask the program to end; what comes then depends on who asked for what."""
    assert isinstance(event, Wish)
    wanted, then, words = _THEN[type(event)]
    life = attrs.evolve(life, wanted=life.wanted if wanted is None else wanted, then=then)
    return _stopping(life, moment, workload, f"{words} by {event.by}", Signal(workload.kill_signal))


def end_frozen(life: Life, event: Event, moment: Moment, workload: Workload) -> Step:
    """As `end`; the signal first, so that it is the first thing that the thawed program sees."""
    life, actions = end(life, event, moment, workload)
    return life, (*actions, ThawAll())


def redirect(life: Life, event: Event, moment: Moment, workload: Workload) -> Step:
    """It is stopping already: the last wish says what comes then. A rule does not overrule a wish."""
    assert isinstance(event, Wish)
    wanted, then, words = _THEN[type(event)]
    if isinstance(event, Recycle) and life.then is not Then.DECIDE:
        return life, ()
    return attrs.evolve(
        life, wanted=life.wanted if wanted is None else wanted, then=then, reason=f"{words} by {event.by}"
    ), ()


def kill(life: Life, event: Event, moment: Moment, workload: Workload) -> Step:
    """SIGKILL for all; the restart policy says what comes then, unless a wish has said so before."""
    assert isinstance(event, Wish)
    then = life.then if life.state is State.STOPPING else Then.DECIDE
    life = attrs.evolve(life, then=then, killed=True)
    return _stopping(life, moment, workload, f"killed by {event.by}", KillAll())


def freeze(life: Life, event: Event, moment: Moment, workload: Workload) -> Step:
    """Stop its clock, too: a frozen program cannot say that it is ready."""
    assert isinstance(event, Wish)
    return _frozen(life, event.by)


def freeze_later(life: Life, event: Event, moment: Moment, workload: Workload) -> Step:
    """Remember it until the program runs: what sets it up is ours, and the keeper waits for what that reports."""
    assert isinstance(event, Wish)
    return attrs.evolve(life, to_freeze=event.by), ()


def thaw_before(life: Life, event: Event, moment: Moment, workload: Workload) -> Step:
    """Forget a freeze that had yet to come."""
    return (attrs.evolve(life, to_freeze="") if life.to_freeze else life), ()


def thaw(life: Life, event: Event, moment: Moment, workload: Workload) -> Step:
    """Back to where it was; one that has yet to become ready gets its full time again."""
    assert isinstance(event, Wish)
    waits = life.thawed_to is State.RUNNING and waits_for_ready(workload)
    deadline = _after(moment, workload.timeout_start_sec) if waits else None
    return attrs.evolve(life, state=life.thawed_to, deadline=deadline, reason=f"thawed by {event.by}"), (ThawAll(),)


def run(life: Life, event: Event, moment: Moment, workload: Workload) -> Step:
    """The program runs. Where it has to become ready, the time limit for its start still runs as well."""
    deadline = life.deadline if waits_for_ready(workload) else None
    life = attrs.evolve(life, state=State.RUNNING, deadline=deadline)
    return _frozen(life, life.to_freeze) if life.to_freeze else (life, ())


def ready(life: Life, event: Event, moment: Moment, workload: Workload) -> Step:
    """It works."""
    life = attrs.evolve(life, state=State.READY, deadline=None)
    return _frozen(life, life.to_freeze) if life.to_freeze else (life, ())


def ready_frozen(life: Life, event: Event, moment: Moment, workload: Workload) -> Step:
    """Said before the freeze, heard after it: it counts once it is thawed."""
    return attrs.evolve(life, thawed_to=State.READY), ()


def abort(life: Life, event: Event, moment: Moment, workload: Workload) -> Step:
    """It hangs: SIGABRT, as systemd's watchdog does, so that a core dump can tell where."""
    assert isinstance(event, Unhealthy)
    life = attrs.evolve(life, then=Then.DECIDE, fault=Outcome.WATCHDOG)
    return _stopping(life, moment, workload, event.why, Signal(signal.SIGABRT))


def overdue(life: Life, event: Event, moment: Moment, workload: Workload) -> Step:
    """It did not start in its time."""
    life = attrs.evolve(life, then=Then.DECIDE, fault=Outcome.TIMEOUT)
    reason = f"not {'ready' if waits_for_ready(workload) else 'started'} within {workload.timeout_start_sec:g} s"
    return _stopping(life, moment, workload, reason, Signal(workload.kill_signal))


def insist(life: Life, event: Event, moment: Moment, workload: Workload) -> Step:
    """It did not stop in its time: SIGKILL. If even that has not helped, say so, and go on trying."""
    again = (Complain(_UNKILLABLE.format(workload.timeout_stop_sec)),) if life.killed else ()
    # A stop that took SIGKILL is a time-out to the policy (systemd's "timeout"), whatever else went wrong before.
    fault = life.fault or (Outcome.TIMEOUT if life.exit is None else None)
    deadline = _after(moment, workload.timeout_stop_sec)
    return attrs.evolve(life, killed=True, fault=fault, deadline=deadline), (*again, KillAll())


def exited(life: Life, event: Event, moment: Moment, workload: Workload) -> Step:
    """The program is gone. If it left others behind they are asked to go too; else this generation is dead."""
    assert isinstance(event, Exited)
    was_frozen, was_stopping = life.state is State.FROZEN, life.state is State.STOPPING
    life = attrs.evolve(life, exit=event.exit)
    if not event.populated:
        life, actions = _dead(life, moment, workload)
        return life, ((ThawAll(), *actions) if was_frozen else actions)  # or the next one would be born frozen
    rest_of_them = Signal(workload.kill_signal, everyone=True)
    if was_stopping:  # its deadline stands: those left have the time that the program would have had
        return life, (rest_of_them,)
    life, actions = _stopping(
        attrs.evolve(life, then=Then.DECIDE), moment, workload, f"{event.exit}; ending what it left", rest_of_them
    )
    return life, ((*actions, ThawAll()) if was_frozen else actions)


def emptied(life: Life, event: Event, moment: Moment, workload: Workload) -> Step:
    """Nobody is left. Before the program's exit is known this waits for it: `Exited` looks at the cgroup anew."""
    return _dead(life, moment, workload) if life.exit is not None else (life, ())


# ---------------------------------------------------------------------------------------------------------------------
# The table: for each event, the cell of each state

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
    #           stopped starting      running  ready   stopping  backoff exited  failed  frozen
    Start:     (launch, want,         want,    want,   redirect, launch, launch, launch, want),
    Stop:      (ignore, end,          end,     end,    redirect, rest,   rest,   rest,   end_frozen),
    Restart:   (launch, end,          end,     end,    redirect, launch, launch, launch, end_frozen),
    Recycle:   (ignore, end,          end,     end,    redirect, ignore, ignore, ignore, end_frozen),
    Kill:      (ignore, kill,         kill,    kill,   kill,     ignore, ignore, ignore, kill),
    Freeze:    (ignore, freeze_later, freeze,  freeze, ignore,   ignore, ignore, ignore, ignore),
    Thaw:      (ignore, thaw_before,  ignore,  ignore, ignore,   ignore, ignore, ignore, thaw),
    Execed:    (ignore, run,          ignore,  ignore, ignore,   ignore, ignore, ignore, ignore),
    Ready:     (ignore, ready,        ready,   ignore, ignore,   ignore, ignore, ignore, ready_frozen),
    Unhealthy: (ignore, abort,        abort,   abort,  ignore,   ignore, ignore, ignore, ignore),
    Exited:    (ignore, exited,       exited,  exited, exited,   ignore, ignore, ignore, exited),
    Emptied:   (ignore, ignore,       ignore,  ignore, emptied,  ignore, ignore, ignore, ignore),
    Timeout:   (ignore, overdue,      overdue, ignore, insist,   retry,  ignore, ignore, ignore),
}
# fmt: on

TABLE: dict[type[Event], dict[State, Cell]] = {
    event: dict(zip(_STATES, row, strict=True)) for event, row in _ROWS.items()
}

# ---------------------------------------------------------------------------------------------------------------------
# What the cells share

_THEN: dict[type[Event], tuple[bool | None, Then, str]] = {
    # what it does to `wanted` (None: nothing), what comes then, and in words
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
    """It ended, or was about to, for no other reason than that the service did."""
    return life.reason in (f"stopped by {SHUTDOWN}", f"killed by {SHUTDOWN}")


def waits_for_ready(workload: Workload) -> bool:
    """The program itself will say when it is ready; until then its start is not over."""
    return workload.type == "notify"


def _after(moment: Moment, seconds: float) -> float | None:
    """A deadline; 0 and infinity mean none, as in systemd.service(5)."""
    return moment.now + seconds if 0 < seconds < float("inf") else None


def _spawn(life: Life, moment: Moment, workload: Workload, reason: str) -> Step:
    recent = backoff.within(life.starts, moment.now, workload.start_limit_interval_sec)
    life = attrs.evolve(
        life,
        state=State.STARTING,
        reason=reason,
        generation=life.generation + 1,
        deadline=_after(moment, workload.timeout_start_sec),
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


def _frozen(life: Life, by: str) -> Step:
    life = attrs.evolve(
        life, state=State.FROZEN, thawed_to=life.state, to_freeze="", deadline=None, reason=f"frozen by {by}"
    )
    return life, (FreezeAll(),)


def _stopping(life: Life, moment: Moment, workload: Workload, reason: str, first: Action) -> Step:
    deadline = _after(moment, workload.timeout_stop_sec)
    return attrs.evolve(life, state=State.STOPPING, deadline=deadline, reason=reason), (first,)


def _dead(life: Life, moment: Moment, workload: Workload) -> Step:
    """The program has exited and its cgroup is empty: the one place where it is decided what comes next."""
    exit_ = life.exit
    assert exit_ is not None
    life = attrs.evolve(life, deadline=None)
    if life.then is Then.REST:
        return attrs.evolve(life, state=State.STOPPED, failures=0), ()
    if life.then is Then.START:
        return _spawn(attrs.evolve(life, starts=(), failures=0), moment, workload, life.reason)
    outcome = life.fault or exit_.outcome(workload.success_exit_status)
    # What we did to it says more than how it ended: "not ready within 30 s", not "killed by SIGTERM".
    why = life.reason if life.fault or life.killed or life.then is Then.RECYCLE else str(exit_)
    if life.then is Then.RECYCLE or outcome in RESTARTS[workload.restart]:
        return _again(life, moment, workload, why)
    return attrs.evolve(life, state=State.EXITED if outcome is Outcome.SUCCESS else State.FAILED, reason=why), ()


def _again(life: Life, moment: Moment, workload: Workload, why: str) -> Step:
    """Start again after the back-off, unless it has been started too often lately."""
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
