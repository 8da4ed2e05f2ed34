"""Save the state of an instance for the next supervisor; see `nsupervisor.service.state.file.file`."""

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import attrs

from nsupervisor.config.load import ConfigError
from nsupervisor.config.model import Resources, WorkloadConfig
from nsupervisor.config.units import Percent
from nsupervisor.core.decider import WorkloadState
from nsupervisor.core.rules.rules import AtomState, Engine
from nsupervisor.core.rules.rules import RuleState as RuleMemory
from nsupervisor.core.serialize import from_json, to_json_sparse
from nsupervisor.keeper.messages import Spawned
from nsupervisor.service.instance.spawn_spec import spawn_spec
from nsupervisor.service.instance.users import IdentityError
from nsupervisor.service.kernel import Processes
from nsupervisor.service.state.file import InstanceCheckpoint, Process, ProcessRef, SavedRule
from nsupervisor.wire_names import by_wire_name, wire_names

if TYPE_CHECKING:
    from nsupervisor.service.instance.actor import Actor


@attrs.define(eq=False)
class Checkpoint:
    """The saved state of an instance.

    `pidfd` is that of the program, so that its exit is seen even without the keeper.
    """

    processes: Processes
    process: ProcessRef | None = None
    pidfd: int = -1
    pipe_inodes: tuple[int, int] = (0, 0)
    spawn_digest: str = ""
    """Digest of what the current generation was started with: see `spawn_inputs`."""
    environment_digest: str = ""
    """Digest of the contents of its environment files; "" if it had none."""
    is_outdated: bool = False
    """Whether an earlier supervisor started it, with other settings than this supervisor's file had at the takeover."""
    oom_kills: float = 0.0
    """Value of the cgroup's counter of OOM kills at the latest start or exit."""
    has_unfinished_actions: bool = False
    """Whether actions of the lifecycle have yet to be carried out."""
    _rules: tuple[SavedRule, ...] = ()
    _saved_decider_state: WorkloadState | None = None
    _saved_limits: Resources | None = None
    _limits_digest: str = ""

    def spawned(self, spawned: Spawned, spawn_digest: str, environment_digest: str) -> None:
        """Note that a first process exists, with its two pipes."""
        self.program_ended()
        self.spawn_digest, self.environment_digest, self.is_outdated = spawn_digest, environment_digest, False
        pipe_inode = self.processes.pipe_inode
        self.pipe_inodes = pipe_inode(spawned.stdout), pipe_inode(spawned.stderr)

    def executed(self, first: int, program: int) -> None:
        """Note that the program has been executed.

        It is a child of the keeper or of its init, so its pid cannot be reused before the keeper has reported its exit.
        """
        try:
            pidfd = self.processes.pin(program)
        except OSError:  # the program has ended already, or no descriptor is free
            return
        starts = self.processes.start_time(first), self.processes.start_time(program)
        if starts[0] is None or starts[1] is None:
            self.processes.close(pidfd)
            return
        self.program_ended()
        self.pidfd, self.process = (
            pidfd,
            ProcessRef(Process(first, starts[0]), Process(program, starts[1]), self.pipe_inodes),
        )

    def program_ended(self) -> None:
        """Note that the program has ended."""
        self.process = None
        if self.pidfd >= 0:
            self.processes.close(self.pidfd)
            self.pidfd = -1

    def to_checkpoint(self, actor: "Actor") -> InstanceCheckpoint:
        """Return the checkpoint of the instance.

        Rules whose actions are pending keep the state from before they fired, so that they fire again if necessary.
        """
        state = actor.decisions.state
        if state is not self._saved_decider_state and not state.pending:
            self._saved_decider_state, self._rules = state, saved_rules(state.engine)
        if self._saved_limits is not actor.limit_writer.applied:
            self._saved_limits, self._limits_digest = (
                actor.limit_writer.applied,
                limits_digest(actor.limit_writer.applied),
            )
        return InstanceCheckpoint(
            state.lifecycle,
            self.process,
            actor.last_exit,
            self.oom_kills,
            self.has_unfinished_actions,
            actor.cgroup.was_killed,
            self._rules,
            limit_overrides(actor.workload.resources, actor.resources),
            actor.start_status.requested_by,
            self.spawn_digest,
            actor.workload.kill_signal,
            actor.workload.timeout_stop_sec,
            self._limits_digest,
            actor.exit_reports.undelivered,
            self.environment_digest,
        )


