"""Replay a trace through another configuration, and compare the simulated actions with the recorded ones.

Each workload of the trace has a decision state with the tried configuration, and receives the inputs of the trace. As
long as its lifecycle equals the recorded one, the result is exact: with an unchanged configuration the same actions
come out, at the same times.

When the two lifecycles *diverge* (this one restarts while that one does not, or the other way round), the trace no
longer describes this program: its observations and its events are those of another lifecycle. So, until both have
started a new generation:

* no observation reaches the rules, and no event reaches the lifecycle;
* every action is assumed to succeed at once: a program that is started runs, and is ready; one that is asked to stop
  exits from that signal, and leaves no process behind; one that runs continues without events;
* its own deadlines pass when they are due, and operators' commands apply as they were recorded.

When each has started a generation since, the recorded program stands for this one: observations and events count again,
the first values of counters as a baseline. Every action after the first divergence is marked `diverged`: it is a guess.
So is every action after a rule that is not in the trace's configuration has sent a signal or set a limit (or one that
is there, and no longer here, did): that may have changed the behaviour of the program, too.

Rules of groups and of the host choose their victims among these lifecycles (`nsupervisor.core.replay.group`).
If the trace has no groups, the recorded actions of such rules apply to the simulated lifecycle, too.

Everything is a function of the configuration, the trace, and the seed of the jitter that the trace does not have.
"""

import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import attrs

from nsupervisor.config.condition_terms import EXIT
from nsupervisor.config.model import NOTIFY_TYPES, WorkloadConfig
from nsupervisor.core import events
from nsupervisor.core.actions import KillAll, Signal, Spawn
from nsupervisor.core.decider import (
    GroupAction,
    Observation,
    RunPending,
    Transition,
    WorkloadInput,
    WorkloadState,
    handle,
)
from nsupervisor.core.exits import Exit
from nsupervisor.core.lifecycle import PROBED, Instant, Lifecycle, State, start_type
from nsupervisor.core.replay.compare import ComparisonRow, TimedAction, align
from nsupervisor.core.replay.rule_states import missing_inputs, rebased, restore_rule_states
from nsupervisor.core.replay.trace import (
    Line,
    action_records,
    apply_changes,
    parse_group_action,
    parse_input,
    parse_numbers,
    rules_without_position,
    without_position,
    workload_settings,
)
from nsupervisor.core.rules.rules import Engine, Firing
from nsupervisor.core.rules.victims import freed_by_kill
from nsupervisor.core.serialize import from_json

_UP_STATES = frozenset({State.STARTING, State.RUNNING, State.READY})
_PROGRAM_EFFECTS = ("signal", "set")
"""Rule actions that change how a program continues, and leave its lifecycle as it is."""


