"""The descriptor store: a real program, and kills and upgrades of everything around it."""

import json
import os
import signal
from pathlib import Path

from tests.needs import needs
from tests.system.service import service

pytestmark = needs("root")

PROGRAM = """
import array, os, socket, sys, time
notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
notify.connect(os.environ["NOTIFY_SOCKET"])

def send(text, *fds):
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    notify.sendmsg([text.encode()], rights)

def wait():
    reading, writing = os.pipe()
    send("BARRIER=1", writing)
    os.close(writing)
    os.read(reading, 1)

names = os.environ.get("LISTEN_FDNAMES", "").split(":")
if "count" in names:
    fd = 3 + names.index("count")
    number = int(os.pread(fd, 100, 0)) + 1
else:
    fd, number = os.memfd_create("count"), 1
os.pwrite(fd, b"%d" % number, 0)
send("FDSTORE=1\\nFDNAME=count", fd)
send("FDSTORE=1\\nFDNAME=file", os.open("/proc/self/status", os.O_RDONLY))
wait()
print("number", number, os.environ["FDSTORE"], ":".join(names), flush=True)
time.sleep(1000)
"""


def toml() -> str:
    command = json.dumps(["python3", "-Ic", PROGRAM])
    return "\n".join(
        (
            "[workload.web]",
            f"command = {command}",
            'restart = "always"',
            "restart_sec = 0",
            "start_limit_burst = 1000",
            "file_descriptor_store_max = 4",
            'sockets = [{ listen_datagram = "@descriptor-store-test" }]',
            "",
        )
    )


def said(number: int) -> str:
    return f"number {number} 4 web:count" if number > 1 else "number 1 4 web"


async def test_what_a_program_stores_outlives_it_the_service_its_upgrade_and_the_keeper(tmp_path: Path) -> None:
    async with service(tmp_path, toml(), isolation="none", status=-signal.SIGKILL) as it:
        await it.record(event="output", message=said(1))
        os.kill(await it.pid("web"), signal.SIGKILL)
        await it.record(event="output", message=said(2))
        assert (await it.status("web"))["stored_descriptors"] == ["count"]
        assert "1 of 4 descriptors: count" in await it.cli("status", "web")
        refused = await it.record(event="notify refused")
        assert "only these can be stored" in refused["message"]
        it.process.kill()
        await it.process.wait()
    async with service(tmp_path, toml(), isolation="none") as it:
        os.kill((await it.status("web"))["pid"], signal.SIGKILL)
        await it.record(event="output", message=said(3))
        await it.cli("upgrade")
        await it.record(event="supervisor upgraded", patience=30)
        os.kill(await it.pid("web", 3), signal.SIGKILL)
        await it.record(event="output", message=said(4))
        os.kill((await it.record(event="supervisor started", nth=2))["keeper_pid"], signal.SIGKILL)
        await it.record(event="keeper replaced")
        os.kill(await it.pid("web", 4), signal.SIGKILL)
        await it.record(event="output", message=said(5))
