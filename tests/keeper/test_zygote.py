"""The zygote: inits stay small, and nothing is lost when it is killed."""

import os
import signal
from pathlib import Path

import trio

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


async def test_an_init_costs_little_memory(harness: Harness) -> None:
    """Forked from the keeper itself, an init was left with 1.3 MB of its own."""
    inits = []
    for _ in range(10):
        spawned = await harness.spawn("sleep", "1000", namespaces=ISOLATED)
        await harness.execed(spawned)
        inits.append(spawned.pid)
    sizes = sorted(map(private_kib, inits))
    assert sizes[5] < 700, sizes


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
    await harness.run("true")  # by now one waits
    (waiting,) = (pid for pid in children(harness.keeper.pid) if numbers(pid) == 2)
    os.kill(int(waiting), signal.SIGKILL)
    with trio.fail_after(deadline(5)):
        while command(waiting):  # noqa: ASYNC110 - the keeper reaps it
            await trio.sleep(0.001)
    assert (await harness.run("echo", "new", namespaces=ISOLATED)).stdout == "new\n"


async def test_no_init_in_advance_for_a_user_namespace(harness: Harness) -> None:
    await harness.run("true", namespaces=[*ISOLATED, "user"])
    await harness.run("true")
    assert [command(pid) for pid in children(harness.keeper.pid)] == ["nsupervisor-zyg"]
