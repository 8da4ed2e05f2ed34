"""What a group does about its rules that have gone off, as far as that can be decided without the kernel.

The service and the simulation both drive this page, and `nsupervisor.core.victims` with it, so they cannot disagree.
What a group goes through is told to whoever records it as one of `News`.
"""

from collections.abc import Iterable, Mapping, Sequence

import attrs

from nsupervisor.config.model import Group, GroupRule
from nsupervisor.core.rules import Fired, Limits, Snapshot
from nsupervisor.core.victims import Candidate, Place, rank

TELLING = ("log", "notify", "webhook", "exec")
"""Actions that are done to no member."""


@attrs.frozen
class Saw:
    """The files that its rules look at were read at one moment."""

    snapshot: Snapshot
    limits: Limits
    """The limits in force then."""
    learnt: bool
    """The rules have learnt something from it."""
    fired: tuple[Fired, ...] = ()


@attrs.frozen
class Chose:
    """The turn of a rule that had gone off, and whom it hits: the first of the candidates; None, nobody was left."""

    fired: Fired
    candidates: tuple[Candidate, ...]
    tried: Mapping[str, str]
    """Members to whom it was done before, and why that did not help."""
    victim: str | None


@attrs.frozen
class Passed:
    """The turn of a rule that had gone off; as something was done to a member meanwhile, it does nothing."""


@attrs.frozen
class Came:
    """What an act on a member has led to."""

    victim: str
    helped: bool
    why: str


@attrs.frozen
class Became:
    """A reload: the group has other rules or limits from now on."""

    config: Group


News = Saw | Chose | Passed | Came | Became


@attrs.frozen
class Asked:
    """What the rules that one moment has set off ask for."""

    told: tuple[Fired, ...] = ()
    """What concerns no member."""
    dry: tuple[Fired, ...] = ()
    """What is only said of a member."""
    act: Fired | None = None
    """Of what is to be done to a member the most drastic."""

    @classmethod
    def by(cls, fired: Sequence[Fired]) -> "Asked":
        """Rules, the mildest first (`rules.ORDER`)."""
        told = tuple(one for one in fired if one.action in TELLING)
        others = [one for one in fired if one.action not in TELLING]
        acts = [one for one in others if not one.rule.dry_run]
        return cls(told, tuple(one for one in others if one.rule.dry_run), acts[-1] if acts else None)

    @property
    def turns(self) -> int:
        """How many turns these rules will have."""
        return len(self.dry) + (self.act is not None)


def chosen(
    group: str, fired: Fired, candidates: Iterable[Candidate], tried: Mapping[str, str]
) -> tuple[tuple[Place, ...], str | None, Fired]:
    """The order of the candidates, the name of the first one (None: nobody is left), and the rule with its whole
    cause: how that one was chosen, and after whom."""
    rule = fired.rule
    assert isinstance(rule, GroupRule)
    places = rank(rule.victim or "", candidates, tried)
    first = next((place.candidate.name for place in places if place.turn == 1), None)
    after = [f"{name}: {why}" for name, why in tried.items()]
    cause = attrs.evolve(
        fired.cause,
        group=group,
        victim=rule.victim,
        candidates=tuple(place.record() for place in places),
        escalates=after[-1] if after else None,
    )
    return places, first, attrs.evolve(fired, cause=cause)
