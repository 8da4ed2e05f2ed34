"""Replay: the same configuration acts the same; another one acts as it says, and marks its guesses."""

import json
import re

import attrs
import pytest

from nsupervisor.config.conditions import parse_condition
from nsupervisor.config.model import Config, GroupRule, HostConfig, Resources, Rule, WorkloadConfig
from nsupervisor.core import events
from nsupervisor.core.decider import GroupAction, Observation, RunPending, WorkloadState, handle
from nsupervisor.core.exits import Exit
from nsupervisor.core.lifecycle import Instant, Lifecycle
from nsupervisor.core.phases import Phase
from nsupervisor.core.replay.simulate import simulate
from nsupervisor.core.replay.trace import (
    INPUTS,
    LATER_LIFECYCLE_KEYS,
    LIFECYCLE_KEYS,
    TraceError,
    TraceWriter,
    encode_line,
    parse_input,
    parse_trace,
)
from nsupervisor.core.rules.rules import Cause, Engine, Firing
from nsupervisor.core.rules.victims import Candidate, Ranked
from tests.core.replay import random_traces
from tests.needs import ROOT

OOM = parse_condition("memory.events oom_kill")
LIMITS = {"memory.max": 100.0, "pids.max": None}


def rule(text, action="restart", **keys):
    return Rule(when=parse_condition(text), action=action, name="policy[0]", line=5, **keys)


def workload(*rules, **keys):
    keys.setdefault("restart_sec", 1.0)
    return WorkloadConfig("web", command=("web",), policy=tuple(rules), **keys)


def config(watched):
    return Config("/etc/site.toml", workloads={watched.name: watched})


class Scenario:
    """The history of a service with one workload, step by step; `result` replays it through another configuration."""

    def __init__(self, watched, *, start=1000.0):
        self.workload, self.now, self.writer = watched, start, TraceWriter()
        self.state = WorkloadState(Lifecycle(), Engine.for_rules(watched.policy))
        self.lines = [self.writer.head({"web": watched}, clock={"monotonic": start})]
        self.lines.append(self.writer.workload_start("web", self.state, start))
        self.files = {"memory.events": {"oom_kill": 0}, "memory.current": {"": 1}, "pids.current": {"": 1}}
        if watched.policy:
            self.see("memory.events")

    def __call__(self, what, *, at=None):
        self.now = self.now if at is None else 1000.0 + at
        before, instant = self.state, Instant(self.now, 0.0)
        transition = handle(before, what, instant, self.workload)
        self.state = transition.state
        self.lines += self.writer.transition("web", self.workload, before, what, instant, transition)
        return self

    def see(self, file, value=None, key="", *, at=None):
        if value is not None:
            self.files[file][key] = value
        self(Observation({file: dict(self.files[file])}, LIMITS), at=at)
        while self.state.pending:
            self(RunPending())
        return self

    def sample(self, *, at, **values):
        for name, value in values.items():
            self.files[name.replace("_", ".")][""] = value
        self.lines.append(self.writer.sample(1000.0 + at, {"web": self.files}))
        return self

    def up(self, *, at):
        self(events.Start("boot") if not self.state.lifecycle.generation else events.Timeout(), at=at)
        return self(events.Execed(self.state.lifecycle.generation), at=at + 0.01)

    def dies(self, exit_, *, at):
        return self(events.Exited(self.state.lifecycle.generation, exit_, populated=False), at=at)

    def trace(self, *, end=100.0):
        return parse_trace(b"".join(map(encode_line, [*self.lines, {"t": 1000.0 + end, "end": "told"}])), "trace")

    def result(self, other, *, end=100.0, seed=0):
        return simulate(config(other), self.trace(end=end), seed)


def would(result):
    return [
        (row.time_s if row.simulated_time_s is None else row.simulated_time_s, row.simulated["action"], row.diverged)
        for row in result.rows
        if row.simulated is not None
    ]


def was(result):
    return [(row.time_s, row.recorded["action"]) for row in result.rows if row.recorded is not None]


def a_leak(watched):
    """Memory grows until the kernel kills the program at 10 s, and it restarts at 11 s."""
    scenario = Scenario(watched).up(at=0.0)
    for second in range(1, 10):
        scenario.sample(at=second, memory_current=second * 10)
    scenario.see("memory.events", 1, "oom_kill", at=10.0)
    scenario.dies(Exit(signal=9, oom_killed=True), at=10.1).up(at=11.2)
    for second in range(12, 22):
        scenario.sample(at=second, memory_current=(second - 11) * 10)
    return scenario


