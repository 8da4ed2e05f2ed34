"""Groups in the service: their cgroups, their members, and rules that choose among these."""

import pytest
import trio

from tests.service.simulated import Client, make_site, serve, simulated, workload

MEMBERS = "".join(workload(name, 'group = "batch"', 'restart = "always"', "restart_sec = 9") for name in ("one", "two"))


def group(*rules: str, limits: str = "") -> str:
    return "\n".join(("[group.batch]", limits, *rules, MEMBERS))


def rule(when: str, action: str, *lines: str, table: str = "group.batch") -> str:
    return "\n".join((f"[[{table}.policy]]", f"when = '{when}'", f'action = "{action}"', *lines, ""))


def until_both_run(service: Client):
    return service.until_true(lambda: service.state("one") == service.state("two") == "running")


@simulated(group(rule("pids.current >= 4", "kill", 'victim = "newest"', 'cooldown = "1s"')))
async def test_a_rule_of_a_group_chooses_one_member(service: Client) -> None:
    await until_both_run(service)
    process = service.program("one")
    while len([one for one in service.machine.living() if one.id == "one#1"]) < 3:
        service.machine.fork(process)
    await service.until_true(lambda: sorted((service.state("one"), service.state("two"))) == ["backoff", "running"])
    (record,) = [record for record in service.records("action") if record["action"] == "kill"]
    assert record["cause"]["group"] == "group/batch"
    assert {candidate["name"] for candidate in record["cause"]["candidates"]} == {"one", "two"}


@simulated(group(rule("pids.current >= 2", "log")))
async def test_a_rule_of_a_group_that_logs_hits_no_member(service: Client) -> None:
    await until_both_run(service)
    await service.until_true(lambda: bool(service.records("action", "group/batch")))
    assert service.state("one") == service.state("two") == "running"


@simulated(group(rule("pids.current >= 2", "kill", 'victim = "newest"', table="host"), limits="pids_max = 50"))
async def test_a_rule_of_the_host_sees_all_workloads(service: Client) -> None:
    await service.until_true(lambda: "backoff" in (service.state("one"), service.state("two")))
    assert [record["cause"]["group"] for record in service.records("action") if record["action"] == "kill"] == ["host"]


@simulated(group(rule("pids.current >= 2", "stop", 'victim = "newest"', "dry_run = true")))
async def test_a_dry_run_of_a_group_names_the_victim_only(service: Client) -> None:
    await until_both_run(service)
    await service.until_true(lambda: any(record["action"] == "stop" for record in service.records("action")))
    assert [record["dry_run"] for record in service.records("action") if record["action"] == "stop"] == [True]
    await trio.sleep(3)
    assert service.state("one") == service.state("two") == "running"


@simulated("[group.outer]\npids_max = 50\n[group.batch]\ngroup = 'outer'\n" + MEMBERS)
async def test_a_group_is_inside_of_another(service: Client) -> None:
    await until_both_run(service)
    assert service.status("one")["cgroup"] == "/sim/sim/group.outer/group.batch/one"
    assert [status["name"] for status in service.supervisor.group_status()] == ["group/outer", "group/batch"]
    assert service.supervisor.resolve(["group/outer"]) == ["one", "two"]


IO = "[[group.batch.policy]]\nwhen = 'io.pressure some avg10 > 5'\naction = 'log'\n"


@pytest.mark.parametrize("required", [True, False])
def test_a_rule_that_this_host_cannot_evaluate(required: bool) -> None:
    """It is refused, or left out with a warning if the limits are not required."""
    site = make_site(group(IO, limits="" if required else "required = false"))

    async def client(service: Client) -> None:
        await until_both_run(service)

    if required:
        with pytest.raises(ExceptionGroup):
            serve(site, client)
        assert site.machine.living() == []
    else:
        assert serve(site, client) == 0
        assert "rule left out" in {record["event"] for record in site.records()}


def test_a_group_that_the_configuration_no_longer_has_is_forgotten() -> None:
    site = make_site(group(rule("pids.current >= 2", "log")))

    async def client(service: Client) -> None:
        await until_both_run(service)
        await service.supervisor.set_group("group/batch", {"pids_max": 7})

    assert serve(site, client, stop=False) is None
    site.text = workload("one")

    async def next_client(service: Client) -> None:
        await service.until_true(lambda: service.names() == ["one"])
        assert service.supervisor.group_status() == []
        await service.command("restart", "one")
        assert service.status("one")["cgroup"] == "/sim/sim/one"

    assert serve(site, next_client) == 0
