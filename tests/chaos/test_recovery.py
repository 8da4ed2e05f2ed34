"""kill -9 to our own two processes, to either and to both: the workloads do not notice."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from nsupervisor.api.client import Client, ClientError
from nsupervisor.linux.processes import parent_pid
from tests.chaos import observe
from tests.chaos.service import BrokenError, Run, Site, demand, few_descriptors, over, running, site, until
from tests.needs import ROOT, cgroup_directories, needs
from tests.timing import deadline

pytestmark = [pytest.mark.slow, needs("root", "cgroup")]

NAMES = ("web", "family")
TOML = """
[workload.web]
command = ["sleep", "100000"]
[workload.family]
command = ["sh", "-c", "sleep 100000 & (sleep 100000 & exec sleep 100000) & wait"]
[workload.family.namespaces]
pid = false
"""
FAMILY = 4
"""Processes of `family`."""


def lives(run: Run) -> dict[str, tuple[int, int, int]]:
    """Of each workload the pid, the generation and the number of restarts, once all run."""

    def ask() -> dict[str, tuple[int, int, int]] | None:
        status = run.status()
        if {one["state"] for one in status} != {"running"} or len(members(run, "family")) < FAMILY:
            return None
        return {one["name"]: (one["pid"], one["generation"], one["restarts"]) for one in status}

    return until("all run", ask)


def members(run: Run, name: str) -> set[int]:
    return {process.pid for process in run.processes() if process.workload == name and not process.dead}


def kill_keeper(run: Run) -> None:
    os.kill(run.keeper_pid, signal.SIGKILL)


def survives(strike: Callable[[Run], object], again: bool) -> None:
    """The workloads have the same processes, the same generations and no restart after ``strike``."""
    with site(TOML) as where, running(where) as first:
        before = lives(first)
        strike(first)
        if again:
            first.wait()
            first.close()
            with running(where) as second:
                demand(changed(before, lives(second)))
                assert second.matching(event="taken over", workloads=len(NAMES))
                second.stop()
                over(second)
        else:
            until("a new keeper, or the end", lambda: first.process.poll() is not None or has_new_keeper(first))
            if first.process.poll() is not None:
                raise BrokenError(f"answers: the service has ended, status {first.process.returncode}")
            demand(changed(before, lives(first)))
            first.stop()
            over(first)


def has_new_keeper(run: Run) -> bool:
    try:
        return bool(run.client.info()["keeper_pid"] != run.keeper_pid)
    except ClientError:  # it is just ending
        return False


def changed(before: dict[str, tuple[int, int, int]], after: dict[str, tuple[int, int, int]]) -> list[str]:
    return [f"survives: {name} was {before[name]}, is {now}" for name, now in after.items() if now != before[name]]


def kill_both(run: Run) -> None:
    run.signal(signal.SIGKILL)
    run.wait()
    kill_keeper(run)
    until("the keeper is gone", lambda: run.keeper_pid not in {p.pid for p in run.processes() if not p.dead})


def test_workloads_survive_a_killed_supervisor():
    survives(lambda run: run.signal(signal.SIGKILL), again=True)


def test_workloads_survive_a_killed_keeper():
    survives(kill_keeper, again=False)


def test_workloads_survive_the_death_of_both():
    survives(kill_both, again=True)


GAP = """
[workload.meal]
command = ["sh", "-c", "read go < {directory}/meal; exec python3 -c 'bytearray(64 << 20)'"]
restart = "no"
[workload.meal.resources]
memory_max = "32M"
[[workload.meal.policy]]
when = "memory.events oom_kill"
action = "restart"
[workload.broken]
command = ["sh", "-c", "read go < {directory}/broken; exit 3"]
restart = "no"
[workload.quiet]
command = ["sleep", "100000"]
"""


@needs("memory")
@pytest.mark.parametrize("both", [False, True], ids=["once", "after the keeper"])
def test_what_happens_in_the_gap_is_handled_once_with_the_exact_status(both: bool):
    """An OOM kill leads to its rule's action, with the counter before and after; an operator's stop stays one."""
    with site(GAP) as where:
        where.config.write_text(where.config.read_text().replace("{directory}", str(where.directory)))
        for name in ("meal", "broken"):
            os.mkfifo(where.directory / name)
        with running(where) as first:
            until("all run", lambda: {one["state"] for one in first.status()} == {"running"})
            first.tell("stop", "quiet")
            if both:
                kill_keeper(first)
                until("a new keeper", lambda: has_new_keeper(first))
            first.signal(signal.SIGKILL)
            first.wait()
            for name in ("meal", "broken"):
                (where.directory / name).write_text("go\n")
            until("both have ended", lambda: not [p for p in first.processes() if p.workload and not p.dead])
            first.close()
            with running(where) as second:
                exited = second.record(event="exited", workload="broken")
                assert (exited["code"], exited["generation"]) == (3, 1)
                cause = second.record(event="action", workload="meal", action="restart")["cause"]
                assert (cause["key"], cause["before"], cause["after"]) == ("oom_kill", 0, 1)
                assert second.record(event="exited", workload="meal")["oom_killed"]
                until("meal runs again", lambda: second.one("meal")["generation"] == 2)
                assert second.one("quiet")["reason"] == "stopped by operator"
                assert second.one("broken")["state"] == "failed"
                fired = [r for r in second.matching(event="action", workload="meal") if "rule" in r["cause"]]
                assert len(fired) == 1
                second.stop()
                over(second)


def spoil(where: Site, how: str) -> None:
    path = where.runtime / "state.json"
    data = path.read_bytes()
    path.write_bytes({"torn": data[:-20], "empty": b"", "foreign": b"{}\n", "old": data.replace(b"1", b"0", 1)}[how])


SUPERVISOR, BOTH = "supervisor", "both"


@pytest.mark.parametrize(
    ("how", "whom"), [("torn", SUPERVISOR), ("empty", BOTH), ("foreign", SUPERVISOR), ("old", BOTH)]
)
def test_a_spoilt_state_file_is_kept_aside_and_the_kernel_believed(how: str, whom: str):
    with site(TOML) as where, running(where) as first:
        before = lives(first)
        if whom == BOTH:
            kill_both(first)
        else:
            first.signal(signal.SIGKILL)
            first.wait()
        first.close()
        spoil(where, how)
        with running(where) as second:
            assert {name: one[:2] for name, one in lives(second).items()} == {n: one[:2] for n, one in before.items()}
            said = second.record(event="state file set aside", level="error")["message"]
            assert "it is kept as state.json.bad-1" in said
            (where.runtime / "state.json.bad-1").unlink()
            second.stop()
            over(second)


def test_what_the_configuration_no_longer_has_is_stopped_in_order_and_said():
    with site(TOML) as where, running(where) as first:
        before = lives(first)
        first.signal(signal.SIGKILL)
        first.wait()
        first.close()
        where.config.write_text(where.config.read_text().partition("[workload.family]")[0])
        with running(where) as second:
            gone = second.record(event="exited", workload="family")
            assert (gone["signal"], gone["generation"]) == ("SIGTERM", 1)
            assert second.matching(event="warning", workload="family")
            until("its cgroup is gone", lambda: not members(second, "family"))
            assert second.one("web")["pid"] == before["web"][0]
            second.stop()
            over(second)


ORPHANS = """
[workload.web]
command = ["sleep", "100000"]
"""


def test_after_a_take_over_a_plan_compares_with_what_runs():
    """It compared with the file that was read at the take-over, and left alone what had been started with another."""
    with site(TOML) as where, running(where) as first:
        lives(first)
        text = where.config.read_text()
        first.signal(signal.SIGKILL)
        first.wait()
        first.close()
        changed_file = text.replace('command = ["sleep", "100000"]', 'command = ["sleep", "200000"]', 1)
        where.config.write_text(changed_file)
        with running(where) as second:
            web = lives(second)["web"]
            until("it is said", lambda: second.matching(event="warning", workload="web"))

            def planned(toml: str) -> dict[str, str]:
                found = second.client.plan({"path": str(where.config), "text": toml})
                return {step["name"]: step["do"] for step in found["steps"]}

            assert planned(changed_file) == {"web": "restart", "family": "none"}
            assert planned(text) == {"web": "live", "family": "none"}  # what it runs with
            for _ in second.client.reload({"path": str(where.config), "text": changed_file}):
                pass
            assert lives(second)["web"] != web
            assert planned(changed_file) == {"web": "none", "family": "none"}
            second.stop()
            over(second)


@pytest.mark.parametrize("policy", ["adopt", "kill", "leave"])
def test_orphans_are_dealt_with_as_the_configuration_says(policy: str):
    with site(ORPHANS) as where, running(where) as first:
        pid = first.program("web")
        kill_both(first)
        first.close()
        (where.runtime / "state.json").unlink()
        where.config.write_text(where.config.read_text().replace("[supervisor]", f'[supervisor]\norphans = "{policy}"'))
        with running(where) as second:
            said = second.record(event="orphans", workload="web")
            assert said["pids"] == [pid]
            if policy == "leave":
                second.record(event="not started", workload="web")
                os.kill(pid, signal.SIGKILL)
                second.tell("start", "web")
            assert (second.program("web") == pid) is (policy == "adopt")
            second.stop()
            over(second)


def test_a_changed_limit_is_still_in_force_after_a_take_over():
    with site(TOML) as where, running(where) as first:
        lives(first)
        first.tell("set", "web", resources={"pids_max": 77})
        first.signal(signal.SIGKILL)
        first.wait()
        first.close()
        with running(where) as second:
            assert second.one("web")["pids_max"] == 77
            second.stop()
            over(second)


GROUP = """
[group.batch]
pids_max = 50
[[group.batch.policy]]
when = "pids.current >= 3"
action = "log"
cooldown = "10min"
[workload.one]
command = ["sh", "-c", "sleep 100000 & sleep 100000 & wait"]
group = "batch"
"""


@needs("pids")
def test_a_groups_changed_limits_and_the_cooldown_of_its_rules_go_on():
    with site(GROUP) as where, running(where) as first:
        first.record(event="action", group="group/batch", action="log")
        first.tell("set", "group/batch", resources={"pids_max": 40})
        first.signal(signal.SIGKILL)
        first.wait()
        first.close()
        with running(where) as second:
            second.record(event="taken over")
            (group,) = second.client.groups()
            assert group["pids_max"] == 40
            second.tell("set", "one", resources={"pids_max": 30})  # it has been looked at once more by then
            assert not second.matching(event="action", group="group/batch", action="log")
            second.stop()
            over(second)


def test_limits_that_somebody_else_has_changed_in_the_gap_are_set_again():
    with site(TOML + "[workload.web.resources]\npids_max = 77\n") as where, running(where) as first:
        lives(first)
        first.signal(signal.SIGKILL)
        first.wait()
        first.close()
        limit = next(
            path for own in cgroup_directories().values() if (path := own / where.name / "web/pids.max").exists()
        )
        assert limit.read_text() == "77\n"
        limit.write_text("max")
        with running(where) as second:
            until("it is set again", lambda: limit.read_text() == "77\n")
            second.stop()
            over(second)


def test_another_runtime_directory_with_the_same_name_is_refused_while_it_runs():
    with site(TOML) as where, running(where) as first:
        before = lives(first)
        other = where.directory / "other.toml"
        other.write_text(where.config.read_text().replace(str(where.runtime), str(where.directory / "other")))
        command = [sys.executable, "-m", "nsupervisor", "run", str(other)]
        second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=deadline(30))
        assert second.returncode == 1
        assert f"{where.name} is in use by another supervisor" in second.stderr
        assert lives(first) == before
        first.stop()
        over(first)


READY = """
[workload.slow]
command = ["python3", "-S", "-c", {script}]
type = "notify"
timeout_start_sec = "5min"
"""
SAYS_READY = """
import os, socket, time
open({fifo!r}).read()
socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
open({said!r}, "w").close()
time.sleep(100000)
"""


def test_what_a_program_says_in_the_gap_is_heard_afterwards():
    """The keeper lives, and so does the socket."""
    with site("") as where:
        fifo, said = str(where.directory / "fifo"), str(where.directory / "said")
        os.mkfifo(fifo)
        toml = READY.format(script=json.dumps(SAYS_READY.format(fifo=fifo, said=said)))
        mark = f'environment = {{ {observe.MARK} = "{where.mark}" }}\n'
        where.config.write_text(where.config.read_text() + toml + mark)
        with running(where) as first:
            until("it starts", lambda: first.one("slow")["pid"])
            first.record(event="started", workload="slow")
            first.signal(signal.SIGKILL)
            first.wait()
            first.close()
            Path(fifo).write_text("go")
            until("it has said so", lambda: os.path.exists(said))
            with running(where) as second:
                until("it is heard", lambda: second.one("slow")["state"] == "ready")
                assert second.one("slow")["generation"] == 1
                second.stop()
                over(second)


def test_a_state_file_that_cannot_be_written_is_said_once_and_so_is_that_it_can_again():
    with site(TOML) as where:
        obstacle = where.runtime / "state.new"
        obstacle.mkdir(parents=True)
        with running(where) as run:
            said = run.record(event="state file not written", level="error")["message"]
            assert f"cannot write {where.runtime}/state.json" in said
            lives(run)
            run.tell("restart", "web")
            obstacle.rmdir()
            run.tell("restart", "web")
            run.record(event="state file written")
            assert len(run.matching(event="state file not written")) == 1
            run.stop()
            over(run)


def test_the_start_limit_goes_on_counting():
    toml = """
