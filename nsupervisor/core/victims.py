"""Whom a group's rule, or the host's, is to hit: an order of the members, with the reason for each place in it.

Pure: readings and preferences in, the order out; the same input always gives the same order. Only what runs below our
own cgroup is ever a candidate. What was weighed goes into the action's record, all of it, so that a person can check
why it was this one and not another.

``managed_oom_preference`` is systemd's: with "avoid" a member's turn comes only after all those without, with "omit"
it has none. What has been tried without success has none either: a member that cannot be killed must not keep others
from being it.
"""

from collections.abc import Collection, Iterable
from typing import Any, Literal

import attrs

from nsupervisor.wire import wire

Verdict = Literal["done", "wait", "failed"]

RECLAIM_SHARE = 0.5
"""What part of a victim's own memory (memory.stat anon) has to come back; others take some of it meanwhile."""


@attrs.frozen
class Candidate:
    """One member, as it is at the moment of the decision."""

    name: str = attrs.field(metadata=wire("name"))
    memory: float = attrs.field(metadata=wire("memory"))
    """memory.current, bytes."""
    growth: float = attrs.field(metadata=wire("growth"))
    """Bytes a second, over the last seconds."""
    priority: int = attrs.field(metadata=wire("priority"))
    age: float = attrs.field(metadata=wire("age"))
    """Seconds since its start."""
    preference: Literal["none", "avoid", "omit"] = attrs.field(default="none", metadata=wire("preference"))


@attrs.frozen
class Place:
    """A candidate's place in the order. ``turn``: 1 is the first victim; None, it has none."""

    candidate: Candidate
    turn: int | None
    why: str

    def record(self) -> dict[str, Any]:
        """As the cause of an action shows it."""
        one = self.candidate
        return {
            "name": one.name,
            "turn": self.turn,
            "why": self.why,
            "memory_current": int(one.memory),
            "growth_bytes_per_sec": round(one.growth),
            "priority": one.priority,
            "age_sec": round(one.age, 3),
            "managed_oom_preference": one.preference,
        }


def rank(victim: str, candidates: Iterable[Candidate], tried: Collection[str] = ()) -> tuple[Place, ...]:
    """All candidates, the first victim first; those that have no turn come last, by name.

    victim: one of `config.model.Victim`. Among equals by that measure, the one with more memory is first, and among
    those the one whose name is first.
    """

    def out(one: Candidate) -> str:
        if one.preference == "omit":
            return "managed_oom_preference = omit"
        return "was tried, and it did not help" if one.name in tried else ""

    everyone = sorted(candidates, key=lambda one: one.name)
    measure = _MEASURES[victim]
    in_turn = sorted(
        (one for one in everyone if not out(one)),
        key=lambda one: (one.preference == "avoid", measure(one), -one.memory),
    )
    places = [Place(one, turn, _why(victim, one)) for turn, one in enumerate(in_turn, 1)]
    return (*places, *(Place(one, None, out(one)) for one in everyone if out(one)))


_MEASURES: dict[str, Any] = {
    "largest-memory": lambda one: -one.memory,
    "fastest-growing": lambda one: -one.growth,
    "lowest-priority": lambda one: one.priority,
    "newest": lambda one: one.age,
}


def _why(victim: str, one: Candidate) -> str:
    said = {
        "largest-memory": f"memory {_bytes(one.memory)}",
        "fastest-growing": f"grows by {'-' if one.growth < 0 else ''}{_bytes(abs(one.growth))} a second",
        "lowest-priority": f"priority {one.priority}",
        "newest": f"started {one.age:.1f} s ago",
    }[victim]
    return f"{said}, avoided" if one.preference == "avoid" else said


def _bytes(number: float) -> str:
    return f"{number / 2**20:.1f}M"


@attrs.frozen
class Growth:
    """How fast each member's memory grows: a reading for each second or so, over a window."""

    window: float = 10.0
    spacing: float = 0.9
    """Seconds between two readings that are kept, at least."""
    readings: dict[str, tuple[tuple[float, float], ...]] = attrs.field(factory=dict)
    """name → (when, bytes), oldest first."""

    def due(self, now: float) -> bool:
        """Whether the next readings are to be taken."""
        latest = [kept[-1][0] for kept in self.readings.values() if kept]
        return not latest or now - max(latest) >= self.spacing

    def taken(self, now: float, memory: dict[str, float]) -> "Growth":
        """With one more reading of each. Who is not in it is forgotten."""
        kept = {
            name: (*((at, was) for at, was in self.readings.get(name, ()) if now - at <= self.window), (now, value))
            for name, value in memory.items()
        }
        return attrs.evolve(self, readings=kept)

    def of(self, name: str, now: float, memory: float) -> float:
        """Bytes a second since the oldest reading of the window; 0 where there is none yet."""
        for at, was in self.readings.get(name, ()):
            if now > at:
                return (memory - was) / (now - at)
        return 0.0


@attrs.frozen
class Effect:
    """What an act on a victim shall lead to, and by when."""

    action: str
    wanted: float
    """Bytes that have to come back; 0 where the rule is not about memory."""
    patience: float
    """Seconds."""

    @classmethod
    def of(cls, action: str, about_memory: bool, own_memory: float, patience: float) -> "Effect":
        """own_memory: memory.stat anon of the victim, in bytes; what else it has charged is not its alone."""
        return cls(action, own_memory * RECLAIM_SHARE if about_memory else 0.0, patience)

    def verdict(self, gone: bool, freed: float, holds: bool, elapsed: float) -> tuple[Verdict, str]:
        """How it stands, and why.

        gone: the victim's processes are (for freeze: all of them stand still). freed: bytes of the group, or of the
        host, since the act. holds: the rule's condition still does.
        """
        if self.action == "signal":
            return "done", "what becomes of a signal is the program's own affair"
        if not gone:
            still = "does not stand still" if self.action == "freeze" else "still has processes"
            return ("wait" if elapsed < self.patience else "failed"), f"it {still} after {elapsed:.1f} s"
        if self.action == "freeze" or freed >= self.wanted or not holds:
            return "done", ""
        why = f"of {_bytes(self.wanted)} only {_bytes(max(freed, 0.0))} came back in {elapsed:.1f} s"
        return ("wait" if elapsed < self.patience else "failed"), why
