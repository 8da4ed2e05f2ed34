"""Registry of attempts, and their execution: each in a process of its own with a time limit.

Standard library only, and no package: the folder is executed as `python3 attempts`, in any sandbox.
"""

import ctypes
import errno
import json
import os
import platform
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

TIMEOUT_S = 30 * float(os.environ.get("NSUPERVISOR_TEST_SLOWDOWN", "1"))
"""Seconds after which an attempt is killed."""
AT_ONCE = 8
"""Attempts that run at the same time: most wait for the kernel."""
UNIQUE = os.urandom(6).hex()
"""For names of files: sandboxes with the same directory may have the same pids."""
PROGRAM = os.getpid()
"""The process that runs the attempts one after the other."""

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long

# Number on x86-64, number of the generic table (arm64, riscv64). Source: asm/unistd_64.h, asm-generic/unistd.h.
SYSCALLS = {
    "ioctl": (16, 29),
    "mremap": (25, 216),
    "msync": (26, 227),
    "ptrace": (101, 117),
    "syslog": (103, 116),
    "setuid": (105, 146),
    "setgid": (106, 144),
    "setgroups": (116, 159),
    "setfsuid": (122, 151),
    "capget": (125, 90),
    "capset": (126, 91),
    "personality": (135, 92),
    "sysfs": (139, -1),
    "ustat": (136, -1),
    "vhangup": (153, 58),
    "modify_ldt": (154, -1),
    "pivot_root": (155, 41),
    "prctl": (157, 167),
    "adjtimex": (159, 171),
    "chroot": (161, 51),
    "acct": (163, 89),
    "settimeofday": (164, 170),
    "mount": (165, 40),
    "umount2": (166, 39),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "reboot": (169, 142),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "iopl": (172, -1),
    "ioperm": (173, -1),
    "init_module": (175, 105),
    "delete_module": (176, 106),
    "quotactl": (179, 60),
    "clock_settime": (227, 112),
    "mbind": (237, 235),
    "set_mempolicy": (238, 237),
    "get_mempolicy": (239, 236),
    "mq_open": (240, 180),
    "kexec_load": (246, 104),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "ioprio_set": (251, 30),
    "ioprio_get": (252, 31),
    "migrate_pages": (256, 238),
    "unshare": (272, 97),
    "move_pages": (279, 239),
    "vmsplice": (278, 75),
    "perf_event_open": (298, 241),
    "fanotify_init": (300, 262),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "clock_adjtime": (305, 266),
    "setns": (308, 268),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "finit_module": (313, 273),
    "sched_setattr": (314, 274),
    "seccomp": (317, 277),
    "memfd_create": (319, 279),
    "kexec_file_load": (320, 294),
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "pidfd_send_signal": (424, 424),
    "io_uring_setup": (425, 425),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "pidfd_open": (434, 434),
    "clone3": (435, 435),
    "pidfd_getfd": (438, 438),
    "process_madvise": (440, 440),
    "mount_setattr": (442, 442),
    "quotactl_fd": (443, 443),
    "memfd_secret": (447, 447),
    "set_mempolicy_home_node": (450, 450),
    "lsm_list_modules": (461, 461),
}
IS_X86 = platform.machine() == "x86_64"

CLONE_NEWTIME, CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS = 0x80, 0x20000, 0x2000000, 0x4000000
CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x8000000, 0x10000000, 0x20000000, 0x40000000
MS_RDONLY, MS_REMOUNT, MS_BIND, MS_MOVE, MS_REC, MS_PRIVATE = 1, 32, 4096, 8192, 16384, 1 << 18
MNT_DETACH = 2
NOBODY = 65534


class RefusedError(Exception):
    """The attempt has not succeeded; the text says why."""


class Attempt:
    """A function that tries one thing. It returns a detail if it was allowed, else raises OSError or RefusedError.

    name: unique. group: the module it is in. shares: "root" or "network" if success follows from sharing that with the
    host on purpose, else "". exclusive: it disturbs others. description: the first line of its docstring.
    """

    def __init__(self, function: Callable[[], str], name: str, shares: str, exclusive: bool) -> None:
        self.function = function
        self.exclusive = exclusive
        self.name = name
        self.shares = shares
        self.group = function.__module__
        text = (function.__doc__ or "").splitlines()[0].rstrip(".")
        self.description = text[0].upper() + text[1:]


