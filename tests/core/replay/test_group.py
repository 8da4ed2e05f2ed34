"""Rules of groups and of the host in a replay: the same configuration chooses the same members, another one others."""

import attrs
import pytest

from nsupervisor.config.conditions import parse_condition
from nsupervisor.config.model import Config, GroupConfig, GroupRule, HostConfig, Rule, WorkloadConfig
from nsupervisor.core import events
from nsupervisor.core.decider import GroupAction, RunPending, WorkloadState, handle
from nsupervisor.core.exits import Exit
from nsupervisor.core.lifecycle import Instant, Lifecycle
from nsupervisor.core.replay.compare import ComparisonRow
from nsupervisor.core.replay.simulate import simulate
from nsupervisor.core.replay.trace import TraceError, TraceWriter, encode_line, parse_trace
from nsupervisor.core.rules.group_policy import (
    ActionOutcome,
    Firings,
    GroupConfigChanged,
    GroupObserved,
    Skipped,
    VictimChosen,
    choose_victim,
)
from nsupervisor.core.rules.rules import Engine
from nsupervisor.core.rules.victims import Candidate

NAMES = ("big", "small")
M = 2**20


def rule(text="memory.current > 100M", action="kill", victim="largest-memory", **keys):
    keys.setdefault("cooldown", 5.0)
    return GroupRule(when=parse_condition(text), action=action, victim=victim, name="group.batch.policy[0]", **keys)


def config(*rules, host=(), **workloads):
    """Return two members of a group; `workloads` gives one of them other keys."""
    members = {
        name: WorkloadConfig(name, command=(name,), group="batch", restart_sec=1.0, **workloads.get(name, {}))
        for name in NAMES
    }
    groups = {"batch": GroupConfig(name="batch", policy=rules)}
    return Config("/etc/site.toml", workloads=members, groups=groups, host=HostConfig(policy=host))


class Scenario:
    """The history of a service with two workloads in one group; big uses three quarters of the memory."""

    def __init__(self, setup):
        self.config, self.writer, self.lines = setup, TraceWriter(), []
        self.states = {name: WorkloadState(Lifecycle(), Engine.for_rules(())) for name in NAMES}
        self.engines = {
            "group/batch": Engine.for_rules(setup.groups["batch"].policy),
            "host": Engine.for_rules(setup.host.policy),
        }
        groups = {"group/batch": (setup.groups["batch"], NAMES), "host": (GroupConfig(name="host"), NAMES)}
        groups["host"] = attrs.evolve(groups["host"][0], policy=setup.host.policy), NAMES
        self.lines.append(self.writer.head(setup.workloads, groups, clock={"monotonic": 1000.0}))
        for name in NAMES:
            self.lines.append(self.writer.workload_start(name, self.states[name], 1000.0))
        for name, engine in self.engines.items():
            self.lines.append(self.writer.group_start(name, engine, float("-inf"), 1000.0))
        for name in NAMES:
            self.apply(name, events.Start("boot"), at=0.0).apply(name, events.Execed(1), at=0.1)

    def apply(self, name, what, *, at):
        before, instant, workload = self.states[name], Instant(1000.0 + at, 0.0), self.config.workloads[name]
        transition = handle(before, what, instant, workload)
        self.states[name] = transition.state
        self.lines += self.writer.transition(name, workload, before, what, instant, transition)
        return self

    def note(self, what, *, at, of="group/batch"):
        self.lines += self.writer.group_event(of, what, 1000.0 + at)
        return self

    def sample(self, mib, *, at):
        of_members = {"big": {"memory.current": {"": mib * M * 0.75}}, "small": {"memory.current": {"": mib * M / 4}}}
        self.lines.append(self.writer.sample(1000.0 + at, of_members))
        files = {"memory.current": {"": mib * M}, "host.meminfo": {"MemAvailable": 1000 * M - mib * M}}
        self.lines.append(self.writer.sample(1000.0 + at, {"group/batch": files, "host": files}))
        return self

    def see(self, mib, *, at):
        """Let the group's rules observe; their actions run a millisecond later."""
        files, engine = {"memory.current": {"": mib * M}}, self.engines["group/batch"]
        self.engines["group/batch"], fired = engine.observe(files, {}, 1000.0 + at)
        self.note(GroupObserved(files, {}, self.engines["group/batch"] is not engine, fired), at=at)
        asked = Firings.split(fired)
        for firing in (*asked.dry_runs, *([asked.action] if asked.action else [])):
            self.hit(firing, mib, at=at + 0.001)
        return self

    def hit(self, fired, mib, *, at, tried=()):
        """Run a pending rule; return the victim that it chooses."""
        weights = {"big": mib * M * 0.75, "small": mib * M / 4}
        candidates = tuple(
            Candidate(name, weights[name], 0.0, workload.priority, at, workload.managed_oom_preference)
            for name, workload in self.config.workloads.items()
            if self.states[name].lifecycle.is_alive
        )
        _, name, chosen = choose_victim("group/batch", fired, candidates, dict(tried))
        self.note(VictimChosen(fired, candidates, dict(tried), name), at=at)
        if name is not None:
            self.apply(name, GroupAction(self.states[name].lifecycle.generation, chosen), at=at)
            self.apply(name, RunPending(), at=at)
        return self

    def came(self, name, *, at, why=""):
        for group, engine in self.engines.items():
            self.engines[group] = engine.with_cooldown(1000.0 + at)
        return self.note(ActionOutcome(name, not why, why), at=at)

    def dies_and_is_back(self, name, *, at):
        generation = self.states[name].lifecycle.generation
        self.apply(name, events.Exited(generation, Exit(signal=9), populated=False), at=at)
        self.apply(name, events.Timeout(), at=at + 1.0)
        return self.apply(name, events.Execed(generation + 1), at=at + 1.1)

    def trace(self):
        return parse_trace(b"".join(map(encode_line, [*self.lines, {"t": 1100.0, "end": "told"}])), "trace")

    def result(self, other):
        return simulate(other, self.trace())


