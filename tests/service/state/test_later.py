"""Checkpoints that are saved a moment later: unless a newer one was saved, and not while the event loop is busy."""

from functools import partial

import trio
import trio.testing

from nsupervisor.service.state.later import DELAY_S, MAX_DELAY_S, LaterSaves


async def test_the_latest_of_each_instance_is_saved_after_the_delay(mock_clock: trio.testing.MockClock) -> None:
    saved: list[str] = []
    async with trio.open_nursery() as nursery:
        later = LaterSaves(nursery)
        later.add("web", lambda: saved.append("web, first"))
        later.add("web", lambda: saved.append("web, second"))
        later.add("db", lambda: saved.append("db"))
        await trio.testing.wait_all_tasks_blocked()
        assert saved == []
        mock_clock.jump(DELAY_S)
    assert saved == ["web, second", "db"]


async def test_a_newer_checkpoint_replaces_it(mock_clock: trio.testing.MockClock) -> None:
    saved: list[str] = []
    async with trio.open_nursery() as nursery:
        later = LaterSaves(nursery)
        later.add("web", lambda: saved.append("web"))
        later.discard("web")
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(DELAY_S)
    assert saved == []


async def test_one_that_comes_after_a_round_is_saved_in_the_next(mock_clock: trio.testing.MockClock) -> None:
    saved: list[str] = []
    async with trio.open_nursery() as nursery:
        later = LaterSaves(nursery)
        for name in ("web", "db"):
            later.add(name, partial(saved.append, name))
            await trio.testing.wait_all_tasks_blocked()
            mock_clock.jump(DELAY_S)
            await trio.testing.wait_all_tasks_blocked()
            assert saved[-1] == name
    assert saved == ["web", "db"]


async def test_a_busy_loop_delays_it_further_but_not_without_end(mock_clock: trio.testing.MockClock) -> None:
    saved: list[float] = []
    began_at = trio.current_time()
    async with trio.open_nursery() as nursery:
        later = LaterSaves(nursery)
        later.add("web", lambda: saved.append(trio.current_time() - began_at))
        while not saved:  # each sleep ends three times as late as intended
            await trio.testing.wait_all_tasks_blocked()
            mock_clock.jump(3 * DELAY_S)
    assert MAX_DELAY_S <= saved[0] < MAX_DELAY_S + 3 * DELAY_S


async def test_all_are_saved_when_the_service_fails() -> None:
    saved: list[str] = []
    async with trio.open_nursery() as nursery:
        later = LaterSaves(nursery)
        later.add("web", lambda: saved.append("web"))
        later.save_all()
        assert saved == ["web"]
        nursery.cancel_scope.cancel()
    assert saved == ["web"]
