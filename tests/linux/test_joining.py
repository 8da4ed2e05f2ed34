"""Opening namespaces to join them: what is opened, and what is refused."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nsupervisor.linux import joining
from nsupervisor.linux.namespaces import JOINABLE, NAMESPACES
from nsupervisor.linux.trusted_paths import UntrustedPathError
from tests.needs import NOBODY, needs


@contextmanager
def process(*flags: str) -> Iterator[tuple[int, int]]:
    """Run a process in new namespaces; yield its pid and its pidfd."""
    command = ["unshare", *flags, "sh", "-c", "echo ready; read line"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        pidfd = os.pidfd_open(child.pid)
        try:
            yield child.pid, pidfd
        finally:
            child.kill()
            os.close(pidfd)


def identity(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


@needs("root", "netns", "program:unshare")
@pytest.mark.parametrize("kind", JOINABLE)
def test_the_namespace_of_a_process_is_opened(kind: str) -> None:
    with process("--net", "--uts", "--ipc") as (pid, pidfd):
        fd = joining.open_of_process(pidfd, kind)
        expected = os.stat(f"/proc/{pid}/ns/{NAMESPACES[kind].file}")
    try:
        assert identity(fd) == (expected.st_dev, expected.st_ino)
        assert not os.get_inheritable(fd)
    finally:
        os.close(fd)


@needs("root", "netns", "program:unshare")
def test_a_process_that_has_ended_has_no_namespace() -> None:
    with process("--net") as (pid, pidfd):
        os.kill(pid, 9)
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOWAIT)  # a zombie
        with pytest.raises(OSError, match="has ended"):
            joining.open_of_process(pidfd, "network")
        os.waitpid(pid, 0)
        with pytest.raises(OSError, match="has ended"):
            joining.open_of_process(pidfd, "network")


def test_the_own_namespace_is_never_joined() -> None:
    pidfd = os.pidfd_open(os.getpid())
    try:
        with pytest.raises(PermissionError, match="network = false"):
            joining.open_of_process(pidfd, "network")
    finally:
        os.close(pidfd)


@needs("root", "netns", "program:unshare")
def test_a_namespace_is_opened_by_the_name_of_a_file() -> None:
    with process("--net") as (pid, _):
        fd = joining.open_file(f"/proc/{pid}/ns/net", "network")
        try:
            assert not joining.is_own(fd, "network")
        finally:
            os.close(fd)


@needs("root", "netns", "program:unshare")
def test_what_is_not_the_wanted_namespace_is_refused(tmp_path: Path) -> None:
    wrong = pytest.raises(OSError, match="it is a ipc namespace, not a network namespace")
    with process("--net", "--ipc") as (pid, _), wrong:
        joining.open_file(f"/proc/{pid}/ns/ipc", "network")
    file, fifo = tmp_path / "file", tmp_path / "fifo"
    file.touch()
    os.mkfifo(fifo)  # is not waited for
    for path in (str(file), str(fifo), "/dev/null"):
        with pytest.raises(OSError, match="it is not a namespace") as caught:
            joining.open_file(path, "network")
        assert caught.value.filename == path
    with pytest.raises(FileNotFoundError):
        joining.open_file(str(tmp_path / "missing"), "network")


@needs("root")
def test_a_path_that_others_control_is_refused(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "net").symlink_to("/dev/null")
    os.chown(theirs, NOBODY, NOBODY)
    os.lchown(theirs / "net", NOBODY, NOBODY)
    with pytest.raises(UntrustedPathError):
        joining.open_file(str(theirs / "net"), "network")
    with subprocess.Popen(["sleep", "100"], user=NOBODY, group=NOBODY) as child:
        try:
            with pytest.raises(UntrustedPathError):
                joining.open_file(f"/proc/{child.pid}/ns/net", "network")
        finally:
            child.kill()
