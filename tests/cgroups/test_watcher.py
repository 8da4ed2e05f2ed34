"""The watcher on the real kernel: what happens in a cgroup becomes a reading, and nothing else costs anything."""

from collections.abc import Mapping
from itertools import pairwise

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from nsupervisor.cgroups import Cgroup, CgroupError, Reading, Tree, Watcher, open_watcher
from nsupervisor.config.model import Resources
from nsupervisor.linux.inotify import IN_Q_OVERFLOW, InotifyEvent
from tests.cgroups.conftest import Programs, Readings, wait_until
from tests.descriptors import open_descriptors
from tests.needs import missing, needs
from tests.timing import deadline

pytestmark = needs("root", "cgroup", "memory", "pids")

EAT = "a = []\nwhile True: a.append(b'x' * (1 << 20))\n"
FORK_ONCE_TOO_OFTEN = """
import os, time
children = []
try:
    while True:
        child = os.fork()
        if not child: time.sleep(1000)
        children.append(child)
except OSError:
    time.sleep(1000)
"""
BURN = "while True: pass\n"


async def empty(cgroup: Cgroup) -> None:
    """Kill what is in it, and let the loop go on meanwhile."""
    cgroup.kill()
    with trio.fail_after(deadline(10)):
        while cgroup.is_populated():  # noqa: ASYNC110 - no watcher here
            await trio.sleep(0.002)


# events ------------------------------------------------------------------------------------------------------------


async def test_populated_and_empty_again(tree: Tree, programs: Programs) -> None:
    web = tree.make("web", Resources())
    readings = Readings()
    async with open_watcher() as watcher:
        base = watcher.add(web, readings)
        assert base["cgroup.events"] == {"populated": 0, "frozen": 0}
        assert set(base) == {"cgroup.events", "memory.events", "pids.events"}
        programs.start(web, "sleep", "1000")
        await readings.until("cgroup.events", lambda values: values["populated"] == 1)
        web.kill()
        await readings.until("cgroup.events", lambda values: values["populated"] == 0)
        watcher.remove(web)


async def test_frozen_and_thawed(tree: Tree, programs: Programs) -> None:
    web = tree.make("web", Resources())
    readings = Readings()
    async with open_watcher() as watcher:
        watcher.add(web, readings)
        programs.start(web, "sleep", "1000")
        await readings.until("cgroup.events", lambda values: values["populated"] == 1)
        web.freeze()
        await readings.until("cgroup.events", lambda values: values["frozen"] == 1)
        web.thaw()
        await readings.until("cgroup.events", lambda values: values["frozen"] == 0)
        await empty(web)


async def test_an_oom_kill_is_told_soon_on_every_host(tree: Tree, programs: Programs) -> None:
    """On v1 the notification comes before the kill, so that who reads at once sees the old counter."""
    web = tree.make("web", Resources(memory_max=32 << 20))
    readings = Readings()
    async with open_watcher(backstop=3600) as watcher:
        watcher.add(web, readings)
        for number in (1, 2, 3):
            programs.python(web, EAT)
            await readings.until("memory.events", lambda values, number=number: values["oom_kill"] == number)
            await empty(web)


async def test_a_failed_fork_is_told(tree: Tree, programs: Programs) -> None:
    web = tree.make("web", Resources(pids_max=5))
    readings = Readings()
    async with open_watcher(backstop=3600) as watcher:
        watcher.add(web, readings)
        programs.python(web, FORK_ONCE_TOO_OFTEN)
        await readings.until("pids.events", lambda values: values["max"] >= 1)
        await empty(web)


