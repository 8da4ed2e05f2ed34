"""The decision state of one workload instance while the service runs, and the only place that changes it."""

import random
from collections.abc import Callable

import attrs
import trio

from nsupervisor.config.model import WorkloadConfig
from nsupervisor.core.decider import ConfigChanged, Transition, WorkloadInput, WorkloadState, handle
from nsupervisor.core.lifecycle import Instant

Listener = Callable[["DecisionLoop", WorkloadState, WorkloadInput, Instant, Transition], None]
"""Called after each transition with the decision loop, the state before, the input, its instant and the transition."""


@attrs.define(eq=False)
class DecisionLoop:
    """Apply inputs to the pure decider, which has neither a clock nor random numbers, and keep the resulting state."""

    name: str
    workload: WorkloadConfig
    state: WorkloadState
    listeners: set[Listener]
    """The listeners that record transitions; all instances share this set."""
    random: Callable[[], float] = random.random
    """Returns a random number from [0, 1), for the jitter of delays."""

    def handle(self, workload_input: WorkloadInput, now: float | None = None) -> Transition:
        """Apply an input, optionally as of an earlier time `now`; the caller carries out the resulting actions."""
        instant_s = trio.current_time() if now is None else now
        before, instant = self.state, Instant(instant_s, self.random())
        transition = handle(before, workload_input, instant, self.workload)
        self.state = transition.state
        if isinstance(workload_input, ConfigChanged):
            self.workload = workload_input.workload
        for listener in self.listeners:
            listener(self, before, workload_input, instant, transition)
        return transition
