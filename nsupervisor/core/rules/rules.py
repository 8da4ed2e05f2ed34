"""Policy rules: which rules fire on a snapshot of a cgroup's files, and why.

A condition has atoms of these kinds, which differ in how the kernel reports their values:

* A **counter** (`memory.events oom_kill`) only increases, and the kernel reports each change. It is true for a
  moment: when its value is higher than before, or with `increases by 10`, higher by 10 than when it was last true.
* A **level** (`pids.current >= 90%`) rises and falls, and has to be sampled. It is true while its comparison holds.
* A **rate** (`cpu.stat nr_throttled rate > 50/s`) is a level made of a counter, measured over at least a second.
* A **stall** (`memory.pressure some stall > 100ms/1s`) is reported by a trigger of the kernel, and is true for that
  moment. The caller puts it into the snapshot under the key of the atom; its value is the file's `total`.
* A **fact** (`exit code == 3`) is true at the moment of the exit, whose snapshot has the file `exit`.

A condition with a momentary atom (counter, stall, fact) fires when it becomes true, and each time that one of its atoms
does. A condition without one fires once it has been true, in every snapshot, for the time that `for` asks; and again
only after it was false in between. `cooldown` keeps a rule silent for that long after it fired: increases of a counter
in that time are passed over, while a level that still holds when the cooldown ends fires again. Without a cooldown, a
level that continues to hold fires once.

When a rule with `at_most` has fired that often `within` the time, it requests `then` instead of its `action`; if `then`
has several steps, it requests each of them as often, and the last one from then on. It never goes back a step, but
starts again from the first step once it has not fired for `within`: so no step except the last one runs more than
`at_most` times within any such time. A `set` whose values have all reached their bounds goes on to the next step at
once.

Several rules may fire on one snapshot. Their actions run in the order of `SEVERITY_ORDER`, mildest first, and actions
of the same kind in the order of the file, so the most severe one has the last word.

`observe` is a function of the rules' states, a snapshot, and the time. The engine has no effects: it returns which
rules fired, what each requests, and the cause.
"""

from collections.abc import Mapping, Sequence
from typing import Any, get_args

import attrs

from nsupervisor.config.condition_terms import EXIT, HOST_MEMORY_TOTALS
from nsupervisor.config.conditions import Atom
from nsupervisor.config.load import equal_settings
from nsupervisor.config.model import ActionName, GroupRule, Rule
from nsupervisor.core import backoff
from nsupervisor.core.evolve import evolve
from nsupervisor.core.rules.limit_steps import LimitValues, next_limits
from nsupervisor.wire_names import by_wire_name, wire

SEVERITY_ORDER: tuple[str, ...] = get_args(ActionName)
"""Actions, the mildest first: of two rules with opposite actions, the later one here prevails."""

RATE_SPAN_S = 1.0
"""Seconds between the two values of a rate, at least."""


@attrs.frozen
class AtomState:
    """The state of one atom between snapshots. Times are seconds of the monotonic clock."""

    value: float | None = attrs.field(default=None, metadata=wire("last"))
    """The latest value that was read."""
    baseline: float = attrs.field(default=0.0, metadata=wire("before"))
    """The value to compare the latest one with: a counter's when it was last true, a level's when it became true."""
    is_true: bool | None = attrs.field(default=None, metadata=wire("truth"))
    """Whether the atom is true; None while that is unknown."""
    rate_start: tuple[float, float] | None = attrs.field(default=None, metadata=wire("anchor"))
    """The time and the value at which the measurement of a rate started."""
    rate: float | None = attrs.field(default=None, metadata=wire("rate"))


@attrs.frozen
class RuleState:
    """The state of one rule between snapshots."""

    atoms: tuple[AtomState, ...] = attrs.field(metadata=wire("atoms"))
    holding_since: float | None = attrs.field(default=None, metadata=wire("since"))
    """The time since which the condition has held; None while it does not."""
    has_fired: bool = attrs.field(default=False, metadata=wire("spent"))
    """The rule has fired already since the condition began to hold."""
    fired_at: float | None = attrs.field(default=None, metadata=wire("fired_at"))
    step: int = attrs.field(default=0, metadata=wire("step"))
    """The escalation step of the last firing: 0 is `action`, 1 the first of `then`."""
    step_firings: tuple[float, ...] = attrs.field(default=(), metadata=wire("fired"))
    """The times of the recent firings of that step, as far as `within` reaches; empty without `at_most`."""
    lacks_member: bool = attrs.field(default=False, metadata=wire("lacks_member"))
    """A rule of a group has fired when there was no member to act on."""


