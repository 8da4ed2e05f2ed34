"""Decisions about one workload in one place: its lifecycle, its rules, and the rules with a pending action.

The service and the simulation both run this module, so they cannot disagree. The input is data (an observation, a
command, an event, and the instant), and so is the output: the state after it, and the actions to take.

Observations arrive whenever the kernel reports something, also in the middle of a command on the workload. So the
action of a rule that fires is *pending* first; the shell sends one `RunPending` for each of them, oldest first. A
pending action does nothing if the generation that the rule observed is gone.
"""

import signal

import attrs

from nsupervisor.config.condition_terms import EXIT
from nsupervisor.config.model import WorkloadConfig
from nsupervisor.core import events
from nsupervisor.core.actions import Action, Signal, Spawn
from nsupervisor.core.evolve import evolve
from nsupervisor.core.initiators import Initiator
from nsupervisor.core.lifecycle import Instant, Lifecycle, apply_input
from nsupervisor.core.rules.rules import Engine, Firing, Limits, Snapshot

ACTION_COMMANDS: dict[str, type[events.Command]] = {
    "restart": events.PolicyRestart,
    "stop": events.Stop,
    "kill": events.Kill,
    "freeze": events.Freeze,
    "thaw": events.Thaw,
}
"""The lifecycle command of each rule action; other actions do not concern the lifecycle."""


@attrs.frozen
class Observation:
    """Files of the cgroup were read at one moment."""

    snapshot: Snapshot
    limits: Limits
    """The limits in force at that moment."""
    reported_at: float | None = attrs.field(default=None, eq=False)
    """When the kernel reported it, on a clock of the shell's choice; no decision uses it."""


@attrs.frozen
class RunPending:
    """Run the action of the oldest pending rule."""


@attrs.frozen
class GroupAction:
    """A rule of a group, or of the host, fired and chose this workload as its victim."""

    generation: int
    """The generation that was chosen."""
    firing: Firing


@attrs.frozen
class ConfigChanged:
    """A reload changed the configuration of the workload."""

    workload: WorkloadConfig


WorkloadInput = events.Input | Observation | RunPending | GroupAction | ConfigChanged


@attrs.frozen
class PendingAction:
    """A rule that fired and whose action is pending."""

    generation: int
    """The generation that the rule observed."""
    firing: Firing
    reported_at: float | None = attrs.field(default=None, eq=False)
    """`Observation.reported_at` of the observation on which the rule fired."""


@attrs.frozen
class WorkloadState:
    """The complete decision state of a workload."""

    lifecycle: Lifecycle
    engine: Engine
    pending: tuple[PendingAction, ...] = ()


@attrs.frozen
class Transition:
    """The result of one input."""

    state: WorkloadState
    actions: tuple[Action, ...] = ()
    """Actions to execute, in order."""
    lifecycle_input: events.Input | None = None
    """The input that the lifecycle received: the input itself, or the command of a rule."""
    executed: PendingAction | None = None
    """The pending action that ran; None if it was obsolete."""


def handle(state: WorkloadState, input_: WorkloadInput, instant: Instant, workload: WorkloadConfig) -> Transition:
    """Compute the state after an input, and the actions to execute."""
    match input_:
        case Observation(snapshot=snapshot, limits=limits):
            if EXIT in snapshot and state.lifecycle.is_ending_program:
                # The rules judge what a program does, not an exit that the supervisor caused: a person who restarts a
                # program must not get the answer of a rule to the exit status that this leads to.
                snapshot = {file: values for file, values in snapshot.items() if file != EXIT}
            engine, firings = state.engine.observe(snapshot, limits, instant.now)
            if engine is state.engine:
                return Transition(state)  # most samples change nothing, and there are many of them
            added = tuple(PendingAction(state.lifecycle.generation, firing, input_.reported_at) for firing in firings)
            return Transition(evolve(state, engine=engine, pending=(*state.pending, *added)))
        case GroupAction(generation=generation, firing=firing):
            return Transition(evolve(state, pending=(*state.pending, PendingAction(generation, firing))))
        case ConfigChanged(workload=new_workload):
            return Transition(evolve(state, engine=state.engine.with_rules(new_workload.policy)))
        case RunPending():
            if not state.pending:
                return Transition(state)
            oldest, *rest = state.pending
            state = evolve(state, pending=tuple(rest))
            if not state.lifecycle.is_alive or oldest.generation != state.lifecycle.generation:
                return Transition(state)
            return evolve(_run_action(state, oldest.firing, instant, workload), executed=oldest)
        case _:
            return _apply_input(state, input_, instant, workload)


def _run_action(state: WorkloadState, firing: Firing, instant: Instant, workload: WorkloadConfig) -> Transition:
    rule = firing.rule
    if rule.dry_run:
        return Transition(state)
    if firing.action == "signal":
        return Transition(state, (Signal(rule.signal or signal.SIGTERM, resumes=False),))
    if firing.action in ACTION_COMMANDS:
        by = Initiator("rule", rule.name, rule.when.text)
        return _apply_input(state, ACTION_COMMANDS[firing.action](by), instant, workload)
    return Transition(state)


def _apply_input(state: WorkloadState, input_: events.Input, instant: Instant, workload: WorkloadConfig) -> Transition:
    lifecycle, actions = apply_input(state.lifecycle, input_, instant, workload)
    if lifecycle is state.lifecycle:
        return Transition(state, actions, input_)
    is_new = lifecycle.generation != state.lifecycle.generation or any(isinstance(action, Spawn) for action in actions)
    engine = state.engine.for_new_generation() if is_new else state.engine
    return Transition(evolve(state, lifecycle=lifecycle, engine=engine), actions, input_)
