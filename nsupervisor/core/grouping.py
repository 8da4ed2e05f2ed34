"""Decisions of a group about its firing rules, as far as they need no kernel.

The service and the simulation both run this module and `nsupervisor.core.rules.victims`, so they cannot disagree. A
recorder receives everything that happens to a group as one of the `GroupEvent` classes.
"""

from collections.abc import Iterable, Mapping, Sequence

import attrs

from nsupervisor.config.model import Group, GroupRule
from nsupervisor.core.rules import Fired, Limits, Snapshot
from nsupervisor.core.victims import Candidate, Place, rank
from nsupervisor.wire import wire

TELLING = ("log", "notify", "webhook", "exec")
"""Actions that affect no member."""


@attrs.frozen
class Saw:
    """The files that the group's rules reference were read at one moment."""

    snapshot: Snapshot
    limits: Limits
    """The limits in force at that moment."""
    learnt: bool
    """The observation changed the state of at least one rule."""
    fired: tuple[Fired, ...] = ()


@attrs.frozen
class Chose:
    """A pending rule ran and chose its victim: the first candidate, or None if no candidate is left."""

    fired: Fired
    candidates: tuple[Candidate, ...]
    tried: Mapping[str, str]
    """Members that earlier attempts hit, each with the reason why that did not help."""
    victim: str | None


@attrs.frozen
class Passed:
    """A pending rule ran and did nothing, because an action on a member came in between."""


@attrs.frozen
class Came:
    """The outcome of an action on a member."""

    victim: str = attrs.field(metadata=wire("victim"))
    helped: bool = attrs.field(metadata=wire("helped"))
    why: str = attrs.field(metadata=wire("why"))


@attrs.frozen
class Became:
    """A reload gave the group other rules or limits."""

    config: Group


News = Saw | Chose | Passed | Came | Became


@attrs.frozen
class Asked:
    """Firings of one observation, split by how they are handled."""

    told: tuple[Fired, ...] = ()
    """Rules whose actions affect no member."""
    dry: tuple[Fired, ...] = ()
    """Rules whose action on a member is only reported."""
    act: Fired | None = None
    """The most severe of the actions on a member."""

    @classmethod
    def by(cls, fired: Sequence[Fired]) -> "Asked":
        """Split firings, which must be sorted by severity (`rules.SEVERITY_ORDER`), mildest first."""
        told = tuple(firing for firing in fired if firing.action in TELLING)
        others = [firing for firing in fired if firing.action not in TELLING]
        acts = [firing for firing in others if not firing.rule.dry_run]
        return cls(told, tuple(firing for firing in others if firing.rule.dry_run), acts[-1] if acts else None)

    @property
    def turns(self) -> int:
        """The number of pending rules that these firings add."""
        return len(self.dry) + (self.act is not None)


def chosen(
    group: str, fired: Fired, candidates: Iterable[Candidate], tried: Mapping[str, str]
) -> tuple[tuple[Place, ...], str | None, Fired]:
    """Choose the victim of a group's rule.

    Returns the ranked candidates, the name of the first one (None if no candidate is left), and the firing with its
    complete cause: how the victim was chosen, and which members were tried before.
    """
    rule = fired.rule
    assert isinstance(rule, GroupRule)
    ranked = rank(rule.victim or "", candidates, tried)
    first = next((entry.candidate.name for entry in ranked if entry.turn == 1), None)
    after = [f"{name}: {why}" for name, why in tried.items()]
    cause = attrs.evolve(
        fired.cause,
        group=group,
        victim=rule.victim,
        candidates=tuple(entry.record() for entry in ranked),
        escalates=after[-1] if after else None,
    )
    return ranked, first, attrs.evolve(fired, cause=cause)
