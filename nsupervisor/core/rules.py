"""Policy: which rules a snapshot of a cgroup's files sets off, and why.

The atoms of a condition are of these kinds, for the ways in which the kernel tells things:

* A **counter** (``memory.events oom_kill``) only ever goes up, and the kernel says when it did. It is true for a
  moment: when it is seen higher than before, or so much higher than when it last was true (``increases by 10``).
* A **level** (``pids.current >= 90%``) goes up and down, and has to be sampled. It is true while its comparison holds.
* A **rate** (``cpu.stat nr_throttled rate > 50/s``) is a level made of a counter, measured over at least a second.
* A **stall** (``memory.pressure some stall > 100ms/1s``) is told by a trigger of the kernel's, and is true for that
  moment. Whoever makes the snapshots puts it in under the key of the atom; its value is the file's ``total``.
* A **fact** (``exit code == 3``) is true at the moment of the exit, whose snapshot has the file ``exit``.

A condition with a momentary atom in it (counter, stall, fact) fires when it turns true, and each time that one of its
atoms does so. One without fires once it has been true, in every snapshot, for the time that ``for`` asks; and again
only after it was not true in between. ``cooldown`` keeps a rule silent for so long after it fired: what a counter
counts meanwhile is passed over, while a level that still holds when the cooldown is over fires again. Without one, a
level that goes on holding fires once.

When a rule with ``at_most`` has fired so often ``within`` the time, it asks for ``then`` instead of its ``action``;
where ``then`` has several steps, for each of them as often, and for the last one from then on. It never goes back a
step, but begins anew once it has not fired for ``within``: so no step except the last one is done more than ``at_most``
times within any such time. A ``set`` whose values have all arrived at their bounds goes on to the next step at once.

Several rules may fire on one snapshot. They are done in the order of `ORDER`, mildest first, and those of the same kind
in the order of the file, so that the most drastic one has the last word.

`observe` is a function of what was remembered, a snapshot, and the time. The engine does nothing: it says which rules
fired, what each asks for, and the cause.
"""

from collections.abc import Mapping, Sequence
from typing import Any, get_args

import attrs

from nsupervisor.config.conditions import Atom
from nsupervisor.config.facts import EXIT, HOST_MEMORY
from nsupervisor.config.model import ActionName, GroupRule, Rule
from nsupervisor.core import backoff
from nsupervisor.core.adjusting import Settings, adjusted
from nsupervisor.core.differences import same
from nsupervisor.wire import by_wire_name, wire

ORDER: tuple[str, ...] = get_args(ActionName)
"""Actions, the mildest first: of two rules that want opposite things, the later one here has its way."""

RATE_SPAN = 1.0
"""Seconds between the two values that make a rate, at least."""


@attrs.frozen
class AtomMemory:
    """What is remembered of one atom. Times are seconds of the monotonic clock."""

    last: float | None = attrs.field(default=None, metadata=wire("last"))
    """The latest value."""
    before: float = attrs.field(default=0.0, metadata=wire("before"))
    """What the latest value is to be seen against: a counter's when it was true last, a level's when it began."""
    truth: bool | None = attrs.field(default=None, metadata=wire("truth"))
    """None: nothing is known yet."""
    anchor: tuple[float, float] | None = attrs.field(default=None, metadata=wire("anchor"))
    """When, and with what value, the measuring of a rate began."""
    rate: float | None = attrs.field(default=None, metadata=wire("rate"))


@attrs.frozen
class Memory:
    """What is remembered of one rule between snapshots."""

    atoms: tuple[AtomMemory, ...] = attrs.field(metadata=wire("atoms"))
    since: float | None = attrs.field(default=None, metadata=wire("since"))
    """Since when the condition has held; None while it does not."""
    spent: bool = attrs.field(default=False, metadata=wire("spent"))
    """This stretch of holding has set the rule off already."""
    fired_at: float | None = attrs.field(default=None, metadata=wire("fired_at"))
    step: int = attrs.field(default=0, metadata=wire("step"))
    """The step of the escalation that it was at when it fired last: 0 is ``action``, 1 the first of ``then``."""
    fired: tuple[float, ...] = attrs.field(default=(), metadata=wire("fired"))
    """When it did that step lately, as far as ``within`` reaches; without ``at_most`` nothing."""


