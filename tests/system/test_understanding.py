"""`why`, `events`, `stats` and `top` about the real service: does a person learn what really happened?"""

import json
import re
import signal
import subprocess
from contextlib import asynccontextmanager

import pytest
import trio

from tests.needs import needs
from tests.system.service import NSUPERVISOR, service
from tests.timing import deadline

pytestmark = needs("root", "cgroup")

CALM = """
[workload.db]
type = "notify"
command = ["sh", "-c", "sleep 0.2; systemd-notify --ready; exec sleep 1000"]
[workload.web]
command = ["sleep", "1000"]
requires = ["db"]
"""

LEAK = """
[workload.leak]
command = ["python3", "-c", '''
leaked = []
while True:
    leaked.append(bytearray(1 << 20))
''']
restart_sec = "10ms"
start_limit_burst = 2
[workload.leak.resources]
memory_max = "24M"
[[workload.leak.policy]]
when = "memory.events oom_kill"
action = "restart"
"""


class Following:
    """A running `nsupervisor events -f --json`."""

    def __init__(self, process):
        self.process = process
        self.heard = []
        self._rest = b""

    async def more(self):
        """Take in what has come; False when no more will."""
        with trio.fail_after(deadline(20)):
            some = await self.process.stdout.receive_some()
        *lines, self._rest = (self._rest + some).split(b"\n")
        self.heard += map(json.loads, lines)
        return bool(some)

    async def until(self, event):
        while event not in [record["event"] for record in self.heard]:
            assert await self.more()

    async def rest(self):
        """All that was heard, after the command has ended with 0."""
        while await self.more():
            pass
        assert self._rest == b""
        assert await self.process.wait() == 0
        return self.heard


@asynccontextmanager
async def following(directory):
    command = [*NSUPERVISOR, "events", "-f", "--json", "--socket", str(directory / "run" / "api.sock")]
    process = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE)
    try:
        yield Following(process)
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
            await process.stdout.aclose()


@pytest.mark.host_only  # the same everywhere
@needs("memory")
async def test_an_oom_kill_and_what_followed(tmp_path):
    async with service(tmp_path, LEAK) as it:
        await it.record(event="state", workload="leak", to="failed", patience=20)
        told = await it.cli("why", "leak")
        assert re.search(r"^leak: failed since [0-9:.]+ \(\d+s ago\): given up after 2 starts within 60 s; ", told)
        line = 1 + (tmp_path / "nsupervisor.toml").read_text().splitlines().index("[[workload.leak.policy]]")
        first, second = told.split(f"restart by policy[0], nsupervisor.toml line {line}\n")[1:]
        ours = await it.record(event="exited", workload="leak")
        assert re.fullmatch(
            r"  when      memory\.events oom_kill\n"
            r"  read      memory\.events oom_kill: 0 → [1-9]\d*\n"
            rf"  exit      killed by SIGKILL, out of memory, after [0-9.]+ s \(generation 1, pid {ours['pid']}\)\n"
            r"  restart   in 0\.0\d+ s, start 2 of 2 within 60 s\n"
            r"  started   [0-9:.]+, generation 2, pid \d+\n"
            r"\n[0-9:.]+ \(\d+s ago\)  ",
            first,
        )
        assert second.endswith("  failed    given up after 2 starts within 60 s\n")
        (found,) = json.loads(await it.cli("why", "--json", "-n", "1", "leak"))
        (episode,) = found["episodes"]
        assert [record["event"] for record in episode] == ["action", "state", "exited", "state"]
        assert all(record in it.records for record in episode)


async def test_what_never_failed_and_what_it_waited_for(tmp_path):
    async with service(tmp_path, CALM) as it:
        await it.pid("web")
        assert (await it.record(event="waiting", workload="web"))["message"] == "waits for db"
        told = await it.cli("why", "db")
        assert re.fullmatch(r"db: ready since .*: started by boot\nit has never failed\n", told)
        told = await it.cli("why", "web")
        assert re.search(r"never failed\n\n.* start by boot\n  waited    for db \(.* s\)\n  started   .*\n$", told)


