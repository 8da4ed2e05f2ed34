"""Descriptor stores on the simulated machine: what a program stores outlives it, the supervisor and the keeper."""

from collections.abc import Sequence

import pytest
import trio

from tests.service.simulated import Client, make_site, serve, simulated, workload
from tests.simulation.machine import Process, StoredFile
from tests.simulation.service import Site

STORE = "file_descriptor_store_max = 2"
ALWAYS = ('restart = "always"', "restart_sec = 0")
WEB = workload("web", STORE, *ALWAYS)
SOCKET = 'sockets = [{ listen_stream = "127.0.0.1:8000" }]'


def send(service: Client, text: str, *files: StoredFile, name: str = "web", sender: Process | None = None) -> None:
    """Send a message as the program of an instance."""
    program = service.program(name)
    path = program.behaviour.environment["NOTIFY_SOCKET"]  # type: ignore[attr-defined]
    service.machine.send_datagram(path, text.encode(), (sender or program).pid, files)


async def store(service: Client, name: str, *files: StoredFile, more: str = "") -> None:
    """Store descriptors, and wait until the keeper has them."""
    send(service, f"FDSTORE=1\nFDNAME={name}{more}", *files)
    await service.until_true(lambda: set(files) <= set(held(service.site)))


def held(site: Site) -> Sequence[object]:
    """Return what the keeper holds."""
    keeper = site.keepers.current
    return [] if keeper is None else list(keeper.held.values())


def names(service: Client) -> list[str]:
    """Return the names that `status` shows."""
    found: list[str] = service.status("web")["stored_descriptors"]
    return found


async def until_restarted(service: Client, status: int = 9) -> Process:
    """End the program; return the next one."""
    generation = service.status("web")["generation"]
    service.program("web").end(status)
    await service.until_true(lambda: f"execed web#{generation + 1}" in service.course())
    return service.program("web")


@simulated(workload("web", STORE, SOCKET, *ALWAYS))
async def test_the_next_program_gets_what_the_last_one_stored_behind_the_sockets(service: Client) -> None:
    await service.until("web", "running")
    first, second = StoredFile("first"), StoredFile("second")
    await store(service, "b", first)
    await store(service, "a", second)
    program = await until_restarted(service)
    assert program.listeners[1:] == [first, second], "in the order in which they came"
    assert program.behaviour.environment["FDSTORE"] == "2"  # type: ignore[attr-defined]
    assert (names(service), service.status("web")["stored_descriptors_max"]) == (["b", "a"], 2)


@simulated(WEB)
async def test_a_full_store_refuses_a_descriptor_and_says_so_once_a_minute(service: Client) -> None:
    await service.until("web", "running")
    files = [StoredFile(str(number)) for number in range(4)]
    await store(service, "x", *files[:2])
    for file in files[2:]:
        send(service, "FDSTORE=1", file)
    await trio.sleep(1)
    assert held(service.site) == files[:2]
    (record,) = service.records("notify refused", "web")
    assert record["message"].startswith("descriptor store: 1 refused: it is full with 2 descriptors")


@simulated(WEB)
async def test_a_descriptor_that_is_stored_already_is_not_stored_twice(service: Client) -> None:
    await service.until("web", "running")
    file = StoredFile("one")
    await store(service, "x", file)
    send(service, "FDSTORE=1\nFDNAME=y", file)
    await trio.sleep(1)
    assert (names(service), service.records("notify refused", "web")) == (["x"], [])


@simulated(WEB)
async def test_a_program_removes_descriptors_by_their_name(service: Client) -> None:
    await service.until("web", "running")
    kept, removed = StoredFile("kept"), StoredFile("removed")
    await store(service, "kept", kept)
    await store(service, "removed", removed)
    send(service, "FDSTOREREMOVE=1\nFDNAME=removed")
    await service.until_true(lambda: held(service.site) == [kept])
    assert names(service) == ["kept"]


@simulated(WEB)
async def test_a_descriptor_whose_other_end_is_closed_is_removed_unless_the_program_says_no(service: Client) -> None:
    await service.until("web", "running")
    polled, kept = StoredFile("polled"), StoredFile("kept")
    await store(service, "polled", polled)
    await store(service, "kept", kept, more="\nFDPOLL=0")
    kept.hang_up()
    polled.hang_up()
    await service.until_true(lambda: held(service.site) == [kept])
    assert names(service) == ["kept"]


@simulated(WEB + workload("other"))
async def test_another_workload_stores_and_removes_nothing(service: Client) -> None:
    await service.until("web", "running")
    await service.until("other", "running")
    file, foreign = StoredFile("own"), StoredFile("foreign")
    await store(service, "x", file)
    send(service, "FDSTORE=1", foreign, sender=service.program("other"))
    send(service, "FDSTOREREMOVE=1\nFDNAME=x", sender=service.program("other"))
    await trio.sleep(1)
    assert held(service.site) == [file]