@attrs.frozen
class Cause:
    """Why a rule fired, with enough data to verify it by hand.

    `file` to `threshold` describe the deciding atom. `before` and `after` are two values of a counter; for a level,
    the value with which it began to hold, and the latest; for a rate, per second; for a stall, the file's total, in
    microseconds. `threshold` is in the file's own unit (processes, bytes), None for a counter.
    """

    rule: str = attrs.field(metadata=wire("rule"))
    line: int = attrs.field(metadata=wire("line"))
    when: str = attrs.field(metadata=wire("when"))
    file: str = attrs.field(metadata=wire("file"))
    key: str = attrs.field(metadata=wire("key"))
    before: float = attrs.field(metadata=wire("before"))
    after: float = attrs.field(metadata=wire("after"))
    threshold: float | None = attrs.field(default=None, metadata=wire("threshold"))
    held_s: float | None = attrs.field(default=None, metadata=wire("held"))
    """Seconds for which the condition had held."""
    group: str | None = attrs.field(default=None, metadata=wire("group"))
    """The group that owns the rule: "group/batch", or "host"; None for a workload's own rule."""
    victim: str | None = attrs.field(default=None, metadata=wire("victim"))
    """The criterion that chose the workload.

    `nsupervisor.core.rules.victims` defines the order and the values recorded for each candidate.
    """
    candidates: tuple[Mapping[str, Any], ...] | None = attrs.field(default=None, metadata=wire("candidates"))
    previous_attempt: str | None = attrs.field(default=None, metadata=wire("escalates"))
    """The previous victim of the same firing, and why the action on it did not help."""

    def to_record(self) -> dict[str, Any]:
        """Return the cause for a record, without the fields that do not apply."""
        return {name: value for name, value in by_wire_name(self).items() if value is not None}


@attrs.frozen
class Firing:
    """A rule that fires now, and the action that it requests."""

    rule: Rule
    action: str
    cause: Cause
    limits: LimitValues = attrs.field(factory=dict)
    """For `set`: the limits to set, by key; empty if every value is at its bound."""


Snapshot = Mapping[str, Mapping[str, float]]
"""Values by file and key; the key is "" for a file with a single value."""
Limits = Mapping[str, float | None]
"""Limits in force by file ("pids.max" → 64, None: no limit), for percentage thresholds and for `set`."""


@attrs.frozen
class Engine:
    """The rules of one workload, each with its state."""

    rules: tuple[Rule, ...]
    states: tuple[RuleState, ...]

    @classmethod
    def for_rules(cls, rules: Sequence[Rule]) -> "Engine":
        """Create an engine without observations: each counter's first value is its baseline and fires nothing."""
        return cls(tuple(rules), tuple(RuleState((AtomState(),) * len(rule.when.atoms)) for rule in rules))

    def for_new_generation(self) -> "Engine":
        """Reset the levels for a new generation: each has to hold for its full time again.

        Counters and cooldowns continue, as the cgroup does.
        """
        return evolve(self, states=tuple(evolve(m, holding_since=None, has_fired=False) for m in self.states))

    def only(self, rule: Rule) -> "Engine":
        """Return an engine for one of these rules, in its present state.

        It continues to observe the condition of a rule whose action is in progress, whatever becomes of the others.
        """
        return Engine((rule,), (self.states[self.rules.index(rule)],))

    @property
    def holds(self) -> bool:
        """Whether the conditions of all its rules held when they were last observed."""
        return all(state.holding_since is not None for state in self.states)

    def with_cooldown(self, now: float) -> "Engine":
        """Start the cooldown of each rule that has a victim, as if it had fired now."""
        states = tuple(
            evolve(memory, fired_at=now, lacks_member=False)
            if isinstance(rule, GroupRule) and rule.victim is not None
            else memory
            for rule, memory in zip(self.rules, self.states, strict=True)
        )
        return evolve(self, states=states)

    def without_member(self, rule: Rule) -> "Engine":
        """Note that a rule that has fired found no member to act on. It may have been replaced meanwhile."""
        states = tuple(
            evolve(state, lacks_member=True) if own is rule else state
            for own, state in zip(self.rules, self.states, strict=True)
        )
        return evolve(self, states=states)

    def with_started_member(self) -> "Engine":
        """Let the rules that found no member to act on fire again: their cooldown is over, as one has started."""
        if not any(state.lacks_member for state in self.states):
            return self
        states = tuple(
            evolve(state, has_fired=False, fired_at=None, lacks_member=False) if state.lacks_member else state
            for state in self.states
        )
        return evolve(self, states=states)

    def with_rules(self, rules: Sequence[Rule]) -> "Engine":
        """Replace the rules after a reload.

        A rule that is equal to an earlier one, at any position in the file, keeps its state, its cooldown
        included; any other starts without observations.
        """
        unmatched = list(zip(self.rules, self.states, strict=True))
        states = []
        for rule in rules:
            match = next((candidate for candidate in unmatched if equal_settings(type(rule), candidate[0], rule)), None)
            if match is not None:
                unmatched.remove(match)
            states.append(match[1] if match is not None else RuleState((AtomState(),) * len(rule.when.atoms)))
        return Engine(tuple(rules), tuple(states))

    def files_read_with(self, file: str) -> tuple[str, ...]:
        """Return the files to read when `file` changes, so that each rule that references it sees one moment."""
        selected = {file: None}
        for rule in self.rules:
            files_of_rule = [atom.file for atom in rule.when.atoms]
            if file in files_of_rule:
                selected |= dict.fromkeys(name for name in files_of_rule if name != EXIT)  # observed by itself
        return tuple(selected)

    def observe(self, snapshot: Snapshot, limits: Limits, now: float) -> tuple["Engine", tuple[Firing, ...]]:
        """Observe a snapshot; return the engine after it, and the firings by severity.

        A rule with none of its files in the snapshot keeps its state.
        """
        states, firings = list(self.states), []
        limits = with_host_totals(limits, snapshot)
        for i, rule in enumerate(self.rules):
            if any(atom.file in snapshot for atom in rule.when.atoms):
                states[i], firing = _observe(states[i], rule, snapshot, limits, now)
                firings += [firing] if firing is not None else []
        firings.sort(key=lambda firing: SEVERITY_ORDER.index(firing.action))
        if all(new_state is old_state for new_state, old_state in zip(states, self.states, strict=True)):
            return self, ()  # most samples change nothing, and there are many of them
        return evolve(self, states=tuple(states)), tuple(firings)


