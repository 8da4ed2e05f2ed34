"""Storage by hand: a cgroup counts what its processes read and write, and slows them down.

No key of the configuration does this, so there is no service here: the test does what a person would do with the files.
"""

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.needs import cgroup_directories, needs, scratch_disk
from tests.timing import deadline

pytestmark = [pytest.mark.system, needs("root", "io")]

MIB = 1 << 20


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """A cgroup of the hierarchy that has the controller for storage: ``blkio`` on version 1, ``io`` on version 2."""
    directories = cgroup_directories()
    path = directories.get("blkio", directories[""]) / f"experiment-{os.getpid()}"
    path.mkdir()
    try:
        yield path
    finally:
        path.rmdir()


@pytest.fixture
def disk(tmp_path: Path) -> tuple[Path, str]:
    """What may be overwritten, and the number (major:minor) of its device: the scratch disk, or a file."""
    if scratch_disk():
        path = Path(scratch_disk())
        device = path.stat().st_rdev
    else:
        path = tmp_path / "file"
        path.touch()
        device = path.stat().st_dev
    if not Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").exists():
        pytest.skip(f"needs scratch_disk: {tmp_path} is not on a block device, and there is no scratch disk")
    return path, f"{os.major(device)}:{os.minor(device)}"


def dd(cgroup: Path, path: Path, mib: int) -> float:
    """Write past the page cache, as a later child of a shell that joined the cgroup; the time in seconds it took."""
    command = (
        f"echo $$ >{cgroup}/cgroup.procs && dd if=/dev/zero of={path} bs=256K count={4 * mib} oflag=direct conv=notrunc"
    )
    begin = time.monotonic()
    subprocess.run(["sh", "-c", f"{command}; exit $?"], check=True, capture_output=True, timeout=deadline(30))
    return time.monotonic() - begin


def written(cgroup: Path, device: str) -> int:
    """Bytes written to the device by the cgroup."""
    if (cgroup / "io.stat").exists():
        for line in (cgroup / "io.stat").read_text().splitlines():
            number, *values = line.split()
            if number == device:
                return int(dict(value.split("=") for value in values)["wbytes"])
    else:
        for line in (cgroup / "blkio.throttle.io_service_bytes").read_text().splitlines():
            if line.startswith(f"{device} Write "):
                return int(line.split()[2])
    return 0


def limit(cgroup: Path, device: str, rate: int) -> None:
    """Let the cgroup write `rate` bytes a second at most to the device."""
    if (cgroup / "io.max").exists():
        (cgroup / "io.max").write_text(f"{device} wbps={rate}")
    else:
        (cgroup / "blkio.throttle.write_bps_device").write_text(f"{device} {rate}")


def test_storage_is_counted_and_limited(cgroup, disk):
    path, device = disk
    if not (cgroup / "io.stat").exists() and not (cgroup / "blkio.throttle.io_service_bytes").exists():
        pytest.skip(f"needs io: the controller is not switched on in {cgroup.parent}")
    assert written(cgroup, device) == 0
    limit(cgroup, device, 1024 * MIB)  # version 1 counts nothing before there is a limit
    dd(cgroup, path, 1)
    assert MIB <= written(cgroup, device) < 2 * MIB

    limit(cgroup, device, 2 * MIB)
    # 3 MiB at 2 MiB a second; the kernel counts in slices of a tenth of a second or so.
    assert dd(cgroup, path, 3) > 1
    assert 4 * MIB <= written(cgroup, device) < 6 * MIB
