"""The forerunner and its successor: whoever of them is killed, at whatever moment, and what the host has mounted since.

A FIFO in the place of a cgroup's file holds up the successor half-way.
"""

# ruff: noqa: ASYNC110  (what /proc says can only be polled, and is there at once)

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from nsupervisor.keeper.messages import Spawned
from nsupervisor.linux.mounts import MNT_DETACH, mount, umount2
from tests.keeper.conftest import ISOLATED, Harness
from tests.keeper.server.test_zygote import children, command, numbers, only_the_next_waits, zygote
from tests.needs import cgroup_directories, needs
from tests.timing import deadline

pytestmark = needs("root")


def number_inside(pid: str) -> int:
    """The process' number in its own PID namespace; 0 when it has gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next(int(line.split()[-1]) for line in lines if line.startswith("NSpid:"))


def state(pid: int) -> str:
    """The letter of the process' state in /proc/PID/stat, proc(5)."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


class HalfWay:
    """A start whose successor waits at its first step."""

    def __init__(self, spawned: Spawned, fifo: Path) -> None:
        self.spawned = spawned
        self.fifo = fifo
        by_number = {number_inside(pid): int(pid) for pid in children(spawned.pid)}
        self.forerunner, self.successor = by_number[2], by_number[3]


async def half_way(harness: Harness, tmp_path: Path, **spec: object) -> HalfWay:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    spawned = await harness.spawn("sh", "-c", "echo up; exit 5", namespaces=ISOLATED, cgroup_procs=[str(fifo)], **spec)
    with trio.fail_after(deadline(20)):
        while len(children(spawned.pid)) != 2:
            await trio.sleep(0.001)
    return HalfWay(spawned, fifo)


async def test_the_forerunner_is_gone_once_the_program_runs(harness: Harness) -> None:
    spawned = await harness.spawn("sleep", "1000", namespaces=ISOLATED)
    program = await harness.execed(spawned)
    with trio.fail_after(deadline(20)):
        while children(spawned.pid) != [str(program.pid)]:
            await trio.sleep(0.001)


async def test_a_successor_killed_half_way_is_a_program_killed(harness: Harness, tmp_path: Path) -> None:
    start = await half_way(harness, tmp_path)
    os.kill(start.successor, signal.SIGKILL)
    result = await harness.finish(start.spawned)
    assert (result.status, result.failure, result.stdout) == (signal.SIGKILL, None, "")
    await only_the_next_waits(harness)


async def test_a_killed_forerunner_does_not_take_its_successor_with_it(harness: Harness, tmp_path: Path) -> None:
    start = await half_way(harness, tmp_path)
    os.kill(start.forerunner, signal.SIGKILL)
    with trio.fail_after(deadline(20)):
        while state(start.forerunner) != "Z":  # the init reaps it when there is a program
            await trio.sleep(0.001)
    reader = os.open(start.fifo, os.O_RDONLY | os.O_NONBLOCK)
    result = await harness.finish(start.spawned)
    os.close(reader)
    assert (result.status, result.failure, result.stdout) == (5 << 8, None, "up\n")


async def test_a_stopped_forerunner_does_not_hold_up_the_news(harness: Harness, tmp_path: Path) -> None:
    """It only has to leave, and on a busy machine it may be late with that."""
    start = await half_way(harness, tmp_path)
    os.kill(start.forerunner, signal.SIGSTOP)
    reader = os.open(start.fifo, os.O_RDONLY | os.O_NONBLOCK)
    end = await harness.ended(start.spawned)
    os.close(reader)
    assert (end.status, end.failure) == (5 << 8, None)
    assert harness.execs[start.spawned.id].pid == start.successor
    os.kill(start.forerunner, signal.SIGCONT)  # it has the log pipes, and the init waits for its end
    assert (await harness.finish(start.spawned)).stdout == "up\n"


async def test_both_killed_half_way(harness: Harness, tmp_path: Path) -> None:
    start = await half_way(harness, tmp_path)
    os.kill(start.forerunner, signal.SIGKILL)
    os.kill(start.successor, signal.SIGKILL)
    assert (await harness.finish(start.spawned)).status == signal.SIGKILL
    await only_the_next_waits(harness)


async def test_an_init_killed_half_way(harness: Harness, tmp_path: Path) -> None:
    start = await half_way(harness, tmp_path)
    os.kill(start.spawned.pid, signal.SIGKILL)
    assert (await harness.finish(start.spawned)).status == signal.SIGKILL
    await only_the_next_waits(harness)


async def test_a_successor_that_fails_after_its_birth(harness: Harness, tmp_path: Path) -> None:
    for _ in range(3):
        result = await harness.run("true", namespaces=ISOLATED, cwd=str(tmp_path / "nowhere"))
        assert result.failure is not None
        assert (result.status, result.failure.step) == (125 << 8, "enter_directory")
    await only_the_next_waits(harness)


