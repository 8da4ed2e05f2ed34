"""A process lends its memory to its successor: birth in another cgroup without copying anything.

fork(2) copies the page tables, and then, one fault after the other, each page that either side writes to. For a Python
process that does a hundred small things and then executes a program, that is most of the work. vfork(2) copies nothing:
the child goes on in the parent's memory, on the parent's stack, while the parent is suspended in the kernel. Its manual
page allows the child next to nothing, because one fine day the parent returns, to a stack that the child has spoiled.

Here the parent never returns. When the child has left the memory, by execve(2) or by its own end, whatever that was (it
may be killed half-way at any instruction), the parent goes on with the instruction after the system call, and there it
ends itself, touching registers only. So for whoever calls `succeed` one process goes in and another one comes out: the
successor has the caller's memory, descriptors (copies), namespaces and limits, but is born by clone3(2): into another
cgroup if wanted, with a pid of its own, and a child of the caller's parent.

The few instructions that this takes can't be said in Python. Where they are not known (another processor) or not
allowed (no memory may become executable), `succeed` forks and the caller exits: the same, only slower.
"""

from __future__ import annotations

import ctypes
import mmap
import os

from nsupervisor.linux import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

Told = ctypes.c_uint32 * 2
"""What the kernel tells of a successor: its pid, once there is one; and not 0 for as long as it is in lent memory."""

_INSTRUCTIONS = {
    # long clone3_or_exit(struct clone_args *, size_t): 0 in the child, an errno below 0, and the parent ends.
    "x86_64": (
        b"\xb8\xb3\x01\x00\x00"  # mov  $435, %eax     clone3; its arguments are where a function's are
        b"\x0f\x05"  #             syscall
        b"\x48\x85\xc0"  #         test %rax, %rax
        b"\x7f\x01"  #             jg   1f             above 0: a parent
        b"\xc3"  #                 ret
        b"\x31\xff"  #          1: xor  %edi, %edi
        b"\xb8\xe7\x00\x00\x00"  # mov  $231, %eax     exit_group(0)
        b"\x0f\x05"  #             syscall
        b"\xf4"  #                 hlt                 not reached
    ),
}

_clone3_or_exit: Callable[[int, int], int] | None = None
_page: mmap.mmap | None = None
_args = (ctypes.c_uint64 * 11)()


def prepare() -> bool:
    """Make the instructions ready, for this process and all that are forked from it; whether there are any."""
    global _clone3_or_exit, _page
    code = _INSTRUCTIONS.get(os.uname().machine)
    if _clone3_or_exit is None and code is not None:
        _page = mmap.mmap(-1, mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        _page.write(code)
        address = ctypes.addressof(ctypes.c_char.from_buffer(_page))
        size, executable = ctypes.c_size_t(mmap.PAGESIZE), mmap.PROT_READ | mmap.PROT_EXEC
        if syscalls.libc.mprotect(ctypes.c_void_p(address), size, executable) == 0:
            _clone3_or_exit = ctypes.PYFUNCTYPE(ctypes.c_long, ctypes.c_void_p, ctypes.c_long)(address)
    return _clone3_or_exit is not None


def succeed(cgroup: int, told: ctypes.Array[ctypes.c_uint32], lend: bool = True) -> int:
    """Be replaced by a successor, which comes back with 0; or an errno below 0, and all is as before.

    The process must have one thread and a parent that waits for it, and may not be PID 1. `cgroup` is a descriptor of a
    cgroup v2 directory, or -1. `told` is a `Told` in memory shared with whoever wants to know: the kernel writes there,
    the pid before the successor runs. Without `lend` that one has memory of its own.
    """
    flags = syscalls.CLONE_PARENT | syscalls.CLONE_PARENT_SETTID
    if cgroup >= 0:
        flags |= syscalls.CLONE_INTO_CGROUP
        _args[10] = cgroup
    _args[3] = ctypes.addressof(told)
    if lend and _clone3_or_exit is not None:
        _args[0] = flags | syscalls.CLONE_VM | syscalls.CLONE_VFORK | syscalls.CLONE_CHILD_CLEARTID
        _args[2] = ctypes.addressof(told) + ctypes.sizeof(ctypes.c_uint32)
        told[1] = 1
        number = _clone3_or_exit(ctypes.addressof(_args), ctypes.sizeof(_args))
        if number < 0:
            told[1] = 0
        return number
    _args[0] = flags
    pid = syscalls.bare_clone3_with(_args)
    if pid > 0:
        os._exit(0)
    return pid
