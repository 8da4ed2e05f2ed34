"""The mailbox of one workload instance: messages that its actor handles one after the other."""

import contextlib
import math

import attrs
import trio

from nsupervisor.core import events
from nsupervisor.keeper.messages import Ended, Execed


@attrs.frozen
class Call:
    """A command whose sender waits until it has been handled."""

    command: events.Command
    handled: trio.Event


@attrs.frozen
class RulesPending:
    """Rules have fired, and their actions are pending."""


@attrs.frozen
class RetrySpawn:
    """Start the current generation again: the keeper was lost before it reported the outcome of that start."""


@attrs.frozen
class Shutdown:
    """Stop the actor: no more messages will come."""


Message = events.Input | RulesPending | Call | Shutdown | Execed | Ended | RetrySpawn


@attrs.define(eq=False)
class Mailbox:
    """An unbounded queue: its senders must not wait, and each sends a message only when something has changed."""

    closed: trio.Event = attrs.field(init=False, factory=trio.Event)
    """Set when the actor has stopped reading."""
    _channel: tuple[trio.MemorySendChannel[Message], trio.MemoryReceiveChannel[Message]] = attrs.field(
        init=False, factory=lambda: trio.open_memory_channel[Message](math.inf)
    )

    def post(self, message: Message) -> None:
        """Queue a message; never blocks."""
        self._channel[0].send_nowait(message)

    async def ask(self, command: events.Command) -> None:
        """Post a command and wait until it has been handled; return at once if the mailbox is closed."""
        if not self.closed.is_set():
            call = Call(command, trio.Event())
            self.post(call)
            await call.handled.wait()

    async def receive(self, deadline: float | None) -> Message:
        """Return the next message, or `DeadlinePassed` if there is none until `deadline`."""
        if deadline is None:
            return await self._channel[1].receive()
        with trio.move_on_at(deadline):
            return await self._channel[1].receive()
        return events.Timeout()

    def close(self) -> None:
        """Close the mailbox, and release all callers that wait for an answer."""
        self.closed.set()
        with contextlib.suppress(trio.WouldBlock):
            while True:
                if isinstance(message := self._channel[1].receive_nowait(), Call):
                    message.handled.set()