def test_the_same_configuration_does_the_same():
    watched = workload(rule("memory.events oom_kill"))
    result = a_leak(watched).result(watched)
    assert was(result) == [(0.0, "start"), (10.0, "restart"), (10.0, "signal"), (10.1, "wait"), (11.2, "start")]
    assert all(row.recorded == row.simulated and row.time_s == row.simulated_time_s for row in result.rows)
    assert (result.warnings, dict(result.diverged_at), result.duration_s) == ((), {}, 100.0)


def test_a_rule_that_acts_earlier_is_believed_until_it_acts_and_joins_the_next_recorded_start():
    result = a_leak(workload(rule("memory.events oom_kill"))).result(
        workload(rule("memory.current >= 75%", cooldown=1.0), restart_max_delay_sec=1.0), seed=3
    )
    restart, signal, wait, start, again, *_ = [action for action in would(result) if action[0] > 0]
    assert restart == (8.0, "restart", False)  # until here the trace was the same for both
    assert signal == (8.0, "signal", False)
    assert wait == (8.0, "wait", True)  # from here on every action is assumed to succeed at once
    assert start[1:] == ("start", True)
    assert 8.75 <= start[0] <= 9.0
    assert again == (
        19.0,
        "restart",
        True,
    )  # and nothing in between: the old program's values belong to another lifecycle
    assert dict(result.diverged_at) == {"web": 8.0}


def test_without_the_rule_the_program_would_have_gone_on_and_nothing_more_is_known_of_it():
    scenario = Scenario(workload(rule("memory.current >= 50%"))).up(at=0.0)
    scenario.see("memory.current", 60, at=5.0).dies(Exit(signal=15), at=5.1).up(at=6.2)
    scenario.see("memory.current", 10, at=7.0).see("memory.current", 60, at=8.0).dies(Exit(code=1), at=9.0)
    result = scenario.result(workload())
    assert would(result) == [(0.0, "start", False)]
    assert dict(result.diverged_at) == {"web": 5.0}


def test_another_back_off_is_waited_for_and_then_the_recorded_program_stands_for_this_one():
    scenario = Scenario(workload(restart="always")).up(at=0.0).dies(Exit(code=1), at=5.0).up(at=6.0)
    scenario.dies(Exit(code=1), at=30.0)
    result = scenario.result(workload(restart="always", restart_sec=3.0))
    records = would(result)
    assert records[:2] == [(0.0, "start", False), (5.0, "wait", False)]
    assert records[2][1:] == ("start", True)
    assert 5 + 3 * 0.75 <= records[2][0] <= 8.0
    assert records[3] == (30.0, "wait", True)


def a_choice(watched, generation=1):
    """A rule of a group chose the workload at 5 s, and froze it."""
    when = parse_condition("memory.current > 100M")
    by = GroupRule(when=when, action="freeze", victim="newest", name="group.batch.policy[0]", line=9)
    place = Ranked(Candidate("web", 5.0, 1.5, 0, 5.0), 1, "started 5.0 s ago").to_record()
    cause = Cause(by.name, 9, when.text, "memory.current", "", 0, 200, 100, 1.0, "group/batch", "newest", (place,))
    scenario = Scenario(watched).up(at=0.0)
    scenario(GroupAction(generation, Firing(by, "freeze", cause)), at=5.0)
    return scenario(RunPending(), at=5.0)


def test_what_a_groups_rule_did_comes_from_outside_and_is_done_in_any_life():
    watched = workload(rule("memory.events oom_kill"))
    result = a_choice(watched).result(watched)
    assert was(result)[1:] == [(5.0, "freeze"), (5.0, "freeze")]  # the rule's, and the lifecycle's
    assert all(row.is_same for row in result.rows)
    assert result.rows[1].recorded["cause"]["candidates"][0]["name"] == "web"
    other = a_choice(watched).result(workload(rule("memory.events oom_kill", action="kill")))
    assert [action for _, action, _ in would(other)] == ["start", "freeze", "freeze"]
    assert dict(other.diverged_at) == {}


def test_what_is_not_tried_of_groups_is_said():
    watched = workload()
    warnings = a_choice(watched).result(watched).warnings
    text = "(memory.current > 100M) of the recording is not in the configuration; what it did is done here all the same"
    assert warnings == (f"group.batch.policy[0] {text}",)
    rule_ = GroupRule(when=parse_condition("memory.current > 200M"), action="log", name="host.policy[0]", line=3)
    tried = attrs.evolve(config(watched), host=HostConfig(policy=(rule_,)))
    warnings = simulate(tried, a_choice(watched).trace()).warnings
    why = "is not tried, as the trace does not have host with all of its members"
    assert warnings[0] == f"host.policy[0] (line 3) {why}; what it did in the recording is done here, too"
    assert text in warnings[1]


