"""`binds_to`, `part_of`, `conflicts`, `upholds`, `on_failure` and `on_success`: what happens to one for another."""

import signal

import pytest

from nsupervisor.core.initiators import Initiator
from tests.service.simulated import Client, make_site, serve, simulated, workload

NOT_AT_BOOT = "autostart = false"
RESTARTED = ('restart = "always"', "restart_sec = 0")


async def until_running(service: Client, *names: str) -> None:
    """Wait until all of these run."""
    for name in names:
        await service.until(name, "running")


def crash(service: Client, name: str) -> None:
    """Kill the program of an instance, as another process would."""
    service.program(name).receive(signal.SIGKILL)


# ---- binds_to

BOUND = workload("db", *RESTARTED) + workload("web", 'binds_to = ["db"]', program="term=0@1")


@simulated(BOUND)
async def test_a_bound_program_restarts_with_one_that_crashes(service: Client) -> None:
    await until_running(service, "db", "web")
    crash(service, "db")
    await service.until_true(lambda: service.status("web")["generation"] == 2 and service.state("web") == "running")
    assert service.course()[2:] == ["ends db#1", "execed db#2", "ends web#1", "execed web#2"]
    assert service.status("web")["reason"] == "started with db (binds_to)"
    causes = [record["cause"] for record in service.records("action", "web")]
    assert causes[-1] == {"by": "with db (binds_to)", "kind": "dependency"}


@simulated(workload("db", 'restart = "no"') + workload("web", 'binds_to = ["db"]', *RESTARTED))
async def test_a_bound_program_does_not_run_without_the_other(service: Client) -> None:
    await until_running(service, "db", "web")
    crash(service, "db")
    await service.until_true(lambda: "requires" in service.status("web")["reason"])
    assert service.status("web")["reason"] == "requires db, which is failed: killed by SIGKILL"
    assert (await service.command("start", "db"))["ok"]
    await service.until("web", "running")
    assert service.course()[-2:] == ["execed db#2", "execed web#2"]


@simulated(workload("db", 'restart = "no"') + workload("web", 'binds_to = ["db"]'))
async def test_a_stop_ends_the_wait_of_a_bound_program(service: Client) -> None:
    await until_running(service, "db", "web")
    crash(service, "db")
    await service.until("web", "stopped")
    assert (await service.command("stop", "web"))["ok"]
    assert (await service.command("start", "db"))["ok"]
    assert (service.state("web"), service.status("web")["reason"]) == ("stopped", "stopped by operator")


@simulated(BOUND)
async def test_a_stop_stops_the_bound_program_first(service: Client) -> None:
    await until_running(service, "db", "web")
    assert (await service.command("stop", "db"))["message"] == "after web, which cannot run without it"
    assert service.course()[2:] == ["ends web#1", "ends db#1"]
    assert service.status("web")["reason"] == "stopped with db (binds_to)"
    await service.command("start", "db")
    assert service.state("web") == "stopped"


@simulated(workload("pool", *RESTARTED, "instances = 2") + workload("web", 'binds_to = ["pool"]'))
async def test_a_bound_program_runs_while_one_instance_is_up(service: Client) -> None:
    await until_running(service, "pool@1", "pool@2", "web")
    crash(service, "pool@1")
    await service.until_true(lambda: service.status("pool@1")["generation"] == 2)
    await service.until("pool@1", "running")
    assert service.status("web")["generation"] == 1


@simulated(BOUND)
async def test_a_frozen_program_keeps_what_is_bound_to_it(service: Client) -> None:
    await until_running(service, "db", "web")
    await service.command("freeze", "db")
    await service.command("thaw", "db")
    assert service.status("web")["generation"] == 1


# ---- part_of, restart

PART = workload("db", program="term=0@1") + workload("web", 'part_of = ["db"]', program="term=0@1")