@attrs.frozen
class Cause:
    """Why a rule fired: enough for a person to check it by hand.

    ``file`` to ``threshold`` are about the atom that decided. ``before`` and ``after`` are two values of a counter; for
    a level, the value with which it began to hold, and the latest; for a rate, per second; for a stall, the file's
    total, in microseconds. ``threshold`` is in the file's own unit (processes, bytes), None for a counter.
    """

    rule: str = attrs.field(metadata=wire("rule"))
    line: int = attrs.field(metadata=wire("line"))
    when: str = attrs.field(metadata=wire("when"))
    file: str = attrs.field(metadata=wire("file"))
    key: str = attrs.field(metadata=wire("key"))
    before: float = attrs.field(metadata=wire("before"))
    after: float = attrs.field(metadata=wire("after"))
    threshold: float | None = attrs.field(default=None, metadata=wire("threshold"))
    held: float | None = attrs.field(default=None, metadata=wire("held"))
    """For how many seconds the condition had held."""
    group: str | None = attrs.field(default=None, metadata=wire("group"))
    """The group whose rule it is: "group/batch", or "host"; None for a workload's own."""
    victim: str | None = attrs.field(default=None, metadata=wire("victim"))
    """How the workload was chosen; `nsupervisor.core.victims` has the order, and says what each candidate weighed."""
    candidates: tuple[Mapping[str, Any], ...] | None = attrs.field(default=None, metadata=wire("candidates"))
    escalates: str | None = attrs.field(default=None, metadata=wire("escalates"))
    """Whom it was done to before, and why that did not help."""

    def record(self) -> dict[str, Any]:
        """As a record has it: without what does not apply."""
        return {name: value for name, value in by_wire_name(self).items() if value is not None}


@attrs.frozen
class Fired:
    """A rule that goes off now, and the action that it asks for."""

    rule: Rule
    action: str
    cause: Cause
    settings: Settings = attrs.field(factory=dict)
    """For ``set``: what is to be set, by key; empty where every value is at its bound."""


Snapshot = Mapping[str, Mapping[str, float]]
"""file → key → value; the key is "" for a file of one value."""
Limits = Mapping[str, float | None]
"""The present limits by their file ("pids.max" → 64, None: no limit), for thresholds in per cent, and for ``set``."""


@attrs.frozen
class Engine:
    """The rules of one workload, with what is remembered of each."""

    rules: tuple[Rule, ...]
    memories: tuple[Memory, ...]

    @classmethod
    def of(cls, rules: Sequence[Rule]) -> "Engine":
        """An engine that has seen nothing yet: each counter's first reading is its base line and fires nothing."""
        return cls(tuple(rules), tuple(Memory((AtomMemory(),) * len(rule.when.atoms)) for rule in rules))

    def reborn(self) -> "Engine":
        """A new generation begins: a level has to hold anew. Counters and cooldowns go on, as the cgroup does."""
        return attrs.evolve(self, memories=tuple(attrs.evolve(m, since=None, spent=False) for m in self.memories))

    def holds(self, rule: Rule) -> bool:
        """Whether a rule's condition held when it was looked at last."""
        return self.memories[self.rules.index(rule)].since is not None

    def hushed(self, now: float) -> "Engine":
        """As if each rule that has a victim had fired now: it is quiet for its cooldown."""
        memories = tuple(
            attrs.evolve(memory, fired_at=now) if isinstance(rule, GroupRule) and rule.victim is not None else memory
            for rule, memory in zip(self.rules, self.memories, strict=True)
        )
        return attrs.evolve(self, memories=memories)

    def adopted(self, rules: Sequence[Rule]) -> "Engine":
        """Other rules, by a reload. One that says the same as before, wherever in the file, keeps what is remembered of
        it, its cooldown too; any other has seen nothing yet."""
        left = list(zip(self.rules, self.memories, strict=True))
        memories = []
        for rule in rules:
            twin = next((pair for pair in left if same(type(rule), pair[0], rule)), None)
            if twin is not None:
                left.remove(twin)
            memories.append(twin[1] if twin is not None else Memory((AtomMemory(),) * len(rule.when.atoms)))
        return Engine(tuple(rules), tuple(memories))

    def together(self, file: str) -> tuple[str, ...]:
        """The files to be read when ``file`` has news, so that each rule that looks at it sees one moment."""
        files = {file: None}
        for rule in self.rules:
            names = [atom.file for atom in rule.when.atoms]
            if file in names:
                files |= dict.fromkeys(name for name in names if name != EXIT)  # that one comes by itself
        return tuple(files)

    def observe(self, snapshot: Snapshot, limits: Limits, now: float) -> tuple["Engine", tuple[Fired, ...]]:
        """Take in a snapshot. A rule none of whose files is in it is left as it is."""
        memories, fired = list(self.memories), []
        limits = with_host(limits, snapshot)
        for i, rule in enumerate(self.rules):
            if any(atom.file in snapshot for atom in rule.when.atoms):
                memories[i], one = _observe(memories[i], rule, snapshot, limits, now)
                fired += [one] if one is not None else []
        fired.sort(key=lambda one: ORDER.index(one.action))
        if all(new is old for new, old in zip(memories, self.memories, strict=True)):
            return self, ()  # most samples say nothing new, and there are many of them
        return attrs.evolve(self, memories=tuple(memories)), tuple(fired)


