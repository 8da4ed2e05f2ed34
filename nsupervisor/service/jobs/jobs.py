"""Jobs: the order in which workload instances start, stop and are removed.

An instance starts after what it depends on is up, and stops after what depends on it has stopped. Each start that waits
is a `StartJob` of its instance. A later command about the instance cancels the job and wins. A start whose requirement
is down is *blocked*: it stays, and goes on as soon as the requirement is up, whatever has made that start.

`Jobs.begin` changes many instances at once, for a reload and for the takeover after a crash: it restarts, starts and
removes instances in one order.

Once the service stops, nothing starts: `Jobs.begin_stop` cancels all start jobs, and later ones are cancelled at once.
A start job checks whether it was cancelled (`checkpoint_if_cancelled`) and posts its message to the actor without a
switch of tasks in between: a stop could be posted first otherwise, and the instance would start after it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping
from functools import partial

import attrs
import trio

from nsupervisor.cgroups import CgroupError
from nsupervisor.condition_variable import ConditionVariable
from nsupervisor.config.relations import DependencyCondition
from nsupervisor.core import dependencies, edges, events
from nsupervisor.core.dependencies import Wait
from nsupervisor.core.initiators import OPERATOR, SHUTDOWN, Initiator, by_relation
from nsupervisor.core.lifecycle import Lifecycle, State, is_skipped
from nsupervisor.core.states import DOWN_STATES
from nsupervisor.service.context import ServiceContext
from nsupervisor.service.group.groups import Groups
from nsupervisor.service.instance.actor import Actor
from nsupervisor.service.instance.start_status import NO_START, StartStatus
from nsupervisor.service.jobs.registry import Registry

MAX_CONCURRENT_STARTS = 16
"""Most instances between the decision to start and the execution of the program; others wait for a slot. Otherwise the
last of thousands would reach its start timeout, and an urgent restart would queue behind all of them."""
DRAIN_TIMEOUT_S = 5.0
"""Seconds to wait for the last output of a removed instance, if a foreign process holds its pipe open."""

BETWEEN_GENERATIONS = frozenset({State.STOPPING, State.BACKOFF, *DOWN_STATES})
"""States in which no program of this generation is wanted any more."""

RUNNING_STATES = frozenset({State.RUNNING, State.READY, State.FROZEN})
"""States in which the program has been executed and is not being stopped."""

Result = tuple[bool, str]
"""Whether the command succeeded, and why not."""
REFUSED: Result = (False, "the service is stopping, so nothing starts any more; start the service again")
"""The answer to a start or restart while the service stops."""
OVERRULED: Result = (False, "a later start overruled it")
"""The answer to a stop."""
OVERRULED_BY_STOP: Result = (False, "a later stop overruled it")
"""The answer to a restart."""


@attrs.define(eq=False)
class StartJob:
    """A start that waits for the instance's own stop, for its dependencies, or for a start slot."""

    by: Initiator
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    ends_generation: bool = attrs.field(init=False, default=False)
    """Whether the command that has cancelled it ends the present generation."""
    blocked_by: Actor | None = attrs.field(init=False, default=None)
    """An instance that it requires and that is down with no start in progress; None if it waits for nothing like it."""
    unblocked_when: str = attrs.field(init=False, default="")
    """The event for which a blocked start waits, in words: "db is up"."""
    reported: str = attrs.field(init=False, default="")
    """The latest text about what it waits for."""
    is_posted: bool = attrs.field(init=False, default=False)
    """Whether the actor has the command to start."""
    overruled: list[Actor] = attrs.field(init=False, factory=list)
    """The instances whose starts it has cancelled because they conflict with it."""
    passed: set[Actor] = attrs.field(init=False, factory=set)
    """The instances that it only wants, or starts after, and has waited for already."""
    _waits: list[tuple[Actor, Wait]] = attrs.field(init=False, factory=list)
    _next: int = attrs.field(init=False, default=0)
    """The conditions before this one held when they were checked."""
    _revision: int = attrs.field(init=False, default=-1)

    def remaining_waits(self, actor: Actor, actors: Registry) -> Iterator[tuple[Actor, Wait]]:
        """Yield the instances whose conditions this start has yet to see, in order; the next call continues there.

        A start that waits for a thousand others, one after the other, must not check the first ones a thousand times.
        """
        if self._revision != actors.revision:
            self._revision, self._next = actors.revision, 0
            waits = dependencies.waits(actor.workload)
            self._waits = [(other, wait) for wait in waits for other in actors.instances(wait.name)]
        while self._next < len(self._waits):
            yield self._waits[self._next]
            self._next += 1

    def mark_posted(self) -> None:
        """Note that the actor gets the command to start now."""
        self.is_posted = True

    def check_again(self) -> None:
        """Check all conditions again: one may have ceased to hold meanwhile."""
        self._next = 0

    def wait_for(self, requirement: Actor | None, condition: DependencyCondition = "ready") -> None:
        """Note that a requirement blocks it until the condition holds, or that none does."""
        self.blocked_by = requirement
        word = "up" if condition == "ready" else condition
        self.unblocked_when = f"{requirement.name} is {word}" if requirement is not None else ""

    def report(self, text: str) -> bool:
        """Note the text about what it waits for; return whether it is another than before."""
        is_new, self.reported = text != self.reported, text
        return is_new

    def cancel(self, *, ends_generation: bool) -> None:
        """Cancel this start; `ends_generation`: the caller posts a stop or a restart next."""
        self.ends_generation = self.ends_generation or ends_generation
        self.scope.cancel()


