"""Consequences for other workloads of what happens to one: `binds_to`, `upholds`, `on_failure` and `on_success`.

`Relations` sees each transition of a lifecycle before that is saved. So a start that follows from it is saved first
(`Jobs` notes each start that waits in the state file), and a supervisor that is killed in between loses none: the next
one has the start, or sees the transition again.

What a command on one workload does to others (`requires`, `part_of`, `conflicts`) is decided in `service/jobs/jobs.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import attrs

from nsupervisor.config.model import WorkloadConfig
from nsupervisor.core import edges
from nsupervisor.core.decider import Transition, WorkloadInput, WorkloadState
from nsupervisor.core.initiators import Initiator, by_relation
from nsupervisor.core.lifecycle import Instant, Lifecycle
from nsupervisor.service.instance.actor import Actor
from nsupervisor.service.jobs.jobs import Jobs


@attrs.frozen(eq=False)
class Relations:
    """Starts and restarts instances when others end, fail, succeed, or are up. A `TransitionListener`."""

    jobs: Jobs

    def __call__(
        self,
        name: str,
        workload: WorkloadConfig,
        before: WorkloadState,
        input_: WorkloadInput,
        instant: Instant,
        transition: Transition,
    ) -> None:
        """Handle the transition of the instance `name`."""
        after = transition.state.lifecycle
        if after is before.lifecycle or self.jobs.is_stopping:
            return
        if after.state is before.lifecycle.state and after.generation == before.lifecycle.generation:
            return
        if (actor := self.jobs.actors.get(name)) is not None:
            self._on_change(actor, before.lifecycle, after)

    def resume(self) -> None:
        """Start what is upheld and down, after an earlier supervisor was killed, and after a reload."""
        for actor in list(self.jobs.actors.values()):
            if actor.is_up:
                self._uphold_all(actor)

    def _on_change(self, actor: Actor, before: Lifecycle, after: Lifecycle) -> None:
        workload = actor.workload
        if edges.has_ended(before, after, workload):
            self._restart_bound(actor)
        if edges.has_failed(before, after):
            self._start_others(actor, "on_failure", workload.on_failure)
        elif edges.has_succeeded(before, after):
            self._start_others(actor, "on_success", workload.on_success)
        if actor.is_up:
            self._uphold_all(actor)
        if edges.must_be_upheld(after):
            self._uphold(actor)

    def _restart_bound(self, ended: Actor) -> None:
        """Stop what is bound to a workload of which no instance is up any more; it starts when the workload is up."""
        name = ended.workload.name
        bound = self.jobs.actors.bound_to(name)
        if not bound or any(edges.is_active(o.lifecycle, o.workload) for o in self.jobs.actors.instances(name)):
            return
        for actor in bound:
            if self.jobs.will_start(actor):
                continue
            is_starting = self.jobs.has_pending_start(actor)  # the command to start may still be in its mailbox
            if is_starting or (actor.lifecycle.should_run and not actor.is_down):
                self.jobs.restart_later(actor, by_relation(name, "binds_to"))

    def _start_others(self, actor: Actor, key: str, names: Iterable[str]) -> None:
        for name in names:
            by = by_relation(actor.workload.name, key)
            if (held := self._held_down(name)) is not None:
                text = f"{key} does not start {name}, as {held} was stopped; nsupervisor start {name}"
                actor.log_event("warning", "warning", message=text)
            else:
                self.jobs.start([name], by=by)

    def _uphold_all(self, upholder: Actor) -> None:
        for name in upholder.workload.upholds:
            for actor in self.jobs.actors.instances(name):
                self._uphold(actor)

    def _uphold(self, actor: Actor) -> None:
        """Start an instance that is down, if one that upholds it is up, and nothing that it needs was stopped."""
        name = actor.workload.name
        upholder = self._upholder(name)
        if upholder is None or self.jobs.will_start(actor) or not edges.must_be_upheld(actor.lifecycle):
            return
        if actor.is_up or self.jobs.removal_of(actor) is not None or self._held_down(name) is not None:
            return
        by: Initiator = by_relation(upholder.workload.name, "upholds")
        delay_s = edges.uphold_delay(actor.lifecycle, actor.workload)
        self.jobs.start_later(actor, by, delay_s, partial(self._is_upheld, actor))

    def _upholder(self, name: str) -> Actor | None:
        return next((actor for actor in self.jobs.actors.upholders(name) if actor.is_up), None)

    def _is_upheld(self, actor: Actor) -> bool:
        name = actor.workload.name
        return self._upholder(name) is not None and self._held_down(name) is None

    def _held_down(self, name: str) -> str | None:
        """Return the first instance that a start of this workload would start although a request has stopped it."""
        return next((actor.name for actor in self.jobs.held_down([name])), None)
