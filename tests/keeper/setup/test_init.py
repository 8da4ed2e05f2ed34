"""PID 1 of a workload: reaps, passes signals on, and tells the program's end exactly."""

# ruff: noqa: ASYNC110  (what /proc says can only be polled, and is there at once)

import os
import signal
import sys
from pathlib import Path

import pytest
import trio

from nsupervisor.keeper.messages import SpawnError
from nsupervisor.linux import processes
from tests.keeper.conftest import ISOLATED, Harness, gone
from tests.keeper.server.test_zygote import children
from tests.needs import needs
from tests.timing import deadline

pytestmark = needs("root")


def python(script: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", script]


RECORDER = """
    trap 'echo USR1' USR1; trap 'echo USR2' USR2; trap 'echo HUP' HUP; trap 'echo TERM; kill $!; exit 42' TERM
    echo ready
    while :; do sleep 1000 & wait; kill $!; done
"""


USERS = pytest.mark.parametrize("user", [{}, {"uid": 1234, "gid": 1234, "groups": []}], ids=["same-user", "other-user"])


@USERS
async def test_signals_reach_the_program_from_the_keeper_and_from_outside(harness: Harness, user: dict) -> None:
    spawned, _ = await harness.run_until_ready("sh", "-c", RECORDER, namespaces=ISOLATED, **user)
    assert await harness.keeper.signal(spawned.id, signal.SIGUSR1)
    os.kill(spawned.pid, signal.SIGHUP)  # to the init, by who knows only its pid
    os.kill(spawned.pid, signal.SIGUSR2)
    with trio.fail_after(deadline(20)):
        seen = b""
        while seen.count(b"\n") < 3:
            await trio.lowlevel.wait_readable(spawned.stdout)
            seen += os.read(spawned.stdout, 4096)
    assert sorted(seen.split()) == [b"HUP", b"USR1", b"USR2"]
    assert await harness.keeper.signal(spawned.id, signal.SIGTERM)
    assert (await harness.ended(spawned)).status == 42 << 8  # a sleep may be left, which has the pipes


@USERS
async def test_stop_and_continue_reach_the_program_and_not_the_init(harness: Harness, user: dict) -> None:
    spawned = await harness.spawn("sleep", "1000", namespaces=ISOLATED, **user)
    program = await harness.execed(spawned)

    async def until_state(wanted: str) -> None:
        with trio.fail_after(deadline(20)):
            while Path(f"/proc/{program.pid}/stat").read_text().rpartition(")")[2].split()[0] not in wanted:
                await trio.sleep(0.001)

    await harness.keeper.signal(spawned.id, signal.SIGSTOP)
    await until_state("T")
    assert Path(f"/proc/{spawned.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T"
    await harness.keeper.signal(spawned.id, signal.SIGCONT)
    await until_state("S")


@pytest.mark.parametrize("namespaces", [[], ISOLATED])
async def test_a_signal_right_after_spawn_is_not_lost(harness: Harness, namespaces: list[str]) -> None:
    """It must neither hit the set-up half-way nor vanish in it, whatever is under way at that moment."""
    for _ in range(10):
        spawned = await harness.spawn("sleep", "1000", namespaces=namespaces)
        assert await harness.keeper.signal(spawned.id, signal.SIGTERM)
        end = await harness.ended(spawned)
        assert (end.status, end.failure) == (signal.SIGTERM, None)
        assert not await harness.keeper.signal(spawned.id, signal.SIGTERM)


@pytest.mark.parametrize("namespaces", [[], ISOLATED])
async def test_sigkill_right_after_spawn(harness: Harness, namespaces: list[str]) -> None:
    for _ in range(10):
        spawned = await harness.spawn("sleep", "1000", namespaces=namespaces)
        assert await harness.keeper.signal(spawned.id, signal.SIGKILL)
        assert (await harness.ended(spawned)).status == signal.SIGKILL


@USERS
async def test_killing_the_init_kills_the_program_and_tells_so(harness: Harness, user: dict) -> None:
    spawned = await harness.spawn("sleep", "1000", namespaces=ISOLATED, **user)
    program = await harness.execed(spawned)
    os.kill(spawned.pid, signal.SIGKILL)
    end = await harness.ended(spawned)
    assert (end.status, end.failure) == (signal.SIGKILL, None)
    assert not Path(f"/proc/{program.pid}").exists()


async def test_a_stopped_init_does_not_survive_the_kill(harness: Harness) -> None:
    spawned = await harness.spawn("sleep", "1000", namespaces=ISOLATED)
    await harness.execed(spawned)
    os.kill(spawned.pid, signal.SIGSTOP)
    assert await harness.keeper.signal(spawned.id, signal.SIGKILL)
    assert (await harness.ended(spawned)).status == signal.SIGKILL


async def test_a_core_dump_is_part_of_the_status(harness: Harness, tmp_path: Path) -> None:
    if Path("/proc/sys/kernel/core_pattern").read_text().startswith("|"):
        pytest.skip("needs a core_pattern that writes a file")
    tmp_path.chmod(0o777)
    spawned = await harness.spawn(
        *python("import os; os.abort()"), namespaces=ISOLATED, cwd=str(tmp_path), rlimits={"core": [-1, -1]}
    )
    end = await harness.ended(spawned)
    assert (os.WTERMSIG(end.status), os.WCOREDUMP(end.status)) == (signal.SIGABRT, True)


async def test_the_init_reaps_orphans(harness: Harness) -> None:
    script = """
import os, time
read, write = os.pipe()
for _ in range(20):
    if os.fork() == 0:
        if os.fork() == 0:
            os.write(write, b"%d " % os.getpid())
            os._exit(3)
        os._exit(0)
    os.wait()
os.close(write)
orphans = open(read).read().split()  # the end comes when all of them have ended
while any(os.path.exists(f"/proc/{pid}") for pid in orphans):
    time.sleep(0.001)
print(len(orphans))
"""
    result = await harness.run(*python(script), namespaces=ISOLATED)
    assert (result.code, result.stdout) == (0, "20\n")


async def test_the_keeper_reaps_orphans_of_those_without_an_init(harness: Harness) -> None:
    """It is a subreaper, or else they would go to the host's init, and nobody would know them."""
    pid = harness.keeper.pid
    children = Path(f"/proc/{pid}/task/{pid}/children")
    script = "(sh -c 'exec 1>&- 2>&-; read _ < fifo' & echo $!)"
    directory = Path(f"/tmp/keeper-orphan-{os.getpid()}")
    directory.mkdir()
    try:
        os.mkfifo(directory / "fifo")
        result = await harness.run("sh", "-c", script, cwd=str(directory))
        with trio.fail_after(deadline(20)):
            while len(children.read_text().split()) != 1:
                await trio.sleep(0.001)
            (directory / "fifo").write_text("go\n")
            while children.read_text():
                await trio.sleep(0.001)
        assert result.code == 0
    finally:
        (directory / "fifo").unlink()
        directory.rmdir()


async def test_what_the_program_leaves_is_not_killed_with_it(harness: Harness) -> None:
    """The end is reported at once; the supervisor gives the others the stop signal and their time."""
    script = "(trap 'echo saved; exit' TERM; echo $$; while :; do sleep 0.01; done) & read _ < /dev/null; exit 5"
    spawned, _ = await harness.run_until_ready("sh", "-c", script, namespaces=ISOLATED)
    assert (await harness.ended(spawned)).status == 5 << 8
    with trio.fail_after(deadline(20)):
        while len(children(spawned.pid)) != 1:  # the standby is reaped
            await trio.sleep(0.001)
    os.kill(int(children(spawned.pid)[0]), signal.SIGTERM)
    assert (await harness.finish(spawned)).stdout == "saved\n"


async def test_the_next_generation_ends_what_has_left_the_cgroup(harness: Harness) -> None:
    spawned = await harness.spawn("sh", "-c", "sleep 1000 & exit 5", namespaces=ISOLATED, name="web")
    await harness.ended(spawned)
    assert children(spawned.pid)
    await harness.run("true", namespaces=ISOLATED, name="other")
    assert children(spawned.pid)
    await harness.run("true", namespaces=ISOLATED, name="web")
    await harness.finish(spawned)  # which waits for the end of the pipes that the sleep holds too


async def test_the_keeper_does_not_leave_before_lingering_inits(harness: Harness) -> None:
    spawned = await harness.spawn("sh", "-c", "sleep 1000 & exit 5", namespaces=ISOLATED)
    await harness.ended(spawned)
    await harness.keeper.acknowledge(spawned.id)
    await harness.keeper.shutdown()
    await gone(harness.keeper.pid)
    assert not Path(f"/proc/{spawned.pid}").exists()


@pytest.mark.parametrize(("script", "code"), [("exit 200", 200), ("kill -KILL $$", 128 + 9)])
async def test_an_init_ends_as_its_program_has(harness: Harness, script: str, code: int) -> None:
    """For whoever reaps it when there is no keeper any more."""
    script = f"trap '{script}' USR1; echo; while :; do sleep 0.01; done"
    spawned, _ = await harness.run_until_ready("sh", "-c", script, namespaces=ISOLATED)
    pidfd = os.pidfd_open(spawned.pid)
    await harness.keeper.signal(spawned.id, signal.SIGUSR1)
    await harness.ended(spawned)
    with trio.fail_after(deadline(20)):
        await trio.lowlevel.wait_readable(pidfd)
        while Path(f"/proc/{spawned.pid}").exists():
            await trio.sleep(0.001)
    status = processes.exit_status(pidfd, spawned.pid)
    os.close(pidfd)
    if status is None:
        pytest.skip("needs Linux 6.15, which tells how a process ended that has been reaped")
    assert status == code << 8


async def test_a_short_program_is_executed_and_ends_in_that_order(harness: Harness) -> None:
    for init in (True, False):
        for _ in range(10):
            spawned = await harness.spawn("true", namespaces=ISOLATED, init=init)
            end = await harness.ended(spawned)
            assert end.status == 0
            assert harness.execs[spawned.id].pid > 0


async def test_nothing_of_the_keeper_is_lost_when_a_spawn_fails(harness: Harness) -> None:
    fds = f"/proc/{harness.keeper.pid}/fd"
    for _ in range(2):  # with the first init comes the zygote, and after each one the next, which waits
        await harness.run("true", namespaces=ISOLATED)
        await harness.run("true")
    before = len(os.listdir(fds))
    for _ in range(5):
        result = await harness.run("true", cgroup="/sys/fs/cgroup", namespaces=ISOLATED)  # a tmpfs, or the root of v2
        assert result.failure is not None or result.status == 0
        with pytest.raises(SpawnError):
            await harness.spawn("true", cgroup="/proc")
    await harness.run("true")
    assert len(os.listdir(fds)) == before
