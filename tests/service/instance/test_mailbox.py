"""The mailbox of an instance, on trio's deterministic clock."""

import trio
from trio.testing import MockClock

from nsupervisor.core import events
from nsupervisor.service.instance.mailbox import Barrier, Mailbox


async def test_without_a_message_the_deadline_comes(autojump_clock: MockClock) -> None:
    assert await Mailbox().receive(trio.current_time() + 1) == events.Timeout()


async def test_a_message_that_is_queued_comes_before_a_deadline_that_has_passed(autojump_clock: MockClock) -> None:
    """While thousands stopped at once, the loop was so late that programs that had exited were killed as well."""
    mailbox = Mailbox()
    for generation in (1, 2):
        mailbox.post(events.Emptied(generation))
    late = trio.current_time() - 1
    received = [await mailbox.receive(late) for _ in range(3)]
    assert received == [events.Emptied(1), events.Emptied(2), events.Timeout()]


async def test_a_message_wakes_the_reader(autojump_clock: MockClock) -> None:
    mailbox, received = Mailbox(), []

    async def read() -> None:
        received.append(await mailbox.receive(None))
        received.append(await mailbox.receive(trio.current_time() + 1))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        for generation in (1, 2):
            await trio.testing.wait_all_tasks_blocked()
            mailbox.post(events.Emptied(generation))
    assert received == [events.Emptied(1), events.Emptied(2)]


async def test_a_caller_is_released_by_the_close_of_a_mailbox_that_did_not_read_its_command(
    autojump_clock: MockClock,
) -> None:
    mailbox = Mailbox()
    with trio.fail_after(1):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mailbox.ask, events.Stop("operator"))
            await trio.testing.wait_all_tasks_blocked()
            mailbox.close()


def test_the_descriptors_of_barriers_that_nothing_handles_are_returned() -> None:
    mailbox = Mailbox()
    for message in (Barrier(7), events.Emptied(1), Barrier(8)):
        mailbox.post(message)
    assert mailbox.close() == [7, 8]
