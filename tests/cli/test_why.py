"""What `why` makes of records: which belong together, and what a person is told."""

from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsupervisor.cli.commands.why import Renderer
from nsupervisor.cli.episodes import group_episodes

ZERO = datetime(2026, 1, 31, 12, 0, 0).astimezone()


class Records:
    """Makes records as the service does, at given seconds after noon."""

    def __init__(self):
        self.found = []
        self.generation = 0

    def say(self, at, event, level="info", **fields):
        time = (ZERO + timedelta(seconds=at)).isoformat(timespec="microseconds")
        head = {"timestamp": time, "level": level, "event": event, "workload": "web", "generation": self.generation}
        self.found.append(head | fields)

    def state(self, at, from_, to, reason):
        self.say(at, "state", **{"from": from_, "to": to, "reason": reason})

    def wish(self, at, what, by="operator", **more):
        self.say(at, "action", action=what, cause={"by": by}, **more)

    def rule(self, at, what, **more):
        cause = {"rule": "policy[0]", "line": 14, "when": "memory.events oom_kill", "file": "memory.events"}
        cause |= {"key": "oom_kill", "before": 0, "after": 1}
        self.say(at, "action", "warning", action=what, cause=cause, **more)

    def run(self, at, from_="stopped", reason="started by boot"):
        self.generation += 1
        self.state(at, from_, "starting", reason)
        self.say(at + 0.01, "started", pid=4711)
        self.state(at + 0.01, "starting", "running", reason)

    def exit(self, at, code=3, signal=None, oom=False):
        self.say(at, "exited", pid=4711, code=code, signal=signal, core_dumped=False, oom_killed=oom)

    def again(self, at, reason="exit code 3", start=2):
        cause = {"exit": "exit code 3", "restart": "on-failure", "reason": reason}
        more = {"delay_sec": 0.1, "start": start, "start_limit_burst": 5, "interval_sec": 60.0}
        self.say(at, "action", action="restart", cause=cause, **more)
        self.state(at, "running", "backoff", reason)


def tell(records, state, number=5, now=60.0, output=(), find_call=lambda *_: "", **more):
    one = {"name": "web", "state": state, "reason": "", "generation": records.generation, "restarts": 0}
    states = [record for record in records.found if record["event"] == "state"]
    one |= {"reason": states[-1]["reason"] if states else "", "config": "/etc/site.toml", "restart": "on-failure"}
    one |= {"since": ZERO.timestamp(), "forgotten": 0, "records": records.found, **more}
    renderer = Renderer(one, ZERO + timedelta(seconds=now), colour=False, output=output, find_call=find_call)
    return "\n".join(renderer.render(number))


def begins(records):
    """What each episode begins with: its event, or its action."""
    return [episode[0].get("action", episode[0]["event"]) for episode in group_episodes(records.found)]


def test_what_never_failed_takes_two_lines():
    records = Records()
    records.wish(1, "start", "boot")
    records.run(1)
    assert tell(records, "running") == (
        "web: running since 12:00:01.010 (58s ago): started by boot\nit has never failed"
    )


def test_what_it_waited_for_is_told_even_where_nothing_failed():
    records = Records()
    records.say(1, "waiting", message="waits for db")
    records.say(1.5, "waiting", message="waits for cache")
    records.wish(3.5, "start", "boot")
    records.run(3.5)
    assert tell(records, "running").splitlines()[2:] == [
        "",
        "12:00:03.500 (56s ago)  start by boot",
        "  waited    for db (0.5 s)",
        "  waited    for cache (2 s)",
        "  started   12:00:03.510, generation 1, pid 4711",
    ]


def test_what_it_requires_could_not_be_had():
    records = Records()
    records.say(1, "waiting", message="waits for db")
    records.say(2, "not started", "error", message="requires db, which is failed: exit code 3")
    del records.found[-1]["generation"]  # its start was not tried
    records.wish(9, "start")
    records.run(9)
    assert begins(records) == ["waiting", "start"]
    assert "start\n  waited    for db (1 s)\n  failed    requires db, which is failed: exit code 3\n" in tell(
        records, "running"
    )


def test_a_start_that_was_blocked():
    records = Records()
    records.say(1, "waiting", message="waits for db")
    text = "requires db, which is failed: exit code 3; web starts as soon as db is up"
    records.say(2, "waiting", "warning", message=text)
    records.wish(5, "start")
    records.run(5)
    assert tell(records, "running").splitlines()[3:6] == [
        "12:00:05.000 (55s ago)  start by operator",
        "  waited    for db (1 s)",
        f"  blocked   {text} (3 s)",
    ]


