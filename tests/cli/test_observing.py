"""`why`, `events`, `stats` and `top` as processes, against the real API of a service in memory."""

import json
import os
import signal
import subprocess
import sys

import pytest

from tests.cli.command import nsupervisor
from tests.needs import ROOT
from tests.timing import deadline

COMMANDS = {"why": ["web"], "events": [], "stats": ["--interval", "10ms"], "top": ["--interval", "10ms"]}


def test_events_are_one_line_each(supervisor):
    done = nsupervisor("events", socket=supervisor, TZ="UTC")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "2026-01-31 12:00:00.000  web@1       warning      one",
        "2026-01-31 12:00:00.000  db          warning      two",
        "2026-01-31 12:00:00.000  -           warning      three",
    ]


def test_events_by_name_and_kind(supervisor):
    assert nsupervisor("events", "db", socket=supervisor).stdout.endswith("  two\n")
    assert nsupervisor("events", "--event", "action", "--event", "exited", socket=supervisor).stdout == ""


def test_events_by_action_and_level(supervisor):
    assert nsupervisor("events", "--action", "restart", socket=supervisor).stdout == ""
    assert nsupervisor("events", "--level", "error", socket=supervisor).stdout == ""
    assert nsupervisor("events", "--level", "info", "db", socket=supervisor).stdout.endswith("  two\n")


def test_stats_are_sorted(supervisor):
    done = nsupervisor("stats", "--interval", "10ms", "--sort", "name", "--json", socket=supervisor)
    assert [one["name"] for one in json.loads(done.stdout)] == ["batch", "db", "web@1", "web@2"]


def test_events_as_json_are_lines(supervisor):
    done = nsupervisor("events", "--json", "web", "db", socket=supervisor)
    assert [json.loads(line)["message"] for line in done.stdout.splitlines()] == ["one", "two"]


def test_following_shows_each_record_at_once_until_ctrl_c(supervisor):
    environment = {**os.environ, "NSUPERVISOR_SOCKET": str(supervisor)}
    command = [sys.executable, "-m", "nsupervisor", "events", "-f", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, env=environment)
    assert [json.loads(process.stdout.readline())["message"] for _ in range(3)] == ["one", "two", "three"]
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=deadline(30)) == (b"", b"")
    assert process.returncode == 130


def test_the_last_events_are_those_that_are_selected(supervisor):
    def shown(*arguments):
        lines = nsupervisor("events", "--json", *arguments, socket=supervisor).stdout.splitlines()
        return [json.loads(line)["message"] for line in lines]

    assert [shown("-n", str(number)) for number in (0, 1, 2, 9)] == [
        [],
        ["three"],
        ["two", "three"],
        ["one", "two", "three"],
    ]
    assert shown("-n", "1", "--level", "info", "web", "db") == ["two"]


def test_following_the_last_events_has_neither_a_gap_nor_a_duplicate(supervisor):
    environment = {**os.environ, "NSUPERVISOR_SOCKET": str(supervisor)}
    command = [sys.executable, "-m", "nsupervisor", "events", "-f", "-n", "2", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, env=environment) as process:
        assert [json.loads(process.stdout.readline())["message"] for _ in range(2)] == ["two", "three"]
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=deadline(30))[0] == b""


def test_why_tells_of_each_instance(supervisor):
    done = nsupervisor("why", "web", socket=supervisor)
    assert (done.returncode, done.stderr) == (0, "")
    first, second = done.stdout.split("\n\nweb@2: ")
    assert first.startswith("web@1: ready\n1 start\n\n")
    assert first.endswith("warning: one")
    assert second == "running\nit has never failed\n"


def test_why_as_json_has_the_episodes(supervisor):
    found = json.loads(nsupervisor("why", "web", "--json", socket=supervisor).stdout)
    assert [one["name"] for one in found] == ["web@1", "web@2"]
    assert [[[record["message"] for record in e] for e in one["episodes"]] for one in found] == [[["one"]], []]
    assert found[0]["config"] == "/etc/nsupervisor.toml"
    assert "records" not in found[0]


@pytest.mark.parametrize("command", ["stats", "top"])
def test_use_is_a_table(supervisor, command):
    done = nsupervisor(command, "--interval", "10ms", "web@1", "batch", socket=supervisor)
    assert (done.returncode, done.stderr) == (0, "")
    left, right = zip(*((line[:53], line[53:]) for line in done.stdout.splitlines()), strict=True)
    assert left == (
        "NAME   STATE      CPU%     MEMORY  PIDS  THROTTLED%  ",
        "web@1  ready   25.0/50  12.3M/64M     3        20.0  ",
        "batch  failed  25.0/50          -     -        20.0  ",
    )
    assert right == (
        "READ/S  WRITE/S  RECEIVE/S  SEND/S  CPU-WAIT%  MEM-WAIT%  IO-WAIT%",
        "     -       2K          -       -        1.0        0.0         -",
        "     -       2K          -       -        1.0        0.0         -",
    )


def test_use_as_json(supervisor):
    (one,) = json.loads(nsupervisor("stats", "--json", "--interval", "10ms", "db", socket=supervisor).stdout)
    assert (one["name"], one["cpu_percent"], one["interval_sec"], one["io_read_bytes_per_sec"]) == ("db", 25, 1, None)


@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_following_use(supervisor, as_json):
    environment = {**os.environ, "NSUPERVISOR_SOCKET": str(supervisor)}
    command = [sys.executable, "-m", "nsupervisor", "stats", "--follow", "--interval", "10ms", *as_json, "db"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, env=environment)
    lines = [process.stdout.readline().decode() for _ in range(5)]
    if as_json:
        assert [json.loads(line)[0]["cpu_percent"] for line in lines] == [25] * 5
    else:
        assert [line.split(" ")[0].rstrip() for line in lines] == ["NAME", "db", "", "NAME", "db"]
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=deadline(30))[1] == b""
    assert process.returncode == 130


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["why", "wbe"], 'no workload matches "wbe"; did you mean "web"?'),
        (["events", "wbe"], 'no workload matches "wbe"; did you mean "web"?'),
        (["stats", "wbe"], 'no workload matches "wbe"; did you mean "web"?'),
        (["top", "wbe"], 'no workload matches "wbe"; did you mean "web"?'),
        (["why"], "Missing argument"),
        (["why", "-n", "0", "web"], "0 is not in the range"),
        (["stats", "--interval", "soon"], '"soon" is not a time from 10ms to 1440min; write for example "1s"'),
        (["stats", "--interval", "0"], '"0" is not a time'),
        (["top", "--interval", "2d"], '"2d" is not a time'),
    ],
)
def test_wrong_usage_is_2(supervisor, arguments, message):
    done = nsupervisor(*arguments, socket=supervisor)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_no_supervisor_is_3(tmp_path, command):
    done = nsupervisor(command, *COMMANDS[command], "--socket", str(tmp_path / "none.sock"))
    assert (done.returncode, done.stdout) == (3, "")
    assert "no supervisor answers on" in done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_a_broken_pipe_is_141_without_a_traceback(supervisor, command):
    readable, writable = os.pipe()
    os.close(readable)
    environment = {**os.environ, "NSUPERVISOR_SOCKET": str(supervisor)}
    arguments = [sys.executable, "-W", "error", "-m", "nsupervisor", command, *COMMANDS[command]]
    process = subprocess.Popen(arguments, stdout=writable, stderr=subprocess.PIPE, cwd=ROOT, env=environment)
    os.close(writable)
    assert process.communicate(timeout=deadline(30)) == (None, b"")
    assert process.returncode == 141
