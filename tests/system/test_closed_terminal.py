"""The terminal of `run` is closed: the service ends in order. Any other SIGHUP reloads."""

import os
import pty
import signal
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from tests.needs import needs
from tests.system.service import NSUPERVISOR, Service
from tests.timing import deadline

pytestmark = needs("root", "cgroup")

WEB = """
[workload.web]
command = ["sh", "-c", '''trap "echo saved; exit 0" TERM; echo up; while :; do sleep 1000 & wait; done''']
"""
SESSION = """
import fcntl, os, signal, subprocess, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
if sys.argv[1] == "foreground":
    os.execvp(sys.argv[2], sys.argv[2:])
# A session leader that relays the signal, as shells and sudo do. The kernel sends none to this process group.
child = subprocess.Popen(sys.argv[2:], process_group=0)
signal.signal(signal.SIGHUP, lambda *_: [child.send_signal(signal.SIGHUP) for _ in range(3)])
sys.exit(child.wait())
"""


@asynccontextmanager
async def terminal_service(
    directory: Path, *options: str, way: str = "foreground", prepare: Callable[[], object] | None = None
) -> AsyncIterator[tuple[Service, Callable[[], None]]]:
    """Run the service in a session of its own with a terminal; yield it, and a function that closes the terminal."""
    (directory / "site.toml").write_text(
        f'[supervisor]\nname = "hangup-{os.getpid()}"\nruntime_directory = "{directory}/run"\n{WEB}'
    )
    controller, terminal = pty.openpty()
    command = ["python3", "-c", SESSION, way, *NSUPERVISOR, "run", *options, str(directory / "site.toml")]
    async with trio.open_nursery() as nursery:
        process = await trio.lowlevel.open_process(
            command, stdin=terminal, stdout=subprocess.PIPE, start_new_session=True, preexec_fn=prepare
        )
        os.close(terminal)
        it = Service(process, directory)
        nursery.start_soon(it.read)
        is_open = True

        def close() -> None:
            nonlocal is_open
            is_open = False
            os.close(controller)

        try:
            await it.record(event="output", message="up")
            yield it, close
            with trio.fail_after(deadline(20)):
                assert await process.wait() == 0
        finally:
            if is_open:
                close()
            for signum in (signal.SIGTERM, signal.SIGKILL):
                if process.returncode is None:
                    process.send_signal(signum)
                    with trio.move_on_after(deadline(15), shield=True):
                        await process.wait()


@pytest.mark.fault("D17")
@pytest.mark.parametrize(
    ("options", "way"), [((), "foreground"), ((), "relayed"), (("--supervise-self",), "foreground")]
)
async def test_closing_the_terminal_reloaded(tmp_path: Path, options: tuple[str, ...], way: str) -> None:
    """An edited file came into force, and the workloads that it lacked were stopped."""
    async with terminal_service(tmp_path, *options, way=way) as (it, close):
        (tmp_path / "site.toml").write_text("mistake")
        close()
        stopping = await it.record(event="supervisor stopping")
        assert (stopping["signal"], stopping["hurry"]) == ("SIGHUP", False)
        assert stopping["message"] == "its terminal was closed"
        await it.record(event="output", message="saved")
        await it.record(event="supervisor stopped")
    assert not [record for record in it.records if record["event"].startswith("reload")]


@pytest.mark.fault("D17")
async def test_what_nohup_starts_outlives_the_terminal(tmp_path: Path) -> None:
    def ignore() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    async with terminal_service(tmp_path, prepare=ignore) as (it, close):
        close()
        await it.record(event="terminal closed")
        it.process.send_signal(signal.SIGHUP)
        await it.record(event="reload")
        it.process.send_signal(signal.SIGTERM)
    assert not [record for record in it.records if record["event"] == "supervisor stopping" and "message" in record]


@pytest.mark.fault("D17")
async def test_a_sighup_reloads_while_the_terminal_is_open(tmp_path: Path) -> None:
    async with terminal_service(tmp_path) as (it, _close):
        it.process.send_signal(signal.SIGHUP)
        await it.record(event="reload")
        it.process.send_signal(signal.SIGTERM)
