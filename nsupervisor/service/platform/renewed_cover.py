"""Cover the runtime directory again for a running program, after it was removed and made again.

A removal takes away what is mounted on the directory, in each mount namespace: the program would see the new directory,
which it must not. And if only a directory in it was removed, the cover still shows the removed one: no file can be made
in it, and the program's messages have no socket.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from typing import Any

from nsupervisor.keeper.setup.cover import Cover
from nsupervisor.keeper.setup.credentials import DIRECTORY
from nsupervisor.keeper.setup.errors import StepError
from nsupervisor.linux import mounts, syscalls

CLONE_FS, CLONE_NEWNS = 0x200, 0x20000
MNT_DETACH, UMOUNT_NOFOLLOW = 2, 8


def is_uncovered(pid: int, directory: str) -> bool:
    """Return whether a process sees the directory itself in its own mount namespace."""
    try:
        return os.path.samestat(os.stat(f"/proc/{pid}/root{directory}"), os.stat(directory))
    except OSError:  # it has ended, or has no such path
        return False


def has_credentials(pid: int, directory: str) -> bool:
    """Return whether a process still sees the credentials of its program in the cover of the directory.

    If the directory was removed, the kernel has unmounted what was mounted in it, unless the program has its own root.
    """
    return os.path.exists(f"/proc/{pid}/root{directory}/{DIRECTORY}")


def renew_cover(pid: int, cover: Mapping[str, Any], has_own_root: bool = False) -> Exception | None:
    """Put a new cover in the place of the old one in the namespace of a process; return why that failed.

    `cover` is that of a specification (`spawn_spec.cover`), `has_own_root` whether that has a root.
    Whatever the process has done in its namespace, only that
    namespace changes. Nothing changes for a process with the mounts of this one.
    """
    problem: list[Exception] = []
    directory: str = cover["directory"]

    def work() -> None:
        try:
            _replace(namespace, directory, new)
        except (OSError, StepError) as error:
            problem.append(error)

    try:
        namespace = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        return error
    try:
        if os.path.samestat(os.fstat(namespace), os.stat("/proc/thread-self/ns/mnt")):
            return None
        new = Cover(directory, cover["show"], cover["links"], has_own_root)
        # A thread of its own, as it never comes back from there: setns(2) needs a task with its own root directory.
        thread = threading.Thread(target=work, name="renew cover")
        thread.start()
        thread.join()
    except (OSError, StepError) as error:
        return error
    finally:
        os.close(namespace)
    return problem[0] if problem else None


def _replace(namespace: int, directory: str, new: Cover) -> None:
    host = os.stat(directory)
    syscalls.unshare(CLONE_FS)
    syscalls.setns(namespace, CLONE_NEWNS)
    if not os.path.samestat(os.stat(directory, follow_symlinks=False), host):
        try:  # no other copy is left of the credentials
            new.add(DIRECTORY, mounts.open_tree(f"{directory}/{DIRECTORY}"))
        except FileNotFoundError:
            pass
        mounts.umount2(directory, MNT_DETACH | UMOUNT_NOFOLLOW)
    new.apply(set())
