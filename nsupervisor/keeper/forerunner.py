"""The program's process before it is one: does in advance what can be done, waits for its program, and is reborn as it.

Between the fork of a Python process and its exec lie some hundred small things, and next to each of them the kernel's
copying of a page that is written to for the first time: together more than the namespaces cost. So all that is done
before anybody asks for a program. The forerunner is a new init's child, does the steps that depend on nothing but the
namespaces (`_IN_ADVANCE`), and rehearses the others with a specification that changes nothing. Then what it needs has
been copied from the zygote's memory, and it waits.

It can't wait in a workload's cgroup: nobody knows yet which. Moving there would cost a wait for all processors of the
host (cgroup_threadgroup_rwsem), milliseconds. So, given its program, it lets itself be replaced by a successor
(linux/successor.py) that is born in the cgroup and goes on in this memory. That one is the program's process. The
forerunner ends when the successor has left the memory; that ending is no news for anybody but the init.
"""

from __future__ import annotations

import array
import errno
import os
import resource
import socket
import struct

from nsupervisor.keeper import child as setup
from nsupervisor.keeper import cover
from nsupervisor.keeper.descriptors import REPORT, STDERR, STDOUT
from nsupervisor.keeper.errors import StepError
from nsupervisor.keeper.spec import Spec
from nsupervisor.linux import successor, syscalls
from nsupervisor.linux.namespaces import CLONE_NEWTIME, CLONE_NEWUSER, NAMESPACES

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ctypes
    from collections.abc import Callable
    from typing import NoReturn

_HEAD = struct.Struct("??")  # of the message with the program: is there a cgroup; is there a memfd instead of the rest
MOST_BYTES = 64 * 1024  # longer specifications go through a memfd; a datagram of the largest size may not find room
_MOST_FDS = 2
_HOW_MUCH = (_HEAD.size + MOST_BYTES, socket.CMSG_SPACE(_MOST_FDS * 4))

_IN_ADVANCE = (setup.separate_mounts, setup.mount_proc, setup.bring_up_loopback)


# ---- in the keeper


def send_program(report: socket.socket, spec: Spec, cgroup: int) -> None:
    """Give a waiting forerunner its program; `cgroup` is a directory's descriptor, or -1.

    Raises OSError, for instance BrokenPipeError: it has been killed.
    """
    packed, memfd = spec.pack(), -1
    fds = [cgroup] if cgroup >= 0 else []
    try:
        if len(packed) > MOST_BYTES:
            memfd = os.memfd_create("spec", os.MFD_CLOEXEC)
            fds.append(memfd)
            with open(memfd, "wb", closefd=False) as file:
                file.write(packed)
            packed = b""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        report.sendmsg([_HEAD.pack(cgroup >= 0, memfd >= 0) + packed], rights)
    finally:
        if memfd >= 0:
            os.close(memfd)


# ---- in the zygote

_sample = b""


def prepare() -> None:
    """Pack a program that changes nothing, for `_rehearse`."""
    global _sample
    sample = Spec(
        {
            "id": "sample",
            "argv": ["."],
            "env": {"PATH": "/"},
            "cwd": "/",
            "groups": os.getgroups(),
            "nice": os.getpriority(os.PRIO_PROCESS, 0),
            "rlimits": {"core": list(resource.getrlimit(resource.RLIMIT_CORE))},
            "cgroup_procs": ["/dev/null"],
        }
    )
    sample.uid = sample.gid = -1  # unchanged, setresuid(2)
    _sample = sample.pack()


# ---- in the forerunner


def run(flags: int, told: ctypes.Array[ctypes.c_uint32]) -> NoReturn:
    """To the program. `flags`: the namespaces that were made for it, as clone(2) has them."""
    course = setup.Course()
    course.to_the_end(lambda: _run(course, flags, told))


def _run(course: setup.Course, flags: int, told: ctypes.Array[ctypes.c_uint32]) -> None:
    report = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, REPORT)
    for place, number in ((STDOUT, 1), (STDERR, 2)):
        os.dup2(place, number)
        os.close(place)
    done: tuple[Callable[[Spec], None], ...] = ()
    if not flags & CLONE_NEWUSER:  # there nothing can be done before somebody outside has said who is who
        sample = Spec.unpack(_sample)
        made = flags & ~CLONE_NEWTIME
        sample.namespaces = frozenset(space.name for space in NAMESPACES.values() if space.flag & made)
        done = _do_in_advance(sample)
    try:
        data, ancillary, _, _ = report.recvmsg(*_HOW_MUCH, socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT)
    except BlockingIOError:
        if not flags & CLONE_NEWUSER:
            _rehearse(sample)
        data, ancillary, _, _ = report.recvmsg(*_HOW_MUCH, socket.MSG_CMSG_CLOEXEC)
    if not data:  # the keeper needs it no more, or is gone
        os._exit(0)
    fds = array.array("i", ancillary[0][2] if ancillary else b"")
    has_cgroup, has_memfd = _HEAD.unpack_from(data)
    spec = _unpack(data[_HEAD.size :], fds[-1] if has_memfd else -1)
    if not flags & CLONE_NEWUSER:
        # Before the birth: nobody may enter a time namespace who shares memory.
        course.take([setup.shift_clocks], spec, done)
        done += (setup.shift_clocks,)
    # With a user namespace the steps are as many as ever, and entering one may need memory of one's own.
    number = -successor.succeed(fds[0] if has_cgroup else -1, told, lend=not flags & CLONE_NEWUSER)
    if number > 0:
        course.step = "clone"
        hint = CGROUP_HINTS.get(number, "")
        text = f"cannot start the program's process: {os.strerror(number)}{f' ({hint})' if hint else ''}"
        raise StepError(text, number)
    for fd in fds:
        os.close(fd)
    os.setsid()
    course.take(setup.STEPS, spec, done)
    course.step = "execute"
    setup.tell_ready(report)
    setup.execute(spec)


CGROUP_HINTS = {
    errno.EAGAIN: "a limit on processes is reached, such as pids_max",
    errno.ENODEV: "the cgroup has been removed",
    errno.EBUSY: "the cgroup has controllers enabled for its children, so it can't hold processes itself",
    errno.EOPNOTSUPP: "the cgroup is in an invalid state, see its cgroup.type",
    errno.EACCES: "the cgroup is not delegated to this user",
    errno.EBADF: "what was given as the cgroup is none of cgroup v2",
}


def _unpack(packed: bytes, memfd: int) -> Spec:
    if memfd >= 0:
        os.lseek(memfd, 0, os.SEEK_SET)
        with open(memfd, "rb", closefd=False) as file:
            packed = file.read()
    return Spec.unpack(packed)


def _do_in_advance(sample: Spec) -> tuple[Callable[[Spec], None], ...]:
    """The steps that worked. One that fails does so again when there is somebody to be told."""
    done: tuple[Callable[[Spec], None], ...] = ()
    for step in _IN_ADVANCE:
        try:
            step(sample)
        except StepError:
            break
        done += (step,)
    return done


def _rehearse(sample: Spec) -> None:
    """Go once through all that is still to come, so that what it writes to has been copied by then."""
    if "uts" in sample.namespaces:
        sample.hostname = os.uname().nodename
    for step in setup.STEPS:
        if step not in _IN_ADVANCE:
            try:
                step(sample)
            except StepError:  # without root some fail
                pass
    if "mount" in sample.namespaces:
        cover.rehearse()
    syscalls.unshare(0)
    syscalls.set_process_name("nsupervisor-for")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        setup.tell_ready(theirs)
    try:
        setup.become_program(sample)  # a directory, which can't be executed
    except StepError:
        pass
