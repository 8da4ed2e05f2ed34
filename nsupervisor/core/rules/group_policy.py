"""Decisions of a group about its firing rules, as far as they need no kernel.

The service and the simulation both run this module and `nsupervisor.core.rules.victims`, so they cannot disagree.
A recorder receives everything that happens to a group as one of the `GroupEvent` classes.
"""

from collections.abc import Iterable, Mapping, Sequence

import attrs

from nsupervisor.config.model import GroupConfig, GroupRule
from nsupervisor.core.rules.rules import Firing, Limits, Snapshot
from nsupervisor.core.rules.victims import Candidate, Ranked, rank_candidates
from nsupervisor.wire_names import wire

MEMBERLESS_ACTIONS = ("log", "notify", "webhook", "exec")
"""Actions that affect no member."""


@attrs.frozen
class GroupObserved:
    """The files that the group's rules reference were read at one moment."""

    snapshot: Snapshot
    limits: Limits
    """The limits in force at that moment."""
    changed_rules: bool
    """The observation changed the state of at least one rule."""
    firings: tuple[Firing, ...] = ()


@attrs.frozen
class VictimChosen:
    """A pending rule ran and chose its victim: the first candidate, or None if no candidate is left."""

    firing: Firing
    candidates: tuple[Candidate, ...]
    tried: Mapping[str, str]
    """Members that earlier attempts hit, each with the reason why that did not help."""
    victim: str | None


@attrs.frozen
class Skipped:
    """A pending rule ran and did nothing, because an action on a member came in between."""


@attrs.frozen
class ActionOutcome:
    """The outcome of an action on a member."""

    victim: str = attrs.field(metadata=wire("victim"))
    helped: bool = attrs.field(metadata=wire("helped"))
    reason: str = attrs.field(metadata=wire("why"))


@attrs.frozen
class GroupConfigChanged:
    """A reload gave the group other rules or limits."""

    config: GroupConfig


GroupEvent = GroupObserved | VictimChosen | Skipped | ActionOutcome | GroupConfigChanged


@attrs.frozen
class Firings:
    """Firings of one observation, split by how they are handled."""

    notifications: tuple[Firing, ...] = ()
    """Rules whose actions affect no member."""
    dry_runs: tuple[Firing, ...] = ()
    """Rules whose action on a member is only reported."""
    action: Firing | None = None
    """The most severe of the actions on a member."""

    @classmethod
    def split(cls, firings: Sequence[Firing]) -> "Firings":
        """Split firings, which must be sorted by severity (`rules.SEVERITY_ORDER`), mildest first."""
        notifications = tuple(firing for firing in firings if firing.action in MEMBERLESS_ACTIONS)
        others = [firing for firing in firings if firing.action not in MEMBERLESS_ACTIONS]
        actions = [firing for firing in others if not firing.rule.dry_run]
        return cls(
            notifications, tuple(firing for firing in others if firing.rule.dry_run), actions[-1] if actions else None
        )

    @property
    def pending_count(self) -> int:
        """The number of pending rules that these firings add."""
        return len(self.dry_runs) + (self.action is not None)


def choose_victim(
    group: str, firing: Firing, candidates: Iterable[Candidate], tried: Mapping[str, str]
) -> tuple[tuple[Ranked, ...], str | None, Firing]:
    """Choose the victim of a group's rule.

    Returns the ranked candidates, the name of the first one (None if no candidate is left), and the firing with its
    complete cause: how the victim was chosen, and which members were tried before.
    """
    rule = firing.rule
    assert isinstance(rule, GroupRule)
    ranked = rank_candidates(rule.victim or "", candidates, tried, firing.action)
    first = next((entry.candidate.name for entry in ranked if entry.rank == 1), None)
    after = [f"{name}: {why}" for name, why in tried.items()]
    cause = attrs.evolve(
        firing.cause,
        group=group,
        victim=rule.victim,
        candidates=tuple(entry.to_record() for entry in ranked),
        previous_attempt=after[-1] if after else None,
    )
    return ranked, first, attrs.evolve(firing, cause=cause)
