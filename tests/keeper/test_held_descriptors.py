"""Descriptors that the keeper holds for the service, and passes on to programs. Real sockets, real processes."""

import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from nsupervisor.keeper.client import open_keeper
from nsupervisor.keeper.messages import KeeperLost, RefusedError, SpawnError
from tests.keeper.conftest import ISOLATED, WAYS_TO_START, Harness, end_all, gone
from tests.needs import ROOT, needs

pytestmark = needs("root")

LOOK = """
import os, socket
assert int(os.environ["LISTEN_PID"]) == os.getpid()
present = sorted(map(int, os.listdir("/proc/self/fd")))[:-1]
names = [socket.socket(fileno=fd).getsockname()[1] for fd in range(3, 3 + int(os.environ["LISTEN_FDS"]))]
print(names, os.environ["LISTEN_FDNAMES"], present)
"""
"""Prints the ports of the sockets, their names, and all descriptors but that of the directory itself."""


@pytest.fixture
def listeners() -> Iterator[list[socket.socket]]:
    """Return 20 sockets that listen: more than one message to the keeper may carry."""
    made = [socket.create_server(("127.0.0.1", 0)) for _ in range(20)]
    yield made
    for one in made:
        one.close()


def port(listener: socket.socket) -> int:
    return int(listener.getsockname()[1])


async def hold(harness: Harness, listeners: list[socket.socket]) -> list[list[str]]:
    """Let the keeper hold sockets; return the key `descriptors` of a specification."""
    for number, listener in enumerate(listeners):
        await harness.keeper.hold(f"web {number}", listener.fileno())
    return [[f"web {number}", f"name{number}"] for number in range(len(listeners))]


@WAYS_TO_START
@pytest.mark.parametrize("count", [1, 2, 6, 20])
async def test_a_program_gets_exactly_its_sockets(
    harness: Harness, listeners: list[socket.socket], spec: dict, count: int
) -> None:
    """Numbers 3 to 7 are those of the set-up's own descriptors, which must not end it or be left open."""
    chosen = listeners[:count]
    descriptors = await hold(harness, chosen)
    result = await harness.run("python3", "-Ic", LOOK, descriptors=descriptors, **spec)
    names = ":".join(name for _, name in descriptors)
    assert result.stdout.strip() == f"{[port(one) for one in chosen]} {names} {[*range(3 + count)]}", result
    await harness.keeper.release([key for key, _ in descriptors])


@WAYS_TO_START
async def test_a_failed_exec_of_a_program_with_sockets_is_reported(
    harness: Harness, listeners: list[socket.socket], spec: dict
) -> None:
    """Its report has lost its usual number by then."""
    descriptors = await hold(harness, listeners)
    result = await harness.run("/nowhere", descriptors=descriptors, **spec)
    assert result.failure is not None
    assert result.failure.step == "execute"
    assert "No such file" in result.failure.message
    await harness.keeper.release([key for key, _ in descriptors])


async def test_too_few_descriptors_for_the_sockets(harness: Harness, listeners: list[socket.socket]) -> None:
    descriptors = await hold(harness, listeners)
    result = await harness.run("true", descriptors=descriptors, rlimits={"nofile": [12, 12]})
    assert result.failure is not None
    assert result.failure.step == "pass_descriptors"
    assert "limit_nofile is too low" in result.failure.message
    await harness.keeper.release([key for key, _ in descriptors])


async def test_a_program_without_sockets_gets_none(harness: Harness, listeners: list[socket.socket]) -> None:
    """The inits and standbys are made while the keeper holds them."""
    await hold(harness, listeners)
    for namespaces in ([], ISOLATED):
        result = await harness.run("sh", "-c", "echo /proc/self/fd/*; echo $LISTEN_FDS", namespaces=namespaces)
        assert result.stdout.split()[:3] == ["/proc/self/fd/0", "/proc/self/fd/1", "/proc/self/fd/2"]
        assert len(result.stdout.split()) <= 4  # that of the directory itself
    await harness.keeper.release([f"web {number}" for number in range(20)])


async def test_what_is_not_held_cannot_be_passed(harness: Harness) -> None:
    with pytest.raises(SpawnError, match="does not hold nothing"):
        await harness.spawn("true", descriptors=[["nothing", "name"]])
    for descriptors, message in (
        ([["a", "x:y"]], "colon"),
        ([["a"]], "descriptors"),
        ([["a", "b"]] * 129, "at most 128"),
    ):
        with pytest.raises(SpawnError, match=message):
            await harness.spawn("true", descriptors=descriptors)


async def test_a_descriptor_is_replaced_listed_and_released(harness: Harness, listeners: list[socket.socket]) -> None:
    keeper = harness.keeper
    await keeper.hold("web", listeners[0].fileno())
    await keeper.hold("web", listeners[1].fileno())
    await keeper.hold("other", listeners[2].fileno())
    held = await keeper.held()
    ports = {}
    for key, fd in held.items():
        with socket.socket(fileno=fd) as found:
            ports[key] = port(found)
    assert ports == {"web": port(listeners[1]), "other": port(listeners[2])}
    await keeper.release(["web", "never held"])
    (fd,) = (await keeper.held()).values()
    os.close(fd)
    await keeper.release(["other"])
    assert await keeper.held() == {}


async def test_a_keeper_waits_for_the_next_client_as_long_as_it_holds_a_descriptor(runtime_directory: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        async with open_keeper(runtime_directory) as keeper:
            await keeper.hold("web", listener.fileno())
            pid = keeper.pid
        address = listener.getsockname()
    with socket.create_connection(address):  # the keeper alone has it open
        pass
    async with open_keeper(runtime_directory) as keeper:
        assert keeper.pid == pid
        (fd,) = (await keeper.held()).values()
        os.close(fd)
        await keeper.release(["web"])
    await gone(pid)


async def test_descriptors_survive_an_upgrade_of_the_keeper(
    runtime_directory: Path, listeners: list[socket.socket]
) -> None:
    listener = listeners[0]
    async with open_keeper(runtime_directory) as keeper:
        await keeper.hold("web", listener.fileno())
        pid = keeper.pid
        with pytest.raises(RefusedError):
            await keeper.execute("/nowhere", str(ROOT))
        with pytest.raises(KeeperLost):
            await keeper.execute(sys.executable, str(ROOT))
    address = listener.getsockname()
    listener.close()
    async with open_keeper(runtime_directory) as keeper, trio.open_nursery() as nursery:
        assert keeper.pid == pid
        harness = Harness(keeper)
        nursery.start_soon(harness.listen)
        result = await harness.run(sys.executable, "-Ic", LOOK, descriptors=[["web", "web"]])
        assert result.stdout.startswith(f"[{address[1]}] web [0, 1, 2, 3]"), result
        await keeper.release(["web"])
        await end_all(keeper)
        nursery.cancel_scope.cancel()
