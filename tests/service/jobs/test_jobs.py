"""The order of starts, stops and removals, and what wins when several commands concern the same instance."""

import signal
from pathlib import Path

import pytest
import trio

from nsupervisor.core import events
from nsupervisor.core.lifecycle import State
from nsupervisor.service.jobs.jobs import MAX_CONCURRENT_STARTS
from nsupervisor.service.platform.start_obstacle import StartObstacle
from tests.service.simulated import Client, course, make_site, serve, simulated, workload

WEB_REQUIRES_DB = workload("db", program="term=0@1") + workload("web", 'requires = ["db"]', program="term=0@1")
NOT_AT_BOOT = "autostart = false"


def chain(*keys: str, program: str = "") -> str:
    """Return the text of three workloads, each of which requires the one before it."""
    return (
        workload("db", *keys, program=program)
        + workload("web", 'requires = ["db"]', *keys, program=program)
        + workload("proxy", 'requires = ["web"]', *keys, program=program)
    )


# ---- starts


@simulated(chain(NOT_AT_BOOT))
async def test_a_start_starts_what_it_requires_first(service: Client) -> None:
    assert service.supervisor.also_affected("start", "proxy") == ["web", "db"]
    answer = await service.command("start", "proxy")
    assert (answer["ok"], answer["state"], answer["message"]) == (True, "running", "")
    assert service.course() == ["execed db#1", "execed web#1", "execed proxy#1"]


@simulated(
    workload("db", NOT_AT_BOOT, 'type = "notify"', program="ready=2")
    + workload("web", NOT_AT_BOOT, 'requires = ["db"]')
)
async def test_a_start_waits_until_what_it_requires_is_ready(service: Client) -> None:
    started = await service.begin(service.command, "start", "web")
    await service.until("db", "running")
    assert (service.state("web"), service.status("web")["reason"]) == ("stopped", "waits for db")
    await service.until("db", "ready")
    await service.until("web", "running")
    await service.until_true(lambda: bool(started))
    assert started[0]["ok"]
    assert service.status("web")["reason"] == "started by operator"


@simulated(
    workload("db", NOT_AT_BOOT, 'restart = "no"', 'type = "notify"', program="exit=3@0.1")
    + workload("web", NOT_AT_BOOT, 'requires = ["db"]')
    + workload("proxy", NOT_AT_BOOT, 'requires = ["web"]')
    + workload("other", NOT_AT_BOOT, 'wants = ["db"]')
)
async def test_a_failing_start_in_the_middle_keeps_back_what_requires_it_only(service: Client) -> None:
    proxy = await service.begin(service.command, "start", "proxy")
    other = await service.begin(service.command, "start", "other")
    await service.until_true(lambda: bool(proxy and other))
    assert not proxy[0]["ok"]
    text = "requires web, which requires db, which is failed: exit code 3; it starts as soon as web is up"
    assert proxy[0]["message"] == text
    assert other[0]["ok"]
    blocked = [record for record in service.records("waiting") if record["level"] == "warning"]
    assert [(record["workload"], record["message"]) for record in blocked] == [
        ("web", "requires db, which is failed: exit code 3; web starts as soon as db is up"),
        ("proxy", "requires web, which requires db, which is failed: exit code 3; proxy starts as soon as web is up"),
    ]
    assert service.status("web")["reason"] == "requires db, which is failed: exit code 3"


# ---- starts that a requirement blocks

MIGRATED_WEB = (
    workload("web", NOT_AT_BOOT, 'requires = ["once"]', "start_limit_burst = 1")
    + workload("proxy", NOT_AT_BOOT, 'requires = ["web"]')
)  # fmt: skip


def migration(program: str) -> str:
    return workload("once", NOT_AT_BOOT, 'type = "oneshot"', 'restart = "no"', program=program)


FAILING, WORKING = migration("exit=1@1"), migration("exit=0@1")


@simulated(FAILING + MIGRATED_WEB)
async def test_a_workload_whose_requirement_failed_at_first_never_started(service: Client) -> None:
    assert not (await service.command("start", "proxy"))["ok"]
    assert service.course() == ["execed once#1", "ends once#1"]
    await service.reload(WORKING + MIGRATED_WEB)
    await service.until("proxy", "running")
    assert service.course()[2:] == ["execed once#2", "ends once#2", "execed web#1", "execed proxy#1"]
    assert service.status("web")["reason"] == "started by operator"


