"""A stop of a workload that others require."""

import pytest

from tests.needs import needs
from tests.system.service import service

pytestmark = needs("root", "cgroup")

SITE = """
[workload.postgres]
command = ["sleep", "1000"]
[workload.app]
command = ["sleep", "1000"]
requires = ["postgres"]
instances = 2
[workload.proxy]
command = ["sleep", "1000"]
requires = ["app"]
[workload.other]
command = ["sleep", "1000"]
"""


@pytest.mark.fault("D13")
async def test_a_stop_did_not_show_what_else_it_stopped(tmp_path):
    async with service(tmp_path, SITE) as it:
        done = await it.cli("stop", "postgres")
        assert done == "postgres: stopped, after app@1, app@2, proxy, which cannot run without it\n"
        reasons = {name: (await it.status(name))["reason"] for name in ("postgres", "app@1", "app@2", "proxy", "other")}
        assert reasons == {
            "postgres": "stopped by operator",
            "app@1": "stopped with postgres",
            "app@2": "stopped with postgres",
            "proxy": "stopped with postgres",
            "other": "started by boot",
        }
        record = await it.record(event="action", workload="proxy", action="stop")
        assert record["cause"] == {"by": "with postgres", "kind": "dependency"}
        events = await it.cli("events", "--event", "action", "proxy")
        assert events.splitlines()[-1].endswith("  action       stop with postgres")
        assert "stop with postgres\n" in await it.cli("why", "proxy")


@pytest.mark.fault("D13")
async def test_a_workload_that_is_named_is_stopped_by_the_operator(tmp_path):
    async with service(tmp_path, SITE) as it:
        await it.cli("stop", "postgres", "app@1")
        reasons = [(await it.status(name))["reason"] for name in ("postgres", "app@1", "app@2")]
        assert reasons == ["stopped by operator", "stopped by operator", "stopped with postgres"]


STOPPED = """
[workload.worker]
command = ["sh", "-c", "sleep 1000 & sleep 1001 & kill -STOP $!; exec sleep 1002"]
timeout_stop_sec = "infinity"
namespaces = { pid = %s }
"""


@pytest.mark.fault("B7")
@pytest.mark.parametrize("pid", ["true", "false"])
async def test_a_stopped_program_ended_only_by_sigkill(tmp_path, pid):
    """It handled SIGTERM only after `timeout_stop_sec`; likewise a stopped process that it left."""
    async with service(tmp_path, STOPPED % pid) as it:
        await it.cli("signal", "-s", "STOP", "worker")
        await it.cli("stop", "worker")
        assert (await it.record(event="exited", workload="worker"))["signal"] == "SIGTERM"
        assert (await it.status("worker"))["state"] == "stopped"
