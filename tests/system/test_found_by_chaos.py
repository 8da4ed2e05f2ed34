"""What `scripts/chaos` has found, each with a test of its own."""

import os
import signal

import trio

from nsupervisor.api.client import Client
from nsupervisor.service.jobs.jobs import MAX_CONCURRENT_STARTS
from tests.needs import needs
from tests.system.service import service
from tests.timing import deadline

pytestmark = needs("root", "cgroup")


async def test_a_stop_includes_those_that_require_it_and_wait_to_be_restarted(tmp_path):
    """They had just died and were in back-off, so they were taken for stopped, and came back without what they need."""
    toml = """
    [workload.db]
    command = ["sleep", "1000"]
    [workload.web]
    command = ["sleep", "1000"]
    requires = ["db"]
    restart_sec = "1h"
    restart_max_delay_sec = "1h"
    """
    async with service(tmp_path, toml) as it:
        os.kill(await it.pid("web"), signal.SIGKILL)
        await it.record(event="state", workload="web", to="backoff")
        await it.cli("stop", "db")
        status = await it.status("web")
        assert (status["state"], status["reason"]) == ("stopped", "stopped with db")


async def test_a_start_of_what_is_frozen_answers(tmp_path):
    """It waited for the workload to be up, which a frozen one never is."""
    async with service(tmp_path, '[workload.still]\ncommand = ["sleep", "1000"]\n') as it:
        await it.pid("still")
        await it.cli("freeze", "still")
        result = await it.cli_result("start", "still")
        assert result.returncode == 1
        assert "frozen by operator" in (result.stdout + result.stderr).decode()
        assert (await it.status("still"))["state"] == "frozen"


async def test_what_follows_on_a_frozen_program_that_was_killed_runs(tmp_path):
    """The cgroup stayed frozen, and so the next generation never came to its first step."""
    toml = """
    [workload.still]
    command = ["sleep", "1000"]
    restart_sec = 0
    namespaces = { pid = false }
    """
    async with service(tmp_path, toml) as it:
        pid = await it.pid("still")
        await it.cli("freeze", "still")
        os.kill(pid, signal.SIGKILL)
        assert await it.pid("still", generation=2)
        assert (await it.status("still"))["state"] == "running"


async def test_a_program_that_leaves_others_behind_is_restarted_again_and_again(tmp_path):
    """A generation that came and went between two notices of the kernel looked as if nothing had happened: its end was
    missed, and the workload was stopping for ever."""
    toml = """
    [workload.family]
    command = ["sh", "-c", "sleep 1000 & (sleep 1000 & exec sleep 1000) & wait"]
    namespaces = { pid = false }
    timeout_stop_sec = "infinity"
    """
    async with service(tmp_path, toml) as it:
        await it.pid("family")
        client = Client(str(tmp_path / "run" / "api.sock"))
        for _ in range(30):
            with trio.fail_after(deadline(10)):
                await trio.to_thread.run_sync(client.command, "restart", ["family"], abandon_on_cancel=True)
        assert (await it.status("family"))["generation"] == 31


async def test_thousands_that_start_at_once_take_turns(tmp_path):
    """All were asked of the keeper at once, and on a busy machine the last were given up as not started within 30 s."""
    number = 3 * MAX_CONCURRENT_STARTS
    async with service(tmp_path, f'[workload.many]\ncommand = ["sleep", "1000"]\ninstances = {number}\n') as it:
        await it.record(event="state", to="running", nth=number)
        starting, most = 0, 0
        for record in [record for record in it.records if record["event"] == "state"]:
            starting += (record["to"] == "starting") - (record["from"] == "starting")
            most = max(most, starting)
        assert 1 < most <= MAX_CONCURRENT_STARTS
