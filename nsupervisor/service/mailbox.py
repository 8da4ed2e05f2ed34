"""What one workload instance is told, one message after the other."""

import contextlib
import math

import attrs
import trio

from nsupervisor.cgroups import Reading
from nsupervisor.core import events
from nsupervisor.keeper.told import Ended, Execed


@attrs.frozen
class Asked:
    """A wish whose author waits until it has been heard."""

    wish: events.Wish
    heard: trio.Event


@attrs.frozen
class Nudge:
    """Some rules have gone off."""


@attrs.frozen
class Again:
    """The keeper was lost before it could say what had become of the present start: begin that start once more."""


@attrs.frozen
class Leave:
    """There will be no more."""


Message = events.Event | Nudge | Asked | Leave | Reading | Execed | Ended | Again


@attrs.define(eq=False)
class Mailbox:
    """Unbounded, because its writers must not wait; each of them says a thing once, when it has changed."""

    closed: trio.Event = attrs.field(init=False, factory=trio.Event)
    """Nobody reads any more."""
    _mail: tuple[trio.MemorySendChannel[Message], trio.MemoryReceiveChannel[Message]] = attrs.field(
        init=False, factory=lambda: trio.open_memory_channel[Message](math.inf)
    )

    def post(self, message: Message) -> None:
        """Leave a message; it is taken in its turn. Never blocks."""
        self._mail[0].send_nowait(message)

    async def ask(self, wish: events.Wish) -> None:
        """Post a wish and wait until it has been heard; at once where nobody reads any more."""
        if not self.closed.is_set():
            asked = Asked(wish, trio.Event())
            self.post(asked)
            await asked.heard.wait()

    async def next(self, deadline: float | None) -> Message:
        """The next message; `Timeout` when there is none until ``deadline``."""
        if deadline is None:
            return await self._mail[1].receive()
        with trio.move_on_at(deadline):
            return await self._mail[1].receive()
        return events.Timeout()

    def close(self) -> None:
        """Nobody reads any more. Whoever waits for an answer has it now."""
        self.closed.set()
        with contextlib.suppress(trio.WouldBlock):
            while True:
                if isinstance(message := self._mail[1].receive_nowait(), Asked):
                    message.heard.set()
