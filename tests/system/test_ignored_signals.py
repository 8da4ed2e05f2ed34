"""A service that was started with ignored signals, as from a script or by nohup(1)."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from tests.needs import needs
from tests.system.service import NSUPERVISOR, service

pytestmark = needs("root", "cgroup")

TOML = """
[workload.web]
command = ["sh", "-c", "grep SigIgn /proc/self/status; exit 3"]
restart = "no"
[[workload.web.policy]]
when = "exit code == 3"
action = "exec"
exec = ["sh", "-c", "grep -E 'Sig(Ign|Blk)' /proc/self/status >FILE.part; mv FILE.part FILE"]
"""
COLLECTOR = "grep -E 'Sig(Ign|Blk)' /proc/self/status >FILE.part; mv FILE.part FILE; exec cat >/dev/null"
IGNORED = [signal.SIGUSR2, signal.SIGQUIT, signal.SIGALRM, signal.SIGCHLD, signal.SIGINT, signal.SIGHUP]


@pytest.fixture
def ignored() -> Iterator[None]:
    """Ignore signals here, which the service inherits."""
    handlers = {signum: signal.signal(signum, signal.SIG_IGN) for signum in IGNORED}
    yield
    for signum, handler in handlers.items():
        signal.signal(signum, handler)


def masks(file: Path) -> dict[str, int]:
    """The signals that a process ignores and blocks, without the two that the C library keeps for itself."""
    lines = [line.split(":") for line in file.read_text().splitlines()]
    return {key: int(value, 16) & ~(3 << 31) for key, value in lines}


@pytest.mark.fault("D23")
async def test_the_command_of_a_rule_ignored_what_the_service_was_started_to_ignore(tmp_path, ignored):
    """A child that waits for SIGUSR2, or whose own children end, got none of these signals."""
    file = tmp_path / "signals"
    async with service(tmp_path, TOML.replace("FILE", str(file))) as it:
        own = await it.record(event="output", workload="web")
        assert int(own["message"].split()[1], 16) & ~(3 << 31) == 0
        await it.until(file.exists)
        assert masks(file) == {"SigIgn": 0, "SigBlk": 0}
        it.process.send_signal(signal.SIGUSR2)  # the service itself ignores it still
        it.process.send_signal(signal.SIGALRM)
        assert json.loads(await it.cli("status", "--json"))


@pytest.mark.fault("D23")
async def test_so_did_the_collector(tmp_path, ignored):
    file = tmp_path / "signals"
    config = tmp_path / "site.toml"
    command = json.dumps(["sh", "-c", COLLECTOR.replace("FILE", str(file))])
    config.write_text(
        f'[supervisor]\nname = "ignored-{tmp_path.name[-8:]}"\nruntime_directory = "{tmp_path}/run"\n'
        f'log_output = {{ command = {command} }}\n[workload.web]\ncommand = ["sleep", "1000"]\n'
    )
    async with trio.open_nursery() as nursery:
        process = await nursery.start(trio.run_process, [*NSUPERVISOR, "run", str(config)])
        with trio.fail_after(20):
            while not file.exists():  # noqa: ASYNC110
                await trio.sleep(0.02)
        process.terminate()
    assert masks(file) == {"SigIgn": 0, "SigBlk": 0}
