"""The warm standby of a program: does set-up steps in advance, waits for a program, and hands off to its process.

Between the fork of a Python process and its exec there are about a hundred small operations. For almost each of them
the kernel copies a page that is written to for the first time; together this costs more than the namespaces. So all of
it is done before a program is requested. The standby is a new init's child. It does the steps that depend only on the
namespaces (`_ADVANCE_STEPS`), and runs the others with a specification that changes nothing, to warm up. Then the pages
it needs have been copied from the zygote's memory, and it waits.

It cannot wait in a workload's cgroup, as the workload is not known yet. Moving there later would wait for all
processors of the host (cgroup_threadgroup_rwsem), which takes milliseconds. So, given its program, the standby hands
over (native/clone.c) to a new process that is created in the cgroup and continues in the standby's memory. This
process becomes the program; as the last step before that it sends the init its pid. The standby exits when the new
process has left the memory; only the init sees that exit.
"""

from __future__ import annotations

import array
import os
import resource
import socket
import struct

from nsupervisor.keeper import native
from nsupervisor.keeper.setup import cover, handover, mount_steps
from nsupervisor.keeper.setup import steps as setup
from nsupervisor.keeper.setup.descriptors import REPORT_FD, STDERR_FD, STDOUT_FD
from nsupervisor.keeper.setup.errors import CGROUP_HINTS, StepError
from nsupervisor.keeper.setup.spec import MAX_PASSED_FDS, Spec
from nsupervisor.linux import syscalls
from nsupervisor.linux.namespaces import CLONE_NEWTIME, CLONE_NEWUSER, JOINABLE, NAMESPACES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

_HEADER = struct.Struct("??")  # of the message with the program: has it a cgroup; has it a memfd in place of the rest
_MAX_FDS = 2 + len(JOINABLE) + MAX_PASSED_FDS
_RECEIVE_SIZES = (_HEADER.size + handover.MAX_BYTES, socket.CMSG_SPACE(_MAX_FDS * 4))

STANDBY = b"standby"
"""In a user namespace, the standby's first message to the keeper. The kernel adds its pid, by which the keeper writes
the identity maps: files of the init, which is not dumpable, belong to root."""

_ADVANCE_STEPS = (
    setup.new_session_keyring,
    mount_steps.separate_mounts,
    mount_steps.mount_proc,
    mount_steps.mount_ipc,
    mount_steps.mount_sys,
    setup.bring_up_loopback,
)
_USER_ADVANCE_STEPS = (setup.new_session_keyring,)
"""In a user namespace, the only step that needs no identity maps."""


# ---- in the keeper


def send_program(report: socket.socket, spec: Spec, cgroup: int) -> None:
    """Send a waiting standby its program, with its descriptors. `cgroup` is a directory's descriptor, or -1.

    The descriptors of namespaces to join follow it, and those of the program. Raises OSError, for instance
    BrokenPipeError if the standby has been killed.
    """
    packed = spec.pack()
    is_in_file = len(packed) > handover.MAX_BYTES
    header = _HEADER.pack(cgroup >= 0, is_in_file)
    descriptors = (cgroup, *spec.join_fds, *spec.passed_fds)
    if is_in_file:
        handover.send(report, header, descriptors, packed)
    else:
        handover.send(report, header + packed, descriptors)


# ---- in the zygote

_sample = b""


def prepare_sample() -> None:
    """Pack a specification that changes nothing, for `_warm_up`."""
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


# ---- in the standby


def run(flags: int, clones: native.Clones, init: int) -> NoReturn:
    """Run the standby until it becomes the program, or exits.

    `flags` are clone(2)'s flags of the namespaces that were created for it. `init` is the write end of the pipe from
    which the init reads its order.
    """
    syscalls.set_process_title("nsupervisor: standby")
    setup_run = setup.SetupRun()
    setup_run.run_to_exec(lambda: _run_to_exec(setup_run, flags, clones, init))