LIMIT_OF = {"pids.current": "pids.max", "memory.current": "memory.max"} | {
    f"host.meminfo {part}": f"host.meminfo {whole}" for part, whole in HOST_MEMORY.items()
}
"""What a threshold in per cent is a percentage of."""


def with_host(limits: Limits, snapshot: Snapshot) -> Limits:
    """The limits, with what the host has of memory and swap, where the snapshot tells. Of no swap at all, none is free:
    0 is below each percentage of it."""
    meminfo = snapshot.get("host.meminfo")
    if meminfo is None:
        return limits
    there = {f"host.meminfo {whole}": max(meminfo[whole], 1.0) for whole in HOST_MEMORY.values() if whole in meminfo}
    return {**limits, **there}


def threshold(atom: Atom, limits: Limits) -> float | None:
    """A comparison's threshold in the file's own unit; None when it is a percentage of a limit that is not set."""
    assert atom.threshold is not None
    if not atom.percent:
        return atom.threshold
    limit: float | None = limits.get(LIMIT_OF[f"{atom.file} {atom.key}" if atom.key else atom.file])
    return None if limit is None else limit * atom.threshold / 100


def _observe(memory: Memory, rule: Rule, snapshot: Snapshot, limits: Limits, now: float) -> tuple[Memory, Fired | None]:
    old = memory.atoms
    atoms = tuple(
        _look(remembered, atom, snapshot, limits, now) for remembered, atom in zip(old, rule.when.atoms, strict=True)
    )
    if any(new is not before for new, before in zip(atoms, old, strict=True)):
        memory = attrs.evolve(memory, atoms=atoms)
    if not rule.when.holds([atom.truth for atom in atoms]):
        return (memory if memory.since is None else attrs.evolve(memory, since=None, spent=False)), None
    begins = memory.since is None
    since = now if memory.since is None else memory.since
    if begins:
        memory = attrs.evolve(memory, since=since)
    if rule.when.momentary:
        news = [
            (new.truth and (atom.momentary or not before.truth)) or (atom.kind == "fact" and EXIT in snapshot)
            for atom, before, new in zip(rule.when.atoms, old, atoms, strict=True)
        ]
        may_fire, held = begins or any(news), None
    else:
        held = now - since
        may_fire = held >= rule.for_ and (not memory.spent or rule.cooldown > 0)
    if not may_fire or (memory.fired_at is not None and now - memory.fired_at < rule.cooldown):
        return memory, None
    settings = adjusted(rule, limits)
    at, done = _choose(rule, memory, bool(settings), now)
    action = (rule.action, *rule.then)[at]
    memory = attrs.evolve(memory, spent=True, fired_at=now, step=at, fired=done)
    settings = settings if action == "set" else {}
    return memory, Fired(rule, action, _cause(rule, old, atoms, limits, held), settings)


