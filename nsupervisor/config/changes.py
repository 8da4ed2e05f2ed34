"""Changes of a workload's resources at run time: read by the same declarations as the file, with the same messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from nsupervisor.config.checks import limit_conflicts
from nsupervisor.config.load import ConfigError, Problem, keys_of, read_table
from nsupervisor.config.model import Resources, Workload
from nsupervisor.config.shown import shown_path


def parse_changes(values: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes of `Resources` that these TOML keys and values are for; ConfigError with every problem.

    {"memory_max": "64M"} → {"memory_max": 67108864}. `values` is what tomllib makes of a table, or what JSON does.
    """
    slots = keys_of(Resources)
    if "required" in values:
        message = "is for the configuration: a change that cannot be enforced is refused; leave it out"
        raise ConfigError([Problem("", 0, "required", message)])
    loaded = read_table(Resources, dict(values))
    changes: dict[str, Any] = {}
    for name in values:
        slot = slots[name]
        value = getattr(loaded, slot.attribute)
        if slot.member is None:
            changes[slot.attribute] = value
        else:
            changes.setdefault(slot.attribute, {})[slot.member] = value[slot.member]
    return changes


def changed(workload: Workload, resources: Resources, changes: Mapping[str, Any]) -> Resources:
    """`resources` with the changes of `parse_changes`; ConfigError where they then fit neither together nor with the
    workload's rules."""
    merged = {name: getattr(resources, name) | value if name == "hugetlb" else value for name, value in changes.items()}
    result = attrs.evolve(resources, **merged)
    place = ("workload", workload.name)
    problems = [
        Problem("", 0, shown_path(_below(conflict.path, (*place, "resources")) or conflict.path), conflict.message)
        for conflict in limit_conflicts(attrs.evolve(workload, resources=result), place)
    ]
    if problems:
        raise ConfigError(problems)
    return result


def _below(path: tuple[str | int, ...], place: tuple[str, ...]) -> tuple[str | int, ...]:
    return path[len(place) :] if path[: len(place)] == place else ()
