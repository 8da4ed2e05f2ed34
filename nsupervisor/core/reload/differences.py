"""Compare two configurations of the same object, key by key. Pure.

The walk follows the model's own declarations (`key_slots`), so a new key is compared as soon as it is declared. The
`live` flag of a key says whether a running workload can take the change.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import attrs

from nsupervisor.config.kinds import Kind, MapOf, TableOf, TablesOf
from nsupervisor.config.load import equal_settings, key_slots
from nsupervisor.config.model import (
    Config,
    GroupConfig,
    HostConfig,
    NetworksConfig,
    Resources,
    SupervisorConfig,
    WorkloadConfig,
)
from nsupervisor.config.positions import KeyPath
from nsupervisor.config.quoting import format_path
from nsupervisor.config.to_toml import to_toml
from nsupervisor.wire_names import wire


@attrs.frozen
class Change:
    """One key that differs. `before` and `after` are in TOML form, and both None if the value is secret."""

    key: str = attrs.field(metadata=wire("key"))
    kind: Literal["added", "removed", "changed", "reordered", "contents"] = attrs.field(metadata=wire("how"))
    """ "contents" means that the files named by the key have changed, and the key itself has not."""
    before: str | None = attrs.field(metadata=wire("before"))
    after: str | None = attrs.field(metadata=wire("after"))
    is_live: bool = attrs.field(metadata=wire("live"))
    """A running workload can take the change; otherwise it needs a new process."""


def workload_differences(old: WorkloadConfig, new: WorkloadConfig) -> tuple[Change, ...]:
    """Return all keys that differ, in the order of the model.

    Omits `instances`, which is not a property of a single instance.
    """
    return tuple(change for change in _table_changes(WorkloadConfig, old, new, ()) if change.key != "instances")


def supervisor_differences(old: SupervisorConfig, new: SupervisorConfig) -> tuple[Change, ...]:
    """Return the keys of [supervisor] that differ."""
    return tuple(_table_changes(SupervisorConfig, old, new, ()))


def group_differences(old: Config, new: Config) -> tuple[Change, ...]:
    """Return the groups that only one file has, and keys of others, [host] and [network] that differ; all are live."""
    changes: list[Change] = []
    for name in dict.fromkeys((*new.groups, *old.groups)):
        before, after = old.groups.get(name), new.groups.get(name)
        if before is None or after is None:
            changes.append(_new_change(TableOf(GroupConfig), before, after, ("group", name), True, False))
        else:
            changes += _table_changes(GroupConfig, before, after, ("group", name), live=True)
    return (
        *changes,
        *_table_changes(HostConfig, old.host, new.host, ("host",), live=True),
        *_table_changes(NetworksConfig, old.network, new.network, ("network",), live=True),
    )


def _table_changes(cls: type, old: Any, new: Any, path: KeyPath, live: bool = False) -> Iterator[Change]:
    for name, slot in key_slots(cls).items():
        before, after = slot.value_in(old), slot.value_in(new)
        if before != after:
            yield from _value_changes(slot.kind, before, after, (*path, name), live or slot.is_live, slot.is_secret)


def _value_changes(kind: Kind, old: Any, new: Any, path: KeyPath, live: bool, secret: bool) -> Iterator[Change]:
    match kind:
        case TableOf(cls) if old is not None and new is not None:
            yield from _table_changes(cls, old, new, path, live)
        case TablesOf(cls):
            yield from _array_changes(kind, cls, old, new, path, live)
        case MapOf():
            for name in dict.fromkeys((*old, *new)):
                if old.get(name) != new.get(name):
                    yield _new_change(kind.kind_of(name), old.get(name), new.get(name), (*path, name), live, secret)
        case _:
            yield _new_change(kind, old, new, path, live, secret)


def _array_changes(
    kind: TablesOf, cls: type, old: Sequence[Any], new: Sequence[Any], path: KeyPath, live: bool
) -> Iterator[Change]:
    """Compare two arrays of tables.

    Equal tables match at any position. The others are compared in the order in which they appear.
    """
    removed, added = list(old), []
    for number, table in enumerate(new):
        match = next((old_table for old_table in removed if equal_settings(cls, table, old_table)), None)
        if match is None:
            added.append((number, table))
        else:
            removed.remove(match)
    for (number, table), old_table in zip(added, removed, strict=False):
        yield from _table_changes(cls, old_table, table, (*path, number), live)
    for number, table in added[len(removed) :]:
        yield _new_change(TableOf(cls), None, table, (*path, number), live, False)
    for old_table in removed[len(added) :]:
        yield _new_change(TableOf(cls), old_table, None, (*path, _index(old, old_table)), live, False)
    if (
        not removed
        and not added
        and not all(equal_settings(cls, old_item, new_item) for old_item, new_item in zip(old, new, strict=True))
    ):
        yield Change(format_path(path), "reordered", to_toml(kind, old), to_toml(kind, new), live)


def _index(items: Sequence[Any], target: Any) -> int:
    return next(number for number, item in enumerate(items) if item is target)


def _new_change(kind: Kind, old: Any, new: Any, path: KeyPath, live: bool, secret: bool) -> Change:
    change_kind: Literal["added", "removed", "changed"]
    change_kind = "added" if old is None else "removed" if new is None else "changed"
    if secret:
        return Change(format_path(path), change_kind, None, None, live)
    return Change(format_path(path), change_kind, to_toml(kind, old), to_toml(kind, new), live)


def merge_limits(old: Resources, new: Resources, in_force: Resources) -> Resources:
    """Return the limits to apply: the value of the new file if it changed, else the value in force.

    The value in force may have been set at run time.
    """
    if old == new:
        return in_force
    values: dict[str, Any] = {}
    for attribute in attrs.fields(Resources):
        before, after, present = (getattr(resources, attribute.name) for resources in (old, new, in_force))
        if isinstance(before, dict) and isinstance(after, dict) and isinstance(present, dict):
            names = dict.fromkeys((*after, *present))
            chosen = {n: present.get(n) if before.get(n) == after.get(n) else after.get(n) for n in names}
            kept_names = {n for n in names if (n in present if before.get(n) == after.get(n) else n in after)}
            values[attribute.name] = {n: value for n, value in chosen.items() if n in kept_names}
        else:
            values[attribute.name] = present if before == after else after
    return Resources(**values)