def acts(result, side="simulated"):
    """Return the time, the victim and the action of each action of a rule."""
    records = [(row, getattr(row, side)) for row in result.rows]
    return [
        (
            row.time_s if side == "recorded" or row.simulated_time_s is None else row.simulated_time_s,
            row.workload,
            record["action"],
        )
        for row, record in records
        if record is not None and "cause" in record
    ]


def a_leak(setup):
    """Memory of both members grows; at 10 s it exceeds the threshold, and big is killed."""
    scenario = Scenario(setup)
    for second in range(1, 10):
        scenario.sample(second * 11, at=float(second)).see(second * 11, at=second + 0.5)
    scenario.sample(100, at=9.9).see(110, at=10.0)
    if not scenario.config.groups["batch"].policy:
        return scenario
    scenario.came("big", at=10.2).dies_and_is_back("big", at=10.3)
    return scenario.sample(30, at=12.0).see(30, at=12.5)


def test_the_same_configuration_hits_the_same_member_at_the_same_time():
    setup = config(rule())
    result = a_leak(setup).result(setup)
    assert acts(result) == acts(result, "recorded") == [(10.001, "big", "kill")]
    assert [row for row in result.rows if not row.is_same] == []
    assert (result.warnings, dict(result.diverged_at)) == ((), {})


def test_another_threshold_hits_earlier_and_all_that_comes_then_is_a_guess():
    result = a_leak(config(rule())).result(config(rule("memory.current > 50M")))
    assert acts(result)[0] == (5.0, "big", "kill")  # the sample; the group's own observation came half a second later
    first = next(row for row in result.rows if row.simulated and "cause" in row.simulated)
    assert first.simulated["cause"]["candidates"][0]["memory_current"] == 55 * M * 0.75
    assert not first.diverged
    assert {"big", "group/batch", "host"} >= set(result.diverged_at) >= {"big", "group/batch"}
    # Both have restarted at 11.4 s, and their common memory is below the threshold.
    assert len(acts(result)) == 1
    assert result.warnings == ()


def test_a_rule_that_was_not_there_is_tried_on_what_was_sampled():
    scenario = a_leak(config())
    assert acts(scenario.result(config(rule("memory.current > 60M", "stop")))) == [(6.0, "big", "stop")]
    warnings = scenario.result(config(rule("memory.current > 60M", "stop"))).warnings
    assert warnings == (
        "group/batch: from +6.500 on its rules see nothing: what was read is of the recorded life of big",
    )
    host = attrs.evolve(rule("host.meminfo MemAvailable < 950M", victim="newest"), name="host.policy[0]")
    assert acts(scenario.result(config(host=(host,))))[0] == (
        5.0,
        "big",
        "kill",
    )  # equal measures: the member with more memory is first


