"""Groups of a replay, and the host: their rules and the victims of these.

The rules of a group observe what the trace has of it. If they equal the recorded rules, they observe exactly what those
did, and run when those ran; so the same configuration chooses the same members at the same times. Other rules observe
the samples, too, and run at once. At a recorded choice each candidate has its recorded values; at any other moment its
memory is the latest reading, and its growth is measured from samples. Priorities and preferences are always those of
the tried configuration.

An action that was also recorded has the recorded outcome: it helped, or the next candidate follows. Any other action is
assumed to help at once.

While the lifecycle of a member has diverged from the recorded one, the readings of the group belong to another history,
and its rules do not observe them. When all members have rejoined, the group starts from a new baseline, and its actions
are guesses from then on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import attrs

from nsupervisor.config.model import Config, GroupConfig, WorkloadConfig
from nsupervisor.core.lifecycle import State
from nsupervisor.core.replay.compare import TimedAction
from nsupervisor.core.replay.rule_states import missing_inputs, rebased, restore_rule_states
from nsupervisor.core.replay.trace import (
    Line,
    Trace,
    apply_changes,
    group_settings,
    notification_record,
    parse_numbers,
    rules_without_position,
)
from nsupervisor.core.replay.workload import ReplayedWorkload
from nsupervisor.core.rules.group_policy import Firings, choose_victim
from nsupervisor.core.rules.rules import Engine, Firing
from nsupervisor.core.rules.victims import Candidate, MemoryGrowth
from nsupervisor.core.serialize import from_json

HOST_NAME = "host"
GROUP_PREFIX = "group/"


@attrs.frozen
class _PendingRule:
    """A rule that fired and whose action is pending."""

    firing: Firing
    fired_at: float


@attrs.define
class _ActionInProgress:
    """An action on a member that is in progress, in the trace, too."""

    group: ReplayedGroup
    pending: _PendingRule
    victim: ReplayedWorkload
    tried: dict[str, str]


class ReplayedGroups:
    """All groups of the tried configuration that the trace has, and the groups of the trace alone.

    The latter have no rules here.
    """

    def __init__(self, config: Config, trace: Trace, workloads: Mapping[str, ReplayedWorkload]) -> None:
        self.action: _ActionInProgress | None = None
        self.config, self.trace = config, trace
        recorded: Mapping[str, Line] = trace.head.get("groups", {})
        self.by_name: dict[str, ReplayedGroup] = {}
        for name, known in recorded.items():
            group = _group_config(config, name) or GroupConfig(name=name)
            members = {
                lifecycle.name: lifecycle
                for lifecycle in workloads.values()
                if name in _enclosing_names(config, lifecycle.workload)
            }
            self.by_name[name] = ReplayedGroup(name, self, group, known, members)

    def diverged_at(self) -> dict[str, float | None]:
        """Return since when each group's actions are guesses, if it can have any actions."""
        return {group.name: group.diverged_at for group in self.by_name.values()}

    def is_uncertain(self, name: str | None) -> bool:
        """Check whether a group's rules observe another history, so that their actions are guesses."""
        return name in self.by_name and self.by_name[name].is_uncertain

    def handle_sample(self, line: Line) -> None:
        """Handle the samples of groups' files."""
        for name, snapshot in line["sample"].items():
            if name in self.by_name:
                self.by_name[name].handle_sample(line["t"], snapshot, line.get("whole", {}).get(name, ()))

    def member_started(self, name: str) -> None:
        """Handle that the program of a member has been executed."""
        for group in self.by_name.values():
            if name in group.members:
                group.engine = group.engine.with_started_member()

    def run_pending(self, now: float) -> None:
        """Run the pending rules that may run."""
        for group in self.by_name.values():
            group.run_pending(now)

    def start_cooldown(self, victim: ReplayedWorkload, now: float) -> None:
        """Start the cooldown of a victim's groups, which wait for the outcome of the action."""
        for group in self.by_name.values():
            if victim.name in group.members:
                group.engine, group.quiet_since = group.engine.with_cooldown(now), now

    def warnings(self) -> Iterator[str]:
        """Yield which rules are not tried and why, and what the trace could not provide."""
        for name in (*(GROUP_PREFIX + name for name in self.config.groups), HOST_NAME):
            group = _group_config(self.config, name)
            if name not in self.by_name:
                for rule in group.policy if group is not None else ():
                    yield (
                        f"{rule.name} (line {rule.line}) is not tried, as the trace does not have {name} with all of "
                        "its members; what it did in the recording is done here, too"
                    )
        known = {rule.when.text for name in (*self.config.groups, HOST_NAME) for rule in self._rules(name)}
        causes = [line["sentence"]["cause"] for line in self.trace.lines if "sentence" in line]
        untried = [cause for cause in causes if cause.get("group") not in self.by_name]
        for name, when in dict.fromkeys((cause["rule"], cause["when"]) for cause in untried):
            if when not in known:
                yield (
                    f"{name} ({when}) of the recording is not in the configuration; what it did is done here all the "
                    "same"
                )
        for tried_group in self.by_name.values():
            yield from tried_group.warnings(self.trace.began_at)

    def _rules(self, name: str) -> Iterable[Any]:
        return self.config.host.policy if name == HOST_NAME else self.config.groups[name].policy


