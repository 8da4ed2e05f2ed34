"""Align recorded actions with simulated ones."""

from collections import deque
from collections.abc import Callable

import attrs

from nsupervisor.core.trace import Deed
from nsupervisor.wire import wire

TOGETHER = 0.5
"""Seconds that two actions of the same kind may lie apart and still share one row."""


@attrs.frozen
class Row:
    """An action that was recorded, simulated, or both. Times are seconds since the start of the trace."""

    at: float = attrs.field(metadata=wire("at"))
    workload: str = attrs.field(metadata=wire("workload"))
    recorded: Deed | None = attrs.field(default=None, metadata=wire("recorded"))
    simulated: Deed | None = attrs.field(default=None, metadata=wire("simulated"))
    simulated_at: float | None = attrs.field(default=None, metadata=wire("simulated_at"))
    """The simulated time of an action that was also recorded."""
    after: bool = attrs.field(default=False, metadata=wire("after"))
    """The simulated workload had diverged from the recorded one, so this action is a guess."""

    @property
    def same(self) -> bool:
        """Whether the action was recorded and simulated at the same time and for the same cause.

        The position of its rule in the file may differ.
        """
        return (
            not self.after
            and self.at == self.simulated_at
            and _without_position(self.recorded) == _without_position(self.simulated)
        )


@attrs.frozen
class Done:
    """An action of one of the two sides, on the clock of the trace."""

    at: float
    deed: Deed
    after: bool = False


def pairs(name: str, recorded: list[Done], simulated: list[Done], began: float) -> list[Row]:
    """Align both sides into rows, in the order of execution; each action appears once.

    Two actions of the same kind at about the same time become one row where the match is unambiguous. Then the
    remaining actions that the same condition led to are matched.
    """
    position = {id(timed): i for side in (recorded, simulated) for i, timed in enumerate(side)}
    unmatched_recorded, unmatched_simulated = recorded, [timed for timed in simulated if not timed.after]
    rows: list[tuple[float, int, Row]] = []

    def at(timed: Done) -> float:
        return round(timed.at - began, 6)

    for kind in (_identity, _rule_condition):
        matches, unmatched_recorded, unmatched_simulated = _match(unmatched_recorded, unmatched_simulated, kind)
        rows += [
            (timed.at, position[id(timed)], Row(at(timed), name, timed.deed, counterpart.deed, at(counterpart)))
            for timed, counterpart in matches
        ]
    rows += [(timed.at, position[id(timed)], Row(at(timed), name, timed.deed)) for timed in unmatched_recorded]
    unmatched_simulated += [timed for timed in simulated if timed.after]
    rows += [
        (timed.at, position[id(timed)], Row(at(timed), name, None, timed.deed, None, timed.after))
        for timed in unmatched_simulated
    ]
    return [row for _, _, row in sorted(rows, key=lambda entry: entry[:2])]


Kind = tuple[object, ...] | None


def _match(
    recorded: list[Done], simulated: list[Done], key_of: Callable[[Deed], Kind]
) -> tuple[list[tuple[Done, Done]], list[Done], list[Done]]:
    """Match actions with equal keys; return the matches and the unmatched actions of both sides.

    Both lists must be sorted by time.
    """
    waiting: dict[Kind, deque[Done]] = {}
    for timed in simulated:
        waiting.setdefault(key_of(timed.deed), deque()).append(timed)
    matches: list[tuple[Done, Done]] = []
    unmatched: list[Done] = []
    leftover = waiting.pop(None, deque())
    for action in recorded:
        queue = waiting.get(key_of(action.deed), deque())
        while queue and queue[0].at < action.at - TOGETHER:
            leftover.append(queue.popleft())
        if queue and queue[0].at <= action.at + TOGETHER:
            matches.append((action, queue.popleft()))
        else:
            unmatched.append(action)
    leftover.extend(timed for remaining_queue in waiting.values() for timed in remaining_queue)
    return matches, unmatched, sorted(leftover, key=lambda timed: timed.at)


def _identity(record: Deed) -> Kind:
    """Return the key that two records of the same action share."""
    return record["action"], record.get("cause", {}).get("when"), record.get("signal"), record.get("dry_run")


def _rule_condition(record: Deed) -> Kind:
    """Return the condition of the rule that led to the action; None if no rule did."""
    return (record["cause"]["when"],) if "cause" in record else None


def _without_position(record: Deed | None) -> Deed | None:
    """Copy an action record without the position of its rule in the file."""
    if record is None or "cause" not in record:
        return record
    return {**record, "cause": {key: value for key, value in record["cause"].items() if key not in ("rule", "line")}}
