"""What is allowed in a configuration and is probably not meant: rules that can never go off, or always do. Pure.

A condition is tried out with every value that could make a difference: each side of each threshold, within what the
workload's own limits allow, and each counter, stall and exit both ways.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from math import inf

from nsupervisor.config.checks import Conflict
from nsupervisor.config.conditions import Atom, Condition
from nsupervisor.config.facts import EXIT, LIMITS, PRESSURES, SIZES
from nsupervisor.config.model import Config, Resources, Rule
from nsupervisor.config.positions import Path, Positions
from nsupervisor.config.problems import Problem
from nsupervisor.config.shown import shown_path
from nsupervisor.config.units import Relative, format_duration, format_size

COUNTS = {
    ("pids.events", "max"): "pids_max",
    ("pids.events.local", "max"): "pids_max",
    ("memory.events", "max"): "memory_max",
    ("memory.events", "high"): "memory_high",
    ("memory.events", "low"): "memory_low",
    ("memory.events.local", "max"): "memory_max",
    ("memory.events.local", "high"): "memory_high",
    ("memory.events.local", "low"): "memory_low",
    ("cpu.stat", "nr_throttled"): "cpu_max",
    ("cpu.stat", "throttled_usec"): "cpu_max",
    ("cpu.stat", "nr_bursts"): "cpu_max_burst",
    ("cpu.stat", "burst_usec"): "cpu_max_burst",
}
"""Counters that stand still without a limit."""
_MOST = 4096
"""Conditions with more combinations of values than this are not tried out."""
_A_BIT = 1e-6

Value = float | bool


def doubts(config: Config) -> Iterator[Conflict]:
    """Everything that is probably not meant."""
    if not config.workloads:
        instead = 'write for example [workload.web], and command = ["sleep", "60"] below it'
        yield Conflict((), f"there is no workload in it, so nothing would be run; {instead}")
    for name, workload in config.workloads.items():
        shared = workload.group is not None  # whose limits hold, too
        for number, rule in enumerate(workload.policy):
            yield from rule_doubts(rule, workload.resources, ("workload", name, "policy", number), shared)
    for name, group in config.groups.items():
        for number, rule in enumerate(group.policy):
            place: Path = ("group", name, "policy", number)
            yield from _never(rule, group.resources, place, shared=True)
    for number, rule in enumerate(config.host.policy):
        yield from _never(rule, Resources(), ("host", "policy", number), shared=True)


DOUBTFUL = "it can be run like this"


def doubtful(config: Config, positions: Positions) -> list[Problem]:
    """`doubts` with their places in the file."""
    found = [(conflict, positions.line(conflict.path)) for conflict in doubts(config)]
    return [Problem(config.path, line, shown_path(conflict.path), conflict.message) for conflict, line in found]


def rule_doubts(rule: Rule, resources: Resources, path: Path, shared: bool = False) -> Iterator[Conflict]:
    """What is to be doubted about one rule. ``shared``: limits of others hold for it, too."""
    yield from _never(rule, resources, path, shared)
    if _outcome(rule.when, resources, shared):
        yield Conflict((*path, "when"), _explained(rule.when, resources, True, shared))
    pause = max(rule.cooldown, 0.0 if rule.when.momentary else rule.for_)
    if rule.at_most is not None and rule.at_most * pause >= rule.within > 0:
        yield Conflict(
            (*path, "within"),
            f"then is never reached: the rule goes off once in {format_duration(pause)}, so less than "
            f"{rule.at_most + 1} times in {format_duration(rule.within)}; write a longer time, or a shorter "
            f"{'cooldown' if pause == rule.cooldown else 'for'}",
        )
    dead = [action for action in (rule.action, *rule.then) if action in ("signal", "freeze", "thaw", "kill")]
    if dead and all(atom.file == EXIT for atom in rule.when.atoms):
        yield Conflict(
            (*path, "action"),
            f'"{dead[0]}" has nothing to act on: the program has ended by then; write for example "restart" or "log"',
        )
    for key, wanted in rule.set_.items():
        now, bound = getattr(resources, key), rule.limit.get(key)
        if isinstance(wanted, Relative) and isinstance(now, int) and isinstance(bound, int):
            up = (wanted.percent if wanted.percent is not None else wanted.amount) > 0
            if (now >= bound) if up else (now <= bound):
                yield Conflict(
                    (*path, "limit", key),
                    f"is where {key} is already, so there is nothing to set; "
                    f"write a {'larger' if up else 'smaller'} value",
                )


def _never(rule: Rule, resources: Resources, path: Path, shared: bool) -> Iterator[Conflict]:
    if _outcome(rule.when, resources, shared) is False:
        yield Conflict((*path, "when"), _explained(rule.when, resources, False, shared))


def _outcome(condition: Condition, resources: Resources, shared: bool) -> bool | None:
    """What the condition always is; None where it can be both."""
    variables = [_variable(atom, resources) for atom in condition.atoms]
    found: dict[tuple[str, ...], set[Value]] = {}
    for atom, variable in zip(condition.atoms, variables, strict=True):
        found.setdefault(variable, set()).update(_values(atom, resources, shared))
    combinations = 1
    for values in found.values():
        combinations *= len(values)
    if combinations > _MOST:
        return None
    seen = set()
    for chosen in product(*found.values()):
        case = dict(zip(found, chosen, strict=True))
        truths = [
            _holds(atom, case[variable], resources) for atom, variable in zip(condition.atoms, variables, strict=True)
        ]
        seen.add(condition.holds(truths))
        if len(seen) == 2:
            return None
    return seen.pop()


def _variable(atom: Atom, resources: Resources) -> tuple[str, ...]:
    """Atoms with the same one depend on the same value."""
    if atom.kind == "level":
        unit = "%" if atom.percent and _limit(atom.file, resources) is None else ""
        return (atom.file, atom.key or "", unit)
    if atom.kind in ("rate", "fact"):
        return (atom.file, atom.key or "", atom.kind)
    return (atom.text,)


def _limit(file: str, resources: Resources) -> int | None:
    key = LIMITS.get(file) or ("memory_max" if file in SIZES else None)
    value = getattr(resources, key) if key else None
    return value if isinstance(value, int) else None


def _threshold(atom: Atom, resources: Resources) -> float:
    assert atom.threshold is not None
    limit = _limit(atom.file, resources)
    return atom.threshold * limit / 100 if atom.percent and limit is not None else atom.threshold


def _range(atom: Atom, resources: Resources) -> tuple[float, float]:
    """The least and the largest value while the program runs."""
    if atom.kind == "fact":
        return 0.0, 255.0
    if atom.kind == "rate":
        quota, period = resources.cpu_max or (None, 1)
        limited = atom.key == "usage_usec" and quota is not None and not resources.cpu_max_burst
        return 0.0, quota / period * 1e6 if limited and quota is not None else inf
    if atom.file in PRESSURES:
        return 0.0, 100.0
    limit = _limit(atom.file, resources)
    most = 100.0 if atom.percent and limit is None else inf if limit is None else float(limit)
    return (1.0 if atom.file in ("pids.current", "memory.current") and not atom.percent else 0.0), most


def _values(atom: Atom, resources: Resources, shared: bool) -> set[Value]:
    stands_still = not shared and _unlimited(atom, resources)
    if atom.kind in ("counter", "stall") or atom.key in ("oom_killed", "core_dumped"):
        return {False} if stands_still else {False, True}
    least, most = (0.0, 0.0) if stands_still else _range(atom, resources)
    limit = _threshold(atom, resources)
    tried = (least, most, limit - _A_BIT, limit, limit + _A_BIT)
    return {float(value) for value in tried if least <= value <= most}


def _unlimited(atom: Atom, resources: Resources) -> bool:
    key = COUNTS.get((atom.file, atom.key or ""))
    return key is not None and getattr(resources, key) is None


def _holds(atom: Atom, value: Value, resources: Resources) -> bool:
    if isinstance(value, bool):
        return value
    limit = _threshold(atom, resources)
    match atom.op:
        case ">":
            return value > limit
        case "<":
            return value < limit
        case "<=":
            return value <= limit
        case "==":
            return value == limit
        case "!=":
            return value != limit
    return value >= limit


def _explained(condition: Condition, resources: Resources, certain: bool, shared: bool) -> str:
    """Which part decides, and what to write instead."""
    what = f'"{condition.text}" is always true, so this rule goes off at once'
    if not certain:
        what = f'"{condition.text}" can never be true, so this rule does nothing'
    for atom in condition.atoms:
        if _outcome(Condition(atom.text, (atom,)), resources, shared) is None:
            continue
        if not shared and _unlimited(atom, resources):
            key = COUNTS[(atom.file, atom.key or "")]
            return f"{what}: {atom.file} {atom.key} counts at {key}, which is not set; set it under resources"
        least, most = _range(atom, resources)
        name = f"{atom.file} {atom.key or ''}".strip()
        if certain:
            return f"{what}: {name} is at least {_shown(atom, least)} while it runs; write a larger threshold"
        bound = f"at most {_shown(atom, most)}" if atom.op in (">", ">=") else f"at least {_shown(atom, least)}"
        smaller = "smaller" if atom.op in (">", ">=") else "larger"
        return f"{what}: {name} is {bound}; write a {smaller} threshold"
    return f"{what}: its parts {'leave nothing out' if certain else 'exclude each other'}; write other thresholds"


def _shown(atom: Atom, value: float) -> str:
    if atom.file in PRESSURES or (atom.percent and value == 100):
        return f"{value:g}%"
    return format_size(int(value)) if atom.file in SIZES and value not in (0, 1, inf) else f"{value:g}"
