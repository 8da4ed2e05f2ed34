"""How many standbys of a kind to have in advance, from how its starts follow each other. Pure."""

from __future__ import annotations

MAX_IN_ADVANCE = 4
"""Standbys of one kind that wait at most. With two processors more do not make a thousand starts faster, and each has
namespaces of its own in the kernel."""
CALM_S = 1.0
"""Seconds without a start after which one standby is enough again."""


class Demand:
    """The demand for standbys of one kind: one, until a start finds none ready; then twice as many, up to the limit."""

    __slots__ = ("last_start", "wanted")

    def __init__(self) -> None:
        self.wanted = 1
        self.last_start = 0.0

    def note_start(self, now: float, found_one: bool) -> None:
        """Note a start at `now`, in seconds of a monotonic clock. `found_one`: a standby was waiting for it."""
        if self.is_calm(now):
            self.wanted = 1
        elif not found_one:
            self.wanted = min(2 * self.wanted, MAX_IN_ADVANCE)
        self.last_start = now

    def is_calm(self, now: float) -> bool:
        """Return whether no start has come for long."""
        return now >= self.last_start + CALM_S
