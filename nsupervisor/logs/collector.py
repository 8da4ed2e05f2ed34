"""A collector as our child: the stream is its standard input, and it is started again when it ends."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sys
from collections.abc import Callable, Sequence

import trio

from nsupervisor.linux import pipes
from nsupervisor.linux.children import own_child

from .target import PIPE_SIZE, Target

DELAY_FIRST, DELAY_LAST = 0.1, 10.0
"""Seconds until it is started again; they double as long as it does not live for the longest of them."""
PATIENCE = 5.0
"""Seconds that it has at the end, to work off what it has been given."""
GRACE = 1.0
"""Seconds between SIGTERM and SIGKILL after that."""

# It begins with the signal mask of a shell's children; ours is blocked while the service begins and ends.
_EXEC = "import os, signal, sys; signal.pthread_sigmask(signal.SIG_SETMASK, []); os.execvp(sys.argv[1], sys.argv[1:])"


class Collector:
    """The pipe belongs to us, so what is in it outlives the collector: the next one goes on with the byte after the
    last one that this one has read. (What it had read and done nothing with is its own loss.)"""

    def __init__(self, command: Sequence[str]) -> None:
        """Raise OSError where there is no such program."""
        if shutil.which(command[0]) is None:
            raise FileNotFoundError(errno.ENOENT, "supervisor.log_output: there is no such program", command[0])
        self._command = [sys.executable, "-I", "-S", "-c", _EXEC, *command]
        self._name = command[0]
        self._reader, writer = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(writer, False)
        pipes.enlarge(writer, PIPE_SIZE)
        self.target = Target(writer, lambda data: os.write(writer, data))
        self.ended = trio.Event()
        """It has ended after `finish`."""
        self._finishing = False

    async def run(self, say: Callable[[str], None]) -> None:
        """Run it, again and again. `say` is told when it has ended before its time. Cancelled, it is ended."""
        delay = DELAY_FIRST
        try:
            while not self._finishing or pipes.waiting(self._reader):
                began = trio.current_time()
                try:
                    with own_child() as child:
                        done = await trio.run_process(
                            self._command,
                            stdin=self._reader,
                            stdout=2,
                            check=False,
                            start_new_session=True,
                            deliver_cancel=_end,
                            task_status=child,
                        )
                    how = f"ended with exit status {done.returncode}"
                except OSError as error:  # no process to be had, say
                    how = f"could not be started: {error.strerror}"
                if self._finishing:
                    await trio.sleep(DELAY_FIRST)
                    continue
                if trio.current_time() - began >= DELAY_LAST:
                    delay = DELAY_FIRST
                say(
                    f"{self._name} {how}; it is started again in {delay:g} s, and loses nothing of what it has not read"
                )
                await trio.sleep(delay)
                delay = min(2 * delay, DELAY_LAST)
        finally:
            self.ended.set()
            os.close(self._reader)

    async def finish(self) -> None:
        """The target has been closed: wait until the collector has read all, and has ended."""
        self._finishing = True
        with trio.move_on_after(PATIENCE):
            await self.ended.wait()


async def _end(process: trio.Process) -> None:
    """Also where it has been stopped."""
    process.terminate()
    process.send_signal(signal.SIGCONT)
    await trio.sleep(GRACE)
    process.kill()