@pytest.mark.parametrize(
    ("keys", "victim"),
    [
        ({"big": {"priority": 5}}, ("lowest-priority", "small")),
        ({"big": {"managed_oom_preference": "avoid"}}, ("largest-memory", "small")),
        ({"big": {"managed_oom_preference": "omit"}}, ("largest-memory", "small")),
        ({}, ("newest", "big")),
    ],
)
def test_who_it_would_have_been(keys, victim):
    result = a_leak(config(rule())).result(config(rule(victim=victim[0]), **keys))
    assert acts(result)[0][1:] == (victim[1], "kill")
    assert acts(result)[0][0] == pytest.approx(10.0, abs=0.0011)
    assert acts(result, "recorded") == [(10.001, "big", "kill")]


def test_where_nobody_may_be_hit_nobody_is():
    omit = {name: {"managed_oom_preference": "omit"} for name in NAMES}
    result = a_leak(config(rule())).result(config(rule(), **omit))
    assert acts(result) == []
    assert dict(result.diverged_at)["big"] == 10.001  # the recorded program would have continued


def test_an_act_that_did_not_help_is_followed_by_the_next_ones_here_too():
    setup = config(rule(verify_sec=1.0))
    scenario = Scenario(setup).see(110, at=10.0)
    fired = Firings.split(
        Engine.for_rules(setup.groups["batch"].policy).observe({"memory.current": {"": 110 * M}}, {}, 1010.0)[1]
    )
    scenario.came("big", at=11.0, why="it still has processes").hit(
        fired.action, 110, at=11.0, tried={"big": "it still has processes"}
    )
    scenario.came("small", at=11.1).dies_and_is_back("small", at=11.2)
    result = scenario.result(setup)
    assert acts(result) == acts(result, "recorded") == [(10.001, "big", "kill"), (11.0, "small", "kill")]
    assert [row for row in result.rows if not row.is_same] == []
    last = [row.simulated["cause"] for row in result.rows if row.simulated and "cause" in row.simulated][-1]
    assert last["escalates"] == "big: it still has processes"


def test_a_dry_run_harms_nobody_and_what_only_tells_is_the_groups_own():
    dry = rule(dry_run=True)
    log_rule = attrs.evolve(rule("memory.current > 90M", "log", None), name="group.batch.policy[1]")
    setup = config(dry, log_rule)
    scenario = Scenario(setup).see(110, at=10.0)
    result = scenario.result(setup)
    assert acts(result) == acts(result, "recorded") == [(10.0, "group/batch", "log"), (10.001, "big", "kill")]
    assert all(row.is_same for row in result.rows)
    real = scenario.result(config(rule(), log_rule))
    assert acts(real)[:2] == [(10.0, "group/batch", "log"), (10.001, "big", "kill")]
    assert dict(real.diverged_at)["big"] == 10.001
    harmless = a_leak(config(rule())).result(config(dry))
    assert acts(harmless) == [(10.001, "big", "kill")]
    assert dict(harmless.diverged_at)["big"] == 10.001


def test_a_signal_that_a_group_sends_here_alone_makes_the_rest_a_guess():
    scenario = a_leak(config())
    scenario.apply("big", events.Exited(1, Exit(code=1), populated=False), at=20.0)
    result = scenario.result(config(rule("memory.current > 60M", "signal", signal=1)))
    assert acts(result) == [(6.0, "big", "signal")]
    assert [row.diverged for row in result.rows if row.workload == "big"] == [False, False, False, True]
    back = Scenario(config(rule(action="signal", signal=1))).see(110, at=10.0).came("big", at=10.1)
    assert dict(back.result(config()).diverged_at) == {"big": 10.001, "group/batch": 10.001}