@attrs.define(eq=False)
class Removal:
    """The removal of an instance that the configuration no longer has; a later reload may cancel it."""

    was_wanted: bool
    """Whether the instance was to run when the removal began."""


@attrs.define(eq=False)
class Jobs:
    """The start jobs and removals of all instances, and the operations that concern more than one instance."""

    actors: Registry
    groups: Groups
    context: ServiceContext
    nursery: trio.Nursery
    leftovers: dict[str, Actor] = attrs.field(factory=dict)
    """Instances that an earlier supervisor ran and that the configuration no longer has, until they are removed."""
    changed: ConditionVariable = attrs.field(init=False, factory=ConditionVariable)
    """Notified when a start has ended or is blocked. Who waits for transitions, too, notifies it of them."""
    membership_lock: trio.Lock = attrs.field(init=False, factory=trio.Lock)
    """Held while a reload is prepared, and while an instance is removed, so that neither sees half of the other."""
    is_stopping: bool = attrs.field(init=False, default=False)
    """Whether the service stops; nothing is started any more."""
    _start_jobs: dict[Actor, StartJob] = attrs.field(init=False, factory=dict)
    _blocked: dict[StartJob, None] = attrs.field(init=False, factory=dict)
    """The start jobs that are blocked."""
    _start_requests: Counter[Actor] = attrs.field(init=False, factory=Counter)
    """How often an operator has started or restarted each instance, or one that depends on it."""
    _stop_requests: Counter[Actor] = attrs.field(init=False, factory=Counter)
    """How often an operator has stopped each instance, or one that it requires."""
    _removals: dict[Actor, Removal] = attrs.field(init=False, factory=dict)
    _start_slots: trio.CapacityLimiter = attrs.field(
        init=False, factory=lambda: trio.CapacityLimiter(MAX_CONCURRENT_STARTS)
    )

    # ---- queries

    def has_pending_start(self, actor: Actor) -> bool:
        """Return whether a start of this instance waits."""
        return actor in self._start_jobs

    def will_start(self, actor: Actor) -> bool:
        """Return whether a start of this instance waits and has not become a command to its actor yet.

        From then on the instance may end before the job does: a start that fails at once, for example.
        """
        job = self._start_jobs.get(actor)
        return job is not None and not job.is_posted

    def is_blocked(self, actor: Actor) -> bool:
        """Return whether a start of this instance waits for a requirement that is down and does not start by itself."""
        job = self._start_jobs.get(actor)
        return job is not None and job.blocked_by is not None

    def is_starting(self, actor: Actor) -> bool:
        """Return whether a start of this instance waits for something that happens by itself."""
        return self.has_pending_start(actor) and not self.is_blocked(actor)

    def removal_of(self, actor: Actor) -> Removal | None:
        """Return the removal of this instance, if it is being removed."""
        return self._removals.get(actor)

    @property
    def all_actors(self) -> tuple[Actor, ...]:
        """The actors of all instances, with those that the configuration no longer has."""
        return (*self.actors.values(), *self.leftovers.values())

    def affected_by_stop(self, actor: Actor) -> list[Actor]:
        """Return the other instances that `stop` would stop first, because they require this one."""
        reached = {actor: None}
        chain = [actor]
        for instance in chain:  # grows in the loop
            new = [other for other in self.actors.stopped_with(instance.workload.name) if other not in reached]
            reached |= dict.fromkeys(new)
            chain += new
        return [instance for instance in chain[1:] if not self.is_down(instance)]

    def affected_by_start(self, actor: Actor) -> list[Actor]:
        """Return the other instances that a start would start first, because this one depends on them."""
        names = self._dependencies_of(actor)
        instances = (instance for name in names for instance in self.actors.instances(name))
        return [instance for instance in instances if not instance.is_up and instance is not actor]

    def held_down(self, names: Iterable[str]) -> Iterator[Actor]:
        """Yield the instances of these workloads, and of all that their starts start, that a request has stopped."""
        for name in dependencies.transitive_closure(names, self.actors.start_edges):
            for actor in self.actors.instances(name):
                if edges.is_held_down(actor.lifecycle):
                    yield actor

    def is_down(self, actor: Actor) -> bool:
        """Return whether it is down, and not about to start."""
        return actor.lifecycle.state in DOWN_STATES and not self.has_pending_start(actor)

    def start_obstacle(self, workload: str) -> Actor | None:
        """Return an instance that a start of the workload would start along although a request has stopped it."""
        held = self.held_down(self.actors.start_edges.get(workload, ()))
        return next((actor for actor in held if not self.has_pending_start(actor)), None)

    def startable(self, workload: str) -> list[Actor]:
        """Return the instances that may be started without a request: those that are down by themselves."""
        return [
            actor
            for actor in self.actors.instances(workload)
            if edges.may_be_started(actor.lifecycle)
            and not self.has_pending_start(actor)
            and self.removal_of(actor) is None
        ]

    def _dependencies_of(self, actor: Actor) -> tuple[str, ...]:
        """Return the workloads that `actor` requires or wants, directly or not."""
        start_edges = self.actors.start_edges
        return dependencies.transitive_closure(start_edges[actor.workload.name], start_edges)

    def _is_settled(self, actor: Actor) -> bool:
        """Return whether it is up, or down with no start in progress: something else has to happen first."""
        return actor.is_up or (actor.lifecycle.state in DOWN_STATES and not self.is_starting(actor))

    # ---- commands about one instance, with those that depend on it or that it depends on

    async def start_and_wait(self, actor: Actor, by: Initiator) -> Result:
        """Start an instance with its dependencies; return when the start has an outcome."""
        if self.is_stopping:
            return REFUSED
        self._overrule_stops(actor)
        if self._is_stopped_for_another(actor):
            self.restart_later(actor, by)
        elif actor.lifecycle.is_alive:
            await actor.ask(events.Start(by))
        else:
            self.start(extra=[actor], by=by)
        return await self.wait_settled(actor)

    async def restart_and_wait(self, actor: Actor, by: Initiator) -> Result:
        """Restart as systemd does: dependencies that do not run are started too, those that run stay untouched.

        Refused without an effect if the next start must fail. Race: that takes a moment to find out, and an operator
        may stop the instance meanwhile: the last command counts.
        """
        stop_requests = self._stop_requests[actor]
        if not self.is_stopping and (problem := await self._restart_problem(actor)):
            actor.log_event("warning", "warning", message=problem)
            return False, problem
        if self.is_stopping:
            return REFUSED
        if self._stop_requests[actor] != stop_requests:
            return OVERRULED_BY_STOP
        self._overrule_stops(actor)
        if self._is_stopped_for_another(actor):
            self.restart_later(actor, by)
            return await self.wait_settled(actor)
        not_running = [
            name
            for name in self._dependencies_of(actor)
            if not all(
                other.is_up or other.lifecycle.is_alive or self.is_starting(other)
                for other in self.actors.instances(name)
            )
        ]
        together = self._restarted_together(actor)
        if not actor.lifecycle.is_alive:
            self.start(extra=[actor], by=by)
        elif together:
            self._restart_together(actor, together, not_running, by)
        elif not_running:
            self.start(not_running, by=by)
            self._enqueue_start(actor, not_running, by, partial(self._stop_for_restart, actor, by))
            self._recheck_blocked()
        else:
            self._cancel_start(actor, ends_generation=True)
            await actor.ask(events.Restart(by))
        return await self.wait_settled(actor)

    def _is_stopped_for_another(self, actor: Actor) -> bool:
        """Return whether it stops while a workload that conflicts with it runs or is to start.

        A start that was noted at once would run both.
        """
        others = self.actors.conflicting(actor.workload.name)
        return actor.lifecycle.state is State.STOPPING and not all(self.is_down(other) for other in others)

    def _restarted_together(self, actor: Actor) -> dict[Actor, str]:
        """Return the other instances that restart with this one, each with the key that says so.

        Those that an operator has stopped, or that are down for another reason, stay so.
        """
        found: dict[Actor, str] = {}
        chain = [actor]
        for instance in chain:  # grows in the loop
            name = instance.workload.name
            for other in self.actors.restarted_with(name):
                if other is not actor and other not in found and not self.is_down(other):
                    found[other] = dependencies.restarted_with(other.workload)[name]
                    chain.append(other)
        return found

    def _restart_together(
        self, actor: Actor, others: Mapping[Actor, str], not_running: Iterable[str], by: Initiator
    ) -> None:
        """Restart an instance and those that restart with it, each in the order of its dependencies."""
        name = actor.workload.name
        missing = [other for needed in not_running for other in self.actors.instances(needed) if not other.is_up]
        starts = {actor: by, **{other: by_relation(name, key) for other, key in others.items()}}
        starts |= {other: by for other in missing if other not in starts}
        ordered = {other: dependencies.start_dependencies(other.workload) for other in starts}
        self.begin(starts, {}, ordered)

    def restart_later(self, actor: Actor, by: Initiator) -> None:
        """Stop an instance, and start it as soon as all that it requires is up; return at once."""
        self._enqueue_start(actor, (), by, partial(self._stop_for_restart, actor, by))
        self._recheck_blocked()

    def start_later(self, actor: Actor, by: Initiator, delay_s: float, is_needed: Callable[[], bool]) -> None:
        """Start an instance after a delay, with what it needs, if it is needed then; return at once."""
        self._enqueue_start(actor, (), by, partial(self._wait_for_delay, actor, by, delay_s, is_needed))
        self._recheck_blocked()

    async def _wait_for_delay(self, actor: Actor, by: Initiator, delay_s: float, is_needed: Callable[[], bool]) -> bool:
        if delay_s:
            text = f"waits {delay_s:g} s, then starts {by.phrase}"
            actor.set_start_status(attrs.evolve(actor.start_status, waits_for=text))
            await trio.sleep(delay_s)
        if not is_needed():
            return False
        self.start(self.actors.start_edges[actor.workload.name], by=by)
        return True

    def _overrule_stops(self, actor: Actor) -> None:
        """Overrule the stops of an instance, and of those that it depends on, that still wait for others to stop."""
        self._cancel_conflicting_starts(actor)
        names = self._dependencies_of(actor)
        self._start_requests.update([actor, *(other for name in names for other in self.actors.instances(name))])

    async def _restart_problem(self, actor: Actor) -> str:
        """Return why a restart would only end the program that runs; "" if it would not, or none runs.

        If a dependency is started first, it may make what is missing (a migration, for example).
        """
        if actor.lifecycle.state not in RUNNING_STATES or self.affected_by_start(actor):
            return ""
        generation = actor.lifecycle.generation
        obstacle = await actor.find_start_obstacle()
        if obstacle is None or actor.lifecycle.state not in RUNNING_STATES or actor.lifecycle.generation != generation:
            return ""  # the program may have ended meanwhile
        return f"not restarted, as the next start would fail: {obstacle.message}; the program that runs has been kept"

    async def stop_with_requirers(self, actor: Actor, by: Initiator) -> Result:
        """Stop an instance after those that require it; the message of a success names these.

        While those stop, an operator may start the instance, or one that depends on it: the last command counts.
        """
        stopped_first = [other.name for other in self.affected_by_stop(actor)]
        order = self._stop_order(actor)
        self._stop_requests.update(order.keys())
        start_requests = {one: self._start_requests[one] for one in order}
        stopped = {one: trio.Event() for one in order}
        results: dict[Actor, Result] = {}

        async def stop(one: Actor, initiator: Initiator, before: Iterable[Actor]) -> None:
            for other in before:
                await stopped[other].wait()
            if before and self._start_requests[one] != start_requests[one]:
                results[one] = OVERRULED
            else:
                results[one] = await self.stop_and_wait(one, initiator)
            stopped[one].set()

        async with trio.open_nursery() as nursery:
            for one, (key, before) in order.items():
                is_consequence = one is not actor and by.kind != "dependency"
                initiator = by_relation(actor.workload.name, key) if is_consequence else by
                nursery.start_soon(stop, one, initiator, before)
        ok, message = results[actor]
        return ok, f"after {', '.join(stopped_first)}, which cannot run without it" if ok and stopped_first else message

    def _stop_order(self, actor: Actor) -> dict[Actor, tuple[str, list[Actor]]]:
        """Return the instances that stop with this one, itself first, each with the key and those that stop before."""
        order: dict[Actor, tuple[str, list[Actor]]] = {}
        keys = {actor: ""}
        queue = [actor]
        for one in queue:  # grows in the loop
            name = one.workload.name
            before = [
                other for other in self.actors.stopped_with(name) if not self.is_down(other) and other is not actor
            ]
            order[one] = keys[one], before
            for other in before:
                if other not in keys:
                    keys[other] = dependencies.stopped_with(other.workload)[name]
                    queue.append(other)
        return order

    async def stop_and_wait(self, actor: Actor, by: Initiator) -> Result:
        """Stop this instance alone; a start of it that waits is cancelled."""
        self._cancel_start(actor, ends_generation=True)
        if by != SHUTDOWN:  # the next supervisor carries on with what only the end of the service cancelled
            actor.set_start_status(NO_START)
        await actor.ask(events.Stop(by))
        await actor.wait_until(_has_stopped)
        return OVERRULED if actor.lifecycle.should_run else (True, "")

    async def wait_settled(self, actor: Actor) -> Result:
        """Wait until a start has an outcome: up, down, blocked, or a state that lasts (back-off, frozen)."""
        lasting_states = {*DOWN_STATES, State.BACKOFF, State.FROZEN}
        await actor.wait_until(
            lambda lifecycle: (
                self.is_blocked(actor)
                or (not self.has_pending_start(actor) and (actor.is_up or lifecycle.state in lasting_states))
            )
        )
        if actor.is_up:
            return True, ""
        if is_skipped(actor.lifecycle) and not self.has_pending_start(actor):
            return True, actor.lifecycle.reason
        job = self._start_jobs.get(actor)
        then = f"; it starts as soon as {job.unblocked_when}" if job is not None and job.blocked_by else ""
        reason = actor.start_status.waits_for or actor.lifecycle.reason or "a stop overruled the start"
        return False, f"{reason}{then}"

    # ---- starts

    def start(self, names: Iterable[str] = (), *, extra: Iterable[Actor] = (), by: Initiator = OPERATOR) -> None:
        """Start workloads with everything that they require or want and that is not up, each after its dependencies.

        Returns at once.
        """
        start_edges = self.actors.start_edges
        chosen = dict.fromkeys(extra)
        needed = [name for actor in chosen for name in start_edges[actor.workload.name]]
        for name in dependencies.transitive_closure([*names, *needed], start_edges):
            # `is_up` includes a oneshot that is done.
            chosen |= dict.fromkeys(instance for instance in self.actors.instances(name) if not instance.is_up)
        starting = {actor.workload.name for actor in chosen}
        for actor in chosen:
            if not self.has_pending_start(actor) and not actor.lifecycle.is_alive:
                self._enqueue_start(actor, starting, by)
        self._recheck_blocked()

    def _enqueue_start(
        self,
        actor: Actor,
        starting: Collection[str],
        by: Initiator,
        before_start: Callable[[], Awaitable[bool]] | None = None,
    ) -> StartJob:
        """Start `actor` once its dependencies are up.

        Returns the job at once. `before_start` runs first, and returns whether there is still something to start. An
        earlier job is cancelled. The caller calls `_recheck_blocked` when it has enqueued all.
        """
        self._cancel_start(actor)
        self._start_jobs[actor] = job = StartJob(by)
        job.overruled.extend(self._cancel_conflicting_starts(actor))
        if self.is_stopping:
            job.cancel(ends_generation=True)
        actor.set_start_status(StartStatus(by, actor.start_status.waits_for, actor.lifecycle.generation))
        self.nursery.start_soon(self._run_start, actor, job, starting, before_start)
        return job

    def _cancel_conflicting_starts(self, actor: Actor) -> list[Actor]:
        """Cancel the starts that wait of workloads that conflict with this one: the last command wins."""
        cancelled = []
        for other in self.actors.conflicting(actor.workload.name):
            if self.has_pending_start(other):
                cancelled.append(other)
                self._cancel_start(other)
                other.set_start_status(NO_START)
                if not other.lifecycle.is_alive:  # what runs is stopped when this one can start
                    other.post(events.Stop(by_relation(actor.workload.name, "conflicts")))
        return cancelled

    async def _stop_conflicting(self, actor: Actor, job: StartJob) -> None:
        """Stop what must not run together with this instance, which can start otherwise.

        Also those whose start it has cancelled: the message that starts them may be in their mailbox.
        """
        by = by_relation(actor.workload.name, "conflicts")
        conflicting = self.actors.conflicting(actor.workload.name)
        others = [other for other in conflicting if other in job.overruled or not self.is_down(other)]
        async with trio.open_nursery() as nursery:
            for other in others:
                nursery.start_soon(self.stop_with_requirers, other, by)
        job.overruled.clear()

    def _has_conflict(self, actor: Actor) -> bool:
        """Return whether a workload that conflicts with this one still runs."""
        return any(not self.is_down(other) for other in self.actors.conflicting(actor.workload.name))

    def _cancel_start(self, actor: Actor, *, ends_generation: bool = False) -> None:
        if (job := self._start_jobs.get(actor)) is not None:
            job.cancel(ends_generation=ends_generation)

    async def _run_start(
        self,
        actor: Actor,
        job: StartJob,
        starting: Collection[str],
        before_start: Callable[[], Awaitable[bool]] | None,
    ) -> None:
        has_slot = False
        with job.scope:
            if before_start is None or await before_start():
                while not has_slot:
                    await self._wait_for_dependencies(actor, job, starting)
                    if job.overruled or self._has_conflict(actor):
                        await self._stop_conflicting(actor, job)
                        job.check_again()
                        continue
                    await self._start_slots.acquire_on_behalf_of(job)
                    has_slot = True
                    job.check_again()
                    # One may have ended meanwhile, or a workload that conflicts with it may have started.
                    if self._missing_dependency(actor, job, starting) is not None or self._has_conflict(actor):
                        self._start_slots.release_on_behalf_of(job)
                        has_slot = False
                await trio.lowlevel.checkpoint_if_cancelled()
                job.mark_posted()
                await actor.ask(events.Start(job.by))
        self._set_blocked(job, None)
        if self._start_jobs.get(actor) is job:
            del self._start_jobs[actor]
            if not self.is_stopping and actor not in self._removals:
                actor.set_start_status(NO_START)
        actor.wake_waiters()
        self.changed.notify()
        if has_slot:  # until the program has been executed, or will not be
            await actor.wait_until(lambda lifecycle: lifecycle.state is not State.STARTING)
            self._start_slots.release_on_behalf_of(job)

    async def _wait_for_dependencies(self, actor: Actor, job: StartJob, starting: Collection[str]) -> None:
        """Wait until the condition of each requirement holds, and no other dependency is still starting.

        What it waits for is in its status and in the records; a start that becomes blocked wakes what waits for it.
        """
        while (missing := self._missing_dependency(actor, job, starting)) is not None:
            other, wait = missing
            self._set_blocked(job, other if self._is_settled(other) else None, wait.condition)
            self._report_wait(actor, job, other, wait)
            before = self._progress(other, job)

            def has_changed(_: Lifecycle, other: Actor = other, before: tuple[object, ...] = before) -> bool:
                return self._progress(other, job) != before

            await other.wait_until(has_changed)

    def _report_wait(self, actor: Actor, job: StartJob, other: Actor, wait: Wait) -> None:
        """Show in the status and in the records for what the start of `actor` waits."""
        condition = "" if wait.condition == "ready" else f" ({wait.condition})"
        if job.blocked_by is None:
            text = f"waits for {other.name}{condition}"
        elif self.is_blocked(other):
            text = f"requires {other.name}{condition}, which {other.start_status.waits_for}"
        else:
            state = other.lifecycle.state.value
            text = f"requires {other.name}{condition}, which is {state}: {other.lifecycle.reason}"
        if job.report(text):
            actor.set_start_status(attrs.evolve(actor.start_status, waits_for=text))
            if job.blocked_by is None:
                self.context.journal.log.info("waiting", workload=actor.name, message=text)
            else:
                text = f"{text}; {actor.name} starts as soon as {job.unblocked_when}"
                self.context.journal.log.warning("waiting", workload=actor.name, message=text)
        if job.blocked_by is not None:
            actor.wake_waiters()
            self.changed.notify()

    def _missing_dependency(self, actor: Actor, job: StartJob, starting: Collection[str]) -> tuple[Actor, Wait] | None:
        """Return the first instance that the start of `actor` has to wait for, and how; None if it may start.

        starting: the workloads whose start was requested with it.
        """
        for other, wait in job.remaining_waits(actor, self.actors):
            if other in job.passed or edges.is_met(wait.condition, other.lifecycle, other.workload):
                continue
            if not wait.is_required:
                is_requested = wait.name in starting or other.lifecycle.is_alive
                if not is_requested or self._is_settled(other):
                    job.passed.add(other)
                    continue
            return other, wait
        return None

    def _progress(self, actor: Actor, job: StartJob) -> tuple[object, ...]:
        """Return what has to change before a start that waits for `actor` looks again."""
        lifecycle = actor.lifecycle
        reasons = lifecycle.reason, actor.start_status.waits_for
        return actor.is_up, self._is_settled(actor), lifecycle.state, reasons, job.blocked_by, self.actors.revision

    def _set_blocked(self, job: StartJob, requirement: Actor | None, condition: DependencyCondition = "ready") -> None:
        """Note that a requirement blocks a start, or that none does: see `StartJob.wait_for`."""
        job.wait_for(requirement, condition)
        if requirement is None:
            self._blocked.pop(job, None)
        else:
            self._blocked[job] = None

    def _recheck_blocked(self) -> None:
        """Have all blocked starts look again: what they require was started, or their configuration has changed."""
        requirements: dict[Actor, None] = {}
        for job in self._blocked:
            if (other := job.blocked_by) is not None:
                requirements[other] = None
                job.wait_for(None)
        self._blocked.clear()
        for other in requirements:
            other.wake_waiters()

    async def _stop_for_restart(self, actor: Actor, by: Initiator) -> bool:
        """Stop an instance for a start that follows; return False if another command has started it meanwhile."""
        await trio.lowlevel.checkpoint_if_cancelled()
        await actor.ask(events.Stop(by))
        await actor.wait_until(_has_stopped)
        return not actor.lifecycle.should_run

    # ---- many instances at once

    def begin(
        self,
        starts: Mapping[Actor, Initiator],
        removals: Mapping[Actor, Initiator],
        previous_dependencies: Mapping[Actor, Collection[str]],
    ) -> Transaction:
        """Start, restart and remove instances, each in its order; return at once.

        starts, removals: the instances, each with its initiator. An instance that runs is stopped before its start.
        previous_dependencies: for each of these instances that existed before, the workloads that it depended on until
        now: they stop after it.
        """
        transaction = Transaction(self, starts, removals, previous_dependencies)
        transaction.begin()
        self._recheck_blocked()
        return transaction

    def cancel_removal(self, actor: Actor) -> None:
        """Keep an instance that was being removed: the configuration has it again."""
        if self._removals.pop(actor, None) is not None:
            actor.set_start_status(NO_START)

    def _begin_removal(self, actor: Actor, by: Initiator) -> Removal:
        removal = Removal(actor.lifecycle.should_run or self.has_pending_start(actor))
        self._removals[actor] = removal
        self._cancel_start(actor)
        # For a supervisor that is started after a kill, with a file that has the instance again.
        status = StartStatus(by, replaces=actor.lifecycle.generation) if removal.was_wanted else NO_START
        actor.set_start_status(status)
        return removal

    async def _stop_for_removal(self, actor: Actor, by: Initiator) -> None:
        self._cancel_start(actor, ends_generation=True)
        await actor.ask(events.Stop(by))
        await actor.wait_until(_has_stopped)

    async def _remove(self, actor: Actor, removal: Removal) -> bool:
        """Remove a stopped instance with its cgroup; return False if a later reload or command keeps it."""
        with trio.move_on_after(DRAIN_TIMEOUT_S):
            await actor.wait_drained()
        async with self.membership_lock:
            if self._removals.get(actor) is not removal:
                return False
            del self._removals[actor]
            self._start_requests.pop(actor, None)
            self._stop_requests.pop(actor, None)
            if actor.lifecycle.state is not State.STOPPED:
                return False
            owner = self.leftovers if self.leftovers.get(actor.name) is actor else self.actors
            # All in one step: a command on a group must not find a member that no longer exists.
            del owner[actor.name]
            self.groups.remove(actor)
            try:
                await actor.retire()
            except trio.Cancelled:  # the end of the service closes the cgroups of `actors` and `leftovers` only
                actor.close_cgroup()
                raise
            self.context.state.save(actor.name, None)
            actor.wake_waiters()
            try:
                actor.cgroup.remove()
            except CgroupError as error:
                self.context.journal.log.error("warning", workload=actor.name, message=str(error))
        return True

    # ---- the end of the service

    def begin_stop(self) -> None:
        """Start nothing from now on; `stop_all` follows."""
        self.is_stopping = True
        for job in self._start_jobs.values():
            job.cancel(ends_generation=True)
        for actor in self.all_actors:  # not only after its dependents: its next generation would start meanwhile
            if actor not in self._removals:
                actor.begin_service_stop()

    async def stop_all(self) -> None:
        """Stop everything, dependents first; return when no process is left."""

        async def stop_after_dependents(actor: Actor) -> None:
            dependents = self.actors.dependents(actor.workload.name)
            # A restart must not start another generation while dependents stop.
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait_for_dependents, dependents, nursery.cancel_scope)
                await actor.wait_until(lambda lifecycle: lifecycle.state in BETWEEN_GENERATIONS)
                nursery.cancel_scope.cancel()
            await self.stop_and_wait(actor, SHUTDOWN)

        async def wait_for_dependents(dependents: Iterable[Actor], scope: trio.CancelScope) -> None:
            for other in dependents:
                await other.wait_until(lambda lifecycle: lifecycle.state is State.STOPPED)
            scope.cancel()

        self.begin_stop()
        stopping: list[tuple[Actor, trio.Event]] = []
        async with trio.open_nursery() as nursery:
            for actor in self.all_actors:
                if actor in self._removals:  # it is being stopped, in the order of the configuration before
                    nursery.start_soon(actor.wait_until, lambda lifecycle: lifecycle.state in DOWN_STATES)
                elif self.actors.dependents(actor.workload.name):
                    nursery.start_soon(stop_after_dependents, actor)
                else:  # without a task for each
                    self._cancel_start(actor, ends_generation=True)
                    stopping.append((actor, actor.call(events.Stop(SHUTDOWN))))
            for actor, handled in stopping:
                if not handled.is_set():
                    await handled.wait()
                await actor.wait_until(_has_stopped)

    def kill_all(self) -> None:
        """Send SIGKILL to everything that still lives, for a second stop signal."""
        for actor in self.all_actors:
            actor.post(events.Kill(SHUTDOWN))

    async def wait_drained(self) -> None:
        """Wait until all output of ended programs is in the journal."""
        for actor in list(self.actors.values()):
            await actor.wait_drained()


