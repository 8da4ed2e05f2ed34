"""Users, groups, capabilities, and programs that raise them."""

import array
import ctypes
import errno
import fcntl
import os
import struct
import subprocess

from harness import (
    NOBODY,
    RefusedError,
    attempt,
    become,
    call,
    first,
    passes,
    scratch,
    targets,
    variant,
    writable_directories,
)

CAP_NAMES = [
    "chown",
    "dac_override",
    "dac_read_search",
    "fowner",
    "fsetid",
    "kill",
    "setgid",
    "setuid",
    "setpcap",
    "linux_immutable",
    "net_bind_service",
    "net_broadcast",
    "net_admin",
    "net_raw",
    "ipc_lock",
    "ipc_owner",
    "sys_module",
    "sys_rawio",
    "sys_chroot",
    "sys_ptrace",
    "sys_pacct",
    "sys_admin",
    "sys_boot",
    "sys_nice",
    "sys_resource",
    "sys_time",
    "sys_tty_config",
    "mknod",
    "lease",
    "audit_write",
    "audit_control",
    "setfcap",
    "mac_override",
    "mac_admin",
    "syslog",
    "wake_alarm",
    "block_suspend",
    "audit_read",
    "perfmon",
    "bpf",
    "checkpoint_restore",
]
USUAL = {"chown", "dac_override", "fowner", "fsetid", "kill", "setgid", "setuid", "setpcap", "net_bind_service"}
USUAL |= {"sys_chroot", "setfcap"}
"""Capabilities that containers have by default."""