def test_what_a_groups_rule_has_to_say_of_a_generation_that_is_gone_is_nothing():
    watched = workload()
    assert [action for _, action in was(a_choice(watched, generation=7).result(watched))] == ["start"]


def test_a_start_limit_that_is_lower_gives_up_earlier():
    scenario = Scenario(workload(start_limit_burst=5)).up(at=0.0)
    for n in range(1, 4):
        scenario.dies(Exit(code=1), at=10.0 * n).up(at=10.0 * n + 5)
    result = scenario.result(workload(start_limit_burst=2))
    assert [(at, what) for at, what, _ in would(result)] == [
        (0.0, "start"),
        (10.0, "wait"),
        (15.0, "start"),
        (20.0, "give up"),
    ]


def test_what_people_wish_is_wished_in_any_life():
    scenario = Scenario(workload(rule("memory.current >= 50%", "stop"))).up(at=0.0)
    scenario.see("memory.current", 60, at=5.0).dies(Exit(signal=15), at=5.1)
    scenario(events.Start("operator"), at=20.0)(events.Stop("operator"), at=30.0)
    result = scenario.result(workload())
    assert [(at, what) for at, what, _ in would(result)] == [(0.0, "start"), (30.0, "signal")]


def test_a_signal_that_only_one_of_them_sends_makes_the_rest_a_guess():
    scenario = Scenario(workload(rule("memory.current >= 50%", "log"))).up(at=0.0)
    scenario.see("memory.current", 60, at=5.0).see("memory.current", 10, at=6.0).see("memory.current", 60, at=7.0)
    result = scenario.result(workload(rule("memory.current >= 50%", "signal", signal=1)))
    assert would(result) == [(0.0, "start", False), (5.0, "signal", False), (7.0, "signal", True)]
    back = Scenario(workload(rule("memory.current >= 50%", "signal", signal=1))).up(at=0.0)
    back.see("memory.current", 60, at=5.0).dies(Exit(code=1), at=6.0)
    assert would(back.result(workload()))[-1] == (6.0, "wait", True)


def test_a_rule_whose_file_was_not_recorded_cannot_be_judged():
    scenario = Scenario(workload(rule("memory.current >= 50%"))).up(at=0.0).see("memory.current", 1, at=1.0)
    result = scenario.result(workload(rule("memory.current >= 50%"), rule("cpu.stat nr_throttled rate > 5/s")))
    assert result.warnings == ("web: policy[0] (line 5) cannot be judged: cpu.stat nr_throttled was not recorded",)


def sick_from_three_seconds(watched):
    """The liveness probe fails from 3 s on."""
    scenario = Scenario(watched)
    scenario.files["probe"] = {"liveness": 1.0, "liveness took avg": 0.1}
    scenario.up(at=0.0)
    for second in range(1, 8):
        scenario.see("probe", float(second < 3), "liveness", at=float(second))
        scenario.lines.append(scenario.writer.sample(scenario.now, {"web": scenario.files}))
    return scenario


def test_a_rule_on_the_result_of_a_probe_does_the_same_and_can_be_tried():
    watched = workload(rule("probe liveness == fail", "log", for_=2.0))
    scenario = sick_from_three_seconds(watched)
    result = scenario.result(watched)
    assert [row.time_s for row in result.rows if row.recorded and row.recorded["action"] == "log"] == [5.0]
    assert all(row.recorded == row.simulated and row.time_s == row.simulated_time_s for row in result.rows)
    assert result.warnings == ()
    tried = workload(rule("probe liveness == fail", "log", for_=1.0))
    assert (4.0, "log", False) in would(scenario.result(tried))


def test_a_trace_without_results_of_probes_does_not_replay_a_rule_on_them():
    result = a_leak(workload(rule("memory.events oom_kill"))).result(workload(rule("probe liveness == fail")))
    assert result.warnings == ("web: policy[0] (line 5) cannot be judged: probe liveness was not recorded",)


def test_a_stall_that_was_waited_for_and_did_not_come_has_not_been():
    stall = rule("memory.pressure some stall > 100ms/1s")
    scenario = Scenario(workload(stall)).up(at=0.0)
    assert scenario.result(workload(stall)).warnings == ()
    longer = scenario.result(workload(rule("memory.pressure some stall > 200ms/1s"))).warnings
    assert longer == ("web: policy[0] (line 5) cannot be judged: memory.pressure some 200000 1000000 was not recorded",)


