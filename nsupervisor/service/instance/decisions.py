"""The decisions about one workload instance while the service runs.

`Decisions` holds the state of the pure decider (`nsupervisor.core.decider`), which has neither a clock nor random
numbers, and is the only object that changes it. It carries nothing out: the actor takes each transition, and the
pending actions of rules, and performs them.
"""

from collections.abc import Callable, Collection

import attrs
import trio

from nsupervisor.config.model import WorkloadConfig
from nsupervisor.core.decider import (
    ConfigChanged,
    GroupAction,
    Observation,
    RunPending,
    Transition,
    WorkloadInput,
    WorkloadState,
    handle,
)
from nsupervisor.core.lifecycle import Instant, Lifecycle, adopt_generation
from nsupervisor.core.rules.rules import Engine, Firing, Limits, Snapshot
from nsupervisor.service.context import TransitionListener
from nsupervisor.service.state.checkpoint import restore_rules, saved_rules
from nsupervisor.service.state.file import SavedRule


@attrs.define(eq=False)
class Decisions:
    """Applies inputs to the decision state of one instance. Implements `ObservedRules` of `rule_observer`."""

    name: str
    workload: WorkloadConfig
    """The configuration that decides, with the rules that this host can evaluate."""
    listeners: Collection[TransitionListener]
    """The listeners that record transitions; all instances share this set."""
    on_pending: Callable[[], None]
    """Called when rules have fired, so that the actor calls `run_next_pending` soon."""
    state: WorkloadState
    random: Callable[[], float]
    """Returns a random number from [0, 1), for the jitter of delays."""
    _saved_state: WorkloadState | None = None
    _saved_rules: tuple[SavedRule, ...] = ()

    @property
    def lifecycle(self) -> Lifecycle:
        """The current state of the lifecycle."""
        return self.state.lifecycle

    @property
    def engine(self) -> Engine:
        """The rules, with the state of each rule."""
        return self.state.engine

    @property
    def generation(self) -> int | None:
        """The generation that lives; None if none does."""
        return self.state.lifecycle.generation if self.state.lifecycle.is_alive else None

    def handle(self, input_: WorkloadInput, now: float | None = None) -> Transition:
        """Apply an input, optionally as of an earlier time `now`; the caller carries out the resulting actions."""
        instant_s = trio.current_time() if now is None else now
        before, instant = self.state, Instant(instant_s, self.random())
        transition = handle(before, input_, instant, self.workload)
        self.state = transition.state
        if isinstance(input_, ConfigChanged):
            self.workload = input_.workload
        for listener in self.listeners:
            listener(self.name, self.workload, before, input_, instant, transition)
        return transition

    def observe(self, snapshot: Snapshot, limits: Limits, reported_at: float | None, now: float) -> None:
        """Show the rules a snapshot.

        Readings bypass the mailbox: the exit of a program that is already in the mailbox must not overtake them.
        """
        if self.handle(Observation(snapshot, limits, reported_at), now).state.pending:
            self.on_pending()

    def impose(self, firing: Firing, generation: int) -> None:
        """Add the action of a group's rule that chose this instance; it does nothing if the generation has ended."""
        self.handle(GroupAction(generation, firing))
        self.on_pending()

    def run_next_pending(self) -> tuple[Lifecycle, Transition] | None:
        """Run the oldest pending action; return the lifecycle before and the transition, or None if none is pending."""
        before = self.lifecycle
        return (before, self.handle(RunPending())) if self.state.pending else None

    def restore_rules(self, saved: tuple[SavedRule, ...]) -> None:
        """Restore the state of the rules that an earlier supervisor saved; only before the actor runs."""
        self.state = attrs.evolve(self.state, engine=restore_rules(self.state.engine, saved))

    def adopt_generation(self, generation: int, reason: str) -> None:
        """Adopt a generation that an earlier supervisor started and did not save; only before the actor runs.

        The levels that the rules saw belong to the generation before.
        """
        lifecycle = adopt_generation(self.lifecycle, generation, reason, Instant(trio.current_time()), self.workload)
        engine = self.state.engine.for_new_generation()
        self.state = attrs.evolve(self.state, lifecycle=lifecycle, engine=engine)

    def saved_rules(self) -> tuple[SavedRule, ...]:
        """Return the state of the rules for the checkpoint.

        Rules whose actions are pending keep the state from before they fired, so that they fire again if necessary.
        """
        if self.state is not self._saved_state and not self.state.pending:
            self._saved_state, self._saved_rules = self.state, saved_rules(self.state.engine)
        return self._saved_rules
