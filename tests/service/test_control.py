"""Queries and commands of operators, as the API calls them."""

import os
import signal

import pytest
import trio

from nsupervisor.api.control import UnknownName
from nsupervisor.config.changes import parse_changes
from tests.service.simulated import Client, make_site, serve, simulated, workload

WEB = workload("web")
NOT_AT_BOOT = "autostart = false"
BATCH = "[group.batch]\npids_max = 10\n"
SITE = WEB + workload("pool", "instances = 2", 'may_control = ["web"]') + BATCH + workload("job", 'group = "batch"')


# ---- queries


@simulated(SITE)
async def test_names_are_resolved_to_instances(service: Client) -> None:
    resolve = service.supervisor.resolve
    assert resolve(["web"]) == ["web"]
    assert resolve(["pool"]) == resolve(["pool@*"]) == resolve(["po*"]) == ["pool@1", "pool@2"]
    assert resolve(["pool@2", "pool"]) == ["pool@2", "pool@1"]
    assert resolve(["*"]) == ["web", "pool@1", "pool@2", "job"]
    assert resolve(["group/batch"]) == resolve(["group/*"]) == ["job"]
    assert service.supervisor.matching_groups("group/*") == ["group/batch"]
    assert service.supervisor.matching_groups("batch") == []


@simulated(SITE)
@pytest.mark.parametrize(
    ("pattern", "similar"), [("webb", "web"), ("group/bach", "group/batch"), ("nothing-like-it", None), ("x*", None)]
)
async def test_a_name_that_does_not_exist_is_refused_with_a_similar_one(
    service: Client, pattern: str, similar: str | None
) -> None:
    with pytest.raises(UnknownName) as caught:
        service.supervisor.resolve(["web", pattern])
    assert caught.value.args == UnknownName(pattern, similar).args


@simulated(SITE)
async def test_a_workload_may_control_the_instances_that_its_configuration_names(service: Client) -> None:
    assert service.supervisor.controllable_by("pool@1") == ["web"]
    assert service.supervisor.controllable_by("web") == []
    assert service.supervisor.controllable_by("gone") == []


@simulated(SITE)
async def test_the_facts_about_the_service(service: Client) -> None:
    await trio.sleep(5)
    info = service.supervisor.info()
    assert (info["name"], info["config"], info["runtime_directory"]) == ("sim", "/sim/site.toml", "/sim/run")
    assert (info["pid"], info["cgroup"], info["mode"]) == (os.getpid(), "/sim/sim", "unified")
    assert 5 <= info["uptime_sec"] < 6
    assert info["keeper_pid"] in range(1000, 1010)


@simulated(SITE)
async def test_the_status_of_groups_has_their_members(service: Client) -> None:
    await service.until("job", "running")
    (status,) = service.supervisor.group_status()
    assert (status["name"], status["members"]) == ("group/batch", ["job"])


@simulated(SITE)
async def test_stats_count_what_the_cgroup_uses(service: Client) -> None:
    await service.until("job", "running")
    stats = {sample["name"]: sample for sample in service.supervisor.stats()}
    assert list(stats) == ["web", "pool@1", "pool@2", "job"]


@simulated(SITE)
async def test_the_history_of_an_instance_has_its_records(service: Client) -> None:
    await service.until("web", "running")
    await service.command("stop", "web")
    history = service.supervisor.history("web")
    assert (history["name"], history["state"], history["forgotten"]) == ("web", "stopped", False)
    assert {record["workload"] for record in history["records"]} == {"web"}
    assert [record["to"] for record in history["records"] if record["event"] == "state"][-1] == "stopped"
    assert history["log"]["stream"] is None


@simulated(SITE)
async def test_a_follower_gets_new_records(service: Client) -> None:
    with service.supervisor.events({"web"}, {"exited"}, True) as follower:
        await service.until("web", "running")
        service.program("web").receive(signal.SIGKILL)
        with trio.fail_after(10):
            piece = await anext(aiter(follower))
    assert b'"exited"' in piece


@simulated(SITE)
async def test_a_trace_has_the_inputs_of_the_instances(service: Client) -> None:
    await service.until("web", "running")
    with service.supervisor.trace({"web"}, None, 100.0, 1e6) as recording:
        await service.command("restart", "web")
        text = b""
        with trio.move_on_after(1):
            async for piece in recording:
                text += piece
    assert b'"web"' in text


@simulated(WEB)
async def test_other_instances_are_affected_by_starts_and_stops_alone(service: Client) -> None:
    await service.until("web", "running")
    assert [service.supervisor.also_affected(verb, "web") for verb in ("kill", "start", "stop", "restart")] == [[]] * 4
    assert service.supervisor.also_affected("stop", "removed") == []
    service.supervisor.check_command("stop", ["web"], {})


# ---- commands


@simulated(WEB)
async def test_a_command_about_an_instance_that_was_just_removed(service: Client) -> None:
    answer = await service.command("stop", "gone")
    assert answer == {"name": "gone", "ok": False, "state": None, "message": "a reload has just removed it"}


