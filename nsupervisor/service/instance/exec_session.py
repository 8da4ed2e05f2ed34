"""Execute a command in a running instance for a client: its input and output, its end, and the records about it.

The command belongs to the generation in which it was started, and to its client's connection:

- The generation ends, as its program has exited: the command is killed at once. In a PID namespace the kernel does that
  as well; elsewhere a command would keep the cgroup populated, and delay the next generation.
- The client is gone: the command gets SIGHUP (a terminal is closed, too), and SIGKILL after `GRACE_S`.
- The service or the keeper dies: the keeper, or the death signal, kills the command (`keeper.server.entries`).

Processes that the command has left stay in the workload's cgroup, as the program's own do.

No buffer grows: each direction reads the next piece when the piece before it has been taken.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import attrs
import trio

from nsupervisor.api import exec_frames as frames
from nsupervisor.api.control import ExecTerms
from nsupervisor.api.http.messages import Channel, ChannelClosed
from nsupervisor.core.exits import signal_name
from nsupervisor.core.initiators import Initiator
from nsupervisor.core.lifecycle import Lifecycle
from nsupervisor.json_codec import encode
from nsupervisor.keeper.entry import Entry
from nsupervisor.keeper.messages import KeeperLost, SpawnError
from nsupervisor.service.context import ServiceContext
from nsupervisor.service.instance.readiness import host_owner
from nsupervisor.service.platform.exec_streams import ExecStreams

GRACE_S = 5.0
"""Seconds between the SIGHUP to a command whose client is gone, and SIGKILL."""
DRAIN_S = 0.2
"""Seconds without output after the end of a command, after which output of what it has left is not waited for. The
kernel passes on the last output of a terminal a moment after the writer's end."""
SETUP_CODES = {"execute": (127, 126)}
"""By the failed step: the exit codes for a command that is not found, and one that cannot be executed."""
FAILED_CODE = 1
_ENOENT = 2
MAX_SHOWN_ARGUMENTS = 4096
"""Characters of a command in a record."""
_OUTPUT_KINDS = frames.STDOUT, frames.STDERR