def _choose(rule: Rule, memory: Memory, settable: bool, now: float) -> tuple[int, tuple[float, ...]]:
    """The step of the escalation that it is the turn of, and when that was done lately, now included. A ``set`` with
    nothing left to set is passed over."""
    steps, most = (rule.action, *rule.then), rule.at_most
    done = backoff.within(memory.fired, now, rule.within)
    at = memory.step if done else 0  # the last firing is always among them: without one it has been quiet for so long
    if most is not None and len(done) >= most and at + 1 < len(steps):
        at, done = at + 1, ()
    while steps[at] == "set" and not settable and at + 1 < len(steps):
        at, done = at + 1, ()
    return at, () if most is None else (*done, now)[-most:]


def _look(memory: AtomMemory, atom: Atom, snapshot: Snapshot, limits: Limits, now: float) -> AtomMemory:
    """What one atom makes of the snapshot. A counter that is not in it has not moved."""
    values = snapshot.get(atom.file)
    value = None if values is None else atom.of(values)
    if value is None:
        if not atom.momentary or memory.truth is False:
            return memory
        past = memory.last if memory.truth and memory.last is not None else memory.before  # as `_count` has it
        return attrs.evolve(memory, truth=False, before=past)
    if atom.kind in ("counter", "stall"):
        return _count(memory, atom, value)
    if atom.kind == "rate":
        return _measure(memory, atom, value, now)
    limit = threshold(atom, limits)
    if value == memory.last and limit is not None and memory.truth is _HOLDS[atom.op or ">="](value, limit):
        return memory
    truth = None if limit is None else _HOLDS[atom.op or ">="](value, limit)
    before = memory.before if truth and memory.truth else value
    return attrs.evolve(memory, last=value, truth=truth, before=before)


def _count(memory: AtomMemory, atom: Atom, value: float) -> AtomMemory:
    if memory.last is None:
        return attrs.evolve(memory, last=value, before=value, truth=False)
    # Lower than before: the cgroup was made anew and counts from 0, so all that it shows has happened since.
    mark = memory.before if value >= memory.last else 0.0
    if memory.truth:  # that moment is over; what it was true of is behind us
        mark = memory.last if value >= memory.last else 0.0
    return attrs.evolve(memory, last=value, before=mark, truth=value - mark >= atom.by)


def _measure(memory: AtomMemory, atom: Atom, value: float, now: float) -> AtomMemory:
    if memory.anchor is None or value < memory.anchor[1]:
        return attrs.evolve(memory, last=value, anchor=(now, value))
    start, first = memory.anchor
    if now - start < RATE_SPAN:
        return attrs.evolve(memory, last=value)
    rate = (value - first) / (now - start)
    assert atom.threshold is not None
    truth = _HOLDS[atom.op or ">"](rate, atom.threshold)
    before = memory.before if truth and memory.truth else memory.rate or 0.0
    return attrs.evolve(memory, last=value, anchor=(now, value), rate=rate, truth=truth, before=before)


_HOLDS = {
    "==": lambda value, limit: value == limit,
    "!=": lambda value, limit: value != limit,
    ">": lambda value, limit: value > limit,
    ">=": lambda value, limit: value >= limit,
    "<": lambda value, limit: value < limit,
    "<=": lambda value, limit: value <= limit,
}


def _cause(
    rule: Rule, old: Sequence[AtomMemory], new: Sequence[AtomMemory], limits: Limits, held: float | None
) -> Cause:
    """The cause, told by the atom that turned true now; or by the first that is true; or by the first."""
    places = range(len(new))
    turned = [i for i in places if new[i].truth and not old[i].truth]
    true = [i for i in places if new[i].truth]
    i = (turned or true or [0])[0]
    atom, memory = rule.when.atoms[i], new[i]
    limit = None if atom.threshold is None else threshold(atom, limits)
    after = memory.rate if atom.kind == "rate" else memory.last
    return Cause(
        rule.name, rule.line, rule.when.text, atom.file, atom.key or "", memory.before, after or 0.0, limit, held
    )
