"""`nsupervisor set`: limits of what runs, as a person changes them."""

import json
import os
import re
import signal
from pathlib import Path

import pytest

from tests.needs import cgroup_directories, needs
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
        assert (record["cause"]["by"], record["cause"]["kind"]) == ("operator", "person")
        assert re.fullmatch(f"uid {os.getuid()}, pid [0-9]+", record["cause"]["detail"])
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


def limit_file(pid: int, cgroup: str, file: str) -> Path:
    """Return a limit file of a process's cgroup, in whichever hierarchy has its controller."""
    controller = file.partition(".")[0]
    directories = cgroup_directories()
    if controller not in directories:
        return Path(cgroup) / file

    def path(process: object) -> str:
        lines = Path(f"/proc/{process}/cgroup").read_text().splitlines()
        return next(line.split(":", 2)[2] for line in lines if controller in line.split(":", 2)[1].split(","))

    root = str(directories[controller]).removesuffix(path("self"))
    return Path(root + path(pid)) / file


@pytest.mark.fault("C1")
@pytest.mark.host_only
async def test_a_limit_that_others_had_changed_was_shown_as_it_had_been_set(tmp_path):
    async with service(tmp_path, WEB) as it:
        pid = await it.pid("web")
        file = limit_file(pid, (await it.status("web"))["cgroup"], "pids.max")

        async def restored_by(*command: str, value: str, nth: int) -> None:
            file.write_text("max")
            assert (await it.status("web"))["pids_max"] is None, "it shows what the kernel has"
            await it.cli(*command)
            record = await it.record(event="limit changed", workload="web", nth=nth)
            assert record["message"] == (
                "another program has changed it; restored: pids_max: the kernel made it no limit"
            )
            assert file.read_text() == value
            assert (await it.status("web"))["pids_max"] == int(value)

        await restored_by("set", "web", "pids_max=20", value="20\n", nth=1)  # it answered "done", and wrote nothing
        await restored_by("set", "web", "memory_max=32M", value="20\n", nth=2)
        await restored_by("reload", value="20\n", nth=3)
        file.write_text("max")
        await it.cli("restart", "web")
        await it.record(event="limit changed", workload="web", nth=4)
        pid = await it.pid("web", 2)
        assert limit_file(pid, (await it.status("web"))["cgroup"], "pids.max").read_text() == "20\n"
        assert len([record for record in it.records if record["event"] == "limit changed"]) == 4


@pytest.mark.fault("C1")
@pytest.mark.host_only
async def test_limits_that_nothing_has_changed_are_not_reported(tmp_path):
    more = """pids_max = 20
    cpu_weight = 50
    cpu_max = "50%"
    memory_high = "48M"
    memory_swap_max = "8M"
    required = false
    """
    async with service(tmp_path, WEB.replace("pids_max = 20\n", more)) as it:
        await it.pid("web")
        await it.cli("reload")
        await it.cli("set", "web", "pids_max=30")
        await it.cli("restart", "web")
        await it.pid("web", generation=2)
        assert not [record for record in it.records if record["event"] == "limit changed"]
