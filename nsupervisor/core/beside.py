"""What was done beside what would have been done: which deeds of a recording and of a simulation are the same one."""

from collections import deque
from collections.abc import Callable

import attrs

from nsupervisor.core.trace import Deed

TOGETHER = 0.5
"""Seconds that two deeds of the same kind may be apart and still be shown as one."""


@attrs.frozen
class Row:
    """Something that was done, that would have been done, or both. Times are seconds since the trace began."""

    at: float
    workload: str
    recorded: Deed | None = None
    simulated: Deed | None = None
    simulated_at: float | None = None
    """When it would have been done, where it also was done."""
    after: bool = False
    """The simulated life had come apart from the recorded one: it may have come otherwise."""

    @property
    def same(self) -> bool:
        """It was done, and it would have been done, at that time and for that cause; its rule may have moved."""
        return (
            not self.after and self.at == self.simulated_at and _placeless(self.recorded) == _placeless(self.simulated)
        )


@attrs.frozen
class Done:
    """A deed on one of the two sides, on the trace's clock."""

    at: float
    deed: Deed
    after: bool = False


def pairs(name: str, was: list[Done], would: list[Done], began: float) -> list[Row]:
    """Each deed once: two of the same kind at about the same time are one row, as long as there is no guessing; then
    two that the same condition led to. In the order in which they were done."""
    place = {id(done): i for done_there in (was, would) for i, done in enumerate(done_there)}
    alone_was, alone_would = was, [one for one in would if not one.after]
    rows: list[tuple[float, int, Row]] = []

    def at(done: Done) -> float:
        return round(done.at - began, 6)

    for kind in (_kind, _condition):
        together, alone_was, alone_would = _paired(alone_was, alone_would, kind)
        rows += [(one.at, place[id(one)], Row(at(one), name, one.deed, it.deed, at(it))) for one, it in together]
    rows += [(one.at, place[id(one)], Row(at(one), name, one.deed)) for one in alone_was]
    alone_would += [one for one in would if one.after]
    rows += [(one.at, place[id(one)], Row(at(one), name, None, one.deed, None, one.after)) for one in alone_would]
    return [row for _, _, row in sorted(rows, key=lambda one: one[:2])]


Kind = tuple[object, ...] | None


def _paired(
    was: list[Done], would: list[Done], kind: Callable[[Deed], Kind]
) -> tuple[list[tuple[Done, Done]], list[Done], list[Done]]:
    """Those of the same kind, and those that are left. Both lists are in the order of their times."""
    waiting: dict[Kind, deque[Done]] = {}
    for one in would:
        waiting.setdefault(kind(one.deed), deque()).append(one)
    pairs: list[tuple[Done, Done]] = []
    alone: list[Done] = []
    left = waiting.pop(None, deque())
    for done in was:
        alike = waiting.get(kind(done.deed), deque())
        while alike and alike[0].at < done.at - TOGETHER:
            left.append(alike.popleft())
        if alike and alike[0].at <= done.at + TOGETHER:
            pairs.append((done, alike.popleft()))
        else:
            alone.append(done)
    left.extend(one for rest in waiting.values() for one in rest)
    return pairs, alone, sorted(left, key=lambda one: one.at)


def _kind(deed: Deed) -> Kind:
    """What two deeds have to have in common to be the same."""
    return deed["action"], deed.get("cause", {}).get("when"), deed.get("signal"), deed.get("dry_run")


def _condition(deed: Deed) -> Kind:
    """The condition that led to a rule's deed."""
    return (deed["cause"]["when"],) if "cause" in deed else None


def _placeless(deed: Deed | None) -> Deed | None:
    """A deed, without where its rule is written."""
    if deed is None or "cause" not in deed:
        return deed
    return {**deed, "cause": {key: value for key, value in deed["cause"].items() if key not in ("rule", "line")}}