[workload.fails]
command = ["false"]
restart = "always"
restart_sec = "10s"
start_limit_burst = 2
start_limit_interval_sec = "10min"
"""
    with site(toml) as where, running(where) as first:
        until("it waits", lambda: first.one("fails")["state"] == "backoff")
        first.signal(signal.SIGKILL)
        first.wait()
        first.close()
        with running(where) as second:
            one = second.one("fails")
            assert (one["state"], one["generation"], one["restarts"]) == ("backoff", 1, 0)
            given_up = second.record(event="state", workload="fails", to="failed")
            assert "2 starts within 600 s" in given_up["reason"]
            second.stop()
            over(second)


def test_that_something_changed_is_seen():
    assert changed({"web": (1, 1, 0)}, {"web": (1, 1, 0)}) == []
    assert changed({"web": (1, 1, 0)}, {"web": (2, 1, 0)})


def test_a_supervisor_that_supervises_itself_comes_back_and_ends_when_told(tmp_path):
    with site(TOML) as where:
        command = [sys.executable, "-m", "nsupervisor", "run", "--supervise-self", str(where.config)]
        environment = {**os.environ, observe.MARK: where.mark}
        client = Client(str(where.runtime / "api.sock"))

        def all_run() -> dict[str, int] | None:
            try:
                return {one["name"]: one["pid"] for one in client.status() if one["state"] == "running"}
            except ClientError:
                return None

        def another(than: int) -> int | None:
            try:
                return pid if (pid := client.info()["pid"]) != than else None
            except ClientError:
                return None

        with (tmp_path / "stderr").open("wb") as stderr, (tmp_path / "stdout").open("wb") as stdout:
            parent = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=stdout, stderr=stderr)
        try:
            until("all run", lambda: len(all_run() or ()) == len(NAMES))
            before, pid = all_run(), client.info()["pid"]
            for _ in range(2):
                os.kill(pid, signal.SIGKILL)
                pid = until("another supervisor", lambda pid=pid: another(pid))
                assert all_run() == before
            text = where.config.read_text()
            where.config.write_text("mistake")  # it ended for good then, and left the programs to nobody
            os.kill(pid, signal.SIGKILL)
            until("that is said", lambda: "supervisor failed" in (tmp_path / "stderr").read_text())
            where.config.write_text(text)
            until("another supervisor", lambda: another(pid))
            assert all_run() == before
            parent.terminate()
            assert parent.wait(deadline(20)) == 0
        finally:
            parent.kill()
            parent.wait()
        lines = (tmp_path / "stderr").read_text().splitlines()
        said = [json.loads(line) for line in lines if line.startswith("{")]
        assert [(one["event"], one["signal"]) for one in said[:3]] == [("supervisor killed", "SIGKILL")] * 3
        assert {(one["event"], one["code"]) for one in said[3:]} == {("supervisor failed", 2)}
        where.demand_nothing_left()


def test_a_new_keeper_without_descriptors_learns_how_a_program_of_the_old_one_ended():
    with site(TOML) as where, running(where) as run:
        pid = lives(run)["web"][0]
        kill_keeper(run)
        until("a new keeper", lambda: has_new_keeper(run))
        lives(run)  # so it has adopted both
        keeper, init = run.client.info()["keeper_pid"], parent_pid(pid)
        os.kill(init, signal.SIGSTOP)  # it does not reap the program, so that how it ended is in a file of /proc
        with few_descriptors(keeper, 0):
            os.kill(pid, signal.SIGKILL)
            ended = run.record(event="exited", workload="web", generation=1)
        os.kill(init, signal.SIGCONT)
        assert (ended["signal"], ended["pid"]) == ("SIGKILL", pid)
        until("it runs again", lambda: run.status()[0]["state"] == "running")
        assert run.client.info()["keeper_pid"] == keeper
        run.stop()
        over(run)
