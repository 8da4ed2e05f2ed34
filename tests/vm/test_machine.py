"""scripts/vm itself: what a caller can rely on."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.needs import needs
from tests.timing import deadline
from tests.vm.machine import LIMIT, command, vm

pytestmark = [pytest.mark.host_only, pytest.mark.slow, needs("vm"), pytest.mark.timeout(LIMIT + 60)]


def machine_processes() -> list[int]:
    """Processes of machines that this test run started (its environment is inherited)."""
    mark = f"NSUPERVISOR_TEST_RUN={os.environ['NSUPERVISOR_TEST_RUN']}".encode()
    found = []
    for directory in Path("/proc").iterdir():
        try:
            ours = mark in (directory / "environ").read_bytes().split(b"\0")
            name = (directory / "comm").read_text()
        except OSError:
            continue
        if ours and name.startswith(("qemu", "virtiofsd")):
            found.append(int(directory.name))
    return found


def test_passes_status_streams_folder_and_files(tmp_path: Path, no_leaks: None) -> None:
    script = "pwd; cat; echo oops >&2; echo seen > 'a file'; touch /etc/not-on-the-host; exit 7"
    done = vm("--stdin", "--", "sh", "-c", script, cwd=tmp_path, stdin="in\n")
    assert (done.returncode, done.stdout) == (7, f"{tmp_path}\nin\n")
    assert "oops\n" in done.stderr
    assert (tmp_path / "a file").read_text() == "seen\n"
    assert not Path("/etc/not-on-the-host").exists()


def test_loses_no_output_of_a_command_that_ends_at_once(tmp_path: Path, no_leaks: None) -> None:
    done = vm("--", "seq", "200000", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout == "".join(f"{number}\n" for number in range(1, 200001))


def test_says_124_when_the_time_is_up(no_leaks: None) -> None:
    done = vm("-t", "0.5", "--", "sleep", "1000")
    assert done.returncode == 124
    assert "time limit of 0.5 s reached" in done.stderr


def test_says_125_with_the_console_when_the_guest_does_not_boot(no_leaks: None) -> None:
    done = vm("--kernel-arg", "rdinit=/no/such/init", "--", "true")
    assert done.returncode == 125
    assert "Kernel panic" in done.stderr


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_leaves_nothing_running_when_it_is_killed(how: signal.Signals, tmp_path: Path, no_leaks: None) -> None:
    machine = subprocess.Popen(command("--", "sh", "-c", "echo up; sleep 1000"), stdout=subprocess.PIPE, cwd=tmp_path)
    assert machine.stdout is not None
    assert machine.stdout.readline() == b"up\n"
    machine.send_signal(how)
    machine.wait(LIMIT)
    machine.stdout.close()
    end = time.monotonic() + deadline(10)
    while (running := machine_processes()) and time.monotonic() < end:
        time.sleep(0.05)
    assert running == []


def test_refuses_to_share_a_folder_of_the_system_read_write(no_leaks: None) -> None:
    done = vm("--", "true", cwd=Path("/etc"))
    assert done.returncode == 125
    assert "will not share /etc read-write" in done.stderr


SCOPE = r"""
set -e
cat /proc/1/comm
systemctl is-system-running
systemd-run --quiet --scope -p Delegate=yes sh -ec '
    own=/sys/fs/cgroup$(cut -d: -f3 /proc/self/cgroup)
    mkdir "$own/leaf"
    echo 0 >"$own/leaf/cgroup.procs"
    echo "+memory +pids +cpu +cpuset +io" >"$own/cgroup.subtree_control"
    cat "$own/leaf/memory.max"
'
cat >/run/systemd/system/notes.service <<'END'
[Service]
Type=notify
NotifyAccess=all
ExecStart=/bin/sh -c 'systemd-notify --ready; exec sleep 1000'
END
systemctl daemon-reload
systemctl start notes
systemctl daemon-reexec
systemctl is-active notes
systemd-run --quiet --wait --pipe echo D-Bus answers
"""


def test_systemd_delegates_starts_units_and_replaces_itself(tmp_path: Path, no_leaks: None) -> None:
    done = vm("--systemd", "--", "sh", "-c", SCOPE, cwd=tmp_path)
    assert done.stdout.splitlines() == ["systemd", "running", "max", "active", "D-Bus answers"], done.stderr
    assert done.returncode == 0
