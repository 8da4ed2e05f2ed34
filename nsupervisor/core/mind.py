"""What decides about one workload, in one piece: its life, its rules, and the rules that wait for their turn.

The service and the simulation both drive this page, so they cannot disagree. What goes in is data (a reading, a turn,
an event, and the moment), what comes out is data too: the mind after it, and what has to be done.

Readings come whenever the kernel has some, also in the middle of something that is being done about the workload. So a
rule that goes off has to wait for its *turn*; the shell gives one turn for each of them, oldest first. A rule whose
turn comes when the generation that it is about is gone does nothing.
"""

import signal

import attrs

from nsupervisor.config.model import Workload
from nsupervisor.core import events
from nsupervisor.core.actions import Action, Signal, Spawn
from nsupervisor.core.lifecycle import Life, Moment, step
from nsupervisor.core.rules import Engine, Fired, Limits, Snapshot

WISHES: dict[str, type[events.Wish]] = {
    "restart": events.Recycle,
    "stop": events.Stop,
    "kill": events.Kill,
    "freeze": events.Freeze,
    "thaw": events.Thaw,
}
"""What a rule's action asks of the lifecycle; the others concern nobody's life."""


@attrs.frozen
class Seen:
    """Files of the cgroup were read at one moment."""

    snapshot: Snapshot
    limits: Limits
    """The limits in force then."""
    at: float | None = attrs.field(default=None, eq=False)
    """When the kernel told of it, on whatever clock the shell measures with; it takes part in no decision."""


@attrs.frozen
class Turn:
    """The oldest rule that waits may do what it asks for."""


@attrs.frozen
class Sentence:
    """A rule of a group, or of the host, has gone off, and this workload is whom it hits."""

    generation: int
    """The generation that was chosen."""
    fired: Fired


@attrs.frozen
class Adopt:
    """A reload: from now on the workload is another one, by the same name."""

    workload: Workload


Input = events.Event | Seen | Turn | Sentence | Adopt


@attrs.frozen
class Due:
    """A rule that has gone off and waits for its turn."""

    generation: int
    """The generation that it is about."""
    fired: Fired
    at: float | None = attrs.field(default=None, eq=False)
    """`Seen.at` of the reading that set it off."""


@attrs.frozen
class Mind:
    """All that is remembered of a workload."""

    life: Life
    engine: Engine
    due: tuple[Due, ...] = ()


@attrs.frozen
class Thought:
    """What came of one input."""

    mind: Mind
    actions: tuple[Action, ...] = ()
    """To be done, in order."""
    event: events.Event | None = None
    """What the life was told: the input itself, or what a rule wished."""
    due: Due | None = None
    """The rule whose turn it was; None where it had become pointless."""


def take(mind: Mind, what: Input, moment: Moment, workload: Workload) -> Thought:
    """The mind after ``what``, and what has to be done about it."""
    match what:
        case Seen(snapshot=snapshot, limits=limits):
            engine, fired = mind.engine.observe(snapshot, limits, moment.now)
            if engine is mind.engine:
                return Thought(mind)  # most samples say nothing new, and there are many of them
            due = tuple(Due(mind.life.generation, one, what.at) for one in fired)
            return Thought(attrs.evolve(mind, engine=engine, due=(*mind.due, *due)))
        case Sentence(generation=generation, fired=one):
            return Thought(attrs.evolve(mind, due=(*mind.due, Due(generation, one))))
        case Adopt(workload=adopted):
            return Thought(attrs.evolve(mind, engine=mind.engine.adopted(adopted.policy)))
        case Turn():
            if not mind.due:
                return Thought(mind)
            first, *rest = mind.due
            mind = attrs.evolve(mind, due=tuple(rest))
            if not mind.life.alive or first.generation != mind.life.generation:
                return Thought(mind)
            return attrs.evolve(_do(mind, first.fired, moment, workload), due=first)
        case _:
            return _tell(mind, what, moment, workload)


def _do(mind: Mind, fired: Fired, moment: Moment, workload: Workload) -> Thought:
    rule = fired.rule
    if rule.dry_run:
        return Thought(mind)
    if fired.action == "signal":
        return Thought(mind, (Signal(rule.signal or signal.SIGTERM),))
    if fired.action in WISHES:
        return _tell(mind, WISHES[fired.action](f"{rule.name} ({rule.when.text})"), moment, workload)
    return Thought(mind)


def _tell(mind: Mind, event: events.Event, moment: Moment, workload: Workload) -> Thought:
    life, actions = step(mind.life, event, moment, workload)
    if life is mind.life:
        return Thought(mind, actions, event)
    engine = mind.engine.reborn() if any(isinstance(action, Spawn) for action in actions) else mind.engine
    return Thought(attrs.evolve(mind, life=life, engine=engine), actions, event)
