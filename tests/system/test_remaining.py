"""Processes that a program leaves: they get the stop signal and their time, with and without a PID namespace."""

import json
from pathlib import Path

import pytest

from tests.needs import needs
from tests.system.service import service

pytestmark = needs("root", "cgroup")

SAVER = """
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # a signal just before pause(2) would be waited for forever
print("ready", flush=True)
signal.sigwait({signal.SIGTERM})
print("saved", file=open(sys.argv[1], "w"), flush=True)
"""


def toml(directory: Path, script: str, *, has_pid_namespace: bool) -> str:
    return f"""
    [workload.web]
    command = ["sh", "-c", {json.dumps(script)}, "python3", {json.dumps(SAVER)}, {json.dumps(str(directory / "saved"))}]
    restart = "no"
    [workload.web.namespaces]
    pid = {json.dumps(has_pid_namespace)}
    """


@pytest.mark.host_only  # the hierarchy decides nothing here
@pytest.mark.parametrize("has_pid_namespace", [True, False])
async def test_a_server_below_a_shell_saves_when_it_is_stopped(tmp_path: Path, has_pid_namespace: bool) -> None:
    """The shell ends by the signal, and the kernel killed the server with the PID namespace."""
    script = 'echo s; $0 -c "$1" $2; echo e'
    async with service(tmp_path, toml(tmp_path, script, has_pid_namespace=has_pid_namespace)) as running:
        await running.record(event="output", workload="web", message="ready")
        await running.cli("stop", "web")
        assert (tmp_path / "saved").read_text() == "saved\n"


@pytest.mark.host_only
@pytest.mark.parametrize("has_pid_namespace", [True, False])
async def test_a_server_is_stopped_when_its_shell_exits(tmp_path: Path, has_pid_namespace: bool) -> None:
    script = f'mkfifo {tmp_path}/ready; $0 -c "$1" $2 > {tmp_path}/ready & read line < {tmp_path}/ready; exit 0'
    async with service(tmp_path, toml(tmp_path, script, has_pid_namespace=has_pid_namespace)) as running:
        await running.record(event="state", workload="web", to="exited")
        assert (tmp_path / "saved").read_text() == "saved\n"
