"""Timers of the whole service: runs, policies, commands, reloads, clocks, and supervisors one after the other."""

import trio

from tests.service.simulated import Client, course, make_site, serve, simulated, workload

HOUR = 3600.0


def job(name: str, timer: str, *keys: str, program: str = "exit=0@5") -> str:
    return workload(name, 'type = "oneshot"', f"timer = {{ {timer} }}", *keys, program=program)


def decisions(service: Client, name: str) -> list[str]:
    return [record["do"] for record in service.records("timer", name)]


@simulated(job("tick", 'on_calendar = "*:*:0/20"'))
async def test_a_run_begins_when_it_is_due(service: Client) -> None:
    assert service.state("tick") == "stopped"  # it does not start with the service
    await trio.sleep(66)
    assert service.course()[-2:] == ["execed tick#3", "ends tick#3"]
    assert service.status("tick")["reason"] == "exit code 0"
    (action,) = service.records("action", "tick")[:1]
    assert action["cause"] == {"by": "timer tick", "kind": "timer"}
    (timer,) = service.supervisor.timer_status()
    assert (timer["runs"], timer["running"], timer["last_exit"]) == (3, False, "exit code 0")
    assert 0 < timer["left_sec"] <= 20


@simulated(job("tick", 'on_calendar = "*:*:0/20"', program="exit=0@25"))
async def test_a_run_is_skipped_while_the_last_one_is_not_over(service: Client) -> None:
    await trio.sleep(62)
    assert decisions(service, "tick") == ["start", "skip", "start"]
    assert "tick is running, generation 1" in service.records("timer", "tick")[1]["message"]


@simulated(job("tick", 'on_calendar = "*:*:0/20", concurrency_policy = "replace"', program="exit=0@25"))
async def test_a_run_replaces_the_last_one(service: Client) -> None:
    await trio.sleep(62)
    assert decisions(service, "tick") == ["start", "replace", "replace"]
    assert service.course() == ["execed tick#1", "ends tick#1", "execed tick#2", "ends tick#2", "execed tick#3"]


@simulated(job("tick", 'on_calendar = "*:00", on_startup_sec = 1, concurrency_policy = "queue"', program="exit=0@4000"))
async def test_a_run_waits_for_the_last_one(service: Client) -> None:
    service.site.timer_disk.set_clock(2590 - 1)  # 02:59:49
    await trio.sleep(0.1)
    service.site.timer_disk.set_clock(0)
    await service.until("tick", "running")
    await trio.sleep(100)
    assert decisions(service, "tick") == ["start", "skip"]
    await service.command("signal", "tick", signal=15)
    await service.until_true(lambda: "execed tick#2" in service.course())
    assert decisions(service, "tick") == ["start", "skip", "start"]


@simulated(job("tick", 'on_calendar = "*:*:0/20", concurrency_policy = "allow"', "instances = 2", program="exit=0@50"))
async def test_instances_are_slots(service: Client) -> None:
    await trio.sleep(66)
    assert decisions(service, "tick") == ["instance", "instance", "skip"]
    assert service.course() == ["execed tick@1#1", "execed tick@2#1"]


@simulated(workload("web", 'timer = { on_calendar = "*:*:30", action = "restart" }'))
async def test_a_program_is_restarted(service: Client) -> None:
    await service.until("web", "running")
    await trio.sleep(62)
    assert service.course() == ["execed web#1", "ends web#1", "execed web#2"]


@simulated(job("tick", 'on_calendar = "*:*:0/20"'))
async def test_what_is_stopped_stays_stopped_until_it_is_started(service: Client) -> None:
    assert (await service.command("stop", "tick"))["ok"]
    await trio.sleep(62)
    assert service.course() == []
    (timer,) = service.supervisor.timer_status()
    assert (timer["armed"], timer["latest"], timer["next_at"]) == (
        False,
        "stopped by operator: nsupervisor start tick",
        None,
    )
    assert (await service.command("start", "tick"))["ok"]
    assert service.course() == ["execed tick#1", "ends tick#1"]
    await trio.sleep(30)
    assert service.course().count("execed tick#2") == 1


@simulated(workload("db") + job("tick", 'on_calendar = "*:*:0/20"', 'requires = ["db"]'))
async def test_a_timer_does_not_start_what_somebody_has_stopped(service: Client) -> None:
    await trio.sleep(30)
    assert "execed tick#1" in service.course()
    await service.command("stop", "db")
    await trio.sleep(30)
    assert service.state("db") == "stopped"
    assert "it would start db, which is stopped by operator" in service.records("timer", "tick")[-1]["message"]


