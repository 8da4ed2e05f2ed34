"""A reload of the whole service: all or nothing until it is in force, and then each instance by itself."""

from pathlib import Path

import pytest

from nsupervisor.config.changes import parse_changes
from nsupervisor.config.problems import ConfigError
from nsupervisor.service.platform.start_obstacle import StartObstacle
from tests.service.simulated import HEADER, Client, make_site, serve, simulated, workload

WEB = workload("web")
BATCH = "[group.batch]\npids_max = 10\n"
RULE = '[[workload.web.policy]]\nwhen = "memory.events oom_kill"\naction = "log"\n'


def steps(reports: list[dict]) -> dict[str, str]:
    """Return what a reload has done with each instance."""
    return {report["name"]: report["do"] for report in reports if report["event"] == "done"}


def limit(service: Client, cgroup: str, file: str) -> str:
    return service.machine.cgroups[f"/sim/sim/{cgroup}"].limits.get(file, "")


# ---- plan


@simulated(WEB)
async def test_a_plan_says_what_a_reload_would_do_and_does_nothing(service: Client) -> None:
    await service.until("web", "running")
    service.site.text = workload("web", program="v=2") + workload("other")
    plan = await service.supervisor.plan(None, None)
    assert {step["name"]: step["do"] for step in plan["steps"]} == {"web": "restart", "other": "start"}
    assert service.names() == ["web"]


@simulated(WEB)
async def test_a_plan_of_another_text_has_its_path(service: Client) -> None:
    plan = await service.supervisor.plan("/other.toml", "[supervisor]\nruntime_directory = '/sim/run'\nname = 'sim'\n")
    assert plan["config"] == "/other.toml"


# ---- what is refused


@simulated(WEB + BATCH)
@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[workload.web]\ncommand = 3\n", "workload.web.command"),
        (
            WEB + '[group.batch]\ngroup = "all"\n[group.all]\n',
            "group.batch.group: moves a group, which a reload cannot do",
        ),
        (WEB + BATCH + "[workload.x]\n", "workload.x.command: is missing"),
        (WEB + BATCH + workload("x", 'user = "no-such-user"'), "no-such-user"),
        (WEB + BATCH + workload("x", "resources = { io_weight = 5 }"), "io_weight"),
    ],
)
async def test_a_wrong_file_is_refused_and_changes_nothing(service: Client, text: str, problem: str) -> None:
    await service.until("web", "running")
    assert problem in await service.refused_reload(text)
    assert service.names() == ["web"]
    await service.until_true(lambda: problem in str(service.records("reload refused")))
    assert service.course() == ["execed web#1"]


@simulated(WEB)
async def test_a_key_that_needs_a_restart_of_the_service_is_refused(service: Client) -> None:
    text = "[supervisor]\nruntime_directory = '/sim/other'\nname = 'sim'\n" + WEB
    with pytest.raises(Exception, match="cannot change while the service runs") as caught:
        await service.supervisor.reload("/sim/site.toml", text)
    assert "supervisor.runtime_directory" in str(caught.value)


@simulated(workload("web", "resources = { pids_max = 10 }") + workload("db", "resources = { pids_max = 10 }"))
async def test_a_limit_that_the_kernel_refuses_puts_back_the_others(service: Client) -> None:
    await service.until("db", "running")
    refuse_writes(service, "/sim/sim/db", "pids.max")
    wanted = "resources = { pids_max = 20 }"
    message = await service.refused_reload(workload("web", wanted) + workload("db", wanted) + workload("new"))
    assert "db" in message
    assert limit(service, "web", "pids.max") == limit(service, "db", "pids.max") == "10"
    assert service.names() == ["web", "db"]
    assert "/sim/sim/new" not in service.machine.cgroups


@simulated(WEB + BATCH + "[group.other]\npids_max = 10\n")
async def test_a_limit_of_a_group_that_the_kernel_refuses_puts_back_the_others(service: Client) -> None:
    refuse_writes(service, "/sim/sim/group.other", "pids.max")
    message = await service.refused_reload(WEB + "[group.batch]\npids_max = 20\n[group.other]\npids_max = 20\n")
    assert "cannot set pids.max of group/other to 20" in message
    assert limit(service, "group.batch", "pids.max") == "10"


@simulated(WEB)
async def test_a_cgroup_that_cannot_be_made_is_no_reason_to_begin(service: Client) -> None:
    service.machine.make_cgroup("/sim/sim/new").limits["pids.max"] = "1"
    refuse_writes(service, "/sim/sim/new", "pids.max")
    await service.refused_reload(workload("web", program="v=2") + workload("new", "resources = { pids_max = 5 }"))
    assert service.names() == ["web"]
    assert service.course() in ([], ["execed web#1"])


def refuse_writes(service: Client, path: str, file: str) -> None:
    """Have the kernel refuse each new value of a limit that is not the present one."""
    cgroup = service.machine.cgroups[path]
    service.machine.refused[cgroup, file] = cgroup.limits.get(file, "max")