@attrs.define(eq=False)
class ReplayedWorkload:
    """One workload of the simulation, with its recorded and its simulated state."""

    name: str
    workload: WorkloadConfig
    recorded_config: Line
    """Its configuration as recorded in the trace."""
    rng: random.Random
    recorded_groups: Collection[str]
    """The names of the groups that the trace has."""
    is_group_uncertain: Callable[[str | None], bool]
    """Check by its name whether a group's rules observe another history, so that their actions are guesses."""
    state: WorkloadState = attrs.field(init=False)
    tried_config: Line = attrs.field(init=False)
    """The tried configuration, in the form of a trace."""
    has_same_rules: bool = attrs.field(init=False)
    diverged: bool = False
    """The trace does not describe the current generation of this workload."""
    diverged_at: float | None = None
    restarted: bool = False
    recorded_restarted: bool = False
    """With `restarted`: each side has started a generation since they diverged."""
    generation_offset: int = 0
    """The difference between the simulated and the recorded generation numbers."""
    recorded_pending: int = 0
    """The number of pending recorded rules; while there are some, the simulated rules wait, too."""
    recorded_lifecycle: tuple[State, int, float | None] = (State.STOPPED, 0, None)
    observed_files: dict[str, dict[str, float]] = attrs.field(factory=dict)
    """The values of the latest recorded observation, by file; `sampled_files` has those of samples."""
    sampled_files: dict[str, dict[str, float]] = attrs.field(factory=dict)
    limits: Mapping[str, float | None] = attrs.field(factory=dict)
    recorded_actions: list[TimedAction] = attrs.field(factory=list)
    simulated_actions: list[TimedAction] = attrs.field(factory=list)
    config_changed_at: float | None = None
    awaited_firing: Firing | None = None
    """A group rule's firing that is recorded too; the trace says when it takes effect."""
    unrecorded_firings: list[Firing] = attrs.field(factory=list)
    """Firings of group rules that are not recorded."""

    def __attrs_post_init__(self) -> None:
        self.state = WorkloadState(Lifecycle(), Engine.for_rules(self.workload.policy))
        self.tried_config = workload_settings(self.workload)
        self.has_same_rules = rules_without_position(self.recorded_config) == rules_without_position(self.tried_config)

    # ---- lines of the trace

    def handle_line(self, line: Line) -> None:
        """Handle a line about this workload."""
        now = float(line["t"])
        self.advance_to(now)
        if "mind" in line:
            self._restore(line["mind"])
        elif "limits" in line:
            self.limits = parse_numbers(line["limits"])
        elif "seen" in line:
            self.recorded_pending += line.get("due", 0)
            self._observe(now, line["seen"], line.get("whole", ()))
        elif "changed" in line:
            self.recorded_config = line["changed"]
            self.has_same_rules = rules_without_position(self.recorded_config) == rules_without_position(
                self.tried_config
            )
            self.config_changed_at = now if self.config_changed_at is None else self.config_changed_at
        elif "sentence" in line:
            self.recorded_pending += 1
            self._handle_recorded_action(parse_group_action(line["sentence"]), now)
        elif "turn" in line or "event" in line:
            self._handle_input(line)

    def _handle_recorded_action(self, recorded: GroupAction, now: float) -> None:
        """Handle a recorded action of a group's rule on this workload.

        If the trace has the group, the simulated group must have chosen this workload, too.
        """
        firing, self.awaited_firing = self.awaited_firing, None
        if recorded.firing.cause.group not in self.recorded_groups:
            firing = recorded.firing
        if firing is not None and not self.diverged:
            self._apply(GroupAction(recorded.generation + self.generation_offset, firing), now)
        elif firing is None and recorded.firing.action == "signal" and not recorded.firing.rule.dry_run:
            self._mark_diverged(now)

    def impose(self, firing: Firing, now: float) -> None:
        """Apply a group rule's action that the recording does not have."""
        self.unrecorded_firings.append(firing)
        self._apply(GroupAction(self.state.lifecycle.generation, firing), now)
        self._run_pending(now)

    def memory_current(self) -> float:
        """Return the latest known memory usage in bytes."""
        return (self._latest_values("memory.current") or {}).get("", 0.0)

    def freed_by_kill(self) -> float | None:
        """Return the bytes that a kill frees by the latest known values; None if they are not known."""
        return freed_by_kill(self._latest_values("memory.stat") or {})

    def own_memory(self) -> float:
        """Return what `Candidate.own_memory` is now."""
        freed = self.freed_by_kill()
        return self.memory_current() if freed is None else freed

    def handle_sample(self, now: float, snapshot: Mapping[str, Any], whole: Sequence[str]) -> None:
        """Handle values that only the recorder read; rules that the recorded service did not have observe them."""
        self.advance_to(now)
        apply_changes(self.sampled_files, snapshot, whole)
        if not self.is_exact and not self.diverged:
            self._apply(
                Observation({file: dict(values) for file, values in self.sampled_files.items()}, self.limits), now
            )
            self._run_pending(now)

    def advance_to(self, now: float) -> None:
        """Let the lifecycle's own deadlines pass, up to `now`.

        If the recorded lifecycle has the same deadline, the trace says when it took effect.
        """
        while (deadline := self.state.lifecycle.deadline) is not None and deadline <= now:
            if (
                not self.diverged
                and self.recorded_lifecycle[2] is not None
                and abs(self.recorded_lifecycle[2] - deadline) < 1e-6
            ):
                return
            before = self.state.lifecycle
            self._apply(events.Timeout(), deadline)
            if self.state.lifecycle is before:  # only in a trace that no service has written
                return

    @property
    def is_exact(self) -> bool:
        """Whether the rules observe exactly what the recorded ones did, at the same times."""
        return self.has_same_rules and self.diverged_at is None

    def _restore(self, recorded: Line) -> None:
        """Restore the state at the start of the recording, or at a restart of it for a replaced instance.

        Rules that existed then keep their state.
        """
        lifecycle = from_json(Lifecycle, recorded["life"])
        self.state = WorkloadState(
            lifecycle,
            restore_rule_states(self.state.engine, self.tried_config, self.recorded_config, recorded["memories"]),
        )
        self.recorded_lifecycle = lifecycle.state, lifecycle.generation, lifecycle.deadline
        self.diverged, self.generation_offset, self.recorded_pending = False, 0, 0

    def _observe(self, now: float, snapshot: Mapping[str, Any], whole: Sequence[str]) -> None:
        apply_changes(self.observed_files, snapshot, whole)
        if self.diverged:
            return
        observed = {file: dict(self.observed_files[file]) for file in snapshot}
        if not self.is_exact:
            observed.pop(
                EXIT, None
            )  # the exit itself is observed in `_handle_exit`, as the recorded rules may not reference it
            joint_files = [
                joint_file
                for file in observed
                for joint_file in self.state.engine.files_read_with(file)
                if joint_file not in observed
            ]
            observed |= {
                joint_file: dict(latest)
                for joint_file in joint_files
                if (latest := self._latest_values(joint_file)) is not None
            }
        self._apply(Observation(observed, self.limits), now)
        if not self.is_exact:
            self._run_pending(now)

    def _latest_values(self, file: str) -> Mapping[str, float] | None:
        return self.sampled_files.get(file, self.observed_files.get(file))

    def _handle_exit(self, event: events.Exited, now: float, jitter: float) -> None:
        """Handle an exit as the service does: the rules observe it and run before the lifecycle does."""
        decisions = []
        if event.generation == self.state.lifecycle.generation and (facts := event.exit.condition_values()):
            decisions.append(self._decide(Observation({EXIT: facts}, self.limits), now, None))
            while self.state.pending:
                decisions.append(self._decide(RunPending(), now, None))
        decisions.append(self._decide(event, now, jitter))
        for decision in decisions:
            self._handle_consequences(*decision, now)

    def _handle_input(self, line: Line) -> None:
        """Handle an event, a command, or a pending action."""
        now, input_ = float(line["t"]), parse_input(line)
        state, generation, deadline = line["life"]
        self.recorded_lifecycle = State(state), generation, deadline
        for record in line.get("did", ()):
            self.recorded_actions.append(TimedAction(now, record))
            if record["action"] in _PROGRAM_EFFECTS and "cause" in record and not self._is_tried_rule(record["cause"]):
                self._mark_diverged(now)
        if isinstance(input_, events.Execed):
            self.recorded_restarted = True
        if isinstance(input_, RunPending):
            self.recorded_pending = max(self.recorded_pending - 1, 0)
        if self.diverged and not isinstance(input_, events.Command):
            self._rejoin(now)
            return
        if isinstance(input_, events.Event):
            input_ = attrs.evolve(input_, generation=input_.generation + self.generation_offset)
        if isinstance(input_, RunPending) and not self.is_exact:
            self._run_pending(now)
        elif isinstance(input_, events.Exited) and not self.is_exact:
            self._handle_exit(input_, now, float(line["chance"]))
        else:
            self._apply(input_, now, float(line["chance"]))
            if self.state.pending and not self.recorded_pending:
                self._run_pending(now)

    # ---- simulation

    def _apply(self, input_: WorkloadInput, now: float, jitter: float | None = None) -> None:
        """Apply an input, and check whether the simulation diverges by it."""
        self._handle_consequences(*self._decide(input_, now, jitter), now)

    def _decide(self, input_: WorkloadInput, now: float, jitter: float | None) -> tuple[Transition, bool]:
        """Apply an input and record the simulated actions; return whether a rule's action affects the program."""
        before = self.state.lifecycle
        transition = handle(
            self.state, input_, Instant(now, self.rng.random() if jitter is None else jitter), self.workload
        )
        self.state = transition.state
        is_guess = self.diverged_at is not None or (
            transition.executed is not None and self.is_group_uncertain(transition.executed.firing.cause.group)
        )
        self.simulated_actions += [
            TimedAction(now, record, is_guess) for record in action_records(before, transition, now)
        ]
        firing = (
            None
            if transition.executed is None or transition.executed.firing.rule.dry_run
            else transition.executed.firing
        )
        return transition, firing is not None and firing.action in _PROGRAM_EFFECTS and not self._is_recorded_rule(
            firing
        )

    def _handle_consequences(self, transition: Transition, affects_program: bool, now: float) -> None:
        """Handle the consequences of a transition; assume them while the trace does not know them."""
        if affects_program:
            self._mark_diverged(now)
        if self._has_diverged():
            self._mark_diverged(now)
            self.diverged, self.restarted, self.recorded_restarted = True, False, False
            self.state = attrs.evolve(self.state, pending=())
        if self.diverged:
            self._assume_success(transition, now)

    def _run_pending(self, now: float) -> None:
        """Run all pending rules, but not before the pending recorded ones have run."""
        if self.recorded_pending or self.diverged:
            return
        decisions = []
        while self.state.pending:
            decisions.append(self._decide(RunPending(), now, None))
        for decision in decisions or [(Transition(self.state), False)]:
            self._handle_consequences(*decision, now)

    def _assume_success(self, transition: Transition, now: float) -> None:
        """Assume that the program follows every action at once; the trace cannot contain the results."""
        generation = transition.state.lifecycle.generation
        for action in transition.actions:
            match action:
                case Spawn():
                    self.restarted = True
                    self._apply(events.Execed(generation), now)
                    if start_type(self.workload) in (*NOTIFY_TYPES, PROBED):
                        self._apply(events.Ready(generation), now)
                    elif start_type(self.workload) == "forking":
                        self._apply(events.NewMain(generation), now)
                case Signal(signal=signum) if self.state.lifecycle.state is State.STOPPING:
                    self._apply(events.Exited(generation, Exit(signal=signum), populated=False), now)
                case KillAll():
                    self._apply(events.Exited(generation, Exit(signal=9), populated=False), now)
        self._rejoin(now)

    # ---- divergence

    def _has_diverged(self) -> bool:
        """Check whether this lifecycle differs from the recorded one."""
        lifecycle, (state, generation, _) = self.state.lifecycle, self.recorded_lifecycle
        is_same_state = lifecycle.state is state or (lifecycle.state in _UP_STATES and state in _UP_STATES)
        return not self.diverged and not (is_same_state and lifecycle.generation == generation + self.generation_offset)

    def _mark_diverged(self, now: float) -> None:
        self.diverged_at = now if self.diverged_at is None else self.diverged_at

    def _rejoin(self, now: float) -> None:
        """Rejoin the trace: both sides have restarted and run, so the recorded program stands for this one."""
        if not (self.diverged and self.restarted and self.recorded_restarted):
            return
        if self.state.lifecycle.state not in _UP_STATES or self.recorded_lifecycle[0] not in _UP_STATES:
            return
        self.diverged, self.generation_offset = False, self.state.lifecycle.generation - self.recorded_lifecycle[1]
        engine, counters = rebased(self.state.engine)
        self.state = WorkloadState(self.state.lifecycle, engine)
        base_line = {file: dict(latest) for file in counters if (latest := self._latest_values(file)) is not None}
        self._apply(Observation(base_line, self.limits), now)

    def _is_tried_rule(self, cause: Line) -> bool:
        """Check whether a recorded rule is in the tried configuration; rules of groups are not this workload's."""
        return (
            self.has_same_rules
            or "group" in cause
            or any(
                without_position(rule) in rules_without_position(self.tried_config)
                for rule in self.recorded_config["rules"]
                if rule["name"] == cause["rule"]
            )
        )

    def _is_recorded_rule(self, firing: Firing) -> bool:
        """Check whether a tried rule is recorded too; a rule of a group must have chosen this workload there."""
        if firing.cause.group is not None:
            return firing not in self.unrecorded_firings
        return any(
            without_position(rule) in rules_without_position(self.recorded_config)
            for rule in self.tried_config["rules"]
            if rule["name"] == firing.rule.name
        )

    # ---- results

    def warnings(self) -> Iterator[str]:
        """Yield what the trace could not provide."""
        for rule in self.workload.policy:
            if what := missing_inputs(rule, self.recorded_config, self.sampled_files, self.observed_files):
                yield f"{self.name}: {rule.name} (line {rule.line}) cannot be judged: {what} was not recorded"
        if self.recorded_config["resources"] != self.tried_config["resources"]:
            yield f"{self.name}: its resources differ from the recorded ones; the limits here are those of the trace"
        if self.config_changed_at is not None:
            yield f"{self.name}: its configuration was changed during the recording; what came then is no longer exact"

    def rows(self, began_at: float) -> list[ComparisonRow]:
        """Align the recorded actions with the simulated ones."""
        return align(self.name, self.recorded_actions, self.simulated_actions, began_at)
