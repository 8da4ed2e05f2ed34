"""Reloads of real programs, and the notifications that go with them, from the command line."""

import pytest

from tests.needs import needs
from tests.system.service import service

pytestmark = needs("root", "cgroup")

PROGRAM = """
import os, signal, socket, sys, time

def say(*lines):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
        client.connect(os.environ["NOTIFY_SOCKET"])
        client.send("\\n".join(lines).encode())

def reload(*_):
    say("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")
    time.sleep(0.2)
    say("READY=1", "STATUS=reloaded")

signal.signal(signal.SIGHUP, reload)
say("READY=1")
while True:
    signal.pause()
"""

SITE = """
[workload.web]
command = ["/usr/bin/python3", "{program}"]
type = "notify-reload"
namespaces = {{ {namespaces} }}
[workload.plain]
command = ["/bin/sh", "-c", "trap 'echo reloaded' USR2; echo waits; while :; do sleep 0.1; done"]
reload_signal = "SIGUSR2"
[workload.deaf]
command = ["sleep", "1000"]
"""


@pytest.mark.parametrize("namespaces", ["", 'time = true, time_offsets = { monotonic = "1h" }'])
async def test_programs_are_reloaded(tmp_path, namespaces):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    program.chmod(0o755)
    site = SITE.format(program=program, namespaces=namespaces)
    async with service(tmp_path, site) as it:
        await it.record(event="state", workload="web", to="ready")
        pid = await it.pid("web")
        assert await it.cli("reload", "--workload", "web") == "web: ready, reloaded\n"
        assert (await it.record(event="program reloaded", workload="web"))["took_sec"] >= 0.2
        assert (await it.status("web"))["pid"] == pid
        await it.record(event="output", workload="plain", message="waits")
        assert await it.cli("reload", "--workload", "plain") == "plain: running, SIGUSR2 sent\n"
        await it.record(event="output", workload="plain", message="reloaded")
        await it.cli("reload", "--workload", "deaf", status=1)


@needs("program:systemd-notify")
async def test_systemd_notify_returns_when_its_message_has_been_handled(tmp_path):
    site = """
    [workload.web]
    command = ["/bin/sh", "-c", "systemd-notify --ready; echo returned; exec sleep 1000"]
    type = "notify"
    """
    async with service(tmp_path, site) as it:
        ready = await it.record(event="state", workload="web", to="ready")
        returned = await it.record(event="output", workload="web", message="returned")
        assert ready["timestamp"] < returned["timestamp"]
