"""Starts of workloads by the first connection, on the simulated machine."""

import pytest
import trio

from tests.service.simulated import Client, make_site, serve, simulated, workload
from tests.simulation.machine import ListeningSocket, Machine

ADDRESS = "127.0.0.1:8000"
SOCKET = f'sockets = [{{ listen_stream = "{ADDRESS}" }}]'
LAZY = workload("web", SOCKET, "autostart = false", 'restart = "no"')
LIMITED = f'sockets = [{{ listen_stream = "{ADDRESS}", trigger_limit_burst = 5 }}]'
SPINS = workload("web", LIMITED, "autostart = false", 'restart = "no"', program="exit=0@0.01")


def listener(machine: Machine) -> ListeningSocket:
    (found,) = [one for one in machine.listeners if one.address == ADDRESS]
    return found


async def idle(service: Client) -> None:
    """Wait until the workload waits for a connection."""
    await service.until_true(lambda: service.status("web")["sockets"][0]["is_watched"])


def starts(service: Client) -> int:
    return int(service.status("web")["generation"])


@simulated(LAZY)
async def test_a_connection_starts_the_program_and_its_end_waits_for_the_next(service: Client) -> None:
    await idle(service)
    assert service.status("web")["reason"].endswith("waits for a connection")
    await trio.sleep(20)
    assert starts(service) == 0
    for generation in (1, 2, 3):
        listener(service.machine).connect()
        await service.until("web", "running")
        assert starts(service) == generation
        assert not service.status("web")["sockets"][0]["is_watched"]
        listener(service.machine).accept()
        service.program("web").end(0)
        await idle(service)
    await trio.sleep(20)
    assert starts(service) == 3


@simulated(LAZY)
async def test_a_stop_is_final_until_a_start(service: Client) -> None:
    await idle(service)
    assert (await service.command("stop", "web"))["ok"]  # it has never run
    listener(service.machine).connect()
    await trio.sleep(20)
    assert starts(service) == 0
    assert (await service.command("start", "web"))["ok"]
    assert (await service.command("stop", "web"))["ok"]
    await trio.sleep(20)
    assert starts(service) == 1
    assert (await service.command("start", "web"))["ok"]
    listener(service.machine).accept()
    service.program("web").end(0)
    await idle(service)
    assert (await service.command("stop", "web"))["ok"]  # it has ended by itself
    listener(service.machine).connect()
    await trio.sleep(20)
    assert starts(service) == 2


@simulated(SPINS)
async def test_a_program_that_takes_nothing_is_started_only_so_often(service: Client) -> None:
    await idle(service)
    listener(service.machine).connect()
    await service.until_true(lambda: "nsupervisor start web" in service.status("web")["sockets"][0]["problem"])
    await trio.sleep(20)
    assert starts(service) == 5
    assert len([one for one in service.records("warning") if "nsupervisor start web" in one["message"]]) == 1
    await service.command("start", "web")
    await service.until_true(lambda: starts(service) > 6)


@pytest.mark.parametrize("dies_at_call", range(1, 160, 3))
def test_a_connection_starts_the_program_whenever_the_supervisor_has_died(dies_at_call: int) -> None:
    site = make_site(LAZY)

    async def connect(service: Client) -> None:
        await idle(service)
        listener(site.machine).connect()
        await service.until("web", "running")

    serve(site, connect, stop=False, dies_at_call=dies_at_call)

    async def look(service: Client) -> None:
        open_ones = [one for one in site.machine.listeners if site.machine.holds(one)]
        assert len(open_ones) == 1
        if not open_ones[0].waiting:
            await idle(service)
            open_ones[0].connect()
        await service.until("web", "running")
        assert service.program("web").listeners == open_ones
        assert starts(service) == 1

    assert serve(site, look) == 0


def test_a_stop_stays_final_after_a_kill() -> None:
    site = make_site(LAZY)

    async def stop(service: Client) -> None:
        await idle(service)
        assert (await service.command("stop", "web"))["ok"]

    serve(site, stop, stop=False)

    async def look(service: Client) -> None:
        listener(site.machine).connect()
        await trio.sleep(20)
        assert starts(service) == 0

    assert serve(site, look) == 0


