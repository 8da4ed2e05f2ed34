"""Sockets that the service listens on for workloads, on the simulated machine: what survives which death."""

import pytest

from tests.service.simulated import Client, make_site, serve, simulated, workload
from tests.simulation.machine import ListeningSocket, Machine
from tests.simulation.service import Site

ADDRESS = "127.0.0.1:8000"
SOCKET = f'sockets = [{{ listen_stream = "{ADDRESS}" }}]'
WEB = workload("web", SOCKET, 'restart = "always"', "restart_sec = 0")
POOL = workload("pool", SOCKET, "instances = 2", 'restart = "always"')
PLAIN = workload("web", 'restart = "always"', "restart_sec = 0")


def listener(machine: Machine, address: str = ADDRESS) -> ListeningSocket:
    """Return the only socket that has ever had an address: it was made once."""
    (found,) = [one for one in machine.listeners if one.address == address]
    return found


@simulated(WEB)
async def test_a_program_gets_the_same_socket_at_each_start(service: Client) -> None:
    await service.until("web", "running")
    first = service.program("web")
    assert first.listeners == [listener(service.machine)]
    first.end(9)
    await service.until_true(lambda: "execed web#2" in service.course())
    assert service.program("web").listeners == [listener(service.machine)]
    assert service.status("web")["sockets"] == [
        {"type": "stream", "address": ADDRESS, "is_open": True, "is_watched": False, "problem": ""},
    ]


@simulated(POOL)
async def test_instances_with_the_same_address_share_a_socket(service: Client) -> None:
    await service.until("pool@1", "running")
    await service.until("pool@2", "running")
    shared = [listener(service.machine)]
    assert service.program("pool@1").listeners == shared
    assert service.program("pool@2").listeners == shared


async def start(service: Client) -> None:
    await service.until("web", "running")


async def has_the_first_socket(service: Client) -> None:
    """The next program has the socket of the first one, with the connections that wait."""
    found = listener(service.machine)
    service.program("web").end(9)
    await service.until_true(lambda: service.course()[-1].startswith("execed web#"))
    await service.until("web", "running")
    assert service.program("web").listeners == [found]


def begin(text: str = WEB) -> tuple[Site, ListeningSocket]:
    """Run a supervisor until its program runs, and kill it."""
    site = make_site(text)
    assert serve(site, start, stop=False) is None
    found = listener(site.machine)
    found.connect()
    return site, found


def test_a_socket_outlives_the_supervisor() -> None:
    site, found = begin()
    assert serve(site, has_the_first_socket) == 0
    assert found.waiting == 1


def test_a_socket_outlives_the_supervisor_while_its_program_does_not_run() -> None:
    """The keeper has no child then, and stays for the socket alone."""
    site, found = begin(workload("web", SOCKET, 'restart = "no"'))
    assert found.accept() == 1
    (program,) = (process for process in site.machine.living() if process.is_leader)
    program.end(0)
    site.machine.advance(1.0)

    async def rest(service: Client) -> None:
        await service.until("web", "exited")

    assert serve(site, rest, stop=False) is None
    assert site.keepers.current is not None
    assert list(site.keepers.current.held.values()) == [found]
    assert serve(site, rest) == 0
    assert listener(site.machine) is found


def test_a_socket_outlives_the_keeper() -> None:
    @simulated(WEB)
    async def run(service: Client) -> None:
        await service.until("web", "running")
        keeper = service.site.keepers.current
        assert keeper is not None
        keeper.die()
        await service.until_true(lambda: bool(service.records("keeper replaced")))
        assert service.site.keepers.current is not keeper
        await has_the_first_socket(service)

    run()


def test_a_program_gives_its_socket_back_when_supervisor_and_keeper_have_died() -> None:
    site, _ = begin()
    assert site.keepers.current is not None
    site.keepers.current.die()
    assert serve(site, has_the_first_socket) == 0


@pytest.mark.parametrize("dies_at_call", range(1, 140, 3))
def test_a_supervisor_that_dies_at_any_call_leaves_one_socket(dies_at_call: int) -> None:
    """Each death until the program runs, and the next supervisor: there is never a second socket with the address."""
    site = make_site(WEB)
    serve(site, start, stop=False, dies_at_call=dies_at_call)

    async def look(service: Client) -> None:
        await service.until("web", "running")
        open_ones = [one for one in site.machine.listeners if site.machine.holds(one)]
        assert service.program("web").listeners == open_ones
        assert len(open_ones) == 1

    assert serve(site, look) == 0


# ---- reload


@simulated(WEB)
async def test_a_reload_keeps_equal_sockets_and_closes_others(service: Client) -> None:
    await service.until("web", "running")
    keeper = service.site.keepers.current
    assert keeper is not None
    found = listener(service.machine)
    both = f'sockets = [{{ listen_stream = "{ADDRESS}" }}, {{ listen_stream = "127.0.0.1:8001" }}]'
    await service.reload(workload("web", both, 'restart = "always"', "restart_sec = 0"))
    assert service.program("web").listeners == [found, listener(service.machine, "127.0.0.1:8001")]
    await service.reload(WEB)
    assert service.program("web").listeners == [found]
    assert list(keeper.held.values()) == [found]
    await service.reload(PLAIN)
    assert service.program("web").listeners == []
    await service.until_true(lambda: not keeper.held)
    assert "sockets" not in {key for key, value in service.status("web").items() if value}


@simulated(WEB)
async def test_a_socket_moves_to_another_workload(service: Client) -> None:
    await service.until("web", "running")
    found = listener(service.machine)
    await service.reload(PLAIN + WEB.replace("web", "other"))
    await service.until("other", "running")
    assert service.program("other").listeners == [found]
    assert service.program("web").listeners == []


@simulated(WEB)
async def test_a_change_of_the_mode_needs_no_process(service: Client) -> None:
    await service.until("web", "running")
    reports = await service.reload(WEB.replace(" }]", ', backlog = 16, socket_mode = "0600" }]'))
    assert [step["do"] for step in reports[0]["steps"]] == ["live"]


# ---- addresses in use


def occupied(text: str) -> Site:
    """Return a machine on which a foreign program has the address."""
    site = make_site(text)
    foreign = ListeningSocket(ADDRESS)
    site.machine.listeners.append(foreign)
    site.machine.holds = lambda one: one is foreign
    return site


def test_an_address_in_use_fails_the_start_with_the_reason_and_is_tried_again() -> None:
    site = occupied(workload("web", SOCKET, 'restart = "always"', "restart_sec = 1"))
    foreign, is_gone = site.machine.listeners[0], False

    async def act(service: Client) -> None:
        nonlocal is_gone
        keeper = site.keepers.current
        assert keeper is not None
        held = keeper.held
        site.machine.holds = lambda one: one in held.values() or (one is foreign and not is_gone)
        await service.until("web", "backoff")
        status = service.status("web")
        assert "cannot listen on 127.0.0.1:8000: Address already in use" in status["reason"]
        assert status["sockets"][0]["problem"].startswith("cannot listen on 127.0.0.1:8000")
        is_gone = True
        await service.until("web", "running")
        assert service.status("web")["sockets"][0]["problem"] == ""

    original = site.keepers.start

    def start_keeper() -> object:
        keeper = original()
        held = keeper.held
        site.machine.holds = lambda one: one in held.values() or (one is foreign and not is_gone)
        return keeper

    site.keepers.start = start_keeper  # type: ignore[method-assign, assignment]
    assert serve(site, act) == 0
