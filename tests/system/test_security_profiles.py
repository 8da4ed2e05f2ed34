"""Security profiles of running programs: what each of them gives, and what the kernel refuses."""

from pathlib import Path

import pytest

from nsupervisor.capability_names import mask
from nsupervisor.core.security import DEFAULT_CAPABILITIES
from tests.needs import needs
from tests.system.service import service

pytestmark = [pytest.mark.host_only, needs("root", "cgroup", "seccomp", "userns", "netns")]

STATUS = "grep -E '^(CapBnd|CapEff|NoNewPrivs|Seccomp_filters):' /proc/self/status"
THREE = f"""
[workload.plain]
command = ["sh", "-c", '''{STATUS}; unshare -m true; unshare -U true; exec sleep 1000''']
[workload.strict]
command = ["sh", "-c", '''{STATUS}; ls /sys/class/net; cut -c11- /proc/self/uid_map; exec sleep 1000''']
security = {{ profile = "strict" }}
[workload.none]
command = ["sh", "-c", '''{STATUS}; unshare -m true && echo made; exec sleep 1000''']
security = {{ profile = "none" }}
"""


async def written(it, workload: str, count: int, stream: str = "stdout") -> list[str]:
    return [
        (await it.record(event="output", workload=workload, stream=stream, nth=number))["message"]
        for number in range(1, count + 1)
    ]


async def test_each_profile_gives_what_it_says(tmp_path: Path) -> None:
    async with service(tmp_path, THREE) as it:
        few = f"{mask(DEFAULT_CAPABILITIES):016x}"
        assert await written(it, "plain", 4) == [
            *(f"CapEff:\t{few}", f"CapBnd:\t{few}", "NoNewPrivs:\t1", "Seccomp_filters:\t1")
        ]
        refused = await written(it, "plain", 2, "stderr")
        assert refused == ["unshare: unshare failed: Operation not permitted"] * 2
        strict = await written(it, "strict", 5)
        nothing = "0" * 16
        assert strict[:2] == [f"CapEff:\t{nothing}", f"CapBnd:\t{nothing}"]
        assert strict[2] == "NoNewPrivs:\t1"
        assert int(strict[3].split()[1]) >= 2
        assert strict[4] == "lo"
        none = await written(it, "none", 5)
        assert int(none[1].split()[1], 16) > mask(DEFAULT_CAPABILITIES)
        assert none[2:] == ["NoNewPrivs:\t1", "Seccomp_filters:\t0", "made"]
