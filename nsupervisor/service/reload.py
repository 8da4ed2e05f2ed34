"""Reload: change from the configuration in force to another one while everything runs.

A reload has three parts. The first does everything that may fail: it makes new cgroups and changes limits; if the
kernel refuses one, everything is put back, and nothing has happened. The second part runs without an await: the plan is
made from the present state, and each instance gets its new settings. From then on the new file is in force, whatever
happens.

The third part takes time: what needs a new process is restarted, new instances start, removed ones stop. Each waits for
its dependencies and for nothing else. Meanwhile every start or restart is the `pending_start` of its instance, as for
starts that operators ask for. So a later command, from an operator or a later reload, cancels it and wins. The client
that asked for the reload may disconnect: the reload continues.
"""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs
import trio

from nsupervisor.cgroups import CgroupError, Host
from nsupervisor.config.files import read_text
from nsupervisor.config.load import parse
from nsupervisor.config.model import Config, Resources, Supervisor, Workload
from nsupervisor.config.positions import Positions, scan
from nsupervisor.config.problems import ConfigError, Problem
from nsupervisor.core import events, order
from nsupervisor.core.lifecycle import Life, State
from nsupervisor.core.plan import Do, Plan, Step, plan
from nsupervisor.service.actor import Actor, Leaving
from nsupervisor.service.announce import announce
from nsupervisor.service.capacity import make_room
from nsupervisor.service.comparing import Contents, read_contents, running
from nsupervisor.service.group import Group
from nsupervisor.service.groups import Groups
from nsupervisor.service.instance import Home, make, settle, usable
from nsupervisor.service.requirements import unmet
from nsupervisor.service.world import World
from nsupervisor.wire import by_wire_name

if TYPE_CHECKING:
    from nsupervisor.service.supervisor import Supervisor as Service

LAST_WORDS = 5.0
"""Seconds to wait for the last output of a removed instance, if a foreign process holds its pipe open."""
BY = "reload"
_LATER = "adds, removes or moves groups, which a reload cannot do; restart the service"


