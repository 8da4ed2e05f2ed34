"""The actor of one workload instance while the service runs: events in, actions out.

The actor decides nothing. It handles the messages in its mailbox one by one (the keeper's reports, the watcher's
readings, commands of operators), turns each into an input for `nsupervisor.core.decider`, carries out the resulting
actions and records them in the journal.

The order of two things at a program's exit matters. The counters of its cgroup are read *before* the lifecycle handles
the exit: the kernel counts an OOM kill before it sends the SIGKILL, but the notification of the count may arrive after
the report of the exit, and a rule on the count must see it while its generation is still current.
"""

import contextlib
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs
import trio

from nsupervisor.cgroups import Cgroup, CgroupError, CgroupGoneError, Reading
from nsupervisor.cgroups.limits import recreate_cgroup
from nsupervisor.config.load import ConfigError
from nsupervisor.config.model import Resources, WorkloadConfig
from nsupervisor.core import events
from nsupervisor.core.actions import Action, FreezeAll, KillAll, Signal, Spawn, ThawAll, Warn
from nsupervisor.core.decider import ConfigChanged, GroupAction, Transition, WorkloadState
from nsupervisor.core.exits import Exit, signal_name
from nsupervisor.core.lifecycle import Lifecycle, State
from nsupervisor.core.rules.rules import Engine, Firing
from nsupervisor.keeper.messages import Ended, Execed, KeeperLost, SetupFailure, SpawnError
from nsupervisor.metrics.counters import Counters
from nsupervisor.service.context import ServiceContext
from nsupervisor.service.instance.decisions import DecisionLoop
from nsupervisor.service.instance.exit_reports import ExitReports
from nsupervisor.service.instance.limits import LimitWriter
from nsupervisor.service.instance.log import InstanceLog
from nsupervisor.service.instance.mailbox import Call, Mailbox, Message, RetrySpawn, RulesPending, Shutdown
from nsupervisor.service.instance.output import Output
from nsupervisor.service.instance.policy import PolicyActions, PolicyRunner
from nsupervisor.service.instance.readiness import host_owner, socket_path, watch_readiness
from nsupervisor.service.instance.spawn_spec import cover, environment_file_variables, spawn_spec
from nsupervisor.service.instance.start_status import NO_START, StartStatus
from nsupervisor.service.instance.status import status
from nsupervisor.service.instance.transition_log import log_transition
from nsupervisor.service.instance.users import IdentityError
from nsupervisor.service.state.checkpoint import Checkpoint, spawn_inputs
from nsupervisor.service.state.file import ExitReport

if TYPE_CHECKING:
    from nsupervisor.service.group.group import Group

_ACTION_NAMES: Mapping[type[Action], str] = {
    Spawn: "start",
    Signal: "signal",
    KillAll: "kill",
    FreezeAll: "freeze",
    ThawAll: "thaw",
    Warn: "complain",
}
"""Names of actions in the record of a failure, as in traces."""


