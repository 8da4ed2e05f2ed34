"""Processor time, I/O priority, memory locks and limits beyond those of others."""

import os
import resource
import struct

from harness import RefusedError, attempt, call


@attempt()
def nice_lower() -> str:
    """Lower the nice value."""
    value = os.nice(0)
    if value <= -20:
        raise RefusedError("already the lowest")
    os.nice(-1)
    return "lowered"


@attempt()
def real_time() -> str:
    """Use a real-time policy (SCHED_FIFO)."""
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    return "used"


@attempt()
def deadline() -> str:
    """Use the deadline policy (SCHED_DEADLINE)."""
    attributes = struct.pack("IIQiIQQQ", 48, 6, 0, 0, 0, 1_000_000, 100_000_000, 100_000_000)
    call("sched_setattr", 0, attributes, 0)
    return "used"


@attempt()
def io_real_time() -> str:
    """Use the real-time class of I/O."""
    call("ioprio_set", 1, 0, 1 << 13 | 4)
    return "used"


@attempt()
def oom_score() -> str:
    """Lower the own oom_score_adj."""
    with open("/proc/self/oom_score_adj") as file:
        value = int(file.read())
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write(str(max(value - 1, -1000)))
    return "lowered"


@attempt()
def raise_limit() -> str:
    """Raise a hard limit (RLIMIT_NPROC or RLIMIT_MEMLOCK)."""
    for kind in (resource.RLIMIT_NPROC, resource.RLIMIT_MEMLOCK, resource.RLIMIT_NOFILE, resource.RLIMIT_MSGQUEUE):
        _, hard = resource.getrlimit(kind)
        if hard != resource.RLIM_INFINITY:
            break
    else:
        kind, hard = resource.RLIMIT_CORE, 0
        resource.setrlimit(kind, (hard, hard))
    try:
        resource.setrlimit(kind, (hard, hard + 1))
    except ValueError:  # for EPERM
        raise RefusedError("EPERM") from None
    return "raised"


@attempt()
def lock_memory() -> str:
    """Lock more memory than RLIMIT_MEMLOCK."""
    import ctypes
    import mmap

    from harness import libc

    _soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, hard))
    memory = mmap.mmap(-1, 1 << 20)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    if libc.mlock(ctypes.c_void_p(address), ctypes.c_size_t(1 << 20)):
        raise OSError(ctypes.get_errno(), "mlock")
    return "locked"


@attempt()
def huge_pages_shm() -> str:
    """Make shared memory of huge pages (SHM_HUGETLB)."""
    import ctypes

    from harness import libc

    found = libc.shmget(ctypes.c_int(0), ctypes.c_size_t(2 << 20), ctypes.c_int(0o4000 | 0o1000 | 0o600))
    if found < 0:
        if ctypes.get_errno() == 12:  # allowed, and no huge page is free
            return "allowed, then ENOMEM"
        raise OSError(ctypes.get_errno(), "shmget")
    libc.shmctl(ctypes.c_int(found), ctypes.c_int(0), None)
    return "made"


@attempt()
def wake_alarm() -> str:
    """Set a timer that wakes the host (CLOCK_BOOTTIME_ALARM)."""
    import ctypes

    from harness import libc

    fd = libc.timerfd_create(ctypes.c_int(9), ctypes.c_int(0o2000000))
    if fd < 0:
        raise OSError(ctypes.get_errno(), "timerfd_create")
    os.close(fd)
    return "made"


@attempt()
def pipe_size() -> str:
    """Make a pipe larger than pipe-max-size."""
    import fcntl

    with open("/proc/sys/fs/pipe-max-size") as file:
        limit = int(file.read())
    _, writer = os.pipe()
    fcntl.fcntl(writer, 1031, limit * 2)
    return "made"
