"""Instances of one workload that differ: what distinguishes each from the first one. Pure."""

from __future__ import annotations

from typing import Any

from attrs import evolve, fields

from nsupervisor.config.table import Table


class Differences(dict[str, Any]):
    """New values by attribute; of a table in the table, its own differences."""


def find_differences(base: Any, other: Any) -> Differences:
    """Return what must be changed to get from one object of a model class to another one."""
    found = Differences()
    for attribute in fields(type(base)):
        before, after = getattr(base, attribute.name), getattr(other, attribute.name)
        if before == after:
            continue
        is_table = isinstance(before, Table) and type(before) is type(after)
        found[attribute.name] = find_differences(before, after) if is_table else after
    return found


def apply_differences(base: Any, differences: Differences) -> Any:
    """Return the object with these differences; what they do not name stays as it is in `base`."""
    changed = {
        name: apply_differences(getattr(base, name), value) if isinstance(value, Differences) else value
        for name, value in differences.items()
    }
    return evolve(base, **changed)
