"""Calls when records are in the output."""

import trio
from trio.testing import wait_all_tasks_blocked

from nsupervisor.logs.written_callbacks import WrittenCallbacks


class Journal:
    """A journal whose records are written when the test says so; counts the waits."""

    def __init__(self) -> None:
        self.waits: list[trio.Event] = []

    async def wait_written(self) -> None:
        self.waits.append(trio.Event())
        await self.waits[-1].wait()


async def test_one_wait_serves_all_that_came_before_it(nursery):
    journal, called = Journal(), []
    callbacks = WrittenCallbacks(journal, nursery)  # type: ignore[arg-type]
    for number in range(3):
        callbacks.add(lambda number=number: called.append(number))
    await wait_all_tasks_blocked()
    assert (len(journal.waits), called) == (1, [])
    journal.waits[0].set()
    await wait_all_tasks_blocked()
    assert (len(journal.waits), called) == (1, [0, 1, 2])


async def test_who_comes_during_a_wait_has_later_records_and_waits_again(nursery):
    journal, called = Journal(), []
    callbacks = WrittenCallbacks(journal, nursery)  # type: ignore[arg-type]
    callbacks.add(lambda: called.append("first"))
    await wait_all_tasks_blocked()
    callbacks.add(lambda: called.append("second"))
    journal.waits[0].set()
    await wait_all_tasks_blocked()
    assert (len(journal.waits), called) == (2, ["first"])
    journal.waits[1].set()
    await wait_all_tasks_blocked()
    assert called == ["first", "second"]
    callbacks.add(lambda: called.append("third"))
    await wait_all_tasks_blocked()
    assert len(journal.waits) == 3
