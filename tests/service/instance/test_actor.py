"""One workload instance in the service: its rules act, its limits change, its failures are contained."""

import signal

import pytest
import trio

from nsupervisor.config.changes import parse_changes
from nsupervisor.config.known_programs import DAEMONS
from tests.service.simulated import Client, make_site, serve, simulated, workload
from tests.simulation.machine import Behaviour

RESTARTS = ('restart = "always"', "restart_sec = 1")


def rule(when: str, action: str, *lines: str) -> str:
    return "\n".join(("[[workload.web.policy]]", f"when = '{when}'", f'action = "{action}"', *lines, ""))


def actions(service: Client, name: str = "web") -> list[tuple[str, bool]]:
    """Return the actions of rules that have been recorded, and whether each was a dry run."""
    records = service.records("action", name)
    return [(record["action"], record.get("dry_run", False)) for record in records if "rule" in record["cause"]]


def hit_limit(service: Client, file: str = "pids.events") -> None:
    """Let the program hit its limit of processes."""
    process = service.program("web")
    while service.machine.fork(process) is not None:
        pass


# ---- rules


@simulated(
    workload("web", "resources = { pids_max = 2 }", *RESTARTS)
    + rule("pids.events max", "signal", 'signal = "SIGUSR1"')
    + rule("pids.events max", "kill", "dry_run = true")
)
async def test_a_rule_sends_a_signal_and_a_dry_run_does_nothing(service: Client) -> None:
    await service.until("web", "running")
    received: list[int] = []
    service.machine.signal_listeners.append(lambda process, signum: received.append(signum))
    hit_limit(service)
    await service.until_true(lambda: len(actions(service)) == 2)
    assert sorted(actions(service)) == [("kill", True), ("signal", False)]
    assert received[0] == signal.SIGUSR1


@simulated(
    workload("web", "resources = { pids_max = 2 }", *RESTARTS)
    + rule("pids.events max", "set", 'set = { pids_max = "+2" }', "limit = { pids_max = 4 }", 'cooldown = "0s"')
)
async def test_a_rule_sets_a_limit_up_to_its_bound(service: Client) -> None:
    await service.until("web", "running")
    for limit in (4, 4):
        hit_limit(service)
        await service.until_true(lambda limit=limit: service.status("web")["pids_max"] == limit)
        await trio.sleep(1)
    assert service.machine.cgroups["/sim/sim/web"].limits["pids.max"] == "4"
    await service.until_true(lambda: "nothing is left to set: pids_max at its bound" in str(service.records("action")))


@simulated(
    workload("web", "resources = { pids_max = 2 }", *RESTARTS)
    + rule("pids.events max", "set", "set = { pids_max = 7 }", "dry_run = true")
)
async def test_a_dry_run_describes_the_limits_that_it_would_set(service: Client) -> None:
    await service.until("web", "running")
    hit_limit(service)
    await service.until_true(lambda: "pids_max would be 7" in str(service.records("action", "web")))
    assert service.status("web")["pids_max"] == 2


# ---- starts that fail


@simulated(workload("web", 'restart = "no"', 'environment_file = ["/no/such/file"]'))
async def test_a_start_without_its_environment_file_fails_with_the_reason(service: Client) -> None:
    await service.until("web", "failed")
    assert "/no/such/file" in service.status("web")["reason"]


@simulated(workload("web", 'restart = "no"', "autostart = false"))
async def test_a_start_that_the_keeper_refuses_fails_with_the_reason(service: Client) -> None:
    service.site.keepers.start().fail_spawns = 1
    answer = await service.command("start", "web")
    assert (answer["ok"], answer["state"]) == (False, "failed")
    assert "Too many open files" in answer["message"]
    assert (await service.command("start", "web"))["ok"]


@simulated(workload("web", 'restart = "no"', "autostart = false"))
async def test_a_start_into_a_cgroup_with_processes_of_others_is_refused(service: Client) -> None:
    stranger = service.machine.start_process(service.machine.cgroups["/sim/sim/web"], "x#1", Behaviour(), 1)
    answer = await service.command("start", "web")
    assert not answer["ok"]
    assert f"its cgroup /sim/sim/web is still populated (pids {stranger.pid}); end them first" in answer["message"]
    stranger.end(0)


@simulated(workload("web", "autostart = false", *RESTARTS))
async def test_a_keeper_that_dies_in_the_middle_of_a_start_starts_nothing_twice(service: Client) -> None:
    service.site.keepers.start().die_in_spawn = True
    answer = await service.command("start", "web")
    assert answer["ok"]
    assert len([process for process in service.machine.living() if process.id.startswith("web")]) == 1


# ---- ends


@simulated(workload("web", "timeout_stop_sec = 1", program="deaf"))
async def test_a_program_that_ignores_its_signal_is_killed_after_the_timeout(service: Client) -> None:
    await service.until("web", "running")
    began = trio.current_time()
    assert (await service.command("stop", "web"))["ok"]
    assert 1 <= trio.current_time() - began < 1.5
    assert service.status("web")["last_exit"]["signal"] == "SIGKILL"
    await service.command("start", "web")  # in a cgroup that is made again, since the old one was killed
    assert service.course() == ["execed web#1", "ends web#1", "execed web#2"]


