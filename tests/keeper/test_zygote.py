"""The zygote: inits stay small, and nothing is lost when it is killed."""

import os
import signal
from pathlib import Path

import trio

from nsupervisor.keeper.native.assembler import MACHINES
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


async def until_small(init: int) -> None:
    """It gives back what it does not need when nothing has happened for a while."""
    most = 40 if os.uname().machine in MACHINES else 700
    with trio.fail_after(deadline(20)):
        while private_kib(init) > most:  # noqa: ASYNC110
            await trio.sleep(0.001)


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


async def test_an_init_costs_next_to_no_memory(harness: Harness) -> None:
    """Forked from the keeper itself, an init was left with 1.3 MB of its own; as a Python process, with 0.5 MB."""
    spawned = await harness.spawn("sleep", "1000", namespaces=ISOLATED)
    await harness.execed(spawned)
    await until_small(spawned.pid)
    assert b"nsupervisor" in Path(f"/proc/{spawned.pid}/cmdline").read_bytes()


async def test_an_init_that_has_given_back_its_memory_does_its_work(harness: Harness) -> None:
    script = """
        trap '(sh -c "exit 3" &); echo USR1' USR1; trap 'kill $!; exit 42' TERM
        echo ready; while :; do sleep 1000 & wait; kill $!; done
    """
    spawned, _ = await harness.run_until_ready("sh", "-c", script, namespaces=ISOLATED)
    program = await harness.execed(spawned)
    await until_small(spawned.pid)
    for _ in range(3):
        os.kill(spawned.pid, signal.SIGUSR1)
        with trio.fail_after(deadline(20)):
            await trio.lowlevel.wait_readable(spawned.stdout)
            assert os.read(spawned.stdout, 100) == b"USR1\n"
            while children(spawned.pid) != [str(program.pid)]:  # noqa: ASYNC110 - the orphan is reaped
                await trio.sleep(0.001)
    os.kill(spawned.pid, signal.SIGTERM)
    assert (await harness.finish(spawned)).code == 42


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
    with trio.fail_after(deadline(5)):
        while command(waiting):  # noqa: ASYNC110 - the keeper reaps it
            await trio.sleep(0.001)
    assert (await harness.run("echo", "new", namespaces=ISOLATED)).stdout == "new\n"


async def test_no_init_in_advance_for_a_user_namespace(harness: Harness) -> None:
    await harness.run("true", namespaces=[*ISOLATED, "user"])
    await harness.run("true")  # answered after the keeper has prepared what it prepares
    await only_the_next_waits(harness, inits=0)  # the init that was used may still be there to be reaped
