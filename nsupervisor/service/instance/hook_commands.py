"""Run the commands of hooks of one instance, one at a time, in the namespaces and the cgroup of its program.

A command belongs to the supervisor that has begun it: the keeper ends it with that. The next supervisor reports that it
has failed, and does not run it again.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import attrs
import trio

from nsupervisor.api.control import ExecTerms
from nsupervisor.core import events
from nsupervisor.core.phases import Phase
from nsupervisor.service.context import ServiceContext
from nsupervisor.service.instance.probe_command import MakeSpec, run_command


@attrs.define(eq=False)
class HookCommands:
    """Runs the commands of hooks. `post` takes the events about them."""

    context: ServiceContext
    post: Callable[[events.Event], None]
    make_spec: MakeSpec
    _scope: trio.CancelScope = attrs.field(init=False, factory=trio.CancelScope)

    def run(self, into: str, generation: int, phase: Phase, step: int, command: tuple[str, ...], pid: int) -> None:
        """Begin a command of the generation `into`, and post `HookDone` at its end. Another one is ended before.

        `pid`: the program as its own namespace numbers it, for $MAINPID.
        """
        self.end()
        self._scope = trio.CancelScope()
        argv = (command[0].removeprefix("-"), *command[1:])
        terms = ExecTerms(argv, environment={"MAINPID": str(pid)})
        self.context.nursery.start_soon(self._run, into, events.HookDone(generation, phase, step, False), terms)

    def end(self) -> None:
        """Send SIGKILL to the command that runs, if one does; nothing is posted about it."""
        self._scope.cancel()

    async def _run(self, into: str, failed: events.HookDone, terms: ExecTerms) -> None:
        with self._scope:
            result = await run_command(self.context, into, self.make_spec, terms, math.inf)
            self.post(attrs.evolve(failed, is_success=bool(result.is_success), detail=result.detail))