@simulated(workload("web", 'restart = "always"', "restart_sec = 5"))
async def test_a_kill_is_answered_when_the_program_has_ended(service: Client) -> None:
    await service.until("web", "running")
    answer = await service.command("kill", "web")
    assert (answer["ok"], answer["state"]) == (True, "backoff")
    answer = await service.command("kill", "web")
    assert (answer["ok"], answer["message"]) == (False, "it does not run")


@simulated(workload("web", 'restart = "no"', program="deaf"))
async def test_a_signal_reaches_the_program_alone(service: Client) -> None:
    await service.until("web", "running")
    received: list[tuple[str, int]] = []
    service.machine.signal_listeners.append(lambda process, signum: received.append((process.id, signum)))
    assert (await service.command("signal", "web", signal=signal.SIGUSR1))["ok"]
    assert received == [("web#1", signal.SIGUSR1)]
    await service.command("kill", "web")
    assert (await service.command("signal", "web", signal=signal.SIGUSR1))["message"] == "it does not run"


@simulated(WEB)
async def test_a_program_is_frozen_and_thawed(service: Client) -> None:
    await service.until("web", "running")
    assert (await service.command("thaw", "web"))["message"] == "it is not frozen; it is running"
    answer = await service.command("freeze", "web")
    assert (answer["ok"], answer["state"]) == (True, "frozen")
    assert service.program("web").cgroup.is_frozen
    assert (await service.command("freeze", "web"))["ok"]
    answer = await service.command("thaw", "web")
    assert (answer["ok"], answer["state"]) == (True, "running")
    await service.command("stop", "web")
    answer = await service.command("freeze", "web")
    assert (answer["ok"], answer["message"]) == (False, "only what runs can be frozen; it is stopped")


@simulated(workload("web", NOT_AT_BOOT))
async def test_a_program_that_starts_is_frozen_as_soon_as_it_runs(service: Client) -> None:
    service.machine.speed = 1000.0
    await service.begin(service.command, "start", "web")
    await service.until("web", "starting")
    answer = await service.command("freeze", "web")
    assert (answer["ok"], answer["state"]) == (True, "frozen")
    service.machine.speed = 1.0


@simulated(workload("web", NOT_AT_BOOT, 'restart = "no"'))
async def test_a_program_that_does_not_start_cannot_be_frozen(service: Client) -> None:
    service.machine.speed = 1000.0
    service.site.keepers.start().fail_setups = 1
    await service.begin(service.command, "start", "web")
    await service.until("web", "starting")
    answer = await service.command("freeze", "web")
    assert not answer["ok"]
    assert answer["message"].startswith("it is failed by now: ")
    service.machine.speed = 1.0


@simulated(WEB)
async def test_a_limit_is_set_in_the_kernel(service: Client) -> None:
    await service.until("web", "running")
    answer = await service.command("set", "web", changes=parse_changes({"pids_max": 7}))
    assert (answer["ok"], answer["message"]) == (True, "")
    assert service.machine.cgroups["/sim/sim/web"].limits["pids.max"] == "7"
    answer = await service.command("set", "web", changes=parse_changes({"io_weight": 7}))
    assert not answer["ok"]
    assert "io" in answer["message"]


@simulated(SITE)
async def test_the_limit_of_a_group_is_set_in_the_kernel(service: Client) -> None:
    answer = await service.supervisor.set_group("group/batch", parse_changes({"pids_max": 7}))
    assert answer == {"name": "group/batch", "ok": True, "state": None, "message": ""}
    assert service.machine.cgroups[str(service.supervisor.group_status()[0]["cgroup"])].limits["pids.max"] == "7"


@simulated(WEB)
async def test_a_command_of_a_workload_names_it_in_the_record(service: Client) -> None:
    await service.until("web", "running")
    await service.command("restart", "web", workload="pool@1")
    assert service.records("action", "web")[-1]["cause"] == {"by": "workload pool@1", "kind": "workload"}


# ---- SIGHUP


@simulated(WEB)
async def test_sighup_reads_the_file_again(service: Client) -> None:
    await service.until("web", "running")
    service.site.text = WEB + workload("other")
    service.signal(signal.SIGHUP)
    await service.until_true(lambda: "other" in service.names())
    assert [record["cause"] for record in service.records("reload")] == [{"by": "SIGHUP", "kind": "person"}]


@simulated(WEB)
async def test_sighup_with_a_wrong_file_changes_nothing(service: Client) -> None:
    service.site.text = "[workload.web]\ncommand = 3\n"
    service.signal(signal.SIGHUP)
    await service.until_true(lambda: bool(service.records("reload refused")))
    assert service.names() == ["web"]


def test_sighup_counts_for_nothing_while_the_service_stops() -> None:
    site = make_site(workload("web", program="term=0@1"))

    async def client(service: Client) -> None:
        await service.until("web", "running")
        service.signal(signal.SIGTERM)
        service.signal(signal.SIGHUP)

    assert serve(site, client) == 0
    assert not [record for record in site.records() if record["event"].startswith("reload")]