def test_a_rule_whose_turn_came_when_something_had_been_done_does_nothing_here_too():
    setup = config(rule())
    scenario = Scenario(setup).see(110, at=10.0)
    scenario.engines["group/batch"] = Engine.for_rules(setup.groups["batch"].policy)
    files = {"memory.current": {"": 120 * M}}
    _, fired = scenario.engines["group/batch"].observe(files, {}, 1010.1)
    # Another group's rule fired while that action was in progress.
    host = attrs.evolve(rule("memory.current > 100M", victim="newest"), name="host.policy[0]")
    both = config(rule(), host=(host,))
    scenario = Scenario(both).see(110, at=10.0)
    scenario.engines["host"], fired = scenario.engines["host"].observe(files, {}, 1010.1)
    scenario.note(GroupObserved(files, {}, True, fired), at=10.1, of="host")
    scenario.came("big", at=10.2).note(Skipped(), at=10.201, of="host").dies_and_is_back("big", at=10.3)
    result = scenario.result(both)
    assert acts(result) == acts(result, "recorded") == [(10.001, "big", "kill")]
    assert all(row.is_same for row in result.rows)


def test_a_group_that_a_reload_has_changed_and_one_with_other_members_are_told():
    setup = config(rule())
    scenario = a_leak(setup).note(GroupConfigChanged(attrs.evolve(setup.groups["batch"], policy=())), at=50.0)
    assert scenario.result(setup).warnings == (
        "group/batch: its configuration was changed during the recording; what came then is no longer exact",
    )
    alone = attrs.evolve(
        setup, workloads={**setup.workloads, "small": attrs.evolve(setup.workloads["small"], group=None)}
    )
    assert a_leak(setup).result(alone).warnings == (
        "group/batch: its members differ from the recorded ones; what its rules see here is of those",
    )
    unread = config(rule("memory.current > 100M or cpu.pressure some avg10 > 50%"))
    assert a_leak(setup).result(unread).warnings == (
        "group.batch.policy[0] (line 0) cannot be judged: cpu.pressure some avg10 of group/batch was not recorded",
    )


def test_a_trace_without_groups_is_read_as_before():
    scenario = a_leak(config(rule()))
    head = {key: value for key, value in scenario.lines[0].items() if key != "groups"}
    of_groups = ("choice", "passed", "outcome", "group")
    lines = [line for line in scenario.lines[1:] if not any(key in line for key in of_groups)]
    lines = [line for line in lines if line.get("of") not in ("group/batch", "host")]
    trace = parse_trace(b"".join(map(encode_line, [{**head, "trace": 1}, *lines, {"t": 1100.0, "end": "told"}])), "x")
    result = simulate(config(rule("memory.current > 50M")), trace)
    assert acts(result) == [(10.001, "big", "kill")]
    assert result.warnings[0].startswith("group.batch.policy[0] (line 0) is not tried, as the trace does not have")


@pytest.mark.parametrize(
    "line",
    [
        {"choice": {"action": "kill", "rule": {}, "candidates": [{"name": "big"}], "tried": {}, "victim": None}},
        {"choice": {"action": "kill", "rule": {}, "candidates": [], "tried": {"big": 1}, "victim": None}},
        {"outcome": {"victim": "big", "helped": "yes", "why": ""}},
        {"group": {"memories": [], "quiet_since": "-max"}},
        {"group": {"memories": [{"atoms": [{}]}]}},
        {"changed": {"rules": []}},
    ],
)
def test_a_line_of_a_group_that_cannot_be_replayed_is_refused(line):
    scenario = Scenario(config(rule()))
    with pytest.raises(TraceError, match="cannot be replayed"):
        parse_trace(b"".join(map(encode_line, [*scenario.lines, {"t": 1001.0, "of": "group/batch", **line}])), "x")


def test_a_workloads_own_rule_that_parts_a_member_makes_the_group_a_guess():
    own = Rule(when=parse_condition("memory.current > 30M"), action="restart", name="policy[0]", cooldown=3600.0)
    setup = config(rule())
    tried = attrs.evolve(
        setup, workloads={**setup.workloads, "big": attrs.evolve(setup.workloads["big"], policy=(own,))}
    )
    result = a_leak(setup).result(tried)
    assert acts(result) == [
        (4.0, "big", "restart")
    ]  # 33 MB; the memory that both would have used afterwards is unknown
    assert dict(result.diverged_at)["group/batch"] == dict(result.diverged_at)["big"] == 4.0
    assert all(isinstance(row, ComparisonRow) for row in result.rows)
