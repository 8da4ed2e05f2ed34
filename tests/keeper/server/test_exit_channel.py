"""How inits tell of ends: all by one channel, which costs the keeper nothing for each program."""

import ctypes
import os
import signal
import socket
from pathlib import Path

import pytest
import trio

from nsupervisor.keeper.native import STATUS
from nsupervisor.keeper.server.exit_channel import ExitChannel
from nsupervisor.keeper.setup.steps import CREDENTIALS
from tests.keeper.conftest import ISOLATED, Harness
from tests.needs import needs
from tests.timing import deadline

PIDFD_GETFD = 438


def open_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


@needs("root")
async def test_a_running_program_costs_the_keeper_three_descriptors(harness: Harness) -> None:
    """It had five, so 4,000 programs did not fit below a limit of 20,000."""
    await harness.execed(await harness.spawn("sleep", "1000", namespaces=ISOLATED))  # with what is there only once
    before = open_files(harness.keeper.pid)
    for _ in range(8):
        await harness.execed(await harness.spawn("sleep", "1000", namespaces=ISOLATED))
    await harness.keeper.list()  # after the end of the last report
    # One init more or less may wait in advance, which takes four.
    assert open_files(harness.keeper.pid) <= before + 3 * 8 + 4


@needs("root")
async def test_programs_that_end_at_once_end_each_with_its_own_status(harness: Harness) -> None:
    """The inits share one channel; who wrote is told by the kernel."""
    script = "trap 'exit {}' TERM; echo ready; while :; do sleep 0.01; done"
    spawned = [
        (await harness.run_until_ready("sh", "-c", script.format(code), namespaces=ISOLATED))[0] for code in range(12)
    ]
    for one in spawned:
        await harness.keeper.signal(one.id, signal.SIGTERM)
    results = [await harness.finish(one) for one in spawned]
    assert [result.code for result in results] == list(range(12))


@needs("root")
async def test_an_end_while_the_keeper_stands_still_is_told_exactly(harness: Harness) -> None:
    """The word of the init, and the news of its own end, are there at the same moment: the word comes first."""
    spawned, _ = await harness.run_until_ready("sh", "-c", "echo; read _ < /dev/null; exit 7", namespaces=ISOLATED)
    other, _ = await harness.run_until_ready(
        "sh", "-c", "trap 'exit 9' TERM; echo; while :; do sleep 0.01; done", namespaces=ISOLATED
    )
    program = (await harness.execed(other)).pid
    os.kill(harness.keeper.pid, signal.SIGSTOP)
    os.kill(program, signal.SIGTERM)
    with trio.fail_after(deadline(10)):
        while "Z" not in Path(f"/proc/{other.pid}/stat").read_text().rpartition(")")[2][:3]:  # noqa: ASYNC110
            await trio.sleep(0.001)
    os.kill(harness.keeper.pid, signal.SIGCONT)
    assert (await harness.finish(other)).code == 9
    assert (await harness.finish(spawned)).code == 7


@pytest.mark.fault("A6")
@needs("root")
async def test_a_report_counts_only_if_the_program_has_ended(harness: Harness) -> None:
    """Root of the host, in a workload, can trace its init, and could claim that a program has ended that runs on."""
    spawned, _ = await harness.run_until_ready(
        "sh", "-c", "trap 'exit 9' TERM; echo; while :; do sleep 0.01; done", namespaces=ISOLATED
    )
    other, _ = await harness.run_until_ready(
        "sh", "-c", "trap 'exit 8' TERM; echo; while :; do sleep 0.01; done", namespaces=ISOLATED
    )
    write_as(spawned.pid, STATUS.pack(0))
    await harness.keeper.signal(other.id, signal.SIGTERM)
    assert (await harness.finish(other)).code == 8  # the keeper has read the false report by then
    assert spawned.id not in harness.ends
    await harness.keeper.signal(spawned.id, signal.SIGTERM)
    assert (await harness.finish(spawned)).code == 9


def write_as(pid: int, message: bytes) -> None:
    """Take an init's end of the channel and write to it as the init: root may name another sender, unix(7)."""
    pidfd = os.pidfd_open(pid)
    fd = ctypes.CDLL(None, use_errno=True).syscall(PIDFD_GETFD, pidfd, 3, 0)
    os.close(pidfd)
    assert fd >= 0
    with socket.socket(fileno=fd) as channel:
        credentials = CREDENTIALS.pack(pid, os.getuid(), os.getgid())
        channel.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, credentials)])


def test_the_kernel_says_who_has_written_and_nonsense_is_left_out() -> None:
    exits = ExitChannel()
    theirs = socket.socket(fileno=os.dup(exits.init_end))
    with theirs:
        theirs.send(b"no status")
        theirs.send(b"")
        child = os.fork()
        if child == 0:
            theirs.send(STATUS.pack(3 << 8))
            os._exit(0)
        os.waitpid(child, 0)
        theirs.send(STATUS.pack(5))
        assert list(exits.read()) == [(child, 3 << 8), (os.getpid(), 5)]
        assert list(exits.read()) == []
    os.close(exits.init_end)
    exits._keeper_end.close()
