"""A program without a cgroup and without a PID namespace: its init is the root of a process tree. Real processes."""

# ruff: noqa: ASYNC110  (what /proc says can only be polled, and is there at once)

import os
import signal
from pathlib import Path

import pytest
import trio

from nsupervisor.linux import processes
from nsupervisor.linux.process_titles import INIT_TITLE, tree_title
from tests.keeper.conftest import Harness
from tests.timing import deadline

TREE = "/1234/nsupervisor/web"
LEAVES_A_DAEMON = "(setsid sleep 1000 & echo $! >$0) ; exec sleep 1000"
"""A program whose child's parent ends at once: the child becomes an orphan."""


async def until_gone(pid: int) -> None:
    with trio.fail_after(deadline(10)):
        while Path(f"/proc/{pid}").exists() and processes.read_stat(pid)[0] not in "ZX":  # type: ignore[index]
            await trio.sleep(0.005)


async def daemon_of(file: Path) -> int:
    with trio.fail_after(deadline(10)):
        while not file.exists() or not file.read_text().endswith("\n"):
            await trio.sleep(0.005)
    return int(file.read_text())


async def until_child_of(pid: int, parent: int) -> None:
    with trio.fail_after(deadline(10)):
        while processes.parent_pid(pid) != parent:
            await trio.sleep(0.005)


@pytest.mark.parametrize("code", [0, 1, 255])
async def test_exit_codes_are_exact(harness: Harness, code: int) -> None:
    result = await harness.run("sh", "-c", f"echo out; echo err >&2; exit {code}", process_tree=TREE)
    assert (result.status, result.failure) == (code << 8, None)
    assert (result.stdout, result.stderr) == ("out\n", "err\n")


async def test_the_init_inherits_what_the_program_leaves_and_ends_with_the_last_process(harness, tmp_path) -> None:
    file = tmp_path / "pid"
    spawned = await harness.spawn("sh", "-c", LEAVES_A_DAEMON, str(file), process_tree=TREE)
    program = await harness.execed(spawned)
    daemon = await daemon_of(file)
    await until_child_of(daemon, spawned.pid)
    title = Path(f"/proc/{spawned.pid}/cmdline").read_bytes().rstrip(b"\0")
    assert title.decode() == f"{INIT_TITLE}{TREE}"
    assert await harness.keeper.signal(spawned.id, signal.SIGKILL)
    assert os.WTERMSIG((await harness.ended(spawned)).status) == signal.SIGKILL
    await until_gone(program.pid)
    assert processes.parent_pid(daemon) == spawned.pid  # both live on
    os.kill(daemon, signal.SIGKILL)
    await until_gone(spawned.pid)


async def test_a_signal_reaches_the_program_alone(harness: Harness) -> None:
    script = "trap 'echo got it; exit 3' TERM; echo ready; while :; do sleep 0.01; done"
    spawned = await harness.spawn("sh", "-c", script, process_tree=TREE)
    await harness.execed(spawned)
    with trio.fail_after(deadline(10)):
        await trio.lowlevel.wait_readable(spawned.stdout)
    assert await harness.keeper.signal(spawned.id, signal.SIGTERM)
    assert (await harness.ended(spawned)).status == 3 << 8


async def test_what_a_killed_init_leaves_is_killed_with_it(harness: Harness, tmp_path: Path) -> None:
    """The processes would be in no tree any more, and nothing would stop them."""
    file = tmp_path / "pid"
    spawned = await harness.spawn("sh", "-c", LEAVES_A_DAEMON, str(file), process_tree=TREE)
    program = await harness.execed(spawned)
    daemon = await daemon_of(file)
    other = await harness.spawn("sleep", "1000", process_tree=f"{TREE}-other")
    other_program = await harness.execed(other)
    await until_child_of(daemon, spawned.pid)
    os.kill(spawned.pid, signal.SIGKILL)
    assert os.WTERMSIG((await harness.ended(spawned)).status) == signal.SIGKILL
    await until_gone(daemon)
    await until_gone(program.pid)
    assert processes.parent_pid(other_program.pid) == other.pid


async def test_a_kill_in_the_set_up_leaves_nothing(harness: Harness) -> None:
    for _ in range(20):
        spawned = await harness.spawn("sleep", "1000", process_tree=TREE)
        await harness.keeper.signal(spawned.id, signal.SIGKILL)
        assert os.WTERMSIG((await harness.ended(spawned)).status) == signal.SIGKILL
        await until_gone(spawned.pid)
        await harness.keeper.acknowledge(spawned.id)
    with trio.fail_after(deadline(10)):
        while children := [
            pid
            for pid, entry in processes.process_table().items()
            if entry.parent == harness.keeper.pid
            and processes.command_name(pid) not in ("nsupervisor-zyg", "nsupervisor-ini")
        ]:
            assert children
            await trio.sleep(0.005)


def test_a_long_path_is_shown_by_its_digest() -> None:
    assert tree_title("/a/b") == "/a/b"
    long = f"/{'x' * 200}"
    assert tree_title(long).startswith("#")
    assert len(tree_title(long)) == 33
    assert tree_title(long) != tree_title(f"{long}y")