# ---- what is in force


@simulated(WEB + workload("gone"))
async def test_each_instance_is_treated_by_itself(service: Client) -> None:
    await service.until("gone", "running")
    reports = await service.reload(WEB + workload("new"))
    assert reports[0]["event"] == "plan"
    assert steps(reports) == {"gone": "stop", "new": "start"}
    assert service.names() == ["web", "new"]
    assert service.status("web")["generation"] == 1
    await service.until("new", "running")


@simulated(workload("web", "resources = { pids_max = 10 }"))
async def test_limits_and_rules_change_live(service: Client) -> None:
    await service.until("web", "running")
    reports = await service.reload(workload("web", "resources = { pids_max = 20 }") + RULE)
    assert steps(reports) == {}
    assert (limit(service, "web", "pids.max"), service.status("web")["pids_max"]) == ("20", 20)
    assert service.course() == ["execed web#1"]
    cgroup = service.machine.cgroups["/sim/sim/web"]
    cgroup.memory_events["oom_kill"] += 1
    cgroup.notify("memory.events")
    await service.until_true(lambda: any(record["action"] == "log" for record in service.records("action", "web")))


@simulated(workload("web", "resources = { pids_max = 10 }"))
async def test_limits_of_an_instance_that_is_restarted_come_with_its_next_process(service: Client) -> None:
    await service.until("web", "running")
    await service.reload(workload("web", "resources = { pids_max = 20 }", program="v=2"))
    assert limit(service, "web", "pids.max") == "20"
    assert service.course() == ["execed web#1", "ends web#1", "execed web#2"]


@simulated(WEB + BATCH)
async def test_the_limits_and_rules_of_a_group_change(service: Client) -> None:
    rule = '[[group.batch.policy]]\nwhen = "pids.current >= 2"\naction = "log"\n'
    await service.reload(WEB + "[group.batch]\npids_max = 20\n" + rule)
    assert limit(service, "group.batch", "pids.max") == "20"
    assert service.records("groups reloaded")


@simulated(workload("web", 'group = "batch"') + BATCH + "[group.other]\n")
async def test_an_instance_moves_to_another_group_with_its_next_process(service: Client) -> None:
    await service.until("web", "running")
    await service.reload(workload("web", 'group = "other"') + BATCH + "[group.other]\n")
    await service.command("restart", "web")
    assert service.status("web")["cgroup"] == "/sim/sim/group.other/web"
    assert "/sim/sim/group.batch/web" not in service.machine.cgroups
    members = {group["name"]: group["members"] for group in service.supervisor.group_status()}
    assert members == {"group/batch": [], "group/other": ["web"]}


def groups(service: Client) -> dict[str, list[str]]:
    return {group["name"]: group["members"] for group in service.supervisor.group_status()}


@simulated(WEB)
async def test_a_group_is_added_and_removed(service: Client) -> None:
    await service.until("web", "running")
    inner = '[group.inner]\ngroup = "outer"\npids_max = 9\n[group.outer]\npids_max = 20\n'
    rule = '[[group.inner.policy]]\nwhen = "pids.current >= 1"\naction = "log"\n'
    await service.reload(workload("web", 'group = "inner"') + workload("db", 'group = "inner"') + inner + rule)
    assert groups(service) == {"group/outer": ["db", "web"], "group/inner": ["db", "web"]}
    assert limit(service, "group.outer/group.inner", "pids.max") == "9"
    await service.until("db", "running")
    assert service.status("web")["cgroup"] == "/sim/sim/group.outer/group.inner/web"
    await service.until_true(lambda: bool(service.records("action")))
    await service.reload(WEB)
    assert groups(service) == {}
    assert service.status("web")["cgroup"] == "/sim/sim/web"
    await service.until_true(lambda: "/sim/sim/group.outer" not in service.machine.cgroups)


@simulated(workload("web", 'group = "batch"') + BATCH)
async def test_a_stopped_member_keeps_the_cgroup_of_a_removed_group_until_it_starts(service: Client) -> None:
    await service.until("web", "running")
    await service.command("stop", "web")
    await service.reload(WEB)
    assert groups(service) == {}
    await service.until_true(lambda: bool(service.records("reloaded")))
    assert "/sim/sim/group.batch" in service.machine.cgroups
    await service.command("start", "web")
    assert service.status("web")["cgroup"] == "/sim/sim/web"
    await service.reload(WEB)
    await service.until_true(lambda: "/sim/sim/group.batch" not in service.machine.cgroups)


@simulated(workload("web", 'group = "batch"') + BATCH)
async def test_a_group_that_was_removed_can_come_again(service: Client) -> None:
    await service.until("web", "running")
    await service.command("stop", "web")
    await service.reload(WEB)
    await service.reload(workload("web", 'group = "batch"') + "[group.batch]\npids_max = 30\n")
    assert groups(service) == {"group/batch": ["web"]}
    assert limit(service, "group.batch", "pids.max") == "30"
    await service.command("start", "web")
    assert service.status("web")["cgroup"] == "/sim/sim/group.batch/web"


