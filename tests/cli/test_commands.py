"""The commands that talk to a supervisor: real processes, a real socket, the real server."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
from datetime import datetime

import pytest

from nsupervisor.api.routes import VERBS
from nsupervisor.cli.commands.status import format_details
from tests.cli.command import nsupervisor
from tests.needs import ROOT, needs
from tests.timing import deadline

CLIENT_COMMANDS = ["status", *VERBS]


def test_status_is_a_table(supervisor):
    done = nsupervisor("status", socket=supervisor)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "NAME   STATE     PID  UPTIME  RESTARTS     MEMORY  PIDS  DETAIL",
        "web@1  ready    4242   1d 2h         0  12.3M/64M     3",
        "web@2  running  4242   1d 2h         0  12.3M/64M     3",
        "db     running  4242   1d 2h         0  12.3M/64M     3",
        "batch  failed      -       -         4          -     -  5 starts in 60 s",
        "",
        "GROUP        MEMBERS    MEMORY  PIDS  STALLED  WHO",
        "group/night        2  12.3M/1G     3     0.0%  db, batch",
    ]


def test_status_of_a_group_is_its_own_and_its_members(supervisor):
    done = nsupervisor("status", "group/night", socket=supervisor)
    assert re.findall(r"^[a-z]\S+", done.stdout, re.MULTILINE) == ["group/night", "db", "batch"]
    assert "  memory      12.3M of 1G\n" in done.stdout
    found = json.loads(nsupervisor("status", "--json", "group/night", socket=supervisor).stdout)
    assert [one["name"] for one in found] == ["db", "batch"]
    (group,) = json.loads(nsupervisor("status", "--json", "--groups", socket=supervisor).stdout)
    assert group["members"] == ["db", "batch"]
    done = nsupervisor("status", "--groups", "group/nigth", socket=supervisor)
    assert (done.returncode, "did you mean" in done.stderr) == (2, True)


def test_set_of_a_group_sets_its_own_limits_and_a_verb_goes_to_its_members(supervisor):
    assert nsupervisor("set", "group/night", "memory_max=2G", socket=supervisor).stdout == "group/night: done\n"
    assert nsupervisor("stop", "group/night", socket=supervisor).stdout == "db: stopped\nbatch: stopped\n"


def test_status_of_names_shows_details(supervisor):
    done = nsupervisor("status", "batch", "web@2", socket=supervisor)
    assert done.returncode == 0
    assert re.findall(r"^[a-z]\S+", done.stdout, re.MULTILINE) == ["web@2", "batch"]
    assert "  last exit   killed by SIGKILL, out of memory\n" in done.stdout
    assert "  memory      12.3M of 64M\n  processes   3, no limit\n" in done.stdout


def test_status_of_some_states(supervisor):
    done = nsupervisor("status", "--state", "failed", "--state", "ready", socket=supervisor)
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["NAME", "web@1", "batch"]


def test_the_time_is_the_program_s_not_the_state_s(supervisor):
    """A program that had just been frozen was "frozen, for" as long as it had run."""
    (one, _) = json.loads(nsupervisor("status", "--json", "web", socket=supervisor).stdout)
    now = datetime(2026, 1, 31, 12, 0, 0).astimezone()
    history = {"records": [], "log": {"file": None, "files": {}}}
    running, frozen = (
        format_details({**one, "state": state, "uptime_sec": 4.0, "ready": False, **history}, False, now)
        for state in ("running", "frozen")
    )
    assert "state       running for 4s, since 11:59:56.000\n" in running
    assert "state       frozen; started 4s ago, at 11:59:56.000\n" in frozen


def test_status_as_json_is_the_api_s_answer(supervisor):
    found = json.loads(nsupervisor("status", "--json", "web", socket=supervisor).stdout)
    assert [one["name"] for one in found] == ["web@1", "web@2"]
    assert found[0]["memory_max"] == 64 << 20


@pytest.mark.parametrize(
    ("verb", "state"), [("start", "running"), ("stop", "stopped"), ("restart", "running"), ("freeze", "frozen")]
)
def test_verbs_say_the_state_they_led_to(supervisor, verb, state):
    done = nsupervisor(verb, "web", "db", socket=supervisor)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"web@1: {state}\nweb@2: {state}\ndb: {state}\n"


def test_what_failed_is_1_and_says_why_and_where_to_look(supervisor):
    assert nsupervisor("freeze", "web@1", socket=supervisor).returncode == 0
    done = nsupervisor("thaw", "web", socket=supervisor)
    assert done.returncode == 1
    assert done.stdout == "web@1: running\n"
    assert done.stderr == "web@2: thaw failed: it is not frozen; it is running; more with: nsupervisor status web@2\n"


def test_what_failed_is_1_with_json_too(supervisor):
    done = nsupervisor("thaw", "db", "--json", socket=supervisor)
    assert done.returncode == 1
    assert json.loads(done.stdout) == [
        {"name": "db", "ok": False, "state": "running", "message": "it is not frozen; it is running"}
    ]


@pytest.mark.parametrize("arguments", [["-s", "HUP"], ["-s", "1"], ["--signal", "SIGHUP"], []])
def test_signal(supervisor, arguments):
    done = nsupervisor("signal", *arguments, "db", socket=supervisor)
    assert (done.returncode, done.stdout, done.stderr) == (0, "db: running\n", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["status", "wbe"], 'no workload matches "wbe"; did you mean "web"?'),
        (["stop", "web", "x"], 'no workload matches "x"; nsupervisor status shows all names'),
        (["signal", "-s", "NONE", "db"], 'signal "NONE" is not a signal'),
        (["signal", "-s", "-1", "db"], "signal"),
        (["start"], "Missing argument"),
        (["status", "--jsno"], "No such option"),
        (["frobnicate"], 'there is no command "frobnicate"'),
        (["chekc"], 'there is no command "chekc", did you mean "check"?'),
        ([], "Usage: nsupervisor"),
        (["schema", "everything"], "is not one of"),
        (["set", "db"], "no key is given; write for example"),
        (["set", "pids_max=9"], "no workload is named; write for example"),
        (["set", "db", "io_max=[{"], "the value of io_max is not TOML: [{; write for example"),
        (["set", "db", "io_max=[1979-05-27]"], "is not TOML"),
        (["set", "db", "memory_max=64 bananas"], 'memory_max: "64 bananas" is not a size; write for example "64M"'),
        (["set", "db", "memory_mx=1"], 'memory_mx: is nothing that can be set; did you mean "memory_max"?'),
    ],
)
def test_wrong_usage_is_2(supervisor, arguments, message):
    done = nsupervisor(*arguments, socket=supervisor)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr


@pytest.mark.parametrize("command", CLIENT_COMMANDS)
def test_no_supervisor_is_3(tmp_path, command):
    names = {"set": ["web", "pids_max=9"], "reload": ["--workload", "web"]}.get(command, ["web"])
    done = nsupervisor(command, *names, "--socket", str(tmp_path / "none.sock"))
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == (
        f"no supervisor answers on {tmp_path}/none.sock; start one with: nsupervisor run CONFIG, "
        "or say which with --socket PATH\n"
    )


@needs("root")
def test_not_permitted_is_4(supervisor):
    for directory in (supervisor.parent, supervisor.parent.parent, supervisor.parent.parent.parent):
        directory.chmod(0o755)
    code = (
        "import os, sys; os.setuid(65534); sys.argv[0] = 'nsupervisor'; from nsupervisor.cli.main import main; main()"
    )
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import socket, struct, nsupervisor.cli.main, nsupervisor.cli.commands.status;" + code,
            "status",
        ],
        capture_output=True,
        text=True,
        timeout=deadline(30),
        cwd=ROOT,
        env={**os.environ, "NSUPERVISOR_SOCKET": str(supervisor)},
    )
    assert (done.returncode, done.stdout) == (4, "")
    assert "user 65534 may not use" in done.stderr


def start(*arguments, socket, **more):
    command = [sys.executable, "-m", "nsupervisor", *arguments]
    environment = {**os.environ, "NSUPERVISOR_SOCKET": str(socket)}
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment, **more)


def test_ctrl_c_is_130_without_a_traceback(tmp_path):
    import socket

    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "api.sock"))
        silent.listen()
        process = start("stop", "web", socket=tmp_path / "api.sock", stdout=subprocess.PIPE)
        connection, _ = silent.accept()  # now it waits for an answer
        with connection:
            connection.recv(65536)
            process.send_signal(signal.SIGINT)
            assert process.communicate(timeout=deadline(30)) == ("", "")
    assert process.returncode == 130


@pytest.mark.parametrize("arguments", [["status"], ["status", "--json"], ["schema", "config"], ["doctor"], ["version"]])
def test_a_broken_pipe_is_141_without_a_traceback(supervisor, arguments):
    readable, writable = os.pipe()
    os.close(readable)
    process = start(*arguments, socket=supervisor, stdout=writable)
    os.close(writable)
    assert process.communicate(timeout=deadline(30))[1] == ""
    assert process.returncode == 141


def test_a_full_disk_is_told(supervisor):
    with open("/dev/full", "w") as full:
        process = start("status", socket=supervisor, stdout=full)
        said = process.communicate(timeout=deadline(30))[1]
    assert (process.returncode, said) == (1, "cannot write the output: No space left on device\n")


@pytest.mark.parametrize(
    ("environment", "expected"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)]
)
def test_colour_is_for_terminals_only(supervisor, environment, expected):
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", **environment, "NSUPERVISOR_SOCKET": str(supervisor)}
    command = [sys.executable, "-m", "nsupervisor", "status"]
    process = subprocess.Popen(command, stdout=theirs, cwd=ROOT, env=environment)
    os.close(theirs)
    said = b""
    while select.select([ours], [], [], deadline(30))[0]:
        try:
            said += os.read(ours, 65536)
        except OSError:  # EIO: the other side is closed
            break
    os.close(ours)
    assert process.wait(deadline(30)) == 0
    assert (b"\033[31mfailed" in said) is expected
    assert b"failed" in said
