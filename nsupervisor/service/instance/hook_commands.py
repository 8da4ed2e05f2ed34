"""Run the commands of hooks of one instance, one at a time, in its cgroup.

A command of `exec_reload` belongs to the supervisor that has begun it: the keeper ends it with that. Any other command
is kept by the keeper, with its output and its end, until that is acknowledged. So the next supervisor waits for a
command that this one has begun, and never runs it twice.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import attrs
import trio

from nsupervisor.api.control import ExecTerms
from nsupervisor.config.model import WorkloadConfig
from nsupervisor.core import events
from nsupervisor.core.exits import Exit, signal_name
from nsupervisor.core.lifecycle import Lifecycle, service_result
from nsupervisor.core.phases import HOOK_KEYS, Phase
from nsupervisor.keeper.entry import LOST, Entry, KeptEntry
from nsupervisor.keeper.messages import RefusedError
from nsupervisor.service.context import ServiceContext
from nsupervisor.service.instance.exec_session import describe_end
from nsupervisor.service.instance.probe_command import MakeSpec, run_command, wait_for_end
from nsupervisor.service.instance.readiness import host_owner
from nsupervisor.service.platform.exec_streams import ExecStreams


def hook_id(generation_id: str, phase: Phase, step: int) -> str:
    """Return the id of a command in the keeper: ("web#3", STOP, 0) → "web#3/exec_stop.0"."""
    return f"{generation_id}/{HOOK_KEYS[phase]}.{step}"


def environment_after_end(lifecycle: Lifecycle, workload: WorkloadConfig) -> dict[str, str]:
    """Return the variables that say how a generation has ended, in the words of systemd.exec(5)."""
    exit_ = lifecycle.exit
    assert exit_ is not None
    return {"SERVICE_RESULT": service_result(lifecycle, workload), **_exit_variables(exit_)}


def _exit_variables(exit_: Exit) -> dict[str, str]:
    if exit_.code is not None:
        return {"EXIT_CODE": "exited", "EXIT_STATUS": str(exit_.code)}
    if exit_.signal is not None:
        how = "dumped" if exit_.core_dumped else "killed"
        return {"EXIT_CODE": how, "EXIT_STATUS": signal_name(exit_.signal).removeprefix("SIG")}
    return {}


@attrs.define(eq=False)
class _KeptHook:
    """A command that runs, and that the keeper keeps."""

    entry: Entry
    event: events.HookDone
    is_wanted: bool = True
    """Whether its end matters."""

    def continue_with(self, entry: Entry) -> None:
        """Follow the same command in a keeper that has become another version."""
        self.entry = entry

    def ignore_end(self) -> None:
        """Post nothing about its end."""
        self.is_wanted = False


@attrs.define(eq=False)
class HookCommands:
    """Runs the commands of hooks. `post` takes the events about them."""

    context: ServiceContext
    post: Callable[[events.Event], None]
    make_spec: MakeSpec
    _scope: trio.CancelScope = attrs.field(init=False, factory=trio.CancelScope)
    """The scope of a command that is not kept."""
    _kept: _KeptHook | None = attrs.field(init=False, default=None)

    def run(self, into: str, generation: int, phase: Phase, step: int, command: tuple[str, ...], pid: int) -> None:
        """Begin a command of the generation `into`, and post `HookDone` at its end. Another one is ended before.

        `pid`: the program as its own namespace numbers it, for $MAINPID.
        """
        self.end()
        self._scope = trio.CancelScope()
        argv = (command[0].removeprefix("-"), *command[1:])
        terms = ExecTerms(argv, environment={"MAINPID": str(pid)})
        self.context.nursery.start_soon(self._run, into, events.HookDone(generation, phase, step, False), terms)

    async def _run(self, into: str, failed: events.HookDone, terms: ExecTerms) -> None:
        with self._scope:
            result = await run_command(self.context, into, self.make_spec, terms, math.inf)
            self.post(attrs.evolve(failed, is_success=bool(result.is_success), detail=result.detail))

    async def start(self, into: str | None, spec: Mapping[str, Any], event: events.HookDone) -> None:
        """Start a command that is kept; post `event` at its end, with how it has ended.

        `into`: the generation in whose namespaces it runs; None: in namespaces of its own. Raises OSError, SpawnError
        and KeeperLost.
        """
        self.end()
        streams = self.context.kernel.open_exec_streams(False, None, host_owner(spec))
        try:
            entry = await self.context.keeper.enter(into, spec, streams.child_fds, False, streams.output_fds)
        except BaseException:
            streams.close()
            raise
        streams.close_child_ends()
        self._follow(entry, streams, event)

    def resume(self, kept: KeptEntry, event: events.HookDone) -> None:
        """Wait for a command that an earlier supervisor has begun."""
        self._follow(kept.entry, self.context.kernel.adopt_exec_outputs(kept.outputs), event)

    def _follow(self, entry: Entry, streams: ExecStreams, event: events.HookDone) -> None:
        self._kept = kept = _KeptHook(entry, event)
        self.context.nursery.start_soon(self._wait, kept, streams)

    async def _wait(self, kept: _KeptHook, streams: ExecStreams) -> None:
        try:
            result = await wait_for_end(kept.entry, streams, math.inf)
        finally:
            streams.close()
        if kept.entry.failure is LOST:
            again = await self.context.keeper.find_kept(kept.entry.id)
            if again is not None:  # the keeper has become another version
                kept.continue_with(again.entry)
                if not kept.is_wanted:
                    await discard(self.context, again)
                    return
                await self._wait(kept, self.context.kernel.adopt_exec_outputs(again.outputs))
                return
        code = describe_end(kept.entry)["code"]
        if kept.is_wanted:
            self.post(attrs.evolve(kept.event, is_success=bool(result.is_success), detail=result.detail, code=code))
        else:
            await self.context.keeper.acknowledge(kept.entry.id)

    async def acknowledge(self, event: events.HookDone) -> None:
        """Let the keeper forget a command whose end has been handled."""
        kept = self._kept
        if kept is not None and kept.entry.has_ended and _is_same(kept.event, event):
            self._kept = None
            with suppress(RefusedError):  # it does not end the service: the next supervisor ends the command
                await self.context.keeper.acknowledge(kept.entry.id)

    def end(self) -> None:
        """Send SIGKILL to the command that runs, if one does; nothing is posted about it."""
        self._scope.cancel()
        if self._kept is not None:
            kept, self._kept = self._kept, None
            if kept.entry.has_ended:  # what it has posted is stale, and is not handled any more
                self.context.nursery.start_soon(self.context.keeper.acknowledge, kept.entry.id)
            else:
                kept.ignore_end()
                self.context.nursery.start_soon(self.context.keeper.signal, kept.entry.id, signal.SIGKILL)


def _is_same(first: events.HookDone, second: events.HookDone) -> bool:
    return (first.generation, first.phase, first.step) == (second.generation, second.phase, second.step)


async def discard(context: ServiceContext, kept: KeptEntry) -> None:
    """End a command whose end does not matter any more, and let the keeper forget it."""
    context.kernel.adopt_exec_outputs(kept.outputs).close()
    if not kept.entry.has_ended:
        await context.keeper.signal(kept.entry.id, signal.SIGKILL)
        await kept.entry.wait_ended()
    await context.keeper.acknowledge(kept.entry.id)
