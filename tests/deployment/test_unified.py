"""What only pure cgroup v2 can do, by the whole service."""

from pathlib import Path

import pytest

from tests.needs import needs
from tests.system.service import service

pytestmark = [pytest.mark.vm_only, needs("root", "cgroup_v2", "memory", "pids", "cpu", "cpuset", "psi")]

TOML = """
[workload.pinned]
command = ["sh", "-c", "grep Cpus_allowed_list /proc/self/status; exec sleep 1000"]
resources = { cpuset_cpus = "0", memory_high = "32M", memory_oom_group = true, cpu_weight = 50 }
[workload.squeezed]
command = ["sh", "-c", "while :; do :; done"]
resources = { cpu_max = "10%" }
[[workload.squeezed.policy]]
when = "cpu.pressure some avg10 > 20%"
action = "kill"
[workload.group]
command = ["sh", "-c", "sleep 1000 & sleep 1000 & wait"]
restart = "no"
"""


async def test_pinned_squeezed_frozen_and_killed(tmp_path, no_leaks):
    async with service(tmp_path, TOML) as it:
        await it.record(event="output", workload="pinned", message="Cpus_allowed_list:\t0")
        cgroup = Path((await it.status("pinned"))["cgroup"])
        files = ("memory.high", "memory.oom.group", "cpu.weight", "cpuset.cpus.effective")
        assert [(cgroup / file).read_text().strip() for file in files] == [str(32 << 20), "1", "50", "0"]

        kill = await it.record(event="action", workload="squeezed", action="kill", patience=5)
        assert kill["cause"]["after"] > 20

        await it.cli("freeze", "group")
        group = cgroup.parent / "group"
        assert "frozen 1" in (group / "cgroup.events").read_text()
        await it.cli("kill", "group")
        assert "populated 0" in (group / "cgroup.events").read_text()