def test_never_started():
    assert tell(Records(), "stopped", now=90) == (
        "web: stopped; not started since the supervisor began, 12:00:00.000 (1min 30s ago)"
    )
    assert tell(Records(), "stopped", reason="waits for db") == "web: stopped: waits for db"


def test_a_rule_s_restart_is_told_with_its_reading_the_exit_and_the_place_in_the_start_limit():
    records = Records()
    records.wish(1, "start", "boot")
    records.run(1)
    records.rule(5, "restart")
    records.state(5, "running", "stopping", "restarted by policy[0] (memory.events oom_kill)")
    records.exit(5.1, code=None, signal="SIGKILL", oom=True)
    records.again(5.1, reason="restarted by policy[0] (memory.events oom_kill)")
    records.run(5.2, "backoff", "restarted by policy[0] (memory.events oom_kill)")
    assert begins(records) == ["start", "restart"]
    assert tell(records, "running", restarts=1) == (
        "web: running since 12:00:05.210 (54s ago): restarted by policy[0] (memory.events oom_kill)\n"
        "2 starts, 1 of them by itself\n"
        "\n"
        "12:00:01.000 (59s ago)  start by boot\n"
        "  started   12:00:01.010, generation 1, pid 4711\n"
        "\n"
        "12:00:05.000 (55s ago)  restart by policy[0], site.toml line 14\n"
        "  when      memory.events oom_kill\n"
        "  read      memory.events oom_kill: 0 → 1\n"
        "  exit      killed by SIGKILL, out of memory, after 4.1 s (generation 1, pid 4711)\n"
        "  restart   in 0.1 s, start 2 of 5 within 60 s\n"
        "  started   12:00:05.210, generation 2, pid 4711"
    )


