"""`record` on the real service, and `simulate` of what it wrote: the same configuration does the same."""

import json
import re
import signal
import subprocess

import pytest
import trio

from tests.needs import needs
from tests.system.service import NSUPERVISOR, service
from tests.timing import deadline

# What is recorded does not depend on the hierarchy, and each command takes the virtual machine seconds.
pytestmark = [pytest.mark.host_only, needs("root", "cgroup", "pids")]

# One restarts because it is full, until it is given up; one is sent signals and frozen; one crashes; one does nothing.
BUSY = """
[workload.bomb]
autostart = false
command = ["sh", "-c", "while :; do sleep 1000 & sleep 0.02; done"]
restart_sec = "20ms"
start_limit_burst = 3
[workload.bomb.resources]
pids_max = 12
[[workload.bomb.policy]]
when = "pids.current >= 50%"
action = "log"
[[workload.bomb.policy]]
when = "pids.events max"
action = "restart"
at_most = 1
within = "1h"
then = "kill"

[workload.grows]
command = ["sh", "-c", "trap 'sleep 1000 &' USR1; trap : HUP CHLD; echo up; while :; do sleep 1000 & wait $!; done"]
[[workload.grows.policy]]
when = "pids.current >= 4"
for = "300ms"
action = "signal"
signal = "SIGHUP"
[[workload.grows.policy]]
when = "pids.current >= 6"
action = "freeze"

[workload.crash]
autostart = false
command = ["sh", "-c", "sleep 0.1; exit 3"]
restart_sec = "50ms"

[workload.calm]
command = ["sleep", "1000"]
"""


async def recorded(directory, file, *arguments, begun=None):
    """Run `nsupervisor record` to its end; its exit status. ``begun`` is called with its process when it has begun."""
    command = [*NSUPERVISOR, "record", "--socket", str(directory / "run" / "api.sock"), str(file), *arguments]
    process = await trio.lowlevel.open_process(command, stderr=subprocess.PIPE)
    try:
        with trio.fail_after(deadline(60)):
            said = await process.stderr.receive_some()
            assert b"Ctrl-C ends it" in said
            if begun is not None:
                begun(process)
            async for chunk in process.stderr:
                said += chunk
            return await process.wait(), said.decode()
    finally:
        process.kill()


async def recording(directory, trace, outcome, *, task_status):
    """`recorded` as a task; its status and what it said are in `outcome` when it has ended."""
    outcome.extend(await recorded(directory, trace, "--interval", "50ms", begun=task_status.started))


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.system
async def test_the_same_configuration_does_the_same_and_another_does_not(tmp_path, nursery):
    trace, outcome = tmp_path / "trace.jsonl", []
    async with service(tmp_path, BUSY) as it:
        await it.record(event="output", message="up")
        process = await nursery.start(recording, tmp_path, trace, outcome)
        await it.cli("start", "bomb", "crash")
        for _ in range(5):
            await it.cli("signal", "--signal", "USR1", "grows")
        await it.record(event="action", action="freeze", workload="grows", patience=20)
        await it.cli("thaw", "grows")
        await it.cli("restart", "calm")
        await it.record(event="state", to="failed", workload="bomb", patience=40)
        await it.record(event="state", to="failed", workload="crash", patience=20)
        process.send_signal(signal.SIGINT)
        await it.until(lambda: bool(outcome))
        assert (outcome[0], "interrupted" in outcome[1]) == (0, True)
        told = json.loads(await it.cli("simulate", "--json", str(tmp_path / "nsupervisor.toml"), str(trace)))
        again = json.loads(await it.cli("simulate", "--json", str(tmp_path / "nsupervisor.toml"), str(trace)))
        records = it.records[:]
    assert told == again
    assert told["warnings"] == []
    assert [row for row in told["rows"] if row["recorded"] != row["simulated"]] == []
    assert told["same"] is True
    # What is in the trace is what the log has, in the same order.
    for name in ("bomb", "grows"):
        of_log = [
            r["action"] for r in records if r["event"] == "action" and r["workload"] == name and "rule" in r["cause"]
        ]
        of_trace = [r["recorded"]["action"] for r in told["rows"] if r["workload"] == name and "cause" in r["recorded"]]
        assert of_trace == of_log[-len(of_trace) :] != []
    assert {"restart", "kill", "freeze"} <= {row["recorded"]["action"] for row in told["rows"]}

    other = tmp_path / "other.toml"
    other.write_text(
        re.sub(r'action = "(restart|freeze)"', 'action = "log"', (tmp_path / "nsupervisor.toml").read_text())
    )
    result = await it.cli("simulate", "--json", str(other), str(trace))
    changed = json.loads(result)
    assert set(changed["parted"]) == {"bomb", "grows"}
    assert not [row for row in changed["rows"] if row["workload"] == "crash" and row["recorded"] != row["simulated"]]


