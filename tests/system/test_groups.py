"""Groups on the real kernel: bloat dies and chill lives; the host's policy; limits for several together."""

import json
import os
import signal
from pathlib import Path

import pytest

from tests.metrics.scraping import scrape
from tests.needs import needs
from tests.system.service import service

pytestmark = needs("root", "cgroup", "memory", "pids")

CHILL = 'command = ["sleep", "1000"]\nrestart = "no"'


def bloat(mib: int) -> str:
    """A program that takes so much memory and keeps it."""
    code = f"x = bytearray(b'x') * ({mib} << 20); print('up', flush=True); import time; time.sleep(1000)"
    return f"command = ['python3', '-ISc', \"{code}\"]\nrestart = 'no'"


def written(path: Path, mib: int) -> Path:
    """A file of which nothing is in memory: what is belongs to whoever wrote it."""
    with path.open("wb") as file:
        for _ in range(mib):
            file.write(b"x" * (1 << 20))
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return path


@pytest.mark.system
async def test_bloat_dies_and_chill_lives_and_the_one_to_be_omitted_too(tmp_path):
    toml = f"""
    [group.outer]
    memory_max = "400M"
    [group.batch]
    group = "outer"
    [[group.batch.policy]]
    when = "memory.current > 100M"
    action = "kill"
    victim = "largest-memory"
    [workload.chill]
    {CHILL}
    group = "batch"
    [workload.never]
    {bloat(70)}
    group = "batch"
    managed_oom_preference = "omit"
    [workload.bloat]
    {bloat(50)}
    autostart = false
    group = "batch"
    [workload.outside]
    {bloat(80)}
    """
    async with service(tmp_path, toml) as it:
        await it.record(event="output", message="up", workload="never", patience=20)
        await it.record(event="started", workload="chill")
        await it.cli("start", "bloat")
        action = await it.record(event="action", action="kill", workload="bloat", patience=20)
        cause = action["cause"]
        assert (cause["rule"], cause["group"], cause["victim"]) == (
            "group.batch.policy[0]",
            "group/batch",
            "largest-memory",
        )
        assert [(one["name"], one["turn"]) for one in cause["candidates"]] == [
            ("bloat", 1),
            ("chill", 2),
            ("never", None),
        ]
        assert cause["after"] > cause["threshold"] == 100 << 20
        verified = await it.record(event="verified", workload="bloat", patience=20)
        assert verified["freed_bytes"] > 10 << 20
        assert (await it.record(event="exited", workload="bloat"))["signal"] == "SIGKILL"
        states = {one["name"]: one["state"] for one in json.loads(await it.cli("status", "--json"))}
        assert states == {"chill": "running", "never": "running", "bloat": "failed", "outside": "running"}
        told = await it.cli("why", "bloat")
        assert "kill by group.batch.policy[0], nsupervisor.toml line" in told
        assert "  chosen    first of 3 by largest-memory (a kill frees " in told
        assert "  beside    never: no turn, managed_oom_preference = omit" in told


@pytest.mark.host_only
async def test_avoid_flips_the_victim_and_a_dry_run_harms_nobody(tmp_path):
    toml = f"""
    [[group.batch.policy]]
    when = "memory.current > 30M"
    action = "stop"
    victim = "largest-memory"
    dry_run = true
    [[group.batch.policy]]
    when = "memory.current > 30M and pids.current >= 2"
    action = "kill"
    victim = "largest-memory"
    cooldown = "1h"
    [workload.chill]
    {CHILL}
    group = "batch"
    [workload.bloat]
    {bloat(40)}
    group = "batch"
    managed_oom_preference = "avoid"
    requires = ["chill"]
    """
    async with service(tmp_path, toml) as it:
        dry = await it.record(event="action", action="stop", workload="chill", patience=20)
        assert dry["dry_run"] is True
        killed = await it.record(event="action", action="kill", workload="chill", patience=20)
        assert killed["cause"]["candidates"][1]["why"].endswith(", avoided")
        await it.record(event="exited", workload="chill", signal="SIGKILL")
        assert (await it.status("bloat"))["state"] == "running"


@pytest.mark.host_only  # the guest has no disk below its temporary files
@needs("psi")
async def test_pressure_on_a_group_ends_its_largest_and_not_the_neighbour_in_it(tmp_path):
    """A program that reads a file larger than the group's limit again and again has to wait for memory all the time."""
    data = written(tmp_path / "data", 96)
    code = (
        "import os, sys\nf = os.open(sys.argv[1], 0)\nwhile True:\n os.lseek(f, 0, 0)\n"
        " for _ in range(1536): os.read(f, 65536)"
    )
    toml = f"""
    [group.batch]
    memory_max = "32M"
    [[group.batch.policy]]
    when = "memory.pressure some avg10 > 0.5%"
    action = "kill"
    victim = "largest-memory"
    [workload.chill]
    {CHILL}
    group = "batch"
    [workload.bloat]
    command = ["python3", "-ISc", {json.dumps(code)}, "{data}"]
    restart = "no"
    group = "batch"
    """
    async with service(tmp_path, toml) as it:
        action = await it.record(event="action", action="kill", workload="bloat", patience=40)
        assert action["cause"]["file"] == "memory.pressure"
        await it.record(event="verified", workload="bloat", patience=20)
        assert (await it.status("chill"))["state"] == "running"


