"""A workload that gets a group while no supervisor runs: it moves there with its next start."""

import json
import signal
from pathlib import Path

import pytest

from tests.needs import needs
from tests.system.service import Service, service

pytestmark = [pytest.mark.host_only, needs("root", "cgroup", "pids")]  # the same everywhere

WEB = """
[workload.web]
command = ["sleep", "1000"]
kill_signal = "SIGKILL"
"""
GROUP = """
group = "batch"
[group.batch]
pids_max = 100
"""


async def group(it: Service) -> tuple[list[str], int]:
    (found,) = json.loads(await it.cli("status", "--groups", "--json"))
    return found["members"], found["pids_current"]


async def steps(it: Service) -> list[tuple[str, str]]:
    plan = json.loads(await it.cli("plan", "--json", str(it.directory / "nsupervisor.toml")))
    return [(step["do"], step["why"]) for step in plan["steps"]]


@pytest.mark.fault("C6")
async def test_a_workload_outside_of_its_group_was_counted_as_a_member(tmp_path: Path) -> None:
    async with service(tmp_path, WEB, status=-signal.SIGKILL) as it:
        pid = await it.pid("web")
        it.process.kill()
        await it.process.wait()
    async with service(tmp_path, WEB + GROUP) as it:
        warning = await it.record(event="warning", workload="web")
        assert warning["message"].startswith("its configuration has changed since it was started; restart it")
        assert (await it.status("web"))["pid"] == pid
        assert await group(it) == ([], 0)
        ((action, why),) = await steps(it)
        assert action == "restart"
        assert why.endswith("it needs a new process")
        await it.cli("restart", "web")
        await it.pid("web", generation=2)
        members, processes = await group(it)
        assert members == ["web"]
        assert processes > 0
        assert await steps(it) == [("none", "")]
