"""Save the state of an instance for the next supervisor; see `nsupervisor.service.state.file`."""

import hashlib
import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import attrs

from nsupervisor.config.load import ConfigError
from nsupervisor.config.model import Resources, Workload
from nsupervisor.config.units import Percent
from nsupervisor.core.mind import Mind
from nsupervisor.core.plain import restored, sparse
from nsupervisor.core.rules import AtomMemory, Engine
from nsupervisor.core.rules import Memory as RuleMemory
from nsupervisor.keeper.told import Spawned
from nsupervisor.linux import processes
from nsupervisor.service.identity import IdentityError
from nsupervisor.service.spec import spawn_spec
from nsupervisor.service.state import Body, Process, Record, Remembered
from nsupervisor.wire import by_wire_name, wire_names

if TYPE_CHECKING:
    from nsupervisor.service.actor import Actor


@attrs.define(eq=False)
class Trail:
    """The saved state of an instance.

    `pidfd` is that of the program, so that its exit is seen even without the keeper.
    """

    body: Body | None = None
    pin: int = -1
    pipes: tuple[int, int] = (0, 0)
    print: str = ""
    """Digest of what the current generation was started with: see `spawn_inputs`."""
    files: str = ""
    """Digest of the contents of its environment files; "" if it had none."""
    outdated: bool = False
    """Whether an earlier supervisor started it, with other settings than this supervisor's file had at the takeover."""
    pending: str = ""
    """The initiator of the start that waits for other workloads, or ""."""
    oom_kills: float = 0.0
    """Value of the cgroup's counter of OOM kills at the latest start or exit."""
    acting: bool = False
    """Whether actions of the lifecycle have yet to be carried out."""
    _rules: tuple[Remembered, ...] = ()
    _mind: Mind | None = None
    _given: Resources | None = None
    _limits: str = ""

    def spawned(self, spawned: Spawned, print_: str, files: str) -> None:
        """Note that a first process exists, with its two pipes."""
        self.end()
        self.print, self.files, self.outdated = print_, files, False
        self.pipes = processes.inode(spawned.stdout), processes.inode(spawned.stderr)

    def executed(self, first: int, program: int) -> None:
        """Note that the program has been executed.

        It is a child of the keeper or of its init, so its pid cannot be reused before the keeper has reported its exit.
        """
        try:
            pin = os.pidfd_open(program)
        except OSError:  # the program has ended already, or no descriptor is free
            return
        starts = processes.start_time(first), processes.start_time(program)
        if starts[0] is None or starts[1] is None:
            os.close(pin)
            return
        self.end()
        self.pin, self.body = pin, Body(Process(first, starts[0]), Process(program, starts[1]), self.pipes)

    def end(self) -> None:
        """Note that the program has ended."""
        self.body = None
        if self.pin >= 0:
            os.close(self.pin)
            self.pin = -1

    def record(self, actor: "Actor") -> Record:
        """Return the checkpoint of the instance.

        Rules whose actions are pending keep the state from before they fired, so that they fire again if necessary.
        """
        mind = actor.thinker.mind
        if mind is not self._mind and not mind.due:
            self._mind, self._rules = mind, remembered(mind.engine)
        if self._given is not actor.setter.given:
            self._given, self._limits = actor.setter.given, fingerprint(actor.setter.given)
        return Record(
            mind.life,
            self.body,
            actor.last_exit,
            self.oom_kills,
            self.acting,
            actor.cgroup.killed,
            self._rules,
            differences(actor.workload.resources, actor.resources),
            self.pending,
            self.print,
            actor.workload.kill_signal,
            actor.workload.timeout_stop_sec,
            self._limits,
            actor.ends.untold,
            self.files,
        )


def remembered(engine: Engine) -> tuple[Remembered, ...]:
    """Return the state of each rule, for `restore_rules`."""
    pairs = zip(engine.rules, engine.memories, strict=True)
    return tuple(Remembered(rule.name, rule.when.text, memory) for rule, memory in pairs)


def recalled(engine: Engine, rules: tuple[Remembered, ...]) -> Engine:
    """Restore the saved state of each rule whose name and condition are still the same."""
    return attrs.evolve(engine, memories=_memories(engine, rules)) if rules else engine


def _memories(engine: Engine, rules: tuple[Remembered, ...]) -> tuple[RuleMemory, ...]:
    known = {(rule.name, rule.when): rule.memory for rule in rules}
    states = []
    for rule, fresh in zip(engine.rules, engine.memories, strict=True):
        memory = known.get((rule.name, rule.when.text), fresh)
        # A report of a pressure trigger cannot be read afterwards.
        pairs = zip(rule.when.atoms, memory.atoms, strict=False)
        atoms = tuple(AtomMemory() if atom.kind == "stall" else state for atom, state in pairs)
        states.append(attrs.evolve(memory, atoms=atoms) if len(atoms) == len(fresh.atoms) else fresh)
    return tuple(states)


def resources(configured: Resources, set_: Mapping[str, Any]) -> Resources:
    """Return the limits in force: the configured ones, with saved changes of `nsupervisor set` (`changed_limits`)."""
    try:
        after = restored(Resources, dict(set_), newer=True)
    except ValueError:  # written by another version
        return configured
    changed = [attribute.name for name, attribute in wire_names(Resources).items() if name in set_]
    return attrs.evolve(configured, **{name: getattr(after, name) for name in changed}) if changed else configured


def fingerprint(resources: Resources) -> str:
    """Return a short digest of limits, or "" if they depend on other limits, so that equality proves nothing."""
    given = sparse(resources)
    if any(isinstance(value, Percent) for value in by_wire_name(resources).values()):
        return ""
    return hashlib.blake2b(json.dumps(given, sort_keys=True).encode(), digest_size=8).hexdigest()


def differences(configured: Resources, present: Resources) -> Mapping[str, Any]:
    """Return the limits in force that differ from the configured ones, as plain JSON with `Resources` wire names."""
    if configured is present:
        return {}
    before = by_wire_name(configured)
    return {name: sparse(now) for name, now in by_wire_name(present).items() if before[name] != now}


def fits(actor: "Actor", workload: Workload) -> bool:
    """Return whether the running program was started as `workload` says, as far as this can be known."""
    try:
        spec = spawn_spec(
            workload, actor.name, actor.instance, actor.life.generation, actor.cgroup, actor.world.directory
        )
    except (IdentityError, ConfigError, OSError):
        return True
    return not actor.world.seal.differs(actor.trail.print, essence(spec))


def essence(spec: Mapping[str, Any]) -> Any:
    """Return what a generation is started with: if it is equal, a restart would change nothing."""
    # The cover has nothing of the configuration but may_control, which shows in the environment.
    inputs = {key: value for key, value in spec.items() if key not in ("id", "env", "cover")}
    environment = {key: value for key, value in spec["env"].items() if key not in ("NOTIFY_SOCKET", "WATCHDOG_USEC")}
    return [inputs, environment]
