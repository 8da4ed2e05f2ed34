"""The actor of one workload instance while the service runs: events in, actions out.

The actor decides nothing. It handles the messages in its mailbox one by one (the keeper's reports, commands of
operators, pending rules), turns each into an input for `nsupervisor.core.decider`, carries out the resulting actions
and records them in the journal.

It owns the state of its instance, one object for each part: the decision state (`Decisions`), the present program
(`Program`), what its rules observe (`RuleObserver`), its limits (`LimitWriter`), its output, its exit reports. Other
modules call methods; none assigns an attribute.

The order of two things at a program's exit matters. The counters of its cgroup are read *before* the lifecycle handles
the exit: the kernel counts an OOM kill before it sends the SIGKILL, but the notification of the count may arrive after
the report of the exit, and a rule on the count must see it while its generation is still current.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs
import trio

from nsupervisor.api.control import ExecRefused, ExecTerms
from nsupervisor.cgroups import Cgroup, CgroupError, CgroupGoneError
from nsupervisor.cgroups.limits import recreate_cgroup
from nsupervisor.condition_variable import ConditionVariable
from nsupervisor.config.expansion import Instance
from nsupervisor.config.known_programs import background_remedy
from nsupervisor.config.load import ConfigError
from nsupervisor.config.model import NOTIFY_TYPES, Resources, WorkloadConfig
from nsupervisor.core import events
from nsupervisor.core.actions import (
    Action,
    EndHook,
    FreezeAll,
    KillAll,
    ReleaseSurvivors,
    ReportLeft,
    RunHook,
    Signal,
    Spawn,
    ThawAll,
)
from nsupervisor.core.decider import ConfigChanged, Transition, WorkloadState
from nsupervisor.core.dependencies import related, start_dependencies
from nsupervisor.core.descriptor_store import StoreRequest, keeps_store
from nsupervisor.core.evolve import evolve
from nsupervisor.core.exits import Exit, signal_name
from nsupervisor.core.initiators import OPERATOR, SHUTDOWN, Initiator
from nsupervisor.core.lifecycle import (
    PROBED,
    Lifecycle,
    State,
    awaits_daemon,
    goes_to_background,
    hook_commands,
    hook_prefixes,
    is_forking,
    is_started,
    is_up,
    is_up_without_program,
    is_watchdog_active,
    unfinished_actions,
)
from nsupervisor.core.phases import HOOK_KEYS, PHASES_BEFORE_PROGRAM, PHASES_WITHOUT_PROGRAM, Phase
from nsupervisor.core.records import describe_survivors, transition_records
from nsupervisor.core.rules.rules import Engine, Firing, Limits
from nsupervisor.core.security import settings, values
from nsupervisor.core.start_conditions import StartCondition, start_conditions
from nsupervisor.core.states import ALIVE_STATES, DOWN_STATES
from nsupervisor.keeper.messages import Ended, Execed, KeeperLost, SetupFailure, SpawnError
from nsupervisor.logs import call_in_thread
from nsupervisor.metrics.counters import Counters
from nsupervisor.service.context import ServiceContext
from nsupervisor.service.instance.decisions import Decisions
from nsupervisor.service.instance.devices import device_rules
from nsupervisor.service.instance.exit_reports import ExitReports
from nsupervisor.service.instance.limits import LimitWriter
from nsupervisor.service.instance.log import InstanceLog
from nsupervisor.service.instance.mailbox import (
    Barrier,
    Call,
    Mailbox,
    MailboxClosedError,
    MainAnnounced,
    MainFound,
    Message,
    RetrySpawn,
    RulesPending,
    Shutdown,
    StoreChanged,
    Task,
)
from nsupervisor.service.instance.output import Output
from nsupervisor.service.instance.program import Program
from nsupervisor.service.instance.rule_actions import RuleActions
from nsupervisor.service.instance.rule_observer import RuleObserver
from nsupervisor.service.instance.spawn_spec import cover
from nsupervisor.service.instance.start_status import NO_START, StartStatus
from nsupervisor.service.instance.status import InstanceStatus
from nsupervisor.service.instance.users import IdentityError
from nsupervisor.service.platform.pid_file import PidFileError
from nsupervisor.service.platform.renewed_cover import has_credentials, is_uncovered, renew_cover
from nsupervisor.service.platform.start_obstacle import StartObstacle
from nsupervisor.service.state.file import ExitReport, InstanceCheckpoint

if TYPE_CHECKING:
    from nsupervisor.config.probes import ProbeKind
    from nsupervisor.keeper.entry import Entry, KeptEntry
    from nsupervisor.service.instance.daemon_search import DaemonSearch
    from nsupervisor.service.instance.debug_sandbox import DebugSandbox
    from nsupervisor.service.instance.exec_session import ExecSession
    from nsupervisor.service.instance.hook_commands import HookCommands
    from nsupervisor.service.instance.probes import LatestResult, Probes

CONDITION_TIMEOUT_S = 5.0
"""Seconds until conditions of a start must be known; a network file system may not answer."""
BACKGROUND_S = 10.0
"""Seconds after its start within which a program that exits with success and leaves processes has become a daemon."""
_ACTION_NAMES: Mapping[type[Action], str] = {
    Spawn: "start",
    Signal: "signal",
    RunHook: "run a hook",
    EndHook: "end a hook",
    KillAll: "kill",
    FreezeAll: "freeze",
    ThawAll: "thaw",
    ReleaseSurvivors: "release",
    ReportLeft: "report",
}
"""Names of actions in the record of a failure, as in traces."""

_EXEC_ADVICE = {
    State.STARTING: "wait until it runs: nsupervisor status",
    State.STOPPING: "start it first",
    State.BACKOFF: "wait until it runs: nsupervisor status",
    State.FROZEN: "thaw it first",
}
"""By state: what to do before a command can be executed."""

_EVENTS_OF_NOTIFICATIONS: Mapping[str, type[events.Event]] = {
    "READY": events.Ready,
    "STOPPING": events.Stopping,
    "RESTART_RESET": events.RestartReset,
}
"""The notifications that are events without further values."""

MakeCgroup = Callable[[Resources], Cgroup]
"""Makes the cgroup of an instance, with these limits. Raises CgroupError."""


@attrs.define(eq=False)
class Actor:
    """Runs one workload instance. `name` is "web", or "web@2" if there are several instances."""

    name: str
    configured: WorkloadConfig
    """The workload as in the configuration file; `workload` lacks the rules that this host cannot evaluate."""
    workload: WorkloadConfig
    instance: Instance | None
    cgroup: Cgroup
    context: ServiceContext
    on_started: Callable[[], None]
    """Called when the program has been executed, so that the groups around it sample their levels."""
    _limits: Resources
    """The limits that the cgroup was made with."""
    _lifecycle: Lifecycle = attrs.field(factory=Lifecycle)
    """The lifecycle to begin with."""
    start_status: StartStatus = attrs.field(init=False, default=NO_START)
    """Its start that waits, as `nsupervisor.service.jobs` reports it by `set_start_status`."""
    last_exit: Exit | None = attrs.field(init=False, default=None)
    counters: Counters = attrs.field(init=False, factory=Counters)
    decisions: Decisions = attrs.field(init=False)
    program: Program = attrs.field(init=False)
    observer: RuleObserver = attrs.field(init=False)
    limit_writer: LimitWriter = attrs.field(init=False)
    output: Output = attrs.field(init=False)
    log: InstanceLog = attrs.field(init=False)
    exit_reports: ExitReports = attrs.field(init=False)
    mailbox: Mailbox = attrs.field(init=False, factory=Mailbox)
    is_spawning: bool = attrs.field(init=False, default=False)
    """Whether the keeper is being asked to start a generation."""
    _rule_actions: RuleActions = attrs.field(init=False)
    _probes: Probes | None = attrs.field(init=False, default=None)
    _debug_sandbox: DebugSandbox | None = attrs.field(init=False, default=None)
    """The commands of `exec --debug`; None before the first one."""
    """None until it has a probe."""
    _hooks: HookCommands | None = attrs.field(init=False, default=None)
    """None until a command of a hook has run."""
    _kept_hook: KeptEntry | None = attrs.field(init=False, default=None)
    """The command of a hook that an earlier supervisor has begun, until `run` waits for it."""
    _changed: ConditionVariable = attrs.field(init=False, factory=ConditionVariable)
    _make_next_cgroup: MakeCgroup | None = attrs.field(init=False, default=None)
    """Makes the cgroup for its next generation; None if it keeps the present one."""
    _oom_kills: float = attrs.field(init=False, default=0.0)
    """Value of the cgroup's counter of OOM kills at the latest start."""
    _must_recreate_cgroup: bool = attrs.field(init=False, default=False)
    """Whether the next start makes the cgroup again: that of an earlier supervisor, which may have killed it without a
    note of that, or one of which a part failed."""
    _has_unfinished_actions: bool = attrs.field(init=False, default=False)
    """Whether actions of the lifecycle have yet to be carried out."""
    _failed_start_id: str = attrs.field(init=False, default="")
    """The id of the latest start that failed. If it was killed in its set-up, its later exit report is ignored."""
    _sigkilled_id: str = attrs.field(init=False, default="")
    """The id of the latest start whose program alone got SIGKILL, from an operator or a rule."""
    _must_recover: bool = attrs.field(init=False, default=False)
    """Whether an earlier supervisor has left processes or a checkpoint."""
    _sockets_made_meanwhile: bool | None = attrs.field(init=False, default=None)
    """Whether a socket was made again while the program was being set up; None if none was looked for."""
    _exec_count: int = attrs.field(init=False, default=0)
    """The number of commands that have been executed in it; their ids have it."""
    _service_stops: bool = attrs.field(init=False, default=False)
    """Whether the service stops, so that no other generation may start."""
    _daemon_search: DaemonSearch | None = attrs.field(init=False, default=None)
    """Looks for the daemon that the program has become; None before that is needed."""
    _announced_main: tuple[int, int] = attrs.field(init=False, default=(0, 0))
    """The generation and the pid of the process that MAINPID has named, until it is the program."""
    _main_changed_in: int = attrs.field(init=False, default=0)
    """The latest generation in which another process became the program."""
    _has_reported_main: bool = attrs.field(init=False, default=False)
    """Whether a warning about MAINPID was logged in this generation."""
    _unacknowledged_id: str = attrs.field(init=False, default="")
    """The id of a start whose program has ended, and whose other processes run on: the keeper has their pipes."""
    _saved: InstanceCheckpoint | None = attrs.field(init=False, default=None)
    """The checkpoint that it has left, until `run` has completed what it says."""

    _dependencies: tuple[str, ...] = attrs.field(init=False)
    """The workloads that it starts after, for each checkpoint."""

    def __attrs_post_init__(self) -> None:
        context, nursery = self.context, self.context.nursery
        self._dependencies = start_dependencies(self.workload)
        self.log = InstanceLog(self.name, self.instance, context.journal)
        state = WorkloadState(self._lifecycle, Engine.for_rules(self.workload.policy))
        self.decisions = Decisions(
            self.name, self.workload, context.listeners, self._rules_pending, state, context.kernel.random
        )
        self.program = Program(
            self.name,
            self.instance,
            context,
            self._on_notification,
            self._on_status,
            self._on_barrier,
            self._on_store,
            lambda: self.workload.notify_access == "main",
            lambda: self.workload.file_descriptor_store_max,
        )
        self.observer = RuleObserver(
            *(self.cgroup, context.watcher, self.decisions, self._on_host_problem),
            on_emptied=self._on_emptied,
            probe_values=self._probe_values,
        )
        self.limit_writer = LimitWriter(
            self.cgroup, self.workload, self._limits, nursery, self.log_event, self._on_limits_changed
        )
        self._rule_actions = RuleActions(self.log_event, self.limit_writer, self.counters, context.measures, nursery)
        pattern = self.workload.readiness_pattern
        self.output = Output(self.name, self.instance, self.workload.log, self.counters, context, pattern)
        self.exit_reports = ExitReports(self.log, context.when_written.add, self.save_checkpoint_later)

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

    def call(self, command: events.Command) -> trio.Event:
        """Post a command; return the event that is set when it has been handled."""
        return self.mailbox.call(command)

    async def wait_until(self, condition: Callable[[Lifecycle], bool]) -> None:
        """Wait until `condition(lifecycle)` is true; it is checked after each change."""
        await self._changed.wait_for(lambda: condition(self.lifecycle))

    def set_start_status(self, status: StartStatus) -> None:
        """Note the start that waits, for the status and the next supervisor; for `nsupervisor.service.jobs` alone."""
        before, self.start_status = self.start_status, status
        # After a start, the saved generation shows that it does not wait any more, and the next checkpoint is near.
        has_started = not status.requested_by and before.replaces not in (None, self.lifecycle.generation)
        if status.requested_by != before.requested_by and not has_started:
            self.save_checkpoint()
        self._update_store(self.lifecycle)

    def wake_waiters(self) -> None:
        """Check the conditions of `wait_until` again, after a change outside the lifecycle (a start that waited)."""
        self._changed.notify()

    async def run(self) -> None:
        """Handle messages until `retire`."""
        with self.contain_errors("cannot begin to watch it"):
            if self._must_recover:
                await self._recover()
            else:
                self.observer.watch()
        with self.contain_errors("cannot watch its watchdog"):
            self._update_store(self.lifecycle)
            self.program.set_watchdog(is_watchdog_active(self.lifecycle, self.workload))
            self._update_probes()
            self._update_daemon_search()
        while not isinstance(message := await self.mailbox.receive(self.lifecycle.deadline), Shutdown):
            with self.contain_errors(f"cannot handle {type(message).__name__}"):
                await self._handle(message)
            self._stop_between_generations()
        if barriers := self.mailbox.close():
            self.context.kernel.descriptors.discard(barriers)
        if self._daemon_search is not None:
            self._daemon_search.update(None, self._find_daemon)
        self.observer.unwatch()
        self.limit_writer.close()
        self._changed.notify()

    def contain_errors(self, doing: str) -> AbstractContextManager[None]:
        """Log an error about this instance, and continue: see `InstanceLog.contain_errors`."""
        return self.log.contain_errors(self.lifecycle.generation, doing)

    def begin_service_stop(self) -> None:
        """Start no other generation from now on; the stop of one that runs comes later, after its dependents."""
        self._service_stops = True
        if not self.lifecycle.is_alive:  # what is left of earlier programs must not delay the end of the service
            self.output.release()
        self._stop_between_generations()

    def _stop_between_generations(self) -> None:
        # First: what is queued may be the exit after which the next generation would start.
        is_between = self.lifecycle.state in (State.STOPPING, State.BACKOFF)
        if self._service_stops and is_between and self.lifecycle.should_run:
            self.mailbox.post_first(events.Stop(SHUTDOWN))

    async def retire(self) -> None:
        """Stop the task of this actor, after all messages in its mailbox; the program has stopped before."""
        self.post(Shutdown())
        await self.mailbox.closed.wait()
        if self.lifecycle.has_left:
            self.cgroup.kill()  # with `kill_mode = "process"`: its cgroup is removed next
            with trio.move_on_after(self.workload.timeout_stop_sec):
                while self.is_populated():  # noqa: ASYNC110 - rare and brief
                    await trio.sleep(0.005)
        if self._debug_sandbox is not None:
            await self._debug_sandbox.end()  # no other can begin, and the cgroup is removed next
        self.output.retire()
        self.context.stores.release(self.name)

    def close_cgroup(self) -> None:
        """Close the cgroup, which continues without this service; a later sample would open its files again."""
        self.observer.unwatch()
        self.cgroup.close()

    def save_checkpoint(self) -> None:
        """Save the checkpoint for the next supervisor."""
        self.context.later_saves.discard(self.name)
        if not self.mailbox.closed.is_set():
            self.context.state.save(self.name, self.to_checkpoint())

    def save_checkpoint_later(self) -> None:
        """Save the checkpoint soon: what is new in it need not survive a kill of the supervisor that comes first."""
        self.context.later_saves.add(self.name, self.save_checkpoint)

    def to_checkpoint(self) -> InstanceCheckpoint:
        """Return what the next supervisor needs to know of this instance."""
        start_initiator = self.start_status.requested_by
        scaled_from = self.configured.scaled_from or 0
        return InstanceCheckpoint(
            lifecycle=self.lifecycle,
            process=self.program.process,
            last_exit=self.last_exit,
            oom_kills=self._oom_kills,
            has_unfinished_actions=self._has_unfinished_actions,
            recreate_cgroup=self.cgroup.was_killed,
            rules=self.decisions.saved_rules(),
            changed_limits=self.limit_writer.overrides,
            pending_start=str(start_initiator or ""),
            pending_detail=start_initiator.detail if start_initiator and start_initiator.kind == "person" else "",
            spawn_digest=self.program.spawn_digest,
            kill_signal=self.workload.kill_signal,
            timeout_stop_sec=self.workload.timeout_stop_sec,
            kill_mode=self.workload.kill_mode,
            send_sighup=self.workload.send_sighup,
            final_kill_signal=self.workload.final_kill_signal,
            limits_digest=self.limit_writer.applied_digest,
            undelivered=self.exit_reports.undelivered,
            environment_digest=self.program.environment_digest,
            replaced_generation=self.start_status.replaces,
            dependencies=self._dependencies,
            watchdog_sec=self.program.watchdog_sec,
            start_revision=self.program.start_revision,
            start_has_failed=self.start_has_failed,
            announced_main=self._announced_main[1] if self._announced_main[0] == self.lifecycle.generation else 0,
            scaled_to=self.configured.instances if isinstance(self.configured.instances, int) and scaled_from else 0,
            scaled_from=scaled_from,
        )

    async def wait_drained(self) -> None:
        """Wait until all output of ended generations has been read, and their exits have been recorded."""
        await self.output.wait_drained()
        await self.exit_reports.wait_delivered()

    async def signal(self, signum: int, by: Initiator = OPERATOR) -> bool:
        """Send a signal to the program for an operator or a workload; return False if none runs."""
        if not self.lifecycle.is_alive:
            return False
        self.log_event("action", action="signal", cause=by.cause(), signal=signal_name(signum))
        return await self._send_signals(signum)

    async def reload(self, by: Initiator = OPERATOR) -> tuple[bool, str]:
        """Have the program read its configuration again; return whether it has, and why not, or what was done."""
        workload = self.workload
        signum = workload.signal_of_reload
        if signum is None and not workload.exec_reload:
            return False, "it has neither reload_signal nor exec_reload; set one, or restart it"
        before = self.lifecycle
        if before.state not in (State.RUNNING, State.READY):
            return False, f"it is {before.state.value}; only a program that runs can be reloaded"
        if before.is_reloading:
            return False, "a reload is under way already; try again when it is over"
        if not is_started(before, workload):
            return False, "its start is not complete; wait until it is up: nsupervisor status"
        await self.ask(events.Reload(by))
        begun = self.lifecycle
        if begun.generation != before.generation or begun.state not in (State.RUNNING, State.READY):
            return False, "it has ended meanwhile; more with: nsupervisor why"
        if not begun.is_reloading:
            return True, f"{signal_name(signum)} sent" if signum is not None else "reloaded"
        await self.wait_until(lambda now: not _is_same_reload(begun, now))
        after = self.lifecycle
        if after.generation != begun.generation or after.is_reloading:
            return False, "it has ended meanwhile; more with: nsupervisor why"
        return not after.reload_failure, after.reload_failure or "reloaded"

    async def change_limits(self, changes: Mapping[str, Any], by: Initiator = OPERATOR) -> tuple[bool, str]:
        """Call `LimitWriter.change_limits`; this needs no message, since no pending decision depends on limits."""
        return await self.limit_writer.change_limits(changes, by)

    @property
    def resources(self) -> Resources:
        """The limits in force: the configured ones, with later changes by operators and rules."""
        return self.limit_writer.resources

    @property
    def limits(self) -> Limits:
        """The limits in force, as the kernel has them."""
        return self.observer.limits

    def exec(self, terms: ExecTerms, by: Initiator) -> ExecSession:
        """Return the session of a command in this instance, which begins with its `run`. `by`: who gives it.

        Raises ExecRefused unless the program runs, with known settings. With `terms.is_debug` it must not run.
        """
        from nsupervisor.service.instance.exec_session import ExecSession  # few services execute commands

        lifecycle = self.lifecycle
        if terms.is_debug:
            return self._debug(terms, by)
        if lifecycle.state not in (State.RUNNING, State.READY):
            advice = _EXEC_ADVICE.get(lifecycle.state, "start it first")
            reason = f": {lifecycle.reason}" if lifecycle.reason else ""
            raise ExecRefused(f"{self.name} is {lifecycle.state.value}{reason}; {advice}")
        spec = self._exec_spec(terms)

        def log(event: str, **fields: Any) -> None:
            self.log.write(lifecycle.generation, event, **fields)

        enter = partial(self.context.keeper.enter, self.id, spec)
        return ExecSession(self.context, lifecycle.generation, spec, terms, by, self.wait_until, log, enter)

    def _debug(self, terms: ExecTerms, by: Initiator) -> ExecSession:
        """Return the session of a command in a sandbox as the program's, which does not run. Raises ExecRefused."""
        from nsupervisor.service.instance.debug_sandbox import DebugSandbox
        from nsupervisor.service.instance.exec_session import ExecSession

        self._check_debug()
        try:
            spec, directories = self.program.debug_spec(self.workload, self.lifecycle, self.cgroup, terms)
        except (IdentityError, ConfigError, OSError, ExecRefused) as error:
            raise ExecRefused(f"{self.name}: {error}") from None
        generation = self.lifecycle.generation
        self._exec_count += 1
        spec["id"] = f"{self.id}/{self._exec_count}"

        async def enter(stdio: Sequence[int], has_terminal: bool) -> Entry:
            started: list[Entry] = []

            async def start() -> None:
                self._check_debug()
                if "name_files" in spec:
                    spec["name_files"] = await self.program.prepare_name_files(self.workload, spec["hostname"])
                await self._prepare_cgroup()
                if self._debug_sandbox is None:
                    self._debug_sandbox = DebugSandbox(self.context)
                placed = {**spec, **self.cgroup.place}  # the preparation may have moved it
                started.append(await self._debug_sandbox.start(placed, directories, self.cgroup, stdio, has_terminal))

            try:
                await self.mailbox.perform(start)
            except (ExecRefused, CgroupError, OSError, MailboxClosedError) as error:
                raise SpawnError("debug", str(error) or "the instance has been removed", 0) from None
            return started[0]

        def log(event: str, **fields: Any) -> None:
            self.log.write(generation, event, **fields)

        return ExecSession(self.context, generation, spec, terms, by, self.wait_until, log, enter)

    def _check_debug(self) -> None:
        """Raise ExecRefused if a command in place of the program may not be started now."""
        state, name = self.lifecycle.state, self.name
        if state in (State.RUNNING, State.READY):
            raise ExecRefused(f"{name} is {state.value}; use exec without --debug, which enters it")
        if state not in (State.FAILED, State.EXITED, State.STOPPED):
            raise ExecRefused(f"{name} is {state.value}; stop it first, so that no start ends the command")
        if self._debug_sandbox is not None and self._debug_sandbox.is_active:
            raise ExecRefused(f"{name} has a command of exec --debug already; end that first")

    def _exec_spec(self, terms: ExecTerms) -> dict[str, Any]:
        """Return the specification of a command in the present generation, with an id of its own."""
        try:
            spec = self.program.exec_spec(self.workload, self.lifecycle, self.cgroup, terms)
        except (IdentityError, ConfigError, OSError) as error:
            raise ExecRefused(f"{self.name}: {error}") from None
        except ExecRefused as refused:
            raise ExecRefused(f"{self.name}: {refused}") from None
        self._exec_count += 1
        return {**spec, "id": f"{self.id}/{self._exec_count}"}

    def impose(self, firing: Firing, generation: int) -> None:
        """Queue the action of a group's rule that chose this instance; it is dropped if the generation has ended."""
        self.decisions.impose(firing, generation)

    def plan_move(self, make_cgroup: MakeCgroup | None) -> None:
        """Start the next generation in a cgroup that this makes; None keeps the present cgroup."""
        self._make_next_cgroup = make_cgroup

    def apply_config(self, configured: WorkloadConfig, workload: WorkloadConfig) -> None:
        """Switch to another configuration of this workload; what needs a new process applies to the next one.

        `configured` is the workload as in the file, `workload` the one without the rules that this host cannot
        evaluate. The limits are changed by `LimitWriter`.
        """
        has_new_rules = self.workload.policy != workload.policy
        if has_new_rules:
            self.observer.read_counters()  # changes so far belong to the old rules
        if workload.log != self.workload.log:
            self.output.apply_config(workload.log)
        self.output.set_readiness_pattern(workload.readiness_pattern)
        if workload != self.workload:
            self.decisions.handle(ConfigChanged(workload))
        self.configured, self.workload = configured, workload
        self._dependencies = start_dependencies(workload)
        self.limit_writer.configure(workload)
        self._update_probes()
        if has_new_rules:
            try:
                self.observer.move_to(self.cgroup)
            except (CgroupError, OSError) as error:
                self.log_event("warning", "error", message=f"its rules get no news: {error}")
            if self.lifecycle.is_alive:
                self.observer.resume_sampling()

    @property
    def start_has_failed(self) -> bool:
        """Whether the start of the present generation has failed, and the message about that is in the mailbox."""
        lifecycle = self.lifecycle
        return self._failed_start_id == self.id and lifecycle.is_alive and lifecycle.exit is None

    @property
    def is_up(self) -> bool:
        """Whether dependents may start: the workload is up, or has done its single job."""
        return is_up(self.lifecycle, self.workload)

    @property
    def is_down(self) -> bool:
        """Whether no process lives, and none will start by itself."""
        return self.lifecycle.state in DOWN_STATES

    async def find_start_obstacle(self, workload: WorkloadConfig | None = None) -> StartObstacle | None:
        """Return what would make the next start fail, with `workload` or with the present configuration."""
        wanted = workload or self.workload
        return await self.program.find_start_obstacle(wanted, self.lifecycle.generation + 1, self.cgroup)

    def status(self) -> dict[str, Any]:
        """Return the object that `status --json` shows for this instance."""
        status = InstanceStatus(
            name=self.name,
            instance=self.instance,
            description=self.workload.description,
            command=self.workload.command,
            root=self.workload.root.path or "",
            lifecycle=self.lifecycle,
            hook_count=self._hook_count(),
            waits_for=self.start_status.waits_for,
            is_up=self.is_up,
            edges=related(self.workload),
            pid=self.program.pid,
            cgroup=self.cgroup.shown_path,
            limits={**self.limits, **self.cgroup.read_limits()},
            last_exit=self.last_exit,
            last_event=self.log.last_event,
            status_text=self.log.status_text(self.lifecycle.generation),
            probes=self.probe_results,
            error_text=self.log.error_text(self.lifecycle.generation),
            has_left=self.lifecycle.has_left and not self.lifecycle.is_alive and self.is_populated(),
            sockets=self.context.sockets.status(self.workload),
            stored_descriptors=self.context.stores.names(self.name),
            max_stored=self.workload.file_descriptor_store_max,
            awaited_traffic=self.context.sockets.awaited_traffic(self.workload),
            traffic=self.traffic(),
            blockage=max(self.output.blockages().values(), key=lambda blockage: blockage.seconds, default=None),
        )
        return status.to_json(self.observer.read, trio.current_time())

    def traffic(self) -> Mapping[str, int | None]:
        """Return the traffic of its network, as `read_traffic` does; None for all if that is the host's."""
        has_own = self.lifecycle.is_alive and bool(self.workload.namespaces.network)
        return self.context.kernel.read_traffic(self.program.pid if has_own else None)

    def _hook_count(self) -> int:
        phase = self.lifecycle.phase
        return len(hook_commands(self.workload, phase)) if phase in HOOK_KEYS else 0

    # ---- messages

    def _rules_pending(self) -> None:
        self.post(RulesPending())

    def _on_emptied(self) -> None:
        if self.lifecycle.is_alive:
            self.post(events.Emptied(self.lifecycle.generation))

    async def _handle(self, message: Message) -> None:
        match message:
            case RulesPending():
                await self._run_pending()
                self.save_checkpoint()
            case Execed(id=self._failed_start_id):
                pass
            case events.Emptied() if not self.lifecycle.is_alive:
                pass  # the exit, which came before, was the end of its last process
            case Execed(id=id_, pid=pid):
                if id_ == self.id and self.program.process is None:
                    self.program.executed(pid)
                    self.log_event("started", pid=pid)
                    self.observer.program_started()
                    self.output.begin(self.lifecycle.generation, pid)
                    if self._sockets_made_meanwhile is not None:
                        self._show_sockets(self._sockets_made_meanwhile)
                        self._sockets_made_meanwhile = None
                if id_ == self.id:
                    self.on_started()
                if not await self._on_event(events.Execed(generation_of(id_))):
                    self.save_checkpoint()
                await self._follow_announced_main()
            case Barrier(fd=fd):
                self.context.kernel.descriptors.discard([fd])
            case StoreChanged():
                if problem := await self.context.stores.sync(self.name):
                    self.log_event("warning", "warning", message=f"descriptor store: {problem}")
            case RetrySpawn(id=id_):
                if id_ == self.id and self.program.process is None:
                    if self.lifecycle.state is State.STARTING:
                        await self._clear_failed_start()
                        await self._spawn(self.lifecycle.generation)
                    elif self.lifecycle.is_alive:  # a command that came first is stopping what has not started
                        await self._on_exit(Ended(id_, -1))
            case Ended():
                await self._on_exit(message)
            case Task():
                await message.perform()
            case MainFound(generation=generation, pid=pid):
                if generation == self.lifecycle.generation:
                    await self._change_main(pid)
            case MainAnnounced():
                await self._follow_announced_main()
            case Call(command=command, handled=handled):
                try:
                    if not (self._service_stops and isinstance(command, events.Start | events.Restart)):
                        await self._on_event(command)
                finally:
                    handled.set()
            case events.HookDone():
                await self._on_event(attrs.evolve(message, is_populated=self.is_populated()))
                if self._hooks is not None:
                    await self._hooks.acknowledge(message)
            case events.Input():
                await self._on_event(message)

    async def _on_exit(self, ended: Ended) -> None:
        if ended.id == self.id and self._is_of_earlier_main():
            return
        if ended.id == self.id and is_up_without_program(self.lifecycle):
            self._unacknowledged_id = ended.id
            return
        if ended.id != self.id or ended.id == self._failed_start_id or self.lifecycle.exit is not None:
            await self.context.keeper.acknowledge(ended.id)
            return
        exit_ = Exit.from_wait_status(ended.status)
        if ended.failure is None and self._goes_to_background(exit_):
            self._unacknowledged_id = ended.id
            self.program.left_background()
            await self._on_event(events.Exited(self.lifecycle.generation, exit_, populated=True))
            return
        # Its messages may be unread, or behind this one in the mailbox.
        is_ready = self.program.read_notifications()
        if ended.failure is None and await self._follow_announced_main():  # it has handed over to another process
            return
        self.log.hold()  # start the next generation first, and write the records afterwards
        generation = self.lifecycle.generation
        if is_ready and self.lifecycle.state is not State.READY:  # it is about its start, not about a reload
            await self._on_event(events.Ready(generation))
        self.observer.read_counters()
        await self._run_pending()
        exit_ = self.report_exit(ended.status, ended.failure)
        if exit_.has_run:
            self.observer.program_exited(exit_)
            await self._run_pending()
        self.output.begin(generation, self.program.pid)
        self.program.exited()
        await self._on_event(events.Exited(generation, exit_, self.is_populated()))
        self.exit_reports.release()
        if is_up_without_program(self.lifecycle) and ended.id == self.id:
            self._unacknowledged_id = ended.id
        else:
            await self.context.keeper.acknowledge(ended.id)

    def _goes_to_background(self, exit_: Exit) -> bool:
        lifecycle, workload = self.lifecycle, self.workload
        # First what costs no reading of a file.
        return is_forking(lifecycle, workload) and goes_to_background(lifecycle, exit_, self.is_populated(), workload)

    def _is_of_earlier_main(self) -> bool:
        """Return whether a report of an exit is about the process that was the program before the present one.

        Race: the keeper may have sent it before it followed the present one.
        """
        has_changed = self._main_changed_in == self.lifecycle.generation and self.program.pidfd >= 0
        return has_changed and not self.context.kernel.processes.has_ended(self.program.pidfd)

    async def _follow_announced_main(self) -> bool:
        """Continue with the process that MAINPID has named, if the program has been executed; return whether it has."""
        generation, pid = self._announced_main
        if not pid or self.lifecycle.state is State.STARTING:
            return False
        is_followed = generation == self.lifecycle.generation and await self._change_main(pid, "MAINPID")
        if self._announced_main == (generation, pid):
            self._announced_main = 0, 0
        return is_followed

    def _on_main_announced(self, generation: int, kind: str, text: str) -> None:
        """Note the process that a message names as the program; a message about another one is a warning."""
        if generation != self.lifecycle.generation:
            return
        processes, pids = self.context.kernel.processes, self.cgroup.pids()
        pid, named = None, "no number"
        if kind == "MAINPIDFD":
            pid = processes.pid_of(int(text))
            named = "a process" if pid is None else f"process {pid}"
        elif text:
            number, sender = map(int, text.split())
            pid, named = (
                processes.find_numbered(number, sender, pids, self.workload.namespaces.pid),
                f"process {number}",
            )
        if pid is None or pid not in pids:
            self._on_main_problem(f"{kind} names {named}, which is not part of this workload")
        elif pid != self.program.pid:
            self._announced_main = generation, pid
            self.save_checkpoint()  # the message is not sent again, and the program may end at any time
            self.post(MainAnnounced())

    def _on_main_problem(self, problem: str) -> None:
        if not self._has_reported_main:  # once a generation: a program may send it in each message
            self._has_reported_main = True
            self.log_event("warning", "warning", message=problem)

    async def _change_main(self, pid: int, source: str = "pid_file") -> bool:
        """Continue with another process of the workload as its program; return whether that was possible."""
        if pid == self.program.pid or self.lifecycle.state not in (State.RUNNING, State.READY, State.FROZEN):
            return False
        problem = await self.program.change_main(self.id, pid, self.cgroup)
        if problem and source == "MAINPID":
            self._on_main_problem(f"{source}: {problem}")
        elif problem:
            self._on_daemon_problem(problem)
        if problem:
            return False
        self._unacknowledged_id, self._main_changed_in = "", self.lifecycle.generation
        self.log_event("main process", pid=pid, message=f"process {pid} is its program from now on")
        await self._on_event(events.NewMain(self.lifecycle.generation))
        return True

    def _on_daemon_found(self, generation: int, pid: int) -> None:
        self.post(MainFound(generation, pid))

    def _on_daemon_problem(self, problem: str) -> None:
        self.log_event("warning", "warning", message=f"pid_file: {problem}")

    def _find_daemon(self) -> int:
        """Return the pid of the daemon. Raises FileNotFoundError and PidFileError."""
        if self.workload.pid_file is None:  # a reload has removed it
            raise FileNotFoundError
        try:
            owners = self.program.pid_file_owners(self.workload, self.lifecycle.generation, self.cgroup)
        except (IdentityError, ConfigError, OSError) as error:
            raise PidFileError(f"the owner that {self.workload.pid_file} may have is unknown: {error}") from None
        path, is_namespaced = self.workload.pid_file, self.workload.namespaces.pid
        return self.context.kernel.find_daemon(path, owners, self.cgroup.pids(), is_namespaced)

    async def _acknowledge_end(self) -> None:
        """Let the keeper forget a program that has ended, if nothing of its generation runs any more."""
        is_over = self._unacknowledged_id != self.id or not is_up_without_program(self.lifecycle)
        if self._unacknowledged_id and is_over:
            id_, self._unacknowledged_id = self._unacknowledged_id, ""
            await self.context.keeper.acknowledge(id_)

    def report_exit(self, status: int, failure: SetupFailure | None) -> Exit:
        """Report how this generation ended, from its wait status and the OOM kills that its cgroup has counted."""
        reason = failure.message if failure else None
        # Once the supervisor has sent SIGKILL, the count says nothing about the program: a child may have been chosen.
        was_killed = self.lifecycle.sigkill_sent or self._sigkilled_id == self.id
        exit_ = Exit.from_wait_status(status, oom_killed=not was_killed, setup_failure=reason)
        if exit_.oom_killed:  # it may be; after another end the counter, whose file is not kept open, need not be read
            exit_ = evolve(exit_, oom_killed=self._read_oom_kills() > self._oom_kills)
        if remedy := self._background_remedy(exit_):
            exit_ = evolve(exit_, background_remedy=remedy)
        self.last_exit = exit_
        self.exit_reports.report(
            ExitReport(self.lifecycle.generation, self.last_exit, self.program.pid),
            uptime_sec=round(trio.current_time() - self.lifecycle.started_at, 3),
        )
        return self.last_exit

    def _background_remedy(self, exit_: Exit) -> str:
        """Return what keeps a program in the foreground that has become a daemon by this exit; "" if it has not."""
        lifecycle, workload = self.lifecycle, self.workload
        is_brief = trio.current_time() - lifecycle.started_at <= BACKGROUND_S
        if exit_.code != 0 or not is_brief or lifecycle.state is State.STOPPING or workload.type == "oneshot":
            return ""
        return background_remedy(workload.command, self.is_populated())

    # ---- transitions

    async def _on_event(self, event: events.Input) -> bool:
        """Handle an event; return as `_carry_out`."""
        return await self._carry_out(self.lifecycle, self.decisions.handle(event))

    async def _run_pending(self) -> None:
        """Run the pending actions of fired rules; an action for an earlier generation does nothing."""
        while (step := self.decisions.run_next_pending()) is not None:
            before, transition = step
            if transition.executed is not None:
                self._rule_actions.begin(transition.executed)
                await self._carry_out(before, transition)

    async def _carry_out(self, before: Lifecycle, transition: Transition) -> bool:
        """Record and carry out a transition that an input or a pending action has caused.

        Returns whether it has changed anything; the checkpoint has then been saved.
        """
        after, input_ = transition.state.lifecycle, transition.lifecycle_input
        if after is before and not transition.actions:
            return False
        if input_ is not None:
            now = trio.current_time()
            self.counters.count_transition(before, input_, after, self.workload, now)
            for record in transition_records(before, input_, after, self.last_exit, self.workload, now):
                self.log_event(record.event, record.level, **record.fields)
        # Save before acting: the next supervisor completes what this one has decided. A start is the exception: it is
        # saved while the keeper works on it, since the keeper's table, or the cgroup, will show it.
        # After commands that have run before it, their end must not be handled again.
        starts = any(isinstance(action, Spawn) for action in transition.actions)
        starts = starts and before.phase not in PHASES_BEFORE_PROGRAM
        self._has_unfinished_actions = bool(transition.actions) and not starts
        if not starts:
            self.save_checkpoint()
        self._update_store(before)
        self._report_failed_hook(before, after)
        self.output.set_stopping(after.state is State.STOPPING)
        has_watchdog = is_watchdog_active(after, self.workload)
        if not has_watchdog:
            self.program.set_watchdog(False)
        for action in transition.actions:
            await self._perform(action)
        if before.state in ALIVE_STATES and after.state not in ALIVE_STATES:
            with self.contain_errors("cannot remove its runtime directory"):
                await self.program.remove_directories(self.workload)
            await self.context.name_files.release(self.name)
            await self.context.networks.release(self.name)
        self.program.set_watchdog(has_watchdog)  # after a thaw: a program that cannot run cannot send anything
        self._update_probes()
        self._update_daemon_search()
        await self._acknowledge_end()
        if self._has_unfinished_actions:
            self._has_unfinished_actions = False
            if any(isinstance(action, RunHook) for action in transition.actions):
                self.save_checkpoint()  # if the keeper dies, too, only this says that the command has begun
            else:
                self.save_checkpoint_later()
        self._changed.notify()
        return True

    def _report_failed_hook(self, before: Lifecycle, after: Lifecycle) -> None:
        """Report the end of a generation whose program was not started, because of a command before it."""
        is_over = before.phase in PHASES_BEFORE_PROGRAM and before.exit is None and after.exit is not None
        if is_over and before.generation == after.generation and not self.start_has_failed:
            self.last_exit = after.exit
            assert after.exit is not None
            self.exit_reports.report(ExitReport(after.generation, after.exit))
            self.exit_reports.release()
            self.save_checkpoint()

    async def _perform(self, action: Action) -> None:
        """Carry out one action; a failure is logged."""
        try:
            match action:
                case Spawn(generation=generation):
                    await self._spawn(generation)
                case Signal(signal=signum, whole_cgroup=everyone, resumes=resumes):
                    signums = (signum, signal.SIGCONT) if resumes else (signum,)
                    if not everyone:
                        await self._send_signals(*signums)
                        return
                    for number in signums:
                        self.cgroup.send_signal(number)
                case RunHook(phase=phase, step=step):
                    await self._run_hook(phase, step)
                case EndHook():
                    if self._hooks is not None:
                        self._hooks.end()
                case KillAll():
                    self.cgroup.kill()
                case FreezeAll():
                    self.cgroup.freeze()
                case ThawAll():
                    self.cgroup.thaw()
                case ReleaseSurvivors(seconds=seconds, is_reported=is_reported):
                    self._release_survivors(seconds, is_reported)
                case ReportLeft():
                    self._report_left("run on")
        except (OSError, CgroupError) as error:
            self.log_event("warning", "error", message=f"{_ACTION_NAMES[type(action)]}: {error}")

    async def _run_hook(self, phase: Phase, step: int) -> None:
        """Begin a command of a hook; if that is not possible, its end is posted at once.

        Race: a signal to the cgroup may follow. So this returns when the command has its process, which is in there.
        """
        generation, commands = self.lifecycle.generation, hook_commands(self.workload, phase)
        failed = events.HookDone(generation, phase, step, False)
        try:
            if step >= len(commands):
                raise ExecRefused("a reload of the configuration has removed it")
            if phase in PHASES_WITHOUT_PROGRAM:
                await self._run_hook_without_program(failed, commands)
                return
            pid = self.program.pid
            own_pid = self.context.kernel.processes.pid_in_namespace(pid) if pid is not None else None
            if own_pid is None:
                raise ExecRefused("the program has ended")
            if phase is Phase.RELOAD:
                self._hook_runner().run(self.id, generation, phase, step, commands[step], own_pid)
                return
            spec = self._exec_spec(_hook_terms(commands[step], {"MAINPID": str(own_pid)}))
            await self._start_hook(self.id, spec, failed)
        except (ExecRefused, IdentityError, ConfigError, CgroupError, OSError, SpawnError, KeeperLost) as error:
            message = error.message if isinstance(error, SpawnError) else str(error)
            self.post(attrs.evolve(failed, detail=f"not run: {message}"))

    async def _run_hook_without_program(self, failed: events.HookDone, commands: Sequence[tuple[str, ...]]) -> None:
        """Begin a command before the program, or after its end: in the empty cgroup, and in a sandbox of its own.

        Raises as a start does.
        """
        is_first = failed.phase in PHASES_BEFORE_PROGRAM and not failed.step
        is_first = is_first and (failed.phase is Phase.CONDITION or not self.workload.exec_condition)
        if is_first and (unmet := await self._find_unmet_condition()) is not None:
            self._report_start_failure(failed.generation, Exit(skipped=str(unmet)))
            return
        variables: dict[str, str] = {}
        if failed.phase is Phase.STOP_POST:
            from nsupervisor.service.instance.hook_commands import environment_after_end

            variables = environment_after_end(self.lifecycle, self.workload)
        if self._debug_sandbox is not None:
            await self._debug_sandbox.end()
        await self._prepare_cgroup()
        terms = _hook_terms(commands[failed.step], variables)
        spec = self.program.hook_spec(self.workload, self.lifecycle, self.cgroup, terms)
        await self._start_hook(None, spec, failed)

    async def _start_hook(self, into: str | None, spec: Mapping[str, Any], failed: events.HookDone) -> None:
        from nsupervisor.service.instance.hook_commands import hook_id  # few workloads have hooks

        named = {**spec, "id": hook_id(self.id, failed.phase, failed.step)}
        await self._hook_runner().start(into, named, failed)

    def _hook_runner(self) -> HookCommands:
        if self._hooks is None:
            from nsupervisor.service.instance.hook_commands import HookCommands  # few workloads have hooks

            self._hooks = HookCommands(self.context, self.post, self._exec_spec)
        return self._hooks

    def expect_hook(self, kept: KeptEntry) -> bool:
        """Return whether a command of a hook is the present one, and `run` waits for it; only before `run`."""
        from nsupervisor.service.instance.hook_commands import hook_id

        lifecycle = self.lifecycle
        if lifecycle.phase not in HOOK_KEYS or kept.entry.id != hook_id(self.id, lifecycle.phase, lifecycle.step):
            return False
        self._kept_hook = kept
        return True

    async def _resume_hook(self, lifecycle: Lifecycle, has_decided: bool, is_begun: bool) -> None:
        """Wait for the command of a hook that an earlier supervisor has begun, or run it.

        `has_decided`: that supervisor had decided to begin it; `is_begun`: it had done so. Without the keeper it is run
        again then.
        """
        failed = events.HookDone(lifecycle.generation, lifecycle.phase, lifecycle.step, False)
        kept, self._kept_hook = self._kept_hook, None
        if lifecycle.phase is Phase.RELOAD:
            self.post(attrs.evolve(failed, detail="has ended with the earlier supervisor"))
        elif kept is not None:
            self._hook_runner().resume(kept, failed)
        else:
            name = f"{HOOK_KEYS[lifecycle.phase]}[{lifecycle.step}]"
            if is_begun:
                text = f"{name} is run again: it has ended with the supervisor and the keeper that had begun it"
                self.log_event("hook repeated", "warning", message=text)
            elif has_decided:
                text = f"{name} is run, perhaps again: the supervisor that wanted to begin it has ended meanwhile"
                self.log_event("hook repeated", "warning", message=text)
            if lifecycle.phase in PHASES_WITHOUT_PROGRAM:
                await self._clear_failed_start()
            await self._run_hook(lifecycle.phase, lifecycle.step)

    async def _send_signals(self, *signums: int) -> bool:
        """Send signals to the program, in this order; return False if it has ended."""
        if signal.SIGKILL in signums:
            self._sigkilled_id = self.id
        return await self.context.keeper.signal(self.id, *signums)

    def _release_survivors(self, seconds: float, is_reported: bool) -> None:
        """Release processes that others have frozen, and log once why they have survived SIGKILL."""
        frozen = self.context.kernel.release_frozen(self.cgroup.pids())
        if is_reported:
            return
        details = (frozen.pids, frozen.directories, frozen.problem) if frozen is not None else ()
        self.log_event("warning", "warning", message=describe_survivors(seconds, *details))

    # ---- starts

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
        self.program.close_notify_socket()
        if self.is_populated():
            self.cgroup.kill()
            while self.is_populated():  # noqa: ASYNC110 - rare and brief
                await trio.sleep(0.005)

    async def _try_spawn(self, generation: int) -> bool:
        """Start a generation; return whether the outcome is known, which is also the case if the start has failed."""
        try:
            # Commands that have run before the program may have changed what the conditions are about.
            has_begun = self.workload.exec_condition or self.workload.exec_start_pre
            if not has_begun and (unmet := await self._find_unmet_condition()) is not None:
                self._report_start_failure(generation, Exit(skipped=str(unmet)))
                return True
            if self._debug_sandbox is not None:
                await self._debug_sandbox.end()
            await self._prepare_cgroup()
            self._oom_kills = 0.0 if self.cgroup.begin_use() else self._read_oom_kills()
            self._sockets_made_meanwhile = None
            self._has_reported_main = False
            spawned = await self.program.spawn(
                self.workload, generation, self.cgroup, self._while_spawning, self.lifecycle.is_debug
            )
        except KeeperLost:
            return False
        except (IdentityError, ConfigError, CgroupError, SpawnError, OSError) as error:
            message = error.message if isinstance(error, SpawnError) else str(error)
            self._report_start_failure(generation, Exit(setup_failure=message))
            return True
        self.output.expect(spawned)
        return True

    def _report_start_failure(self, generation: int, exit_: Exit) -> None:
        """Report a start that has failed, or that was skipped."""
        self.last_exit = exit_
        self._failed_start_id = f"{self.name}#{generation}"
        self.program.close_notify_socket()
        self.exit_reports.report(ExitReport(generation, exit_))
        self.save_checkpoint()  # before the record is written: its number must not be used for another start
        self.exit_reports.release()
        self.post(events.Exited(generation, exit_, populated=False))

    async def _find_unmet_condition(self) -> StartCondition | None:
        """Return the condition of the start that is not met. Raises OSError if a file system does not answer."""
        conditions = start_conditions(self.workload)
        if not conditions:
            return None
        with trio.move_on_after(CONDITION_TIMEOUT_S):
            return await call_in_thread(self.context.kernel.find_unmet_condition, conditions, abandon_on_cancel=True)
        raise TimeoutError(f"its conditions cannot be checked: no answer within {CONDITION_TIMEOUT_S:g} s")

    async def _prepare_cgroup(self) -> None:
        """Prepare the cgroup for the next generation: empty, in its place, and with its limits. Raises CgroupError."""
        if self.is_populated():
            if self.workload.kill_mode != "process" or self._make_next_cgroup is not None:
                pids = ", ".join(map(str, self.cgroup.pids()[:5]))
                raise CgroupError(f"its cgroup {self.cgroup.path} is still populated (pids {pids}); end them first")
            self._report_left("share the cgroup of this start")
            await self.limit_writer.restore(is_thorough=False)  # it cannot be made again with processes in it
        elif self._make_next_cgroup is not None:
            await self.limit_writer.run_exclusively(self._move)
        else:
            await self.limit_writer.restore(is_thorough=False)
            if self.cgroup.was_killed or self._must_recreate_cgroup or self.cgroup.has_leftovers():
                await self.limit_writer.run_exclusively(self._recreate_cgroup)
        self._must_recreate_cgroup = False
        await self.limit_writer.apply_pending()
        self._restrict_devices()

    def _report_left(self, what: str) -> None:
        pids = self.cgroup.pids()
        if pids:
            shown = ", ".join(map(str, pids[:5])) + (", …" if len(pids) > 5 else "")
            text = f'processes that it has left {what}, as kill_mode = "process" says (pids {shown})'
            self.log_event("warning", "warning", message=text)

    def _restrict_devices(self) -> None:
        """Allow the program the devices that its security allows. Raises CgroupError, also for a missing device."""
        rules = device_rules(values(self.workload.security))
        try:
            self.cgroup.restrict_devices(rules)
        except CgroupError as error:
            if settings(self.workload.security)["device_policy"].is_explicit:
                raise
            self.log_event("feature unavailable", "warning", message=f"security.device_policy has no effect: {error}")

    def _move(self) -> None:
        """Continue in another cgroup; the old one is empty and is removed."""
        assert self._make_next_cgroup is not None
        cgroup = self._make_next_cgroup(self.resources)
        self.observer.unwatch()
        self.cgroup.remove()
        self.cgroup, self._make_next_cgroup = cgroup, None
        self.limit_writer.attach(cgroup)
        self.observer.move_to(cgroup)

    def _recreate_cgroup(self) -> None:
        self._must_recreate_cgroup = (
            True  # also at the next start, if this fails in the middle: nothing is watched then
        )
        self.observer.unwatch()
        recreate_cgroup(self.cgroup, self.resources)
        self.limit_writer.attach(self.cgroup)
        self.observer.move_to(self.cgroup)

    def _while_spawning(self) -> None:
        """Do while a start is in progress what must not delay it: write held records, and save the checkpoint."""
        self.log.release()
        self.save_checkpoint()

    # ---- reports of the parts

    def _on_notification(self, generation: int, kind: str, text: str) -> None:
        if kind in _EVENTS_OF_NOTIFICATIONS:
            self.post(_EVENTS_OF_NOTIFICATIONS[kind](generation))
        elif kind == "EXTEND":
            self.post(events.Extend(generation, float(text)))
        elif kind == "RELOADING":
            # The program reads the clock of its own time namespace.
            offset_s = self.workload.namespaces.time_offsets.get("monotonic", 0.0)
            self.post(events.Reloading(generation, float(text) - offset_s if text else None))
        elif kind in ("ERRNO", "BUSERROR"):
            self.log.note_error(generation, **{kind.lower(): text})
        elif kind in ("MAINPID", "MAINPIDFD"):
            with self.contain_errors(f"cannot look for the process of {kind}"):
                self._on_main_announced(generation, kind, text)
        elif kind in ("REFUSED", "STORE"):
            self.log_event("notify refused", "warning", message=text)
        elif self.lifecycle.state is not State.FROZEN:  # a frozen program cannot report that it is healthy
            self.post(events.Unhealthy(generation, text))

    def _on_barrier(self, fd: int) -> None:
        """Close the descriptor of a barrier when the messages before it have been handled."""
        if self.mailbox.closed.is_set():
            self.context.kernel.descriptors.discard([fd])
        else:
            self.post(Barrier(fd))

    def _on_store(self, request: StoreRequest, fds: Sequence[int]) -> str:
        """Do what a program asks the descriptor store for; return what is refused, or ""."""
        problem = self.context.stores.handle(self.name, self.workload.file_descriptor_store_max, request, fds)
        if not self.mailbox.closed.is_set():
            self.post(StoreChanged())
        return problem

    def _update_store(self, before: Lifecycle) -> None:
        """Release the stored descriptors if the present state does not keep them."""
        workload, is_pending = self.workload, self.start_status.requested_by is not None
        is_kept = keeps_store(workload.file_descriptor_store_preserve, before, self.lifecycle, is_pending)
        if not is_kept or not workload.file_descriptor_store_max:
            self.context.stores.release(self.name)

    def _on_status(self, generation: int, text: str, suppressed: int) -> None:
        fields = {"suppressed": suppressed} if suppressed else {}
        self.log.write(generation, "status", "info", message=text, **fields)

    def _on_limits_changed(self) -> None:
        self.observer.refresh_limits()
        self.save_checkpoint()

    def _on_host_problem(self, problem: str) -> None:
        if problem not in self.context.warnings_logged:
            self.context.warnings_logged.add(problem)
            self.log_event("warning", "warning", message=problem)

    def restore_sockets(self, is_api_new: bool) -> bool:
        """Make the notify socket of a running program again if it was removed, and show the program what is new.

        `is_api_new`: the socket for workloads with `may_control` has been made again. Returns whether the notify socket
        was.
        """
        made = False
        with self.contain_errors("cannot make its notify socket again"):
            made = self.program.make_notify_socket_again(self.workload, self.lifecycle.generation)
        is_new = made or (is_api_new and bool(self.workload.may_control))
        if self.program.is_being_set_up:
            # Race: its set-up has yet to find what it shows of the runtime directory, and to cover that, in the same
            # mount namespace. A cover from here would hide what it looks for. Or it has found what has been removed
            # since. So this waits for its exec.
            self._sockets_made_meanwhile = bool(self._sockets_made_meanwhile) or is_new
        else:
            self._show_sockets(is_new)
        return made

    def _show_sockets(self, is_new: bool) -> None:
        """Cover the runtime directory again for a running program if it sees that, or if a socket `is_new`."""
        directory, pid = self.context.runtime_directory, self.program.pid
        if pid is None or not self.workload.namespaces.mount:
            return
        if is_new or is_uncovered(pid, str(directory)):
            wanted = cover(self.workload, directory, self.program.notify_path)
            problem = renew_cover(pid, wanted, self.workload.root.path is not None)
            if problem is not None:
                text = f"cannot cover {directory} again in its mount namespace: {problem}; restart it"
                self.log_event("warning", "warning", message=text)
            if self.workload.credentials and not has_credentials(pid, str(directory)):
                text = f"its credentials were lost when {directory} was removed; restart it"
                self.log_event("warning", "warning", message=text)

    # ---- takeover

    def restore(self, saved: InstanceCheckpoint) -> None:
        """Restore everything but the lifecycle from a checkpoint; only before `run`, which completes what it says."""
        lifecycle = saved.lifecycle
        self.decisions.restore_rules(saved.rules)
        self.program.restore(saved)
        if saved.recreate_cgroup:
            self.cgroup.mark_killed()
        self.last_exit, self._oom_kills = saved.last_exit, saved.oom_kills
        self.start_status = StartStatus(saved.start_initiator, replaces=saved.replaced_generation)
        self._has_unfinished_actions, self._saved, self._must_recover = saved.has_unfinished_actions, saved, True
        if saved.announced_main and lifecycle.is_alive:
            self._announced_main = lifecycle.generation, saved.announced_main
            self.post(MainAnnounced())
        # Exits of the other generations are reported by the keeper.
        is_over = lifecycle.exit is not None or not lifecycle.is_alive or saved.start_has_failed
        over = lifecycle.generation + is_over
        self.exit_reports.redeliver(tuple(report for report in saved.undelivered if report.generation < over))
        if saved.start_has_failed and saved.last_exit is not None:
            self._failed_start_id = self.id
            self.post(events.Exited(lifecycle.generation, saved.last_exit, populated=False))

    def inherit_cgroup(self) -> None:
        """Note that the cgroup was made by an earlier supervisor; it is made again before the next start.

        That supervisor may have killed it, and the note of that may be lost: with a full disk, or with the whole state
        file. Every process that is cloned into a killed cgroup dies at birth (`Cgroup.recreate_directory`).
        """
        self._must_recreate_cgroup = True

    def adopt_generation(self, generation: int, reason: str, assume_ready: bool) -> None:
        """Adopt a generation that an earlier supervisor started and did not save; only before `run`.

        `assume_ready`: its readiness is unknown, and it will not be reported again.
        """
        self.decisions.adopt_generation(generation, reason)
        self._must_recover = True
        if self.workload.type in NOTIFY_TYPES and assume_ready:
            self.post(events.Ready(generation))

    async def _recover(self) -> None:
        """Complete what an earlier supervisor decided but may not have carried out, before anything else."""
        lifecycle, saved = self.lifecycle, self._saved
        self.output.set_stopping(lifecycle.state is State.STOPPING)
        if self.program.pid is not None and lifecycle.state is not State.STARTING:
            self.observer.restore(lifecycle.started_at)
        self.observer.watch()  # changes of counters since the latest sample count as changes, not as the base line
        self.observer.resume_sampling()
        await self._run_pending()
        if self.lifecycle is lifecycle and lifecycle.is_alive:
            await self._complete(lifecycle, saved)
        self._has_unfinished_actions, self._saved = False, None
        self.save_checkpoint()

    async def _complete(self, lifecycle: Lifecycle, saved: InstanceCheckpoint | None) -> None:
        """Carry out what led to the present state, if that is unknown, and report an outdated program."""
        if saved is not None and saved.has_unfinished_actions and saved.lifecycle.generation == lifecycle.generation:
            for action in unfinished_actions(lifecycle, self.workload):
                await self._perform(action)
        if lifecycle.phase in HOOK_KEYS and not self.start_has_failed:
            has_decided = saved is not None
            await self._resume_hook(lifecycle, has_decided, saved is not None and not saved.has_unfinished_actions)
        if lifecycle.exit is not None and not self.is_populated():
            self.post(events.Emptied(lifecycle.generation))
        if saved is not None and saved.spawn_digest and lifecycle.state is not State.STOPPING:
            self._warn_if_outdated()

    def _warn_if_outdated(self) -> None:
        is_outdated = self.program.check_outdated(self.workload, self.lifecycle, self.cgroup)
        if is_outdated or self._make_next_cgroup is not None:
            text = "its configuration has changed since it was started; restart it to apply the change"
            self.log_event("warning", "warning", message=text)

    # ---- helpers

    def _update_daemon_search(self) -> None:
        is_wanted = awaits_daemon(self.lifecycle, self.workload)
        if self._daemon_search is None:
            if not is_wanted:
                return
            from nsupervisor.service.instance.daemon_search import DaemonSearch  # few programs become daemons

            self._daemon_search = DaemonSearch(self.context, self._on_daemon_found, self._on_daemon_problem)
        self._daemon_search.update(self.lifecycle.generation if is_wanted else None, self._find_daemon)

    def _update_probes(self) -> None:
        if self._probes is None:
            if not self.workload.probes and self.lifecycle.started_type != PROBED:
                return
            from nsupervisor.service.instance.probes import Probes  # few workloads have probes

            self._probes = Probes(
                *(self.name, self.context, self.log, self.counters, self.post, self._exec_spec, self.output),
                self.program.open_readiness_pipe,
                self.observer.probe_finished,
            )
        self._probes.update(self.lifecycle, self.workload, self.program.pidfd)

    def _probe_values(self) -> Mapping[str, float]:
        return self._probes.condition_values() if self._probes is not None else {}

    @property
    def probe_results(self) -> Mapping[ProbeKind, LatestResult]:
        """The latest results of the probes of the present generation."""
        return self._probes.latest if self._probes is not None else {}

    @property
    def id(self) -> str:
        """The current generation's id in the keeper."""
        return f"{self.name}#{self.lifecycle.generation}"

    def _read_oom_kills(self) -> float:
        return self.observer.read("memory.events").get("oom_kill", 0.0)

    def is_populated(self) -> bool:
        """Return whether the cgroup has processes; if so, the watcher will report when it becomes empty."""
        try:
            return self.context.watcher.read_baseline(self.cgroup, "cgroup.events")["populated"] == 1
        except CgroupGoneError:
            return False

    def log_event(self, event: str, level: str = "info", **fields: Any) -> dict[str, Any]:
        """Write a record about the current generation."""
        return self.log.write(self.lifecycle.generation, event, level, **fields)


def _is_same_reload(begun: Lifecycle, now: Lifecycle) -> bool:
    return now.is_reloading and (now.generation, now.phase_since) == (begun.generation, begun.phase_since)


def _hook_terms(command: tuple[str, ...], variables: Mapping[str, str]) -> ExecTerms:
    program = command[0].removeprefix(hook_prefixes(command))
    return ExecTerms((program, *command[1:]), environment=variables)


def generation_of(id_: str) -> int:
    """Return the generation in an id of the keeper: "web#3" → 3."""
    return int(id_.rpartition("#")[2])
