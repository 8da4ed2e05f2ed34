"""System calls by groups, for `system_call_filter` and the default seccomp filter: systemd.exec(5), syscalls(2).

The groups have systemd's names and purposes. The names are those of x86-64 and aarch64; a call that an architecture
does not have is skipped there.
"""

from __future__ import annotations

from collections.abc import Iterable

_CALLS = {
    "@default": """
        arch_prctl brk clock_getres clock_gettime clock_nanosleep execve exit exit_group futex futex_requeue futex_wait
        futex_waitv futex_wake get_robust_list get_thread_area getegid geteuid getgid getgroups getpgid getpgrp getpid
        getppid getrandom getresgid getresuid getrlimit getsid gettid gettimeofday getuid map_shadow_stack membarrier
        mmap mprotect munmap nanosleep pause prlimit64 restart_syscall rseq rt_sigreturn sched_getaffinity sched_yield
        set_robust_list set_thread_area set_tid_address time uretprobe""",
    "@aio": """
        io_cancel io_destroy io_getevents io_pgetevents io_setup io_submit io_uring_enter io_uring_register
        io_uring_setup""",
    "@basic-io": """
        close close_range dup dup2 dup3 lseek pread64 preadv preadv2 pwrite64 pwritev pwritev2 read readv write
        writev""",
    "@chown": "chown fchown fchownat lchown",
    "@clock": "adjtimex clock_adjtime clock_settime settimeofday",
    "@cpu-emulation": "modify_ldt",
    "@debug": "lookup_dcookie perf_event_open pidfd_getfd ptrace",
    "@file-system": """
        access chdir chmod close creat faccessat faccessat2 fallocate fchdir fchmod fchmodat fchmodat2 fcntl fgetxattr
        file_getattr file_setattr flistxattr fremovexattr fsetxattr fstat fstatfs ftruncate futimesat getcwd getdents
        getdents64 getxattr getxattrat inotify_add_watch inotify_init inotify_init1 inotify_rm_watch lgetxattr link
        linkat listmount listxattr listxattrat llistxattr lremovexattr lsetxattr lstat mkdir mkdirat mknod mknodat
        newfstatat open openat openat2 readlink readlinkat removexattr removexattrat rename renameat renameat2 rmdir
        setxattr setxattrat stat statfs statmount statx symlink symlinkat truncate unlink unlinkat utime utimensat
        utimes""",
    "@io-event": """
        epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd
        eventfd2 poll ppoll pselect6 select""",
    "@ipc": """
        memfd_create mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedsend mq_unlink msgctl msgget msgrcv msgsnd
        pipe pipe2 process_madvise process_vm_readv process_vm_writev semctl semget semop semtimedop shmat shmctl shmdt
        shmget""",
    "@keyring": "add_key keyctl request_key",
    "@memlock": "mlock mlock2 mlockall munlock munlockall",
    "@module": "delete_module finit_module init_module",
    "@mount": """
        chroot fsconfig fsmount fsopen fspick mount mount_setattr move_mount open_tree open_tree_attr pivot_root
        umount2""",
    "@network-io": """
        accept accept4 bind connect getpeername getsockname getsockopt listen recvfrom recvmmsg recvmsg sendmmsg sendmsg
        sendto setsockopt shutdown socket socketpair""",
    "@obsolete": """
        _sysctl afs_syscall create_module get_kernel_syms getpmsg nfsservctl putpmsg query_module security sysfs tuxcall
        uselib ustat vserver""",
    "@pkey": "pkey_alloc pkey_free pkey_mprotect",
    "@process": """
        capget clone clone3 execveat fork getrusage kill pidfd_open pidfd_send_signal prctl rt_sigqueueinfo
        rt_tgsigqueueinfo setns tgkill times tkill unshare vfork wait4 waitid""",
    "@raw-io": "ioperm iopl",
    "@reboot": "kexec_file_load kexec_load reboot",
    "@resources": """
        ioprio_set mbind migrate_pages move_pages sched_setaffinity sched_setattr sched_setparam sched_setscheduler
        set_mempolicy set_mempolicy_home_node setpriority setrlimit""",
    "@sandbox": "landlock_add_rule landlock_create_ruleset landlock_restrict_self seccomp",
    "@setuid": "setgid setgroups setregid setresgid setresuid setreuid setuid",
    "@signal": """
        rt_sigaction rt_sigpending rt_sigprocmask rt_sigsuspend rt_sigtimedwait sigaltstack signalfd signalfd4""",
    "@swap": "swapoff swapon",
    "@sync": "fdatasync fsync msync sync sync_file_range syncfs",
    "@timer": """
        alarm getitimer setitimer timer_create timer_delete timer_getoverrun timer_gettime timer_settime timerfd_create
        timerfd_gettime timerfd_settime times""",
    "@privileged": """
        @chown @clock @module @raw-io @reboot @setuid @swap acct bpf capset chroot fanotify_init fanotify_mark
        open_by_handle_at pivot_root quotactl quotactl_fd setdomainname setfsgid setfsuid sethostname vhangup""",
    "@system-service": """
        @aio @basic-io @chown @default @file-system @io-event @ipc @keyring @memlock @network-io @process @resources
        @setuid @signal @sync @timer cachestat capget capset copy_file_range fadvise64 flock get_mempolicy getcpu
        getpriority ioctl ioprio_get kcmp lsm_get_self_attr lsm_list_modules lsm_set_self_attr madvise mremap mseal
        name_to_handle_at personality readahead remap_file_pages sched_get_priority_max sched_get_priority_min
        sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval sendfile setfsgid setfsuid setpgid setsid
        splice sysinfo tee umask uname userfaultfd vmsplice""",
}
_OTHERS = "memfd_secret mincore process_mrelease syslog"
"""Calls that are in no group."""


