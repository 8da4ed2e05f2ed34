"""The native parts of the keeper, called from Python: the programs of init and standby, and the clones of a start.

`init.c` is PID 1 of a workload's PID namespace; `setup.c` performs the set-up of the program (`setup/plan.py`);
`clone.c` makes the processes of both. `build.py` compiles them when the package is installed.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

STARTED, EXITS, ORDER = 4, 7, 9
"""Descriptors of the zygote that `start_init` gives to the init."""
INIT_STATUS, INIT_STARTED, INIT_ORDER = 3, 4, 5
"""Descriptors of the init when it is executed otherwise than by `start_init`: for `EXITS`, `STARTED` and the order."""
STARTED_MESSAGE = b"i"
"""The init's only message by `STARTED`: it is ready. If there is no init, an errno is sent instead (`ERRNO`)."""
ERRNO = struct.Struct("i")
STATUS = struct.Struct("i")
"""The init's only message by `EXITS`: the program's wait status."""

_DIRECTORY = os.path.dirname(__file__)
_TITLE_SIZE = 128  # bytes with the NUL, TITLE_SIZE in init.c
TITLE_SPACE = b"nsupervisor: init".ljust(_TITLE_SIZE)
"""The init's only argument."""
_ORDER = struct.Struct(f"4i{_TITLE_SIZE - 1}s")
_BECOME_USER, _BECOME_GROUP = 1, 2

_MFD_EXEC = 0x10  # Linux 6.3
_F_ADD_SEALS, _ALL_SEALS = 1033, 0xF  # seal, shrink, grow, write: fcntl(2)


def order(
    program: int,
    title: str,
    *,
    is_user_root: bool = False,
    is_group_root: bool = False,
    signal: int = 0,
    grace_ms: int = 0,
) -> bytes:
    """Pack what the program's process sends to its init before it executes the program.

    Args:
        program: its pid in its PID namespace.
        title: what ps shows for the init; cut to 126 bytes.
        is_user_root, is_group_root: whether the init can become user 0, and group 0, of its user namespace.
        signal: sent to the processes that the program leaves, which then have `grace_ms` milliseconds before they are
            killed. With 0 the init waits until they have ended.
    """
    identity = _BECOME_USER * is_user_root | _BECOME_GROUP * is_group_root
    text = title.encode("utf-8", "replace")[: _TITLE_SIZE - 2]
    return _ORDER.pack(program, identity, signal, grace_ms, text)


def open_init() -> int:
    """Open the init's program (`init.c`), as `_open_executable` does."""
    return _open_executable("init")


def open_setup() -> int:
    """Open the standby's program (`setup.c`), as `_open_executable` does."""
    return _open_executable("setup")


def _open_executable(name: str) -> int:
    """Open a native program to be executed through the descriptor.

    Where the kernel allows it, this is a sealed copy in memory: a workload with the rights of root could overwrite the
    program of its init through /proc/1/exe. The copy is readable with privileges only. So the memory of an init that
    is in a user namespace when it executes the copy belongs to the user namespace outside (would_dump() in the kernel),
    and the root of its own cannot trace it. Raises OSError.
    """
    path = os.path.join(_DIRECTORY, name)
    source = _open(path, os.O_RDONLY)
    try:
        copy = _memory_file(f"nsupervisor-{name}")
        if copy < 0:
            return os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            for chunk in _chunks(source):
                os.write(copy, chunk)
            os.fchmod(copy, 0o111)
            # Executing a file that is open for writing fails with ETXTBSY.
            executable = os.open(f"/proc/self/fd/{copy}", os.O_PATH | os.O_CLOEXEC)
            _add_seals(copy)
        finally:
            os.close(copy)
    finally:
        os.close(source)
    return executable


def _open(path: str, flags: int) -> int:
    try:
        return os.open(path, flags | os.O_CLOEXEC)
    except FileNotFoundError:
        hint = "was not built; run scripts/setup in the source tree, or install nsupervisor again"
        raise FileNotFoundError(errno.ENOENT, f"the native part {path} {hint}") from None


def _memory_file(name: str) -> int:
    """Make a file in memory that may be executed; -1 if the host forbids that (vm.memfd_noexec, a security module)."""
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        try:
            return os.memfd_create(name, flags | _MFD_EXEC)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return os.memfd_create(name, flags)  # before Linux 6.3 each one may be executed
    except PermissionError:
        return -1


def _chunks(fd: int) -> Iterator[bytes]:
    while chunk := os.read(fd, 65536):
        yield chunk


def _add_seals(fd: int) -> None:
    fcntl.fcntl(fd, _F_ADD_SEALS, _ALL_SEALS)


class Clones:
    """The functions of `clone.c`."""

    def __init__(self) -> None:
        """Raises OSError if the library is missing or does not fit this processor."""
        path = os.path.join(_DIRECTORY, "clone.so")
        os.close(_open(path, os.O_RDONLY))
        # The interpreter's lock is kept: the new processes run Python with it.
        try:
            library = ctypes.PyDLL(path)
        except OSError as error:
            raise OSError(errno.ENOEXEC, f"cannot load the native part {path}: {error}") from None
        self._start_init = library.start_init
        self._start_init.argtypes = (ctypes.c_uint64, ctypes.c_int, ctypes.c_int, ctypes.c_char_p)
        self._start_init.restype = ctypes.c_long
        self._hand_over = library.hand_over
        self._hand_over.argtypes = (ctypes.c_void_p,)
        self._hand_over.restype = ctypes.c_long
        self._args = (ctypes.c_uint64 * 11)()

    def start_init(self, flags: int, executable: int, setup: int = -1) -> int:
        """Make an init in new namespaces, and a standby as its child.

        `setup`: a descriptor of the standby's program; with -1 the standby is a fork of this process. Returns the
        init's pid, 0 in a forked standby, or a negated errno if there is neither. The calling process must have
        one thread, block all signals, and hold the descriptors `STARTED`, `EXITS` and `ORDER`. An init that fails
        later sends an errno by `STARTED`, and ends the standby with it.
        """
        return int(self._start_init(flags, executable, setup, TITLE_SPACE))

    def hand_over(self, cgroup: int) -> int:
        """Replace this process by one that is born in a cgroup and continues with this memory.

        Returns 0 in the new process, a child of this one's parent, or a negated errno. This process ends when the new
        one has executed its program, or has ended. `cgroup` is a descriptor of a cgroup v2 directory, or -1.
        """
        flags = _CLONE_VM | _CLONE_VFORK | _CLONE_PARENT
        if cgroup >= 0:
            flags |= _CLONE_INTO_CGROUP
            self._args[10] = cgroup
        self._args[0] = flags
        return int(self._hand_over(ctypes.addressof(self._args)))


_CLONE_VM, _CLONE_VFORK, _CLONE_PARENT, _CLONE_INTO_CGROUP = 0x100, 0x4000, 0x8000, 0x2_0000_0000
