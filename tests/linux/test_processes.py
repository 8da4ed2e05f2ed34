"""Other processes: who is meant, and how they ended."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from nsupervisor.linux import processes
from tests.needs import needs


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process
        process.kill()


def test_a_pid_with_another_start_time_is_somebody_else(sleeper) -> None:
    """Pids are used again; nobody is taken for the one that had it before."""
    started = processes.start_time(sleeper.pid)
    assert started is not None
    assert processes.open_pidfd(sleeper.pid, started + 1) == -1
    pidfd = processes.open_pidfd(sleeper.pid, started)
    assert not processes.has_ended(pidfd)
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    sleeper.wait()
    assert processes.has_ended(pidfd)
    assert processes.open_pidfd(sleeper.pid, started) == -1
    assert processes.start_time(sleeper.pid) is None
    assert processes.parent_pid(sleeper.pid) is None
    os.close(pidfd)


@pytest.mark.parametrize(
    ("command", "status"), [("exit 7", 7 << 8), ("kill -USR1 $$", signal.SIGUSR1), ("exit 0", 0)], ids=str
)
def test_the_exit_status_of_a_zombie(command: str, status: int) -> None:
    with subprocess.Popen(["sh", "-c", f"read go; {command}"], stdin=subprocess.PIPE) as process:
        pidfd = os.pidfd_open(process.pid)
        assert processes.exit_status(pidfd, process.pid) is None
        process.stdin.close()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert processes.exit_status(pidfd, process.pid) == status
        os.close(pidfd)


@needs("root")
def test_the_exit_status_of_somebody_elses_child_that_has_been_reaped() -> None:
    """Linux 6.15 tells it; before, nobody knows."""
    script = (
        "import os, subprocess, sys\n"
        "child = subprocess.Popen(['sh', '-c', 'read go; exit 9'], stdin=subprocess.PIPE)\n"
        "print(child.pid, flush=True); sys.stdin.readline(); child.stdin.close(); child.wait()\n"
        "print('reaped', flush=True); sys.stdin.readline()\n"
    )
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        pidfd = os.pidfd_open(pid)
        parent.stdin.write("\n")
        parent.stdin.flush()
        assert parent.stdout.readline() == "reaped\n"
        release = tuple(int(part) for part in os.uname().release.split(".")[:2])
        assert processes.exit_status(pidfd, pid) == (9 << 8 if release >= (6, 15) else None)
        os.close(pidfd)
        parent.stdin.close()


def test_a_pipe_is_found_again_by_its_inode() -> None:
    read, write = os.pipe()
    both = os.open(f"/proc/self/fd/{write}", os.O_RDWR)
    os.close(write)
    inode = processes.pipe_inode(read)
    os.close(read)
    os.write(both, b"nobody reads, and there is no SIGPIPE")
    assert processes.read_write_pipe_inode(os.getpid(), both) == inode
    again = processes.open_pipe(inode, [1 << 22, os.getpid()])
    assert os.read(again, 100) == b"nobody reads, and there is no SIGPIPE"
    os.close(both)
    assert os.read(again, 100) == b""
    os.close(again)
    assert processes.open_pipe(inode, [os.getpid()]) == -1


def test_other_descriptors_are_not_taken_for_log_pipes() -> None:
    read, write = os.pipe()
    assert processes.read_write_pipe_inode(os.getpid(), write) == 0
    assert processes.read_write_pipe_inode(os.getpid(), 1 << 20) == 0
    os.close(read)
    os.close(write)


def test_a_process_is_found_by_the_number_of_its_senders_namespace(monkeypatch):
    """The service, a sender in a PID namespace below, another process there, and one in a namespace below that."""
    pids = {10: (10,), 20: (20, 1), 21: (21, 2), 22: (22, 7, 2), 30: (30,)}
    monkeypatch.setattr(processes, "namespace_pids", lambda pid: pids.get(pid, (pid,) if pid == os.getpid() else ()))
    assert processes.find_numbered(2, 20, [20, 21, 22], True) == 21
    assert processes.find_numbered(7, 20, [20, 21, 22], True) == 22
    assert processes.find_numbered(30, 20, [20, 21, 22], True) is None
    assert processes.find_numbered(2, 99, [22, 21], True) == 21, "the sender has ended"
    assert processes.find_numbered(30, 99, [20, 30], False) == 30