@pytest.mark.parametrize("key", ["part_of", "binds_to"])
def test_a_restart_restarts_the_parts_in_order(key: str) -> None:
    text = PART.replace("part_of", key)

    @simulated(text)
    async def restarts(service: Client) -> None:
        await until_running(service, "db", "web")
        assert (await service.command("restart", "db"))["ok"]
        await service.until_true(lambda: service.status("web")["generation"] == 2)
        await service.until("web", "running")
        assert service.course()[2:] == ["ends web#1", "ends db#1", "execed db#2", "execed web#2"]
        assert service.status("web")["reason"] == f"started with db ({key})"
        assert service.status("db")["reason"] == "restarted by operator"

    restarts()


@simulated(PART)
async def test_a_part_that_was_stopped_stays_so(service: Client) -> None:
    await until_running(service, "db", "web")
    await service.command("stop", "web")
    assert (await service.command("restart", "db"))["ok"]
    assert service.state("web") == "stopped"


@simulated(PART)
async def test_a_part_does_not_restart_after_a_crash(service: Client) -> None:
    await until_running(service, "db", "web")
    crash(service, "db")
    await service.until_true(lambda: service.status("db")["generation"] == 2)
    assert service.status("web")["generation"] == 1


@simulated(PART)
async def test_a_reload_that_restarts_one_restarts_its_parts(service: Client) -> None:
    await until_running(service, "db", "web")
    reports = await service.reload(PART.replace("term=0@1", "term=0@2", 1))
    steps = {step["name"]: (step["do"], step["why"]) for step in reports[0]["steps"]}
    assert steps["web"] == ("restart", "restarts with db (part_of)")
    assert service.course()[2:] == ["ends web#1", "ends db#1", "execed db#2", "execed web#2"]


# ---- conflicts

EITHER = workload("blue", program="term=0@1") + workload(
    "green", NOT_AT_BOOT, 'conflicts = ["blue"]', program="term=0@1"
)


@simulated(EITHER)
async def test_a_start_stops_what_conflicts_first(service: Client) -> None:
    await until_running(service, "blue")
    assert (await service.command("start", "green"))["ok"]
    assert service.course() == ["execed blue#1", "ends blue#1", "execed green#1"]
    assert service.status("blue")["reason"] == "stopped for green (conflicts)"
    assert (await service.command("start", "blue"))["ok"]
    assert service.course()[3:] == ["ends green#1", "execed blue#2"]
    assert service.status("green")["reason"] == "stopped for blue (conflicts)"


@simulated(EITHER)
async def test_the_last_of_two_starts_that_conflict_wins(service: Client) -> None:
    await until_running(service, "blue")
    green = await service.begin(service.command, "start", "green")
    assert service.state("blue") == "stopping"
    assert (await service.command("start", "blue"))["ok"]
    await service.until_true(lambda: bool(green))
    assert (green[0]["ok"], green[0]["message"]) == (False, "stopped for blue (conflicts)")
    assert [service.state(name) for name in ("blue", "green")] == ["running", "stopped"]


@simulated(
    EITHER + workload("db", NOT_AT_BOOT, 'restart = "no"', 'type = "oneshot"', program="exit=1@1")
    + workload("needy", NOT_AT_BOOT, 'conflicts = ["blue"]', 'requires = ["db"]')
)  # fmt: skip
async def test_a_start_that_is_blocked_stops_nothing(service: Client) -> None:
    await until_running(service, "blue")
    assert not (await service.command("start", "needy"))["ok"]
    assert service.state("blue") == "running"


# ---- upholds

UPHELD = workload("web", 'upholds = ["helper"]') + workload(
    "helper", NOT_AT_BOOT, 'restart = "no"', "restart_max_delay_sec = 30"
)


@simulated(UPHELD)
async def test_an_upheld_program_starts_with_the_other_and_again_when_it_has_failed(service: Client) -> None:
    await until_running(service, "web", "helper")
    assert service.status("helper")["reason"] == "started for web (upholds)"
    crash(service, "helper")
    await service.until_true(lambda: "waits" in service.status("helper")["reason"])
    assert service.state("helper") == "failed"
    assert service.status("helper")["reason"] == "waits 30 s, then starts for web (upholds)"
    await service.until("helper", "running")
    assert service.status("helper")["generation"] == 2


