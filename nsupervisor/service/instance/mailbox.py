"""The mailbox of one workload instance: messages that its actor handles one after the other."""

from collections import deque
from collections.abc import Awaitable, Callable

import attrs
import trio

from nsupervisor.core import events
from nsupervisor.keeper.messages import Ended, Execed


@attrs.frozen
class Call:
    """A command whose sender waits until it has been handled."""

    command: events.Command
    handled: trio.Event


@attrs.define(eq=False)
class Task:
    """Something to do between two messages, whose sender waits for it. An error goes to the sender."""

    function: Callable[[], Awaitable[None]]
    handled: trio.Event = attrs.field(init=False, factory=trio.Event)
    error: Exception | None = attrs.field(init=False, default=None)

    async def perform(self) -> None:
        """Call the function, and release the sender."""
        try:
            await self.function()
        except Exception as error:
            self.error = error
        finally:
            self.handled.set()

    def refuse(self) -> None:
        """Release the sender without a call, as the mailbox is closed."""
        self.error = MailboxClosedError()
        self.handled.set()


class MailboxClosedError(Exception):
    """The instance has been removed, or the service stops."""


@attrs.frozen
class RulesPending:
    """Rules have fired, and their actions are pending."""


@attrs.frozen
class RetrySpawn:
    """Start a generation again: the keeper was lost before it reported the outcome of that start."""

    id: str


@attrs.frozen
class Barrier:
    """BARRIER=1, sd_notify(3): close the descriptor, now that all messages before have been handled."""

    fd: int


@attrs.frozen
class StoreChanged:
    """The descriptor store has changed, and the keeper does not know that yet."""


@attrs.frozen
class MainFound:
    """Another process of the workload, by its pid, is its program from now on."""

    generation: int
    pid: int


@attrs.frozen
class MainAnnounced:
    """MAINPID=, sd_notify(3), has named another process of the workload as its program."""


@attrs.frozen
class Shutdown:
    """Stop the actor: no more messages will come."""


Message = (
    events.Input
    | RulesPending
    | Call
    | Barrier
    | Task
    | Shutdown
    | Execed
    | Ended
    | RetrySpawn
    | MainFound
    | MainAnnounced
    | StoreChanged
)


@attrs.define(eq=False)
class Mailbox:
    """An unbounded queue: its senders must not wait, and each sends a message only when something has changed."""

    closed: trio.Event = attrs.field(init=False, factory=trio.Event)
    """Set when the actor has stopped reading."""
    _messages: deque[Message] = attrs.field(init=False, factory=deque)
    _reader: trio.lowlevel.ParkingLot = attrs.field(init=False, factory=trio.lowlevel.ParkingLot)
    """The actor, while it waits for a message."""

    def post(self, message: Message) -> None:
        """Queue a message; never blocks."""
        self._messages.append(message)
        self._reader.unpark()

    def post_first(self, message: Message) -> None:
        """Queue a message before all others."""
        self._messages.appendleft(message)
        self._reader.unpark()

    async def ask(self, command: events.Command) -> None:
        """Post a command and wait until it has been handled; return at once if the mailbox is closed."""
        if not self.closed.is_set():
            await self.call(command).wait()

    def call(self, command: events.Command) -> trio.Event:
        """Post a command; return the event that is set when it has been handled, or if the mailbox is closed."""
        call = Call(command, trio.Event())
        if self.closed.is_set():
            call.handled.set()
        else:
            self.post(call)
        return call.handled

    async def perform(self, function: Callable[[], Awaitable[None]]) -> None:
        """Have the actor call a function between two messages, and wait until it is done, also if this is cancelled.

        Raises what the function raises, and MailboxClosedError.
        """
        task = Task(function)
        if self.closed.is_set():
            raise MailboxClosedError
        self.post(task)
        with trio.CancelScope(shield=True):
            await task.handled.wait()
        if task.error is not None:
            raise task.error

    async def receive(self, deadline: float | None) -> Message:
        """Return the next message, or `Timeout` if there is none until `deadline`. For one task only.

        A message that is queued comes before a deadline that has passed. While thousands stop at once, the loop may
        read a report that a program has exited long after it was sent; a timeout must not overtake it.
        """
        if self._messages:
            await trio.lowlevel.checkpoint()
            return self._messages.popleft()
        if deadline is None:
            await self._reader.park()
        else:
            with trio.move_on_at(deadline):
                await self._reader.park()
        return self._messages.popleft() if self._messages else events.Timeout()

    def close(self) -> list[int]:
        """Close the mailbox, and release all callers that wait for an answer.

        Returns the descriptors of the barriers in it: the caller closes them.
        """
        self.closed.set()
        barriers: list[int] = []
        while self._messages:
            message = self._messages.popleft()
            if isinstance(message, Call):
                message.handled.set()
            elif isinstance(message, Task):
                message.refuse()
            elif isinstance(message, Barrier):
                barriers.append(message.fd)
        return barriers