ATTEMPTS: dict[str, Attempt] = {}
targets: dict[str, object] = {}
"""Things of the host that the runner has made, by name; see `tests/escape/targets.py`."""


def attempt(shares: str = "", exclusive: bool = False) -> Callable[[Callable[[], str]], Callable[[], str]]:
    """Register a function as an attempt with its own name, in which "_" becomes "-"."""

    def register(function: Callable[[], str]) -> Callable[[], str]:
        add(function, function.__name__.replace("_", "-"), shares, exclusive)
        return function

    return register


def add(function: Callable[[], str], name: str, shares: str = "", exclusive: bool = False) -> None:
    """Register a function as the attempt `name`."""
    assert name not in ATTEMPTS, name
    assert function.__doc__, name
    ATTEMPTS[name] = Attempt(function, name, shares, exclusive)


def variant(
    base: Callable[..., str], name: str, description: str, *arguments: object, shares: str = "", module: str = ""
) -> None:
    """Register `base(*arguments)` as the attempt `name`."""

    def function() -> str:
        return base(*arguments)

    function.__doc__ = description
    function.__module__ = module or base.__module__
    add(function, name, shares)


# ---------------------------------------------------------------------------------------------------------------- calls


def call(name: str, *arguments: object) -> int:
    """Make the system call `name` and return its result; OSError if it fails.

    None is a null pointer, bytes are a pointer to them, a ctypes object is passed by reference.
    """
    number = SYSCALLS[name][0 if IS_X86 else 1]
    if number < 0:
        raise RefusedError("not on this processor")
    result = libc.syscall(ctypes.c_long(number), *map(_converted, arguments))
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(result)


def _converted(value: object) -> object:
    if value is None:
        return ctypes.c_void_p(None)
    if isinstance(value, int):
        return ctypes.c_long(value)
    if isinstance(value, bytes):
        return ctypes.c_char_p(value)
    return ctypes.byref(value)  # type: ignore[arg-type]


def passes(name: str, *arguments: object, but: tuple[int, ...]) -> str:
    """Make a system call that checks privileges first and arguments later; one of the errors `but` means allowed."""
    try:
        return f"returned {call(name, *arguments)}"
    except OSError as error:
        if error.errno not in but:
            raise
        return f"allowed, then {errno.errorcode[error.errno]} for its arguments"


def opens(path: str, flags: int) -> str:
    """Open and close a file; never wait for its other end."""
    os.close(os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC))
    return f"opened {path}"


def lines(path: str) -> list[str]:
    """Return the lines of a file."""
    with open(path) as file:
        return file.read().splitlines()


def write_same(path: str) -> str:
    """Write to a file the value that it has. Of "a [b] c", a choice, write b."""
    with open(path, "rb", buffering=0) as file:
        value = file.read(65536)
    if b"[" in value:
        value = value.partition(b"[")[2].partition(b"]")[0]
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value or b"\n")
    finally:
        os.close(fd)
    return f"wrote to {path}"


def first(tries: Iterator[Callable[[], str]] | list[Callable[[], str]]) -> str:
    """Return the detail of the first try that succeeds; raise the error of the last one."""
    last: Exception = RefusedError("nothing to try")
    for one_try in tries:
        try:
            return one_try()
        except (OSError, RefusedError) as error:
            last = error
    raise last


# --------------------------------------------------------------------------------------------------------------- places


def writable_directories() -> list[str]:
    """Return directories in which this process may make files."""
    found = []
    for path in ("/tmp", "/var/tmp", "/run", "/dev/shm", "/dev", "/", "/root", os.getcwd()):
        probe = f"{path}/.escape-{UNIQUE}-{os.getpid()}"
        try:
            os.mkdir(probe, 0o700)
        except OSError:
            continue
        os.rmdir(probe)
        found.append(path)
    return found


@contextmanager
def empty_directory() -> Iterator[str]:
    """Make a directory, for example to mount on; remove it if it is empty again."""
    found = writable_directories()
    if not found:
        raise RefusedError("no directory is writable")
    path = f"{found[0]}/.escape-{UNIQUE}-{os.getpid()}"
    os.mkdir(path, 0o700)
    try:
        yield path
    finally:
        os.rmdir(path)  # never with what is in it: a mount may have remained