@simulated(UPHELD)
async def test_a_stop_of_an_upheld_program_is_final(service: Client) -> None:
    await until_running(service, "web", "helper")
    assert (await service.command("stop", "helper"))["ok"]
    await service.command("restart", "web")
    await service.until("web", "running")
    assert service.state("helper") == "stopped"
    assert (await service.command("start", "helper"))["ok"]


@simulated(UPHELD)
async def test_nothing_is_upheld_by_a_stopped_program(service: Client) -> None:
    await until_running(service, "web", "helper")
    crash(service, "helper")
    await service.until("helper", "failed")
    await service.command("stop", "web")
    await service.until_true(lambda: not service.supervisor.jobs.has_pending_start(service.supervisor.actors["helper"]))
    assert service.state("helper") == "failed"


@simulated(
    workload("web", 'upholds = ["helper"]') + workload("db", program="term=0@0.1")
    + workload("helper", NOT_AT_BOOT, 'requires = ["db"]')
)  # fmt: skip
async def test_what_is_upheld_does_not_start_what_was_stopped(service: Client) -> None:
    await until_running(service, "web", "db", "helper")
    assert (await service.command("stop", "db"))["ok"]
    await service.command("restart", "web")
    assert (service.state("db"), service.state("helper")) == ("stopped", "stopped")


# ---- on_failure, on_success

ALERT = workload("alert", NOT_AT_BOOT, 'type = "oneshot"', program="exit=0@1")


@simulated(ALERT + workload("job", 'on_failure = ["alert"]', 'restart = "on-failure"', "restart_sec = 0",
                            "start_limit_burst = 2", program="exit=3@1"))  # fmt: skip
async def test_a_failure_for_good_starts_another_workload_once(service: Client) -> None:
    await service.until("alert", "exited")
    assert service.course() == [
        *("execed job#1", "ends job#1", "execed job#2", "ends job#2"),
        *("execed alert#1", "ends alert#1"),
    ]
    assert service.records("action", "alert")[0]["cause"]["by"] == "for job (on_failure)"


@simulated(
    ALERT + workload("job", 'on_failure = ["alert"]', 'on_success = ["next"]', 'type = "oneshot"', program="exit=0@1")
    + workload("next", NOT_AT_BOOT)
)  # fmt: skip
async def test_a_success_starts_another_workload(service: Client) -> None:
    await service.until("next", "running")
    assert service.state("alert") == "stopped"


@simulated(ALERT + workload("job", NOT_AT_BOOT, 'on_failure = ["alert"]', 'restart = "no"', program="exit=1@1"))
async def test_what_an_operator_has_stopped_is_not_started_for_another(service: Client) -> None:
    await service.command("stop", "alert")
    await service.command("start", "job")
    await service.until_true(lambda: bool(service.records("warning", "job")))
    assert service.state("alert") == "stopped"
    assert [record["message"] for record in service.records("warning", "job")] == [
        "on_failure does not start alert, as alert was stopped; nsupervisor start alert"
    ]


# ---- after a kill


def test_what_follows_from_an_end_survives_a_kill_of_the_service() -> None:
    site = make_site(workload("db", 'restart = "no"') + workload("web", 'binds_to = ["db"]'))

    async def first(service: Client) -> None:
        await until_running(service, "db", "web")
        crash(service, "db")
        await service.until("web", "stopped")

    async def second(service: Client) -> None:
        assert service.status("web")["reason"] == "requires db, which is failed: killed by SIGKILL"
        await service.command("start", "db")
        await service.until("web", "running")
        initiator = Initiator.from_text(service.records("action", "web")[-1]["cause"]["by"])
        assert initiator.parts() == {"kind": "dependency", "name": "db", "detail": "binds_to"}

    serve(site, first, stop=False)
    serve(site, second)


@simulated(UPHELD.replace("restart_max_delay_sec = 30", "restart_max_delay_sec = 1"))
async def test_a_start_that_fails_at_once_is_upheld(service: Client) -> None:
    await until_running(service, "web", "helper")
    service.site.keepers.current.fail_spawns += 1
    crash(service, "helper")
    await service.until_true(lambda: service.status("helper")["generation"] == 3)
    await service.until("helper", "running")
