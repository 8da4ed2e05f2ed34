"""Landlock: restrict a program to the paths and TCP ports of its specification, as the last step but the filters.

`operations` decides and has no effects: it returns system calls, which a standby performs (plan.py), or a process of
Python (`perform`). They come after the program's user and no_new_privs: no path is opened with privileges, and without
no_new_privs the kernel requires CAP_SYS_ADMIN.

A path is opened inside of the program's root, without following a symbolic link: the program, or another user, might
have put a link in the place of a part of it, and the rule would then be about another place. Source: landlock(7),
Documentation/userspace-api/landlock.rst.
"""

from __future__ import annotations

import errno
import os
import struct

from nsupervisor.keeper.setup.errors import step_error
from nsupervisor.linux import syscalls
from nsupervisor.linux.trusted_paths import open_without_links

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

Call = tuple[str, str, tuple]  # type: ignore[type-arg]
"""The operation for a message, a call, and its arguments.

"create" has the ruleset's attributes; "path" a path, whether it may be missing, and rights; "port" the attributes of a
rule; "restrict" has none.
"""

FILE_RIGHTS = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 14 | 1 << 15
"""Rights that a rule about something else than a directory may have: execute, write, read, truncate, ioctl."""
OPEN_HOW = struct.pack("3Q", os.O_PATH | os.O_CLOEXEC, 0, 0x04 | 0x02)  # no symbolic links, openat2(2)

_OLD_KERNEL = "this kernel's Landlock lacks what is wanted; nsupervisor doctor says which version it has"
HINTS = (
    (errno.ENOSYS, "this kernel has no Landlock"),
    (errno.EOPNOTSUPP, 'Landlock is not active; boot with "landlock" in lsm='),
    (errno.EINVAL, _OLD_KERNEL),
    (errno.E2BIG, _OLD_KERNEL),
)
EXECUTE_HINT = "security.landlock may refuse to read or execute it, or the interpreter or loader that it needs"
PATH_HINTS = (
    (errno.ENOENT, 'write "-" before a path that may be missing'),
    (errno.ELOOP, "a part of it is a symbolic link; write the path that it leads to"),
    (errno.EACCES, "the program's user may not reach it"),
)


def parse(value: Any) -> tuple[Any, ...]:
    """Check the key `landlock` of a specification; return it as a tuple (handled, paths, ports).

    `nsupervisor.core.landlock.ruleset` describes it. Raises ValueError, TypeError or KeyError.
    """
    if not isinstance(value, dict) or value.keys() != {"handled", "paths", "ports"}:
        raise ValueError(f"an object with handled, paths and ports is wanted, not {value!r:.80}")
    files, network, scope = (_number(number) for number in value["handled"])
    paths = tuple((_path(path), _number(rights)) for path, rights in value["paths"])
    ports = tuple((_number(port), _number(rights)) for port, rights in value["ports"])
    return (files, network, scope), paths, ports


def _number(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 64:
        raise TypeError(f"a number that is not negative is wanted, not {value!r:.80}")
    return value


def _path(value: Any) -> str:
    if not isinstance(value, str) or not value.removeprefix("-").startswith("/") or "\0" in value:
        raise ValueError(f"an absolute path is wanted, not {value!r:.80}")
    return value


def calls(landlock: tuple[Any, ...]) -> list[Call]:
    """Return the calls that restrict a process, in their order."""
    handled, paths, ports = landlock
    found: list[Call] = [("make a Landlock ruleset", "create", (struct.pack("3Q", *handled),))]  # landlock_ruleset_attr
    for given, rights in paths:
        path = given.removeprefix("-")
        found.append((f"find {path} for Landlock", "path", (path, given != path, rights)))
    for port, rights in ports:
        # struct landlock_net_port_attr
        found.append((f"add TCP port {port} to the Landlock ruleset", "port", (struct.pack("2Q", rights, port),)))
    found.append(("restrict the program by Landlock", "restrict", ()))
    return found


def perform(landlock: tuple[Any, ...]) -> None:
    """Restrict this process. Raises StepError."""
    ruleset = -1
    for text, name, arguments in calls(landlock):
        try:
            if name == "create":
                ruleset = syscalls.landlock_create_ruleset(*arguments)
            elif name == "path":
                _add_path(ruleset, *arguments)
            elif name == "port":
                syscalls.landlock_add_rule(ruleset, syscalls.LANDLOCK_RULE_NET_PORT, *arguments)
            else:
                syscalls.landlock_restrict_self(ruleset)
                os.close(ruleset)
        except OSError as error:
            hints = dict(PATH_HINTS if name == "path" else HINTS)
            raise step_error(text, error, hints.get(error.errno or 0, "")) from None


def _add_path(ruleset: int, path: str, may_be_missing: bool, rights: int) -> None:
    try:
        fd = open_without_links(path)
    except FileNotFoundError:
        if may_be_missing:
            return
        raise
    try:
        try:
            syscalls.landlock_add_rule(ruleset, syscalls.LANDLOCK_RULE_PATH_BENEATH, _beneath(rights, fd))
        except OSError as error:  # not a directory: the kernel refuses the rights that are about directories
            if error.errno != errno.EINVAL:
                raise
            syscalls.landlock_add_rule(ruleset, syscalls.LANDLOCK_RULE_PATH_BENEATH, _beneath(rights & FILE_RIGHTS, fd))
    finally:
        os.close(fd)


def _beneath(rights: int, fd: int) -> bytes:
    """Return a packed `struct landlock_path_beneath_attr`."""
    return struct.pack("=Qi", rights, fd)