def test_other_names_and_other_limits_are_said():
    scenario = a_leak(workload(rule("memory.events oom_kill")))
    limited = attrs.evolve(workload(rule("memory.events oom_kill")), resources=Resources(memory_max=5))
    assert scenario.result(limited).warnings == (
        "web: its resources differ from the recorded ones; the limits here are those of the trace",
    )
    stranger = scenario.result(attrs.evolve(workload(), name="db"))
    assert stranger.warnings == (
        "web is in the trace, but not in the configuration: nothing would have been done",
        "db is not in the trace: nothing is known of it",
    )
    assert [row.simulated for row in stranger.rows] == [None] * 5


def test_instances_share_their_workloads_configuration():
    head = {"trace": 1, "clock": {"monotonic": 0.0}, "workloads": {}}
    watched = workload(restart="no")
    head["workloads"]["web@2"] = TraceWriter().head({"web": watched})["workloads"]["web"]
    start = {"t": 1.0, "of": "web@2", "event": "Start", "by": "boot", "chance": 0.0, "life": ["starting", 1, 31.0]}
    data = b"".join(map(encode_line, [head, start]))
    result = simulate(config(watched), parse_trace(data, "x"))
    assert would(result) == [(1.0, "start", False)]
    assert result.warnings == ("the trace has no end: it was cut off, and something may be missing",)


# ---------------------------------------------------------------------------------------------------------------------
# Traces


def test_what_the_lifecycle_reads_of_a_workload_is_in_the_trace():
    text = (ROOT / "nsupervisor" / "core" / "lifecycle.py").read_text()
    names = re.findall(r"workload\.([a-z_]+)", text)
    keys = {"start_limit": "start_limit_burst", "signal_of_reload": "reload_signal"}
    assert {keys.get(name, name) for name in names} == {
        *LIFECYCLE_KEYS,
        *LATER_LIFECYCLE_KEYS,
    }


def test_every_event_can_be_told():
    made = {
        "generation": 1,
        "exit": Exit(signal=9, oom_killed=True),
        "populated": True,
        "reason": "hung",
        "probe": "liveness",
        "seconds": 2.5,
        "since": 3.25,
        "phase": Phase.RELOAD,
        "step": 1,
        "is_success": True,
        "detail": "exit code 3",
        "code": 3,
        "is_populated": True,
        "requested_by": "boot",
    }
    for kind in INPUTS.values():
        event = kind(**{a.name: made[a.name] for a in attrs.fields(kind)})
        scenario = Scenario(workload())(event)
        trace = parse_trace(b"".join(map(encode_line, scenario.lines)), "x")
        assert parse_input(trace.lines[-1]) == event


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "x: is empty; make a trace with `nsupervisor record x`"),
        (b"{}\n", "x:1: is not the head of a trace"),
        (b"hello\n", "x:1: is no JSON"),
        (b'{"trace":3}\n', "x:1: is a trace of format 3, but this version reads 1 and 2"),
        (b'{"trace":1}\n', "x:1: lacks the clock or the workloads"),
        (b'HEAD\n{"t":"now","end":""}\n', "x:2: has no time"),
        (b'HEAD\n{"t":1}\n', "x:2: is of no kind of line"),
        (b'HEAD\n{"t":1,"turn":true}\n', "x:2: does not say which workload"),
        (b'HEAD\n{"t":1,"of":"web","event":"Explode"}\n', "x:2: cannot be replayed: 'Explode'"),
        (b'HEAD\n{"t":1,"of":"web","event":"Start","by":7,"chance":0,"life":["stopped",0,null]}\n', "x:2: cannot be"),
        (b'HEAD\n{"t":1,"of":"web","event":"Start","chance":0,"life":["asleep",0,null]}\n', "x:2: cannot be replayed"),
        (b'HEAD\n{"t":1,"of":"web","seen":{"pids.current":{"":"many"}}}\n', "x:2: cannot be replayed"),
        (b'HEAD\n{"t":1,"of":"web","limits":{"pids.max":[]}}\n', "x:2: cannot be replayed"),
        (b'HEAD\n{"t":1,"of":"web","mind":{"life":{},"memories":[{}]}}\n', "x:2: cannot be replayed"),
    ],
)
def test_what_is_no_trace_is_refused_with_its_line(text, words):
    head = encode_line(TraceWriter().head({"web": workload()}, clock={"monotonic": 0.0}))
    with pytest.raises(TraceError) as caught:
        parse_trace(text.replace(b"HEAD\n", head), "x")
    assert str(caught.value).startswith(words)


