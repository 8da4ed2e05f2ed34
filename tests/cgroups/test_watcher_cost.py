"""What watching costs: descriptors, watches, processor time, and how long others wait for it."""

import gc
import os
import time
from collections import Counter
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from nsupervisor.cgroups import Cgroup, Tree, Watcher, open_watcher
from nsupervisor.cgroups import watcher as watcher_module
from nsupervisor.config.model import Resources
from tests.cgroups.conftest import Readings
from tests.descriptors import open_descriptors
from tests.needs import in_guest, missing, needs

pytestmark = needs("root", "cgroup", "memory", "pids")


def watches() -> int:
    """How many inotify watches this process has."""
    count = 0
    for fd in os.listdir("/proc/self/fd"):
        try:
            count += Path(f"/proc/self/fdinfo/{fd}").read_text().count("inotify wd:")
        except FileNotFoundError:
            pass
    return count


async def test_a_thousand_adds_and_removes_leak_no_descriptor_and_no_watch(tree: Tree) -> None:
    web = tree.make("web", Resources())
    readings = Readings()
    async with open_watcher() as watcher:
        watcher.add(web, readings, levels=["pids.current"])
        watcher.remove(web)
        await wait_all_tasks_blocked()
        descriptors, before = len(open_descriptors()), watches()
        for number in range(50 if in_guest() else 1000):
            watcher.add(web, readings, levels=["pids.current"])
            if number % 20 == 0 and not missing("psi"):
                watcher.add_pressure(web, "memory.pressure", "some", 100_000, 2_000_000, readings)
            if number % 100 == 0:
                await wait_all_tasks_blocked()
            watcher.remove(web)
        await wait_all_tasks_blocked()
        assert len(open_descriptors()) == descriptors
        assert watches() == before == 0


async def test_closing_the_watcher_closes_everything(tree: Tree) -> None:
    web = tree.make("web", Resources())
    web.read_cached("cgroup.events")
    async with open_watcher() as watcher:
        watcher.add(web, Readings())
    before = len(open_descriptors())
    for _ in range(5):
        async with open_watcher() as watcher:
            watcher.add(web, Readings(), levels=["pids.current"])
            if not missing("psi"):
                watcher.add_pressure(web, "memory.pressure", "some", 100_000, 2_000_000, Readings())
    web.close()
    web.read_cached("cgroup.events")
    assert len(open_descriptors()) <= before


@pytest.mark.slow
async def test_an_idle_watcher_of_many_workloads_takes_no_cpu(tree: Tree) -> None:
    """Event loops of supervisors have spun at 100 % on descriptors that are always ready."""
    cgroups = [tree.make(f"w{number}", Resources()) for number in range(20 if in_guest() else 200)]
    async with open_watcher() as watcher:
        for cgroup in cgroups:
            watcher.add(cgroup, Readings())
        await wait_all_tasks_blocked()
        gc.collect()
        start, cpu = time.monotonic(), time.process_time()
        await trio.sleep(2)
        share = (time.process_time() - cpu) / (time.monotonic() - start)
        for cgroup in cgroups:
            watcher.remove(cgroup)
            cgroup.close()
    assert share < 0.25


async def test_many_that_are_far_from_anything_are_looked_at_less_often(
    tree: Tree, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    """A thousand idle workloads with five rules each took a tenth of a processor."""
    monkeypatch.setattr(watcher_module, "_FAR_RATE_HZ", 1)
    asked: list[tuple[float, str]] = []
    async with open_watcher() as watcher:
        cgroups = [tree.make(f"w{number}", Resources()) for number in range(3)]
        delays = {cgroup.name: delay for cgroup, delay in zip(cgroups, (0.1, 1.0, 1.0), strict=True)}

        def add(cgroup: Cgroup) -> None:
            def on_sample(_: object) -> float:
                asked.append((trio.current_time(), cgroup.name))
                return delays[cgroup.name]

            watcher.add(cgroup, lambda _: None, events=(), levels=("pids.current",), on_sample=on_sample)
            watcher.sample_now(cgroup)

        for cgroup in cgroups:
            add(cgroup)
        await trio.sleep(4)
        first, second = [at for at, name in asked if name == "w1"][:2]
        assert second - first >= 2.9  # three of them, of which one a second may be far
        assert len([name for _, name in asked if name == "w0"]) > 5  # what is near goes on at its own pace
        for cgroup in cgroups:
            watcher.remove(cgroup)


async def test_the_backstop_reads_many_files_in_portions(
    tree: Tree, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    """With a thousand workloads it read three thousand files in one go, and what happened meanwhile waited 20 ms."""
    monkeypatch.setattr(watcher_module, "_BACKSTOP_BATCH", 4)
    looks: list[tuple[float, str]] = []

    def look(_: Watcher, watch: watcher_module._Watch, file: str) -> bool:
        looks.append((trio.current_time(), f"{watch.cgroup.name} {file}"))
        return True

    monkeypatch.setattr(Watcher, "_check_event_file", look)
    async with open_watcher(backstop=1) as watcher:
        cgroups = [tree.make(f"w{number}", Resources()) for number in range(5)]
        told = ("cgroup.events", "memory.events")  # v1's pids.events does not notify, and is read besides
        for one in cgroups:
            watcher.add(one, lambda _: None, events=told)
        files = {f"{one.name} {file}" for one in cgroups for file in told}
        await trio.sleep(3.5)
        times = Counter(at for at, _ in looks)
        assert max(times.values()) == 4
        rounds = [{name for _, name in looks[i : i + 10]} for i in (0, 10)]
        assert rounds == [files, files]
        assert looks[10][0] - looks[0][0] == pytest.approx(1, abs=0.1)
        for cgroup in cgroups:
            watcher.remove(cgroup)
