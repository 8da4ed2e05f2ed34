"""What is different between two declarations of the same thing, key by key. Pure.

The walk follows the model's own declarations (`keys_of`), so that a new key is compared as soon as it is there; its
``live`` says whether what runs can take the change.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import attrs

from nsupervisor.config.kinds import Kind, MapOf, TableOf, Tables
from nsupervisor.config.load import keys_of
from nsupervisor.config.model import Config, Group, Host, Resources, Supervisor, Workload
from nsupervisor.config.shown import shown_path
from nsupervisor.config.written import written

Place = tuple[str | int, ...]


@attrs.frozen
class Change:
    """One key that differs. ``before`` and ``after`` are as the file has them; both None where they are secret."""

    key: str
    how: Literal["added", "removed", "changed", "reordered", "contents"]
    """ "contents": not the key itself, but what the files say that it names."""
    before: str | None
    after: str | None
    live: bool
    """What runs can take it; else it needs a new process."""


def differences(old: Workload, new: Workload) -> tuple[Change, ...]:
    """All keys that differ, in the model's order. ``instances`` is left out: it is no property of any of them."""
    return tuple(change for change in _table(Workload, old, new, ()) if change.key != "instances")


def supervisor_differences(old: Supervisor, new: Supervisor) -> tuple[Change, ...]:
    """The keys of [supervisor] that differ."""
    return tuple(_table(Supervisor, old, new, ()))


def group_differences(old: Config, new: Config) -> tuple[Change, ...]:
    """The keys of groups that are in both, and of [host]; all of them are live."""
    found = [
        change
        for name, group in new.groups.items()
        if name in old.groups
        for change in _table(Group, old.groups[name], group, ("group", name), live=True)
    ]
    return (*found, *_table(Host, old.host, new.host, ("host",), live=True))


def _table(cls: type, old: Any, new: Any, place: Place, live: bool = False) -> Iterator[Change]:
    for name, slot in keys_of(cls).items():
        before, after = slot.get(old), slot.get(new)
        if before != after:
            yield from _value(slot.kind, before, after, (*place, name), live or slot.live, slot.secret)


def _value(kind: Kind, old: Any, new: Any, place: Place, live: bool, secret: bool) -> Iterator[Change]:
    match kind:
        case TableOf(cls):
            yield from _table(cls, old, new, place, live)
        case Tables(cls):
            yield from _tables(kind, cls, old, new, place, live)
        case MapOf():
            for name in dict.fromkeys((*old, *new)):
                if old.get(name) != new.get(name):
                    yield _change(kind.kind_of(name), old.get(name), new.get(name), (*place, name), live, secret)
        case _:
            yield _change(kind, old, new, place, live, secret)


def _tables(
    kind: Tables, cls: type, old: Sequence[Any], new: Sequence[Any], place: Place, live: bool
) -> Iterator[Change]:
    """Those that are the same in both belong together, wherever they are; the others in the order in which they are."""
    gone, come = list(old), []
    for number, one in enumerate(new):
        twin = next((other for other in gone if same(cls, one, other)), None)
        if twin is None:
            come.append((number, one))
        else:
            gone.remove(twin)
    for (number, one), other in zip(come, gone, strict=False):
        yield from _table(cls, other, one, (*place, number), live)
    for number, one in come[len(gone) :]:
        yield _change(TableOf(cls), None, one, (*place, number), live, False)
    for other in gone[len(come) :]:
        yield _change(TableOf(cls), other, None, (*place, _index(old, other)), live, False)
    if not gone and not come and not all(same(cls, a, b) for a, b in zip(old, new, strict=True)):
        yield Change(shown_path(place), "reordered", written(kind, old), written(kind, new), live)


def _index(items: Sequence[Any], wanted: Any) -> int:
    return next(number for number, item in enumerate(items) if item is wanted)


def same(cls: type, one: Any, other: Any) -> bool:
    """Whether two tables say the same: all keys, but not where in the file they are."""
    return all(slot.get(one) == slot.get(other) for slot in keys_of(cls).values())


def _change(kind: Kind, old: Any, new: Any, place: Place, live: bool, secret: bool) -> Change:
    how: Literal["added", "removed", "changed"]
    how = "added" if old is None else "removed" if new is None else "changed"
    if secret:
        return Change(shown_path(place), how, None, None, live)
    return Change(shown_path(place), how, written(kind, old), written(kind, new), live)


def merged(old: Resources, new: Resources, now: Resources) -> Resources:
    """The limits to go to: the file's where its own value changed, else those in force, which somebody may have set."""
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
