"""The zygote: inits stay small, and nothing is lost when it is killed."""

import os
import signal
from pathlib import Path

import pytest
import trio

from nsupervisor.keeper import protocol
from nsupervisor.keeper.client import open_keeper
from nsupervisor.keeper.messages import SpawnError
from tests.keeper.conftest import ISOLATED, Harness
from tests.needs import needs
from tests.timing import deadline

pytestmark = needs("root")


def zygote(keeper: int) -> int:
    """The pid of the zygote: the only child that is in the same PID namespace."""
    (found,) = (int(pid) for pid in children(keeper) if numbers(pid) == 1)
    return found


def numbers(pid: str) -> int:
    """How many PID namespaces it is in: an init is in one of its own, too."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next(len(line.split()) - 1 for line in lines if line.startswith("NSpid:"))


def children(pid: int) -> list[str]:
    """Its children's pids."""
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def command(pid: str) -> str:
    """The name of a process; "" when it has gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def private_kib(pid: int) -> int:
    """Memory that the process shares with nobody."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("Private_Dirty", "Private_Clean")))


async def only_the_next_waits(harness: Harness, inits: int = 1) -> None:
    """Nobody is left but the zygote, and an init with its forerunner for the next start, or so many."""
    names = inner = ["nothing yet"]
    try:
        with trio.fail_after(deadline(20)):
            while (
                sorted(names) != [*["nsupervisor-ini"] * inits, "nsupervisor-zyg"]
                or inner != ["nsupervisor-for"] * inits
            ):
                await trio.sleep(0.001)
                names = [command(pid) for pid in children(harness.keeper.pid)]
                inner = [command(child) for pid in children(harness.keeper.pid) for child in children_of(pid)]
    except trio.TooSlowError:
        raise AssertionError(f"the keeper's children are {names}, and theirs {inner}") from None


def children_of(pid: str) -> list[str]:
    try:
        return children(int(pid))
    except OSError:
        return []


async def order_read(init: int) -> None:
    """Wait until an init looks after its program: then it has its status channel, and no other descriptor."""
    with trio.fail_after(deadline(20)):
        while os.listdir(f"/proc/{init}/fd") != ["3"]:  # noqa: ASYNC110
            await trio.sleep(0.001)


async def test_an_init_costs_next_to_no_memory(harness: Harness) -> None:
    """Forked from the keeper itself, an init was left with 1.3 MB of its own; as a Python process, with 0.5 MB."""
    first = await harness.spawn("sleep", "1000", namespaces=ISOLATED)
    second = await harness.spawn("sleep", "1000", namespaces=ISOLATED)
    for spawned in (first, second):
        await harness.execed(spawned)
        await order_read(spawned.pid)
    for spawned in (first, second):
        assert private_kib(spawned.pid) <= 8 * (os.sysconf("SC_PAGESIZE") // 4096)


async def test_an_init_has_nothing_of_the_keeper(harness: Harness) -> None:
    """Its memory was the keeper's: with the supervisor's environment, and what the keeper knew of other workloads."""
    env = {"PATH": os.defpath, "SECRET": "of-other"}
    await harness.run("true", namespaces=ISOLATED, env=env)
    spawned = await harness.spawn("sleep", "1000", namespaces=ISOLATED, name="web@2")
    await harness.execed(spawned)
    process = Path(f"/proc/{spawned.pid}")
    await order_read(spawned.pid)
    assert (process / "environ").read_bytes() == b""
    assert (process / "cmdline").read_bytes().rstrip(b"\0") == b"nsupervisor: init web@2"
    assert os.readlink(process / "cwd") == "/"
    with open(process / "mem", "rb") as memory:  # noqa: ASYNC230 - of the kernel
        for line in (process / "maps").read_text().splitlines():
            start, end = (int(number, 16) for number in line.split()[0].split("-"))
            if "[v" in line:  # of the kernel: vdso, vvar
                continue
            memory.seek(start)
            content = memory.read(end - start)
            assert b"of-other" not in content
            assert b"PATH=" not in content


@needs("userns")
@pytest.mark.parametrize("mappings", [[], [[0, 100_000, 1000]]], ids=["own-user", "other-users"])
async def test_the_root_of_a_user_namespace_cannot_look_into_its_init(harness: Harness, mappings: list) -> None:
    script = """
        id -u; kill -0 1 && echo signals
        for file in environ maps mem stack syscall; do cat /proc/1/$file >/dev/null 2>&1 && echo $file; done
        readlink /proc/1/fd/3 /proc/1/exe /proc/1/cwd
    """
    result = await harness.run(
        *("sh", "-c", script), namespaces=[*ISOLATED, "user"], uid_mappings=mappings, gid_mappings=mappings
    )
    assert result.stdout == "0\nsignals\n"


async def test_inits_are_the_keepers_children(harness: Harness) -> None:
    spawned = await harness.spawn("sleep", "1000", namespaces=ISOLATED)
    stat = Path(f"/proc/{spawned.pid}/stat").read_text()
    assert int(stat.rpartition(")")[2].split()[1]) == harness.keeper.pid


async def test_a_killed_zygote_is_replaced_and_its_inits_live_on(harness: Harness) -> None:
    first = await harness.spawn("sleep", "1000", namespaces=ISOLATED)
    program = await harness.execed(first)
    old = zygote(harness.keeper.pid)
    os.kill(old, signal.SIGKILL)
    for _ in range(3):  # the first has an init that was waiting
        assert (await harness.run("echo", "new", namespaces=ISOLATED)).stdout == "new\n"
    assert zygote(harness.keeper.pid) != old
    assert Path(f"/proc/{program.pid}/comm").read_text() == "sleep\n"


async def test_a_large_specification_reaches_the_program(harness: Harness) -> None:
    env = {f"V{i}": "x" * 1000 for i in range(300)}
    result = await harness.run("sh", "-c", "echo ${#V299}", env={**env, "PATH": os.defpath}, namespaces=ISOLATED)
    assert result.stdout == "1000\n"


async def test_a_killed_init_that_waits_is_replaced(harness: Harness) -> None:
    await harness.run("true", namespaces=ISOLATED)
    await only_the_next_waits(harness)
    (waiting,) = (pid for pid in children(harness.keeper.pid) if numbers(pid) == 2)
    os.kill(int(waiting), signal.SIGKILL)
    with trio.fail_after(deadline(20)):
        while command(waiting):  # noqa: ASYNC110 - the keeper reaps it
            await trio.sleep(0.001)
    assert (await harness.run("echo", "new", namespaces=ISOLATED)).stdout == "new\n"


async def test_no_init_in_advance_for_a_user_namespace(harness: Harness) -> None:
    await harness.run("true", namespaces=[*ISOLATED, "user"])
    await harness.run("true")  # answered after the keeper has prepared what it prepares
    await only_the_next_waits(harness, inits=0)  # the init that was used may still be there to be reaped


async def test_a_missing_native_part_is_named(runtime_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a source tree that was never built; the zygote once died of it, which said nothing."""
    code = "from nsupervisor.keeper import native; native._DIRECTORY = '/no/such'; "
    monkeypatch.setattr(protocol, "START_CODE", protocol.START_CODE.replace("from nsuper", code + "from nsuper", 1))
    async with open_keeper(runtime_directory) as keeper:
        with pytest.raises(SpawnError, match=r"/no/such/clone\.so was not built; run scripts/setup"):
            await keeper.spawn({"id": "a", "argv": ["true"], "env": {}, "cwd": "/", "namespaces": ISOLATED})
        await keeper.shutdown()
