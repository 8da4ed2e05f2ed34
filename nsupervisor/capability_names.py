"""The names of the kernel's capabilities, for the configuration, the keeper and people: capabilities(7)."""

NAMES = (
    *("CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP"),
    *("LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER"),
    *("SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE"),
    *("SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP"),
    *("MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF"),
    "CHECKPOINT_RESTORE",
)
"""In the order of their numbers, linux/capability.h, without "CAP_"."""

ALL = (1 << len(NAMES)) - 1
"""The mask of all capabilities with a name."""


def mask(names: "tuple[str, ...] | frozenset[str]") -> int:
    """Return the bit mask of these capabilities, as in proc_pid_status(5). Raises ValueError for an unknown name."""
    result = 0
    for name in names:
        result |= 1 << NAMES.index(name)
    return result


def names(capabilities: int) -> tuple[str, ...]:
    """Return the names of the capabilities in a bit mask, in the order of their numbers."""
    return tuple(name for number, name in enumerate(NAMES) if capabilities >> number & 1)