@simulated(FAILING + MIGRATED_WEB)
async def test_a_stop_ends_a_start_that_is_blocked(service: Client) -> None:
    assert not (await service.command("start", "proxy"))["ok"]
    assert (await service.command("stop", "web"))["message"] == "after proxy, which cannot run without it"
    await service.reload(WORKING + MIGRATED_WEB)
    await service.until("once", "exited")
    assert service.course() == ["execed once#1", "ends once#1", "execed once#2", "ends once#2"]
    assert [service.status(name)["reason"] for name in ("web", "proxy")] == ["stopped by operator", ""]


@simulated(FAILING + MIGRATED_WEB)
async def test_a_second_start_tries_what_blocked_the_first_again(service: Client) -> None:
    assert not (await service.command("start", "web"))["ok"]
    assert not (await service.command("start", "web"))["ok"]
    await service.reload(WORKING + MIGRATED_WEB)
    assert (await service.command("start", "web"))["ok"]
    assert [name for name in service.course() if name.startswith("execed")] == [
        *("execed once#1", "execed once#2", "execed once#3"),
        "execed web#1",
    ]


@simulated(FAILING + MIGRATED_WEB)
async def test_a_blocked_start_goes_on_when_the_configuration_no_longer_has_the_requirement(service: Client) -> None:
    assert not (await service.command("start", "web"))["ok"]
    await service.reload(workload("web", NOT_AT_BOOT) + workload("proxy", NOT_AT_BOOT, 'requires = ["web"]'))
    await service.until("web", "running")
    assert service.state("proxy") == "stopped"


@simulated(
    workload("db", NOT_AT_BOOT, 'restart = "no"', 'type = "notify"', program="exit=3@0.1")
    + workload("web", NOT_AT_BOOT, 'requires = ["db"]')
    + workload("proxy", NOT_AT_BOOT, 'wants = ["web"]')
)
async def test_a_start_does_not_wait_for_a_blocked_one_that_it_only_wants(service: Client) -> None:
    assert (await service.command("start", "proxy"))["ok"]
    assert service.state("proxy") == "running"
    assert service.state("web") == "stopped"


@simulated(workload("db", NOT_AT_BOOT, 'type = "notify"', program="ready=5") + workload("web", 'requires = ["db"]'))
async def test_a_stop_cancels_a_start_that_waits(service: Client) -> None:
    await service.until("db", "running")
    started = await service.begin(service.command, "start", "web")
    assert (await service.command("stop", "web"))["ok"]
    await service.until("db", "ready")
    await service.until_true(lambda: bool(started))
    assert not started[0]["ok"]
    assert service.state("web") == "stopped"
    assert service.course() == ["execed db#1"]


@simulated(workload("db", NOT_AT_BOOT, 'type = "notify"', program="ready=5") + workload("web", 'requires = ["db"]'))
async def test_a_second_start_waits_with_the_first(service: Client) -> None:
    await service.until("db", "running")
    first = await service.begin(service.command, "start", "web")
    second = await service.begin(service.command, "start", "web")
    await service.until_true(lambda: bool(first and second))
    assert (first[0]["ok"], second[0]["ok"]) == (True, True)
    assert service.course() == ["execed db#1", "execed web#1"]


@simulated(workload("web", f"instances = {3 * MAX_CONCURRENT_STARTS}"))
async def test_no_more_than_a_number_of_instances_start_at_the_same_time(service: Client) -> None:
    most = 0
    actors = service.supervisor.actors.values()
    while State.STOPPED in (states := [actor.lifecycle.state for actor in actors]):
        most = max(most, states.count(State.STARTING))
        await trio.sleep(0.0001)
    assert 0 < most <= MAX_CONCURRENT_STARTS


# ---- stops


@simulated(chain(program="term=0@1"))
async def test_a_stop_stops_what_requires_it_first_and_names_it(service: Client) -> None:
    await service.until("proxy", "running")
    assert service.supervisor.also_affected("stop", "db") == ["web", "proxy"]
    answer = await service.command("stop", "db")
    assert (answer["ok"], answer["message"]) == (True, "after web, proxy, which cannot run without it")
    assert service.course()[3:] == ["ends proxy#1", "ends web#1", "ends db#1"]
    assert {service.status(name)["reason"] for name in ("web", "proxy")} == {"stopped with db"}


