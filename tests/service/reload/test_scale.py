"""Other numbers of instances than the configuration's: live, kept by reloads and kills, given up for the file."""

import attrs
import pytest

from nsupervisor.config.load import parse
from nsupervisor.config.problems import ConfigError
from nsupervisor.config.scaling import keep_scales, scale, scales
from nsupervisor.core.initiators import OPERATOR
from tests.service.simulated import Client, make_site, serve, simulated, workload

WEB = workload("web", "instances = 2")


async def scale_to(service: Client, **counts: int) -> dict[str, str]:
    reports = await service.read_reports(await service.supervisor.reloader.scale(counts, OPERATOR))
    return {report["name"]: report["do"] for report in reports if report["event"] == "done"}


def runs(service: Client) -> list[str]:
    return service.names()


@simulated(WEB + workload("db"))
async def test_instances_start_and_stop_and_the_others_do_not_notice(service: Client) -> None:
    await service.until("web@2", "running")
    assert await scale_to(service, web=4) == {"web@3": "start", "web@4": "start"}
    assert runs(service) == ["web@1", "web@2", "web@3", "web@4", "db"]
    assert await scale_to(service, web=1 + 1) == {"web@3": "stop", "web@4": "stop"}
    assert runs(service) == ["web@1", "web@2", "db"]
    assert [line for line in service.course() if "@1#" in line] == ["execed web@1#1"]


@simulated(WEB)
async def test_a_reload_keeps_the_number_until_the_file_has_another_one(service: Client) -> None:
    await service.until("web@2", "running")
    await scale_to(service, web=3)
    await service.reload(WEB + workload("new"))
    assert runs(service) == ["web@1", "web@2", "web@3", "new"]
    await service.reload(workload("web", "instances = 4"))
    assert runs(service) == ["web@1", "web@2", "web@3", "web@4"]
    await service.reload(WEB)
    assert runs(service) == ["web@1", "web@2"]


@simulated(WEB + workload("names", 'instances = ["a", "b"]'))
@pytest.mark.parametrize(
    ("name", "count", "message"),
    [
        ("wob", 2, 'there is no workload "wob"; did you mean "web"?'),
        ("web", 0, "workload.web.instances: 0 is out of range"),
        ("web", 10_001, "10001 is out of range"),
        ("names", 3, "is no list of names, which its instances have"),
    ],
)
async def test_a_wrong_number_is_refused(service: Client, name: str, count: int, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        await scale_to(service, **{name: count})
    assert message in str(caught.value)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_kill_keeps_the_number(count: int) -> None:
    site = make_site(WEB.replace("2", "3"))

    async def change(service: Client) -> None:
        await service.until("web@3", "running")
        await scale_to(service, web=count)

    async def check(service: Client) -> None:
        names = ["web"] if count == 1 else [f"web@{number}" for number in range(1, count + 1)]
        assert runs(service) == names
        for name in names:
            await service.until(name, "running")
        assert await scale_to(service, web=3)
        assert len(runs(service)) == 3

    assert serve(site, change, stop=False) is None
    assert serve(site, check) == 0
    assert "/sim/sim" not in site.machine.cgroups


def test_a_kill_at_any_call_leaves_a_number_that_was_asked_for() -> None:
    calls, counts = 0, set()
    while True:
        site = make_site(WEB)

        async def change(service: Client, calls: int = calls) -> None:
            await service.until("web@2", "running")
            service.service.life.dies_at_call = service.service.life.calls + calls + 1
            await scale_to(service, web=4)
            service.service.life.dies_at_call = None

        async def check(service: Client) -> None:
            counts.add(len(runs(service)))
            for name in runs(service):
                await service.until(name, "running")

        if serve(site, change) == 0:
            break
        calls += 1
        assert serve(site, check) == 0
        assert "/sim/sim" not in site.machine.cgroups
    assert counts == {2, 4}


# ---- pure

EXPANDED = """
[workload.web]
expand = true
instances = 2
command = ["web", "{8000+instance}"]
nice = "{instance}"
"""


def test_a_new_instance_has_its_own_values() -> None:
    config = parse(EXPANDED, "site.toml")
    web = scale(config, {"web": 4}).workloads["web"]
    assert [web.for_instance(number).command[1] for number in web.instance_ids] == ["8001", "8002", "8003", "8004"]
    assert web == attrs.evolve(parse(EXPANDED.replace("= 2", "= 4"), "site.toml").workloads["web"], scaled_from=2)
    one = parse(EXPANDED.replace("= 2", "= 1"), "site.toml")
    assert scale(one, {"web": 2}).workloads["web"].for_instance(2).command[1] == "8002"


def test_a_new_instance_with_a_problem_is_refused_with_its_line() -> None:
    with pytest.raises(ConfigError) as caught:
        scale(parse(EXPANDED, "site.toml"), {"web": 20})
    assert str(caught.value).startswith('site.toml:6: workload.web.nice: "20" is out of range')


def test_instances_that_would_share_a_file_are_refused() -> None:
    text = '[workload.web]\ncommand = ["x"]\nlog = { stdout = "file", path = "/x" }\n'
    with pytest.raises(ConfigError, match="would be the file of several instances"):
        scale(parse(text, "site.toml"), {"web": 2})


def test_a_number_that_does_not_fit_any_more_is_given_up() -> None:
    config = scale(parse(EXPANDED, "site.toml"), {"web": 10})
    later = parse(EXPANDED.replace('"{instance}"', '"{instance+15}"'), "site.toml")
    assert keep_scales(later, scales(config)) == later
    assert scales(keep_scales(parse(EXPANDED, "site.toml"), scales(config))) == {"web": (10, 2)}
    assert scales(scale(config, {"web": 2})) == {}