def expand(words: Iterable[str]) -> frozenset[str]:
    """Return the system calls of these names and groups. Raises KeyError for an unknown one."""
    found: set[str] = set()
    for word in words:
        if word.startswith("@"):
            found |= expand(KNOWN if word == "@known" else _CALLS[word].split())
        elif word in KNOWN:
            found.add(word)
        else:
            raise KeyError(word)
    return frozenset(found)


KNOWN = frozenset(name for text in (*_CALLS.values(), _OTHERS) for name in text.split() if not name.startswith("@"))
"""All calls that have a name here."""
WORDS = (*_CALLS, "@known", *sorted(KNOWN))
"""The words of a filter: groups, and calls."""
NEWER = {
    "cachestat": 451, "fchmodat2": 452, "map_shadow_stack": 453, "futex_wake": 454, "futex_wait": 455,
    "futex_requeue": 456, "statmount": 457, "listmount": 458, "lsm_get_self_attr": 459, "lsm_set_self_attr": 460,
    "lsm_list_modules": 461, "mseal": 462, "setxattrat": 463, "getxattrat": 464, "listxattrat": 465,
    "removexattrat": 466, "open_tree_attr": 467, "file_getattr": 468, "file_setattr": 469,
}  # fmt: skip
"""The numbers of calls that a library may not know yet; they are the same on every architecture."""
HIGHEST_NUMBER = max(NEWER.values())
"""Calls above it are unknown here."""

_DEFAULT_GROUPS = (
    *("@default", "@aio", "@basic-io", "@chown", "@file-system", "@io-event", "@ipc", "@memlock", "@network-io"),
    *("@pkey", "@process", "@resources", "@sandbox", "@setuid", "@signal", "@sync", "@timer"),
)
_DEFAULT_CALLS = """
    adjtimex cachestat capset clock_adjtime copy_file_range fadvise64 fanotify_mark flock getcpu getpriority ioctl
    ioprio_get madvise memfd_secret mincore modify_ldt mremap mseal name_to_handle_at process_mrelease ptrace readahead
    remap_file_pages sched_get_priority_max sched_get_priority_min sched_getattr sched_getparam sched_getscheduler
    sched_rr_get_interval sendfile setfsgid setfsuid setpgid setsid splice sysinfo tee umask uname vmsplice"""
