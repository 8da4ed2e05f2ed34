"""Look for the daemon that a program with `type = "forking"` has become, until its pid file names it."""

from collections.abc import Callable

import attrs
import trio

from nsupervisor.core.pauses import pause_after
from nsupervisor.service.context import ServiceContext
from nsupervisor.service.platform.pid_file import PidFileError

FIRST_DELAY_S = 0.005
"""Seconds after which the file is read again at first; the delay doubles up to `MAX_DELAY_S`."""
MAX_DELAY_S = 0.2


@attrs.define(eq=False)
class DaemonSearch:
    """Reads the pid file again and again while it is asked to.

    A file may be written at any time after the parent of the daemon has ended, and in a directory that does not exist
    yet. `timeout_start_sec` limits how long this takes.
    """

    context: ServiceContext
    on_found: Callable[[int, int], None]
    """Receives the generation and the pid."""
    on_problem: Callable[[str], None]
    """Receives why the file names no process; each text once in a search."""
    _generation: int | None = attrs.field(init=False, default=None)
    _scope: trio.CancelScope = attrs.field(init=False, factory=trio.CancelScope)

    def update(self, generation: int | None, find: Callable[[], int]) -> None:
        """Search for the daemon of a generation, or for none (None).

        `find` returns its pid; it raises FileNotFoundError if the file is not there, and PidFileError.
        """
        if generation == self._generation:
            return
        self._scope.cancel()
        self._generation = generation
        if generation is not None:
            self._scope = trio.CancelScope()
            self.context.nursery.start_soon(self._run, generation, find, self._scope)

    async def _run(self, generation: int, find: Callable[[], int], scope: trio.CancelScope) -> None:
        delay, reported = FIRST_DELAY_S, ""
        with scope:
            while True:
                begun = trio.current_time()
                try:
                    self.on_found(generation, find())
                except FileNotFoundError:
                    pass
                except PidFileError as error:
                    if str(error) != reported:
                        reported = str(error)
                        self.on_problem(reported)
                # With many processes in the workload each search is long.
                await trio.sleep(max(delay, pause_after(trio.current_time() - begun)))
                delay = min(2 * delay, MAX_DELAY_S)