@pytest.mark.host_only
async def test_the_hosts_policy_hits_the_newest_of_all(tmp_path):
    toml = f"""
    [[host.policy]]
    when = "host.meminfo MemAvailable < 100% and pids.current >= 2"
    action = "freeze"
    victim = "newest"
    cooldown = "1h"
    [workload.old]
    {CHILL}
    [workload.young]
    {CHILL}
    requires = ["old"]
    """
    async with service(tmp_path, toml) as it:
        action = await it.record(event="action", action="freeze", workload="young")
        assert action["cause"]["group"] == "host"
        await it.record(event="state", to="frozen", workload="young")
        await it.record(event="verified", workload="young", group="host")
        assert (await it.status("old"))["state"] == "running"
        await it.cli("thaw", "young")


@pytest.mark.host_only  # tests/cgroups/test_groups.py has the machine's part
async def test_limits_of_a_group_are_set_and_shown_and_its_members_are_named_by_it(tmp_path):
    toml = f"""
    [group.batch]
    memory_max = "256M"
    [[group.batch.policy]]
    when = "pids.current >= 3"
    action = "log"
    [workload.one]
    {CHILL}
    group = "batch"
    [workload.one.resources]
    memory_max = "50%"
    [workload.two]
    {CHILL}
    group = "batch"
    """
    async with service(tmp_path, toml) as it:
        await it.record(event="started", workload="two")
        assert (await it.status("one"))["memory_max"] == 128 << 20
        assert await it.cli("set", "group/batch", "memory_max=128M", "cpu_weight=50") == "group/batch: done\n"
        assert (await it.status("one"))["memory_max"] == 64 << 20
        (group,) = json.loads(await it.cli("status", "--groups", "--json"))
        assert (group["name"], group["members"], group["memory_max"]) == ("group/batch", ["one", "two"], 128 << 20)
        refused = await it.cli_result("set", "group/batch", "memory_min=1G")
        assert refused.returncode == 1
        assert "memory_min" in refused.stderr.decode()
        scraped = await scrape(it.directory / "run" / "api.sock")
        assert scraped.value("group_memory_max_bytes", group="batch") == 128 << 20
        assert scraped.value("group_members", group="batch") == 2
        assert await it.cli("stop", "group/batch") == "one: stopped\ntwo: stopped\n"
        assert "group/batch" in await it.cli("status")


@pytest.mark.host_only
async def test_a_workload_that_has_changed_groups_meanwhile_runs_on_and_moves_when_it_starts_anew(tmp_path):
    """A supervisor is killed, its file changes, and the next one finds the workload where it was."""

    def toml(group: str) -> str:
        return f"""
        [group.{group}]
        memory_max = "256M"
        [workload.web]
        {CHILL}
        group = "{group}"
        """

    async with service(tmp_path, toml("old"), status=-signal.SIGKILL) as it:
        pid = await it.pid("web")
        it.process.kill()
    async with service(tmp_path, toml("new")) as it:
        status = await it.status("web")
        assert (status["pid"], status["cgroup"].rpartition("/group.")[2]) == (pid, "old/web")
        await it.cli("restart", "web")
        status = await it.status("web")
        assert status["cgroup"].rpartition("/group.")[2] == "new/web"
        assert status["memory_max"] is None
        assert not os.path.exists(status["cgroup"].replace("group.new", "group.old"))


@pytest.mark.host_only  # it reads 150 MB, which takes an emulated processor two minutes
@pytest.mark.fault("C2")
async def test_the_reader_of_a_large_file_was_killed_for_its_page_cache(tmp_path):
    path = written(tmp_path / "file", 150)
    toml = f"""
    [[group.batch.policy]]
    when = "memory.current > 170M"
    action = "kill"
    victim = "largest-memory"
    [group.batch]
    memory_max = "400M"
    [workload.reader]
    command = ["sh", "-c", "head -c 150M {path} > /dev/null; echo up; exec sleep 1000"]
    group = "batch"
    [workload.leak]
    {bloat(50)}
    autostart = false
    group = "batch"
    """
    async with service(tmp_path, toml) as it:
        await it.record(event="output", message="up", workload="reader", patience=20)
        await it.cli("start", "leak")
        action = await it.record(event="action", action="kill", patience=20)
        assert action["workload"] == "leak"
        memory = {one["name"]: one["memory_current"] for one in action["cause"]["candidates"]}
        assert memory["reader"] > memory["leak"]
        assert await it.record(event="verified", workload="leak", patience=20)


@pytest.mark.fault("F10")
@pytest.mark.host_only  # the rule of the host has to sample in time, which an emulated processor does not always let it
async def test_a_host_rule_that_found_no_member_was_quiet_for_its_cooldown(tmp_path):
    toml = f"""
    [[host.policy]]
    when = "host.meminfo MemAvailable > 1M"
    action = "kill"
    victim = "newest"
    cooldown = "1h"
    [workload.web]
    {CHILL}
    autostart = false
    """
    async with service(tmp_path, toml) as it:
        warning = await it.record(event="warning", group="host")
        assert "no member is left to kill (none runs)" in warning["message"]
        await it.cli_result("start", "web")  # it may be killed before the command sees that it runs
        assert (await it.record(event="action", action="kill"))["workload"] == "web"
        await it.record(event="verified", workload="web")
        await it.cli("start", "web")
        await it.pid("web", generation=2)
        assert (await it.status("web"))["state"] == "running", "now the cooldown counts"
