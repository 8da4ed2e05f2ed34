"""PID 1 of a workload's PID namespace without Python: what init.py does, in a few hundred bytes of instructions.

A process that is forked from a Python process and goes on in Python costs half a megabyte and as many microseconds as
a program's start: each object that it looks at is written to (its count of references), so the page with it is copied.
An init needs no objects. It waits, passes signals on, and reaps; so here it does just that, by the same rules as
init.py. When it has its memory for itself, it gives back all but a few pages of it.

**It shares its memory with the forerunner.** The zygote forks the init; the init's first child is no second copy, but
another process in the same memory (CLONE_VM): that one goes back to Python, and is the forerunner. So each start costs
one copy of the zygote, and not two. Meanwhile the init keeps to its own two pages. That forerunner and successor have
left, the kernel notes there (CLONE_CHILD_CLEARTID).

Where the processor is another one, where no memory may become executable, and where the forerunner has to have memory
of its own, there is init.py.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys

from nsupervisor.keeper.native import handoff
from nsupervisor.keeper.native.assembler import MACHINES, PAGE, RESULT, At, Byte, Code, Function, Word
from nsupervisor.keeper.setup.descriptors import EXITS_FD, REPORT_FD, STARTED_FD
from nsupervisor.keeper.setup.init import SI_KERNEL, STATUS
from nsupervisor.keeper.setup.steps import EXIT_SETUP
from nsupervisor.linux import syscalls

STARTED = b"i"
"""An init's only word by `birth`: the kernel adds its pid."""

NAME = "nsupervisor-ini"

_QUIET = 20_000_000
"""Nanoseconds without news after which the memory is given back; that takes half a millisecond, and a program that is
done sooner should not have to wait for it."""

# System calls of x86-64.
_WRITE, _MUNMAP, _WAIT4, _KILL, _SETSID, _SIGTIMEDWAIT = 1, 11, 61, 62, 112, 128
_SETPRIORITY, _PRCTL, _EXIT_GROUP, _CLONE3, _CLOSE_RANGE = 141, 157, 231, 435, 436
_ANY, _WNOHANG, _SIGCHLD, _ALL, _UP = 0xFFFF_FFFF, 1, 17, 0xFFFF_FFFF_FFFF_FFFF, 0xFFFF_FFFF
_RSEQ, _RSEQ_SIZE, _RSEQ_UNREGISTER, _RSEQ_SIGNATURE = 334, 32, 1, 0x5305_3053  # as glibc has it
_ARG_START = 48  # a field of /proc/PID/stat
_KERNELS = (b"[vdso]", b"[vvar]", b"[vvar_vclock]")

_ARGS = struct.Struct("11Q")  # struct clone_args: flags, pidfd, child_tid, parent_tid, exit_signal, and six more
_TIME = struct.Struct("qq")  # struct timespec

# Places in the page of data.
_INIT_ARGS = At(0x00)
_FORERUNNER_ARGS = At(0x60)
_NAME = At(0xC0)
_BORN = At(0xD0)
_SIGNALS = At(0xD8)
_PATIENCE = At(0xE0)
_PROGRAM = Word(0xF0)  # its pid, once there is a successor: with the next one, what succeed() calls `told`
_SUCCESSOR_HERE = Word(0xF4)  # in this memory, not yet the program; 0 when not
_FORERUNNER_HERE = Word(0xF8)
_STATUS = At(0x100)
_INFO = At(0x108)  # siginfo_t
_INFO_CODE = Word(_INFO.offset + 8)


def code(give_back: list[tuple[int, int]]) -> bytes:
    """The zygote calls it, and gets the init's pid; it comes back with 0 in the forerunner, and never in the init.

    `give_back`: addresses and sizes of what an init that is alone in its memory does not need.
    """
    init = Code()
    init.call(_CLONE3, _INIT_ARGS, _ARGS.size)
    init.jump_if(RESULT, "==", 0, "begin")
    init.come_back()

    init.label("begin")
    init.call(_PRCTL, syscalls.PR_SET_NAME, _NAME)
    init.call(_WRITE, STARTED_FD, _BORN, len(STARTED))
    init.call(_CLONE3, _FORERUNNER_ARGS, _ARGS.size)
    init.jump_if(RESULT, "<", 0, "fail")
    init.jump_if(RESULT, ">", 0, "init")
    init.come_back()

    init.label("init")
    # A log pipe that the init held would never end, a report never be complete.
    init.call(_CLOSE_RANGE, REPORT_FD, EXITS_FD - 1, 0)
    init.call(_CLOSE_RANGE, EXITS_FD + 1, _UP, 0)
    init.call(_SETSID)
    init.call(_WAIT4, _ANY, _STATUS, 0, 0)  # the forerunner, or already the program
    init.jump_if(_PROGRAM, "==", 0, "end")  # without a successor, the forerunner was all there was
    init.label("reaped")
    init.jump_if(RESULT, "==", _PROGRAM, "end")
    init.label("reap")
    init.call(_WAIT4, _ANY, _STATUS, _WNOHANG, 0)
    init.jump_if(RESULT, ">", 0, "reaped")
    _wait(init, "wait", _PATIENCE, "quiet")
    init.label("quiet")
    init.jump_if(_SUCCESSOR_HERE, "!=", 0, "wait")
    init.jump_if(_FORERUNNER_HERE, "!=", 0, "wait")
    for address, size in give_back:
        init.call(_MUNMAP, address, size)
    _wait(init, "wait longer", 0, "wait longer")
    init.label("end")
    init.call(_WRITE, EXITS_FD, _STATUS, STATUS.size)  # where the keeper is gone, the exit code says something, too
    init.call(_SETPRIORITY, os.PRIO_PROCESS, 0, 19)  # as the Python init does
    init.jump_if(Byte(_STATUS.offset), "!=", 0, "killed")
    init.call(_EXIT_GROUP, Byte(_STATUS.offset + 1))
    init.label("killed")
    init.set_bits(Byte(_STATUS.offset), 128)
    init.call(_EXIT_GROUP, Byte(_STATUS.offset))
    init.label("fail")
    init.call(_EXIT_GROUP, EXIT_SETUP)
    return init.bytes()


