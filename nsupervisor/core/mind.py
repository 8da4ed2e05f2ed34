"""Decisions about one workload in one place: its lifecycle, its rules, and the rules with a pending action.

The service and the simulation both run this module, so they cannot disagree. The input is data (an observation, a
command, an event, and the instant), and so is the output: the state after it, and the actions to take.

Observations arrive whenever the kernel reports something, also in the middle of a command on the workload. So the
action of a rule that fires is *pending* first; the shell sends one `RunPending` for each of them, oldest first. A
pending action does nothing if the generation that the rule observed is gone.
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
"""The lifecycle command of each rule action; other actions do not concern the lifecycle."""


@attrs.frozen
class Seen:
    """Files of the cgroup were read at one moment."""

    snapshot: Snapshot
    limits: Limits
    """The limits in force at that moment."""
    at: float | None = attrs.field(default=None, eq=False)
    """When the kernel reported it, on a clock of the shell's choice; no decision uses it."""


@attrs.frozen
class Turn:
    """Run the action of the oldest pending rule."""


@attrs.frozen
class Sentence:
    """A rule of a group, or of the host, fired and chose this workload as its victim."""

    generation: int
    """The generation that was chosen."""
    fired: Fired


@attrs.frozen
class Adopt:
    """A reload changed the configuration of the workload."""

    workload: Workload


Input = events.Event | Seen | Turn | Sentence | Adopt


@attrs.frozen
class Due:
    """A rule that fired and whose action is pending."""

    generation: int
    """The generation that the rule observed."""
    fired: Fired
    at: float | None = attrs.field(default=None, eq=False)
    """`Observation.reported_at` of the observation on which the rule fired."""


@attrs.frozen
class Mind:
    """The complete decision state of a workload."""

    life: Life
    engine: Engine
    due: tuple[Due, ...] = ()


@attrs.frozen
class Thought:
    """The result of one input."""

    mind: Mind
    actions: tuple[Action, ...] = ()
    """Actions to execute, in order."""
    event: events.Event | None = None
    """The input that the lifecycle received: the input itself, or the command of a rule."""
    due: Due | None = None
    """The pending action that ran; None if it was obsolete."""


def take(mind: Mind, what: Input, moment: Moment, workload: Workload) -> Thought:
    """Compute the state after an input, and the actions to execute."""
    match what:
        case Seen(snapshot=snapshot, limits=limits):
            engine, fired = mind.engine.observe(snapshot, limits, moment.now)
            if engine is mind.engine:
                return Thought(mind)  # most samples change nothing, and there are many of them
            added = tuple(Due(mind.life.generation, firing, what.at) for firing in fired)
            return Thought(attrs.evolve(mind, engine=engine, due=(*mind.due, *added)))
        case Sentence(generation=generation, fired=firing):
            return Thought(attrs.evolve(mind, due=(*mind.due, Due(generation, firing))))
        case Adopt(workload=adopted):
            return Thought(attrs.evolve(mind, engine=mind.engine.adopted(adopted.policy)))
        case Turn():
            if not mind.due:
                return Thought(mind)
            oldest, *rest = mind.due
            mind = attrs.evolve(mind, due=tuple(rest))
            if not mind.life.alive or oldest.generation != mind.life.generation:
                return Thought(mind)
            return attrs.evolve(_run_action(mind, oldest.fired, moment, workload), due=oldest)
        case _:
            return _apply_input(mind, what, moment, workload)


def _run_action(mind: Mind, fired: Fired, moment: Moment, workload: Workload) -> Thought:
    rule = fired.rule
    if rule.dry_run:
        return Thought(mind)
    if fired.action == "signal":
        return Thought(mind, (Signal(rule.signal or signal.SIGTERM),))
    if fired.action in WISHES:
        return _apply_input(mind, WISHES[fired.action](f"{rule.name} ({rule.when.text})"), moment, workload)
    return Thought(mind)


def _apply_input(mind: Mind, event: events.Event, moment: Moment, workload: Workload) -> Thought:
    life, actions = step(mind.life, event, moment, workload)
    if life is mind.life:
        return Thought(mind, actions, event)
    engine = mind.engine.reborn() if any(isinstance(action, Spawn) for action in actions) else mind.engine
    return Thought(attrs.evolve(mind, life=life, engine=engine), actions, event)