PERCENT_BASE = {"pids.current": "pids.max", "memory.current": "memory.max"} | {
    f"host.meminfo {part}": f"host.meminfo {whole}" for part, whole in HOST_MEMORY_TOTALS.items()
}
"""The base of each percentage threshold."""


def with_host_totals(limits: Limits, snapshot: Snapshot) -> Limits:
    """Add the host's totals of memory and swap to the limits, if the snapshot has them.

    A host without swap has no free swap either: a total of at least 1 makes 0 lie below each percentage of it.
    """
    meminfo = snapshot.get("host.meminfo")
    if meminfo is None:
        return limits
    totals = {
        f"host.meminfo {whole}": max(meminfo[whole], 1.0) for whole in HOST_MEMORY_TOTALS.values() if whole in meminfo
    }
    return {**limits, **totals}


def threshold(atom: Atom, limits: Limits) -> float | None:
    """Compute a comparison's threshold in the unit of the file; None for a percentage of a limit that is not set."""
    assert atom.threshold is not None
    if not atom.is_percent:
        return atom.threshold
    limit: float | None = limits.get(PERCENT_BASE[f"{atom.file} {atom.key}" if atom.key else atom.file])
    return None if limit is None else limit * atom.threshold / 100


def _observe(
    state: RuleState, rule: Rule, snapshot: Snapshot, limits: Limits, now: float
) -> tuple[RuleState, Firing | None]:
    old_atoms = state.atoms
    atoms = tuple(
        _observe_atom(old_atom, atom, snapshot, limits, now)
        for old_atom, atom in zip(old_atoms, rule.when.atoms, strict=True)
    )
    if any(new_atom is not old_atom for new_atom, old_atom in zip(atoms, old_atoms, strict=True)):
        state = evolve(state, atoms=atoms)
    if not rule.when.evaluate([atom.is_true for atom in atoms]):
        return (state if state.holding_since is None else evolve(state, holding_since=None, has_fired=False)), None
    starts_holding = state.holding_since is None
    since = now if state.holding_since is None else state.holding_since
    if starts_holding:
        state = evolve(state, holding_since=since)
    if rule.when.is_momentary:
        fires = [
            (new_atom.is_true and (atom.is_momentary or not old_atom.is_true))
            or (atom.kind == "fact" and EXIT in snapshot)
            for atom, old_atom, new_atom in zip(rule.when.atoms, old_atoms, atoms, strict=True)
        ]
        may_fire, held = starts_holding or any(fires), None
    else:
        held = now - since
        may_fire = held >= rule.for_ and (not state.has_fired or rule.cooldown > 0)
    if not may_fire or (state.fired_at is not None and now - state.fired_at < rule.cooldown):
        return state, None
    settings = next_limits(rule, limits)
    step, step_firings = _choose_step(rule, state, bool(settings), now)
    action = (rule.action, *rule.then)[step]
    state = evolve(state, has_fired=True, fired_at=now, step=step, step_firings=step_firings, lacks_member=False)
    settings = settings if action == "set" else {}
    return state, Firing(rule, action, _build_cause(rule, old_atoms, atoms, limits, held), settings)


