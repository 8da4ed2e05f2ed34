"""The demo that ships, by the real command: what it shows is what its comments say."""

import fcntl
import os
import shlex
import shutil
from pathlib import Path

import pytest
import trio

from tests.deployment.running import started
from tests.needs import ROOT, needs
from tests.timing import deadline

pytestmark = [pytest.mark.system, needs("root", "cgroup", "memory", "pids")]

RUNTIME = Path("/run/nsupervisor-demo")


@pytest.fixture
def alone():
    """Its port and its folder are fixed, so one run at a time."""
    directory = os.open(RUNTIME.parent, os.O_RDONLY)  # a lock that leaves no file behind
    fcntl.flock(directory, fcntl.LOCK_EX)
    yield
    shutil.rmtree(RUNTIME)
    os.close(directory)


async def answers() -> bool:
    """Whether the demo's web server answers a request."""
    try:
        stream = await trio.open_tcp_stream("127.0.0.1", 18080)
    except OSError:
        return False
    async with stream:
        await stream.send_all(b"GET / HTTP/1.0\r\n\r\n")
        return (await stream.receive_some(16)).startswith(b"HTTP/1.0 200")


@pytest.mark.fault("E2")
async def test_the_demo(alone, tmp_path, no_leaks):
    (tmp_path / "run").symlink_to(RUNTIME)
    refused = asked = 0

    async def keep_asking(*, task_status):
        nonlocal refused, asked
        with trio.fail_after(deadline(20)):
            while not await answers():  # noqa: ASYNC110 - there is nothing else to tell
                await trio.sleep(0.05)
        task_status.started()
        while True:
            asked += 1
            refused += not await answers()
            await trio.sleep(0.2)

    script = f"exec nsupervisor run {shlex.quote(str(ROOT / 'configs' / 'demo.toml'))}"
    async with started(script, tmp_path) as it, trio.open_nursery() as nursery:
        await nursery.start(keep_asking)
        restarted = await it.record(event="action", workload="leak", action="restart", patience=20)
        assert restarted["cause"]["when"] == "memory.events oom_kill"
        assert (await it.record(event="exited", workload="leak"))["oom_killed"] is True
        assert await it.pid("leak", generation=2)

        full = await it.record(event="action", workload="bomb", action="log", patience=20)
        assert full["cause"]["key"] == "max"
        killed = await it.record(event="action", workload="bomb", action="kill", patience=20)
        assert killed["cause"]["after"] <= 24
        await it.record(event="state", workload="bomb", to="failed")
        assert (await it.status("bomb"))["pids_current"] == 0

        given_up = await it.record(event="state", workload="crash", to="failed", patience=20)
        assert given_up["reason"].startswith("given up after 4 starts")
        said = await it.record(event="output", workload="chatter")
        assert "on host an-island" in said["message"]
        assert said["message"].endswith("network devices: lo:")
        # It once ran `ls /proc/[0-9]*`, which failed for a process that ended after the shell had expanded the pattern.
        assert not any(record.get("stream") == "stderr" for record in it.records if record.get("workload") == "chatter")

        web = await it.status("web")
        assert (web["state"], web["restarts"], web["memory_max"], web["pids_max"]) == ("running", 0, 128 << 20, 32)
        cgroup = Path(web["cgroup"]).parent
        nursery.cancel_scope.cancel()
    assert asked > 3
    assert refused == 0
    assert not cgroup.exists()
    assert not any(name.endswith("api.sock") for name in os.listdir(RUNTIME))
