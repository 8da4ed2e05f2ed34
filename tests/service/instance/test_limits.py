"""The limits of one cgroup: changes have their turns, and none is lost."""

from functools import partial

import pytest
import trio

from nsupervisor.config.model import Resources, WorkloadConfig
from nsupervisor.core.initiators import OPERATOR
from nsupervisor.core.reload.differences import merge_limits
from nsupervisor.service.instance import limits
from nsupervisor.service.instance.limits import LimitWriter

M = 1 << 20


@pytest.fixture
async def writer(nursery, monkeypatch):
    """A writer whose writes wait for `writer_may_go`, as the kernel may while it reclaims memory."""
    resources = Resources(memory_max=64 * M, pids_max=20)
    workload = WorkloadConfig("web", command=("x",), resources=resources)
    made = LimitWriter(object(), workload, resources, nursery, lambda *_, **__: None, lambda: None)
    may_write = trio.Event()
    begun = trio.Event()
    written = []

    async def write(cgroup, before, after, *, optional=False):
        begun.set()
        await may_write.wait()
        written.append(after)
        return []

    monkeypatch.setattr(limits, "_write_limits", write)
    monkeypatch.setattr(limits.cgroup_limits, "find_foreign_changes", lambda *_: {})
    return made, begun, may_write, written


def from_file(old: Resources, **new) -> limits.Target:
    """Return what a reload makes of the limits."""
    return partial(merge_limits, old, Resources(**{"memory_max": old.memory_max, "pids_max": old.pids_max, **new}))


@pytest.mark.fault("H10")
async def test_a_reload_that_defers_limits_while_one_is_set_keeps_both(writer, nursery):
    """The change began with the limits of the old file, and put them in force again when it ended."""
    limit_writer, begun, may_write, written = writer
    old = limit_writer.resources
    nursery.start_soon(limit_writer.change_limits, {"memory_max": 32 * M}, OPERATOR)
    await begun.wait()
    limit_writer.defer(from_file(old, pids_max=30))
    may_write.set()
    await trio.testing.wait_all_tasks_blocked()
    assert limit_writer.applied == Resources(memory_max=32 * M, pids_max=20)
    assert limit_writer.resources == Resources(memory_max=32 * M, pids_max=30)
    await limit_writer.apply_pending()
    assert limit_writer.applied == Resources(memory_max=32 * M, pids_max=30) == written[-1]


@pytest.mark.fault("H10")
async def test_a_reload_that_changes_limits_while_one_is_set_keeps_both(writer, nursery):
    limit_writer, begun, may_write, written = writer
    old = limit_writer.resources
    nursery.start_soon(limit_writer.change_limits, {"memory_max": 32 * M}, OPERATOR)
    await begun.wait()
    nursery.start_soon(limit_writer.apply, from_file(old, pids_max=30))
    may_write.set()
    await trio.testing.wait_all_tasks_blocked()
    assert limit_writer.resources == limit_writer.applied == Resources(memory_max=32 * M, pids_max=30) == written[-1]


@pytest.mark.fault("H10")
async def test_what_a_refused_reload_puts_back_leaves_what_was_set_meanwhile(writer):
    limit_writer, _, may_write, _ = writer
    may_write.set()
    before = limit_writer.resources
    await limit_writer.apply(from_file(before, pids_max=30))
    undo = partial(merge_limits, limit_writer.resources, before)
    await limit_writer.change_limits({"memory_max": 32 * M}, OPERATOR)
    await limit_writer.apply(undo)
    assert limit_writer.applied == Resources(memory_max=32 * M, pids_max=20)
