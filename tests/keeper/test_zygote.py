"""The zygote: inits stay small, and nothing is lost when it is killed."""

import os
import signal
from pathlib import Path

from tests.keeper.conftest import ISOLATED, Harness
from tests.needs import needs

pytestmark = needs("root")


def zygote(keeper: int) -> int:
    """The zygote's pid: the keeper's only child of that name."""
    children = Path(f"/proc/{keeper}/task/{keeper}/children").read_text().split()
    (found,) = (int(pid) for pid in children if Path(f"/proc/{pid}/comm").read_text() == "nsupervisor-zyg\n")
    return found


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
    assert (await harness.run("echo", "new", namespaces=ISOLATED)).stdout == "new\n"
    assert zygote(harness.keeper.pid) != old
    assert Path(f"/proc/{program.pid}/comm").read_text() == "sleep\n"


async def test_a_large_specification_reaches_the_program(harness: Harness) -> None:
    env = {f"V{i}": "x" * 1000 for i in range(300)}
    result = await harness.run("sh", "-c", "echo ${#V299}", env={**env, "PATH": os.defpath}, namespaces=ISOLATED)
    assert result.stdout == "1000\n"