@simulated(workload("web", program="term=0@2"))
async def test_a_later_start_overrules_a_stop(service: Client) -> None:
    await service.until("web", "running")
    stopped = await service.begin(service.command, "stop", "web")
    await service.until("web", "stopping")
    assert (await service.command("start", "web"))["ok"]
    await service.until_true(lambda: bool(stopped))
    assert (stopped[0]["ok"], stopped[0]["message"]) == (False, "a later start overruled it")
    assert service.course() == ["execed web#1", "ends web#1", "execed web#2"]


@simulated(WEB_REQUIRES_DB)
@pytest.mark.parametrize("command", ["restart", "start"])
async def test_a_later_command_overrules_a_stop_that_waits_for_others_to_stop(service: Client, command: str) -> None:
    """The stop of db came after its restart, which had been asked for later."""
    await service.until("web", "running")
    stopped = await service.begin(service.command, "stop", "db")
    await service.until("web", "stopping")
    assert (await service.command(command, "db"))["ok"]
    await service.until_true(lambda: bool(stopped))
    assert (stopped[0]["ok"], stopped[0]["message"]) == (False, "a later start overruled it")
    assert (service.state("db"), service.state("web")) == ("running", "stopped")


@simulated(WEB_REQUIRES_DB)
async def test_a_start_of_what_requires_it_overrules_a_stop_that_waits(service: Client) -> None:
    await service.until("web", "running")
    stopped = await service.begin(service.command, "stop", "db")
    await service.until("web", "stopping")
    assert (await service.command("start", "web"))["ok"]
    await service.until_true(lambda: bool(stopped))
    assert not stopped[0]["ok"]
    assert (service.state("db"), service.state("web")) == ("running", "running")


# ---- restarts


@simulated(WEB_REQUIRES_DB)
async def test_a_restart_leaves_alone_what_it_requires(service: Client) -> None:
    await service.until("web", "running")
    assert (await service.command("restart", "web"))["ok"]
    assert service.course() == ["execed db#1", "execed web#1", "ends web#1", "execed web#2"]


@simulated(workload("db", 'restart = "no"') + workload("web", 'requires = ["db"]', program="term=0@1"))
async def test_a_restart_starts_what_it_requires_and_does_not_run(service: Client) -> None:
    await service.until("web", "running")
    service.program("db").receive(signal.SIGKILL)
    await service.until("db", "failed")
    assert service.supervisor.also_affected("restart", "web") == ["db"]
    assert (await service.command("restart", "web"))["ok"]
    await service.until_true(lambda: service.state("web") == service.state("db") == "running")
    assert set(service.course()[3:]) == {"execed db#2", "ends web#1", "execed web#2"}


@simulated(chain(NOT_AT_BOOT))
async def test_a_restart_of_what_does_not_run_starts_it(service: Client) -> None:
    assert (await service.command("restart", "web"))["ok"]
    assert service.course() == ["execed db#1", "execed web#1"]


@simulated(workload("db", 'restart = "no"') + workload("web", 'requires = ["db"]', program="term=0@2"))
async def test_a_stop_overrules_a_restart_that_stops(service: Client) -> None:
    await service.until("web", "running")
    service.program("db").receive(signal.SIGKILL)
    await service.until("db", "failed")
    restarted = await service.begin(service.command, "restart", "web")
    await service.until("web", "stopping")
    assert (await service.command("stop", "web"))["ok"]
    await service.until_true(lambda: bool(restarted))
    assert service.state("web") == "stopped"
    assert "execed web#2" not in service.course()


# ---- many at once: a reload


@simulated(WEB_REQUIRES_DB)
async def test_a_transaction_stops_dependents_first_and_starts_them_last(service: Client) -> None:
    await service.until("web", "running")
    reports = await service.reload(
        workload("db", program="term=0@1 v=2") + workload("web", 'requires = ["db"]', program="term=0@1 v=2")
    )
    assert reports[-1] == {"event": "end", "ok": True}
    assert service.course()[2:] == ["ends web#1", "ends db#1", "execed db#2", "execed web#2"]


