"""The wrappers, each against the kernel; what changes a process happens in a child."""

import errno
import os
import signal
import struct
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from nsupervisor.linux import namespaces, syscalls
from tests.needs import needs

ROOT = str(Path(syscalls.__file__).parents[2])


def in_child(script: str) -> str:
    """Run `script` in an interpreter of its own, which has one thread; its output."""
    code = f"import os, sys; sys.path.append({ROOT!r})\nfrom nsupervisor.linux import namespaces, syscalls\n{script}"
    command = [sys.executable, "-I", "-S", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_the_table_of_namespaces_is_the_kernels() -> None:
    files = {namespace.file for namespace in namespaces.NAMESPACES.values()}
    here = {name for name in os.listdir("/proc/self/ns") if not name.endswith("_for_children")}
    assert here <= files
    assert namespaces.clone_flags({"pid", "mount"}) == 0x2002_0000
    with pytest.raises(KeyError):
        namespaces.clone_flags({"net"})


def test_clone3_gives_pid_and_pidfd() -> None:
    output = in_child(
        """
pid, pidfd = syscalls.clone3(0)
if pid == 0:
    os._exit(7)
info = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
print(info.si_pid == pid, info.si_status, os.get_inheritable(pidfd))
"""
    )
    assert output == "True 7 False\n"


def test_clone3_leaves_an_interpreter_that_works_on_both_sides() -> None:
    """The fork hooks reset the import lock and the like; without them a child may hang at its first import."""
    output = in_child(
        """
called = []
os.register_at_fork(before=lambda: called.append("before"), after_in_parent=lambda: called.append("parent"),
                    after_in_child=lambda: called.append("child"))
pid, pidfd = syscalls.clone3(0)
import threading
if pid == 0:
    thread = threading.Thread(target=lambda: print(*called, flush=True))
    thread.start(); thread.join()
    os._exit(0)
os.waitpid(pid, 0)
print(*called)
"""
    )
    assert output.splitlines() == ["before child", "before parent"]


def test_clone3_raises_with_the_errno() -> None:
    output = in_child(
        """
try:
    syscalls.clone3(0, cgroup=os.open("/", os.O_PATH))
except OSError as error:
    print(error.errno, error.filename)
"""
    )
    assert output.split()[1] == "clone3"
    assert int(output.split()[0]) in (errno.EBADF, errno.EINVAL)


@needs("userns")
def test_unshare_and_setns() -> None:
    output = in_child(
        """
before = os.readlink("/proc/self/ns/user"), os.readlink("/proc/self/ns/uts")
syscalls.unshare(namespaces.CLONE_NEWUSER | namespaces.NAMESPACES["uts"].flag)
syscalls.sethostname("new-name")
after = os.readlink("/proc/self/ns/user"), os.readlink("/proc/self/ns/uts")
print(before[0] != after[0], before[1] != after[1], os.uname().nodename)
try:
    syscalls.setns(os.open("/dev/null", os.O_RDONLY))
except OSError as error:
    print(error.filename, error.strerror)
"""
    )
    assert output.splitlines() == ["True True new-name", "setns Invalid argument"]


@needs("userns", "netns")
def test_loopback_up() -> None:
    output = in_child(
        """
import socket
syscalls.unshare(namespaces.CLONE_NEWUSER | namespaces.NAMESPACES["network"].flag)
probe = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
try:
    probe.connect(("127.0.0.1", 1))
    print("up before")
except OSError:
    pass
syscalls.bring_up_loopback()
probe.connect(("127.0.0.1", 1))
print(probe.getsockname()[0])
"""
    )
    assert output == "127.0.0.1\n"


def test_prctl() -> None:
    output = in_child(
        """
syscalls.set_no_new_privileges()
syscalls.set_dumpable()
syscalls.become_subreaper()
syscalls.set_process_name("a-name")
status = open("/proc/self/status").read()
print(status.split()[1], status.partition("NoNewPrivs:")[2].split()[0])
pid = os.fork()
if pid == 0:
    orphan = os.fork()
    os._exit(0 if orphan else 0)
print(len([os.wait() for _ in range(2)]))
"""
    )
    assert output.splitlines() == ["a-name 1", "2"]


def test_signalfd_gives_one_record_per_signal() -> None:
    wanted = {signal.SIGUSR1, signal.SIGUSR2, signal.SIGRTMAX}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, wanted)
    fd = syscalls.signalfd(wanted)
    try:
        with pytest.raises(BlockingIOError):
            os.read(fd, syscalls.SIGNALFD_SIGINFO_SIZE)
        for signum in wanted:  # to this thread: another one may not block it, and its default action ends the process
            signal.pthread_kill(threading.get_ident(), signum)
        records = [os.read(fd, syscalls.SIGNALFD_SIGINFO_SIZE) for _ in wanted]
        assert {struct.unpack_from("=I", record)[0] for record in records} == wanted
        assert not os.get_inheritable(fd)
    finally:
        os.close(fd)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