def test_a_last_line_that_was_cut_off_is_left_out():
    scenario = a_leak(workload())
    data = b"".join(map(encode_line, scenario.lines))
    assert len(parse_trace(data[:-5], "x").lines) == len(scenario.lines) - 2
    assert not parse_trace(data, "x").is_complete


def test_a_configuration_that_changes_meanwhile_is_told():
    """A reload may give a workload other rules, or replace it: the trace continues with the state after the reload."""
    watched = workload(rule("memory.current >= 50%", "log"))
    scenario = Scenario(watched).up(at=0.0)
    scenario.workload = two = workload(rule("memory.current >= 50%", "log"), rule("memory.current >= 70%", "log"))
    scenario.state = WorkloadState(Lifecycle(), Engine.for_rules(two.policy))
    scenario.lines += [
        *scenario.writer.config_change("web", two, 1005.0),
        scenario.writer.workload_start("web", scenario.state, 1005.0),
    ]
    scenario.up(at=6.0).see("memory.current", 80, at=7.0)
    result = scenario.result(two)
    assert would(result) == [(0.0, "start", False), (6.0, "start", False), (7.0, "log", False), (7.0, "log", False)]
    assert result.warnings == (
        "web: its configuration was changed during the recording; what came then is no longer exact",
    )
    lines = [
        *scenario.lines[:-4],
        {**scenario.writer.workload_start("web", scenario.state, 1007.0), "mind": {"life": {}, "memories": []}},
    ]
    with pytest.raises(TraceError, match="cannot be replayed"):
        parse_trace(b"".join(map(encode_line, lines)), "x")


def test_a_trace_is_small_where_nothing_happens():
    scenario = Scenario(workload(rule("memory.current >= 50%"))).up(at=0.0)
    before = len(scenario.lines)
    for second in range(1, 100):
        scenario.see("memory.current", 7, at=float(second))
    assert len(scenario.lines) == before + 1
    scenario.sample(at=100.0)
    scenario.sample(at=101.0, pids_current=2)
    assert json.loads(encode_line(scenario.lines[-1]))["sample"] == {"web": {"pids.current": {"": 2}}}


def test_a_file_with_other_keys_than_before_is_told_whole():
    """A trigger's key is only in the snapshot of its moment: the next observation must not show it again."""
    stall = rule("memory.pressure some stall > 100ms/1s", "log")
    key = stall.when.atoms[0].key
    scenario = Scenario(workload(stall)).up(at=0.0)
    scenario(Observation({"memory.pressure": {key: 5.0}}, LIMITS), at=1.0)
    for second, values in (
        (2.0, {"some avg10": 1.0, key: 9.0}),
        (3.0, {"some avg10": 1.0}),
        (4.0, {"some avg10": 1.5}),
    ):
        scenario(Observation({"memory.pressure": values}, LIMITS), at=second)
        if scenario.state.pending:
            scenario(RunPending(), at=second)
    assert [line.get("whole") for line in scenario.lines if "seen" in line][-3:] == [["memory.pressure"]] * 2 + [None]
    result = scenario.result(scenario.workload)
    assert would(result) == [(0.0, "start", False), (2.0, "log", False)]
    assert all(row.is_same for row in result.rows)


def test_a_rule_on_the_exit_is_tried_on_exits_that_no_recorded_rule_asked_about():
    scenario = Scenario(workload(restart="always")).up(at=0.0).dies(Exit(code=3), at=5.0).up(at=6.0)
    result = scenario.result(workload(rule("exit code == 3", "stop"), restart="always"))
    assert would(result) == [(0.0, "start", False), (5.0, "stop", False), (5.0, "signal", False)]
    assert result.warnings == ()
    assert dict(result.diverged_at) == {"web": 5.0}


# ---------------------------------------------------------------------------------------------------------------------
# At random


@pytest.mark.parametrize("first", range(0, 1000, 500))
def test_random_stories_keep_all_promises(first):
    """Check random histories; `tests.core.replay.random_traces` checks 100,000 of them."""
    for seed in range(first, first + 500):
        random_traces.check(seed)


@pytest.mark.fault("H8")
def test_a_rule_that_is_tried_does_not_judge_an_exit_that_an_operator_caused():
    scenario = Scenario(workload()).up(at=0.0)
    scenario(events.Restart(), at=5.0).dies(Exit(code=3), at=5.5)
    result = scenario.result(workload(rule("exit code != 0", "stop")))
    assert would(result) == [(0.0, "start", False), (5.0, "signal", False), (5.5, "start", False)]
