"""The service ends with its workloads, and its parent does not start it again."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from nsupervisor.api.client import Client, ClientError
from tests.chaos.service import until
from tests.needs import needs
from tests.system.service import NSUPERVISOR
from tests.timing import deadline

pytestmark = [pytest.mark.host_only, needs("root", "cgroup")]


@pytest.mark.parametrize("is_killed_first", [False, True])
def test_the_parent_of_a_service_takes_its_own_end_for_final(tmp_path: Path, is_killed_first: bool, no_leaks) -> None:
    """70 is the status of a supervisor with a defect, which its parent starts again."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    (tmp_path / "site.toml").write_text(f"""
        [supervisor]
        name = "exit-on-{os.getpid()}"
        runtime_directory = "{tmp_path}/run"
        exit_on = ["job exited", "job failed"]
        [workload.job]
        command = ["sh", "-c", "read x < {gate}; exit 70"]
        restart = "no"
        [workload.web]
        command = ["sleep", "1000"]
    """)
    client = Client(str(tmp_path / "run" / "api.sock"))

    def supervisor() -> int:
        try:
            return 0 if {one["state"] for one in client.status()} != {"running"} else client.info()["pid"]
        except ClientError:  # not up yet
            return 0

    with (tmp_path / "log").open("wb") as log:
        command = [*NSUPERVISOR, "run", "--supervise-self", str(tmp_path / "site.toml")]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        pid = until("all run", supervisor)
        if is_killed_first:
            os.kill(pid, signal.SIGKILL)
            until("another supervisor", lambda: supervisor() not in (0, pid))
        gate.write_text("\n")
        assert process.wait(deadline(30)) == 70
    finally:
        process.terminate()
        process.wait(deadline(30))
    assert (tmp_path / "log").read_text().count("job failed (supervisor.exit_on); exit status 70") == 1