def test_a_crash_loop_is_one_episode_each_and_the_present_says_what_comes_next():
    records = Records()
    records.wish(0, "start", "boot")
    records.run(0)
    for at in (10, 20):
        records.exit(at)
        records.again(at, start=at // 10 + 1)
        if at == 10:
            records.run(at + 0.1, "backoff", "restarted: exit code 3")
    assert begins(records) == ["start", "exited", "exited"]
    told = tell(records, "backoff", number=1, now=20.02, restarts=1)
    assert told == (
        "web: backoff since 12:00:20.000 (0s ago): exit code 3\n"
        "next start in 0.08 s, start 3 of 5 within 60 s\n"
        "2 starts, 1 of them by itself\n"
        "\n"
        "2 earlier episodes: -n shows more\n"
        "\n"
        "12:00:20.000 (0s ago)  exit code 3\n"
        "  program   generation 2, pid 4711, ran for 9.9 s\n"
        '  restart   in 0.1 s, start 3 of 5 within 60 s (restart = "on-failure")'
    )


def test_what_a_failed_program_wrote_last_is_told():
    records = Records()
    records.wish(0, "start", "boot")
    records.run(0)
    records.exit(10)
    records.again(10, start=2)
    records.run(10.1, "backoff", "restarted: exit code 3")
    output = [
        {"event": "output", "generation": generation, "message": f"{generation}: line {number}"}
        for generation in (1, 2)
        for number in range(5)
    ]
    told = tell(records, "running", number=1, output=output)
    assert "  wrote     1: line 2\n            1: line 3\n            1: line 4\n  restart" in told
    assert "2: line" not in told


def test_a_program_that_cannot_be_started_is_told_without_its_name_again():
    records = Records()
    records.wish(0, "start", "boot")
    for at in (0, 1):
        records.generation += 1
        records.state(at, "backoff" if at else "stopped", "starting", "x")
        records.say(at, "not started", "error", message="workload web: cannot execute /x: Permission denied")
        if not at:
            records.again(at)
    records.state(1, "starting", "failed", "given up after 2 starts within 60 s; the last: cannot execute /x")
    assert begins(records) == ["start", "not started"]
    assert tell(records, "failed", number=1).splitlines()[-2:] == [
        "12:00:01.000 (59s ago)  not started: cannot execute /x: Permission denied",
        "  failed    given up after 2 starts within 60 s",
    ]


def test_what_is_not_started_again_is_told_with_the_setting():
    records = Records()
    records.wish(0, "start", "boot")
    records.run(0)
    records.exit(2)
    records.state(2, "running", "failed", "exit code 3")
    assert tell(records, "failed", restart="no").endswith('  failed    not started again (restart = "no")')


def test_what_the_lifecycle_does_by_itself_has_its_reason_as_its_head():
    records = Records()
    records.wish(0, "start", "boot")
    records.run(0)
    records.state(2, "running", "stopping", "no WATCHDOG=1 for 2 s")
    records.exit(2.1, code=None, signal="SIGABRT")
    records.again(2.1)
    assert begins(records) == ["start", "state"]
    assert "12:00:02.000 (58s ago)  stopping: no WATCHDOG=1 for 2 s\n  exit      killed by SIGABRT, after" in tell(
        records, "backoff"
    )


def test_a_probe_is_shown_by_what_it_changes():
    records = Records()
    records.wish(0, "start", "boot")
    records.run(0)
    records.say(1, "probe", probe="readiness", passes=True, message="HTTP 200", in_a_row=1, took_sec=0.1)
    records.state(1, "running", "ready", "started by boot")
    records.say(2, "probe", probe="liveness", passes=False, message="HTTP 503", in_a_row=3, took_sec=0.1)
    records.state(2, "ready", "stopping", "liveness probe failed 3 times: HTTP 503")
    records.exit(2.1, code=0)
    assert begins(records) == ["start", "state"]
    assert "12:00:02.000 (58s ago)  stopping: liveness probe failed 3 times: HTTP 503\n  exit      exit code 0" in tell(
        records, "backoff"
    )


def test_a_stop_that_somebody_asked_for():
    records = Records()
    records.wish(0, "start", "boot")
    records.run(0)
    records.wish(5, "stop")
    records.state(5, "running", "stopping", "stopped by operator")
    records.exit(5.25, code=None, signal="SIGTERM")
    records.state(5.25, "stopping", "stopped", "stopped by operator")
    told = tell(records, "stopped")
    assert "it has never failed" in told
    assert told.endswith(
        "12:00:05.000 (55s ago)  stop by operator\n"
        "  exit      killed by SIGTERM, after 5.2 s (generation 1, pid 4711)\n"
        "  stopped   after 0.25 s"
    )


def test_what_a_program_says_of_its_readiness_belongs_to_its_start():
    records = Records()
    records.wish(0, "start", "boot")
    records.run(0)
    records.rule(1, "log")
    records.state(2, "running", "ready", "started by boot")
    assert begins(records) == ["start", "log"]
    assert "  ready     12:00:02.000\n" in tell(records, "ready")


def test_a_rule_that_only_logs_interrupts_nothing_and_repetitions_are_counted():
    records = Records()
    records.wish(0, "start", "boot")
    records.state(0, "stopped", "starting", "started by boot")
    for at in range(1, 58):
        records.rule(at, "log")
    records.say(58, "started", pid=4711)
    records.state(58, "starting", "running", "started by boot")
    records.wish(59, "set", before={"pids_max": 8}, after={"pids_max": 9})
    assert begins(records) == ["start", "log", "set"]
    told = tell(records, "running", number=2)
    assert "12:00:57.000 (3s ago)  log by policy[0], site.toml line 14, 57 times since 12:00:01.000\n" in told
    assert told.endswith("12:00:59.000 (1s ago)  set pids_max 8 → 9 by operator")


def test_a_dry_run_says_that_nothing_was_done():
    records = Records()
    records.rule(0, "kill", dry_run=True)
    assert "kill (dry run: not done) by policy[0], site.toml line 14\n  when " in tell(records, "running")


def test_a_last_wish_begins_anew_whatever_was_under_way():
    records = Records()
    records.wish(0, "start", "boot")
    records.run(0)
    records.exit(1)
    records.again(1)
    records.wish(1.05, "start")
    records.run(1.05, "backoff", "started by operator")
    assert begins(records) == ["start", "exited", "start"]


def test_what_is_forgotten_is_told():
    records = Records()
    records.wish(0, "set", before={"pids_max": 8}, after={"pids_max": 9})
    told = tell(records, "running", forgotten=1)
    assert "1 older record: in the log only\n" in told
    assert "never failed" not in told


def test_names_and_messages_cannot_drive_the_terminal():
    records = Records()
    records.say(0, "warning", "warning", message="\x1b[2J")
    assert "\x1b" not in tell(records, "running", reason="\x1b[2J")


def test_colours_change_nothing_else():
    import re

    records = Records()
    records.wish(0, "start", "boot")
    records.run(0)
    records.rule(1, "log")
    one = {"name": "web", "state": "running", "reason": "r", "generation": 1, "restarts": 0, "config": "site.toml"}
    one |= {"restart": "no", "since": 0, "forgotten": 0, "records": records.found}
    plain, coloured = ("\n".join(Renderer(one, ZERO, colour).render(5)) for colour in (False, True))
    assert coloured != plain
    assert re.sub(r"\033\[\d+m", "", coloured) == plain


STEPS = ["start", "stop", "restart", "log", "set", "signal", "run", "exit", "again", "failed", "stopping", "warning"]


@pytest.mark.filterwarnings("error")
@given(st.lists(st.sampled_from(STEPS), max_size=30), st.integers(1, 6))
def test_any_sequence_can_be_told_and_no_record_is_lost(steps, number):
    """Records may have been forgotten anywhere, so nothing may be taken for granted."""
    records = Records()
    for at, step in enumerate(steps):
        match step:
            case "start" | "stop":
                records.wish(at, step)
            case "restart" | "log" | "signal":
                records.rule(at, step)
            case "set":
                records.wish(at, "set", before={}, after={"pids_max": 3})
            case "run":
                records.run(at)
            case "exit":
                records.exit(at)
            case "again":
                records.again(at)
            case "failed" | "stopping":
                records.state(at, "running", step, "why")
            case "warning":
                records.say(at, "warning", "warning", message="look")
    found = group_episodes(records.found)
    assert sorted(map(id, records.found)) == sorted(id(record) for episode in found for record in episode)
    assert all(found)
    assert tell(records, "running", number)


@pytest.mark.fault("D12")
def test_an_exit_after_a_start_of_what_runs_was_filed_under_the_start():
    records = Records()
    records.wish(1, "start", "boot")
    records.run(1)
    records.wish(10, "start")
    records.exit(20, code=None, signal="SIGKILL")
    records.again(20, "killed by SIGKILL")
    assert begins(records) == ["start", "start", "exited"]
    assert tell(records, "backoff").split("\n\n")[2:] == [
        "12:00:10.000 (50s ago)  start by operator",
        "12:00:20.000 (40s ago)  killed by SIGKILL\n"
        "  program   generation 1, pid 4711, ran for 19 s\n"
        '  restart   in 0.1 s, start 2 of 5 within 60 s (restart = "on-failure")',
    ]


@pytest.mark.fault("D12")
@pytest.mark.parametrize("command", ["stop", "restart", "kill"])
def test_an_exit_after_a_command_that_ends_it_belongs_to_the_command(command):
    records = Records()
    records.run(1)
    records.wish(10, command)
    records.exit(11, code=None, signal="SIGTERM")
    assert begins(records) == ["state", command]


@pytest.mark.fault("D12")
def test_after_a_takeover_it_was_not_known_how_long_a_program_had_run():
    records = Records()
    records.generation = 3
    records.say(
        20, "exited", "info", pid=7, code=3, signal=None, core_dumped=False, oom_killed=False, uptime_sec=3723.5
    )
    assert "  program   generation 3, pid 7, ran for 1h 2min" in tell(records, "failed")


@pytest.mark.fault("D15")
def test_the_status_text_of_the_program_was_not_shown():
    records = Records()
    records.run(1)
    assert tell(records, "ready", status_text="3 requests a second").splitlines()[1] == (
        'the program reports "3 requests a second"'
    )


def test_a_refused_system_call_that_ended_the_program_is_explained():
    records = Records()
    records.wish(1, "start", "boot")
    records.run(1)
    records.exit(20, code=None, signal="SIGSYS")
    records.again(20, "killed by SIGSYS")
    text = tell(records, "backoff")
    assert "  hint      SIGSYS: a filter of system calls ended it, by default only for a call of another" in text
    assert 'seccomp = "log" reports calls and refuses none' in text


def test_the_refused_call_is_named_if_the_kernel_has_it():
    records = Records()
    records.run(1)
    records.exit(20, code=None, signal="SIGSYS")
    records.again(20, "killed by SIGSYS")
    asked = []

    def find_call(pid, since, until):
        asked.append((pid, (since - ZERO).total_seconds(), (until - ZERO).total_seconds()))
        return "acct"

    text = tell(records, "backoff", find_call=find_call)
    assert "hint      SIGSYS: its filter of system calls refused acct. In the table security" in text
    assert asked == [(4711, 1.01, 20.0)]


def test_a_program_that_was_not_permitted_something_gets_a_hint_about_its_profile():
    records = Records()
    records.run(1)
    records.exit(20)
    records.again(20)
    lines = [{"event": "output", "generation": 1, "message": "unshare: unshare failed: Operation not permitted"}]
    assert "hint      it may lack a capability, or a filter" in tell(records, "backoff", output=lines)
    lines[0]["message"] = "no such file"
    assert "hint" not in tell(records, "backoff", output=lines)
