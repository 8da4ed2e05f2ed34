"""What a test run has for itself: a cgroup in each hierarchy, and a mount namespace.

Processes inherit both from their parent, cgroups(7) and mount_namespaces(7). Everything that appears in them was made
by this run, whatever containers, supervisors and other test runs do on the same host at the same time. `leaks.py` looks
only there.

In the virtual machine of the tests nothing else runs: there the run keeps the cgroup of the machine, at the root of the
hierarchy, and all below it is its own.
"""

import fcntl
import os
import secrets
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from nsupervisor.linux.mounts import MS_PRIVATE, MS_REC, mount
from nsupervisor.linux.namespaces import NAMESPACES
from nsupervisor.linux.syscalls import unshare
from tests.needs import CONTROLLERS, V1_NAMES, cgroup_directories, in_guest
from tests.timing import deadline

PREFIX = "nsupervisor-tests-"
"""How the names of all runs' cgroups begin."""
RT_SHARE = 16
"""A version 1 cgroup `cpu` gets this part of its parent's real-time bandwidth; new ones have none."""
CPU_SHARES = os.environ.get("NSUPERVISOR_TEST_CPU_SHARES", "16384")
"""The weight of the run's version 1 cgroup `cpu`.

The run competes with single processes, and has many itself. `scripts/test` has less for each of its runs: they compete
with the virtual machine, one thread that takes as long as all of them."""


@dataclass
class Isolation:
    """Made by `enter`, undone by `leave`.

    cgroups: the directories below which every cgroup is this run's, one per hierarchy; none without the privilege to
    make some. has_own_processes: whether all processes in them are this run's, too. has_own_mounts: whether only this
    run mounts in its mount namespace.
    """

    cgroups: tuple[Path, ...] = ()
    has_own_processes: bool = False
    has_own_mounts: bool = False
    _enabled: dict[Path, list[str]] = field(default_factory=dict)

    @property
    def outside(self) -> tuple[Path, ...]:
        """Return the cgroups that the run was started in, in the order of `cgroups`."""
        return tuple(directory.parent for directory in self.cgroups)


def enter() -> Isolation:
    """Move this process to cgroups of its own and to a mount namespace of its own, as far as its privileges allow.

    Call it while the process has one thread, because unshare(2) affects only the calling thread.
    """
    if in_guest():
        return Isolation(tuple(sorted(set(cgroup_directories().values()))), has_own_mounts=True)
    isolation = Isolation(has_own_mounts=_leave_mount_namespace())
    name = f"{PREFIX}{os.getpid()}-{secrets.token_hex(4)}"
    before = cgroup_directories()
    controllers = {V1_NAMES.get(controller, controller) for controller in CONTROLLERS}
    for parent in sorted({directory for key, directory in before.items() if not key or key in controllers}):
        with _locked(parent):
            _remove_stale(parent)
            if _enter_cgroup(parent / name):
                isolation.cgroups += (parent / name,)
    if set(before) == {""} and isolation.cgroups:
        _enable_controllers(isolation, before[""])
    isolation.has_own_processes = bool(isolation.cgroups)
    cgroup_directories.cache_clear()
    return isolation


def _leave_mount_namespace() -> bool:
    try:
        unshare(NAMESPACES["mount"].flag)
    except OSError:  # without CAP_SYS_ADMIN this run cannot mount anything either
        return False
    # If the host's mounts are shared, its later ones would appear here as well.
    mount(None, "/", None, MS_REC | MS_PRIVATE)
    return True


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Exclude other test runs: a run that has made its cgroup and not joined it yet looks like a killed one."""
    fd = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _remove_stale(parent: Path) -> None:
    """Remove the cgroups of runs that were killed. A run that goes on is in its cgroup, or in one below it."""
    for directory in parent.glob(f"{PREFIX}*"):
        paths = [path for path, _, _ in os.walk(directory, topdown=False)]
        if any(map(_members, paths)):
            continue
        for path in paths:
            try:
                os.rmdir(path)
            except OSError:  # its run is removing it at this moment
                pass


def _enter_cgroup(directory: Path) -> bool:
    """Make a cgroup and join it; return False if the kernel refuses."""
    try:
        directory.mkdir()
    except OSError:
        return False
    try:
        for file in ("cpuset.mems", "cpuset.cpus"):  # a version 1 cpuset accepts no process before it has both
            if (directory / file).exists() and (directory.parent / "cgroup.clone_children").exists():
                (directory / file).write_text((directory.parent / file).read_text())
        if (directory / "cpu.shares").exists():
            (directory / "cpu.shares").write_text(CPU_SHARES)
            _give_real_time(directory)
        (directory / "cgroup.procs").write_text("0")
    except OSError:
        directory.rmdir()
        return False
    return True


def _give_real_time(directory: Path) -> None:
    """Allow real-time scheduling, which a new version 1 cgroup `cpu` lacks (scheduler/sched-rt-group.rst)."""
    file = directory / "cpu.rt_runtime_us"
    try:
        file.write_text(str(max(int((directory.parent / file.name).read_text()) // RT_SHARE, 0)))
    except OSError:  # no such file without CONFIG_RT_GROUP_SCHED; EINVAL if other cgroups have all of it
        pass


def _enable_controllers(isolation: Isolation, own: Path) -> None:
    """Give the run's cgroup the controllers of version 2.

    The kernel refuses that if another process than this one is in the cgroup that the run was started in ("No Internal
    Process Constraint"). Then tests that need a controller are skipped, and the reason names it.
    """
    for name in (own / "cgroup.controllers").read_text().split():
        if name in (own / "cgroup.subtree_control").read_text().split():
            continue
        try:
            (own / "cgroup.subtree_control").write_text(f"+{name}")
        except OSError:
            continue
        isolation._enabled.setdefault(own, []).append(name)


def leave(isolation: Isolation) -> list[str]:
    """Move this process back, kill what the run has left, and remove the run's cgroups; return what cannot be removed.

    The mount namespace ends with the last process in it.
    """
    if not isolation.has_own_processes:
        return []
    for own, names in isolation._enabled.items():
        for name in names:
            try:
                (own / "cgroup.subtree_control").write_text(f"-{name}")
            except OSError:  # another cgroup uses it by now
                pass
    problems = []
    for directory in isolation.cgroups:
        try:
            (directory.parent / "cgroup.procs").write_text("0")
        except OSError as error:
            problems.append(f"cannot return to {directory.parent}: {error.strerror}")
    end = time.monotonic() + deadline(5)
    for directory in isolation.cgroups:
        while (problem := _remove(directory)) and time.monotonic() < end:
            time.sleep(0.01)
        problems += [problem] if problem else []
    cgroup_directories.cache_clear()
    return problems


def processes(isolation: Isolation) -> set[int]:
    """Return the pids of all processes in the run's cgroups; empty if others may be among them."""
    found: set[int] = set()
    for directory in isolation.cgroups if isolation.has_own_processes else ():
        for path, _, _ in os.walk(directory):
            found |= _members(path)
    return found


def _members(path: str) -> set[int]:
    try:
        return set(map(int, Path(path, "cgroup.procs").read_text().split()))
    except OSError:  # removed meanwhile; or a threaded cgroup, whose processes its parent lists
        return set()


def _remove(directory: Path) -> str:
    """Kill the processes in a cgroup of the run and remove it with those below it; return the reason if it is not."""
    for path, _, _ in os.walk(directory, topdown=False):
        for pid in _members(path) - {os.getpid()}:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        try:
            os.rmdir(path)
        except FileNotFoundError:
            pass
        except OSError as error:
            return f"cannot remove {path}: {error.strerror}"
    return ""