async def test_two_workloads_are_told_apart(tree: Tree, programs: Programs) -> None:
    chill, bloat = (
        tree.make("chill", Resources(memory_max=64 << 20)),
        tree.make("bloat", Resources(memory_max=32 << 20)),
    )
    calm, loud = Readings(), Readings()
    async with open_watcher() as watcher:
        watcher.add(chill, calm)
        watcher.add(bloat, loud)
        programs.start(chill, "sleep", "1000")
        await calm.until("cgroup.events", lambda values: values["populated"] == 1)
        programs.python(bloat, EAT)
        await loud.until("memory.events", lambda values: values["oom_kill"] == 1)
        assert chill.is_populated()
        assert chill.read_cached("memory.events")["oom_kill"] == 0
        assert all(reading.file == "cgroup.events" for reading in calm.seen)
        await empty(chill)


async def test_an_unchanged_file_is_not_told(tree: Tree, programs: Programs, autojump_clock: MockClock) -> None:
    web = tree.make("web", Resources())
    readings = Readings()
    async with open_watcher() as watcher:
        watcher.add(web, readings)
        await trio.sleep(60)  # twelve times the backstop
    assert readings.seen == []


# levels ------------------------------------------------------------------------------------------------------------


async def test_levels_are_sampled_together_and_at_the_pace_that_is_asked_for(
    tree: Tree, autojump_clock: MockClock
) -> None:
    times: list[float] = []
    paces = iter([0.1, 1.9, 0.05, 1.0, float("inf"), 1.0, float("inf")])

    def sample(values: Mapping[str, Mapping[str, float]]) -> float:
        assert set(values) == {"pids.current", "memory.current"}
        times.append(trio.current_time())
        return next(paces)

    web = tree.make("web", Resources())
    async with open_watcher() as watcher:
        watcher.add(web, Readings(), levels=["pids.current", "memory.current"], on_sample=sample)
        await trio.sleep(10)
        assert times == [], "nothing lives in it"
        for count in (5, 7):
            watcher.sample_now(web)
            await trio.sleep(10)
            assert len(times) == count
    for (before, after), most in zip(pairwise(times[:5]), (0.1, 2.0, 0.05, 1.0), strict=True):
        assert most / 2 <= after - before <= most + 1e-9, "never later than it was asked for"


async def test_a_level_without_a_pace_is_read_at_its_interval(tree: Tree, autojump_clock: MockClock) -> None:
    times: list[float] = []
    async with open_watcher() as watcher:
        web = tree.make("web", Resources())
        watcher.add(web, lambda _: times.append(trio.current_time()), levels=["pids.current"])
        await trio.sleep(2.5)
    assert 9 <= len(times) <= 11


async def test_a_level_follows_what_runs(tree: Tree, programs: Programs) -> None:
    web = tree.make("web", Resources())
    readings = Readings()
    async with open_watcher() as watcher:
        watcher.add(web, readings, events=(), levels=["pids.current"], interval=0.05)
        process = programs.start(web, "sleep", "1000")
        await readings.until("pids.current", lambda values: values[""] == 1)
        await empty(web)
        process.wait()  # a zombie counts in pids.current, although it does not populate the cgroup
        await readings.until("pids.current", lambda values: values[""] == 0)
        assert {reading.file for reading in readings.seen} == {"pids.current"}


async def test_who_watches_nothing_sleeps_for_ever(tree: Tree) -> None:
    async with open_watcher() as watcher:
        await wait_all_tasks_blocked()
        assert trio.lowlevel.current_statistics().seconds_to_next_deadline > 1e6
        web = tree.make("web", Resources())
        watcher.add(web, Readings(), events=["cgroup.events"])
        await wait_all_tasks_blocked()
        assert trio.lowlevel.current_statistics().seconds_to_next_deadline <= 5
        watcher.remove(web)
        web.close()
    async with open_watcher() as watcher:
        watcher.add(web, Readings(), events=(), levels=["pids.current"], interval=0.25)
        await wait_all_tasks_blocked()
        assert trio.lowlevel.current_statistics().seconds_to_next_deadline <= 0.25


# pressure ----------------------------------------------------------------------------------------------------------