def _run_to_exec(setup_run: setup.SetupRun, flags: int, clones: native.Clones, init: int) -> None:
    keeper = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, REPORT_FD)
    for fd, standard_fd in ((STDOUT_FD, 1), (STDERR_FD, 2)):
        os.dup2(fd, standard_fd)
        os.close(fd)
    sample = Spec.unpack(_sample)
    created = flags & ~CLONE_NEWTIME
    sample.namespaces = frozenset(space.name for space in NAMESPACES.values() if space.flag & created)
    if flags & CLONE_NEWUSER:
        keeper.send(STANDBY)
        done = _run_in_advance(sample, _USER_ADVANCE_STEPS)
    else:
        done = _run_in_advance(sample, _ADVANCE_STEPS)
    try:
        data, ancillary, _, _ = keeper.recvmsg(*_RECEIVE_SIZES, socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT)
    except BlockingIOError:
        if not flags & CLONE_NEWUSER:
            _warm_up(sample)
        data, ancillary, _, _ = keeper.recvmsg(*_RECEIVE_SIZES, socket.MSG_CMSG_CLOEXEC)
    if not data:  # the keeper does not need this standby any more, or has ended
        os._exit(0)
    fds = array.array("i", ancillary[0][2] if ancillary else b"")
    has_cgroup, has_memfd = _HEADER.unpack_from(data)
    spec = _unpack(data[_HEADER.size :], fds[-1] if has_memfd else -1)
    # Before the hand-over: a process that shares its memory may not enter a time namespace.
    setup_run.run_steps([setup.shift_clocks], spec, done)
    done += (setup.shift_clocks,)
    number = -clones.hand_over(fds[0] if has_cgroup else -1)
    if number > 0:
        setup_run.step = "clone"
        hint = CGROUP_HINTS.get(number, "")
        text = f"cannot start the program's process: {os.strerror(number)}{f' ({hint})' if hint else ''}"
        raise StepError(text, number)
    passed_begin = has_cgroup + len(spec.joins)
    spec.join_fds = tuple(fds[has_cgroup:passed_begin])  # `join_namespaces` closes them
    spec.passed_fds = list(fds[passed_begin : len(fds) - has_memfd])
    for fd in fds:
        if fd not in spec.join_fds and fd not in spec.passed_fds:
            os.close(fd)
    os.setsid()
    setup_run.run_steps(setup.STEPS, spec, done)
    setup_run.step = "execute"
    os.write(init, setup.init_order(spec))
    setup.send_ready(keeper)
    setup_run.pass_descriptors(spec)
    setup_run.step = "execute"
    setup.execute(spec)


def _unpack(packed: bytes, memfd: int) -> Spec:
    if memfd >= 0:
        os.lseek(memfd, 0, os.SEEK_SET)
        with open(memfd, "rb", closefd=False) as file:
            packed = file.read()
    return Spec.unpack(packed)


def _run_in_advance(sample: Spec, steps: tuple[Callable[[Spec], None], ...]) -> tuple[Callable[[Spec], None], ...]:
    """Do `steps` in advance, and return those that worked.

    A step that fails here fails again with the real specification, and is reported then.
    """
    done: tuple[Callable[[Spec], None], ...] = ()
    for step in steps:
        try:
            step(sample)
        except StepError:
            break
        done += (step,)
    return done


def _warm_up(sample: Spec) -> None:
    """Run all remaining code once, so that the pages it writes to have been copied before the program is requested."""
    if "uts" in sample.namespaces:
        sample.hostname = os.uname().nodename
    for step in setup.STEPS:
        if step not in _ADVANCE_STEPS:
            try:
                step(sample)
            except StepError:  # without root some fail
                pass
    if "mount" in sample.namespaces:
        cover.warm_up()
    syscalls.unshare(0)
    syscalls.set_process_name("nsupervisor-for")
    receiver, sender = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with receiver, sender:
        setup.init_order(sample)
        setup.send_ready(sender)
    try:
        setup.become_program(sample)  # a directory, which cannot be executed
    except StepError:
        pass