@simulated(workload("web", "resources = { memory_max = '8M' }", *RESTARTS))
async def test_an_oom_kill_is_recorded_as_such(service: Client) -> None:
    await service.until("web", "running")
    process = service.program("web")
    process.cgroup.allocate(process, 32 << 20)
    await service.until("web", "backoff")
    assert service.status("web")["last_exit"]["oom_killed"]
    assert service.status("web")["next_start_sec"] > 0


# ---- limits


@simulated(
    workload("web", "resources = { memory_max = '50%' }", 'group = "batch"') + "[group.batch]\nmemory_max = '64M'\n"
)
async def test_a_percentage_follows_the_limit_of_the_group(service: Client) -> None:
    await service.until("web", "running")
    limits = service.machine.cgroups["/sim/sim/group.batch/web"].limits
    assert limits["memory.max"] == str(32 << 20)
    await service.supervisor.set_group("group/batch", parse_changes({"memory_max": "32M"}))
    assert limits["memory.max"] == str(16 << 20)
    service.machine.refused[service.machine.cgroups["/sim/sim/group.batch/web"], "memory.max"] = "max"
    answer = await service.supervisor.set_group("group/batch", parse_changes({"memory_max": "16M"}))
    assert answer["ok"]
    assert "memory.max" in answer["message"]


def test_limits_that_another_program_has_changed_are_restored_after_a_takeover() -> None:
    site = make_site(workload("web", "resources = { pids_max = 5 }"))

    async def client(service: Client) -> None:
        await service.until("web", "running")

    assert serve(site, client, stop=False) is None
    limits = site.machine.cgroups["/sim/sim/web"].limits
    limits["pids.max"] = "max"

    async def next_client(service: Client) -> None:
        await service.until_true(lambda: limits["pids.max"] == "5")

    assert serve(site, next_client) == 0


# ---- output


@simulated(workload("web", 'log = { stdout = "journal", stderr = "none" }', program="lines=3"))
async def test_the_output_of_a_program_is_in_the_stream(service: Client) -> None:
    await service.until_true(lambda: len(service.records("output", "web")) == 3)
    assert [record["message"] for record in service.records("output", "web")] == ["count 1", "count 2", "count 3"]
    assert {record["pid"] for record in service.records("output", "web")} == {service.status("web")["pid"]}


# ---- readiness and watchdog


@simulated(workload("web", 'type = "notify"', "watchdog_sec = 1", *RESTARTS, program="ready=0.1"))
async def test_a_program_that_no_longer_reports_that_it_is_healthy_is_restarted(service: Client) -> None:
    await service.until("web", "ready")
    await service.until("web", "stopping", "backoff")
    assert service.status("web")["reason"] == "no WATCHDOG=1 for 1 s"


@simulated(workload("web", 'type = "notify"', "timeout_start_sec = 1", 'restart = "no"'))
async def test_a_program_that_never_is_ready_fails(service: Client) -> None:
    await service.until("web", "failed")
    assert service.course() == ["execed web#1", "ends web#1"]


@simulated(workload("web", 'type = "notify"', program="ready=0.1"))
async def test_a_status_text_is_shown(service: Client) -> None:
    await service.until("web", "ready")
    process = service.program("web")
    (path,) = service.machine.sockets
    service.machine.send_datagram(path, b"STATUS=half done", process.pid)
    await service.until_true(lambda: service.status("web")["status_text"] == "half done")


# ---- programs that go to the background


BACKGROUND = "exit code 0: it went to the background, where it cannot be supervised; "


@pytest.mark.fault("B16")
@pytest.mark.parametrize(
    ("like", "program", "remedy"),
    [
        ("memcached", "-d forks=1@0.1 exit=0@1", "run it without -d or --daemon"),
        ("memcached", "-d exit=0@1", "run it without -d or --daemon"),  # the kernel has ended what it had left
        ("no-known-program", "forks=1@0.1 exit=0@1", "run it in the foreground; its manual has the option"),
    ],
)
def test_a_program_that_becomes_a_daemon_is_not_one_that_is_done(
    monkeypatch: pytest.MonkeyPatch, like: str, program: str, remedy: str
) -> None:
    """It was a success, "exit code 0", with nothing left."""
    if like in DAEMONS:
        monkeypatch.setitem(DAEMONS, "program", DAEMONS[like])
    site = make_site(workload("web", 'restart = "no"', program=program))

    async def client(service: Client) -> None:
        await service.until("web", "exited")
        assert service.status("web")["reason"] == BACKGROUND + remedy
        await service.until_true(lambda: service.records("state")[-1]["to"] == "exited")
        record = service.records("state")[-1]
        assert (record["level"], record["reason"]) == ("warning", BACKGROUND + remedy)

    assert serve(site, client) == 0


@pytest.mark.fault("B16")
@pytest.mark.parametrize(
    ("keys", "program"),
    [
        ("", "exit=0@1"),
        ("", "forks=1@0.1 exit=0@60"),
        ("", "forks=1@0.1 exit=3@1"),
        ('type = "oneshot"', "forks=1@0.1 exit=0@1"),
    ],
)
def test_other_exits_are_no_daemons(keys: str, program: str) -> None:
    site = make_site(workload("web", 'restart = "no"', keys, program=program))

    async def client(service: Client) -> None:
        await service.until("web", "exited", "failed")
        assert service.status("web")["reason"] in ("exit code 0", "exit code 3")

    assert serve(site, client) == 0