@needs("psi", "cpu")
@pytest.mark.slow
async def test_a_pressure_trigger_fires_and_short_windows_fall_back(tree: Tree, programs: Programs) -> None:
    busy, idle = tree.make("busy", Resources(cpu_max=(10000, 100000))), tree.make("idle", Resources())
    readings, silence = Readings(), Readings()
    async with open_watcher() as watcher:
        watcher.add(busy, lambda reading: None)
        watcher.add(idle, lambda reading: None)
        trigger = watcher.add_pressure(busy, "cpu.pressure", "some", 50_000, 500_000, readings)
        watcher.add_pressure(idle, "cpu.pressure", "some", 50_000, 500_000, silence)
        if missing("psi_short_windows"):
            assert (trigger.stall_us, trigger.window_us) == (200_000, 2_000_000)
        else:
            assert (trigger.stall_us, trigger.window_us) == (50_000, 500_000)
        for _ in range(2):
            programs.python(busy, BURN)
        reading = await readings.until("cpu.pressure", lambda values: values["some total"] > 0)
        assert "full avg10" in reading.values
        await empty(busy)
    assert silence.seen == []


@needs("psi", "cpu")
@pytest.mark.slow
async def test_a_closed_trigger_is_silent_while_others_speak(tree: Tree, programs: Programs) -> None:
    web = tree.make("web", Resources(cpu_max=(10000, 100000)))
    readings, silence = Readings(), Readings()
    async with open_watcher() as watcher:
        watcher.add(web, lambda reading: None)
        watcher.add_pressure(web, "cpu.pressure", "some", 100_000, 2_000_000, readings)
        closed = watcher.add_pressure(web, "cpu.pressure", "some", 100_000, 2_000_000, silence)
        await wait_all_tasks_blocked()
        closed.close()
        closed.close()
        programs.python(web, BURN)
        await readings.until("cpu.pressure", lambda values: True)
        await empty(web)
    assert silence.seen == []


@needs("psi")
async def test_a_trigger_of_a_removed_cgroup_ends_without_spinning(tree: Tree) -> None:
    """A removed pressure file says POLLERR for ever."""
    web = tree.make("web", Resources())
    async with open_watcher() as watcher:
        watcher.add(web, Readings())
        trigger = watcher.add_pressure(web, "memory.pressure", "some", 100_000, 2_000_000, Readings())
        await wait_all_tasks_blocked()
        web.remove()
        with trio.fail_after(deadline(10)):
            while not trigger.is_closed:  # noqa: ASYNC110 - it says so to nobody
                await trio.sleep(0.01)
        watcher.remove(web)


@needs("psi")
async def test_an_impossible_trigger_is_an_error_in_words(tree: Tree) -> None:
    web = tree.make("web", Resources())
    async with open_watcher() as watcher:
        watcher.add(web, Readings())
        before = len(open_descriptors())
        with pytest.raises(CgroupError, match=r"cannot watch memory\.pressure of web for some"):
            watcher.add_pressure(web, "memory.pressure", "some", 100_000, 60_000_000, Readings())
        assert len(open_descriptors()) == before


# what may go wrong -------------------------------------------------------------------------------------------------


async def test_no_callback_comes_after_remove(tree: Tree, programs: Programs) -> None:
    gone, stays = tree.make("gone", Resources()), tree.make("stays", Resources())
    silence, readings = Readings(), Readings()
    async with open_watcher() as watcher:
        watcher.add(gone, silence, levels=["pids.current"], interval=0.01)
        watcher.add(stays, readings)
        programs.start(gone, "sleep", "1000")
        wait_until(gone.is_populated)  # without giving the watcher a chance: its events are in the queue now
        watcher.remove(gone)
        programs.start(stays, "sleep", "1000")
        await readings.until("cgroup.events", lambda values: values["populated"] == 1)
        await empty(gone)
        await empty(stays)
        await readings.until("cgroup.events", lambda values: values["populated"] == 0)
    assert silence.seen == []


