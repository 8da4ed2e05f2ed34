"""Find the process that a daemon has named in its pid file, `type = "forking"`.

The file is only a hint. The process that it names must be part of the workload, so that no process of others is
ever signalled. The file must belong to root, to the service, or to the user of the workload, and no user can put a link
to a file of another one there (`linux.trusted_paths.open_for_reading`).
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence

from nsupervisor.linux import processes
from nsupervisor.linux.trusted_paths import open_for_reading

MAX_BYTES = 64
"""The most bytes that a pid file may have: a number, and white space."""


class PidFileError(Exception):
    """The pid file names no process of the workload; the text says why."""


def find_daemon(path: str, owners: Collection[int], pids: Sequence[int], is_namespaced: bool) -> int:
    """Return the pid, as this process sees it, of the process that a pid file names.

    `owners`: the users that the file may belong to. `pids`: the processes of the workload. `is_namespaced`: the number
    in the file is one of a PID namespace below this one, as NSpid of proc_pid_status(5) has it.

    Raises FileNotFoundError if the file is not there yet, and PidFileError.
    """
    number = _read(path, owners)
    depth = len(processes.namespace_pids(os.getpid())) + is_namespaced
    for pid in pids:
        numbers = processes.namespace_pids(pid)
        if len(numbers) == depth and numbers[-1] == number:
            return pid
    raise PidFileError(f"{path} names process {number}, which is not part of this workload")


def _read(path: str, owners: Collection[int]) -> int:
    try:
        fd = open_for_reading(path, os.O_RDONLY | os.O_NONBLOCK)  # O_NONBLOCK: it may be a FIFO
    except FileNotFoundError:
        raise
    except OSError as error:
        raise PidFileError(f"{path} cannot be read: {error.strerror or error}") from None
    try:
        owner = os.fstat(fd).st_uid
        if owner not in owners:
            raise PidFileError(f"{path} belongs to uid {owner}; it must belong to root or to the user of the workload")
        text = os.read(fd, MAX_BYTES + 1).strip()
    except OSError as error:
        raise PidFileError(f"{path} cannot be read: {error.strerror}") from None
    finally:
        os.close(fd)
    if not text:
        raise FileNotFoundError(path)  # it is being written
    if not (text.isdigit() and len(text) <= MAX_BYTES and 0 < int(text) < 1 << 22):
        raise PidFileError(f"{path} does not have a pid, but {text[:20]!r}")
    return int(text)
