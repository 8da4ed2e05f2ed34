"""Calls that change or observe the kernel as a whole. Arguments are invalid where success would do harm."""

import ctypes
import errno
import os
import struct

from harness import IS_X86, RefusedError, attempt, call, passes, variant

for _name, _title, _arguments, _but in (
    ("init_module", "load a module (an empty one)", (b"", 0, b""), ("ENOEXEC", "EFAULT", "EINVAL")),
    (
        "finit_module",
        "load a module from a file (a descriptor that is not open)",
        (-1, b"", 0),
        ("EBADF", "ENOEXEC", "EINVAL"),
    ),
    ("delete_module", "remove a module (that does not exist)", (b"no_such_module", 0o4000), ("ENOENT",)),
    ("kexec_load", "start another kernel (kexec_load with invalid flags)", (0, 0, None, 0xFFF0), ("EINVAL",)),
    (
        "kexec_file_load",
        "start another kernel (kexec_file_load with invalid flags)",
        (-1, -1, 0, None, 0xFFF0),
        ("EINVAL", "EBADF"),
    ),
    ("reboot", "reboot (with an invalid magic number)", (0, 0, 0, None), ("EINVAL",)),
    ("swapon", "use a file as swap space (that does not exist)", (b"/no-such-file", 0), ("ENOENT",)),
    ("swapoff", "stop the use of swap space (that does not exist)", (b"/no-such-file",), ("ENOENT",)),
    ("acct", "switch process accounting on (to a file that does not exist)", (b"/no-such-file",), ("ENOENT",)),
    (
        "clock_settime",
        "set the clock (to 1970, which is refused after the check)",
        (0, struct.pack("qq", 0, 0)),
        ("EINVAL",),
    ),
):

    def _try(name: str = _name, arguments: tuple = _arguments, but: tuple = _but) -> str:  # type: ignore[type-arg]
        return passes(name, *arguments, but=tuple(getattr(errno, code) for code in but))

    variant(_try, _name.replace("_", "-"), _title, module=__name__)


@attempt()
def settimeofday() -> str:
    """Set the time zone of the kernel (to UTC)."""
    call("settimeofday", None, struct.pack("ii", 0, 0))
    return "set"


@attempt()
def adjtimex() -> str:
    """Adjust the clock (by nothing)."""
    adj_setoffset = 0x0100
    call("adjtimex", ctypes.create_string_buffer(struct.pack("I", adj_setoffset), 208))
    return "adjusted"


@attempt()
def bpf_map() -> str:
    """Make a BPF map."""
    call("bpf", 0, struct.pack("5I", 2, 4, 4, 1, 0) + bytes(100), 120)
    return "made"


@attempt()
def bpf_program() -> str:
    """Load a BPF program."""
    code = ctypes.create_string_buffer(b"\xb7\0\0\0\0\0\0\0\x95\0\0\0\0\0\0\0")
    license_text = ctypes.create_string_buffer(b"GPL")
    attributes = struct.pack("IIQQ", 1, 2, ctypes.addressof(code), ctypes.addressof(license_text)) + bytes(96)
    call("bpf", 5, attributes, len(attributes))
    return "loaded"


def perf(kind: int, config: int, pid: int, cpu: int, flags: int) -> str:
    """Open a performance counter."""
    attributes = struct.pack("IIQQQQQ", kind, 112, config, 0, 0, 0, flags) + bytes(64)
    os.close(call("perf_event_open", attributes, pid, cpu, -1, 8))
    return "opened"


EXCLUDE_KERNEL_AND_HYPERVISOR = 1 << 5 | 1 << 6
variant(
    perf, "perf-self", "Count events of the own process (perf_event_open)", 1, 1, 0, -1, EXCLUDE_KERNEL_AND_HYPERVISOR
)
variant(perf, "perf-host", "Count events of all processes on a processor (perf_event_open)", 1, 0, -1, 0, 0)
variant(call, "userfaultfd", "Handle page faults of the kernel (userfaultfd)", "userfaultfd", 0, module=__name__)
variant(
    call, "userfaultfd-user", "Handle own page faults (userfaultfd, user mode only)", "userfaultfd", 1, module=__name__
)


@attempt()
def io_uring() -> str:
    """Set up an io_uring, whose operations seccomp does not see."""
    os.close(call("io_uring_setup", 1, ctypes.create_string_buffer(120)))
    return "set up"


@attempt()
def personality_random() -> str:
    """Switch address randomisation off (personality)."""
    call("personality", 0x0040000)
    return "switched off"


@attempt()
def personality_read_exec() -> str:
    """Make readable memory executable (personality READ_IMPLIES_EXEC)."""
    call("personality", 0x0400000)
    return "switched"


@attempt()
def personality_zero_page() -> str:
    """Map the page zero (personality MMAP_PAGE_ZERO)."""
    call("personality", 0x0100000)
    return "switched"


