"""`LoopTick`: tasks yield while a tick of the event loop is long."""

import trio

from nsupervisor.logs.fairness import LONG_TICK_S, LoopTick

TASKS = 1000
WORK_S = LONG_TICK_S / 10


class _Steps(trio.abc.Instrument):
    """Counts the steps of all tasks, each of which takes a little time by `now`."""

    def __init__(self, now: list[float]) -> None:
        self.count = 0
        self._now = now

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.count += 1
        self._now[0] += WORK_S / 10


async def test_tasks_that_yield_in_a_long_tick_do_not_make_each_other_s_tick_long(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("nsupervisor.logs.fairness.time.monotonic", lambda: now[0])
    tick, done = LoopTick(), []

    async def work(number: int) -> None:
        await tick.yield_if_long()
        now[0] += WORK_S
        done.append(number)

    steps = _Steps(now)
    trio.lowlevel.add_instrument(steps)
    async with trio.open_nursery() as nursery:
        for number in range(TASKS):
            nursery.start_soon(work, number)
    trio.lowlevel.remove_instrument(steps)
    trio.lowlevel.remove_instrument(tick)
    assert sorted(done) == list(range(TASKS))
    assert steps.count < 5 * TASKS  # with a yield of each task in each tick it is a hundred times as many as tasks


async def test_a_task_that_is_cancelled_while_it_yields_for_others_wakes_them(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("nsupervisor.logs.fairness.time.monotonic", lambda: now[0])
    tick = LoopTick()
    trio.lowlevel.remove_instrument(tick)  # each tick is a long one until the test says otherwise
    now[0] = 2 * LONG_TICK_S
    done = []

    async def work(number: int, scope: trio.CancelScope) -> None:
        with scope:
            await tick.yield_if_long()
            done.append(number)

    scopes = [trio.CancelScope() for _ in range(40)]
    async with trio.open_nursery() as nursery:
        for number, scope in enumerate(scopes):
            nursery.start_soon(work, number, scope)
        await trio.lowlevel.checkpoint()
        await trio.lowlevel.checkpoint()
        for scope in scopes[:20]:
            scope.cancel()
        await trio.lowlevel.checkpoint()
        tick.after_io_wait(0)
    assert sorted(done) == list(range(20, 40))
