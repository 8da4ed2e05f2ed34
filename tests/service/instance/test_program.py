"""The program of a generation that an earlier supervisor started."""

import os
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from nsupervisor.config.model import WorkloadConfig
from nsupervisor.core.lifecycle import Lifecycle, State
from nsupervisor.keeper.messages import Child
from nsupervisor.service.instance.program import Program
from nsupervisor.service.platform.kernel import LINUX
from nsupervisor.service.state.digest import KeyedDigest
from nsupervisor.service.state.file import InstanceCheckpoint

HOUR_S = 3600.0


def make_program(directory: Path, nursery: trio.Nursery, reports: list[str]) -> Program:
    keeper = SimpleNamespace(tree="/nowhere")
    context: Any = SimpleNamespace(
        kernel=LINUX,
        keeper=keeper,
        digest=KeyedDigest(bytes(32)),
        nursery=nursery,
        runtime_directory=directory,
    )
    return Program("web", None, context, lambda generation, kind, text: reports.append(kind), lambda *_: None, os.close)


def make_child(directory: Path) -> Child:
    """Make a child with a notify socket, and pipes that are closed."""
    notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    notify.bind(str(directory / "socket"))
    notify.setblocking(False)
    ends = [os.pipe2(os.O_NONBLOCK) for _ in range(2)]
    for _, write in ends:
        os.close(write)
    pid = os.getpid()
    return Child("web#1", "web", pid, ends[0][0], ends[1][0], pid, None, None, notify.detach())


@pytest.mark.fault("H6")
@pytest.mark.parametrize(("started_with", "expected"), [(0.0, []), (2.0, ["WATCHDOG"]), (None, ["WATCHDOG"])])
async def test_a_watchdog_of_the_file_counts_from_the_next_start(
    tmp_path: Path, autojump_clock: MockClock, started_with: float | None, expected: list[str]
) -> None:
    """After a takeover, a healthy program got SIGABRT for keep-alives that it had never been asked for."""
    workload = WorkloadConfig("web", ("web",), type="notify", watchdog_sec=1.0)
    reports: list[str] = []
    lifecycle = Lifecycle(state=State.READY, generation=1, started_type="notify")
    async with trio.open_nursery() as nursery:
        program = make_program(tmp_path, nursery, reports)
        program.restore(InstanceCheckpoint(lifecycle=lifecycle, watchdog_sec=started_with))
        child = make_child(tmp_path)
        program.attach_child(child, workload, 1, is_starting=False)
        program.set_watchdog(True)
        await trio.sleep(1.5)
        assert reports == (expected if started_with is None else [])  # version 0.1.0 does not save it
        await trio.sleep(HOUR_S)
        assert sorted(set(reports)) == expected
        program.exited()
        program.close(child.stdout, child.stderr)


@pytest.mark.fault("H6")
@pytest.mark.parametrize("changed", [{"type": "simple"}, {"watchdog_sec": 3.0}])
async def test_a_changed_type_or_watchdog_is_seen(tmp_path: Path, changed: dict[str, Any]) -> None:
    workload = WorkloadConfig("web", ("web",), **{"type": "notify", **changed})
    lifecycle = Lifecycle(state=State.READY, generation=1, started_type="notify")
    async with trio.open_nursery() as nursery:
        program = make_program(tmp_path, nursery, [])
        program.restore(InstanceCheckpoint(lifecycle=lifecycle, watchdog_sec=0.0))
        assert not program.matches(workload, lifecycle, SimpleNamespace())  # type: ignore[arg-type]
