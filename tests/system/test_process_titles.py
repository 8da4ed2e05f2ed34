"""The names of the service's own processes in `ps`."""

import os
from pathlib import Path

import pytest

from tests.needs import needs
from tests.system.service import service

pytestmark = needs("root", "cgroup")

TOML = """
[workload.web]
command = ["sleep", "1000"]
instances = 2
[workload.mounted]
command = ["sleep", "1000"]
mounts = [{ type = "tmpfs", destination = "/mnt" }]
"""


def title(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").decode()


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.fault("D16")
async def test_ps_showed_the_same_long_command_for_all_of_them(tmp_path: Path) -> None:
    async with service(tmp_path, TOML) as it:
        started = await it.record(event="supervisor started")
        programs = {await it.pid(name) for name in ("web@1", "web@2", "mounted")}
        keeper = started["keeper_pid"]
        assert title(keeper) == "nsupervisor: keeper"
        for name in ("web@1", "web@2", "mounted"):
            inits = [pid for pid in children(keeper) if programs & set(children(pid)) and title(pid).endswith(name)]
            assert [title(pid) for pid in inits] == [f"nsupervisor: init {name}"]

        def has_titles() -> bool:
            """Whether all its processes have one; those that have just been made are given theirs soon."""
            below = {keeper}
            while (more := below | {child for pid in below for child in children(pid)}) != below:
                below = more
            own = below - programs
            return os.getpid() not in own and all(title(pid).startswith("nsupervisor: ") for pid in own)

        await it.until(has_titles)
