"""Choose the victim of a rule of a group, or of the host: a ranking of the members, with a reason for each rank.

Pure: values and preferences in, the ranking out; the same input always gives the same ranking. Only workloads below the
supervisor's own cgroup are candidates. The action's record contains every value that was weighed, so that an operator
can verify the choice.

`managed_oom_preference` is systemd's: "avoid" ranks a member after all those without, "omit" excludes it. A member on
which an action has failed is excluded too: one that cannot be killed must not protect the others.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any, Literal

import attrs

from nsupervisor.wire_names import wire

Verdict = Literal["done", "wait", "failed"]

RECLAIM_FRACTION = 0.5
"""The fraction of a victim's own memory (memory.stat anon) that must be freed; other members take some meanwhile."""


def freed_by_kill(memory_stat: Mapping[str, float]) -> float | None:
    """Return the bytes that a kill frees, from the values of memory.stat; None if these say nothing about it.

    They are the anonymous, shared and locked pages: `anon + shmem + unevictable`, each page once. A locked anonymous
    page is in two of these three, so the sum is made of the lists that each page is in exactly one of (cgroup v2,
    memory.stat): those of anonymous and shared pages, and that of pages that cannot be evicted. The page cache does
    not count: the kernel drops it by itself when there is a shortage.
    """
    lists = [memory_stat[name] for name in ("inactive_anon", "active_anon", "unevictable") if name in memory_stat]
    if not lists:
        lists = [memory_stat[name] for name in ("anon", "shmem") if name in memory_stat]
    return sum(lists) if lists else None


@attrs.frozen
class Candidate:
    """One member and its values at the moment of the decision."""

    name: str = attrs.field(metadata=wire("name"))
    memory: float = attrs.field(metadata=wire("memory"))
    """The value of memory.current, in bytes."""
    growth: float = attrs.field(metadata=wire("growth"))
    """Growth of `own_memory` over the last seconds, in bytes per second."""
    priority: int = attrs.field(metadata=wire("priority"))
    age_s: float = attrs.field(metadata=wire("age"))
    """Seconds since its start."""
    preference: Literal["none", "avoid", "omit"] = attrs.field(default="none", metadata=wire("preference"))
    is_frozen: bool = attrs.field(default=False, metadata=wire("frozen"))
    freed_by_kill: float | None = attrs.field(default=None, metadata=wire("freed_by_kill"))
    """Bytes that a kill frees, see `freed_by_kill`; None if unknown, as in traces of version 0.1.0."""

    @property
    def own_memory(self) -> float:
        """The bytes by which it is compared with others: what a kill frees, or all that it uses if that is unknown."""
        return self.memory if self.freed_by_kill is None else self.freed_by_kill


@attrs.frozen
class Ranked:
    """A candidate and its rank: 1 is the first victim; None excludes it."""

    candidate: Candidate
    rank: int | None
    reason: str

    def to_record(self) -> dict[str, Any]:
        """Return the entry for the cause in an action's record."""
        candidate = self.candidate
        return {
            "name": candidate.name,
            "turn": self.rank,
            "why": self.reason,
            "memory_current": int(candidate.memory),
            **({} if candidate.freed_by_kill is None else {"freed_by_kill_bytes": int(candidate.freed_by_kill)}),
            "growth_bytes_per_sec": round(candidate.growth),
            "priority": candidate.priority,
            "age_sec": round(candidate.age_s, 3),
            "managed_oom_preference": candidate.preference,
        }


def rank_candidates(
    criterion: str, candidates: Iterable[Candidate], tried: Collection[str] = (), action: str = ""
) -> tuple[Ranked, ...]:
    """Rank all candidates for an action, the first victim first; excluded ones come last, by name.

    criterion: one of `config.model.Victim`. Candidates that are equal by it are ordered by what a kill frees, the most
    first, then by name.
    """

    def reason_excluded(candidate: Candidate) -> str:
        if candidate.preference == "omit":
            return "managed_oom_preference = omit"
        if candidate.is_frozen and action == "freeze":
            return "is frozen already"
        return "was tried, and it did not help" if candidate.name in tried else ""

    by_name = sorted(candidates, key=lambda candidate: candidate.name)
    measure = _SORT_KEYS[criterion]
    eligible = sorted(
        (candidate for candidate in by_name if not reason_excluded(candidate)),
        key=lambda candidate: (candidate.preference == "avoid", measure(candidate), -candidate.own_memory),
    )
    ranked = [Ranked(candidate, rank, _reason(criterion, candidate)) for rank, candidate in enumerate(eligible, 1)]
    return (
        *ranked,
        *(Ranked(candidate, None, reason_excluded(candidate)) for candidate in by_name if reason_excluded(candidate)),
    )


