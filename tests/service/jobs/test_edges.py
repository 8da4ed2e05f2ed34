"""Edges with conditions: what a start waits for, and the cost of many edges."""

from collections.abc import Callable
from typing import Any

import pytest

from nsupervisor.core import edges
from tests.service.simulated import Client, simulated, workload

NOT_AT_BOOT = "autostart = false"


def edge(name: str, condition: str, key: str = "requires") -> str:
    """Return the line of an edge with a condition."""
    return f'{key} = [{{ name = "{name}", condition = "{condition}" }}]'


def job(program: str, *keys: str) -> str:
    """Return the text of a oneshot that is tried once."""
    return workload("migrate", NOT_AT_BOOT, 'type = "oneshot"', 'restart = "no"', *keys, program=program)


@simulated(
    workload("db", NOT_AT_BOOT, 'type = "notify"', program="ready=5")
    + workload("web", NOT_AT_BOOT, edge("db", "started"))
    + workload("late", NOT_AT_BOOT, 'requires = ["db"]')
)
async def test_started_does_not_wait_for_readiness(service: Client) -> None:
    late = await service.begin(service.command, "start", "late")
    assert (await service.command("start", "web"))["ok"]
    assert (service.state("db"), service.state("late")) == ("running", "stopped")
    await service.until_true(lambda: bool(late))
    assert service.state("db") == "ready"


@simulated(job("exit=3@1") + workload("web", NOT_AT_BOOT, edge("migrate", "completed")))
async def test_completed_is_met_by_any_end(service: Client) -> None:
    assert (await service.command("start", "web"))["ok"]
    assert service.course() == ["execed migrate#1", "ends migrate#1", "execed web#1"]
    assert service.state("migrate") == "failed"


@simulated(
    job("exit=3@1")
    + workload("web", NOT_AT_BOOT, edge("migrate", "completed_successfully"))
    + workload("wants", NOT_AT_BOOT, edge("migrate", "completed_successfully", "wants"))
)
async def test_completed_successfully_is_met_by_a_success_only(service: Client) -> None:
    answer = await service.command("start", "web")
    assert answer["message"] == (
        "requires migrate (completed_successfully), which is failed: exit code 3; it starts as soon as migrate is "
        "completed_successfully"
    )
    assert (await service.command("start", "wants"))["ok"]
    assert service.state("web") == "stopped"


@simulated(
    workload("db", NOT_AT_BOOT, 'type = "notify"', 'restart = "no"', program="exit=3@1")
    + workload("web", NOT_AT_BOOT, 'requires = ["db"]')
)
async def test_a_reload_changes_the_condition_of_a_start_that_waits(service: Client) -> None:
    assert not (await service.command("start", "web"))["ok"]
    await service.reload(
        workload("db", NOT_AT_BOOT, 'type = "notify"', 'restart = "no"', program="exit=3@1")
        + workload("web", NOT_AT_BOOT, edge("db", "started"))
    )
    assert (await service.command("start", "web"))["ok"]


# ---- the cost of many edges

COUNT = 200


def counted(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return a list that grows with each check of a condition."""
    calls: list[Any] = []
    check: Callable[..., bool] = edges.is_met

    def is_met(*arguments: Any) -> bool:
        calls.append(arguments)
        return check(*arguments)

    monkeypatch.setattr(edges, "is_met", is_met)
    return calls


def fan_out(count: int) -> str:
    """Return one workload that many others require."""
    leaves = "".join(workload(f"w{number}", NOT_AT_BOOT, 'requires = ["db"]') for number in range(count))
    return workload("db", NOT_AT_BOOT, 'type = "notify"', program="ready=1") + leaves


def fan_in(count: int) -> str:
    """Return one workload that requires many others, of which the last is up first."""
    leaves = "".join(
        workload(f"w{number}", NOT_AT_BOOT, 'type = "notify"', program=f"ready={1 + number / 100}")
        for number in range(count)
    )
    names = ", ".join(f'"w{number}"' for number in range(count))
    return leaves + workload("top", NOT_AT_BOOT, f"requires = [{names}]")


async def start_all(service: Client, names: list[str]) -> None:
    """Start workloads in one job, and wait until they run."""
    service.supervisor.jobs.start(names)
    for name in names:
        await service.until_true(lambda name=name: service.state(name) in ("running", "ready"))


@simulated(fan_out(COUNT))
async def test_many_that_require_one_check_their_condition_a_few_times_each(service: Client) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        calls = counted(monkeypatch)
        await start_all(service, [f"w{number}" for number in range(COUNT)])
    assert COUNT <= len(calls) <= 8 * COUNT


@simulated(fan_in(COUNT))
async def test_one_that_requires_many_checks_their_conditions_a_few_times_each(service: Client) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        calls = counted(monkeypatch)
        await start_all(service, ["top"])
    assert COUNT <= len(calls) <= 8 * COUNT


@simulated(fan_out(COUNT))
async def test_blocked_starts_are_looked_at_once_per_command(service: Client) -> None:
    jobs = service.supervisor.jobs
    names = [f"w{number}" for number in range(COUNT)]
    await start_all(service, names)
    await service.command("stop", "db")
    with pytest.MonkeyPatch.context() as monkeypatch:
        calls = counted(monkeypatch)
        await start_all(service, names)
        await service.until_true(lambda: not any(jobs.has_pending_start(actor) for actor in jobs.all_actors))
    assert len(calls) <= 8 * COUNT
