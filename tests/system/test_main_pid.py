"""MAINPID=: a real program hands over to a child in its PID namespace, and outlives the service."""

import json
import os
import signal
from pathlib import Path

import pytest

from tests.needs import needs
from tests.system.service import service

pytestmark = needs("root")

PROGRAM = """
import os, signal, socket, time
notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
notify.connect(os.environ["NOTIFY_SOCKET"])
pid = os.fork()
if pid:
    notify.send(b"MAINPID=%d\\nREADY=1" % pid)
    os._exit(0)
signal.signal(signal.SIGTERM, lambda *_: os._exit(42))
time.sleep(1000)
"""


@pytest.mark.parametrize("init", [True, False])
async def test_the_new_main_process_outlives_the_old_one_and_the_service(tmp_path: Path, init: bool) -> None:
    command = json.dumps(["python3", "-Ic", PROGRAM])
    keys = ('type = "notify"', 'restart = "no"', f"namespaces = {{ pid = {json.dumps(init)} }}")
    toml = "\n".join(("[workload.web]", f"command = {command}", *keys, ""))
    async with service(tmp_path, toml, status=-signal.SIGKILL) as it:
        pid = (await it.record(event="main process"))["pid"]
        assert (await it.status("web"))["pid"] == pid
        it.process.kill()
        await it.process.wait()
    async with service(tmp_path, toml) as it:
        status = await it.status("web")
        assert (status["pid"], status["generation"]) == (pid, 1)
        os.kill(pid, signal.SIGTERM)
        assert (await it.record(event="exited"))["code"] == 42