@attrs.define(eq=False)
class Actor:
    """Runs one workload instance. `name` is "web", or "web@2" if there are several instances."""

    name: str
    workload: WorkloadConfig
    instance: int | None
    cgroup: Cgroup
    context: ServiceContext
    pid: int | None = None
    """The program's pid, in the host's PID namespace."""
    last_exit: Exit | None = None
    groups: tuple["Group", ...] = ()
    """The groups that contain it, the outermost first, and the host; set by `Groups.add`."""
    pending_move: Callable[[Resources], Cgroup] | None = None
    """Makes the cgroup for its next generation, with these limits; None if it keeps the present one."""
    configured: WorkloadConfig = attrs.field(init=False)
    """The workload as in the configuration file; `workload` lacks the rules that this host cannot evaluate."""
    counters: Counters = attrs.field(init=False, factory=Counters)
    limit_writer: LimitWriter = attrs.field(init=False)
    decisions: DecisionLoop = attrs.field(init=False)
    policy: PolicyRunner = attrs.field(init=False)
    output: Output = attrs.field(init=False)
    log: InstanceLog = attrs.field(init=False)
    exit_reports: ExitReports = attrs.field(init=False)
    mailbox: Mailbox = attrs.field(init=False, factory=Mailbox)
    _changed: trio.lowlevel.ParkingLot = attrs.field(init=False, factory=trio.lowlevel.ParkingLot)
    checkpoint: Checkpoint = attrs.field(init=False)
    start_status: StartStatus = attrs.field(init=False, default=NO_START)
    """Its start that waits, as `nsupervisor.service.jobs` reports it by `set_start_status`."""
    notify_fd: int = attrs.field(init=False, default=-1)
    """The current generation's notify socket, or -1."""
    is_spawning: bool = attrs.field(init=False, default=False)
    """Whether the keeper is being asked to start a generation."""
    recovery_step: Callable[[], Awaitable[None]] | None = attrs.field(init=False, default=None)
    """The first step to take if an earlier supervisor left a lifecycle."""
    _failed_start_id: str = ""
    """The id of the latest start that failed. If it was killed in its set-up, its later exit report is ignored."""
    _notify_resources: contextlib.ExitStack = attrs.field(init=False, factory=contextlib.ExitStack)
    """This generation's notify socket and the task that reads it."""

    def __attrs_post_init__(self) -> None:
        self.configured = self.workload
        state = WorkloadState(Lifecycle(), Engine.for_rules(self.workload.policy))
        kernel = self.context.kernel
        self.checkpoint = Checkpoint(kernel.processes)
        self.decisions = DecisionLoop(self.name, self.workload, state, self.context.listeners, kernel.random)
        actions = PolicyActions(
            self.log_event,
            self._carry_out,
            lambda *args: self.limit_writer.set_by_rule(*args),
            lambda: self.post(RulesPending()),
        )
        self.log = InstanceLog(self.name, self.instance, self.context.journal)
        self.exit_reports = ExitReports(self.log, self.context.nursery, self.save_checkpoint)
        self.policy = PolicyRunner(self.cgroup, self.counters, self.context, actions, self.decisions)
        nursery, refresh, resources = self.context.nursery, self._limits_changed, self.workload.resources
        self.limit_writer = LimitWriter(self.cgroup, self.workload, nursery, self.log_event, refresh, resources)
        self.output = Output(self.name, self.instance, self.workload.log, self.counters, self.context)

    @property
    def lifecycle(self) -> Lifecycle:
        """The current state of the lifecycle."""
        return self.decisions.state.lifecycle

    # ---- operations for other objects

    def post(self, message: Message) -> None:
        """Queue a message for the actor; never blocks."""
        self.mailbox.post(message)

    async def ask(self, command: events.Command) -> None:
        """Post a command and wait until it has been handled; `lifecycle` then shows its immediate effect."""
        await self.mailbox.ask(command)

    async def wait_until(self, condition: Callable[[Lifecycle], bool]) -> None:
        """Wait until `condition(lifecycle)` is true; it is checked after each change."""
        while not condition(self.lifecycle):
            await self._changed.park()

    def set_start_status(self, status: StartStatus) -> None:
        """Note the start that waits, for the status and the next supervisor; for `nsupervisor.service.jobs` alone."""
        before, self.start_status = self.start_status, status
        if status.requested_by != before.requested_by:
            self.save_checkpoint()

    def wake_waiters(self) -> None:
        """Check the conditions of `wait_until` again, after a change outside the lifecycle (a start that waited)."""
        self._changed.unpark_all()

    async def run(self) -> None:
        """Handle messages until `retire`."""
        self.policy.watch(self._on_reading, reset_base_line=self.recovery_step is None)
        if self.recovery_step is not None:
            await self.recovery_step()
        while not isinstance(message := await self.mailbox.receive(self.lifecycle.deadline), Shutdown):
            await self._handle(message)
        self.mailbox.close()
        self.context.watcher.remove(self.cgroup)
        self._changed.unpark_all()

    async def retire(self) -> None:
        """Stop the task of this actor, after all messages in its mailbox; the program has stopped before."""
        self.post(Shutdown())
        await self.mailbox.closed.wait()

    def save_checkpoint(self) -> None:
        """Save the checkpoint for the next supervisor."""
        if not self.mailbox.closed.is_set():
            self.context.state.save(self.name, self.checkpoint.to_checkpoint(self))

    async def wait_drained(self) -> None:
        """Wait until all output of ended generations has been read, and their exits have been recorded."""
        await self.output.wait_drained()
        await self.exit_reports.wait_delivered()

    async def signal(self, signum: int, by: str = events.OPERATOR) -> bool:
        """Send a signal to the program for an operator or a workload; return False if none runs."""
        if not self.lifecycle.is_alive:
            return False
        self.log_event("action", action="signal", cause={"by": by}, signal=signal_name(signum))
        return await self.context.keeper.signal(self.id, signum)

    async def change_limits(self, changes: Mapping[str, Any], by: str = "operator") -> tuple[bool, str]:
        """Call `LimitWriter.change_limits`; this needs no message, since no pending decision depends on limits."""
        return await self.limit_writer.change_limits(changes, by)

    @property
    def resources(self) -> Resources:
        """The limits in force: the configured ones, with later changes by operators and rules."""
        return self.limit_writer.resources

    def _limits_changed(self) -> None:
        self.policy.refresh()
        self.save_checkpoint()

    async def reapply_percentages(self) -> str:
        """Write percentage limits again after a limit of an enclosing group changed; return the problem, or ""."""
        return await self.limit_writer.reapply_percentages()

    def impose(self, firing: Firing, generation: int) -> None:
        """Queue the action of a group's rule that chose this instance; it is dropped if the generation has ended."""
        self.decisions.handle(GroupAction(generation, firing))
        self.post(RulesPending())

    def apply_config(self, configured: WorkloadConfig, workload: WorkloadConfig) -> None:
        """Switch to another configuration of this workload; what needs a new process applies to the next one.

        `configured` is the workload as in the file, `workload` the one without the rules that this host cannot
        evaluate. The limits are changed by `LimitWriter`.
        """
        rules = self.workload.policy != workload.policy
        if rules:
            self.policy.read_counters()  # changes so far belong to the old rules
        if workload.log != self.workload.log:
            self.output.apply_config(workload.log)
        if workload != self.workload:
            self.decisions.handle(ConfigChanged(workload))
        self.configured = configured
        self.workload = self.limit_writer.workload = workload
        if rules:
            try:
                self.context.watcher.remove(self.cgroup)
                self.policy.watch(self._on_reading)
                self.policy.refresh()
            except (CgroupError, OSError) as error:
                self.log_event("warning", "error", message=f"its rules get no news: {error}")
            if self.lifecycle.is_alive:
                self.policy.resume_sampling()

    @property
    def is_up(self) -> bool:
        """Whether dependents may start: the workload is up, or has done its single job."""
        state = self.lifecycle.state
        if state is State.RUNNING:
            return self.workload.type == "simple"
        return state is State.READY or (state is State.EXITED and self.workload.type == "oneshot")

    # ---- messages

    async def _handle(self, message: Message) -> None:
        match message:
            case Reading(values=values):
                if not values.get("populated"):
                    await self._on_event(events.Emptied(self.lifecycle.generation))
            case RulesPending():
                await self.policy.run_pending()
                self.save_checkpoint()
            case Execed(id=self._failed_start_id):
                pass
            case Execed(id=id_, pid=pid):
                if id_ == self.id and self.checkpoint.process is None:
                    self.checkpoint.executed(self.pid or pid, pid)
                    self.pid = pid
                    self.log_event("started", pid=pid)
                    self.policy.program_started()
                    for group in self.groups:
                        group.resume_sampling()
                    self.output.begin(self.lifecycle.generation, pid)
                await self._on_event(events.Execed(_generation(id_)))
                self.save_checkpoint()
            case RetrySpawn():
                if self.lifecycle.state is State.STARTING and self.checkpoint.process is None:
                    await self._clear_failed_start()
                    await self._spawn(self.lifecycle.generation)
            case Ended():
                await self._on_exit(message)
            case Call(command=command, handled=handled):
                await self._on_event(command)
                handled.set()
            case events.Input():
                await self._on_event(message)

    async def _on_exit(self, ended: Ended) -> None:
        if ended.id != self.id or ended.id == self._failed_start_id or self.lifecycle.exit is not None:
            await self.context.keeper.acknowledge(ended.id)
            return
        self.log.hold()  # start the next generation first, and write the records afterwards
        self.policy.read_counters()
        await self.policy.run_pending()
        generation = self.lifecycle.generation
        exit_ = self.report_exit(ended.status, ended.failure)
        if exit_.setup_failure is None:
            self.policy.program_exited(exit_)
            await self.policy.run_pending()
        self.output.begin(generation, self.pid)
        self.pid = None
        self.checkpoint.program_ended()
        self._notify_resources.close()
        await self._on_event(events.Exited(generation, exit_, self.is_populated()))
        self.exit_reports.release()
        await self.context.keeper.acknowledge(ended.id)

    def report_exit(self, status: int, failure: SetupFailure | None) -> Exit:
        """Report how this generation ended, from its wait status and the OOM kills that its cgroup has counted."""
        oom_kills = self.read("memory.events").get("oom_kill", 0.0)
        reason = failure.message if failure else None
        self.last_exit = Exit.from_wait_status(
            status, oom_killed=oom_kills > self.checkpoint.oom_kills, setup_failure=reason
        )
        self.checkpoint.oom_kills = oom_kills
        self.exit_reports.report(ExitReport(self.lifecycle.generation, self.last_exit, self.pid))
        return self.last_exit

    def _on_reading(self, reading: Reading) -> None:
        """Handle a reading of the watcher at once: most samples change nothing, and need not wake the actor."""
        if reading.file == "cgroup.events":
            self.post(reading)
        else:
            self.policy.observe(reading.file, reading.values, reading.read_at)

    # ---- the lifecycle

    async def _on_event(self, event: events.Input) -> None:
        await self._carry_out(self.lifecycle, self.decisions.handle(event))

    async def _carry_out(self, before: Lifecycle, transition: Transition) -> None:
        """Record and carry out a transition that an input or a pending action has caused."""
        if self.lifecycle is before and not transition.actions:
            return
        if transition.lifecycle_input is not None:
            self.counters.count_transition(before, transition.lifecycle_input, self.lifecycle, self.workload)
            log_transition(self, before, transition.lifecycle_input)
        # Save before acting: the next supervisor completes what this one has decided. A start is the exception: it is
        # saved while the keeper works on it, since the keeper's table, or the cgroup, will show it.
        starts = any(isinstance(action, Spawn) for action in transition.actions)
        self.checkpoint.has_unfinished_actions = bool(transition.actions) and not starts
        if not starts:
            self.save_checkpoint()
        for action in transition.actions:
            await self.perform(action)
        if self.checkpoint.has_unfinished_actions:
            self.checkpoint.has_unfinished_actions = False
            self.save_checkpoint()
        self._changed.unpark_all()

    async def perform(self, action: Action) -> None:
        """Carry out one action; a failure is logged."""
        try:
            match action:
                case Spawn(generation=generation):
                    await self._spawn(generation)
                case Signal(signal=signum, whole_cgroup=everyone):
                    if everyone:
                        self.cgroup.send_signal(signum)
                    else:
                        await self.context.keeper.signal(self.id, signum)
                case KillAll():
                    self.cgroup.kill()
                case FreezeAll():
                    self.cgroup.freeze()
                case ThawAll():
                    self.cgroup.thaw()
                case Warn(text=text):
                    self.log_event("warning", "warning", message=text)
        except (OSError, CgroupError) as error:
            self.log_event("warning", "error", message=f"{_ACTION_NAMES[type(action)]}: {error}")

    async def _spawn(self, generation: int) -> None:
        self.is_spawning = True
        try:
            while not await self._try_spawn(generation):
                await self._clear_failed_start()
        finally:
            self.is_spawning = False

    async def _clear_failed_start(self) -> None:
        """Kill what a start may have left when the keeper was lost in the middle of it, so that nothing runs twice.

        A program whose set-up is not complete ends by itself, since its report has no reader. Any other was in the
        cgroup before the keeper died.
        """
        self._notify_resources.close()
        if self.is_populated():
            self.cgroup.kill()
            while self.is_populated():  # noqa: ASYNC110 - rare and brief
                await trio.sleep(0.005)

    async def _try_spawn(self, generation: int) -> bool:
        """Start a generation; return whether the outcome is known, which is also the case if the start has failed."""
        try:
            if self.is_populated():
                pids = ", ".join(map(str, self.cgroup.pids()[:5]))
                raise CgroupError(f"its cgroup {self.cgroup.path} is still populated (pids {pids}); end them first")
            if self.pending_move is not None:
                await self.limit_writer.wait_idle()
                self._move_to(self.pending_move(self.resources))
            elif self.cgroup.was_killed:
                await self.limit_writer.wait_idle()
                self.context.watcher.remove(self.cgroup)
                recreate_cgroup(self.cgroup, self.resources)
                self.limit_writer.applied = self.resources
                self.policy.refresh()
                self.policy.watch(self._on_reading)
            await self.limit_writer.apply_pending()
            self.checkpoint.oom_kills = self.read("memory.events").get("oom_kill", 0.0)
            variables = environment_file_variables(self.workload)
            who, directory, self.notify_fd = (
                (self.workload, self.name, self.instance),
                self.context.runtime_directory,
                -1,
            )
            spec = spawn_spec(*who, generation, self.cgroup, directory, variables)
            own = self.open_notify_socket(host_owner(spec))[1] if self.workload.uses_notify_socket else {}
            spec["env"] |= own
            if self.workload.namespaces.mount:
                spec["cover"] = cover(self.workload, directory, own.get("NOTIFY_SOCKET"))
            spawned = await self.context.keeper.spawn(spec, self._while_spawning, self.notify_fd)
        except KeeperLost:
            return False
        except (IdentityError, ConfigError, CgroupError, SpawnError, OSError) as error:
            exit_ = Exit(setup_failure=error.message if isinstance(error, SpawnError) else str(error))
            self.last_exit = exit_
            self._failed_start_id = f"{self.name}#{generation}"
            self._notify_resources.close()
            self.exit_reports.report(ExitReport(generation, exit_))
            self.exit_reports.release()
            self.post(events.Exited(generation, exit_, populated=False))
            return True
        self.pid = spawned.pid
        keyed_digest = self.context.digest
        files = keyed_digest.digest(variables) if self.workload.environment_file else ""
        self.checkpoint.spawned(spawned, keyed_digest.digest(spawn_inputs(spec)), files)
        self.output.expect(spawned)
        return True

    def _move_to(self, cgroup: Cgroup) -> None:
        """Continue in another cgroup; the old one is empty and is removed."""
        self.context.watcher.remove(self.cgroup)
        self.cgroup.remove()
        self.pending_move = None
        self.cgroup = self.policy.cgroup = self.limit_writer.cgroup = cgroup
        self.policy.refresh()
        self.policy.watch(self._on_reading)

    def _while_spawning(self) -> None:
        """Do while a start is in progress what must not delay it: write held records, and save the checkpoint."""
        self.log.release()
        self.save_checkpoint()

    # ---- sd_notify(3)

    def open_notify_socket(
        self, owner: tuple[int, int] | None = None, fd: int = -1, again: bool = False
    ) -> tuple[int, dict[str, str]]:
        """Open this generation's notify socket, or continue with that of an earlier supervisor; `again`: it was lost.

        Returns its descriptor, and the environment variables that name it to the program.
        """
        path = socket_path(self.context.runtime_directory, self.id, self.context.digest.token(self.id), again)
        ours = self._notify_resources.enter_context(self.context.kernel.open_notify_socket(path, owner, fd))
        scope = trio.CancelScope()
        self._notify_resources.callback(scope.cancel)
        on_notification = partial(self._on_notification, self.lifecycle.generation)
        on_status = partial(self._on_status, self.lifecycle.generation)
        tree, is_part_of = self.context.keeper.tree, self.context.kernel.is_part_of
        self.context.nursery.start_soon(
            watch_readiness,
            ours,
            scope,
            self.workload.watchdog_sec,
            on_notification,
            on_status,
            lambda pid: is_part_of(pid, self.name, tree),
        )
        variables = {"NOTIFY_SOCKET": str(ours.path)}
        if self.workload.watchdog_sec:
            variables["WATCHDOG_USEC"] = str(round(self.workload.watchdog_sec * 1e6))
        self.notify_fd = ours.socket.fileno()
        return self.notify_fd, variables

    def _on_notification(self, generation: int, kind: str, text: str) -> None:
        if kind == "READY":
            self.post(events.Ready(generation))
        elif kind == "REFUSED":
            self.log_event("notify refused", "warning", message=text)
        elif self.lifecycle.state is not State.FROZEN:  # a frozen program cannot report that it is healthy
            self.post(events.Unhealthy(generation, text))

    def _on_status(self, generation: int, text: str, suppressed: int) -> None:
        fields = {"suppressed": suppressed} if suppressed else {}
        self.log.write(generation, "status", "info", message=text, **fields)

    # ---- helpers

    @property
    def id(self) -> str:
        """The current generation's id in the keeper."""
        return f"{self.name}#{self.lifecycle.generation}"

    def read(self, file: str) -> Mapping[str, float]:
        """Read a file of the cgroup, as `PolicyRunner.read` does."""
        return self.policy.read(file)

    @property
    def limits(self) -> Mapping[str, float | None]:
        """The limits in force, as the kernel has them."""
        return self.policy.limits

    def is_populated(self) -> bool:
        """Return whether the cgroup has processes; if so, the watcher will report when it becomes empty."""
        try:
            return self.context.watcher.read_baseline(self.cgroup, "cgroup.events")["populated"] == 1
        except CgroupGoneError:
            return False

    def log_event(self, event: str, level: str = "info", **fields: Any) -> dict[str, Any]:
        """Write a record about the current generation."""
        return self.log.write(self.lifecycle.generation, event, level, **fields)

    def status(self) -> dict[str, Any]:
        """Return the object that `status --json` shows for this instance."""
        return status(self)


def _generation(id_: str) -> int:
    return int(id_.rpartition("#")[2])