def saved_rules(engine: Engine) -> tuple[SavedRule, ...]:
    """Return the state of each rule, for `restore_rules`."""
    pairs = zip(engine.rules, engine.states, strict=True)
    return tuple(SavedRule(rule.name, rule.when.text, memory) for rule, memory in pairs)


def restore_rules(engine: Engine, saved: tuple[SavedRule, ...]) -> Engine:
    """Restore the saved state of each rule whose name and condition are still the same."""
    return attrs.evolve(engine, states=_rule_states(engine, saved)) if saved else engine


def _rule_states(engine: Engine, saved: tuple[SavedRule, ...]) -> tuple[RuleMemory, ...]:
    known = {(rule.name, rule.when): rule.state for rule in saved}
    states = []
    for rule, fresh in zip(engine.rules, engine.states, strict=True):
        memory = known.get((rule.name, rule.when.text), fresh)
        # A report of a pressure trigger cannot be read afterwards.
        pairs = zip(rule.when.atoms, memory.atoms, strict=False)
        atoms = tuple(AtomState() if atom.kind == "stall" else state for atom, state in pairs)
        states.append(attrs.evolve(memory, atoms=atoms) if len(atoms) == len(fresh.atoms) else fresh)
    return tuple(states)


def limits_in_force(configured: Resources, changed_limits: Mapping[str, Any]) -> Resources:
    """Return the limits in force: the configured ones, with saved changes of `nsupervisor set` (`changed_limits`)."""
    try:
        after = from_json(Resources, dict(changed_limits), ignore_unknown=True)
    except ValueError:  # written by another version
        return configured
    changed = [attribute.name for name, attribute in wire_names(Resources).items() if name in changed_limits]
    return attrs.evolve(configured, **{name: getattr(after, name) for name in changed}) if changed else configured


def limits_digest(resources: Resources) -> str:
    """Return a short digest of limits, or "" if they depend on other limits, so that equality proves nothing."""
    given = to_json_sparse(resources)
    if any(isinstance(value, Percent) for value in by_wire_name(resources).values()):
        return ""
    return hashlib.blake2b(json.dumps(given, sort_keys=True).encode(), digest_size=8).hexdigest()


def limit_overrides(configured: Resources, present: Resources) -> Mapping[str, Any]:
    """Return the limits in force that differ from the configured ones, as plain JSON with `Resources` wire names."""
    if configured is present:
        return {}
    before = by_wire_name(configured)
    return {name: to_json_sparse(now) for name, now in by_wire_name(present).items() if before[name] != now}


def matches_spawn(actor: "Actor", workload: WorkloadConfig) -> bool:
    """Return whether the running program was started as `workload` says, as far as this can be known."""
    try:
        spec = spawn_spec(
            workload,
            actor.name,
            actor.instance,
            actor.lifecycle.generation,
            actor.cgroup,
            actor.context.runtime_directory,
        )
    except (IdentityError, ConfigError, OSError):
        return True
    return not actor.context.digest.differs(actor.checkpoint.spawn_digest, spawn_inputs(spec))


def spawn_inputs(spec: Mapping[str, Any]) -> Any:
    """Return what a generation is started with: if it is equal, a restart would change nothing."""
    # The cover has nothing of the configuration but may_control, which shows in the environment.
    inputs = {key: value for key, value in spec.items() if key not in ("id", "env", "cover")}
    environment = {key: value for key, value in spec["env"].items() if key not in ("NOTIFY_SOCKET", "WATCHDOG_USEC")}
    return [inputs, environment]