@simulated(WEB_REQUIRES_DB)
async def test_what_required_a_removed_instance_stops_before_it(service: Client) -> None:
    await service.until("web", "running")
    reports = await service.reload(workload("web", program="term=0@1 v=2"))
    assert {report["name"]: (report["do"], report["ok"]) for report in reports if report["event"] == "done"} == {
        "db": ("stop", True),
        "web": ("restart", True),
    }
    assert service.names() == ["web"]
    course = service.course()
    assert course.index("ends web#1") < course.index("ends db#1")


@simulated(workload("db") + workload("web", 'requires = ["db"]', program="term=0@1"))
async def test_what_is_removed_stops_after_a_dependent_whose_restart_a_stop_overrules(service: Client) -> None:
    """The stop cancelled the restart, and the removed instance no longer waited for the end of its dependent."""
    await service.until("web", "running")
    stream = await service.begin_reload(workload("web", program="term=0@1 v=2"))
    stopped = await service.begin(service.command, "stop", "web")
    await service.read_reports(stream)
    await service.until_true(lambda: bool(stopped))
    assert service.course()[2:] == ["ends web#1", "ends db#1"]
    assert (service.names(), service.state("web")) == (["web"], "stopped")


@simulated(workload("web", program="term=0@2"))
async def test_a_later_reload_keeps_an_instance_that_is_being_removed(service: Client) -> None:
    await service.until("web", "running")
    removed = await service.begin_reload(workload("other"))
    await service.until("web", "stopping")
    answer = await service.command("start", "web")
    assert (answer["ok"], answer["message"]) == (False, "/sim/site.toml does not have it any more; it is being removed")
    await service.reload(workload("web", program="term=0@2"))
    reports = await service.read_reports(removed)
    assert [report["message"] for report in reports if report.get("name") == "web"] == ["a later command overruled it"]
    await service.until("web", "running")
    assert [line for line in service.course() if "web" in line] == ["execed web#1", "ends web#1", "execed web#2"]
    await service.until_true(lambda: service.names() == ["web"])


@simulated(workload("web", "instances = 2", program="term=0@2"))
async def test_an_instance_is_removed_when_there_are_to_be_fewer(service: Client) -> None:
    await service.until("web@2", "running")
    await service.reload(workload("web", program="term=0@2"))
    assert service.names() == ["web"]
    assert not [path for path in service.machine.cgroups if "@" in path]


@simulated(workload("web"))
async def test_a_reload_that_overtakes_another_wins(service: Client) -> None:
    await service.until("web", "running")
    first = await service.begin_reload(
        workload("db", 'type = "notify"', program="ready=9") + workload("web", 'requires = ["db"]', program="v=2")
    )
    await service.until_true(lambda: service.status("web")["reason"] == "waits for db")
    await service.reload(workload("db", 'type = "notify"', program="ready=9") + workload("web", program="v=3"))
    await service.read_reports(first)
    assert [line for line in service.course() if "execed" in line][:2] == ["execed web#1", "execed db#1"]
    assert service.state("web") == "running"


# ---- the end of the service


def test_the_service_stops_dependents_first_and_starts_nothing_more() -> None:
    text = chain(program="term=0@1") + workload("late", NOT_AT_BOOT)
    site = make_site(text)
    answers = []

    async def client(service: Client) -> None:
        await service.until("proxy", "running")
        service.signal(signal.SIGTERM)
        await service.until("proxy", "stopping")
        answers.append(await service.command("start", "late"))
        answers.append(await service.command("restart", "db"))
        answers.append(await service.refused_reload(text))

    assert serve(site, client) == 0
    assert course(site)[3:] == ["ends proxy#1", "ends web#1", "ends db#1"]
    refused = "the service is stopping, so nothing starts any more; start the service again"
    assert [answer["message"] for answer in answers[:2]] == [refused, refused]
    assert "the supervisor is stopping; start it with the new file" in answers[2]
    assert list(site.machine.cgroups) == ["/sim"]


def test_the_end_of_the_service_cancels_a_start_that_waits() -> None:
    site = make_site(
        workload("db", 'type = "notify"', program="ready=5 term=0@9") + workload("web", 'requires = ["db"]')
    )

    async def client(service: Client) -> None:
        await service.until("db", "running")
        service.signal(signal.SIGTERM)
        await service.until("db", "stopping")

    assert serve(site, client) == 0
    assert course(site) == ["execed db#1", "ends db#1"]


