"""Programs that leave their cgroup in another state than they found it."""

import signal

import pytest
import trio

from tests.simulation.configs import COMMON
from tests.simulation.machine import ROOT
from tests.simulation.service import Service, Site

TEXT = f"""
[workload.messy]
command = ["program", "exit=1@1"]
restart_sec = "500ms"
{COMMON}
"""


@pytest.mark.fault("B4")
@pytest.mark.parametrize("file", ["below", "cgroup.subtree_control", "cgroup.freeze"])
def test_the_next_start_begins_with_a_clean_cgroup(file: str) -> None:
    site = Site(0, TEXT)
    path = f"{ROOT}/sim/messy"

    def on_start(service: Service) -> None:
        async def run() -> None:
            await trio.sleep(1.3)  # it waits for its next start
            cgroup = site.machine.cgroups[path]
            assert not cgroup.is_populated
            if file == "below":
                site.machine.make_cgroup(f"{path}/below")
            else:
                cgroup.write(file, "+pids" if file == "cgroup.subtree_control" else "1")
            await trio.sleep(1.8)
            service.signals.send(signal.SIGTERM)

        service.start_soon(run)

    site.run(on_start=on_start)
    records = site.records()
    assert [record["event"] for record in records if record["event"] in ("started", "not started")] == ["started"] * 2
    assert [record["code"] for record in records if record["event"] == "exited"] == [1, 1], "the second one runs"
