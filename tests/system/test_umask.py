"""The umask of the process that starts the service has no effect on what the service makes for its programs."""

import stat
from pathlib import Path

import pytest

from tests.needs import needs
from tests.roots import open_directories
from tests.system.service import service

pytestmark = needs("root", "cgroup")

SEND = 'socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])'
READY = f"import os, socket; {SEND}"
WEB = f"""
[workload.web]
command = ["sh", "-c", '''echo up; python3 -S -c '{READY}'; exec sleep 1000''']
type = "notify"
user = "65534"
namespaces = {{ mount = false, pid = false }}
log = {{ stdout = "file" }}
"""


def mode(path: Path) -> str:
    return oct(stat.S_IMODE(path.stat().st_mode))


@pytest.mark.fault("C12")
async def test_a_program_of_another_user_could_not_reach_its_notify_socket(strict_umask: None, tmp_path: Path) -> None:
    open_directories(tmp_path / "x")
    run, logs = tmp_path / "made" / "run", tmp_path / "logs"
    async with service(tmp_path, WEB, runtime_directory=str(run), log_directory=str(logs)) as it:
        await it.record(event="state", workload="web", to="ready")
        modes = {path.name: mode(path) for path in (run, run / "notify", run / "api.sock", logs, logs / "web.log")}
    assert modes == {"run": "0o755", "notify": "0o711", "api.sock": "0o600", "logs": "0o750", "web.log": "0o640"}
