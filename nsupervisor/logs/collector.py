"""A collector as a child process: it reads the stream on its standard input, and is restarted when it ends."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sys
from collections.abc import Callable, Sequence

import trio

from nsupervisor.linux import pipes
from nsupervisor.linux.children import expect_child
from nsupervisor.logs.target import PIPE_SIZE, Target

RESTART_DELAY_MIN_S, RESTART_DELAY_MAX_S = 0.1, 10.0
"""The first and the longest restart delay in seconds.

It doubles with each restart, until the collector has run for the longest delay.
"""
STOP_RETRY_DELAY_S = 0.1
"""The restart delay in seconds while the service stops: what has not been read would be lost soon."""
DRAIN_TIMEOUT_S = 5.0
"""Seconds that the collector has at the end to process its input."""
KILL_DELAY_S = 1.0
"""Seconds between SIGTERM and SIGKILL after that."""

# The collector gets an empty signal mask, like a shell's children: the service blocks signals as it starts and ends.
# And it ignores no signal: Python ignores SIGPIPE and SIGXFSZ, and execve(2) would keep that.
_EXEC = """import os, signal, sys
signal.pthread_sigmask(signal.SIG_SETMASK, [])
for signum in (signal.SIGPIPE, signal.SIGXFSZ):
    signal.signal(signum, signal.SIG_DFL)
os.execvp(sys.argv[1], sys.argv[1:])
"""


class LogCollector:
    """A collector and the pipe to it.

    The service owns the pipe, so unread input outlives the collector: the next one continues with the byte after the
    last one that this one has read. (Input that it had read but not processed is lost.)
    """

    def __init__(self, command: Sequence[str]) -> None:
        """Raise OSError if there is no such program."""
        if shutil.which(command[0]) is None:
            raise FileNotFoundError(errno.ENOENT, "supervisor.log_output: there is no such program", command[0])
        self._command = [sys.executable, "-I", "-S", "-c", _EXEC, *command]
        self._name = command[0]
        self._reader, writer = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(writer, False)
        pipes.enlarge(writer, PIPE_SIZE)
        self.target = Target(writer, lambda data: os.write(writer, data))
        self.ended = trio.Event()
        """Set when the collector has ended after `drain`."""
        self.unread = b""
        """The input that no collector has read, after the last one has ended."""
        self._stopping = trio.Event()
        self._is_input_complete = False

    async def run(self, report: Callable[[str], None]) -> None:
        """Run the collector, and restart it when it ends.

        `report` is called with a message when it has ended early. A cancellation ends the collector.
        """
        delay = RESTART_DELAY_MIN_S
        try:
            while not self._is_input_complete or pipes.available_bytes(self._reader):
                started_at = trio.current_time()
                try:
                    with expect_child() as task_status:
                        process = await trio.run_process(
                            self._command,
                            stdin=self._reader,
                            stdout=2,
                            check=False,
                            start_new_session=True,
                            deliver_cancel=_terminate,
                            task_status=task_status,
                        )
                    outcome = f"ended with exit status {process.returncode}"
                except OSError as error:  # for example the limit on processes
                    outcome = f"could not be started: {error.strerror}"
                if self._stopping.is_set():
                    await trio.sleep(STOP_RETRY_DELAY_S)
                    continue
                if trio.current_time() - started_at >= RESTART_DELAY_MAX_S:
                    delay = RESTART_DELAY_MIN_S
                report(
                    f"{self._name} {outcome}; it is started again in {delay:g} s, "
                    "and loses nothing of what it has not read"
                )
                with trio.move_on_after(delay):
                    await self._stopping.wait()
                delay = min(2 * delay, RESTART_DELAY_MAX_S)
        finally:
            self.unread = _read_available(self._reader)
            os.close(self._reader)
            self.ended.set()

    def stop(self) -> None:
        """End the present restart delay, and from now on start a collector that has ended again at once."""
        self._stopping.set()

    async def drain(self) -> None:
        """After the target has been closed, wait until the collector has read everything and has ended."""
        self.stop()
        self._is_input_complete = True
        with trio.move_on_after(DRAIN_TIMEOUT_S):
            await self.ended.wait()


def _read_available(fd: int) -> bytes:
    return os.read(fd, count) if (count := pipes.available_bytes(fd)) else b""


async def _terminate(process: trio.Process) -> None:
    """Terminate the process, also if it is stopped."""
    process.terminate()
    process.send_signal(signal.SIGCONT)
    await trio.sleep(KILL_DELAY_S)
    process.kill()