@needs("cgroup")
async def test_born_frozen_and_killed_before_the_first_instruction(harness: Harness) -> None:
    cgroup = cgroup_directories()[""] / f"keeper-forerunner-{os.getpid()}"
    cgroup.mkdir()
    try:
        (cgroup / "cgroup.freeze").write_text("1")
        spawned = await harness.spawn("true", namespaces=ISOLATED, cgroup=str(cgroup))
        with trio.fail_after(deadline(20)):
            while not (cgroup / "cgroup.procs").read_text():
                await trio.sleep(0.001)
        (cgroup / "cgroup.kill").write_text("1")
        assert (await harness.finish(spawned)).status == signal.SIGKILL
        await only_the_next_waits(harness)
    finally:
        with trio.fail_after(deadline(20)):
            while (cgroup / "cgroup.procs").read_text():
                await trio.sleep(0.001)
        cgroup.rmdir()


async def test_a_killed_forerunner_that_waits_is_replaced(harness: Harness) -> None:
    await harness.run("true", namespaces=ISOLATED)
    await only_the_next_waits(harness)
    (waiting,) = (pid for pid in children(harness.keeper.pid) if numbers(pid) == 2)
    os.kill(int(children(int(waiting))[0]), signal.SIGKILL)
    with trio.fail_after(deadline(20)):
        while command(waiting):
            await trio.sleep(0.001)
    assert (await harness.run("echo", "new", namespaces=ISOLATED)).stdout == "new\n"


# ---- what the host has mounted since


@contextmanager
def mounted(directory: Path) -> Iterator[None]:
    mount("tmpfs", str(directory), "tmpfs", 0, "size=64k")
    try:
        (directory / "file").write_text("here")
        yield
    finally:
        umount2(str(directory), MNT_DETACH)


async def test_a_start_sees_what_was_mounted_just_before(harness: Harness, tmp_path: Path) -> None:
    """What waits has the mounts of the time when it was made; once, a start found an empty directory there."""
    list_it = ["ls", str(tmp_path)]
    assert (await harness.run(*list_it, namespaces=ISOLATED)).stdout == ""
    await only_the_next_waits(harness)
    with mounted(tmp_path):
        assert (await harness.run(*list_it, namespaces=ISOLATED)).stdout == "file\n"
        await only_the_next_waits(harness)
    assert (await harness.run(*list_it, namespaces=ISOLATED)).stdout == ""


async def test_what_is_made_after_a_mount_outlives_the_late_news_of_it(harness: Harness, tmp_path: Path) -> None:
    """Starts that came while the keeper was busy had what waits made anew; then the loop heard of the mount, and threw
    that away. Here the keeper is busy with a start that waits for a stopped zygote."""
    await harness.run("true", namespaces=ISOLATED)
    await only_the_next_waits(harness)
    maker, files = zygote(harness.keeper.pid), Path(f"/proc/{harness.keeper.pid}/fd")
    open_files = len(list(files.iterdir()))

    async def start(*namespaces: str) -> None:
        await harness.finish(await harness.spawn("true", namespaces=namespaces))

    async with trio.open_nursery() as nursery:
        os.kill(maker, signal.SIGSTOP)
        nursery.start_soon(start, "mount", "pid")
        with trio.fail_after(deadline(20)):
            while len(list(files.iterdir())) < open_files + 4:
                await trio.sleep(0.001)
        with mounted(tmp_path):
            nursery.start_soon(start, *ISOLATED)
            nursery.start_soon(start, *ISOLATED)  # so soon after the other that the next is made at once
            await trio.testing.wait_all_tasks_blocked()
            os.kill(maker, signal.SIGCONT)
            await only_the_next_waits(harness, inits=2)


async def test_what_waits_keeps_no_file_system_busy(harness: Harness, tmp_path: Path) -> None:
    """It would see it for as long as nothing else is started."""
    with mounted(tmp_path):
        await harness.run("true", namespaces=ISOLATED)
        await only_the_next_waits(harness)
        (waiting,) = (pid for pid in children(harness.keeper.pid) if numbers(pid) == 2)
        assert str(tmp_path) in Path(f"/proc/{waiting}/mountinfo").read_text()
    with trio.fail_after(deadline(20)):
        while command(waiting):
            await trio.sleep(0.001)


@needs("netns", "time_namespace")
@pytest.mark.parametrize("names", [["time"], ["time", "network"]])
async def test_clocks_shift_although_memory_is_lent(harness: Harness, names: list[str]) -> None:
    """A time namespace refuses whoever shares memory, so this step is the forerunner's."""
    result = await harness.run(
        "cat", "/proc/self/timens_offsets", namespaces=[*ISOLATED, *names], time_offsets={"monotonic": 1000}
    )
    assert result.failure is None
    assert result.stdout.split()[:3] == ["monotonic", "1000", "0"]