_SORT_KEYS: dict[str, Any] = {
    "largest-memory": lambda candidate: -candidate.own_memory,
    "fastest-growing": lambda candidate: -candidate.growth,
    "lowest-priority": lambda candidate: candidate.priority,
    "newest": lambda candidate: candidate.age_s,
}


def _reason(criterion: str, candidate: Candidate) -> str:
    text = {
        "largest-memory": (
            f"memory {_bytes(candidate.memory)}"
            if candidate.freed_by_kill is None
            else f"a kill frees {_bytes(candidate.freed_by_kill)}"
        ),
        "fastest-growing": f"grows by {'-' if candidate.growth < 0 else ''}{_bytes(abs(candidate.growth))} a second",
        "lowest-priority": f"priority {candidate.priority}",
        "newest": f"started {candidate.age_s:.1f} s ago",
    }[criterion]
    return f"{text}, avoided" if candidate.preference == "avoid" else text


def _bytes(number: float) -> str:
    return f"{number / 2**20:.1f}M"


@attrs.frozen
class MemoryGrowth:
    """Growth of `Candidate.own_memory` of each member: readings about a second apart, over a time window."""

    window_s: float = 10.0
    spacing_s: float = 0.9
    """Shortest time between two stored readings, in seconds."""
    readings: dict[str, tuple[tuple[float, float], ...]] = attrs.field(factory=dict)
    """Readings (time, bytes) by member, oldest first."""

    def is_due(self, now: float) -> bool:
        """Check whether the next readings are due."""
        latest = [series[-1][0] for series in self.readings.values() if series]
        return not latest or now - max(latest) >= self.spacing_s

    def with_readings(self, now: float, memory: dict[str, float]) -> "MemoryGrowth":
        """Add one reading of each member; forget members that are not in `memory`."""
        readings = {
            name: (
                *((time, old_value) for time, old_value in self.readings.get(name, ()) if now - time <= self.window_s),
                (now, new_value),
            )
            for name, new_value in memory.items()
        }
        return attrs.evolve(self, readings=readings)

    def rate(self, name: str, now: float, memory: float) -> float:
        """Return the growth since the oldest reading of the window, in bytes per second; 0 without readings."""
        for time, old_value in self.readings.get(name, ()):
            if now > time:
                return (memory - old_value) / (now - time)
        return 0.0


@attrs.frozen
class ExpectedEffect:
    """The expected effect of an action on a victim, and its time limit."""

    action: str
    wanted_bytes: float
    """Bytes that must be freed; 0 if the rule is not about memory."""
    timeout_s: float
    """Seconds until the action counts as failed."""

    @classmethod
    def expect(cls, action: str, is_about_memory: bool, own_memory: float, timeout_s: float) -> "ExpectedEffect":
        """Create the expectation of an action.

        own_memory: memory.stat anon of the victim, in bytes; it may share the rest of its charge with others.
        """
        return cls(action, own_memory * RECLAIM_FRACTION if is_about_memory else 0.0, timeout_s)

    def judge(self, is_gone: bool, freed_bytes: float, still_holds: bool, elapsed_s: float) -> tuple[Verdict, str]:
        """Judge the effect so far; return the verdict and its reason.

        gone: the victim has no processes left (for freeze: all of them are frozen). freed: bytes that the
        group, or the host, has freed since the action. holds: the rule's condition still holds.
        """
        if self.action == "signal":
            return "done", "what becomes of a signal is the program's own affair"
        if not is_gone:
            problem = "does not stand still" if self.action == "freeze" else "still has processes"
            return ("wait" if elapsed_s < self.timeout_s else "failed"), f"it {problem} after {elapsed_s:.1f} s"
        if self.action == "freeze" or freed_bytes >= self.wanted_bytes or not still_holds:
            return "done", ""
        reason = f"of {_bytes(self.wanted_bytes)} only {_bytes(max(freed_bytes, 0.0))} came back in {elapsed_s:.1f} s"
        return ("wait" if elapsed_s < self.timeout_s else "failed"), reason
