"""A service of 0.1.0 becomes this version, and this one becomes 0.1.0: what runs does not notice.

0.1.0 is made from the history by scripts/setup, with the libraries that it needs.
"""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from nsupervisor.linux.processes import start_time
from tests.chaos.service import COMMAND, over, running, site, until
from tests.needs import ROOT, cgroup_directories, earlier_version, needs
from tests.timing import deadline

pytestmark = [pytest.mark.slow, needs("root", "cgroup", "pids", "history:0.1.0", "version:0.1.0")]

EARLIER = (str(earlier_version("0.1.0")), "-P", "-m", "nsupervisor")
STATES = {
    "plain": "running",
    "inside": "running",
    "member": "running",
    "says": "ready",
    "stopped": "stopped",
    "once": "exited",
    "fails": "failed",
}
TOML = """
[workload.plain]
command = ["sleep", "100000"]
restart = "no"
[workload.plain.namespaces]
pid = false
[workload.plain.resources]
pids_max = 50
[[workload.plain.policy]]
when = "pids.current > 40"
action = "log"

[workload.inside]
command = ["sleep", "100000"]

[workload.member]
command = ["sleep", "100000"]
group = "batch"
[group.batch]
pids_max = 100
[[group.batch.policy]]
when = "pids.current > 90"
action = "kill"
victim = "newest"

[workload.says]
type = "notify"
command = ["python3", "-S", "-E", "-c", '''
import os, signal, socket
said = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
said.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
signal.pause()
''']

[workload.stopped]
command = ["sleep", "100000"]

[workload.once]
command = ["true"]
type = "oneshot"

[workload.fails]
command = ["sh", "-c", "exit 3"]
restart = "no"
"""


def pids_max(run, name, above=0):
    """The limit that the kernel has for a workload's cgroup, or one `above` it."""
    tree = cgroup_directories().get("pids", cgroup_directories()[""]) / run.site.name
    cgroup = next(tree.rglob(f"{name}/pids.max"))
    return int((cgroup.parents[above] / "pids.max").read_text())


def everything(run):
    """What no change of the version may change."""
    keys = ("state", "reason", "generation", "restarts", "pid", "pids_max", "last_exit")
    status = {one["name"]: {key: one[key] for key in keys} for one in run.status()}
    started = {name: start_time(one["pid"]) for name, one in status.items() if one["pid"] is not None}
    groups = {one["name"]: one["pids_max"] for one in run.client.groups()}
    return status, started, groups, pids_max(run, "plain"), pids_max(run, "member", 1)


def has_come_up(run):
    until("all are as they are to be", lambda: {one["name"]: one["state"] for one in run.status()} == STATES)


def set_up(run):
    """Bring a new service to where there is most to lose."""
    wanted = {**STATES, "stopped": "running"}
    until("all are up", lambda: {one["name"]: one["state"] for one in run.status()} == wanted)
    done = [
        *run.tell("stop", "stopped"),
        *run.tell("set", "plain", resources={"pids_max": 60}),
        *run.tell("set", "group/batch", resources={"pids_max": 200}),
    ]
    assert all(one["ok"] for one in done), done
    before = everything(run)
    status, started, groups, plain, batch = before
    assert {name: one["state"] for name, one in status.items()} == STATES
    assert status["stopped"]["reason"] == "stopped by operator"
    assert started.keys() == {"plain", "inside", "member", "says"}
    assert (groups, plain, batch) == ({"group/batch": 200}, 60, 200)
    return before


def runs_from(pid, command):
    """Whether a process executes the version that a command belongs to."""
    line = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    if line[0] == b"nsupervisor: keeper":
        return command != EARLIER  # which gives its keeper no title
    home = Path(command[0]).parent.parent if command == EARLIER else ROOT
    here = [os.fsdecode(word) for word in line if word.startswith(b"/")]
    return any(word.startswith(f"{home}/lib") if command == EARLIER else word == str(home) for word in here)


def upgrade(run, command):
    """`nsupervisor upgrade` by a version; the supervisor and the keeper are that version, in the same processes."""
    info = run.client.info()
    done = subprocess.run(
        [*command, "upgrade", "--socket", str(run.site.runtime / "api.sock"), "--timeout", str(deadline(20))],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=deadline(90),
    )
    assert done.returncode == 0, done.stderr
    after = run.client.info()
    assert (after["pid"], after["keeper_pid"]) == (info["pid"], info["keeper_pid"])
    assert runs_from(after["pid"], command)
    assert runs_from(after["keeper_pid"], command)