@simulated(WEB)
async def test_a_refused_reload_leaves_no_new_group(service: Client) -> None:
    await service.until("web", "running")
    service.machine.make_cgroup("/sim/sim/new").limits["pids.max"] = "1"
    refuse_writes(service, "/sim/sim/new", "pids.max")
    text = WEB + workload("new", "resources = { pids_max = 7 }") + BATCH
    assert "pids" in await service.refused_reload(text)
    assert groups(service) == {}
    assert "/sim/sim/group.batch" not in service.machine.cgroups


def test_a_reload_of_groups_that_a_kill_ends_is_continued_or_not_begun() -> None:
    """At each call of the service in turn: the next one has the groups of the file, and leaves nothing at its end."""
    calls, deaths = 0, 0
    while True:
        site = make_site(workload("web", 'group = "batch"') + BATCH)

        async def change(service: Client, calls: int = calls) -> None:
            await service.until("web", "running")
            service.service.life.dies_at_call = service.service.life.calls + calls + 1
            await service.reload(workload("web", 'group = "other"') + "[group.other]\npids_max = 20\n")
            service.service.life.dies_at_call = None
            await service.until("web", "running")

        async def check(service: Client) -> None:
            await service.until("web", "running")
            await service.command("restart", "web")
            assert groups(service) == {"group/other": ["web"]}
            assert service.status("web")["cgroup"] == "/sim/sim/group.other/web"
            assert limit(service, "group.other", "pids.max") == "20"

        if serve(site, change) == 0:
            break
        deaths, calls = deaths + 1, calls + 1
        assert serve(site, check) == 0
        assert "/sim/sim" not in site.machine.cgroups
    assert deaths > 20


@simulated(WEB)
async def test_a_key_of_the_supervisor_that_counts_later_is_logged(service: Client) -> None:
    before = "[supervisor]\nruntime_directory = '/sim/run'\nname = 'sim'\n"
    with await service.supervisor.reload("/sim/site.toml", before + 'orphans = "leave"\n' + WEB) as reports:
        async for _ in reports:
            pass
    (record,) = [record for record in service.records("reload") if record["level"] == "warning"]
    assert record["message"] == 'supervisor.orphans counts when the service starts the next time: "leave"'


@pytest.mark.fault("B15")
@simulated(WEB + workload("other"))
async def test_a_reload_that_must_fail_to_restart_a_program_is_refused(service: Client) -> None:
    await service.until("web", "running")
    service.machine.start_obstacle = StartObstacle(("command",), "cannot execute program: it is gone")
    new = workload("web", program="v=2") + workload("other", "pids = 1") + workload("late")
    new = new.replace("pids = 1", "resources = { pids_max = 9 }")
    refused = await service.refused_reload(new)
    assert refused == (
        f"{service.site.path}:{len(HEADER.splitlines()) + 2}: workload.web.command: cannot execute program: "
        "it is gone; web runs, and would be stopped for a start that must fail"
    )
    with pytest.raises(ConfigError, match="web runs, and would be stopped"):
        await service.supervisor.plan(None, None)
    assert (service.names(), service.status("web")["generation"]) == (["web", "other"], 1)
    await service.command("stop", "web")  # nothing is lost
    assert steps(await service.reload(new)) == {"late": "start"}


# ---- environment files


def test_a_changed_environment_file_restarts_the_program(tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_text("A=1\n")
    text = workload("web", f'environment_file = ["{file}"]')
    site = make_site(text)

    async def client(service: Client) -> None:
        await service.until("web", "running")
        assert steps(await service.reload(text)) == {}
        file.write_text("A=2\n")
        assert steps(await service.reload(text)) == {"web": "restart"}
        file.unlink()
        assert steps(await service.reload(text)) == {}

    assert serve(site, client) == 0


# ---- set --persist


def test_limits_are_written_into_the_file(tmp_path: Path) -> None:
    file = tmp_path / "site.toml"
    text = workload("web") + BATCH
    file.write_text(HEADER + text)
    site = make_site(text, path=str(file))

    async def client(service: Client) -> None:
        await service.until("web", "running")
        changes = {"pids_max": 7}
        answer = await service.command("set", "web", changes=parse_changes(changes), persist=changes)
        assert (answer["ok"], answer["message"]) == (True, "")
        answer = await service.supervisor.set_group("group/batch", parse_changes(changes), changes)
        assert answer["ok"]
        site.text = file.read_text().removeprefix(HEADER)
        assert steps(await service.reload(site.text)) == {}
        file.unlink()
        answer = await service.command("set", "web", changes=parse_changes({"pids_max": 8}), persist={"pids_max": 8})
        assert answer["message"] == f"it is set, but not written into {file}: No such file or directory"
        answer = await service.supervisor.set_group("group/batch", parse_changes({"pids_max": 8}), {"pids_max": 8})
        assert not answer["ok"]

    assert serve(site, client) == 0
    assert site.text.count("pids_max = 7") == 2
