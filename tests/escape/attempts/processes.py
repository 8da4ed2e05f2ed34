"""Processes outside of the sandbox, and process 1 in it: signals, tracing, memory, descriptors.

The targets name two processes outside, of root and of the user 65534. The attempts do to them what changes nothing.
"""

import ctypes
import errno
import os
import struct

from harness import PROGRAM, RefusedError, attempt, call, first, opens, targets, variant

PTRACE_SEIZE, PTRACE_DETACH, PTRACE_TRACEME = 0x4206, 17, 0
PTRACE_MODE = "ptrace"


def visible(pid: int) -> bool:
    """Return whether the process with this pid here is one of the targets."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return str(targets["token"]).encode() in file.read()
    except OSError:
        return False


def outside(action):  # type: ignore[no-untyped-def]
    """Do something to a process outside; RefusedError if none is visible."""
    pids = [pid for pid in targets["processes"] if visible(pid)]  # type: ignore[attr-defined]
    if not pids:
        raise RefusedError("no process outside is visible")
    return first([lambda p=pid: action(p) for pid in pids])


def init(action):  # type: ignore[no-untyped-def]
    """Do something to process 1; RefusedError if that is this program."""
    if PROGRAM == 1:
        raise RefusedError("process 1 is this program")
    return action(1)


def send_signal(pid: int) -> str:
    os.kill(pid, 0)
    return "may send signals"


def send_by_pidfd(pid: int) -> str:
    call("pidfd_send_signal", os.pidfd_open(pid), 0, None, 0)
    return "may send signals"


def trace(pid: int) -> str:
    """Seize, without a stop, and detach by the end of this process."""
    call("ptrace", PTRACE_SEIZE, pid, 0, 0)
    return "traced"


def read_vm(pid: int) -> str:
    """Read a byte of memory where the program is mapped."""
    with open(f"/proc/{pid}/maps") as file:
        line = file.readline()
    if not line:
        raise RefusedError("no map of its memory")
    buffer = ctypes.create_string_buffer(1)
    local = struct.pack("PN", ctypes.addressof(buffer), 1)
    remote = struct.pack("PN", int(line.split("-")[0], 16), 1)
    call("process_vm_readv", pid, local, 1, remote, 1, 0)
    return "read a byte"


def open_mem(pid: int) -> str:
    return opens(f"/proc/{pid}/mem", os.O_RDWR)


def see_root(pid: int) -> str:
    return f"its root has {len(os.listdir(f'/proc/{pid}/root/'))} entries"


def see_environment(pid: int) -> str:
    with open(f"/proc/{pid}/environ", "rb") as file:
        return f"{len(file.read())} bytes"


def see_descriptors(pid: int) -> str:
    """Read the links; their names are no secret."""
    names = os.listdir(f"/proc/{pid}/fd")
    return f"the first is {os.readlink(f'/proc/{pid}/fd/{names[0]}')}"


def take_descriptor(pid: int) -> str:
    call("pidfd_getfd", os.pidfd_open(pid), 0, 0)
    return "took its descriptor 0"


def compare(pid: int) -> str:
    call("kcmp", os.getpid(), pid, 1, 0, 0)
    return "compared the memory maps"


def query_pages(pid: int) -> str:
    call("move_pages", pid, 0, None, None, None, 0)
    return "may move its pages"


def same_limit(pid: int) -> str:
    import resource

    resource.prlimit(pid, resource.RLIMIT_CORE, resource.prlimit(pid, resource.RLIMIT_CORE))
    return "set a limit of it"


def same_nice(pid: int) -> str:
    os.setpriority(os.PRIO_PROCESS, pid, os.getpriority(os.PRIO_PROCESS, pid))
    return "set its nice value"


def same_affinity(pid: int) -> str:
    os.sched_setaffinity(pid, os.sched_getaffinity(pid))
    return "set its processors"


def same_oom_score(pid: int) -> str:
    path = f"/proc/{pid}/oom_score_adj"
    with open(path) as file:
        value = file.read()
    with open(path, "w") as file:
        file.write(value)
    return "set its oom_score_adj"


def enter_namespaces(pid: int) -> str:
    fd = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY)
    call("setns", fd, 0)
    return "entered its mount namespace"


def enter_by_pidfd(pid: int) -> str:
    call("setns", os.pidfd_open(pid), 0x20000 | 0x4000000)
    return "entered its mount and UTS namespaces"


for _name, _function, _title in (
    ("signal", send_signal, "send a signal to"),
    ("pidfd-signal", send_by_pidfd, "send a signal by pidfd to"),
    ("ptrace", trace, "trace"),
    ("vm-readv", read_vm, "read the memory (process_vm_readv) of"),
    ("mem", open_mem, "open the memory (/proc/PID/mem) of"),
    ("root", see_root, "see the files (/proc/PID/root) of"),
    ("environ", see_environment, "read the environment of"),
    ("fd", see_descriptors, "see the descriptors of"),
    ("getfd", take_descriptor, "take a descriptor (pidfd_getfd) of"),
    ("kcmp", compare, "compare itself (kcmp) with"),
    ("move-pages", query_pages, "move the pages of"),
    ("prlimit", same_limit, "set a limit of"),
    ("nice", same_nice, "set the nice value of"),
    ("affinity", same_affinity, "set the processors of"),
    ("oom-score", same_oom_score, "set the oom_score_adj of"),
    ("setns", enter_namespaces, "enter the mount namespace of"),
    ("setns-pidfd", enter_by_pidfd, "enter the namespaces (by pidfd) of"),
):
    variant(outside, f"outside-{_name}", f"{_title[0].upper()}{_title[1:]} a process outside", _function)
for _name, _function, _title in (
    ("ptrace", trace, "trace"),
    ("vm-readv", read_vm, "read the memory (process_vm_readv) of"),
    ("mem", open_mem, "open the memory (/proc/1/mem) of"),
    ("root", see_root, "see the files (/proc/1/root) of"),
    ("environ", see_environment, "read the environment of"),
    ("fd", see_descriptors, "see the descriptors of"),
    ("getfd", take_descriptor, "take a descriptor (pidfd_getfd) of"),
    ("setns", enter_namespaces, "enter the mount namespace of"),
):
    variant(init, f"init-{_name}", f"{_title[0].upper()}{_title[1:]} process 1, if that is another program", _function)


@attempt()
def ptrace_child() -> str:
    """Trace an own child process."""
    if not (pid := os.fork()):
        try:
            call("ptrace", PTRACE_TRACEME, 0, 0, 0)
        except OSError:
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    if status:
        raise RefusedError("the child was refused")
    return "traced"


@attempt(exclusive=True)
def many_processes() -> str:
    """Have more than 2,048 tasks."""
    import threading

    threading.stack_size(64 << 10)
    end = threading.Event()
    try:
        for _ in range(2100):
            threading.Thread(target=end.wait, daemon=True).start()
    except RuntimeError:
        raise RefusedError(f"refused at {threading.active_count()}") from None
    finally:
        end.set()
    return "2,100 tasks"


@attempt()
def process_madvise() -> str:
    """Advise on the memory of process 1, if that is another program (process_madvise without ranges)."""
    if PROGRAM == 1:
        raise RefusedError("process 1 is this program")
    call("process_madvise", os.pidfd_open(1), None, 0, 20, 0)  # MADV_COLD
    return "advised"


@attempt()
def kernel_threads_seen() -> str:
    """See processes of the host in /proc (kernel threads)."""
    with open("/proc/2/stat") as file:
        if "(kthreadd)" not in file.read():
            raise RefusedError(errno.errorcode[errno.ESRCH])
    return "saw kthreadd"
