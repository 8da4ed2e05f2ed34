"""Align recorded actions with simulated ones."""

from collections import deque
from collections.abc import Callable

import attrs

from nsupervisor.core.replay.trace import ActionRecord
from nsupervisor.wire_names import wire

MATCH_WINDOW_S = 0.5
"""Seconds that two actions of the same kind may lie apart and still share one row."""


@attrs.frozen
class ComparisonRow:
    """An action that was recorded, simulated, or both. Times are seconds since the start of the trace."""

    time_s: float = attrs.field(metadata=wire("at"))
    workload: str = attrs.field(metadata=wire("workload"))
    recorded: ActionRecord | None = attrs.field(default=None, metadata=wire("recorded"))
    simulated: ActionRecord | None = attrs.field(default=None, metadata=wire("simulated"))
    simulated_time_s: float | None = attrs.field(default=None, metadata=wire("simulated_at"))
    """The simulated time of an action that was also recorded."""
    diverged: bool = attrs.field(default=False, metadata=wire("after"))
    """The simulated workload had diverged from the recorded one, so this action is a guess."""

    @property
    def is_same(self) -> bool:
        """Whether the action was recorded and simulated at the same time and for the same cause.

        The position of its rule in the file may differ.
        """
        return (
            not self.diverged
            and self.time_s == self.simulated_time_s
            and _without_position(self.recorded) == _without_position(self.simulated)
        )


@attrs.frozen
class TimedAction:
    """An action of one of the two sides, on the clock of the trace."""

    time_s: float
    record: ActionRecord
    diverged: bool = False


def align(name: str, recorded: list[TimedAction], simulated: list[TimedAction], began_at: float) -> list[ComparisonRow]:
    """Align both sides into rows, in the order of execution; each action appears once.

    Two actions of the same kind at about the same time become one row where the match is unambiguous. Then the
    remaining actions that the same condition led to are matched.
    """
    position = {id(timed): i for side in (recorded, simulated) for i, timed in enumerate(side)}
    unmatched_recorded, unmatched_simulated = recorded, [timed for timed in simulated if not timed.diverged]
    rows: list[tuple[float, int, ComparisonRow]] = []

    def since_start(timed: TimedAction) -> float:
        return round(timed.time_s - began_at, 6)

    for kind in (_identity, _rule_condition):
        matches, unmatched_recorded, unmatched_simulated = _match(unmatched_recorded, unmatched_simulated, kind)
        rows += [
            (
                timed.time_s,
                position[id(timed)],
                ComparisonRow(since_start(timed), name, timed.record, counterpart.record, since_start(counterpart)),
            )
            for timed, counterpart in matches
        ]
    rows += [
        (timed.time_s, position[id(timed)], ComparisonRow(since_start(timed), name, timed.record))
        for timed in unmatched_recorded
    ]
    unmatched_simulated += [timed for timed in simulated if timed.diverged]
    rows += [
        (
            timed.time_s,
            position[id(timed)],
            ComparisonRow(since_start(timed), name, None, timed.record, None, timed.diverged),
        )
        for timed in unmatched_simulated
    ]
    return [row for _, _, row in sorted(rows, key=lambda entry: entry[:2])]


MatchKey = tuple[object, ...] | None


def _match(
    recorded: list[TimedAction], simulated: list[TimedAction], key_of: Callable[[ActionRecord], MatchKey]
) -> tuple[list[tuple[TimedAction, TimedAction]], list[TimedAction], list[TimedAction]]:
    """Match actions with equal keys; return the matches and the unmatched actions of both sides.

    Both lists must be sorted by time.
    """
    waiting: dict[MatchKey, deque[TimedAction]] = {}
    for timed in simulated:
        waiting.setdefault(key_of(timed.record), deque()).append(timed)
    matches: list[tuple[TimedAction, TimedAction]] = []
    unmatched: list[TimedAction] = []
    leftover = waiting.pop(None, deque())
    for action in recorded:
        queue = waiting.get(key_of(action.record), deque())
        while queue and queue[0].time_s < action.time_s - MATCH_WINDOW_S:
            leftover.append(queue.popleft())
        if queue and queue[0].time_s <= action.time_s + MATCH_WINDOW_S:
            matches.append((action, queue.popleft()))
        else:
            unmatched.append(action)
    leftover.extend(timed for remaining_queue in waiting.values() for timed in remaining_queue)
    return matches, unmatched, sorted(leftover, key=lambda timed: timed.time_s)


def _identity(record: ActionRecord) -> MatchKey:
    """Return the key that two records of the same action share."""
    return record["action"], record.get("cause", {}).get("when"), record.get("signal"), record.get("dry_run")


def _rule_condition(record: ActionRecord) -> MatchKey:
    """Return the condition of the rule that led to the action; None if no rule did."""
    return (record["cause"]["when"],) if "cause" in record else None


def _without_position(record: ActionRecord | None) -> ActionRecord | None:
    """Copy an action record without the position of its rule in the file."""
    if record is None or "cause" not in record:
        return record
    return {**record, "cause": {key: value for key, value in record["cause"].items() if key not in ("rule", "line")}}
