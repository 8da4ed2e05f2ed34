"""Which exit the supervisor takes for a kill of the kernel's OOM killer."""

import signal

import pytest
import trio

from tests.simulation.configs import COMMON
from tests.simulation.machine import ROOT
from tests.simulation.service import Service, Site

TEXT = f"""
[workload.shop]
command = ["program", "forks=1@0.1", "deaf"]
restart = "no"
resources = {{ memory_max = "8M" }}
{COMMON}
[[workload.shop.policy]]
when = "uptime > 2s"
action = "signal"
signal = "SIGKILL"
[[workload.shop.policy]]
when = "exit oom_killed"
action = "stop"
"""


@pytest.mark.fault("B5")
@pytest.mark.parametrize("by", ["stop", "kill", "signal", "rule", "kernel"])
def test_a_kill_by_the_supervisor_after_an_oom_kill_of_a_child_is_none_of_the_kernel(by: str) -> None:
    site = Site(0, TEXT)

    def on_start(service: Service) -> None:
        async def command() -> None:
            await trio.sleep(1.0)
            cgroup = site.machine.cgroups[f"{ROOT}/sim/shop"]
            leader, child = sorted(cgroup.processes.values(), key=lambda process: not process.is_leader)
            cgroup.allocate(leader if by == "kernel" else child, 100 << 20)
            await trio.sleep(0.5)
            if by == "signal":
                await service.supervisor.command("signal", "shop", signal=signal.SIGKILL)
            elif by in ("stop", "kill"):
                await service.supervisor.command(by, "shop")
            await trio.sleep(10.0)
            service.signals.send(signal.SIGTERM)

        service.start_soon(command)

    site.run(on_start=on_start)
    (exited,) = [record for record in site.records() if record["event"] == "exited"]
    assert (exited["signal"], exited["oom_killed"]) == ("SIGKILL", by == "kernel")
