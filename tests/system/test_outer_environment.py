"""Values of the environment in which the service was started, as containers configure their programs."""

import json
import signal
from pathlib import Path

import pytest

from tests.needs import needs
from tests.system.service import Service, service

pytestmark = [pytest.mark.system, pytest.mark.host_only, needs("root", "cgroup")]

WORKER = """
[workload.worker]
expand = true
command = ["sh", "-c", "echo zone=$ZONE argument={env.ZONE} number={instance-1:02} of {env.COUNT}; exec sleep 1000"]
instances = "{env.COUNT}"
autostart = "{env.WITH_WORKERS}"
pass_environment = ["ZONE"]
environment = { LOG_FILE = "/tmp/{name}.log" }
"""
PASSED = """
[workload.web]
command = ["sh", "-c", "echo zone=$ZONE; exec sleep 1000"]
pass_environment = ["Z*"]
"""


async def test_two_programs_get_the_value_in_their_environment_and_argument(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"ZONE": "b", "COUNT": "2", "WITH_WORKERS": "true"}.items():
        monkeypatch.setenv(name, value)
    async with service(tmp_path, WORKER) as it:
        for number in (1, 2):
            text = f"zone=b argument=b number={number - 1:02} of 2"
            await it.record(event="output", workload=f"worker@{number}", message=text)


async def steps(it: Service) -> list[str]:
    plan = json.loads(await it.cli("plan", "--json", str(it.directory / "nsupervisor.toml")))
    return [step["do"] for step in plan["steps"]]


async def test_a_service_with_another_environment_restarts_what_differs_at_a_reload(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZONE", "b")
    async with service(tmp_path, PASSED, status=-signal.SIGKILL) as it:
        pid = await it.pid("web")
        it.process.kill()
        await it.process.wait()
    async with service(tmp_path, PASSED, status=-signal.SIGKILL) as it:
        assert (await it.status("web"))["pid"] == pid
        assert await steps(it) == ["none"]
        it.process.kill()
        await it.process.wait()
    monkeypatch.setenv("ZONE", "c")
    async with service(tmp_path, PASSED) as it:
        assert (await it.status("web"))["pid"] == pid
        assert await steps(it) == ["restart"]
        await it.cli("reload")
        await it.record(event="output", workload="web", message="zone=c")
        assert await steps(it) == ["none"]
        assert b"zone" not in (tmp_path / "run" / "state.json").read_bytes().lower()