_NOT_DEFAULT_CALLS = """
    clone clone3 file_getattr file_setattr io_uring_enter io_uring_register io_uring_setup mbind migrate_pages
    move_pages process_madvise set_mempolicy set_mempolicy_home_node setns socket unshare"""
DEFAULT = (expand(_DEFAULT_GROUPS) | expand(_DEFAULT_CALLS.split())) - expand(_NOT_DEFAULT_CALLS.split())
"""Calls that the default filter allows with all arguments: a reach like that of Docker's default profile. `clone`,
`socket` and `personality` are allowed with some arguments."""

BY_CAPABILITY = {
    name: frozenset(text.split())
    for name, text in {
        "DAC_READ_SEARCH": "open_by_handle_at",
        "SYS_ADMIN": """
            bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie lsm_get_self_attr
            lsm_list_modules lsm_set_self_attr mount mount_setattr move_mount open_tree open_tree_attr perf_event_open
            pivot_root quotactl quotactl_fd setdomainname sethostname setns syslog umount2 unshare""",
        "SYS_BOOT": "reboot",
        "SYS_CHROOT": "chroot",
        "SYS_MODULE": "delete_module finit_module init_module",
        "SYS_PACCT": "acct",
        "SYS_PTRACE": "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace",
        "SYS_RAWIO": "ioperm iopl",
        "SYS_TIME": "clock_settime settimeofday",
        "SYS_TTY_CONFIG": "vhangup",
        "SYS_NICE": "get_mempolicy mbind migrate_pages move_pages set_mempolicy set_mempolicy_home_node",
        "SYSLOG": "syslog",
        "BPF": "bpf",
        "PERFMON": "perf_event_open",
    }.items()
}
"""By capability, the calls that the default filter allows in addition if it is in the bounding set."""

ADDRESS_FAMILIES = {
    "AF_UNIX": 1, "AF_LOCAL": 1, "AF_INET": 2, "AF_AX25": 3, "AF_IPX": 4, "AF_APPLETALK": 5, "AF_NETROM": 6,
    "AF_BRIDGE": 7, "AF_ATMPVC": 8, "AF_X25": 9, "AF_INET6": 10, "AF_ROSE": 11, "AF_DECnet": 12, "AF_NETBEUI": 13,
    "AF_SECURITY": 14, "AF_KEY": 15, "AF_NETLINK": 16, "AF_ROUTE": 16, "AF_PACKET": 17, "AF_ASH": 18, "AF_ECONET": 19,
    "AF_ATMSVC": 20, "AF_RDS": 21, "AF_SNA": 22, "AF_IRDA": 23, "AF_PPPOX": 24, "AF_WANPIPE": 25, "AF_LLC": 26,
    "AF_IB": 27, "AF_MPLS": 28, "AF_CAN": 29, "AF_TIPC": 30, "AF_BLUETOOTH": 31, "AF_IUCV": 32, "AF_RXRPC": 33,
    "AF_ISDN": 34, "AF_PHONET": 35, "AF_IEEE802154": 36, "AF_CAIF": 37, "AF_ALG": 38, "AF_NFC": 39, "AF_VSOCK": 40,
    "AF_KCM": 41, "AF_QIPCRTR": 42, "AF_SMC": 43, "AF_XDP": 44, "AF_MCTP": 45,
}  # fmt: skip
"""Numbers of address families, address_families(7), linux/socket.h."""
LAST_FAMILY = max(ADDRESS_FAMILIES.values())
REFUSED_FAMILIES = frozenset((12, 19, 20, 23, 25, 34, 37, 38, 40))
"""Families that the default filter refuses: AF_ALG and AF_VSOCK, and obsolete ones without users."""
