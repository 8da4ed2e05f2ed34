"""The mind of one workload instance while the service runs: the one place where it takes something in."""

import random
from collections.abc import Callable

import attrs
import trio

from nsupervisor.config.model import Workload
from nsupervisor.core.lifecycle import Moment
from nsupervisor.core.mind import Adopt, Input, Mind, Thought, take

Listener = Callable[["Thinker", Mind, Input, Moment, Thought], None]
"""Hears, after each step, the thinker, its mind before, what it took in and when, and what came of it."""


@attrs.define(eq=False)
class Thinker:
    """Gives `nsupervisor.core.mind` the time and the chance that it does not have, and remembers what it says."""

    name: str
    workload: Workload
    mind: Mind
    listeners: set[Listener]
    """Those that record; shared by all instances."""

    def take(self, what: Input, now: float | None = None) -> Thought:
        """Take in something, or what was so at an earlier moment. What has to be done about it is the caller's."""
        when = trio.current_time() if now is None else now
        before, moment = self.mind, Moment(when, random.random())  # noqa: S311 - jitter, no secret
        thought = take(before, what, moment, self.workload)
        self.mind = thought.mind
        if isinstance(what, Adopt):
            self.workload = what.workload
        for listener in self.listeners:
            listener(self, before, what, moment, thought)
        return thought
