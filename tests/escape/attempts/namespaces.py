"""Namespaces: new ones with their privileges, and those of the host."""

import ctypes
import errno
import os
import signal

from harness import (
    CLONE_NEWCGROUP,
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWTIME,
    CLONE_NEWUSER,
    CLONE_NEWUTS,
    RefusedError,
    attempt,
    call,
    libc,
    targets,
    variant,
)


def new(flag: int) -> str:
    """Make a namespace (unshare)."""
    call("unshare", flag)
    return "made"


for _name, _flag in (
    ("user", CLONE_NEWUSER),
    ("mount", CLONE_NEWNS),
    ("network", CLONE_NEWNET),
    ("pid", CLONE_NEWPID),
    ("ipc", CLONE_NEWIPC),
    ("uts", CLONE_NEWUTS),
    ("cgroup", CLONE_NEWCGROUP),
    ("time", CLONE_NEWTIME),
):
    variant(
        new, f"unshare-{_name}", f"make a {_name} namespace".replace("a ipc", "an IPC").replace("a uts", "a UTS"), _flag
    )


@attempt()
def clone_user() -> str:
    """Make a user namespace with clone instead of unshare."""
    number = 56 if os.uname().machine == "x86_64" else 220
    pid = libc.syscall(ctypes.c_long(number), ctypes.c_long(CLONE_NEWUSER | signal.SIGCHLD), None, None, None, None)
    if pid == 0:
        os._exit(0)
    if pid < 0:
        raise OSError(ctypes.get_errno(), "clone")
    os.waitpid(pid, 0)
    return "made"


@attempt()
def clone3_user() -> str:
    """Make a user namespace with clone3, whose flags a filter cannot see."""
    arguments = b"".join(
        value.to_bytes(8, "little") for value in (CLONE_NEWUSER, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, 0, 0, 0)
    )
    pid = call("clone3", arguments, len(arguments))
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return "made"


def become_root() -> None:
    """Enter a new user namespace as its root."""
    uid, gid = os.geteuid(), os.getegid()
    call("unshare", CLONE_NEWUSER)
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


@attempt()
def user_then_mount() -> str:
    """Mount a tmpfs as root of a new user namespace."""
    become_root()
    call("unshare", CLONE_NEWNS)
    call("mount", b"none", b"/mnt" if os.path.isdir("/mnt") else b"/tmp", b"tmpfs", 0, None)
    return "mounted"


@attempt()
def user_then_network() -> str:
    """Administer a new network as root of a new user namespace (a raw socket)."""
    import socket

    become_root()
    call("unshare", CLONE_NEWNET)
    socket.socket(socket.AF_INET, socket.SOCK_RAW, 1).close()
    return "opened a raw socket"


@attempt()
def setns_own() -> str:
    """Enter a namespace by its descriptor (the own UTS namespace)."""
    call("setns", os.open("/proc/self/ns/uts", os.O_RDONLY), CLONE_NEWUTS)
    return "entered"


def shared(kind: str) -> str:
    """Be in the namespace of this kind that the host's processes are in."""
    found = os.stat(f"/proc/self/ns/{kind}").st_ino
    host = targets["namespaces"][kind]  # type: ignore[index]
    if found != host:
        raise RefusedError("another one")
    return "the same"


for _kind, _name in (
    ("pid", "PID"),
    ("mnt", "mount"),
    ("ipc", "IPC"),
    ("uts", "UTS"),
    ("cgroup", "cgroup"),
    ("user", "user"),
):
    variant(shared, f"host-{_name.lower()}", f"Be in the host's {_name} namespace", _kind)
variant(shared, "host-network", "Be in the host's network namespace", "net", shares="network")


def set_name(name: str) -> str:
    """Set the name that is there."""
    value = os.uname().nodename.encode() if name == "sethostname" else _domain()
    call(name, value, len(value))
    return "set"


def _domain() -> bytes:
    with open("/proc/sys/kernel/domainname", "rb") as file:
        return file.read().strip()


variant(set_name, "sethostname", "Set the host name", "sethostname")
variant(set_name, "setdomainname", "Set the domain name", "setdomainname")


def shared_memory() -> int:
    libc.shmget.restype = ctypes.c_int
    return libc.shmget(ctypes.c_int(int(targets["shm_key"])), ctypes.c_size_t(0), ctypes.c_int(0))


@attempt()
def shm_sysv_of_host() -> str:
    """Open System V shared memory of the host."""
    if shared_memory() < 0:
        raise OSError(ctypes.get_errno(), "shmget")
    return "opened"


@attempt()
def shm_posix_of_host() -> str:
    """Open POSIX shared memory of the host (/dev/shm)."""
    os.close(os.open(f"/dev/shm/{targets['shm']}", os.O_RDONLY))
    return "opened"


@attempt()
def mqueue_of_host() -> str:
    """Open a message queue of the host."""
    call("mq_open", str(targets["mqueue"]).encode(), os.O_RDONLY, 0, None)
    return "opened"


@attempt()
def hostname_of_host() -> str:
    """Change the name that the host's processes see."""
    if os.stat("/proc/self/ns/uts").st_ino != targets["namespaces"]["uts"]:  # type: ignore[index]
        raise RefusedError(errno.errorcode[errno.ENOENT])
    return set_name("sethostname")
