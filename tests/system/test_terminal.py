"""The running service as a person sees it: its output on a terminal, and the answer of `status`."""

import json
import os
import pty
import re
import signal
import subprocess

import pytest

from tests.needs import needs
from tests.system.service import NSUPERVISOR, service
from tests.timing import deadline

pytestmark = needs("root", "cgroup")

NOTIFY = """
import os, socket, sys
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
    sock.sendto(b"READY=1\\nSTATUS=3 requests a second", os.environ["NOTIFY_SOCKET"])
sys.stdin.read()
open(os.environ["GO_ON"]).read()
"""


@pytest.mark.fault("F5", "D15", "D12")
async def test_status_did_not_know_what_the_service_knows(tmp_path):
    os.mkfifo(tmp_path / "go")
    (tmp_path / "notify.py").write_text(NOTIFY)
    toml = f"""
    [workload.web]
    description = "the public site"
    command = ["python3", "{tmp_path}/notify.py"]
    type = "notify"
    environment = {{ GO_ON = "{tmp_path}/go" }}
    restart_sec = "1h"
    restart_max_delay_sec = "1h"
    [workload.job]
    command = ["true"]
    type = "oneshot"
    """
    async with service(tmp_path, toml) as it:
        await it.record(event="status", workload="web")
        await it.record(event="state", workload="job", to="exited")
        web, job = await it.status("web"), await it.status("job")
        assert (web["ready"], web["status_text"], web["next_start_sec"]) == (True, "3 requests a second", None)
        assert (job["ready"], job["state"], job["pid"]) == (True, "exited", None)
        details = await it.cli("status", "web")
        assert '  status      "3 requests a second"\n' in details
        assert "  description the public site\n" in details
        assert f"  command     python3 {tmp_path}/notify.py\n" in details
        os.kill(web["pid"], signal.SIGKILL)
        ended = await it.record(event="exited", workload="web")
        assert ended["uptime_sec"] > 0
        await it.record(event="state", workload="web", to="backoff")
        web = await it.status("web")
        assert (web["ready"], web["status_text"]) == (False, "")
        assert 2000 < web["next_start_sec"] <= 3600
        assert re.search(r"killed by SIGKILL; next start in \d+min", await it.cli("status"))
        assert re.search(r"\n  next start  in \d+min( \d+s)?\n", await it.cli("status", "web"))


@pytest.mark.fault("D15")
def test_run_printed_json_on_a_terminal(tmp_path):
    (tmp_path / "site.toml").write_text(
        f"""
        [supervisor]
        name = "terminal-{os.getpid()}"
        runtime_directory = "{tmp_path}/run"
        [workload.web]
        command = ["sh", "-c", "echo hello; echo wrong >&2; exit 3"]
        restart = "no"
        """
    )
    controller, terminal = pty.openpty()
    process = subprocess.Popen([*NSUPERVISOR, "run", f"{tmp_path}/site.toml"], stdout=terminal, stderr=terminal)
    os.close(terminal)
    shown = b""
    try:
        while b"supervisor stopped" not in shown:
            shown += os.read(controller, 4096)
            if b"failed" in shown and b"wrong" in shown and b"hello" in shown:
                process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=deadline(20)) == 0
    finally:
        process.kill()
        process.wait()
        os.close(controller)
    text = re.sub(r"\x1b\[[0-9;]*m", "", shown.decode()).replace("\r\n", "\n")
    lines = [re.sub(r"^\d\d:\d\d:\d\d\.\d\d\d  ", "", line) for line in text.splitlines()]
    assert "web         stdout       hello" in lines
    assert "web         stderr       wrong" in lines
    assert "web         state        stopped → starting: started by boot" in lines
    assert any(re.fullmatch(r"web         exited       exit code 3 after [\d.]+ s, pid \d+", line) for line in lines)
    assert "-           supervisor stopping  after SIGTERM" in lines
    assert not any(mark in text for mark in ("{", "from=", "None"))


async def test_json_stays_the_format_elsewhere(tmp_path):
    async with service(tmp_path, '[workload.web]\ncommand = ["sleep", "1000"]\n') as it:
        assert json.loads(json.dumps(await it.record(event="started", workload="web")))["pid"]