@simulated(job("tick", 'on_calendar = "*:*:0/20"'))
async def test_a_reload_adds_changes_and_removes_timers(service: Client) -> None:
    await trio.sleep(30)
    runs = len(decisions(service, "tick"))
    await service.reload(job("tick", 'on_calendar = "2030-01-01"') + job("new", "on_startup_sec = 0"))
    await trio.sleep(62)
    assert len(decisions(service, "tick")) == runs
    assert decisions(service, "new") == ["start"]
    await service.reload(workload("tick", 'type = "oneshot"', program="exit=0@5"))
    assert service.supervisor.timer_status() == []
    await trio.sleep(62)
    assert len(decisions(service, "tick")) == runs


@simulated(job("night", 'on_calendar = "02:30"') + job("often", 'on_calendar = "*:30"'))
async def test_the_hour_that_occurs_twice(service: Client) -> None:
    """The clock of the simulated machine begins at 02:16 on the day on which summer time ends."""
    disk = service.site.timer_disk
    disk.set_clock(790)  # 02:29:50
    await trio.sleep(20)
    assert (decisions(service, "night"), decisions(service, "often")) == (["start"], ["start"])
    for _ in range(64):  # to 02:30:10 for the second time, in steps that leave nothing out
        disk.set_clock(56)
        await trio.sleep(0.25)
    assert (decisions(service, "night"), decisions(service, "often")) == (["start"], ["start", "start"])


@simulated(job("hourly", 'on_calendar = "hourly"'))
async def test_a_clock_that_is_set(service: Client) -> None:
    disk = service.site.timer_disk
    disk.set_clock(5 * HOUR)
    await trio.sleep(1)
    assert decisions(service, "hourly") == ["skip"]  # missed
    before = service.supervisor.timer_status()[0]["next_at"]
    disk.set_clock(-HOUR)
    await trio.sleep(1)
    assert service.supervisor.timer_status()[0]["next_at"] == before  # nothing is repeated
    assert [record["event"] for record in service.site.records()].count("clock set") == 2


def test_a_persistent_timer_catches_up_after_a_stop() -> None:
    runs = []

    async def client(service: Client) -> None:
        await trio.sleep(30)
        runs.append(decisions(service, "night"))

    site = make_site(job("night", 'on_calendar = "daily", persistent = true'))
    assert serve(site, client) == 0
    assert serve(site, client) == 0
    site.timer_disk.offset += 40 * HOUR  # while no supervisor runs
    assert serve(site, client) == 0
    assert [len(one) for one in runs] == [0, 0, 1]
    assert course(site).count("execed night#1") == 1


def test_a_timer_that_is_not_persistent_begins_anew_after_a_stop() -> None:
    async def client(service: Client) -> None:
        await trio.sleep(30)
        assert decisions(service, "night") == []

    site = make_site(job("night", 'on_calendar = "daily"'))
    assert serve(site, client) == 0
    site.timer_disk.offset += 40 * HOUR
    assert serve(site, client) == 0


def test_a_kill_neither_loses_nor_doubles_a_run() -> None:
    """Kill the first supervisor at each call after the run is due; the second one completes it."""
    text = job("tick", 'on_calendar = "02:17:20", persistent = true', 'restart = "no"', program="exit=0@2")

    async def client(service: Client) -> None:
        await trio.sleep(62)

    site = make_site(text)
    assert serve(site, client) == 0
    assert course(site) == ["execed tick#1", "ends tick#1"]
    killed = 0
    for number in range(1, 400):
        site = make_site(text)
        if serve(site, client, dies_at_call=number) is not None:
            break
        killed += 1
        site.run(on_start=lambda service: service.start_soon(_stop_after, service, 90))
        assert [event for event in course(site) if event.startswith("execed")] == ["execed tick#1"], number
    assert killed > 20


def test_a_program_that_ended_while_no_supervisor_ran_does_not_keep_a_run_from_its_start() -> None:
    async def until_it_runs(service: Client) -> None:
        await service.until("tick", "running")

    async def look(service: Client) -> None:
        await trio.sleep(5)
        assert decisions(service, "tick") == ["start", "start"]

    site = make_site(job("tick", 'on_calendar = "*:*:0/20"', program="exit=0@5"))
    assert serve(site, until_it_runs, stop=False) is None
    site.machine.advance(22)
    serve(site, look)


async def _stop_after(service: object, seconds: float) -> None:
    await trio.sleep(seconds)
    service.signals.send(15)  # type: ignore[attr-defined]
