"""Relations between workloads with real programs, and their graph."""

import os
import signal

from tests.needs import needs
from tests.system.service import service

pytestmark = needs("root", "cgroup")

TOML = """
[workload.db]
command = ["sleep", "1000"]
restart = "always"
restart_sec = 0

[workload.web]
command = ["sleep", "1000"]
binds_to = ["db"]
on_failure = ["page"]

[workload.page]
command = ["true"]
type = "oneshot"
autostart = false

[workload.closed]
command = ["true"]
type = "oneshot"
condition_path_exists = ["!/"]
"""


async def test_relations_and_the_graph(tmp_path):
    async with service(tmp_path, TOML) as it:
        await it.record(event="state", workload="web", to="running")
        os.kill(await it.pid("db"), signal.SIGKILL)
        await it.record(event="started", workload="db", generation=2)
        await it.record(event="started", workload="web", generation=2)
        await it.record(event="state", workload="web", to="running")
        assert await it.cli("graph", "web") == ("web  running\n├─ binds_to db  running\n└─ on_failure page  stopped\n")
        found = await it.status("closed")
        assert (found["state"], found["reason"]) == ("exited", 'skipped: condition_path_exists = "!/" is not met')
        told = await it.cli("why", "web")
        assert "with db (binds_to)" in told