@attrs.define(eq=False)
class ExecSession:
    """One command, from its start to its end.

    `spec`: the specification of the command. `by`: who gives it. `wait_until` waits
    for a condition of the instance's lifecycle. `log`: writes a record about the instance.
    """

    context: ServiceContext
    generation: int
    spec: Mapping[str, Any]
    terms: ExecTerms
    by: Initiator
    wait_until: Callable[[Callable[[Lifecycle], bool]], Any]
    log: Callable[..., Any]
    enter: Callable[[Sequence[int], bool], Awaitable[Entry]]
    """Starts the command with these standard streams; the second argument: they are a terminal. Raises SpawnError and
    KeeperLost."""
    _streams: ExecStreams = attrs.field(init=False)
    _input_ended: bool = attrs.field(init=False, default=False)

    async def run(self, channel: Channel) -> None:
        """Execute the command, and send its output and its end to the client. Cancelled when the client is gone."""
        began = trio.current_time()
        try:
            self._streams = self.context.kernel.open_exec_streams(
                self.terms.has_input, self.terms.terminal, host_owner(self.spec)
            )
        except OSError as error:
            await self._send_end(channel, {"failure": f"cannot open its input and output: {error.strerror}"})
            return
        try:
            try:
                entry = await self._start()
            except (SpawnError, KeeperLost) as error:
                await self._send_end(channel, {"failure": str(error)})
                return
            try:
                await self._converse(entry, channel)
            finally:
                self._finish(entry, began)
            if entry.has_ended:
                await self._send_end(channel, describe_end(entry))
        finally:
            self._streams.close()

    async def refuse(self, channel: Channel, why: str) -> None:
        """Tell the client that the command cannot be executed now."""
        await self._send_end(channel, {"failure": why})

    async def _start(self) -> Entry:
        """Have the keeper start it. A cancellation does not take effect half-way."""
        has_terminal = self.terms.terminal is not None
        try:
            entry = await self.enter(self._streams.child_fds, has_terminal)
        finally:
            self._streams.close_child_ends()
        shown = " ".join(self.terms.argv)
        facts: dict[str, Any] = {"user": self.terms.user} if self.terms.user else {}
        if self.terms.is_debug:
            facts["debug"] = True
        self.log(
            "exec",
            command=shown[:MAX_SHOWN_ARGUMENTS],
            cause=self.by.cause(),
            exec=entry.id.rpartition("/")[2],
            **facts,
            terminal=has_terminal,
        )
        return entry

    async def _converse(self, entry: Entry, channel: Channel) -> None:
        idle_since = trio.current_time()
        """When output came last; infinity while some is being sent to the client, which may be slow."""
        sending = 0
        send_lock = trio.Lock()

        async def copy_output(number: int) -> None:
            nonlocal idle_since, sending
            while data := await self._streams.read(number):
                sending, idle_since = sending + 1, math.inf
                try:
                    async with send_lock:
                        await channel.send(frames.pack(_OUTPUT_KINDS[number], data))
                except ChannelClosed:
                    conversation.cancel()
                sending -= 1
                if not sending:
                    idle_since = trio.current_time()

        async def copy_outputs(task_status: trio.TaskStatus[trio.Event]) -> None:
            are_done = trio.Event()
            task_status.started(are_done)
            async with trio.open_nursery() as outputs:
                for number in range(self._streams.outputs):
                    outputs.start_soon(copy_output, number)
            are_done.set()

        async def copy_input() -> None:
            with suppress(ChannelClosed, frames.FrameError):
                await self._copy_input(entry, channel)
            conversation.cancel()  # the client is gone, or sends something else

        async with trio.open_nursery() as nursery:
            conversation = nursery.cancel_scope
            are_done = await nursery.start(copy_outputs)
            nursery.start_soon(copy_input)
            nursery.start_soon(self._end_with_generation, entry)
            await entry.wait_ended()
            idle_since = max(idle_since, trio.current_time())
            while not are_done.is_set() and (left := idle_since + DRAIN_S - trio.current_time()) > 0:
                with trio.move_on_after(min(left, DRAIN_S)):
                    await are_done.wait()
            conversation.cancel()

    async def _copy_input(self, entry: Entry, channel: Channel) -> None:
        unpacker = frames.Unpacker()
        while data := await channel.receive():
            for kind, content in unpacker.feed(data):
                if kind == frames.STDIN and content:
                    if not self._input_ended and not await self._streams.write(content):
                        self._input_ended = True  # what is not read is dropped, as by a closed pipe
                elif kind == frames.STDIN:
                    self._input_ended = True
                    await self._streams.end_input()
                elif kind == frames.RESIZE and len(content) == frames.SIZE.size:
                    self._streams.resize(*frames.SIZE.unpack(content))
                elif kind == frames.SIGNAL and len(content) == 1 and content[0] in _SIGNALS:
                    await self._signal(entry, content[0])

    async def _end_with_generation(self, entry: Entry) -> None:
        """Kill the command when its generation ends. A start ends one without a generation: `DebugSession`."""
        if self.terms.is_debug:
            await trio.sleep_forever()
        await self.wait_until(
            lambda lifecycle: (
                lifecycle.generation != self.generation or lifecycle.exit is not None or not lifecycle.is_alive
            )
        )
        await self._signal(entry, signal.SIGKILL)

    async def _signal(self, entry: Entry, *signums: int) -> None:
        if not entry.has_ended:
            await self.context.keeper.signal(entry.id, *signums)

    def _finish(self, entry: Entry, began: float) -> None:
        """Record the end of the command; if it has not ended, end it, as its client is gone."""
        if entry.has_ended:
            self._record_end(entry, began)
        else:
            self.context.nursery.start_soon(self._end_without_client, entry, began)

    async def _end_without_client(self, entry: Entry, began: float) -> None:
        await self._signal(entry, signal.SIGHUP, signal.SIGCONT)
        with trio.move_on_after(GRACE_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._end_with_generation, entry)
                await entry.wait_ended()
                nursery.cancel_scope.cancel()
        await self._signal(entry, signal.SIGKILL)
        await entry.wait_ended()
        self._record_end(entry, began, message="its client was gone")

    def _record_end(self, entry: Entry, began: float, **facts: Any) -> None:
        end = describe_end(entry)
        if end["failure"]:
            facts["message"] = end["failure"]
        self.log(
            "exec ended",
            exec=entry.id.rpartition("/")[2],
            code=end["code"],
            signal=end["signal"],
            took_sec=round(trio.current_time() - began, 3),
            **facts,
        )

    async def _send_end(self, channel: Channel, end: Mapping[str, Any]) -> None:
        with suppress(ChannelClosed):
            await channel.send(frames.pack(frames.EXIT, encode({"code": None, "signal": None, "failure": "", **end})))


_SIGNALS = frozenset(signal.valid_signals())


def describe_end(entry: Entry) -> dict[str, Any]:
    """Return how a command has ended: `code`, `signal` (its name) and `failure`, as the client gets it."""
    failure, status = entry.failure, entry.status or 0
    if failure is not None:
        code = None
        if failure.step in SETUP_CODES:
            code = SETUP_CODES[failure.step][0 if failure.errno == _ENOENT else 1]
        return {"code": code, "signal": None, "failure": failure.message}
    signum = status & 0x7F
    if signum:
        return {"code": None, "signal": signal_name(signum), "failure": ""}
    return {"code": status >> 8 & 0xFF, "signal": None, "failure": ""}
