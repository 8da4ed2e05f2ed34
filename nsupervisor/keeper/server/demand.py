"""How many standbys of a kind to have in advance, from how its starts follow each other. Pure."""

from __future__ import annotations

MAX_IN_ADVANCE = 4
"""Standbys of one kind that wait at most. With two processors more do not make a thousand starts faster, and each has
namespaces of its own in the kernel."""
CALM_S = 1.0
"""Seconds in which each start has found a standby, after which one is enough again."""


class Demand:
    """The demand for standbys of one kind: one, until a start finds none; then twice as many, up to the limit."""

    __slots__ = ("last_shortage", "wanted")

    def __init__(self, now: float) -> None:
        """`now`: seconds of a monotonic clock, as in the methods."""
        self.wanted = 1
        self.last_shortage = now

    def note_start(self, now: float, found_one: bool) -> None:
        """Note a start. `found_one`: a standby was waiting for it."""
        if self.is_calm(now):
            self.wanted = 1
        elif not found_one:
            self.wanted = min(2 * self.wanted, MAX_IN_ADVANCE)
        if not found_one:
            self.last_shortage = now

    def is_calm(self, now: float) -> bool:
        """Return whether no start has found no standby for long."""
        return now >= self.last_shortage + CALM_S