async def test_what_people_did(tmp_path):
    async with service(tmp_path, '[workload.web]\ncommand = ["sleep", "1000"]\n') as it:
        await it.pid("web")
        await it.cli("signal", "-s", "STOP", "web")
        await it.cli("freeze", "web")
        await it.cli("thaw", "web")
        await it.cli("restart", "web")
        told = await it.cli("why", "web")
        done = re.findall(r"\)  (.*?)(?: \(uid [0-9]+, pid [0-9]+\))?$", told, re.MULTILINE)
        assert done == [
            "start by boot",
            *(f"{what} by operator" for what in ("signal SIGSTOP", "freeze", "thaw", "restart")),
        ]


async def test_a_program_that_fails_is_told_with_its_place_in_the_start_limit(tmp_path):
    toml = '[workload.crash]\ncommand = ["sh", "-c", "exit 3"]\nrestart_sec = "10ms"\nstart_limit_burst = 3\n'
    async with service(tmp_path, toml) as it:
        await it.record(event="state", workload="crash", to="failed")
        told = await it.cli("why", "crash")
        assert re.findall(r"start \d of \d within 60 s", told) == [
            "start 2 of 3 within 60 s",
            "start 3 of 3 within 60 s",
        ]
        assert told.count("exit code 3\n") == 4  # the state's reason, and three ends


async def test_records_below_the_level_of_the_log_are_kept_too(tmp_path):
    async with service(tmp_path, CALM, wait=False, log_level="warning") as it:
        with trio.fail_after(deadline(20)):
            while (await it.cli_result("status")).returncode:
                pass
            while not (told := await it.cli("events", "--event", "started", "web")):
                pass
        assert re.fullmatch(r"[0-9:.]+  web         started      pid \d+\n", told)
        assert it.records == []
        await it.cli("signal", "-s", "KILL", "web")
        await it.record(event="state", workload="web", to="backoff")
        assert await it.stop() == 0
        it.records.append({"timestamp": "2026-01-31T12:00:00.000000Z", "level": "info", "event": "supervisor stopped"})


async def test_a_follower_hears_all_to_the_end_and_none_of_the_output(tmp_path):
    toml = '[workload.web]\ncommand = ["sh", "-c", "echo hello; exec sleep 1000"]\n'
    async with service(tmp_path, toml) as it:
        await it.record(event="output", workload="web")
        async with following(tmp_path) as follower:
            await follower.until("supervisor started")
            assert await it.stop() == 0
            heard = await follower.rest()
        said = [record for record in it.records if record["event"] not in ("output", "supervisor stopped")]
        assert heard == said
        assert heard[-1]["to"] == "stopped"


async def test_a_stopped_follower_does_not_hold_up_the_service(tmp_path):
    toml = """
    [workload.crash]
    command = ["sh", "-c", "exit 1"]
    restart_sec = 0
    start_limit_burst = 10000
    """
    async with service(tmp_path, toml) as it, following(tmp_path) as follower:
        await follower.until("supervisor started")
        follower.process.send_signal(signal.SIGSTOP)
        await it.record(event="exited", workload="crash", generation=60, patience=30)
        assert await it.stop() == 0  # the follower runs on only after that
        follower.process.send_signal(signal.SIGCONT)
        await follower.rest()


@needs("pids", "cpu")
@pytest.mark.host_only  # tests/cgroups has the part of the hierarchy
async def test_use_and_throttling_are_measured(tmp_path):
    toml = """
    [workload.busy]
    command = ["sh", "-c", "while :; do :; done"]
    [workload.busy.resources]
    pids_max = 9
    [workload.idle]
    command = ["sleep", "1000"]
    [workload.throttled]
    command = ["sh", "-c", "while :; do :; done"]
    [workload.throttled.resources]
    cpu_max = "10%"
    """
    async with service(tmp_path, toml) as it:
        for name in ("busy", "idle", "throttled"):
            await it.pid(name)
        found = {one["name"]: one for one in json.loads(await it.cli("stats", "--json", "--interval", "500ms"))}
        busy, idle, throttled = found["busy"], found["idle"], found["throttled"]
        assert busy["cpu_percent"] > 5 > idle["cpu_percent"]
        assert (busy["pids_current"], busy["pids_max"]) == (1, 9)
        assert idle["interval_sec"] >= 0.5
        table = await it.cli("top", "--interval", "50ms", "busy")
        assert re.match(r"NAME .*\nbusy  running +[0-9.]+ ", table)
        assert throttled["cpu_max_percent"] == 10
        assert throttled["cpu_percent"] < 30
        assert throttled["throttled_percent"] > 0