@simulated(WEB)
async def test_what_may_block_is_not_stored(service: Client) -> None:
    await service.until("web", "running")
    send(service, "FDSTORE=1", StoredFile("fuse", is_harmless=False))
    await trio.sleep(1)
    assert held(service.site) == []
    (record,) = service.records("notify refused", "web")
    assert record["message"] == "descriptor store: 1 refused: it is a file"


@simulated(workload("web", 'type = "notify"', *ALWAYS, program="ready=0"))
async def test_a_workload_without_a_store_stores_nothing(service: Client) -> None:
    await service.until("web", "ready")
    send(service, "FDSTORE=1", StoredFile("x"))
    await trio.sleep(1)
    assert held(service.site) == []
    (record,) = service.records("notify refused", "web")
    assert "set file_descriptor_store_max" in record["message"]


# ---- preserve


@pytest.mark.parametrize(
    ("preserve", "after_crash", "after_restart", "after_stop"),
    [("no", 0, 0, 0), ("restart", 1, 1, 0), ("yes", 1, 1, 1)],
)
def test_preserve_says_which_ends_the_store_outlives(
    preserve: str, after_crash: int, after_restart: int, after_stop: int
) -> None:
    text = workload("web", STORE, f'file_descriptor_store_preserve = "{preserve}"', *ALWAYS)

    @simulated(text + workload("app", 'part_of = ["web"]'))
    async def run(service: Client) -> None:
        for end, expected in ((until_restarted, after_crash), (restart, after_restart), (stop_and_start, after_stop)):
            await service.until("web", "running")
            if not names(service):
                await store(service, "x", StoredFile("x"))
            await end(service)
            await service.until("web", "running")
            assert len(names(service)) == len(service.program("web").listeners) == expected, end

    run()


async def restart(service: Client) -> None:
    await service.command("restart", "web")


async def stop_and_start(service: Client) -> None:
    await service.command("stop", "web")
    await service.command("start", "web")


# ---- deaths


def begin(text: str = WEB) -> tuple[Site, StoredFile]:
    """Run a supervisor until its program has stored a descriptor, and kill it."""
    site, file = make_site(text), StoredFile("x")

    async def act(service: Client) -> None:
        await service.until("web", "running")
        await store(service, "x", file)

    assert serve(site, act, stop=False) is None
    return site, file


async def has_it(service: Client, file: StoredFile) -> None:
    """The next program has the descriptor of the first one, and the store goes on with the next number."""
    assert names(service) == ["x"]
    other = StoredFile("y")
    await store(service, "y", other)
    assert (await until_restarted(service)).listeners == [file, other]


def test_a_store_outlives_the_supervisor() -> None:
    site, file = begin()
    assert serve(site, lambda service: has_it(service, file)) == 0


def test_what_a_program_stores_while_no_supervisor_runs_is_stored() -> None:
    site, file = begin()
    (program,) = (process for process in site.machine.living() if process.is_leader)
    other = StoredFile("z")
    path = program.behaviour.environment["NOTIFY_SOCKET"]  # type: ignore[attr-defined]
    site.machine.send_datagram(path, b"FDSTORE=1\nFDNAME=z", program.pid, [other])

    async def act(service: Client) -> None:
        await service.until_true(lambda: held(site) == [file, other])
        assert names(service) == ["x", "z"]

    assert serve(site, act) == 0


def test_a_store_outlives_the_keeper() -> None:
    @simulated(WEB)
    async def run(service: Client) -> None:
        await service.until("web", "running")
        file, keeper = StoredFile("x"), service.site.keepers.current
        await store(service, "x", file)
        assert keeper is not None
        keeper.die()
        await service.until_true(lambda: bool(service.records("keeper replaced")))
        assert held(service.site) == [file]
        await has_it(service, file)

    run()


def test_a_store_of_a_workload_that_the_file_has_no_more_is_released() -> None:
    site, _ = begin()
    site.text = workload("other")

    async def act(service: Client) -> None:
        await service.until_true(lambda: held(site) == [])

    assert serve(site, act) == 0


@simulated(WEB + workload("other"))
async def test_a_reload_that_removes_a_workload_releases_its_store(service: Client) -> None:
    await service.until("web", "running")
    await store(service, "x", StoredFile("x"))
    await service.reload(workload("other"))
    await service.until_true(lambda: held(service.site) == [])


@pytest.mark.parametrize("dies_at_call", range(1, 160, 3))
def test_a_supervisor_that_dies_at_any_call_loses_nothing_that_the_keeper_has(dies_at_call: int) -> None:
    """The next program gets what the keeper holds, each once; the supervisor dies anywhere in a restart."""
    site, file = begin()

    async def restarts(service: Client) -> None:
        await until_restarted(service)

    serve(site, restarts, stop=False, dies_at_call=dies_at_call)

    async def look(service: Client) -> None:
        await service.until("web", "running")
        assert held(site) == [file]
        assert (await until_restarted(service)).listeners == [file]

    assert serve(site, look) == 0
