"""Compare two configurations of the same object, key by key. Pure.

The walk follows the model's own declarations (`key_slots`), so a new key is compared as soon as it is declared. The
`live` flag of a key says whether a running workload can take the change.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import attrs

from nsupervisor.config.kinds import Kind, MapOf, TableOf, Tables
from nsupervisor.config.load import keys_of
from nsupervisor.config.model import Config, Group, Host, Resources, Supervisor, Workload
from nsupervisor.config.positions import Path
from nsupervisor.config.shown import shown_path
from nsupervisor.config.written import written
from nsupervisor.wire import wire


@attrs.frozen
class Change:
    """One key that differs. `before` and `after` are in TOML form, and both None if the value is secret."""

    key: str = attrs.field(metadata=wire("key"))
    how: Literal["added", "removed", "changed", "reordered", "contents"] = attrs.field(metadata=wire("how"))
    """ "contents" means that the files named by the key have changed, and the key itself has not."""
    before: str | None = attrs.field(metadata=wire("before"))
    after: str | None = attrs.field(metadata=wire("after"))
    live: bool = attrs.field(metadata=wire("live"))
    """A running workload can take the change; otherwise it needs a new process."""


def differences(old: Workload, new: Workload) -> tuple[Change, ...]:
    """Return all keys that differ, in the order of the model.

    Omits `instances`, which is not a property of a single instance.
    """
    return tuple(change for change in _table_changes(Workload, old, new, ()) if change.key != "instances")


def supervisor_differences(old: Supervisor, new: Supervisor) -> tuple[Change, ...]:
    """Return the keys of [supervisor] that differ."""
    return tuple(_table_changes(Supervisor, old, new, ()))


def group_differences(old: Config, new: Config) -> tuple[Change, ...]:
    """Return the keys of [host], and of groups that both files have, that differ; all are live."""
    changes = [
        change
        for name, group in new.groups.items()
        if name in old.groups
        for change in _table_changes(Group, old.groups[name], group, ("group", name), live=True)
    ]
    return (*changes, *_table_changes(Host, old.host, new.host, ("host",), live=True))


def _table_changes(cls: type, old: Any, new: Any, path: Path, live: bool = False) -> Iterator[Change]:
    for name, slot in keys_of(cls).items():
        before, after = slot.get(old), slot.get(new)
        if before != after:
            yield from _value_changes(slot.kind, before, after, (*path, name), live or slot.live, slot.secret)


def _value_changes(kind: Kind, old: Any, new: Any, path: Path, live: bool, secret: bool) -> Iterator[Change]:
    match kind:
        case TableOf(cls):
            yield from _table_changes(cls, old, new, path, live)
        case Tables(cls):
            yield from _array_changes(kind, cls, old, new, path, live)
        case MapOf():
            for name in dict.fromkeys((*old, *new)):
                if old.get(name) != new.get(name):
                    yield _new_change(kind.kind_of(name), old.get(name), new.get(name), (*path, name), live, secret)
        case _:
            yield _new_change(kind, old, new, path, live, secret)


def _array_changes(
    kind: Tables, cls: type, old: Sequence[Any], new: Sequence[Any], path: Path, live: bool
) -> Iterator[Change]:
    """Compare two arrays of tables.

    Equal tables match at any position. The others are compared in the order in which they appear.
    """
    removed, added = list(old), []
    for number, table in enumerate(new):
        match = next((old_table for old_table in removed if same(cls, table, old_table)), None)
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
        and not all(same(cls, old_item, new_item) for old_item, new_item in zip(old, new, strict=True))
    ):
        yield Change(shown_path(path), "reordered", written(kind, old), written(kind, new), live)


def _index(items: Sequence[Any], target: Any) -> int:
    return next(number for number, item in enumerate(items) if item is target)


def same(cls: type, one: Any, other: Any) -> bool:
    """Check whether two tables have equal values for all keys; their positions in the file may differ."""
    return all(slot.get(one) == slot.get(other) for slot in keys_of(cls).values())


def _new_change(kind: Kind, old: Any, new: Any, path: Path, live: bool, secret: bool) -> Change:
    how: Literal["added", "removed", "changed"]
    how = "added" if old is None else "removed" if new is None else "changed"
    if secret:
        return Change(shown_path(path), how, None, None, live)
    return Change(shown_path(path), how, written(kind, old), written(kind, new), live)


def merged(old: Resources, new: Resources, now: Resources) -> Resources:
    """Return the limits to apply: the value of the new file if it changed, else the value in force.

    The value in force may have been set at run time.
    """
    values: dict[str, Any] = {}
    for attribute in attrs.fields(Resources):
        before, after, present = (getattr(resources, attribute.name) for resources in (old, new, now))
        if isinstance(before, dict) and isinstance(after, dict) and isinstance(present, dict):
            names = dict.fromkeys((*after, *present))
            chosen = {n: present.get(n) if before.get(n) == after.get(n) else after.get(n) for n in names}
            kept = {n for n in names if (n in present if before.get(n) == after.get(n) else n in after)}
            values[attribute.name] = {n: value for n, value in chosen.items() if n in kept}
        else:
            values[attribute.name] = present if before == after else after
    return Resources(**values)