@attempt()
def syslog_read() -> str:
    """Read the messages of the kernel (syslog)."""
    buffer = ctypes.create_string_buffer(4096)
    return f"{call('syslog', 3, buffer, 4096)} bytes"


@attempt()
def syslog_console() -> str:
    """Set the level of the host's console (syslog, with an invalid level)."""
    return passes("syslog", 8, None, 99, but=(errno.EINVAL,))


@attempt()
def fanotify() -> str:
    """Watch and decide on the file accesses of others (fanotify)."""
    os.close(call("fanotify_init", 4, 0))
    return "allowed"


@attempt()
def fanotify_user() -> str:
    """Watch own files (fanotify without privileges)."""
    os.close(call("fanotify_init", 0x200, 0))
    return "allowed"


@attempt()
def quota() -> str:
    """Read the disk quota of another user."""
    fd = os.open("/", os.O_RDONLY)
    other = 1 if os.getuid() != 1 else 2
    buffer = ctypes.create_string_buffer(128)
    return passes("quotactl_fd", fd, (0x800007 << 8) & 0xFFFFFFFF, other, buffer, but=(errno.ESRCH, errno.EINVAL))


@attempt()
def freeze_file_system() -> str:
    """Freeze a file system (/proc, which cannot be frozen and says so after the check)."""
    fd = os.open("/proc", os.O_RDONLY)
    return passes("ioctl", fd, 0xC0045877, 0, but=(errno.EOPNOTSUPP,))


@attempt()
def io_ports() -> str:
    """Use the ports of devices (iopl)."""
    call("iopl", 3)
    return "allowed"


@attempt()
def io_permissions() -> str:
    """Use a port of a device (ioperm)."""
    call("ioperm", 0x80, 1, 1)
    return "allowed"


@attempt()
def modify_ldt() -> str:
    """Use local segment descriptors (modify_ldt)."""
    call("modify_ldt", 0, ctypes.create_string_buffer(16), 16)
    return "allowed"


@attempt()
def vhangup() -> str:
    """Hang up a terminal (vhangup, without one)."""
    call("vhangup")
    return "allowed"


@attempt()
def memory_policy() -> str:
    """Set the memory policy (set_mempolicy)."""
    call("set_mempolicy", 0, None, 0)
    return "allowed"


@attempt()
def memory_policy_read() -> str:
    """Read the memory policy (get_mempolicy)."""
    call("get_mempolicy", ctypes.create_string_buffer(4), None, 0, None, 0)
    return "allowed"


@attempt()
def memory_policy_range() -> str:
    """Bind memory to nodes (mbind of nothing)."""
    call("mbind", None, 0, 0, None, 0, 0)
    return "allowed"


@attempt()
def migrate_pages() -> str:
    """Move the own pages between nodes (migrate_pages)."""
    return passes("migrate_pages", 0, 0, None, None, but=(errno.EINVAL,))


@attempt()
def obsolete_sysfs() -> str:
    """Use an obsolete call (sysfs)."""
    return f"returned {call('sysfs', 3)}"


@attempt()
def obsolete_ustat() -> str:
    """Use an obsolete call (ustat of an invalid device)."""
    return passes("ustat", 0, ctypes.create_string_buffer(64), but=(errno.EINVAL,))


@attempt()
def newer_call() -> str:
    """Reach a system call that is newer than most filters (lsm_list_modules)."""
    size = ctypes.create_string_buffer(struct.pack("I", 64), 4)
    return f"{call('lsm_list_modules', ctypes.create_string_buffer(64), size, 0)} modules"


@attempt()
def foreign_architecture() -> str:
    """Make a system call of 32-bit programs, which has other numbers (int 0x80)."""
    if not IS_X86:
        raise RefusedError("not on this processor")
    import mmap

    # push rbx; mov eax, 20 (getpid); int 0x80; pop rbx; ret
    memory = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    memory.write(b"\x53\xb8\x14\x00\x00\x00\xcd\x80\x5b\xc3")
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    found = ctypes.CFUNCTYPE(ctypes.c_int)(address)()
    if found != os.getpid():
        raise RefusedError(errno.errorcode.get(-found, str(found)))
    return "made it"


@attempt()
def memory_map() -> str:
    """Change the description of the own memory, as a checkpoint does (PR_SET_MM)."""
    return passes("prctl", 35, 1, 0, 0, 0, but=(errno.EINVAL,))


@attempt()
def seccomp_user_notification() -> str:
    """Install an own filter that hands calls to another process (seccomp user notification)."""
    code = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0x7FFF0000))
    program = struct.pack("H6xP", 1, ctypes.addressof(code))
    call("prctl", 38, 1, 0, 0, 0)
    os.close(call("seccomp", 1, 8, program))
    return "installed"
