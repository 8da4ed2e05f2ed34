"""The condition variable, on trio's deterministic clock."""

import trio
from trio.testing import wait_all_tasks_blocked

from nsupervisor.condition_variable import ConditionVariable


async def test_a_true_predicate_returns_at_once(autojump_clock: trio.testing.MockClock) -> None:
    with trio.fail_after(1):
        await ConditionVariable().wait_for(lambda: True)


async def test_each_waiting_task_returns_when_its_own_predicate_is_true(autojump_clock: trio.testing.MockClock) -> None:
    changed, added, returned = ConditionVariable(), [], []

    async def wait(count: int) -> None:
        await changed.wait_for(lambda: len(added) >= count)
        returned.append((count, list(added)))

    with trio.fail_after(1):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait, 1)
            nursery.start_soon(wait, 2)
            for value in "ab":
                await wait_all_tasks_blocked()
                added.append(value)
                changed.notify()
    assert returned == [(1, ["a"]), (2, ["a", "b"])]


async def test_a_predicate_that_is_false_again_before_the_task_runs_keeps_it_waiting(
    autojump_clock: trio.testing.MockClock,
) -> None:
    changed, values = ConditionVariable(), [False]
    with trio.move_on_after(1) as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(changed.wait_for, lambda: values[0])
            await wait_all_tasks_blocked()
            values[0] = True
            changed.notify()
            values[0] = False
    assert scope.cancelled_caught