async def test_a_callback_may_remove_the_cgroup_it_is_told_of(tree: Tree, programs: Programs) -> None:
    web = tree.make("web", Resources())
    seen: list[Reading] = []
    done = trio.Event()

    async with open_watcher() as watcher:

        def once(reading: Reading) -> None:
            seen.append(reading)
            watcher.remove(web)
            done.set()

        watcher.add(web, once, events=(), levels=["pids.current", "memory.current"], interval=0.01)
        with trio.fail_after(deadline(10)):
            await done.wait()
        await trio.sleep(0.05)
    assert len(seen) == 1


async def test_an_exception_of_a_callback_ends_the_watcher_loudly(tree: Tree, programs: Programs) -> None:
    web = tree.make("web", Resources())

    def fail(reading: Reading) -> None:
        raise ZeroDivisionError("in the callback")

    async def watch() -> None:
        with trio.fail_after(deadline(10)):
            async with open_watcher() as watcher:
                watcher.add(web, fail)
                programs.start(web, "sleep", "1000")
                await trio.sleep_forever()

    with pytest.raises(ExceptionGroup) as caught:
        await watch()
    assert caught.group_contains(ZeroDivisionError, match="in the callback")


async def test_a_cgroup_removed_under_the_watcher_is_no_accident(tree: Tree, programs: Programs) -> None:
    web, stays = tree.make("web", Resources()), tree.make("stays", Resources())
    readings = Readings()
    async with open_watcher(backstop=0.02) as watcher:
        watcher.add(web, Readings(), levels=["pids.current"], interval=0.01)
        watcher.add(stays, readings)
        web.remove()
        await trio.sleep(0.1)  # some samples and backstops of a cgroup that is no more
        with pytest.raises(ValueError, match="already watched"):
            watcher.add(tree.make("web", Resources()), readings)
        watcher.remove(web)
        again = tree.make("web", Resources())
        watcher.add(again, readings)
        programs.start(again, "sleep", "1000")
        await readings.until("cgroup.events", lambda values: values["populated"] == 1)
        await empty(again)


async def test_a_failed_add_leaves_nothing_watched(tree: Tree) -> None:
    web = tree.make("web", Resources())
    async with open_watcher() as watcher:
        with pytest.raises(CgroupError, match=r"memory\.nonsense"):
            watcher.add(web, Readings(), levels=["memory.nonsense"])
        with pytest.raises(ValueError, match="does not notify"):
            watcher.add(web, Readings(), events=["pids.current"])
        watcher.add(web, Readings())


def go_deaf(watcher: Watcher, tell: list[InotifyEvent]) -> None:
    """The next events of inotify are lost; it tells these instead."""
    read = watcher._inotify.read

    def lose() -> list[InotifyEvent]:
        read()
        return [tell.pop()] if tell else []

    watcher._inotify.read = lose  # type: ignore[method-assign]


async def test_after_an_overflow_of_the_queue_everything_is_read_anew(tree: Tree, programs: Programs) -> None:
    web = tree.make("web", Resources())
    readings = Readings()
    async with open_watcher(backstop=3600) as watcher:
        watcher.add(web, readings)
        go_deaf(watcher, [InotifyEvent(-1, IN_Q_OVERFLOW)])
        programs.start(web, "sleep", "1000")
        await readings.until("cgroup.events", lambda values: values["populated"] == 1)
        await empty(web)


async def test_the_backstop_finds_what_no_notification_told(tree: Tree, programs: Programs) -> None:
    web = tree.make("web", Resources())
    readings = Readings()
    async with open_watcher(backstop=0.1) as watcher:
        watcher.add(web, readings)
        go_deaf(watcher, [])
        programs.start(web, "sleep", "1000")
        await readings.until("cgroup.events", lambda values: values["populated"] == 1)
        await empty(web)
