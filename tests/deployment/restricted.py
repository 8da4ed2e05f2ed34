"""Execute a command as the engines of plain containers do: without capabilities, behind a filter of system calls.

    python restricted.py UID COMMAND...

The filter refuses what Docker's and Podman's default profiles refuse a process without CAP_SYS_ADMIN: clone3 does not
exist for it, as its flags are out of a filter's reach (so C libraries fall back to clone), and it may not make or enter
namespaces, mount, or use keyrings. Source: https://github.com/moby/profiles/blob/main/seccomp/default_linux.go
"""

import ctypes
import errno
import os
import platform
import struct
import sys

PR_CAPBSET_READ, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP = 23, 24, 38, 22
SECCOMP_MODE_FILTER = 2
ALLOW, ERRNO = 0x7FFF0000, 0x00050000
LOAD_WORD, JUMP_IF_EQUAL, JUMP_IF_SET, RETURN = 0x20, 0x15, 0x45, 0x06
NEW_NAMESPACES = 0x7E020000
CLONE, REFUSED = {
    "x86_64": (56, (272, 308, 165, 166, 155, 161, 428, 429, 248, 249, 250)),
    "aarch64": (220, (97, 268, 40, 39, 41, 51, 428, 429, 217, 218, 219)),
}[platform.machine()]
"""The numbers of clone; of unshare, setns, mount, umount2, pivot_root, chroot, open_tree, move_mount, keyrings."""
CLONE3 = 435

libc = ctypes.CDLL(None, use_errno=True)


def prctl(option: int, *arguments: object) -> int:
    """Call prctl(2). Raises OSError."""
    result = libc.prctl(option, *arguments, *(ctypes.c_ulong(0),) * (4 - len(arguments)))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "prctl")
    return result


def drop_capabilities() -> None:
    """Empty the bounding set: a later exec gives none back."""
    for number in range(64):
        try:
            if prctl(PR_CAPBSET_READ, ctypes.c_ulong(number)):
                prctl(PR_CAPBSET_DROP, ctypes.c_ulong(number))
        except OSError:  # the kernel has fewer
            break


def install_filter() -> None:
    """Refuse the system calls, seccomp(2)."""
    steps = [(LOAD_WORD, 0, 0, 0)]  # the number of the call, struct seccomp_data
    steps += [(JUMP_IF_EQUAL, 0, 1, CLONE3), (RETURN, 0, 0, ERRNO | errno.ENOSYS)]
    for number in REFUSED:
        steps += [(JUMP_IF_EQUAL, 0, 1, number), (RETURN, 0, 0, ERRNO | errno.EPERM)]
    steps += [(JUMP_IF_EQUAL, 0, 3, CLONE), (LOAD_WORD, 0, 0, 16), (JUMP_IF_SET, 0, 1, NEW_NAMESPACES)]
    steps += [(RETURN, 0, 0, ERRNO | errno.EPERM), (RETURN, 0, 0, ALLOW)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    program = struct.pack("HxxxxxxQ", len(steps), ctypes.addressof(code))
    prctl(PR_SET_SECCOMP, ctypes.c_ulong(SECCOMP_MODE_FILTER), ctypes.c_char_p(program))


def main(uid: int, command: list[str]) -> None:
    """Execute the command as this user, whose group has the same number."""
    drop_capabilities()
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    prctl(PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1))
    install_filter()
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
