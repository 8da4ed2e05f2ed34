"""The conditions of rules: values, messages and evaluation."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsupervisor.config.condition_terms import COUNTERS, DURATION_FILES, LEVELS, LIMIT_KEYS, PRESSURE_FILES, SIZE_FILES
from nsupervisor.config.conditions import Atom, Condition, parse_condition


@pytest.mark.parametrize(
    ("text", "file", "key", "kind", "op", "threshold", "percent"),
    [
        ("memory.events oom_kill", "memory.events", "oom_kill", "counter", None, None, False),
        ("pids.current >= 90%", "pids.current", None, "level", ">=", 90.0, True),
        ("pids.current>=90", "pids.current", None, "level", ">=", 90.0, False),
        ("memory.current > 100M", "memory.current", None, "level", ">", 100 * 2**20, False),
        ("memory.current < 50 %", "memory.current", None, "level", "<", 50.0, True),
        ("memory.stat  anon > 50M", "memory.stat", "anon", "level", ">", 50 * 2**20, False),
        ("memory.pressure some avg10 > 25%", "memory.pressure", "some avg10", "level", ">", 25.0, False),
        ("io.pressure full avg300 <= 0.5", "io.pressure", "full avg300", "level", "<=", 0.5, False),
    ],
)
def test_conditions(text, file, key, kind, op, threshold, percent) -> None:
    words = " ".join(text.split())
    assert parse_condition(text) == Condition(words, (Atom(words, file, key, kind, op, threshold, percent),))


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("pids.current > 5 and pids.current < 9", ("and", 0, 1)),
        ("pids.current > 5 or pids.current < 3 and not pids.current > 1", ("or", 0, ("and", 1, ("not", 2)))),
        ("(pids.current > 5 or pids.current < 3) and pids.current > 1", ("and", ("or", 0, 1), 2)),
        ("not not (pids.current > 5)", ("not", ("not", 0))),
    ],
)
def test_conditions_of_several_parts(text, tree) -> None:
    condition = parse_condition(text)
    assert condition.tree == tree
    assert all(atom.file == "pids.current" for atom in condition.atoms)


def test_a_stall_is_what_the_kernel_calls_a_trigger() -> None:
    (atom,) = parse_condition("memory.pressure  some stall>150ms / 1s").atoms
    assert (atom.kind, atom.file, atom.key) == ("stall", "memory.pressure", "some 150000 1000000")
    assert (atom.threshold, atom.window, atom.is_momentary) == (150_000, 1_000_000, True)


@pytest.mark.parametrize(
    ("text", "key", "op", "threshold"),
    [
        ("exit code == 3", "code", "==", 3),
        ("exit code!=0", "code", "!=", 0),
        ("exit code > 128", "code", ">", 128),
        ("exit signal == SIGSEGV", "signal", "==", 11),
        ("exit signal == 9", "signal", "==", 9),
        ("exit oom_killed", "oom_killed", "==", 1),
        ("exit core_dumped", "core_dumped", "==", 1),
    ],
)
def test_exits(text: str, key: str, op: str, threshold: float) -> None:
    (atom,) = parse_condition(text).atoms
    assert (atom.file, atom.key, atom.kind, atom.op, atom.threshold) == ("exit", key, "fact", op, threshold)


def test_rates_in_the_units_of_what_is_counted() -> None:
    def per_second(text: str) -> float | None:
        return parse_condition(text).atoms[0].threshold

    assert per_second("cpu.stat usage_usec rate > 80%") == 800_000
    assert per_second("cpu.stat usage_usec rate > 1500ms/s") == 1_500_000
    assert per_second("io.stat rbytes rate > 50M/s") == 50 * 2**20
    assert per_second("memory.stat pgmajfault rate > 100/s") == 100


def test_a_counter_and_a_level_may_live_in_one_file() -> None:
    assert parse_condition("memory.stat pgmajfault increases by 50").atoms[0].kind == "counter"
    assert parse_condition("memory.stat anon > 5M").atoms[0].kind == "level"


def test_io_stat_is_the_sum_over_all_devices() -> None:
    (atom,) = parse_condition("io.stat wios").atoms
    assert atom.value_in({"8:0 wios": 2, "8:16 wios": 3, "8:0 rios": 7}) == 5
    assert atom.value_in({}) == 0


def test_counters_by_how_much_and_how_fast() -> None:
    (atom,) = parse_condition("pids.events max increases by 10").atoms
    assert (atom.kind, atom.increase, atom.threshold) == ("counter", 10, None)
    (atom,) = parse_condition("cpu.stat nr_throttled rate >= 50.5/s").atoms
    assert (atom.kind, atom.op, atom.threshold) == ("rate", ">=", 50.5)
    assert parse_condition("cpu.stat nr_throttled rate>5 / sec").atoms[0].threshold == 5.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names no file; write"),
        ("> 5", "names no file; write"),
        ("memory.event oom_kill", 'did you mean "memory.events"?'),
        ("memory.events", 'write for example "memory.events oom_kill"'),
        ("memory.events oom_kil", 'did you mean "oom_kill"?'),
        ("memory.events oom_kill > 3", 'write "memory.events oom_kill", which fires each time it does'),
        ("pids.current", 'does not say at which level; write for example "pids.current >= 90%"'),
        ("pids.current = 5", "has no comparison"),
        ("pids.current == 5", "has no comparison"),
        ("pids.current >", "has no comparison"),
        ("pids.current > > 5", "has no comparison"),
        ("pids.current > many", "which is not a number"),
        ("pids.current > 101%", "not a percentage up to 100%"),
        ("pids.current max > 5", "holds a single one"),
        ("memory.current > 5 bananas", "which is not a size"),
        ("memory.current > max", "which is not a size"),
        ("memory.stat > 5M", 'write for example "memory.stat anon > 64M"'),
        ("memory.stat anonn > 5M", 'did you mean "anon"?'),
        ("memory.stat anon > 5%", "has no limit"),
        ("memory.pressure some > 25%", "unknown value"),
        ("memory.pressure some avg5 > 25%", 'did you mean "some avg'),
        ("cpu.stat nr_throttled rate > 50", 'for example "cpu.stat nr_throttled rate > 50/s"'),
        ("pids.current rate > 50/s", "does not say at which level"),
        ("pids.events max increases by many", 'for example "pids.events max increases by 10"'),
        ("pids.current > 5 increases by 5", 'for example "pids.events max increases by 10"'),
        ("pids.current > 5 and", "names no file"),
        ("memory.pressure some stall", 'for example "memory.pressure some stall > 100ms/1s"'),
        ("memory.pressure most stall > 100ms/1s", "which is no stall"),
        ("memory.current some stall > 100ms/1s", "which is no stall"),
        ("memory.pressure some stall > 100ms/100ms", "with one of 500ms to 10s"),
        ("memory.pressure some stall > 2s/1s", "longer than its window"),
        ("memory.pressure some stall > soon/1s", "where a time is wrong"),
        ("exit", "does not say what of an exit"),
        ("exit cod == 3", 'did you mean "code"?'),
        ("exit code", "does not compare the exit's code with anything"),
        ("exit code = 3", "does not compare"),
        ("exit code == 300", "no exit code from 0 to 255"),
        ("exit signal == SIGNOTHING", "which is not a signal"),
        ("exit oom_killed == 1", 'write "exit oom_killed"'),
        ("uptime", 'write for example "uptime > 7d"'),
        ("uptime > often", 'not a time; write for example "uptime > 7d"'),
        ("io.stat rbytes rate > 50 bananas/s", "write a counter and a rate"),
        ("memory.stat pgfault > 5", "compares a counter"),
        ("(pids.current > 5", 'has a "(" without its ")"'),
        ("pids.current > 5)", "goes on after its end"),
        ("pids.current > 5 (pids.current > 5)", "goes on after its end"),
        ("not " * 50 + "pids.current > 5", "nested too deeply"),
        ("x" * 500, "too long"),
    ],
)
def test_what_is_no_condition(text: str, message: str) -> None:
    with pytest.raises(ValueError, match="; write") as caught:
        parse_condition(text)
    assert message in str(caught.value)


@pytest.mark.parametrize("file", sorted(COUNTERS))
def test_each_counter_of_the_table_is_a_condition(file: str) -> None:
    for key in COUNTERS[file]:
        assert parse_condition(f"{file} {key}").atoms[0].kind == "counter"


@pytest.mark.parametrize("file", sorted(LEVELS))
def test_each_level_of_the_table_is_a_condition(file: str) -> None:
    for key in LEVELS[file] or [""]:
        if file in DURATION_FILES:
            assert parse_condition(f"{file} > 5min").atoms[0].threshold == 300
            continue
        for number in ["5"] + ["5%"] * (file in LIMIT_KEYS or file in PRESSURE_FILES) + ["5M"] * (file in SIZE_FILES):
            (condition,) = parse_condition(f"{file} {key} > {number}").atoms
            assert (condition.kind, condition.key) == ("level", key or None)
            assert condition.is_percent == (number == "5%" and file in LIMIT_KEYS)


PARTS = ["oom_kill", "anon", "some", "avg10", ">", ">=", "<", "=", "90%", "5M", "and", "or", "not", "(", ")"]
words = st.sampled_from(
    [*COUNTERS, *LEVELS, *PARTS, "", "\n", "increases by 5", "rate > 5/s", "exit", "exit code == 3", "stall > 5ms/1s"]
)


@given(st.lists(words | st.text(max_size=5), max_size=6).map(" ".join))
def test_any_text_is_a_condition_or_a_message_of_one_line(text: str) -> None:
    message = "; write"
    try:
        again = parse_condition(text)
    except ValueError as error:
        message = str(error)
    else:
        assert parse_condition(again.text) == again
    assert "; write" in message
    assert message.isprintable()


@pytest.mark.parametrize(
    ("text", "key", "op", "threshold"),
    [
        ("probe readiness == fail", "readiness", "<", 1.0),
        ("probe  readiness  !=  fail", "readiness", ">=", 1.0),
        ("probe liveness==pass", "liveness", ">=", 1.0),
        ("probe liveness != pass", "liveness", "<", 1.0),
        ("probe liveness took avg > 200ms", "liveness took avg", ">", 0.2),
        ("probe readiness took avg <= 1", "readiness took avg", "<=", 1.0),
    ],
)
def test_results_of_probes(text: str, key: str, op: str, threshold: float) -> None:
    (atom,) = parse_condition(text).atoms
    assert (atom.file, atom.key, atom.kind, atom.op, atom.threshold) == ("probe", key, "level", op, threshold)
    assert not atom.is_momentary


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("probe", "no comparison with the results of a probe"),
        ("probe readiness", "no comparison"),
        ("probe readiness > fail", "no comparison"),
        ("probe readiness == 1", "no comparison"),
        ("probe startup == fail", "not readiness or liveness"),
        ("probe liveness took avg > soon", "not a time"),
        ("probe liveness took avg == 1s", "no comparison"),
    ],
)
def test_what_is_no_result_of_a_probe(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_condition(text)
