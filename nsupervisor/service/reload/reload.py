"""Reload: change from the configuration in force to another one while everything runs.

A reload has three parts. The first does everything that may fail: it makes new cgroups and changes limits; if the
kernel refuses one, everything is put back, and nothing has happened. The second part runs without an await: the plan is
made from the present state, and each instance gets its new settings. From then on the new file is in force, whatever
happens.

The third part takes time: what needs a new process is restarted, new instances start, removed ones stop. It is a
`Transaction` of `nsupervisor.service.jobs`: each instance waits for its dependencies and for nothing else, and a later
command, from an operator or a later reload, wins. The client that asked for the reload may disconnect: the reload
continues.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import attrs
import trio

from nsupervisor.cgroups import CgroupError, Host
from nsupervisor.config.changes import apply_changes
from nsupervisor.config.files import IncludedFile, find_among
from nsupervisor.config.model import Config, SupervisorConfig, WorkloadConfig
from nsupervisor.config.positions import Positions
from nsupervisor.config.problems import ConfigError, Problem
from nsupervisor.config.scaling import keep_scales, scale, scales
from nsupervisor.core import dependencies
from nsupervisor.core.initiators import RELOAD, Initiator
from nsupervisor.core.reload.differences import merge_limits
from nsupervisor.core.reload.plan import InstanceAction, InstancePlan, Plan, make_plan, target_limits
from nsupervisor.json_codec import encode_line
from nsupervisor.line_stream import LineStream
from nsupervisor.logs import call_in_thread
from nsupervisor.service.context import ServiceContext
from nsupervisor.service.group.group import Group
from nsupervisor.service.group.groups import Groups
from nsupervisor.service.group.placement import Placement, make_instance, supported_workload, update_membership
from nsupervisor.service.instance.actor import Actor
from nsupervisor.service.instance.limits import Target
from nsupervisor.service.jobs.jobs import RUNNING_STATES, Jobs, Transaction
from nsupervisor.service.jobs.relations import Relations
from nsupervisor.service.observe.log_rotation import log_rotation
from nsupervisor.service.platform.kernel import Kernel
from nsupervisor.service.platform.service_manager import notify_service_manager
from nsupervisor.service.preflight.capacity import descriptor_shortage, raise_descriptor_limit
from nsupervisor.service.preflight.requirements import check_text
from nsupervisor.service.reload.persist import Kind, persist, with_limits
from nsupervisor.service.reload.plan_inputs import Contents, read_contents, running_instance
from nsupervisor.wire_names import by_wire_name

_STOPPING = "the supervisor is stopping; start it with the new file"
_GROUP_MOVED = "moves a group, which a reload cannot do; write what it was, or restart the service, or rename the group"


@attrs.define(eq=False)
class Reloader:
    """Makes reload plans, and carries them out."""

    config: Config
    """The configuration in force."""
    jobs: Jobs
    host: Host
    placement: Placement
    context: ServiceContext
    nursery: trio.Nursery
    relations: Relations
    on_config: Callable[[Config], None] = lambda _config: None
    """Called with each configuration that comes into force, after the instances have it."""
    _active_count: int = 0

    async def plan(
        self, path: str | None, text: str | None, files: Sequence[IncludedFile] | None = None
    ) -> dict[str, Any]:
        """Return what a reload would do: the object `Plan` of `nsupervisor schema api`.

        Raises ConfigError with every problem.
        """
        loaded = await self._read(path, text, files, loads=False)
        plan = self._plan(loaded)
        await self._check_restarts(loaded, plan)
        return plan.to_json(loaded.config.path)

    async def reload(
        self, path: str | None, text: str | None, by: Initiator, files: Sequence[IncludedFile] | None = None
    ) -> LineStream[None]:
        """Reload a file; return when it is in force.

        `text` is its contents and `path` its name; by default the file in force is read again. `files`: those that it
        includes; by default they are read. Raises ConfigError with every problem, and then nothing has changed.

        A task of the service does the work, so the caller may be cancelled.
        """
        request = _ReloadRequest(path, text, by, files)
        self.nursery.start_soon(self._reload, request)
        return await request.wait()

    async def persist_limits(self, actor: Actor, changes: Mapping[str, Any], written: Mapping[str, Any]) -> str:
        """Write limits of an instance, which are in force, into the file; return why that failed, or "".

        `written` are `changes` in the form of the file. From then on the limits are those of the configuration: the
        next supervisor takes them from the file. Nothing else of a file that was edited is put in force.
        """
        if problem := await self._persist("workload", actor.workload.name, written):
            return problem
        with suppress(ConfigError):  # they fit the file that was edited, and not the one in force
            resources = apply_changes(actor.configured, actor.configured.resources, changes)
            configured, workload = (
                attrs.evolve(config, resources=resources) for config in (actor.configured, actor.workload)
            )
            actor.apply_config(configured, workload)
            actor.save_checkpoint()
        return ""

    async def persist_group_limits(self, group: Group, changes: Mapping[str, Any], written: Mapping[str, Any]) -> str:
        """Write limits of a group into the file, as `persist_limits` does for an instance."""
        name = group.config.name
        if problem := await self._persist("group", name, written):
            return problem
        with suppress(ConfigError):
            self.config = with_limits(self.config, "group", name, changes)
            self._groups.apply_config(self.config)
            group.save_checkpoint()
        return ""

    async def _persist(self, kind: Kind, name: str, written: Mapping[str, Any]) -> str:
        async with self.jobs.membership_lock:  # a reload reads the file either before or after
            try:
                await call_in_thread(persist, self.config.path, kind, name, written)
            except (OSError, ConfigError) as error:
                reason = error.strerror if isinstance(error, OSError) and error.strerror else error
                return f"it is set, but not written into {self.config.path}: {reason}"
        return ""

    async def _reload(self, request: _ReloadRequest) -> None:
        try:
            async with self.jobs.membership_lock:  # one reload after the other, in the order of the requests
                if request.counts is None:
                    loaded = await self._read(request.path, request.text, request.files)
                else:
                    loaded = await self._scale(request.counts)
                plan = self._plan(loaded)
                await self._check_restarts(loaded, plan)
                prepared = await self._prepare(loaded.config, plan)
                await self.context.sockets.prepare(loaded.config)
                try:
                    if self.jobs.is_stopping:
                        await self._put_back(prepared)
                        raise _refusal(loaded.config.path, _STOPPING)
                    # The state may have changed during the awaits, so the plan is made again from the present state. No
                    # await from here, nor since the check for a stop: nothing starts once the service stops.
                    request.accept(self._begin(loaded.config, self._plan(loaded), prepared, request.by))
                except ConfigError:
                    await self.context.sockets.discard_unwanted()
                    raise
        except ConfigError as error:
            for problem in error.problems:
                self.context.journal.log.error("reload refused", message=str(problem))
            request.refuse(error)

    async def scale(self, counts: Mapping[str, int], by: Initiator) -> LineStream[None]:
        """Run other numbers of instances of workloads, by their names; the reports are those of a reload.

        The file is not read. A number stays until the file has another one than now. Raises ConfigError.
        """
        request = _ReloadRequest(None, None, by, None, counts)
        self.nursery.start_soon(self._reload, request)
        return await request.wait()

    @property
    def _groups(self) -> Groups:
        return self.placement[1]

    # ---- before anything changes

    async def _read(
        self, path: str | None, text: str | None, files: Sequence[IncludedFile] | None, loads: bool = True
    ) -> _LoadedFile:
        path = path or self.config.path
        if self.jobs.is_stopping:
            raise _refusal(path, _STOPPING)
        load = partial(_load, kernel=self.context.kernel, loads=loads)
        loaded = await call_in_thread(load, path, text, files, self.host)
        return attrs.evolve(loaded, config=keep_scales(loaded.config, scales(self.config)))

    async def _scale(self, counts: Mapping[str, int]) -> _LoadedFile:
        path = self.config.path
        if self.jobs.is_stopping:
            raise _refusal(path, _STOPPING)
        workloads = dict(self.config.workloads)
        for actor in self.jobs.actors.values():  # `set --persist` has changed what the file has
            if (workload := workloads.get(actor.workload.name)) is not None and not workload.variants:
                workloads[workload.name] = attrs.evolve(workload, resources=actor.configured.resources)
        config = scale(attrs.evolve(self.config, workloads=workloads), counts)
        if too_many := descriptor_shortage(config, self.host):
            raise _refusal(path, too_many)
        return _LoadedFile(config, Positions({}, path), await call_in_thread(read_contents, config))

    def _plan(self, loaded: _LoadedFile) -> Plan:
        config, positions = loaded.config, loaded.positions
        current = [running_instance(actor, self.jobs, config, loaded.contents) for actor in self.jobs.actors.values()]
        new_plan = make_plan(self.config, config, current)
        moved = [
            name
            for name, group in config.groups.items()
            if name in self.config.groups and self.config.groups[name].group != group.group
        ]
        if moved:
            raise ConfigError(positions.problem(("group", name, "group"), _GROUP_MOVED) for name in moved)
        if new_plan.refused_changes:
            raise ConfigError(
                positions.problem(
                    ("supervisor", change.key),
                    f"cannot change while the service runs ({change.before} → {change.after}); "
                    "write what it was, or stop the service and start it with this file",
                )
                for change in new_plan.refused_changes
            )
        return new_plan

    async def _check_restarts(self, loaded: _LoadedFile, plan: Plan) -> None:
        """Refuse a plan that would stop a program whose next start must fail. Raises ConfigError with each of these.

        If a dependency starts or restarts first, it may make what is missing.
        """
        begins = {
            step.workload.name
            for step in plan.steps
            if step.workload is not None and step.action in (InstanceAction.START, InstanceAction.RESTART)
        }
        problems = []
        for step in plan.steps:
            if step.workload is None or step.action is not InstanceAction.RESTART:
                continue
            actor = self.jobs.actors[step.name]
            if actor.lifecycle.state not in RUNNING_STATES:
                continue
            if begins.intersection(dependencies.start_dependencies(step.workload)):
                continue
            if (obstacle := await actor.find_start_obstacle(step.workload)) is not None:
                path = ("workload", step.workload.name, *obstacle.key)
                message = f"{obstacle.message}; {step.name} runs, and would be stopped for a start that must fail"
                problems.append(loaded.positions.problem(path, message))
        if problems:
            raise ConfigError(dict.fromkeys(problems))

    # ---- steps that may fail, and are then put back

    async def _prepare(self, config: Config, plan: Plan) -> _Prepared:
        """Make new instances with their cgroups and supported rules, and change limits.

        The limits of an instance that will be restarted are applied with its next process. Raises ConfigError with
        everything that failed, after everything has been put back.
        """
        prepared = _Prepared()
        try:
            prepared.new_groups = self._groups.add_new(config)
        except CgroupError as error:
            raise ConfigError([Problem(config.path, 0, "", str(error))]) from error
        errors: list[CgroupError] = []

        async def limit(actor: Actor, workload: WorkloadConfig) -> None:
            before = actor.resources
            try:
                await actor.limit_writer.apply_prepared(_limits_target(actor, workload), workload.resources)
                prepared.undo_limits[actor] = partial(merge_limits, actor.resources, before)
            except CgroupError as error:
                errors.append(error)

        async with trio.open_nursery() as nursery:
            for step in plan.steps:
                if step.workload is None or step.resources is None:
                    continue
                try:
                    if step.name in self.jobs.leftovers:
                        reason = (
                            "what an earlier supervisor has left of it is still being stopped; reload when it is gone"
                        )
                        raise CgroupError(f"workload.{step.workload.name}: {reason}")
                    if not step.exists:
                        prepared.new[step.name] = make_instance(
                            step.name, step.workload, step.number, self.placement, self.context, step.resources
                        )
                        continue
                    actor = self.jobs.actors[step.name]
                    prepared.supported[step.name] = self._supported(actor, step.workload)
                except CgroupError as error:
                    errors.append(error)
                    continue
                is_pending = step.resources == actor.resources  # limits of the next start need not be in force before
                if (
                    step.resources != actor.limit_writer.applied
                    and not is_pending
                    and not (step.action is InstanceAction.RESTART and actor.lifecycle.is_alive)
                ):
                    prepared.limits_changed.add(step.name)
                    nursery.start_soon(limit, actor, step.workload)
        for group, wanted in self._groups.differing(config):
            try:
                before = group.resources
                await self._groups.apply_limits(group, wanted)
                prepared.undo_group_limits.append((group, partial(merge_limits, group.resources, before)))
            except CgroupError as error:
                errors.append(error)
        if errors:
            await self._put_back(prepared)
            raise ConfigError(Problem(config.path, 0, "", str(error)) for error in errors)
        return prepared

    async def _put_back(self, prepared: _Prepared) -> None:
        """Undo what `_prepare` has done; what cannot be undone is logged."""
        for group, before in reversed(prepared.undo_group_limits):
            with self._log_failure(group.name):
                await group.undo_limits(before)
        for actor, before in prepared.undo_limits.items():
            with self._log_failure(actor.name):
                await actor.limit_writer.undo_prepared(before)
        for actor in prepared.new.values():
            self._groups.remove(actor)
            with self._log_failure(actor.name):
                actor.cgroup.remove()
        self._groups.discard(prepared.new_groups)

    def _supported(self, actor: Actor, workload: WorkloadConfig) -> WorkloadConfig:
        """Return the workload with the rules that this host can evaluate."""
        if workload.policy == actor.configured.policy:
            return attrs.evolve(workload, policy=actor.workload.policy)
        return supported_workload(workload, actor.name, actor.cgroup, self.context)

    # ---- steps without an await

    def _begin(self, config: Config, plan: Plan, prepared: _Prepared, by: Initiator) -> LineStream[None]:
        stream: LineStream[None] = LineStream()
        previous_dependencies = {
            name: dependencies.start_dependencies(actor.workload) for name, actor in self.jobs.actors.items()
        }
        self._apply_to_instances(plan, prepared)
        self._apply_to_service(config, plan)
        self.context.journal.log.info("reload", config=config.path, cause=by.cause(), **_counts(plan))
        stream.add(encode_line({"event": "plan", **plan.to_json(config.path)}))
        steps = [step for step in plan.steps if step.action not in (InstanceAction.NONE, InstanceAction.LIVE)]
        moving = {step.name: self.jobs.actors[step.name] for step in steps}
        transaction = self.jobs.begin(
            {moving[step.name]: RELOAD for step in steps if step.action is not InstanceAction.STOP},
            {moving[step.name]: RELOAD for step in steps if step.action is InstanceAction.STOP},
            {moving[step.name]: previous_dependencies[step.name] for step in steps if step.exists},
        )
        self.relations.resume()
        self.nursery.start_soon(self._finish, _ReloadRun(stream, transaction, moving), steps)
        return stream

    def _apply_to_instances(self, plan: Plan, prepared: _Prepared) -> None:
        """Give each instance the settings of the file."""
        actors = self.jobs.actors
        for step in plan.steps:
            if step.workload is None or step.resources is None:
                continue
            if step.name in prepared.new:
                actors[step.name] = prepared.new[step.name]
                self.nursery.start_soon(actors[step.name].run)
                continue
            actor = actors[step.name]
            is_scaled = actor.configured.scaled_from != step.workload.scaled_from or (
                step.workload.scaled_from is not None and actor.configured.instances != step.workload.instances
            )
            self.jobs.cancel_removal(actor)
            limits = _limits_target(actor, step.workload)
            actor.apply_config(step.workload, prepared.supported[step.name])
            update_membership(actor, step.workload, self.placement)
            if step.name not in prepared.limits_changed:  # the limits are applied with its next process
                actor.limit_writer.defer(limits)
            if is_scaled or step.changes:
                actor.save_checkpoint()
            if step.changes:
                changes = [by_wire_name(change) for change in step.changes]
                more = {"action": "reload", "cause": RELOAD.cause(), "do": step.action.value, "changes": changes}
                actor.log.write(actor.lifecycle.generation, "action", **more)
        ordered = {step.name: actors[step.name] for step in plan.steps}
        actors.clear()  # keep the same dict, because other objects refer to it
        actors.update(ordered)

    def _apply_to_service(self, config: Config, plan: Plan) -> None:
        """Put the file in force, with its groups and the keys of [supervisor] that a running service can change."""
        self._groups.apply_config(config)
        raise_descriptor_limit(config, self.host)
        if plan.group_changes:
            changes = [by_wire_name(change) for change in plan.group_changes]
            self.context.journal.log.info("groups reloaded", changes=changes)
        self.context.networks.configure(config.network)
        settings = config.supervisor
        self.context.journal.set_level(settings.log_level)
        self.context.journal.set_rotation(log_rotation(settings))
        for change in plan.supervisor_changes:
            if not change.is_live:
                text = f"supervisor.{change.key} counts when the service starts the next time: {change.after}"
                self.context.journal.log.warning("reload", message=text)
        in_force: SupervisorConfig = attrs.evolve(
            self.config.supervisor,
            log_level=settings.log_level,
            log_max_size=settings.log_max_size,
            log_max_files=settings.log_max_files,
            log_max_age=settings.log_max_age,
            log_compress=settings.log_compress,
        )
        self.config = attrs.evolve(config, supervisor=in_force)
        self.on_config(self.config)

    @contextmanager
    def _log_failure(self, name: str) -> Iterator[None]:
        """Log what fails while something is put back or removed, and continue."""
        try:
            yield
        except CgroupError as error:
            self.context.journal.log.error("warning", workload=name, message=str(error))

    # ---- during each reload

    @contextmanager
    def _reloading(self) -> Iterator[None]:
        """Notify the service manager of the first reload that begins and the last that ends (sd_notify(3))."""
        self._active_count += 1
        if self._active_count == 1:
            notify_service_manager(self.context.journal, "RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            yield
        finally:
            self._active_count -= 1
            if not self._active_count and not self.jobs.is_stopping:
                notify_service_manager(self.context.journal, "READY=1")

    async def _restore_limits(self) -> None:
        """Restore limits that other programs have changed, those of groups first: percentages refer to them."""
        writers = [group.limit_writer for group in self._groups.by_name.values()]
        for writer in (*writers, *(actor.limit_writer for actor in self.jobs.actors.values())):
            await trio.lowlevel.checkpoint()
            await writer.restore(is_thorough=True)

    async def _finish(self, run: _ReloadRun, steps: Collection[InstancePlan]) -> None:
        """Report the outcome of each step, until all are done."""
        with self._reloading():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._restore_limits)
                for step in steps:
                    nursery.start_soon(run.remove if step.action is InstanceAction.STOP else run.report_start, step)
        self._groups.remove_retired([*self.jobs.actors.values(), *self.jobs.leftovers.values()])
        run.stream.end(encode_line({"event": "end", "ok": run.ok}))
        self.context.journal.log.info("reloaded", ok=run.ok)


@attrs.define(eq=False)
class _ReloadRequest:
    """A request to reload, with its outcome."""

    path: str | None
    text: str | None
    by: Initiator
    files: Sequence[IncludedFile] | None
    """The files that the text includes; None: they are read."""
    counts: Mapping[str, int] | None = None
    """Numbers of instances to run in place of those of the configuration in force; None: a file is read."""
    _answered: trio.Event = attrs.field(init=False, factory=trio.Event)
    _stream: LineStream[None] | None = attrs.field(init=False, default=None)
    _error: ConfigError | None = attrs.field(init=False, default=None)

    def accept(self, stream: LineStream[None]) -> None:
        """Answer the request: the file is in force."""
        self._stream = stream
        self._answered.set()

    def refuse(self, error: ConfigError) -> None:
        """Answer the request: nothing has changed."""
        self._error = error
        self._answered.set()

    async def wait(self) -> LineStream[None]:
        """Wait for the answer. Raises ConfigError."""
        await self._answered.wait()
        if self._error is not None:
            raise self._error
        assert self._stream is not None
        return self._stream


@attrs.frozen
class _LoadedFile:
    """A file, the positions in it, and the contents of the environment files it names."""

    config: Config
    positions: Positions
    contents: Contents


@attrs.define
class _Prepared:
    """The results of the steps that a reload takes before it begins."""

    new: dict[str, Actor] = attrs.field(factory=dict)
    new_groups: list[Group] = attrs.field(factory=list)
    supported: dict[str, WorkloadConfig] = attrs.field(factory=dict)
    """The workload of each instance that stays, without the rules that this host cannot evaluate."""
    limits_changed: set[str] = attrs.field(factory=set)
    """The instances whose limits have been changed."""
    undo_limits: dict[Actor, Target] = attrs.field(factory=dict)
    """The inverse of each change of limits: other changes that were made since stay."""
    undo_group_limits: list[tuple[Group, Target]] = attrs.field(factory=list)
    """The same for groups, in the order of the changes."""


@attrs.define(eq=False)
class _ReloadRun:
    """The reports of the third part of one reload."""

    stream: LineStream[None]
    transaction: Transaction
    actors: Mapping[str, Actor]
    ok: bool = True
    """Whether all steps so far have succeeded."""

    async def report_start(self, step: InstancePlan) -> None:
        """Report the outcome of a start."""
        actor = self.actors[step.name]
        ok, message = await self.transaction.jobs.wait_settled(actor)
        self._report(step, ok, message)

    async def remove(self, step: InstancePlan) -> None:
        """Stop an instance that the file no longer has, unless a later file has it again."""
        gone = await self.transaction.remove(self.actors[step.name])
        self._report(step, True, "" if gone else "a later command overruled it")

    def _report(self, step: InstancePlan, ok: bool, message: str) -> None:
        self.ok = self.ok and ok
        state = self.actors[step.name].lifecycle.state.value
        fields = {"name": step.name, "do": step.action.value, "ok": ok, "state": state, "message": message}
        self.stream.add(encode_line({"event": "done", **fields}))


def _load(
    path: str, text: str | None, files: Sequence[IncludedFile] | None, host: Host, kernel: Kernel, loads: bool = True
) -> _LoadedFile:
    """Load the configuration and check it against this host; call it in a thread, since a large one takes a while.

    `loads`: images that are missing are loaded.
    """
    if text is None:
        text = kernel.read_config(path)
    find = kernel.find_included if files is None else find_among(files)
    config, problems, _, positions, _ = check_text(
        text,
        path,
        host,
        privileges=kernel.privileges,
        isolate=kernel.isolate,
        find=find,
        resolve=kernel.resolve_images,
        loads=loads,
    )
    if problems:
        raise ConfigError(problems)
    return _LoadedFile(config, positions, read_contents(config))


def _limits_target(actor: Actor, workload: WorkloadConfig) -> Target:
    """Return what a reload makes of the limits of an instance; `workload` is its new configuration."""
    old = actor.configured
    return lambda in_force: target_limits(old, workload, in_force)[0]


def _refusal(path: str, message: str) -> ConfigError:
    return ConfigError([Problem(path, 0, "", message)])


def _counts(plan: Plan) -> dict[str, int]:
    return {do.value: sum(step.action is do for step in plan.steps) for do in InstanceAction}