def _choose_step(rule: Rule, state: RuleState, is_settable: bool, now: float) -> tuple[int, tuple[float, ...]]:
    """Choose the escalation step to run; return it with the times of its recent firings, now included.

    Skips a `set` that has no values left to set.
    """
    steps, limit = (rule.action, *rule.then), rule.at_most
    recent = backoff.starts_within(state.step_firings, now, rule.within)
    step = state.step if recent else 0  # empty only after the rule was quiet for `within`
    if limit is not None and len(recent) >= limit and step + 1 < len(steps):
        step, recent = step + 1, ()
    while steps[step] == "set" and not is_settable and step + 1 < len(steps):
        step, recent = step + 1, ()
    return step, () if limit is None else (*recent, now)[-limit:]


def _observe_atom(state: AtomState, atom: Atom, snapshot: Snapshot, limits: Limits, now: float) -> AtomState:
    """Apply a snapshot to one atom. A counter that is not in it has not moved."""
    values = snapshot.get(atom.file)
    value = None if values is None else atom.value_in(values)
    if value is None:
        if not atom.is_momentary or state.is_true is False:
            return state
        baseline = (
            state.value if state.is_true and state.value is not None else state.baseline
        )  # as in `_observe_counter`
        return evolve(state, is_true=False, baseline=baseline)
    if atom.kind in ("counter", "stall"):
        return _observe_counter(state, atom, value)
    if atom.kind == "rate":
        return _observe_rate(state, atom, value, now)
    limit = threshold(atom, limits)
    if value == state.value and limit is not None and state.is_true is _COMPARISONS[atom.op or ">="](value, limit):
        return state
    truth = None if limit is None else _COMPARISONS[atom.op or ">="](value, limit)
    before = state.baseline if truth and state.is_true else value
    return evolve(state, value=value, is_true=truth, baseline=before)


def _observe_counter(state: AtomState, atom: Atom, value: float) -> AtomState:
    if state.value is None:
        return evolve(state, value=value, baseline=value, is_true=False)
    # Lower than before: the cgroup was created again and counts from 0, so the whole value is new.
    baseline = state.baseline if value >= state.value else 0.0
    if state.is_true:  # that moment has passed; the values that made it true are the new baseline
        baseline = state.value if value >= state.value else 0.0
    return evolve(state, value=value, baseline=baseline, is_true=value - baseline >= atom.increase)


def _observe_rate(state: AtomState, atom: Atom, value: float, now: float) -> AtomState:
    if state.rate_start is None or value < state.rate_start[1]:
        return evolve(state, value=value, rate_start=(now, value))
    start, first = state.rate_start
    if now - start < RATE_SPAN_S:
        return evolve(state, value=value)
    rate = (value - first) / (now - start)
    assert atom.threshold is not None
    truth = _COMPARISONS[atom.op or ">"](rate, atom.threshold)
    before = state.baseline if truth and state.is_true else state.rate or 0.0
    return evolve(state, value=value, rate_start=(now, value), rate=rate, is_true=truth, baseline=before)


_COMPARISONS = {
    "==": lambda value, limit: value == limit,
    "!=": lambda value, limit: value != limit,
    ">": lambda value, limit: value > limit,
    ">=": lambda value, limit: value >= limit,
    "<": lambda value, limit: value < limit,
    "<=": lambda value, limit: value <= limit,
}


def _build_cause(
    rule: Rule, old_states: Sequence[AtomState], new_states: Sequence[AtomState], limits: Limits, held: float | None
) -> Cause:
    """Build the cause from the atom that became true now, else from the first true one, else from the first."""
    indices = range(len(new_states))
    turned_true = [i for i in indices if new_states[i].is_true and not old_states[i].is_true]
    all_true = [i for i in indices if new_states[i].is_true]
    i = (turned_true or all_true or [0])[0]
    atom, state = rule.when.atoms[i], new_states[i]
    limit = None if atom.threshold is None else threshold(atom, limits)
    after = state.rate if atom.kind == "rate" else state.value
    return Cause(
        rule.name, rule.line, rule.when.text, atom.file, atom.key or "", state.baseline, after or 0.0, limit, held
    )