def test_a_connection_starts_the_program_after_the_death_of_the_keeper() -> None:
    @simulated(LAZY)
    async def run(service: Client) -> None:
        await idle(service)
        keeper = service.site.keepers.current
        assert keeper is not None
        keeper.die()
        await service.until_true(lambda: bool(service.records("keeper replaced")))
        listener(service.machine).connect()
        await service.until("web", "running")

    run()


@simulated(LAZY)
async def test_a_reload_adds_and_removes_what_starts_a_workload(service: Client) -> None:
    await idle(service)
    await service.reload(workload("web", "autostart = false", 'restart = "no"'))
    assert not service.status("web")["sockets"]
    await service.reload(LAZY)
    await idle(service)
    next(one for one in service.machine.listeners if service.machine.holds(one)).connect()
    await service.until("web", "running")


DB = workload("db", "autostart = false", 'restart = "no"')
NEEDY = workload("web", SOCKET, "autostart = false", 'restart = "no"', 'requires = ["db"]') + DB


@simulated(NEEDY)
async def test_traffic_does_not_start_a_requirement_that_a_request_has_stopped(service: Client) -> None:
    await idle(service)
    assert (await service.command("stop", "db"))["ok"]
    listener(service.machine).connect()
    await trio.sleep(20)
    assert starts(service) == 0
    assert (await service.command("start", "db"))["ok"]
    await service.until("web", "running")


@simulated(NEEDY)
async def test_traffic_starts_what_the_workload_requires(service: Client) -> None:
    await idle(service)
    listener(service.machine).connect()
    await service.until("web", "running")
    assert service.course() == ["execed db#1", "execed web#1"]


@simulated(LAZY + workload("app", 'requires = ["web"]', "autostart = false"))
async def test_a_requirement_on_it_starts_it(service: Client) -> None:
    await idle(service)
    assert (await service.command("start", "app"))["ok"]
    assert service.course() == ["execed web#1", "execed app#1"]


@simulated(LAZY)
async def test_what_has_failed_waits_for_a_start(service: Client) -> None:
    await idle(service)
    listener(service.machine).connect()
    await service.until("web", "running")
    service.program("web").end(9)
    await service.until("web", "failed")
    await trio.sleep(20)
    assert starts(service) == 1
    assert not service.status("web")["sockets"][0]["is_watched"]


@simulated(LAZY)
async def test_the_socket_is_the_initiator(service: Client) -> None:
    await idle(service)
    listener(service.machine).connect()
    await service.until("web", "running")
    assert [one["cause"] for one in service.site.records() if "cause" in one] == [
        {"by": "socket 127.0.0.1:8000", "kind": "socket"}
    ]


@simulated(SPINS)
async def test_the_trigger_limit_changes_live(service: Client) -> None:
    await idle(service)
    reports = await service.reload(SPINS.replace("trigger_limit_burst = 5", "trigger_limit_burst = 7"))
    assert [step["do"] for step in reports[0]["steps"]] == ["live"]
    listener(service.machine).connect()
    await service.until_true(lambda: bool(service.status("web")["sockets"][0]["problem"]))
    assert starts(service) == 7


def test_a_connection_starts_the_program_after_the_death_of_supervisor_and_keeper() -> None:
    """The socket is made again, as no process has it: only what waited in it is lost."""
    site = make_site(LAZY)
    serve(site, idle, stop=False)
    assert site.keepers.current is not None
    site.keepers.current.die()

    async def look(service: Client) -> None:
        await idle(service)
        (found,) = [one for one in site.machine.listeners if site.machine.holds(one)]
        found.connect()
        await service.until("web", "running")
        assert service.program("web").listeners == [found]

    assert serve(site, look) == 0


@simulated(SPINS)
async def test_a_reload_keeps_the_limit(service: Client) -> None:
    await idle(service)
    listener(service.machine).connect()
    await service.until_true(lambda: bool(service.status("web")["sockets"][0]["problem"]))
    await service.reload(SPINS + workload("other", "autostart = false"))
    await trio.sleep(20)
    assert starts(service) == 5
