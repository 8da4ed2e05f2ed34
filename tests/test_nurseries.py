"""The nursery for background tasks: who is cancelled, and in which form exceptions come out."""

import pytest
import trio

from nsupervisor.nurseries import open_background_nursery


async def test_the_tasks_end_with_the_block(autojump_clock):
    ended = []

    async def task():
        try:
            await trio.sleep_forever()
        finally:
            ended.append(True)

    with trio.fail_after(1):
        async with open_background_nursery() as nursery:
            nursery.start_soon(task)
            await trio.testing.wait_all_tasks_blocked()
    assert ended == [True]


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt()], ids=repr)
async def test_an_exception_of_the_block_is_raised_as_it_is(autojump_clock, error):
    async def fail():
        async with open_background_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            raise error

    with pytest.raises(type(error)) as raised:
        await fail()
    assert raised.value is error


async def test_an_exception_of_a_task_cancels_the_block_and_is_raised_in_a_group(autojump_clock):
    async def fail():
        raise ValueError("x")

    with pytest.RaisesGroup(ValueError):
        async with open_background_nursery() as nursery:
            nursery.start_soon(fail)
            await trio.sleep_forever()


async def test_a_cancellation_from_outside_is_passed_on(autojump_clock):
    with trio.move_on_after(1) as scope:
        async with open_background_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            await trio.sleep_forever()
    assert scope.cancelled_caught