@attrs.define(eq=False)
class Reloader:
    """Makes reload plans, and carries them out."""

    service: Service
    host: Host
    home: Home
    world: World
    left: Mapping[str, Actor]
    """Instances that an earlier supervisor ran and that the configuration no longer has, while they are stopped."""
    turn: trio.Lock = attrs.field(init=False, factory=trio.Lock)
    """Held by one reload at a time, in the order in which the files were submitted."""
    _busy: int = 0

    async def plan(self, path: str | None, text: str | None) -> dict[str, Any]:
        """Return what a reload would do: the object `Plan` of `nsupervisor schema api`.

        Raises ConfigError with every problem.
        """
        loaded = await self._read(path, text)
        return self._plan(loaded).plain(loaded.config.path)

    async def reload(self, path: str | None, text: str | None, by: str) -> Progress:
        """Reload a file; return when it is in force.

        `text` is its contents and `path` its name; by default the file in force is read again. Raises ConfigError with
        every problem, and then nothing has changed.

        A task of the service does the work, so the caller may be cancelled.
        """
        request = _Asked(path, text, by)
        self.service.nursery.start_soon(self._reload, request)
        await request.answered.wait()
        if request.error is not None:
            raise request.error
        assert request.progress is not None
        return request.progress

    async def _reload(self, asked: _Asked) -> None:
        try:
            async with self.turn:
                loaded = await self._read(asked.path, asked.text)
                prepared = await self._prepare(loaded.config, self._plan(loaded))
                # The state may have changed during the awaits, so the plan is made again from the present state. No
                # await from here.
                asked.progress = self._begin(loaded.config, self._plan(loaded), prepared, asked.by)
        except ConfigError as error:
            asked.error = error
            for problem in error.problems:
                self.world.journal.log.error("reload refused", message=str(problem))
        finally:
            asked.answered.set()

    @property
    def _groups(self) -> Groups:
        return self.home[1]

    # ---- before anything changes

    async def _read(self, path: str | None, text: str | None) -> _Read:
        if self.service.stopping:
            raise _refusal(path or self.service.config.path, "the supervisor is stopping; start it with the new file")
        return await trio.to_thread.run_sync(_load, path or self.service.config.path, text, self.host)

    def _plan(self, read: _Read) -> Plan:
        config, positions = read.config, read.positions
        current = [running(actor, config, read.contents) for actor in self.service.actors.values()]
        new_plan = plan(self.service.config, config, current)
        old_config = self.service.config
        group_parents = [{name: group.group for name, group in side.groups.items()} for side in (old_config, config)]
        if group_parents[0] != group_parents[1]:
            raise ConfigError([Problem(config.path, positions.line(("group",)), "group", _LATER)])
        if new_plan.refused:
            raise ConfigError(
                Problem(
                    config.path,
                    positions.line(("supervisor", change.key)),
                    f"supervisor.{change.key}",
                    f"cannot change while the service runs ({change.before} → {change.after}); "
                    "write what it was, or stop the service and start it with this file",
                )
                for change in new_plan.refused
            )
        return new_plan

    # ---- steps that may fail, and are then put back

    async def _prepare(self, config: Config, found: Plan) -> _Made:
        """Make new instances with their cgroups and supported rules, and change limits.

        The limits of an instance that will be restarted are applied with its next process. Raises ConfigError with
        everything that failed, after everything has been put back.
        """
        prepared = _Made()
        errors: list[CgroupError] = []
        before: dict[Actor, Resources] = {}

        async def limit(actor: Actor, resources: Resources) -> None:
            before_change = actor.resources
            try:
                await actor.setter.go(resources)
                before[actor] = before_change
            except CgroupError as error:
                errors.append(error)

        async with trio.open_nursery() as nursery:
            for step in found.steps:
                if step.workload is None or step.resources is None:
                    continue
                try:
                    if step.name in self.left:
                        reason = (
                            "what an earlier supervisor has left of it is still being stopped; reload when it is gone"
                        )
                        raise CgroupError(f"workload.{step.workload.name}: {reason}")
                    if not step.known:
                        prepared.new[step.name] = make(
                            step.name, step.workload, step.instance, self.home, self.world, step.resources
                        )
                        continue
                    actor = self.service.actors[step.name]
                    prepared.able[step.name] = self._able(actor, step.workload)
                except CgroupError as error:
                    errors.append(error)
                    continue
                if step.resources != actor.setter.given and not (step.do is Do.RESTART and actor.life.alive):
                    prepared.limited.add(step.name)
                    nursery.start_soon(limit, actor, step.resources)
        groups: list[tuple[Group, Resources]] = []
        for group, wanted in self._groups.differing(config):
            try:
                before_change = group.resources
                await self._groups.go(group, wanted)
                groups.append((group, before_change))
            except CgroupError as error:
                errors.append(error)
        if not errors:
            return prepared
        for group, resources in reversed(groups):
            with self._told(group.name):
                await group.go(resources)
        for actor, resources in before.items():
            with self._told(actor.name):
                await actor.setter.go(resources)
        for actor in prepared.new.values():
            self._groups.remove(actor)
            with self._told(actor.name):
                actor.cgroup.remove()
        raise ConfigError(Problem(config.path, 0, "", str(error)) for error in errors)

    def _able(self, actor: Actor, workload: Workload) -> Workload:
        """Return the workload with the rules that this host can evaluate."""
        if workload.policy == actor.configured.policy:
            return attrs.evolve(workload, policy=actor.workload.policy)
        return usable(workload, actor.name, actor.cgroup, self.world)

    # ---- steps without an await

    def _begin(self, config: Config, found: Plan, made: _Made, by: str) -> Progress:
        run = _Doing(self, found, Progress())
        old = {actor.workload.name: order.before(actor.workload) for actor in self.service.actors.values()}
        self._adopt(found, made)
        self._go_over(config, found)
        self.world.journal.log.info("reload", config=config.path, cause={"by": by}, **_counts(found))
        run.progress.say({"event": "plan", **found.plain(config.path)})
        run.begin(old)
        return run.progress

    def _adopt(self, found: Plan, made: _Made) -> None:
        """Give each instance the settings of the file."""
        actors = self.service.actors
        for step in found.steps:
            if step.workload is None or step.resources is None:
                continue
            if step.name in made.new:
                actors[step.name] = made.new[step.name]
                self.service.nursery.start_soon(actors[step.name].run)
                continue
            actor = actors[step.name]
            actor.leaving = None
            actor.adopt(step.workload, made.able[step.name])
            settle(actor, step.workload, self.home)
            if step.name not in made.limited:  # the limits are applied with its next process
                actor.setter.resources = step.resources
            if step.changes:
                actor.remember()
                changes = [by_wire_name(change) for change in step.changes]
                more = {"action": BY, "cause": {"by": BY}, "do": step.do.value, "changes": changes}
                actor.voice.say(actor.life.generation, "action", **more)
        ordered = {step.name: actors[step.name] for step in found.steps}
        actors.clear()  # keep the same dict, because other objects refer to it
        actors.update(ordered)

    def _go_over(self, config: Config, found: Plan) -> None:
        """Put the file in force, with its groups and the keys of [supervisor] that a running service can change."""
        for group, wanted in self._groups.differing(config):
            group.adopt(wanted)
        self._groups.config = config
        make_room(config, self.host)
        if found.groups:
            changes = [by_wire_name(change) for change in found.groups]
            self.world.journal.log.info("groups reloaded", changes=changes)
        level = config.supervisor.log_level
        self.world.journal.set_level(level)
        for change in found.service:
            if not change.live:
                text = f"supervisor.{change.key} counts when the service starts the next time: {change.after}"
                self.world.journal.log.warning("reload", message=text)
        in_force: Supervisor = attrs.evolve(self.service.config.supervisor, log_level=level)
        self.service.config = attrs.evolve(config, supervisor=in_force)

    @contextmanager
    def _told(self, name: str) -> Iterator[None]:
        """Log what fails while something is put back or removed, and continue."""
        try:
            yield
        except CgroupError as error:
            self.world.journal.log.error("warning", workload=name, message=str(error))

    # ---- during each reload

    @contextmanager
    def reloading(self) -> Iterator[None]:
        """Notify the service manager of the first reload that begins and the last that ends (sd_notify(3))."""
        self._busy += 1
        if self._busy == 1:
            announce(self.world.journal, "RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            yield
        finally:
            self._busy -= 1
            if not self._busy and not self.service.stopping:
                announce(self.world.journal, "READY=1")

    async def remove(self, actor: Actor, leaving: Leaving) -> bool:
        """Remove a stopped instance with its cgroup; return False if a later reload or command keeps it."""
        with trio.move_on_after(LAST_WORDS):
            await actor.drained()
        async with self.turn:  # so that no reload sees a partly removed instance
            if actor.leaving is not leaving or actor.life.state is not State.STOPPED:
                return False
            del self.service.actors[actor.name]
            await actor.retire()
            self._groups.remove(actor)
            self.world.state.keep(actor.name, None)
            with self._told(actor.name):
                actor.cgroup.remove()
        return True


@attrs.define(eq=False)
class _Asked:
    """A request to reload, with its outcome."""

    path: str | None
    text: str | None
    by: str
    answered: trio.Event = attrs.field(factory=trio.Event)
    progress: Progress | None = None
    error: ConfigError | None = None


@attrs.frozen
class _Read:
    """A file, the positions in it, and the contents of the environment files it names."""

    config: Config
    positions: Positions
    contents: Contents


@attrs.define
class _Made:
    """The results of the steps that a reload takes before it begins."""

    new: dict[str, Actor] = attrs.field(factory=dict)
    able: dict[str, Workload] = attrs.field(factory=dict)
    """The workload of each instance that stays, without the rules that this host cannot evaluate."""
    limited: set[str] = attrs.field(factory=set)
    """The instances whose limits have been changed."""


@attrs.define(eq=False)
class _Doing:
    """The third part of one reload."""

    reloader: Reloader
    found: Plan
    progress: Progress
    _down: dict[str, trio.Event] = attrs.field(init=False, factory=dict)
    """By instance: set when it has stopped or need not stop, so that those that it depends on may stop."""
    _actors: dict[str, Actor] = attrs.field(init=False, factory=dict)
    _launches: dict[str, trio.CancelScope] = attrs.field(init=False, factory=dict)
    _before: dict[str, list[str]] = attrs.field(init=False, factory=dict)
    """By workload: the instances in `_stopped` that must have stopped before it does."""
    _renamed: dict[str, list[str]] = attrs.field(init=False, factory=dict)
    """By workload: its instances in `_stopped` that the file lacks; the others start after these have stopped."""

    def begin(self, old: dict[str, tuple[str, ...]]) -> None:
        """Begin all steps at once. `previous_order` is what each workload depended on until now."""
        service = self.reloader.service
        steps = [step for step in self.found.steps if step.do not in (Do.NONE, Do.LIVE)]
        self._actors = {step.name: service.actors[step.name] for step in steps}
        self._down = {step.name: trio.Event() for step in steps if step.known}
        for name in self._down:
            for other in old[self._actors[name].workload.name]:
                self._before.setdefault(other, []).append(name)
        starting = {step.workload.name for step in steps if step.workload is not None}
        for step in steps:
            actor = self._actors[step.name]
            if step.do is Do.STOP:
                actor.leaving = Leaving(wanted=actor.life.wanted or actor.pending is not None)
                self._renamed.setdefault(actor.workload.name, []).append(step.name)
                if actor.pending is not None:
                    actor.pending.cancel()
            else:
                first = partial(self._make_way, step, actor, starting)
                self._launches[step.name] = service.launch(actor, starting, BY, first)
        service.nursery.start_soon(self._run, steps)

    async def _run(self, steps: Collection[Step]) -> None:
        with self.reloader.reloading():
            async with trio.open_nursery() as nursery:
                for step in steps:
                    nursery.start_soon(self._stop if step.do is Do.STOP else self._follow, step)
        self.progress.say({"event": "end", "ok": self.progress.ok})
        self.progress.end()
        self.reloader.world.journal.log.info("reloaded", ok=self.progress.ok)

    async def _make_way(self, step: Step, actor: Actor, starting: Collection[str]) -> bool:
        """Before a start: stop the running program after its dependents; then wait for its dependencies.

        Returns whether there is still something to start.
        """
        after = [name for name in order.before(actor.workload) if name in starting]
        try:
            if actor.life.alive:
                await self._those_that_need(actor)
                if not after and step.known:
                    generation = actor.life.generation
                    await actor.ask(events.Restart(BY))
                    await actor.until(lambda life: life.generation > generation or not life.alive)
                    return False
                if not await self.reloader.service.lay_down(actor, BY):
                    return False
        finally:
            if step.name in self._down:
                self._down[step.name].set()
        for name in self._renamed.get(actor.workload.name, ()):
            await self._down[name].wait()
        for name, launch in self._launches.items():
            if self._actors[name].workload.name in after:
                await self._actors[name].until(partial(_launched, self._actors[name], launch))
        return True

    async def _those_that_need(self, actor: Actor) -> None:
        for name in self._before.get(actor.workload.name, ()):
            await self._down[name].wait()

    async def _follow(self, step: Step) -> None:
        """Report the outcome of a start."""
        actor = self._actors[step.name]
        ok, message = await self.reloader.service.settled(actor)
        self._tell(step, ok, actor.life.state.value, message)

    async def _stop(self, step: Step) -> None:
        """Stop an instance that the file no longer has, unless a later file has it again."""
        actor = self._actors[step.name]
        removal = actor.leaving
        try:
            await self._those_that_need(actor)
            if removal is not None and actor.leaving is removal:
                await self.reloader.service.down(actor, BY)
        finally:
            self._down[step.name].set()
        gone = removal is not None and await self.reloader.remove(actor, removal)
        self._tell(step, True, actor.life.state.value, "" if gone else "a later command overruled it")

    def _tell(self, step: Step, ok: bool, state: str, message: str) -> None:
        self.progress.ok = self.progress.ok and ok
        fields = {"name": step.name, "do": step.do.value, "ok": ok, "state": state, "message": message}
        self.progress.say({"event": "done", **fields})


class Progress:
    """The reports of a running reload, as an asynchronous iterator of JSON lines; reading them is optional."""

    def __init__(self) -> None:
        self.ok = True
        self._lines: list[bytes] = []
        self._ended = False
        self._news = trio.lowlevel.ParkingLot()

    def say(self, what: dict[str, Any]) -> None:
        """Append a report as a line."""
        self._lines.append(json.dumps(what).encode() + b"\n")
        self._news.unpark_all()

    def end(self) -> None:
        """End the stream after the lines so far."""
        self._ended = True
        self._news.unpark_all()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __aiter__(self) -> Progress:
        return self

    async def __anext__(self) -> bytes:
        while not self._lines:
            if self._ended:
                raise StopAsyncIteration
            await self._news.park()
        lines, self._lines = self._lines, []
        return b"".join(lines)


def _load(path: str, text: str | None, host: Host) -> _Read:
    """Load the configuration and check it against this host; call it in a thread, since a large one takes a while."""
    if text is None:
        if os.path.exists(path) and not stat.S_ISREG(os.stat(path).st_mode):
            raise _refusal(path, "is no file that can be read again; name one: nsupervisor reload FILE")
        text = read_text(path)
    config = parse(text, path)
    positions = scan(text)
    problems = [problem for problem, warning in unmet(config, positions, host) if not warning]
    if problems:
        raise ConfigError(problems)
    return _Read(config, positions, read_contents(config))


def _launched(actor: Actor, launch: trio.CancelScope, life: Life) -> bool:
    return actor.pending is not launch


def _refusal(path: str, message: str) -> ConfigError:
    return ConfigError([Problem(path, 0, "", message)])


def _counts(found: Plan) -> dict[str, int]:
    return {do.value: sum(step.do is do for step in found.steps) for do in Do}