def _group_config(config: Config, name: str) -> GroupConfig | None:
    if name == HOST_NAME:
        return GroupConfig(name=HOST_NAME, policy=config.host.policy)
    return config.groups.get(name.removeprefix(GROUP_PREFIX))


def _enclosing_names(config: Config, workload: WorkloadConfig) -> set[str]:
    return {HOST_NAME, *(GROUP_PREFIX + group.name for group in config.enclosing_groups(workload))}


@attrs.define(eq=False)
class ReplayedGroup:
    """One group of the simulation, with its recorded and its simulated state."""

    name: str
    groups: ReplayedGroups
    config: GroupConfig
    recorded_config: Line
    """Its configuration as recorded in the trace."""
    members: Mapping[str, ReplayedWorkload]
    tried_config: Line = attrs.field(init=False)
    engine: Engine = attrs.field(init=False)
    has_same_rules: bool = attrs.field(init=False)
    pending: list[_PendingRule] = attrs.field(factory=list)
    recorded_pending: int = 0
    """The number of pending recorded rules; while there are some, the simulated rules wait, too."""
    quiet_since: float = float("-inf")
    blind_since: float | None = None
    """The time since which the rules observe nothing, because a member has diverged."""
    growth: MemoryGrowth = attrs.field(factory=MemoryGrowth)
    observed_files: dict[str, dict[str, float]] = attrs.field(factory=dict)
    sampled_files: dict[str, dict[str, float]] = attrs.field(factory=dict)
    limits: Mapping[str, float | None] = attrs.field(factory=dict)
    recorded_actions: list[TimedAction] = attrs.field(factory=list)
    simulated_actions: list[TimedAction] = attrs.field(factory=list)
    config_changed_at: float | None = None

    def __attrs_post_init__(self) -> None:
        self.engine = Engine.for_rules(self.config.policy)
        self.tried_config = group_settings(self.config)
        self.has_same_rules = rules_without_position(self.recorded_config) == rules_without_position(self.tried_config)

    @property
    def diverged(self) -> bool:
        """Whether the trace does not describe the current generation of a member."""
        return any(member.diverged for member in self.members.values())

    @property
    def is_uncertain(self) -> bool:
        """Whether a member's lifecycle has diverged from the recorded one, now or earlier."""
        return any(member.diverged_at is not None for member in self.members.values())

    @property
    def diverged_at(self) -> float | None:
        """The time since which it is uncertain, if it has rules that could have acted."""
        times = [member.diverged_at for member in self.members.values() if member.diverged_at is not None]
        return min(times, default=None) if self.tried_config["rules"] or self.recorded_config["rules"] else None

    @property
    def is_exact(self) -> bool:
        """Whether the rules observe exactly what the recorded ones did, at the same times."""
        return self.has_same_rules and not self.is_uncertain

    # ---- lines of the trace

    def handle_line(self, line: Line) -> None:
        """Handle a line about this group."""
        now = float(line["t"])
        for member in self.members.values():
            member.advance_to(now)
        if "group" in line:
            self.engine = restore_rule_states(
                self.engine, self.tried_config, self.recorded_config, line["group"]["memories"]
            )
            self.quiet_since = from_json(float, line["group"]["quiet_since"])
        elif "limits" in line:
            self.limits = parse_numbers(line["limits"])
        elif "changed" in line:
            self.recorded_config = {**self.recorded_config, **line["changed"]}
            self.has_same_rules = rules_without_position(self.recorded_config) == rules_without_position(
                self.tried_config
            )
            self.config_changed_at = now if self.config_changed_at is None else self.config_changed_at
        elif "seen" in line:
            self.recorded_pending += line.get("due", 0)
            self.recorded_actions += [TimedAction(now, record) for record in line.get("did", ())]
            apply_changes(self.observed_files, line["seen"], line.get("whole", ()))
            self._observe(now, {file: dict(self.observed_files[file]) for file in line["seen"]})
        elif "choice" in line:
            self._handle_choice(now, line["choice"])
        elif "passed" in line:
            self.recorded_pending = max(self.recorded_pending - 1, 0)
            superseded = next((pending for pending in self.pending if not pending.firing.rule.dry_run), None)
            if superseded is not None and self._is_superseded(superseded):
                self.pending.remove(superseded)
            self.run_pending(now)
        elif "outcome" in line:
            self._handle_outcome(now, line["outcome"])

    def handle_sample(self, now: float, snapshot: Mapping[str, Any], whole: Iterable[str]) -> None:
        """Handle values that only the recorder read."""
        apply_changes(self.sampled_files, snapshot, tuple(whole))
        if self.growth.is_due(now):
            alive = {
                name: member.own_memory() for name, member in self.members.items() if member.state.lifecycle.is_alive
            }
            self.growth = self.growth.with_readings(now, alive)
        if not self.is_exact:
            self._observe(now, {file: dict(values) for file, values in self.sampled_files.items()})

    def _observe(self, now: float, snapshot: dict[str, dict[str, float]]) -> None:
        if self.diverged:
            self.blind_since = now if self.blind_since is None else self.blind_since
            return
        if self.blind_since is not None:
            self.blind_since = None
            self.engine, counters = rebased(self.engine)
            base_line = {file: dict(latest) for file in counters if (latest := self._latest_values(file)) is not None}
            self.engine, _ = self.engine.observe(base_line, self.limits, now)
        if not self.is_exact:
            joint_files = [
                joint_file
                for file in snapshot
                for joint_file in self.engine.files_read_with(file)
                if joint_file not in snapshot
            ]
            snapshot |= {
                joint_file: dict(latest)
                for joint_file in joint_files
                if (latest := self._latest_values(joint_file)) is not None
            }
        self.engine, new_firings = self.engine.observe(snapshot, self.limits, now)
        firings = Firings.split(new_firings)
        self.simulated_actions += [
            TimedAction(now, notification_record(firing, self.name), self.is_uncertain)
            for firing in firings.notifications
        ]
        pending_firings = (*firings.dry_runs, *(() if firings.action is None else (firings.action,)))
        self.pending += [_PendingRule(firing, now) for firing in pending_firings]
        self.run_pending(now)

    def _latest_values(self, file: str) -> Mapping[str, float] | None:
        return self.sampled_files.get(file, self.observed_files.get(file))

    # ---- actions

    def run_pending(self, now: float) -> None:
        """Run the pending rules, but not before the pending recorded ones have run.

        Only one action on a member is in progress at a time.
        """
        if self.recorded_pending:
            return
        waiting, self.pending = self.pending, []
        for rule in waiting:
            if self.groups.action is not None and not rule.firing.rule.dry_run:
                self.pending.append(rule)
            else:
                self._act_on_victim(now, rule, self._candidates(now), {}, None)

    def _handle_choice(self, now: float, choice: Line) -> None:
        """Run the simulated rule that corresponds to a recorded choice."""
        action, tried, match = self.groups.action, {}, None
        if not choice["tried"]:
            self.recorded_pending = max(self.recorded_pending - 1, 0)
            match = self._take_match(choice)
        elif action is not None and action.group is self:  # the previous action has not helped
            match, tried, self.groups.action = action.pending, action.tried, None
        if match is not None:
            self._act_on_victim(now, match, self._candidates(now, choice["candidates"]), tried, choice)
        self.groups.run_pending(now)

    def _is_superseded(self, pending: _PendingRule) -> bool:
        """Check whether an action on a member came after the rule fired."""
        return not pending.firing.rule.dry_run and self.quiet_since >= pending.fired_at

    def _take_match(self, choice: Line) -> _PendingRule | None:
        """Remove and return the pending rule that a recorded choice belongs to, or the most similar one."""

        def distance(candidate: _PendingRule) -> tuple[bool, bool]:
            return candidate.firing.rule.when.text != choice["rule"]["when"], not self._has_same_effect(
                candidate.firing, choice
            )

        nearest = min(self.pending, key=distance, default=None)  # the first of equally similar ones
        if nearest is not None:
            self.pending.remove(nearest)
        return nearest

    def _act_on_victim(
        self,
        now: float,
        pending: _PendingRule,
        candidates: Iterable[Candidate],
        tried: dict[str, str],
        choice: Line | None,
    ) -> None:
        """Act on the first candidate. `choice`: the recorded choice that this is, if any."""
        firing = pending.firing
        if self.diverged or (not tried and self._is_superseded(pending)):
            return
        _, name, chosen_firing = choose_victim(self.name, firing, candidates, tried)
        if name is None:
            if not tried:
                self.engine = self.engine.without_member(firing.rule)
            return
        victim = self.members[name]
        if (
            choice is not None
            and not victim.diverged
            and self._has_same_effect(firing, choice)
            and choice["victim"] == name
        ):
            victim.awaited_firing = chosen_firing  # the trace says when it takes effect, and with which outcome
            if not firing.rule.dry_run:
                self.groups.action = _ActionInProgress(self, pending, victim, tried)
            return
        if not firing.rule.dry_run:
            self.groups.start_cooldown(victim, now)
        victim.impose(chosen_firing, now)

    def _has_same_effect(self, firing: Firing, choice: Line) -> bool:
        rule, recorded_rule = firing.rule, choice["rule"]
        return (firing.action, rule.dry_run) == (choice["action"], recorded_rule.get("dry_run", False)) and (
            firing.action != "signal" or rule.signal == recorded_rule.get("signal")
        )

    def _handle_outcome(self, now: float, outcome: Line) -> None:
        action = self.groups.action
        if action is None or action.group is not self or action.victim.name != outcome["victim"]:
            return  # the outcome of an action that was not simulated
        self.groups.start_cooldown(action.victim, now)
        if outcome["helped"]:
            self.groups.action = None
            self.groups.run_pending(now)
        else:
            action.tried = {**action.tried, action.victim.name: outcome["why"]}

    def _candidates(self, now: float, recorded: Any = ()) -> list[Candidate]:
        """Return the running members with their present values."""
        recorded_candidates = {
            candidate.name: candidate for candidate in from_json(tuple[Candidate, ...], list(recorded))
        }
        candidates = []
        for name, member in self.members.items():
            lifecycle, workload, recorded_candidate = (
                member.state.lifecycle,
                member.workload,
                recorded_candidates.get(name),
            )
            if not lifecycle.is_alive:
                continue
            if recorded_candidate is not None:
                memory, growth, freed = (
                    recorded_candidate.memory,
                    recorded_candidate.growth,
                    recorded_candidate.freed_by_kill,
                )
            else:
                memory, freed = member.memory_current(), member.freed_by_kill()
                growth = self.growth.rate(name, now, member.own_memory())
            age = (
                recorded_candidate.age_s
                if recorded_candidate is not None and member.diverged_at is None
                else now - lifecycle.started_at
            )
            is_frozen = lifecycle.state is State.FROZEN
            candidates.append(
                Candidate(
                    name, memory, growth, workload.priority, age, workload.managed_oom_preference, is_frozen, freed
                )
            )
        return candidates

    # ---- results

    def warnings(self, began_at: float) -> Iterator[str]:
        """Yield what the trace could not provide."""
        for rule in self.config.policy:
            if missing := missing_inputs(rule, self.recorded_config, self.sampled_files, self.observed_files):
                yield f"{rule.name} (line {rule.line}) cannot be judged: {missing} of {self.name} was not recorded"
        if not self.tried_config["rules"]:
            return
        if self.recorded_config["resources"] != self.tried_config["resources"]:
            yield f"{self.name}: its limits differ from the recorded ones; the limits here are those of the trace"
        if set(self.recorded_config["members"]) != set(self.members):
            yield f"{self.name}: its members differ from the recorded ones; what its rules see here is of those"
        if self.config_changed_at is not None:
            yield f"{self.name}: its configuration was changed during the recording; what came then is no longer exact"
        if self.blind_since is not None:
            diverged = ", ".join(sorted(name for name, member in self.members.items() if member.diverged))
            yield (
                f"{self.name}: from {self.blind_since - began_at:+.3f} on its rules see nothing: "
                f"what was read is of the recorded life of {diverged}"
            )
