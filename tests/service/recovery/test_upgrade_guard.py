"""The guard of an upgrade, as the process that it is."""

import json
import os
import subprocess
import sys

import pytest

from nsupervisor.service.recovery import upgrade_guard
from nsupervisor.service.recovery.upgrade_guard import GuardOrder
from tests.timing import deadline


@pytest.fixture
def supervisor():
    """A process that does nothing, in place of the supervisor."""
    process = subprocess.Popen(["sleep", "1000"])
    yield process
    process.kill()
    process.wait()


def run(tmp_path, supervisor, report, timeout_s=1000.0):
    """Run a guard; `report`: what is written to its pipe before the other end is closed. Return its output."""
    reader, writer = os.pipe()
    order = GuardOrder(reader, supervisor.pid, timeout_s, str(tmp_path / "reason"), ["/bin/echo", "rolled", "back"])
    with subprocess.Popen(
        [sys.executable, "-I", "-S", upgrade_guard.__file__, order.encode()], pass_fds=[reader], stdout=subprocess.PIPE
    ) as guard:
        os.close(reader)
        if report is not None:
            os.write(writer, report)
            os.close(writer)
        output, _ = guard.communicate(timeout=deadline(30))
        if report is None:
            os.close(writer)
    assert guard.returncode == 0
    return output


def reason(tmp_path):
    return json.loads((tmp_path / "reason").read_text())["why"]


def test_a_report_ends_it_and_nothing_else_happens(tmp_path, supervisor):
    assert run(tmp_path, supervisor, b"up") == b""
    assert supervisor.poll() is None
    assert not (tmp_path / "reason").exists()


def test_a_supervisor_that_ends_before_it_is_up_is_replaced(tmp_path, supervisor):
    assert run(tmp_path, supervisor, b"") == b"rolled back\n"
    assert reason(tmp_path) == "it ended before it was up"


def test_a_supervisor_that_is_not_up_in_time_is_killed_and_replaced(tmp_path, supervisor):
    assert run(tmp_path, supervisor, None, timeout_s=0.05) == b"rolled back\n"
    assert supervisor.wait(deadline(30)) == -9
    assert reason(tmp_path) == "it was not up within 0.05 s"