GREEDY = """
[group.batch]
[[group.batch.policy]]
when = "memory.current > 60M"
action = "kill"
victim = "largest-memory"

[workload.chill]
command = ["python3", "-ISc", "import time; x = b'x' * (16 << 20); print('up', flush=True); time.sleep(1000)"]
group = "batch"

[workload.bloat]
autostart = false
command = ["python3", "-ISc", "x = bytearray(b'x') * (64 << 20); import time; time.sleep(1000)"]
group = "batch"
restart = "no"
"""


@needs("memory")
@pytest.mark.system
async def test_a_groups_kill_comes_again_and_another_policy_hits_another_member(tmp_path, nursery):
    trace, outcome = tmp_path / "trace.jsonl", []
    async with service(tmp_path, GREEDY) as it:
        await it.record(event="output", message="up", workload="chill", patience=20)
        process = await nursery.start(recording, tmp_path, trace, outcome)
        await it.cli("start", "bloat")
        await it.record(event="verified", workload="bloat", patience=20)
        process.send_signal(signal.SIGINT)
        await it.until(lambda: bool(outcome))
        told = json.loads(await it.cli("simulate", "--json", str(tmp_path / "nsupervisor.toml"), str(trace)))
        other = tmp_path / "other.toml"
        other.write_text(GREEDY.replace('restart = "no"', 'managed_oom_preference = "omit"'))
        changed = [await it.cli("simulate", "--json", str(other), str(trace)) for _ in range(2)]
    assert (told["same"], told["warnings"], told["parted"]) == (True, [], {})
    (kill,) = [row for row in told["rows"] if "cause" in row["recorded"]]
    assert (kill["workload"], kill["simulated"]["action"]) == ("bloat", "kill")
    assert [one["name"] for one in kill["simulated"]["cause"]["candidates"]] == ["bloat", "chill"]
    assert changed[0] == changed[1]
    rows = [row for row in json.loads(changed[0])["rows"] if row["simulated"] and "cause" in row["simulated"]]
    assert (rows[0]["workload"], rows[0]["recorded"], rows[0]["simulated"]["action"]) == ("chill", None, "kill")


async def test_a_recording_ends_by_itself_in_time_at_its_size_and_with_the_service(tmp_path, nursery):
    config = '[workload.calm]\ncommand = ["sleep", "1000"]\n'
    files = [tmp_path / f"{i}.jsonl" for i in range(3)]

    async def record(*arguments, task_status):
        assert (await recorded(tmp_path, *arguments, begun=task_status.started))[0] == 0

    async with service(tmp_path, config) as it:
        await it.pid("calm")
        assert (await recorded(tmp_path, files[0], "--for", "0.5s"))[0] == 0
        assert (await recorded(tmp_path, files[1], "--max-size", "4K", "--interval", "10ms"))[0] == 0
        await nursery.start(record, files[2], "--seen", "calm")
        nobody = await it.cli_result("record", str(tmp_path / "none.jsonl"), "clam")
        assert (nobody.returncode, b'did you mean "calm"' in nobody.stderr) == (2, True)
        assert not (tmp_path / "none.jsonl").exists()
    while len(nursery.child_tasks) > 0:
        await trio.testing.wait_all_tasks_blocked(0.01)
    assert [lines(file)[-1]["end"] for file in files] == [
        "the time is over",
        "it has the size that it may have",
        "the service has ended",
    ]
    assert 4096 <= files[1].stat().st_size < 6000
    assert any("sample" in line for line in lines(files[0]))
    assert not any("sample" in line for line in lines(files[2]))
    last = [line for line in lines(files[2]) if line.get("event") == "Exited"]
    assert [line["life"][0] for line in last] == ["stopped"]