def status(key: str) -> int:
    """Return a set of capabilities of this process."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1], 16) for line in file if line.startswith(key))


def names(mask: int) -> list[str]:
    """Return the names of the capabilities in a set."""
    return [CAP_NAMES[bit] if bit < len(CAP_NAMES) else str(bit) for bit in range(64) if mask >> bit & 1]


def has_more(key: str, usual: set[str]) -> str:
    """Return the capabilities in a set that are not usual."""
    found = [name for name in names(status(key)) if name not in usual]
    if not found:
        raise RefusedError("none")
    return f"{len(found)}, such as {found[-1]}"


variant(has_more, "capabilities-effective", "Have effective capabilities that containers lack", "CapEff", USUAL)
variant(has_more, "capabilities-bounding", "Have other capabilities within reach (bounding set)", "CapBnd", USUAL)
variant(has_more, "capabilities-any", "Have effective capabilities at all", "CapEff", set())


@attempt()
def ambient_raise() -> str:
    """Raise an ambient capability (of the own permitted and inheritable ones)."""
    permitted = status("CapPrm")
    if not permitted:
        raise RefusedError("no capability")
    bit = permitted.bit_length() - 1
    header = struct.pack("Ii", 0x20080522, 0)
    low, high = permitted & 0xFFFFFFFF, permitted >> 32
    call("capset", header, struct.pack("6I", low, low, low, high, high, high))
    call("prctl", 47, 2, bit, 0, 0)  # PR_CAP_AMBIENT_RAISE
    return "raised"


@attempt()
def new_privileges() -> str:
    """Gain privileges by programs (no_new_privs is not set)."""
    with open("/proc/self/status") as file:
        if "NoNewPrivs:\t1" in file.read():
            raise RefusedError("no_new_privs")
    return "it is not set"


def printed(program: str) -> str:
    """Return the output of a program; RefusedError if it cannot be run."""
    done = subprocess.run([program, *(["/proc/self/status"] if "cat" in program else ["-u"])], capture_output=True)
    if done.returncode:
        raise RefusedError(f"status {done.returncode}")
    return done.stdout.decode()


@attempt()
def setuid_program() -> str:
    """Become root by a setuid program, as another user."""
    become(NOBODY)
    if printed(f"{targets['here']}/setuid-id").strip() != "0":
        raise RefusedError("not root")
    return "became root"


def file_capability(file: str) -> str:
    """Gain a capability by a program that has it, as another user."""
    become(NOBODY)
    text = printed(f"{targets['here']}/{file}")
    mask = int(text.partition("CapEff:")[2].split()[0], 16)
    if not mask:
        raise RefusedError("no capability")
    return f"gained {', '.join(names(mask))}"


variant(
    file_capability, "file-capability", "Gain a usual capability by a program that has it, as another user", "cap-cat"
)
variant(file_capability, "file-capability-time", "Gain CAP_SYS_TIME by a program, as another user", "cap-time-cat")


@attempt()
def own_setuid_program() -> str:
    """Make a file setuid."""
    with scratch() as place:
        path = f"{place}/file"
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
        os.chmod(path, 0o4700)
        if not os.stat(path).st_mode & 0o4000:
            raise RefusedError("the bit is not set")
    return "made one"


@attempt()
def set_file_capability() -> str:
    """Give a file capabilities."""
    with scratch() as place:
        path = f"{place}/file"
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
        os.setxattr(path, "security.capability", struct.pack("<5I", 0x02000001, 1, 0, 0, 0))
    return "given"


@attempt()
def trusted_attribute() -> str:
    """Write an attribute trusted.* of an own file."""
    with scratch() as place:
        path = f"{place}/file"
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
        os.setxattr(path, "trusted.escape", b"x")
    return "written"


@attempt()
def immutable() -> str:
    """Make an own file immutable (set its flag "append only", and remove it)."""
    fs_ioc_getflags, fs_ioc_setflags, fs_append_fl = 0x80086601, 0x40086602, 0x20
    with scratch() as place:
        fd = os.open(f"{place}/file", os.O_WRONLY | os.O_CREAT, 0o600)
        flags = array.array("l", [0])
        fcntl.ioctl(fd, fs_ioc_getflags, flags)
        fcntl.ioctl(fd, fs_ioc_setflags, array.array("l", [flags[0] | fs_append_fl]))
        fcntl.ioctl(fd, fs_ioc_setflags, flags)
    return "set"


@attempt()
def become_other_user() -> str:
    """Become another user (setuid)."""
    os.setuid(1 if os.geteuid() != 1 else 2)
    return "became another"


@attempt()
def other_groups() -> str:
    """Change the supplementary groups."""
    os.setgroups([4, 6])
    return "changed"


@attempt()
def chown_other() -> str:
    """Give an own file to another user."""
    with scratch() as place:
        path = f"{place}/file"
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
        os.chown(path, 1, 1)
    return "given"


@attempt()
def secure_bits() -> str:
    """Set the secure bits (to what they are)."""
    value = call("prctl", 27, 0, 0, 0, 0)
    call("prctl", 28, value, 0, 0, 0)
    return "set"


def reopen(path: str) -> str:
    """Open a file by its handle (open_by_handle_at)."""
    buffer = ctypes.create_string_buffer(struct.pack("Ii", 128, 0) + bytes(128))
    mount = ctypes.c_int()
    call("name_to_handle_at", -100, path.encode(), buffer, mount, 0)
    directory = os.open(path, os.O_RDONLY)
    os.close(call("open_by_handle_at", directory, buffer, os.O_RDONLY))
    return "opened"


@attempt()
def open_by_handle() -> str:
    """Open a file by its handle."""
    return first([lambda p=p: reopen(p) for p in [*writable_directories(), "/usr"]])


@attempt()
def open_by_handle_guessed() -> str:
    """Open the root of the file system that has the own files by a guessed handle."""
    buffer = ctypes.create_string_buffer(struct.pack("IiII", 8, 1, 2, 0))
    directory = os.open(str(targets["here"]), os.O_RDONLY)
    try:
        os.close(call("open_by_handle_at", directory, buffer, os.O_RDONLY))
    except OSError as error:
        if error.errno != errno.ESTALE:
            raise
        return "allowed, then ESTALE for its handle"
    return "opened"


@attempt()
def keys_of_host() -> str:
    """Find a key of the host's root in the user keyring."""
    call("keyctl", 10, -4, b"user", str(targets["key"]).encode(), 0)  # KEYCTL_SEARCH, KEY_SPEC_USER_KEYRING
    return "found"


@attempt()
def keys_of_session() -> str:
    """Find a key in the session keyring of the process that started the supervisor."""
    call("keyctl", 10, -3, b"user", str(targets["session_key"]).encode(), 0)
    return "found"


@attempt()
def add_key() -> str:
    """Add a key (to a keyring that ends with the process)."""
    call("add_key", b"user", b"escape", b"x", 1, -2)
    return "added"


@attempt()
def keyctl() -> str:
    """Use keyrings (keyctl)."""
    call("keyctl", 0, -1, 1)
    return "used"


@attempt()
def request_key() -> str:
    """Request a key, which may start a program on the host (of a type that does not exist)."""
    return passes("request_key", b"no-such", b"escape", None, 0, but=(errno.ENODEV, errno.ENOKEY))
