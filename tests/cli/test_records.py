"""Records in words."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsupervisor.terminal.lines import RecordLines
from nsupervisor.terminal.numbers import format_span
from nsupervisor.terminal.records import format_command, format_exit, format_reading, format_record, format_start_limit
from nsupervisor.terminal.times import format_time

OOM = {"rule": "policy[0]", "line": 14, "when": "memory.events oom_kill", "file": "memory.events", "key": "oom_kill"}
OOM |= {"before": 0, "after": 1}
LEVEL = {"rule": "policy[1]", "line": 20, "when": "pids.current >= 90%", "file": "pids.current", "key": ""}
LEVEL |= {"before": 15, "after": 16, "threshold": 14.4, "held": 0.31}


def action(what, cause, **more):
    return {"timestamp": "2026-01-31T12:00:00.104729Z", "level": "info", "event": "action", "workload": "web"} | {
        "generation": 1,
        "action": what,
        "cause": cause,
        **more,
    }


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (0.0934, "0.093 s"), (0.5, "0.5 s"), (1, "1 s"), (12.345, "12.3 s"), (60.0, "60 s"), (125, "2min 5s")],
)
def test_spans(seconds, words):
    assert format_span(seconds) == words


@given(st.floats(0, 1e8))
def test_spans_are_short_and_never_in_powers_of_ten(seconds):
    assert len(format_span(seconds)) <= 10
    assert "e" not in format_span(seconds)


def test_the_date_is_told_where_it_is_another():
    time = datetime(2026, 1, 31, 23, 59, 59, 104_729, UTC)
    assert format_time(time, time) == "23:59:59.104"
    assert format_time(time, time + timedelta(seconds=1)) == "2026-01-31 23:59:59.104"


@pytest.mark.parametrize(
    ("exit_", "words"),
    [
        ({"code": 3, "signal": None}, "exit code 3"),
        ({"code": None, "signal": "SIGKILL"}, "killed by SIGKILL"),
        ({"code": None, "signal": "SIGKILL", "oom_killed": True}, "killed by SIGKILL, out of memory"),
        ({"code": None, "signal": "SIGSEGV", "core_dumped": True}, "killed by SIGSEGV, core dumped"),
    ],
)
def test_exits_are_told_as_the_reasons_tell_them(exit_, words):
    import signal

    from nsupervisor.core.exits import Exit

    assert format_exit({"oom_killed": False, "core_dumped": False, **exit_}) == words
    number = exit_["signal"] and signal.Signals[exit_["signal"]]
    assert str(Exit(**{**exit_, "signal": number})) == words


@pytest.mark.parametrize(
    ("cause", "words"),
    [
        (OOM, "memory.events oom_kill: 0 → 1"),
        (LEVEL, "pids.current: 15 → 16, threshold 14.4, held for 0.31 s"),
        ({**LEVEL, "before": 16, "held": 0}, "pids.current: 16, threshold 14.4"),
        (
            {**LEVEL, "file": "memory.current", "before": 47 << 20, "after": 50 << 20, "threshold": 45 << 20},
            "memory.current: 47M → 50M, threshold 45M, held for 0.31 s",
        ),
        (
            {**LEVEL, "file": "memory.stat", "key": "anon", "before": 2048, "after": 4096, "threshold": 1024},
            "memory.stat anon: 2K → 4K, threshold 1K, held for 0.31 s",
        ),
        ({**OOM, "file": "memory.stat", "key": "pgmajfault", "after": 4096}, "memory.stat pgmajfault: 0 → 4096"),
        (
            {**LEVEL, "file": "memory.pressure", "key": "some avg10", "before": 26.25, "after": 31.5, "threshold": 25},
            "memory.pressure some avg10: 26.25 → 31.5, threshold 25, held for 0.31 s",
        ),
    ],
)
def test_readings_have_the_unit_that_people_write(cause, words):
    assert format_reading(cause) == words


def test_places():
    assert format_start_limit({"start": 2, "start_limit_burst": 5, "interval_sec": 60.0}) == "start 2 of 5 within 60 s"
    assert format_start_limit({"start": 2, "start_limit_burst": 0, "interval_sec": 60.0}) == ""
    assert format_start_limit({}) == ""


def test_what_was_set():
    before, after = {"memory_max": 64 << 20, "pids_max": 20}, {"memory_max": 32 << 20, "pids_max": None}
    assert (
        format_command({"action": "set", "before": before, "after": after})
        == "set memory_max 64M → 32M, pids_max 20 → max"
    )
    disk = {"device": "/srv", "rbps": None, "wbps": 8388608}
    record = {"action": "set", "before": {"io_max": []}, "after": {"io_max": [disk]}}
    assert format_command(record) == "set io_max max → { device = /srv, wbps = 8388608 }"


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (action("restart", OOM), "restart by policy[0], line 14: memory.events oom_kill: 0 → 1"),
        (action("restart", {**OOM, "line": 0}), "restart by policy[0]: memory.events oom_kill: 0 → 1"),
        (
            action("signal", LEVEL, signal="SIGHUP", dry_run=True),
            "signal SIGHUP (dry run) by policy[1], line 20: pids.current >= 90%: "
            "15 → 16, threshold 14.4, held for 0.31 s",
        ),
        (
            action("stop", {**OOM, "when": "pids.current > 3 and memory.events oom_kill"}),
            "stop by policy[0], line 14: pids.current > 3 and memory.events oom_kill: memory.events oom_kill: 0 → 1",
        ),
        (action("start", {"by": "boot"}), "start by boot"),
        (
            action("stop", {"by": "operator", "kind": "person", "detail": "uid 0, pid 7"}),
            "stop by operator (uid 0, pid 7)",
        ),
        (action("start", {"by": "for web (upholds)", "kind": "dependency"}), "start for web (upholds)"),
        (
            action(
                "restart",
                {"exit": "exit code 3", "restart": "always", "reason": "exit code 3"},
                delay_sec=0.0931,
                start=2,
                start_limit_burst=5,
                interval_sec=60,
            ),
            "restart in 0.093 s, start 2 of 5 within 60 s, after exit code 3",
        ),
        ({"event": "state", "from": "running", "to": "failed", "reason": "why"}, "running → failed: why"),
        ({"event": "dropped", "dropped": 7, "reason": "slow"}, "7 records are missing here: slow"),
        pytest.param(
            {"event": "dropped", "dropped": 1, "reason": "slow"},
            "1 record is missing here: slow",
            marks=pytest.mark.fault("D23"),
        ),
        ({"event": "warning", "level": "warning", "message": "look", "pid": 3}, "look (pid 3)"),
        ({"event": "started", "workload": "web", "generation": 1, "pid": 4711}, "pid 4711"),
    ],
)
def test_records_as_one_line(record, words):
    assert format_record(record) == words


def test_lines_are_aligned_and_cannot_drive_the_terminal():
    lines = RecordLines(colour=False)
    head = {"timestamp": "2026-01-31T12:00:00.104729Z", "level": "info", "event": "warning"}
    assert lines.format({**head, "message": "a\x1b[2J\nb"}).endswith("  -           warning      a\\x1b[2J b")
    assert lines.format({**head, "workload": "long-name@12", "message": "x"}).endswith("  long-name@12  warning      x")
    assert lines.format({**head, "workload": "web", "message": "x"}).endswith("  web           warning      x")
    assert "\033[35mwarning    \033[0m" in RecordLines(colour=True).format({**head, "level": "warning", "message": "x"})


def test_a_reload_says_what_it_changed():
    record = {"action": "reload", "do": "live", "changes": [{"key": "policy[0]"}, {"key": "resources.pids_max"}]}
    assert format_command(record) == "reload (changed in place: policy[0], resources.pids_max)"


def test_a_failed_start_is_shown_as_its_message():
    shown = format_record({"event": "not started", "level": "error", "message": "cannot execute /x", "uptime_sec": 0.3})
    assert shown == "cannot execute /x"