def _wait(init: Code, name: str, patience: int | At, otherwise: str) -> None:
    init.label(name)
    init.call(_SIGTIMEDWAIT, _SIGNALS, _INFO, patience, 8)
    init.jump_if(RESULT, "<", 0, otherwise)
    init.jump_if(RESULT, "==", _SIGCHLD, "reap")
    init.jump_if(_INFO_CODE, "==", SI_KERNEL, name)  # what comes from a terminal has reached the program too
    init.call(_KILL, _PROGRAM, RESULT)
    init.jump(name)


class SmallInit:
    """In the zygote: the function, and what it finds in its page of data."""

    def __init__(self) -> None:
        """Raises OSError where there can be none."""
        if os.uname().machine not in MACHINES:
            raise OSError(errno.ENOSYS, "there are no instructions for this processor")
        _leave_rseq()
        self._function = function = Function()
        function.load(code(_all_but(function.address, 2 * PAGE)))
        here = function.address_of(_FORERUNNER_HERE)
        together = syscalls.CLONE_VM | syscalls.CLONE_CHILD_CLEARTID
        function.write(_FORERUNNER_ARGS, _ARGS.pack(together, 0, here, 0, _SIGCHLD, *(0,) * 6))
        function.write(_FORERUNNER_HERE, b"\1")
        function.write(_NAME, NAME.encode())
        function.write(_BORN, STARTED)
        function.write(_SIGNALS, _ALL.to_bytes(8, sys.byteorder))
        function.write(_PATIENCE, _TIME.pack(0, _QUIET))
        self.told = handoff.Told.from_address(function.address_of(_PROGRAM))
        """For the forerunner."""

    def clone(self, flags: int) -> int:
        """An init into new namespaces: its pid, an errno below 0, or 0 in its forerunner. The descriptors are to be in
        their places already; whatever is above them has to be closed by the forerunner."""
        self._function.write(_INIT_ARGS, _ARGS.pack(flags | syscalls.CLONE_PARENT, *(0,) * 10))
        return self._function.call()


def _leave_rseq() -> None:
    """Or else the kernel would write to the memory that glibc has registered for restartable sequences, rseq(2), each
    time that it takes an init from one processor to another, and kill it when there is no such memory any more."""
    try:
        offset = ctypes.c_ssize_t.in_dll(syscalls.libc, "__rseq_offset").value
        registered = ctypes.c_uint.in_dll(syscalls.libc, "__rseq_size").value
    except ValueError:  # a libc that does not know of it
        return
    if registered:
        syscalls.libc.pthread_self.restype = ctypes.c_void_p
        address = syscalls.libc.pthread_self() + offset
        if syscalls.libc.syscall(_RSEQ, ctypes.c_void_p(address), _RSEQ_SIZE, _RSEQ_UNREGISTER, _RSEQ_SIGNATURE) != 0:
            raise syscalls.last_error("leave rseq")


def _all_but(address: int, size: int) -> list[tuple[int, int]]:
    """Addresses and sizes of all that there is and will be in this process' memory, but for what is at `address`, what
    the kernel has put there (vdso(7)), and the arguments, which `ps` shows."""
    kept = [(address, address + size)]
    with open("/proc/self/stat", "rb") as file:
        arguments = int(file.read().rpartition(b")")[2].split()[_ARG_START - 3]) // PAGE * PAGE
    with open("/proc/self/maps", "rb") as file:
        for line in file:
            words = line.split()
            start, end = (int(number, 16) for number in words[0].split(b"-"))
            if start <= arguments < end:
                kept.append((arguments, end))
            elif words[-1] in _KERNELS:
                kept.append((start, end))
    kept.sort()
    gaps, begin = [], 0
    for start, end in kept:
        if begin < start:
            gaps.append((begin, start - begin))
        begin = end
    return gaps
