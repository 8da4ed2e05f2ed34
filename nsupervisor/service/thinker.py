"""The decision state of one workload instance while the service runs, and the only place that changes it."""

import random
from collections.abc import Callable

import attrs
import trio

from nsupervisor.config.model import Workload
from nsupervisor.core.lifecycle import Moment
from nsupervisor.core.mind import Adopt, Input, Mind, Thought, take

Listener = Callable[["Thinker", Mind, Input, Moment, Thought], None]
"""Called after each transition with the decision loop, the state before, the input, its instant and the transition."""


@attrs.define(eq=False)
class Thinker:
    """Apply inputs to the pure decider, which has neither a clock nor random numbers, and keep the resulting state."""

    name: str
    workload: Workload
    mind: Mind
    listeners: set[Listener]
    """The listeners that record transitions; all instances share this set."""

    def take(self, what: Input, now: float | None = None) -> Thought:
        """Apply an input, optionally as of an earlier time `now`; the caller carries out the resulting actions."""
        instant_s = trio.current_time() if now is None else now
        before, instant = self.mind, Moment(instant_s, random.random())  # noqa: S311 - jitter, no secret
        thought = take(before, what, instant, self.workload)
        self.mind = thought.mind
        if isinstance(what, Adopt):
            self.workload = what.workload
        for listener in self.listeners:
            listener(self, before, what, instant, thought)
        return thought
