"""What the virtual machine promises to the tests that run in it."""

import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.needs import missing, needs, scratch_disk
from tests.timing import deadline

pytestmark = pytest.mark.vm_only

MIB = 1 << 20


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """An empty cgroup; what is in it at the end is killed."""
    path = Path("/sys/fs/cgroup") / f"guest-{os.getpid()}"
    path.mkdir()
    yield path
    (path / "cgroup.kill").write_text("1")
    end = time.monotonic() + deadline(5)
    while "populated 1" in (path / "cgroup.events").read_text() and time.monotonic() < end:
        time.sleep(0.01)
    path.rmdir()


def inside(cgroup: Path, *command: str) -> list[str]:
    """A command line that runs `command` in the cgroup.

    The child joins by itself: were the tests' process in there, the out-of-memory killer would choose that.
    """
    return ["/bin/sh", "-c", 'echo 0 >"$0/cgroup.procs" && exec "$@"', str(cgroup), *command]


@pytest.mark.parametrize(
    "need",
    [
        *("root", "cgroup_v2", "memory", "pids", "cpu", "cpuset", "io", "psi", "psi_short_windows", "sys_resource"),
        *("userns", "unprivileged_userns", "netns", "time_namespace", "scratch_disk"),
    ],
)
def test_has(need: str) -> None:
    assert missing(need) == ""


def test_has_only_cgroup_version_2() -> None:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    kinds = {line.partition(" - ")[2].split()[0] for line in lines}
    assert {kind for kind in kinds if kind.startswith("cgroup")} == {"cgroup2"}


def test_has_the_files_of_each_controller(cgroup: Path) -> None:
    for file in ("memory.max", "pids.max", "cpu.max", "cpuset.cpus", "io.max", "memory.pressure", "cgroup.kill"):
        assert (cgroup / file).exists(), file


def test_tells_of_an_out_of_memory_kill(cgroup: Path) -> None:
    (cgroup / "memory.max").write_text(str(40 * MIB))
    done = subprocess.run(inside(cgroup, sys.executable, "-S", "-c", f"bytearray({200 * MIB})"), cwd="/")
    assert done.returncode == -9
    assert "oom_kill 1\n" in (cgroup / "memory.events").read_text()


@needs("psi_short_windows")
def test_pressure_trigger_with_a_window_of_one_second_fires(cgroup: Path) -> None:
    """Without CAP_SYS_RESOURCE only multiples of 2 s are allowed; Documentation/accounting/psi.rst."""
    (cgroup / "cpu.max").write_text("10000 100000")  # a tenth of a processor: who wants a whole one, stalls
    trigger = os.open(cgroup / "cpu.pressure", os.O_RDWR | os.O_NONBLOCK)
    try:
        os.write(trigger, b"some 150000 1000000\0")
        poll = select.poll()
        poll.register(trigger, select.POLLPRI)
        spinner = subprocess.Popen(inside(cgroup, "/bin/sh", "-c", "while :; do :; done"))
        try:
            fired = poll.poll(deadline(10) * 1000)
        finally:
            spinner.kill()
            spinner.wait()
    finally:
        os.close(trigger)
    assert [event & select.POLLPRI for _, event in fired] == [select.POLLPRI]


@needs("io", "scratch_disk")
def test_io_max_throttles_direct_writes_to_the_scratch_disk(cgroup: Path) -> None:
    limit, size = 4 * MIB, 8 * MIB
    device = os.stat(scratch_disk()).st_rdev
    number = f"{os.major(device)}:{os.minor(device)}"
    (cgroup / "io.max").write_text(f"{number} wbps={limit}")
    start = time.monotonic()
    write = ["dd", "if=/dev/zero", f"of={scratch_disk()}", f"bs={MIB}", f"count={size // MIB}", "oflag=direct"]
    subprocess.run(inside(cgroup, *write), check=True, stderr=subprocess.DEVNULL)
    elapsed = time.monotonic() - start
    counts = dict(
        word.split("=")
        for line in (cgroup / "io.stat").read_text().splitlines()
        if line.startswith(number + " ")
        for word in line.split()[1:]
    )
    assert int(counts["wbytes"]) == size
    # The first slices may pass before the throttle closes; without a limit this takes milliseconds.
    assert elapsed > 0.6 * size / limit