@attrs.define(eq=False)
class Transaction:
    """Starts, restarts and removals that were requested together: each waits for its dependencies, and no other.

    See `Jobs.begin` for the first attributes.
    """

    jobs: Jobs
    starts: Mapping[Actor, Initiator]
    removals: Mapping[Actor, Initiator]
    previous_dependencies: Mapping[Actor, Collection[str]]
    _stopped: dict[Actor, trio.Event] = attrs.field(init=False, factory=dict)
    """By instance that existed before: set when it has stopped or need not stop, so that its dependencies may stop."""
    _stop_first: dict[str, list[Actor]] = attrs.field(init=False, factory=dict)
    """By workload: the instances that stop before it does."""
    _start_jobs: dict[str, dict[Actor, StartJob]] = attrs.field(init=False, factory=dict)
    """By workload: the start jobs of its instances."""
    _removed: dict[str, list[Actor]] = attrs.field(init=False, factory=dict)
    """By workload: its instances that are removed; the others start after these have stopped."""
    _removal_of: dict[Actor, Removal] = attrs.field(init=False, factory=dict)

    def begin(self) -> None:
        """Begin all start jobs and removals at once; a task of the caller then completes each removal (`remove`)."""
        for actor, names in self.previous_dependencies.items():
            self._stopped[actor] = trio.Event()
            for name in names:
                self._stop_first.setdefault(name, []).append(actor)
        for actor, by in self.removals.items():
            self._removal_of[actor] = self.jobs._begin_removal(actor, by)
            self._removed.setdefault(actor.workload.name, []).append(actor)
        starting = {actor.workload.name for actor in self.starts}
        for actor, by in self.starts.items():
            job = self.jobs._enqueue_start(actor, starting, by, partial(self._stop_before_start, actor))
            self._start_jobs.setdefault(actor.workload.name, {})[actor] = job

    async def remove(self, actor: Actor) -> bool:
        """Stop and remove an instance; return False if a later reload or command keeps it."""
        removal = self._removal_of[actor]
        try:
            await self._wait_for_dependents(actor)
            if self.jobs.removal_of(actor) is removal:
                await self.jobs._stop_for_removal(actor, self.removals[actor])
        finally:
            self._stopped[actor].set()
        return await self.jobs._remove(actor, removal)

    async def _stop_before_start(self, actor: Actor) -> bool:
        """Before a start: stop the running program after its dependents; then wait for its dependencies.

        Returns whether there is still something to start.
        """
        after = [name for name in dependencies.start_dependencies(actor.workload) if name in self._start_jobs]
        generation = actor.lifecycle.generation
        try:
            if actor.lifecycle.is_alive:
                await self._wait_for_dependents(actor)
                if not after and actor in self._stopped:
                    return await self._restart_at_once(actor)
                if not await self.jobs._stop_for_restart(actor, self.starts[actor]):
                    return False
        finally:
            if actor in self._stopped:
                self._release_dependencies(actor, generation)
        for removed in self._removed.get(actor.workload.name, ()):
            await self._stopped[removed].wait()
        for name in after:
            for other, job in self._start_jobs[name].items():
                await other.wait_until(partial(self._is_finished, other, job))
        return True

    def _release_dependencies(self, actor: Actor, generation: int) -> None:
        """Let the dependencies of `actor` stop; if a later command ends this generation instead of the job, after it.

        A stop cancels the job while the program is still stopping, or runs.
        """
        job = self._start_jobs[actor.workload.name][actor]
        if job.ends_generation and actor.lifecycle.is_alive:
            self.jobs.nursery.start_soon(self._release_after_end, actor, generation)
        else:
            self._stopped[actor].set()

    async def _release_after_end(self, actor: Actor, generation: int) -> None:
        await actor.wait_until(lambda lifecycle: lifecycle.generation > generation or not lifecycle.is_alive)
        self._stopped[actor].set()

    async def _restart_at_once(self, actor: Actor) -> bool:
        """Restart an instance that nothing has to be started for; return False, as no start is left to do."""
        generation = actor.lifecycle.generation
        await trio.lowlevel.checkpoint_if_cancelled()
        await actor.ask(events.Restart(self.starts[actor]))
        await actor.wait_until(lambda lifecycle: lifecycle.generation > generation or not lifecycle.is_alive)
        return False

    async def _wait_for_dependents(self, actor: Actor) -> None:
        for other in self._stop_first.get(actor.workload.name, ()):
            await self._stopped[other].wait()

    def _is_finished(self, actor: Actor, job: StartJob, _: Lifecycle) -> bool:
        """Return whether a start is over, or blocked: then it may last until an operator does something."""
        return self.jobs._start_jobs.get(actor) is not job or job.blocked_by is not None


def _has_stopped(lifecycle: Lifecycle) -> bool:
    """Return whether a stop has an outcome: it has stopped, or a later start has overruled it."""
    return lifecycle.should_run or lifecycle.state is State.STOPPED
