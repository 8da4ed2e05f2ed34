"""What an instance leaves for the supervisor that comes after this one: see `state`."""

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
    """Of one instance. ``pin`` is a pidfd of the program, so that its end can be learnt even without the keeper."""

    body: Body | None = None
    pin: int = -1
    pipes: tuple[int, int] = (0, 0)
    print: str = ""
    """What the present generation was started with, as a digest: see `essence`."""
    files: str = ""
    """What its environment files said, as a digest; "": it had none."""
    outdated: bool = False
    """That was an earlier supervisor, and this one's file said something else when it began."""
    pending: str = ""
    """Who asked for the start that waits for others."""
    oom_kills: float = 0.0
    """What the cgroup's counter had said at the latest start or end."""
    acting: bool = False
    """What the life asks for is yet to be done."""
    _rules: tuple[Remembered, ...] = ()
    _mind: Mind | None = None
    _given: Resources | None = None
    _limits: str = ""

    def spawned(self, spawned: Spawned, print_: str, files: str) -> None:
        """There is a first process, and two pipes."""
        self.end()
        self.print, self.files, self.outdated = print_, files, False
        self.pipes = processes.inode(spawned.stdout), processes.inode(spawned.stderr)

    def executed(self, first: int, program: int) -> None:
        """The program has been executed. It is the keeper's, or its init's, so that its pid can't be used again before
        the keeper has told of its end."""
        try:
            pin = os.pidfd_open(program)
        except OSError:  # it has ended already; or no descriptor is free
            return
        starts = processes.start_time(first), processes.start_time(program)
        if starts[0] is None or starts[1] is None:
            os.close(pin)
            return
        self.end()
        self.pin, self.body = pin, Body(Process(first, starts[0]), Process(program, starts[1]), self.pipes)

    def end(self) -> None:
        """The program has ended."""
        self.body = None
        if self.pin >= 0:
            os.close(self.pin)
            self.pin = -1

    def record(self, actor: "Actor") -> Record:
        """All of it. Rules whose turn has yet to come are remembered as before they went off, so that they go off again
        where this is needed."""
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
    """What rules remember, for `recalled`."""
    pairs = zip(engine.rules, engine.memories, strict=True)
    return tuple(Remembered(rule.name, rule.when.text, memory) for rule, memory in pairs)


def recalled(engine: Engine, rules: tuple[Remembered, ...]) -> Engine:
    """The engine with what is remembered of each of its rules, where its condition is still the same."""
    return attrs.evolve(engine, memories=_memories(engine, rules)) if rules else engine


def _memories(engine: Engine, rules: tuple[Remembered, ...]) -> tuple[RuleMemory, ...]:
    known = {(one.name, one.when): one.memory for one in rules}
    found = []
    for rule, fresh in zip(engine.rules, engine.memories, strict=True):
        memory = known.get((rule.name, rule.when.text), fresh)
        # What a trigger of pressure tells is nobody's to read afterwards.
        pairs = zip(rule.when.atoms, memory.atoms, strict=False)
        atoms = tuple(AtomMemory() if atom.kind == "stall" else one for atom, one in pairs)
        found.append(attrs.evolve(memory, atoms=atoms) if len(atoms) == len(fresh.atoms) else fresh)
    return tuple(found)


def resources(configured: Resources, set_: Mapping[str, Any]) -> Resources:
    """The limits in force: those of the configuration, with what `nsupervisor set` had changed (`differences`)."""
    try:
        after = restored(Resources, dict(set_), newer=True)
    except ValueError:  # of another version
        return configured
    changed = [attribute.name for name, attribute in wire_names(Resources).items() if name in set_]
    return attrs.evolve(configured, **{name: getattr(after, name) for name in changed}) if changed else configured


def fingerprint(resources: Resources) -> str:
    """Limits as a few letters. "" where they depend on those of others, so that being the same says nothing."""
    given = sparse(resources)
    if any(isinstance(value, Percent) for value in by_wire_name(resources).values()):
        return ""
    return hashlib.blake2b(json.dumps(given, sort_keys=True).encode(), digest_size=8).hexdigest()


def differences(configured: Resources, present: Resources) -> Mapping[str, Any]:
    """What of the limits in force is not as configured: by the wire names of `Resources`, as plain values."""
    if configured is present:
        return {}
    before = by_wire_name(configured)
    return {name: sparse(now) for name, now in by_wire_name(present).items() if before[name] != now}


def fits(actor: "Actor", workload: Workload) -> bool:
    """Whether what runs was started with what ``workload`` says, as far as can be told."""
    try:
        spec = spawn_spec(workload, actor.name, actor.instance, actor.life.generation, actor.cgroup)
    except (IdentityError, ConfigError, OSError):
        return True
    return not actor.world.seal.differs(actor.trail.print, essence(spec))


def essence(spec: Mapping[str, Any]) -> Any:
    """What a generation is started with: where that is equal, a restart would change nothing."""
    of = {key: value for key, value in spec.items() if key not in ("id", "env")}
    environment = {key: value for key, value in spec["env"].items() if key not in ("NOTIFY_SOCKET", "WATCHDOG_USEC")}
    return [of, environment]
