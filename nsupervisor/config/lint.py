"""Find what is valid and probably not intended, for example rules that can never fire, or always do. Pure.

A condition is evaluated with every value that could make a difference: both sides of each threshold, within the
workload's own limits, and both outcomes of each counter, stall and exit.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from itertools import product
from math import inf

from nsupervisor.config.checks import Conflict
from nsupervisor.config.condition_terms import EXIT, LIMIT_KEYS, PRESSURE_FILES, SIZE_FILES
from nsupervisor.config.conditions import Atom, Condition
from nsupervisor.config.known_programs import find_daemon, find_lock
from nsupervisor.config.model import Config, Resources, Rule, WorkloadConfig
from nsupervisor.config.positions import KeyPath, Positions
from nsupervisor.config.problems import Problem
from nsupervisor.config.quoting import quoted
from nsupervisor.config.shell_syntax import find_shell_syntax
from nsupervisor.config.units import RelativeChange, format_duration, format_size

COUNTER_LIMITS = {
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
"""Counters that cannot increase without this limit."""
_MAX_COMBINATIONS = 4096
"""Conditions with more combinations of values than this are not evaluated."""
_EPSILON = 1e-6

Value = float | bool


def lint(config: Config) -> Iterator[Conflict]:
    """Find everything that is probably not intended."""
    if not config.workloads:
        suggestion = 'write for example [workload.web], and command = ["sleep", "60"] below it'
        yield Conflict((), f"there is no workload in it, so nothing would be run; {suggestion}")
    for name, workload in config.workloads.items():
        yield from _lint_command(workload.command, ("workload", name, "command"))
        if workload.command:  # otherwise it is that of its image
            yield from _lint_isolation(workload)
            yield from _lint_daemon(workload)
        yield from _lint_restarts(workload, ("workload", name))
        yield from _lint_stop(workload, ("workload", name))
        shared = workload.group is not None  # the limits of the group apply, too
        for number, rule in enumerate(workload.policy):
            yield from lint_rule(rule, workload.resources, ("workload", name, "policy", number), shared)
    for name, group in config.groups.items():
        for number, rule in enumerate(group.policy):
            rule_path: KeyPath = ("group", name, "policy", number)
            yield from _check_never_true(rule, group.resources, rule_path, has_shared_limits=True)
    for number, rule in enumerate(config.host.policy):
        yield from _check_never_true(rule, Resources(), ("host", "policy", number), has_shared_limits=True)


def _lint_command(command: Sequence[str], path: KeyPath) -> Iterator[Conflict]:
    """Warn of each word that only a shell would interpret."""
    for position, syntax in find_shell_syntax(command):
        shell = f"[{', '.join(map(quoted, ('sh', '-c', ' '.join(command))))}]"
        yield Conflict(
            (*path, position), f"no shell reads this: {syntax} is passed as it is; for a shell, write {shell}"
        )


def _lint_isolation(workload: WorkloadConfig) -> Iterator[Conflict]:
    """Warn of a known program whose lock is not valid outside of the namespaces that it would have."""
    known = find_lock(workload.command[0])
    if known is None:
        return
    program, lock = known
    own = [name for name in lock.namespaces if getattr(workload.namespaces, name)]
    if not own:
        return
    remedy = ", ".join(f"{name} = false" for name in own)
    yield Conflict(
        ("workload", workload.name, "namespaces"),
        f"{program} is known by {lock.means}, which mean nothing outside of its own namespaces ({', '.join(own)}): "
        f"{lock.harm}; write namespaces = {{ {remedy} }}, or run its tools only inside",
    )


def _lint_daemon(workload: WorkloadConfig) -> Iterator[Conflict]:
    """Warn of a known program that goes to the background, where nothing supervises it."""
    known = find_daemon(workload.command)
    if known is not None:
        program, daemon = known
        yield Conflict(
            ("workload", workload.name, "command"),
            f"{program} goes to the background, and would be taken for a program that has ended; {daemon.remedy}",
        )


WARNING_HINT = "it can be run like this"


def _lint_restarts(workload: WorkloadConfig, path: KeyPath) -> Iterator[Conflict]:
    """Warn of keys about restarts that another key makes void."""
    for number, status in enumerate(workload.restart_force_exit_status):
        if status in workload.restart_prevent_exit_status:
            text = f"{quoted(status)} is in restart_prevent_exit_status too, which wins; remove it from one of them"
            yield Conflict((*path, "restart_force_exit_status", number), text)
    if workload.runtime_randomized_extra_sec and workload.runtime_max_sec == inf:
        text = "has no effect without runtime_max_sec, to which it adds; set that, or remove this"
        yield Conflict((*path, "runtime_randomized_extra_sec"), text)
    if workload.restart_mode == "debug" and workload.restart in ("no", "on-success"):
        text = (
            f'has no effect with restart = "{workload.restart}", which restarts nothing that failed; remove one of them'
        )
        yield Conflict((*path, "restart_mode"), text)


def _lint_stop(workload: WorkloadConfig, path: KeyPath) -> Iterator[Conflict]:
    """Warn of keys about stops that another key makes void."""
    if workload.final_kill_signal != signal.SIGKILL and workload.timeout_stop_sec == inf:
        yield Conflict(
            (*path, "final_kill_signal"), 'is never sent with timeout_stop_sec = "infinity"; write a time there'
        )
    if workload.send_sighup and workload.kill_signal == signal.SIGHUP:
        yield Conflict((*path, "send_sighup"), "has no effect: kill_signal is SIGHUP already; remove one of them")


def lint_warnings(config: Config, positions: Positions) -> list[Problem]:
    """Return the warnings of `lint` with their lines in the file."""
    found = (positions.problem(conflict.path, conflict.message) for conflict in lint(config))
    return list(dict.fromkeys(found))  # several workloads may inherit one value


def lint_rule(rule: Rule, resources: Resources, path: KeyPath, has_shared_limits: bool = False) -> Iterator[Conflict]:
    """Find the doubtful parts of one rule. `has_shared_limits`: limits of a group apply to the workload too."""
    yield from _check_never_true(rule, resources, path, has_shared_limits)
    if _constant_value(rule.when, resources, has_shared_limits):
        yield Conflict((*path, "when"), _explain(rule.when, resources, True, has_shared_limits))
    interval = max(rule.cooldown, 0.0 if rule.when.is_momentary else rule.for_)
    if rule.at_most is not None and rule.at_most * interval >= rule.within > 0:
        yield Conflict(
            (*path, "within"),
            f"then is never reached: the rule fires once in {format_duration(interval)}, so less than "
            f"{rule.at_most + 1} times in {format_duration(rule.within)}; write a longer time, or a shorter "
            f"{'cooldown' if interval == rule.cooldown else 'for'}",
        )
    late_actions = [action for action in (rule.action, *rule.then) if action in ("signal", "freeze", "thaw", "kill")]
    if late_actions and all(atom.file == EXIT for atom in rule.when.atoms):
        yield Conflict(
            (*path, "action"),
            f'"{late_actions[0]}" has nothing to act on: the program has ended by then; '
            'write for example "restart" or "log"',
        )
    for key, target in rule.set_.items():
        now, bound = getattr(resources, key), rule.limit.get(key)
        if isinstance(target, RelativeChange) and isinstance(now, int) and isinstance(bound, int):
            is_increase = (target.percent if target.percent is not None else target.amount) > 0
            if (now >= bound) if is_increase else (now <= bound):
                yield Conflict(
                    (*path, "limit", key),
                    f"is where {key} is already, so there is nothing to set; "
                    f"write a {'larger' if is_increase else 'smaller'} value",
                )


def _check_never_true(rule: Rule, resources: Resources, path: KeyPath, has_shared_limits: bool) -> Iterator[Conflict]:
    if _constant_value(rule.when, resources, has_shared_limits) is False:
        yield Conflict((*path, "when"), _explain(rule.when, resources, False, has_shared_limits))


def _constant_value(condition: Condition, resources: Resources, has_shared_limits: bool) -> bool | None:
    """Return the only value that the condition can have; None if it can be both.

    What is known of an exit is unknown at all other times, so a condition on exits alone is not always true.
    """
    variables = [_variable(atom, resources) for atom in condition.atoms]
    values_of: dict[tuple[str, ...], set[Value]] = {}
    for atom, variable in zip(condition.atoms, variables, strict=True):
        values_of.setdefault(variable, set()).update(_candidate_values(atom, resources, has_shared_limits))
    combinations = 1
    for values in values_of.values():
        combinations *= len(values)
    if combinations > _MAX_COMBINATIONS:
        return None
    outcomes = set()
    for chosen in product(*values_of.values()):
        case = dict(zip(values_of, chosen, strict=True))
        truths = [
            _evaluate_atom(atom, case[variable], resources)
            for atom, variable in zip(condition.atoms, variables, strict=True)
        ]
        between_exits = [None if atom.file == EXIT else t for atom, t in zip(condition.atoms, truths, strict=True)]
        outcomes |= {condition.evaluate(truths), condition.evaluate(between_exits)}
        if len(outcomes) == 2:
            return None
    return outcomes.pop()


def _variable(atom: Atom, resources: Resources) -> tuple[str, ...]:
    """Return a key that is equal for atoms that depend on the same value."""
    if atom.kind == "level":
        unit = "%" if atom.is_percent and _limit(atom.file, resources) is None else ""
        return (atom.file, atom.key or "", unit)
    if atom.kind in ("rate", "fact"):
        return (atom.file, atom.key or "", atom.kind)
    return (atom.text,)


def _limit(file: str, resources: Resources) -> int | None:
    key = LIMIT_KEYS.get(file) or ("memory_max" if file in SIZE_FILES else None)
    value = getattr(resources, key) if key else None
    return value if isinstance(value, int) else None


def _threshold(atom: Atom, resources: Resources) -> float:
    assert atom.threshold is not None
    limit = _limit(atom.file, resources)
    return atom.threshold * limit / 100 if atom.is_percent and limit is not None else atom.threshold


def _range(atom: Atom, resources: Resources) -> tuple[float, float]:
    """Return the smallest and the largest value that is possible while the program runs."""
    if atom.kind == "fact":
        return 0.0, 255.0
    if atom.kind == "rate":
        quota, period = resources.cpu_max or (None, 1)
        is_limited = atom.key == "usage_usec" and quota is not None and not resources.cpu_max_burst
        return 0.0, quota / period * 1e6 if is_limited and quota is not None else inf
    if atom.file in PRESSURE_FILES:
        return 0.0, 100.0
    limit = _limit(atom.file, resources)
    maximum = 100.0 if atom.is_percent and limit is None else inf if limit is None else float(limit)
    return (1.0 if atom.file in ("pids.current", "memory.current") and not atom.is_percent else 0.0), maximum


def _candidate_values(atom: Atom, resources: Resources, has_shared_limits: bool) -> set[Value]:
    is_constant = not has_shared_limits and _lacks_limit(atom, resources)
    if atom.kind in ("counter", "stall") or atom.key in ("oom_killed", "core_dumped"):
        return {False} if is_constant else {False, True}
    minimum, maximum = (0.0, 0.0) if is_constant else _range(atom, resources)
    limit = _threshold(atom, resources)
    candidates = (minimum, maximum, limit - _EPSILON, limit, limit + _EPSILON)
    return {float(value) for value in candidates if minimum <= value <= maximum}


def _lacks_limit(atom: Atom, resources: Resources) -> bool:
    key = COUNTER_LIMITS.get((atom.file, atom.key or ""))
    return key is not None and getattr(resources, key) is None


def _evaluate_atom(atom: Atom, value: Value, resources: Resources) -> bool:
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


def _explain(condition: Condition, resources: Resources, is_always_true: bool, has_shared_limits: bool) -> str:
    """Explain which atom decides, and what to write instead."""
    message = f'"{condition.text}" is always true, so this rule fires at once'
    if not is_always_true:
        message = f'"{condition.text}" can never be true, so this rule does nothing'
    for atom in condition.atoms:
        if _constant_value(Condition(atom.text, (atom,)), resources, has_shared_limits) is None:
            continue
        if not has_shared_limits and _lacks_limit(atom, resources):
            key = COUNTER_LIMITS[(atom.file, atom.key or "")]
            return f"{message}: {atom.file} {atom.key} counts at {key}, which is not set; set it under resources"
        minimum, maximum = _range(atom, resources)
        reading = f"{atom.file} {atom.key or ''}".strip()
        if is_always_true:
            lowest = _format_value(atom, minimum)
            return f"{message}: {reading} is at least {lowest} while it runs; write a larger threshold"
        if atom.op in (">", ">="):
            return f"{message}: {reading} is at most {_format_value(atom, maximum)}; write a smaller threshold"
        return f"{message}: {reading} is at least {_format_value(atom, minimum)}; write a larger threshold"
    relation = "leave nothing out" if is_always_true else "exclude each other"
    return f"{message}: its parts {relation}; write other thresholds"


def _format_value(atom: Atom, value: float) -> str:
    if atom.file in PRESSURE_FILES or (atom.is_percent and value == 100):
        return f"{value:g}%"
    return format_size(int(value)) if atom.file in SIZE_FILES and value not in (0, 1, inf) else f"{value:g}"