def still_obeys(run):
    """What an operator had stopped starts again, and a limit that is set arrives."""
    assert run.tell("start", "stopped")[0]["ok"]
    until("it runs", lambda: run.one("stopped")["state"] == "running")
    assert run.tell("set", "plain", resources={"pids_max": 70})[0]["ok"]
    assert pids_max(run, "plain") == 70
    for name in ("plain", "inside"):
        assert run.tell("restart", name)[0]["ok"]
        until("it runs", lambda name=name: run.one(name)["state"] == "running")


def next_starts(run):
    """Return the differences of the next start that the plan lists for each running program, by name."""
    text = run.site.config.read_text()
    plan = run.client.plan({"path": str(run.site.config), "text": text})
    return {step["name"]: step["next_start"] for step in plan["steps"] if step["next_start"]}


@pytest.mark.parametrize("last", ["this version", "0.1.0"])
def test_a_service_of_0_1_0_becomes_this_version_and_back(last):
    with site(TOML) as where, running(where, command=EARLIER) as run:
        before = set_up(run)
        upgrade(run, COMMAND)
        has_come_up(run)
        assert everything(run) == before
        assert next_starts(run).keys() == {"plain", "inside", "member", "says"}
        assert any("READY=1" in change for change in next_starts(run)["says"])
        if last == "0.1.0":
            upgrade(run, EARLIER)
            has_come_up(run)
            assert everything(run) == before
        still_obeys(run)
        if last != "0.1.0":
            assert next_starts(run).keys() == {"member", "says"}, "still_obeys has started the others again"
        run.stop()
        over(run)


def kill(run):
    """Kill the supervisor, and a program in the meantime."""
    pid = run.program("plain")
    run.signal(signal.SIGKILL)
    run.wait()
    run.close()
    os.kill(pid, signal.SIGKILL)


def test_this_version_takes_over_what_a_killed_0_1_0_has_left_and_back():
    with site(TOML) as where, running(where, command=EARLIER) as first:
        status, started, *rest = set_up(first)
        kill(first)
        with running(where) as second:
            assert second.record(event="exited", workload="plain")["signal"] == "SIGKILL"
            until("it has failed", lambda: second.one("plain")["state"] == "failed")
            after, *others = everything(second)
            assert others == [{name: at for name, at in started.items() if name != "plain"}, *rest]
            assert {**after, "plain": None} == {**status, "plain": None}
            assert second.client.info()["keeper_pid"] == first.keeper_pid
            assert second.tell("start", "plain")[0]["ok"]
            status, started, *rest = everything(second)
            kill(second)
            with running(where, command=EARLIER) as third:
                assert third.record(event="exited", workload="plain")["signal"] == "SIGKILL"
                until("it has failed", lambda: third.one("plain")["state"] == "failed")
                after, *others = everything(third)
                assert others == [{name: at for name, at in started.items() if name != "plain"}, *rest]
                assert {**after, "plain": None} == {**status, "plain": None}
                assert third.client.info()["keeper_pid"] == first.keeper_pid
                third.stop()
                over(third)


def test_the_limit_of_the_profile_holds_from_the_next_start_of_a_program_that_0_1_0_has_started():
    with site(TOML) as where, running(where, command=EARLIER) as first:
        set_up(first)
        kill(first)
        with running(where) as second:
            assert second.one("inside")["pids_max"] is None
            assert list(second.client.reload({}))
            assert second.one("inside")["pids_max"] is None
            assert second.tell("restart", "inside")[0]["ok"]
            assert second.one("inside")["pids_max"] == 2048
            second.stop()
            over(second)


def test_the_command_line_of_an_earlier_version_speaks_to_this_one_and_the_other_way_round():
    for service, client in ((EARLIER, COMMAND), (COMMAND, EARLIER)):
        with site(TOML) as where, running(where, command=service) as run:
            has = {**STATES, "stopped": "running"}
            until("all are up", lambda run=run, has=has: {o["name"]: o["state"] for o in run.status()} == has)
            socket = str(where.runtime / "api.sock")
            for words in (["stop", "stopped"], ["start", "stopped"], ["status"]):
                done = subprocess.run(
                    [*client, words[0], "--socket", socket, *words[1:]], capture_output=True, text=True, cwd=ROOT
                )
                assert done.returncode == 0, done.stderr
            run.stop()
            over(run)
