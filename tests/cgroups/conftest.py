"""A subtree of cgroups for each test, programs in it, and a way to wait for readings."""

import itertools
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest
import trio

from nsupervisor.cgroups import Cgroup, Host, Reading, Tree
from tests.timing import deadline

_numbers = itertools.count(1)

# sh joins every hierarchy itself and then becomes the program, so that nothing of the program runs outside.
JOIN = 'while [ "$1" != -- ]; do echo 0 > "$1"; shift; done; shift; exec "$@"'


class Programs:
    """Starts programs in cgroups, and sees them off."""

    def __init__(self) -> None:
        self._running: list[subprocess.Popen[str]] = []

    def start(self, cgroup: Cgroup, *command: str) -> "subprocess.Popen[str]":
        files = [*cgroup.join_files, f"{cgroup.path}/cgroup.procs"]
        process = subprocess.Popen(
            ["/bin/sh", "-c", JOIN, "sh", *files, "--", *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._running.append(process)
        return process

    def python(self, cgroup: Cgroup, code: str) -> "subprocess.Popen[str]":
        return self.start(cgroup, sys.executable, "-I", "-S", "-c", code)

    def close(self) -> None:
        for process in self._running:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


class Readings:
    """A callback that keeps what it is told, and lets a test wait for it."""

    def __init__(self) -> None:
        self.seen: list[Reading] = []
        self._send, self._receive = trio.open_memory_channel[Reading](1000)

    def __call__(self, reading: Reading) -> None:
        self.seen.append(reading)
        self._send.send_nowait(reading)

    async def until(self, file: str, satisfied: Callable[[dict[str, float]], bool], seconds: float = 10) -> Reading:
        """The next reading of the file whose values satisfy; the ones before are dropped."""
        with trio.fail_after(deadline(seconds)):
            async for reading in self._receive:
                if reading.file == file and satisfied(dict(reading.values)):
                    return reading
        raise AssertionError("the channel was closed")


def wait_until(satisfied: Callable[[], bool], seconds: float = 10) -> None:
    """For what notifies nobody. Fails when it does not come true in time."""
    end = time.monotonic() + deadline(seconds)
    while not satisfied():
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.002)


@pytest.fixture
def host() -> Host:
    return Host.discover()


@pytest.fixture
def tree(host: Host) -> Iterator[Tree]:
    tree = Tree.create(host, f"nsupervisor-test-{os.getpid()}-{next(_numbers)}")
    yield tree
    everything = Cgroup(host, "everything", tree.path)
    everything.thaw()
    everything.kill()
    wait_until(lambda: not everything.is_populated())
    everything.close()
    tree.close()
    assert not os.path.exists(tree.path)


@pytest.fixture
def programs(tree: Tree) -> Iterator[Programs]:
    programs = Programs()
    yield programs
    programs.close()