def test_a_second_signal_kills_what_is_left() -> None:
    site = make_site(workload("web", "timeout_stop_sec = 100", program="deaf"))

    async def client(service: Client) -> None:
        await service.until("web", "running")
        service.signal(signal.SIGTERM)
        await service.until("web", "stopping")
        service.signal(signal.SIGTERM)

    assert serve(site, client) == 0
    assert [record["hurry"] for record in site.records() if record["event"] == "supervisor stopping"] == [False, True]
    assert site.machine.now < 1010


def test_an_instance_that_is_being_removed_is_stopped_when_the_service_ends() -> None:
    site = make_site(WEB_REQUIRES_DB)

    async def client(service: Client) -> None:
        await service.until("web", "running")
        await service.begin_reload(workload("web", program="term=0@1 v=2"))
        service.signal(signal.SIGTERM)
        await service.until("web", "stopping")

    assert serve(site, client) == 0
    assert course(site)[2:] == ["ends web#1", "ends db#1"]


# ---- a restart whose start must fail


OBSTACLE = StartObstacle(("command",), "cannot execute program: it is gone")


@pytest.mark.fault("B15")
@simulated(WEB_REQUIRES_DB)
async def test_a_restart_that_must_fail_keeps_the_program_that_runs(service: Client) -> None:
    """The working program was stopped, and the next start failed for a file that had been missing before."""
    await service.until("web", "running")
    service.machine.start_obstacle = OBSTACLE
    answer = await service.command("restart", "web")
    message = f"not restarted, as the next start would fail: {OBSTACLE.message}; the program that runs has been kept"
    assert (answer["ok"], answer["state"], answer["message"]) == (False, "running", message)
    await service.until_true(lambda: [record["message"] for record in service.records("warning", "web")] == [message])
    assert service.status("web")["generation"] == 1
    service.machine.start_obstacle = None
    assert (await service.command("restart", "web"))["ok"]
    assert service.course() == ["execed db#1", "execed web#1", "ends web#1", "execed web#2"]


@pytest.mark.fault("B15")
@simulated(WEB_REQUIRES_DB)
async def test_a_restart_is_tried_if_a_dependency_that_starts_first_may_make_what_is_missing(service: Client) -> None:
    await service.until("web", "running")
    await service.command("stop", "web")
    service.machine.start_obstacle = OBSTACLE
    assert (await service.command("restart", "web"))["ok"]  # nothing runs, so nothing is lost
    service.supervisor.actors["db"].post(events.Stop())
    await service.until("db", "stopped")
    assert (await service.command("restart", "web"))["ok"]
    assert service.status("web")["generation"] == 3


@pytest.mark.fault("B15")
def test_an_environment_file_that_is_gone_is_found_before_the_program_is_stopped(tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_text("A=1\n")
    site = make_site(workload("web", f'environment_file = ["{file}"]'))

    async def client(service: Client) -> None:
        await service.until("web", "running")
        file.unlink()
        answer = await service.command("restart", "web")
        assert not answer["ok"]
        assert f"{file}: there is no such file; check the path" in answer["message"]
        assert service.state("web") == "running"

    assert serve(site, client) == 0
    assert course(site) == ["execed web#1", "ends web#1"]


@pytest.mark.fault("B15")
def test_a_restart_by_a_rule_stops_the_program_and_goes_on_when_it_can_start(tmp_path: Path) -> None:
    """A rule acts at once, also for the others on the host; its restart has a back-off, an operator's has none."""
    file = tmp_path / "env"
    file.write_text("A=1\n")
    rule = '[[workload.web.policy]]\nwhen = "uptime > 5s"\naction = "restart"\n'
    site = make_site(workload("web", f'environment_file = ["{file}"]', 'restart_sec = "1s"') + rule)

    async def client(service: Client) -> None:
        await service.until("web", "running")
        file.unlink()
        await service.until("web", "backoff")
        file.write_text("A=1\n")
        await service.until("web", "running")

    assert serve(site, client) == 0
    assert "execed web#1" in course(site)
