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


async def test_a_change_wakes_only_the_tasks_whose_predicate_is_true(autojump_clock: trio.testing.MockClock) -> None:
    changed, added, checked = ConditionVariable(), [], []

    async def wait(count: int) -> None:
        def is_met() -> bool:
            checked.append(trio.lowlevel.current_task().name)
            return len(added) >= count

        await changed.wait_for(is_met)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait, 2, name="waiting")
        for value in "ab":
            await wait_all_tasks_blocked()
            checked.clear()
            added.append(value)
            changed.notify()
            await wait_all_tasks_blocked()
            assert ("waiting" in checked) == (len(added) == 2)


async def test_a_task_that_is_cancelled_does_not_wait_any_more(autojump_clock: trio.testing.MockClock) -> None:
    changed = ConditionVariable()
    with trio.move_on_after(1):
        await changed.wait_for(lambda: False)
    checked = []
    changed._waiting.update(dict.fromkeys(changed._waiting, lambda: checked.append(True)))
    changed.notify()
    assert not checked
