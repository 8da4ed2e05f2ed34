"""Changes of a workload's resources at run time.

They are parsed with the same declarations and messages as the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from nsupervisor.config.checks import find_limit_conflicts
from nsupervisor.config.load import ConfigError, Problem, key_slots, load_table
from nsupervisor.config.model import GroupConfig, Resources, WorkloadConfig
from nsupervisor.config.quoting import did_you_mean, format_path
from nsupervisor.config.units import Percent, format_cpu_max
from nsupervisor.wire_names import by_wire_name


def parse_changes(values: Mapping[str, Any]) -> dict[str, Any]:
    """Convert TOML keys and values to attributes of `Resources`; raise ConfigError with every problem.

    {"memory_max": "64M"} → {"memory_max": 67108864}. `values` is a table as tomllib or json loads it.
    """
    slots = key_slots(Resources)
    unknown = [name for name in values if name not in slots or name == "required"]
    if unknown:
        known = [name for name in slots if name != "required"]
        raise ConfigError(
            Problem("", 0, format_path([name]), _unknown_key_message(name, did_you_mean(name, known), known))
            for name in unknown
        )
    loaded = load_table(Resources, dict(values))
    changes: dict[str, Any] = {}
    for name in values:
        slot = slots[name]
        value = getattr(loaded, slot.attribute)
        if slot.member is None:
            changes[slot.attribute] = value
        else:
            changes.setdefault(slot.attribute, {})[slot.member] = value[slot.member]
    return changes


def _unknown_key_message(name: str, suggestion: str, known: list[str]) -> str:
    instead = f"{suggestion.removeprefix(', ')}" or f"write one of {', '.join(known)}"
    return f"is nothing that can be set; {instead}"


def apply_changes(owner: WorkloadConfig | GroupConfig, resources: Resources, changes: Mapping[str, Any]) -> Resources:
    """Apply the changes of `parse_changes` to `resources`.

    Raises ConfigError if the resulting limits conflict with each other or with the rules of the workload or group.
    """
    added_to = ("hugetlb", "unified")
    merged = {n: getattr(resources, n) | value if n in added_to else value for n, value in changes.items()}
    result = attrs.evolve(resources, **merged)
    changed_owner: WorkloadConfig | GroupConfig
    if isinstance(owner, GroupConfig):
        owner_path: tuple[str, ...] = ("group", owner.name)
        resources_path, changed_owner = owner_path, attrs.evolve(owner, **attrs.asdict(result, recurse=False))
    else:
        owner_path = ("workload", owner.name)
        resources_path, changed_owner = (*owner_path, "resources"), attrs.evolve(owner, resources=result)
    problems = [
        Problem("", 0, format_path(_strip_prefix(conflict.path, resources_path) or conflict.path), conflict.message)
        for conflict in find_limit_conflicts(changed_owner, owner_path)
    ]
    if problems:
        raise ConfigError(problems)
    return result


def changed_limits(before: Resources, after: Resources) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the old and the new values of all changed keys, in JSON form; None or empty means no limit."""
    old, new = _to_json(before), _to_json(after)
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    return {key: old.get(key) for key in keys}, {key: new.get(key) for key in keys}


def _to_json(resources: Resources) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in by_wire_name(resources).items():
        if name == "cpu_max":
            values[name] = None if value is None else format_cpu_max(value)
        elif isinstance(value, Percent):
            values[name] = str(value)
        elif isinstance(value, tuple):
            values[name] = [by_wire_name(item) for item in value]
        elif name == "hugetlb":
            values |= {f"hugetlb_{member}": limit for member, limit in value.items()}
        else:
            values[name] = value
    return values


def _strip_prefix(path: tuple[str | int, ...], prefix: tuple[str, ...]) -> tuple[str | int, ...]:
    return path[len(prefix) :] if path[: len(prefix)] == prefix else ()
