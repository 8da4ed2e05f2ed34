"""`nsupervisor set`: limits of what runs, as a person changes them."""

import json
import os
import signal

import pytest

from tests.needs import needs
from tests.system.service import service

pytestmark = [pytest.mark.system, needs("root", "cgroup", "memory", "pids")]

M = 1 << 20

WEB = """
[workload.web]
command = ["sleep", "1000"]
kill_signal = "SIGKILL"
[workload.web.resources]
memory_max = "64M"
pids_max = 20
[[workload.web.policy]]
when = "pids.current >= 50%"
action = "log"
"""


async def test_limits_change_and_are_in_status_in_the_log_and_in_the_next_cgroup(tmp_path):
    async with service(tmp_path, WEB) as it:
        pid = await it.pid("web")
        assert await it.cli("set", "web", "memory_max=32M", "pids_max=8", "cpu_weight=50") == "web: running\n"
        found = await it.status("web")
        assert (found["memory_max"], found["pids_max"], found["pid"]) == (32 * M, 8, pid)
        record = await it.record(event="action", workload="web", action="set")
        assert record["cause"] == {"by": "operator"}
        assert record["before"] == {"memory_max": 64 * M, "pids_max": 20, "cpu_weight": None}
        assert record["after"] == {"memory_max": 32 * M, "pids_max": 8, "cpu_weight": 50}
        inode = os.stat(found["cgroup"]).st_ino
        await it.cli("kill", "web")  # which uses the cgroup up
        await it.pid("web", generation=2)
        found = await it.status("web")
        assert os.stat(found["cgroup"]).st_ino != inode
        assert (found["memory_max"], found["pids_max"]) == (32 * M, 8)
        (result,) = json.loads(await it.cli("set", "--json", "web", "memory_max=max"))
        assert result == {"name": "web", "ok": True, "state": "running", "message": ""}
        assert (await it.status("web"))["memory_max"] is None


@pytest.mark.host_only
async def test_what_is_persisted_is_in_the_file_and_in_the_next_service(tmp_path):
    async with service(tmp_path, WEB) as it:
        await it.pid("web")
        assert await it.cli("set", "--persist", "web", "memory_max=32M", "pids_max=8") == "web: running\n"
        text = (tmp_path / "nsupervisor.toml").read_text()
        assert 'memory_max = "32M"' in text
        assert "pids_max = 8" in text
        refused = await it.cli_result("set", "--persist", "web@1", "pids_max=7")
        assert refused.returncode != 0
        assert b"persist with the name before the @" in refused.stderr
        (tmp_path / "nsupervisor.toml").write_text("[")
        (result,) = json.loads((await it.cli_result("set", "--json", "--persist", "web", "pids_max=7")).stdout)
        assert (result["ok"], (await it.status("web"))["pids_max"]) == (False, 7)
        assert "it is set, but not written into" in result["message"]
    (tmp_path / "nsupervisor.toml").unlink()
    (tmp_path / "run").rename(tmp_path / "old-run")
    toml = text[text.index("[workload.web]") :]
    async with service(tmp_path, toml) as it:
        await it.pid("web")
        found = await it.status("web")
        assert (found["memory_max"], found["pids_max"]) == (32 * M, 8)


@pytest.mark.fault("H10")
@pytest.mark.host_only
async def test_what_was_persisted_is_the_files_after_a_kill(tmp_path):
    toml = WEB.replace("kill_signal", 'group = "all"\nkill_signal') + "[group.all]\npids_max = 100\n"
    async with service(tmp_path, toml, status=-signal.SIGKILL) as first:
        await first.pid("web")
        await first.cli("set", "--persist", "web", "pids_max=8")
        await first.cli("set", "--persist", "group/all", "pids_max=80")
        file = first.directory / "nsupervisor.toml"
        assert "pids_max = 8\n" in file.read_text()
        assert "pids_max = 80\n" in file.read_text()
        plan = json.loads(await first.cli("plan", "--json", str(file)))
        assert (plan["groups"], [step["do"] for step in plan["steps"]]) == ([], ["none"])
        first.process.kill()
        await first.process.wait()
    async with service(tmp_path, toml.replace("pids_max = 20", "pids_max = 9").replace("= 100", "= 90")) as second:
        assert (await second.status("web"))["pids_max"] == 9
        (group,) = json.loads(await second.cli("status", "--groups", "--json"))
        assert group["pids_max"] == 90


@pytest.mark.host_only
async def test_what_stops_is_changed_too_and_starts_with_it(tmp_path):
    async with service(tmp_path, WEB) as it:
        await it.pid("web")
        await it.cli("stop", "web")
        assert await it.cli("set", "web", "pids_max=9") == "web: stopped\n"
        await it.cli("start", "web")
        assert (await it.status("web"))["pids_max"] == 9


@pytest.mark.host_only
async def test_a_percentage_is_of_the_new_limit(tmp_path):
    async with service(tmp_path, WEB) as it:
        await it.pid("web")
        await it.cli("set", "web", "pids_max=2")
        fired = await it.record(event="action", workload="web", action="log")
        assert (fired["cause"]["threshold"], fired["cause"]["when"]) == (1, "pids.current >= 50%")


@pytest.mark.host_only
async def test_wrong_values_are_2_and_what_cannot_be_is_1_and_nothing_is_half_done(tmp_path):
    async with service(tmp_path, WEB) as it:
        await it.pid("web")
        wrong = await it.cli_result("set", "web", "pids_max=5", "memory_max=64 bananas")
        assert (wrong.returncode, wrong.stderr) == (
            2,
            b'memory_max: "64 bananas" is not a size; write for example "64M"\n',
        )
        refused = await it.cli_result("set", "web", "pids_max=5", "cpuset_cpus=4095")
        assert refused.returncode == 1
        assert b'cannot set cpuset.cpus of web: not all of the CPUs "4095" are there' in refused.stderr
        misfit = await it.cli_result("set", "web", "pids_max=max")
        assert misfit.returncode == 1
        assert b"is in per cent of pids_max, which is not set" in misfit.stderr
        found = await it.status("web")
        assert (found["memory_max"], found["pids_max"]) == (64 * M, 20)
        assert [r for r in it.records if r.get("action") == "set"] == []