@contextmanager
def scratch() -> Iterator[str]:
    """Make a directory for the files of one attempt; remove it with them, unless something is mounted there."""
    with empty_directory() as path:
        made = os.stat(path)
        try:
            yield path
        finally:
            now = os.stat(path)
            if (now.st_dev, now.st_ino) == (made.st_dev, made.st_ino):
                for name in os.listdir(path):
                    os.unlink(f"{path}/{name}")


def keep_mounts_private() -> bool:
    """Enter a mount namespace whose changes the others do not see; return whether that was possible."""
    try:
        call("unshare", CLONE_NEWNS)
        call("mount", None, b"/", None, MS_REC | MS_PRIVATE, None)
    except OSError:
        return False
    return True


def become(uid: int) -> None:
    """Give up root for another user, if this is root."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)


def is_host_file(path: str, device: int, inode: int) -> bool:
    """Return whether `path` is this file of the host, not one of the same name."""
    try:
        status = os.stat(path)
    except OSError:
        return False
    return (status.st_dev, status.st_ino) == (device, inode)


# ------------------------------------------------------------------------------------------------------------ execution


def _child(function: Callable[[], str], answer: int) -> None:
    os.setsid()
    signal.alarm(int(TIMEOUT_S) + 1)
    try:
        result = {"allowed": True, "detail": str(function())}
    except RefusedError as error:
        result = {"allowed": False, "detail": str(error)}
    except OSError as error:
        code = errno.errorcode.get(error.errno or 0, str(error))
        result = {"allowed": False, "detail": code}
    except BaseException as error:
        result = {"allowed": False, "detail": f"defect: {error!r}"}
    os.write(answer, json.dumps(result).encode() + b"\n")


class Running:
    """An attempt in a new process and session."""

    def __init__(self, one: Attempt) -> None:
        self.attempt = one
        self.reader, writer = os.pipe()
        self.end = time.monotonic() + TIMEOUT_S
        self.pid = os.fork()
        if not self.pid:
            try:
                os.close(self.reader)
                _child(one.function, writer)
            finally:
                os._exit(0)
        os.close(writer)

    def result(self) -> dict[str, object]:
        """Wait for the end; return the name, whether the attempt was allowed, and a detail."""
        answer = b""
        while not answer.endswith(b"\n"):
            if not select.select([self.reader], [], [], max(self.end - time.monotonic(), 0))[0]:
                answer = json.dumps({"allowed": False, "detail": "defect: no answer in time"}).encode()
                break
            if not (chunk := os.read(self.reader, 65536)):
                break
            answer += chunk
        os.close(self.reader)
        for kill in (os.killpg, os.kill):
            try:
                kill(self.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                pass
        _, status = os.waitpid(self.pid, 0)
        if not answer:
            ended = signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else f"status {status}"
            answer = json.dumps({"allowed": False, "detail": f"killed: {ended}"}).encode()
        return {"name": self.attempt.name, **json.loads(answer)}


def run(attempts: list[Attempt]) -> Iterator[dict[str, object]]:
    """Run attempts, some at the same time; yield each result. One that is exclusive runs alone, after the others."""
    waiting: list[Running] = []
    for one in sorted(attempts, key=lambda one: one.exclusive):
        if len(waiting) >= AT_ONCE:
            yield waiting.pop(0).result()
        if one.exclusive:
            while waiting:
                yield waiting.pop(0).result()
        waiting.append(Running(one))
    while waiting:
        yield waiting.pop(0).result()


def main() -> None:
    """Print one JSON line per attempt, of those that the targets name or of all. `--list`: describe them instead."""
    if sys.argv[1:] == ["--list"]:
        for one in ATTEMPTS.values():
            line = {"name": one.name, "group": one.group, "shares": one.shares, "description": one.description}
            print(json.dumps(line))
        return
    targets.update(json.loads(sys.argv[1]))
    chosen = [ATTEMPTS[name] for name in targets.get("attempts", ATTEMPTS)]  # type: ignore[attr-defined]
    for result in run(chosen):
        print(json.dumps(result), flush=True)
    print(json.dumps({"end": len(chosen)}), flush=True)
