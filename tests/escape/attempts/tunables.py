"""Files of /proc and /sys that change or reveal the kernel: only opened, or given the value that they have."""

import glob
import os

from harness import RefusedError, attempt, first, lines, opens, variant, write_same


def sysctl(*names: str) -> str:
    """Write the same value back."""
    return first([lambda name=name: write_same(f"/proc/sys/{name}") for name in names])


for _name, _title, *_files in (
    (
        "core-pattern",
        "write kernel.core_pattern, which names a program that the host runs as root",
        "kernel/core_pattern",
    ),
    (
        "modprobe-path",
        "write kernel.modprobe or kernel.poweroff_cmd, which the host runs as root",
        "kernel/modprobe",
        "kernel/poweroff_cmd",
    ),
    ("sysctl-kernel", "write a sysctl of the kernel (kernel.panic)", "kernel/panic"),
    ("sysctl-printk", "write kernel.printk, the level of the host's console", "kernel/printk"),
    ("sysctl-vm", "write a sysctl of the memory management (vm.overcommit_memory)", "vm/overcommit_memory"),
    ("sysctl-drop-caches", "write vm.swappiness", "vm/swappiness"),
    ("sysctl-fs", "write a sysctl of the file systems (fs.protected_symlinks)", "fs/protected_symlinks"),
    ("sysctl-randomize", "write kernel.randomize_va_space", "kernel/randomize_va_space"),
    ("sysctl-bpf", "write kernel.perf_event_paranoid", "kernel/perf_event_paranoid"),
    ("sysctl-pid-max", "write kernel.threads-max", "kernel/threads-max"),
    ("sysctl-user", "write a limit of namespaces (user.max_user_namespaces)", "user/max_user_namespaces"),
    ("sysctl-net", "write a sysctl of the network (net.ipv4.ip_default_ttl)", "net/ipv4/ip_default_ttl"),
    ("sysctl-ipc", "write a sysctl of the IPC namespace (kernel.shmmax)", "kernel/shmmax"),
    ("sysctl-hostname", "write kernel.domainname", "kernel/domainname"),
):
    variant(sysctl, _name, _title, *_files)


@attempt()
def sysrq_trigger() -> str:
    """Open /proc/sysrq-trigger, which reboots or crashes the host, for writing."""
    return opens("/proc/sysrq-trigger", os.O_WRONLY)


@attempt()
def irq_affinity() -> str:
    """Open the processors of an interrupt for writing."""
    return first([lambda p=p: opens(p, os.O_WRONLY) for p in sorted(glob.glob("/proc/irq/*/smp_affinity"))[:4]])


@attempt()
def proc_bus_pci() -> str:
    """Open the registers of a PCI device for writing."""
    return first([lambda p=p: opens(p, os.O_RDWR) for p in sorted(glob.glob("/proc/bus/pci/*/*"))[:4]])


@attempt()
def proc_mtrr() -> str:
    """Open /proc/mtrr, the caching of physical memory, for writing."""
    return opens("/proc/mtrr", os.O_RDWR)


def read(path: str, marks: bool = False) -> str:
    """Read some bytes; with `marks`, require an address that is not zero."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        data = os.read(fd, 4096)
    finally:
        os.close(fd)
    if not data:
        raise RefusedError("empty")
    if marks and not any(line.split()[0].strip(b"0-") for line in data.splitlines() if line.strip()):
        raise RefusedError("addresses are hidden")
    return f"read {len(data)} bytes"


for _name, _path, _title in (
    ("proc-kcore", "/proc/kcore", "read the memory of the kernel (/proc/kcore)"),
    ("proc-keys", "/proc/keys", "read the list of keys (/proc/keys)"),
    ("proc-timer-list", "/proc/timer_list", "read the timers of all processes (/proc/timer_list)"),
    ("proc-interrupts", "/proc/interrupts", "read /proc/interrupts, which reveals key strokes"),
    ("proc-slabinfo", "/proc/slabinfo", "read /proc/slabinfo"),
    ("proc-vmallocinfo", "/proc/vmallocinfo", "read /proc/vmallocinfo"),
    ("proc-kpageflags", "/proc/kpageflags", "read the state of all pages of memory (/proc/kpageflags)"),
    ("proc-pagetypeinfo", "/proc/pagetypeinfo", "read /proc/pagetypeinfo"),
    ("proc-acpi", "/proc/acpi/wakeup", "read /proc/acpi"),
):
    variant(read, _name, _title, _path)
variant(read, "proc-kallsyms", "Read addresses of the kernel (/proc/kallsyms)", "/proc/kallsyms", True)
variant(read, "proc-iomem", "Read addresses of devices (/proc/iomem)", "/proc/iomem", True)


@attempt()
def proc_kmsg() -> str:
    """Open the messages of the kernel (/proc/kmsg)."""
    fd = os.open("/proc/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    covered = os.fstat(fd).st_dev != os.stat("/proc/version").st_dev
    os.close(fd)
    if covered:
        raise RefusedError("another file is in its place")
    return "opened"


@attempt()
def pagemap() -> str:
    """Read physical addresses of the own memory (/proc/self/pagemap)."""
    with open("/proc/self/pagemap", "rb", buffering=0) as file:
        for line in lines("/proc/self/maps"):
            start = int(line.split("-")[0], 16)
            if start >> 63:
                continue
            file.seek(start // 4096 * 8)
            entry = int.from_bytes(file.read(8), "little")
            if entry & ((1 << 55) - 1):
                return "read a frame number"
    raise RefusedError("frame numbers are hidden")


def sys_write(*patterns: str) -> str:
    """Give the first file that exists the value that it has."""
    found = [path for pattern in patterns for path in sorted(glob.glob(pattern))[:3]]
    return first([lambda p=p: write_same(p) for p in found])


for _name, _title, *_patterns in (
    (
        "sys-kernel",
        "write a setting in /sys/kernel",
        "/sys/kernel/profiling",
        "/sys/kernel/rcu_expedited",
        "/sys/kernel/mm/transparent_hugepage/enabled",
    ),
    (
        "sys-mm",
        "write a setting of the memory management in /sys",
        "/sys/kernel/mm/transparent_hugepage/defrag",
        "/sys/kernel/mm/ksm/run",
        "/sys/kernel/mm/swap/vma_ra_enabled",
    ),
    (
        "sys-block",
        "write a setting of a disk in /sys/block",
        "/sys/block/vda/queue/read_ahead_kb",
        "/sys/block/*/queue/read_ahead_kb",
    ),
    (
        "sys-module",
        "write a parameter of a module in /sys/module",
        "/sys/module/printk/parameters/time",
        "/sys/module/rcupdate/parameters/rcu_cpu_stall_timeout",
        "/sys/module/kernel/parameters/panic",
    ),
    (
        "sys-workqueue",
        "write the processors of the kernel's workers in /sys/devices",
        "/sys/devices/virtual/workqueue/cpumask",
    ),
    ("sys-net", "write a setting of a network device in /sys/class/net", "/sys/class/net/lo/tx_queue_len"),
):
    variant(sys_write, _name, _title, *_patterns)


@attempt()
def uevent_helper() -> str:
    """Write the event of a device, which the host's udev acts on (open only)."""
    return first(
        [lambda p=p: opens(p, os.O_WRONLY) for p in ("/sys/kernel/uevent_helper", "/sys/class/mem/null/uevent")]
    )


@attempt()
def sys_power() -> str:
    """Open /sys/power/state, which suspends the host, for writing."""
    return opens("/sys/power/state", os.O_WRONLY)


@attempt()
def sys_unbind() -> str:
    """Open a driver's "unbind" for writing."""
    return first([lambda p=p: opens(p, os.O_WRONLY) for p in sorted(glob.glob("/sys/bus/*/drivers/*/unbind"))[:8]])


@attempt()
def sys_firmware() -> str:
    """Read tables of the firmware (/sys/firmware)."""
    found = [path for path in glob.glob("/sys/firmware/*/**", recursive=True) if os.path.isfile(path)]
    return first([lambda p=p: read(p) for p in found[:40]])


@attempt()
def sys_powercap() -> str:
    """Read the use of energy, a side channel (/sys/devices/virtual/powercap)."""
    return first([lambda p=p: read(p) for p in glob.glob("/sys/devices/virtual/powercap/*/*")])


def below(*directories: str) -> str:
    """List a directory that is not empty."""
    for directory in directories:
        if names := os.listdir(directory):
            return f"{directory} has {len(names)} entries"
    raise RefusedError("empty")


variant(below, "securityfs", "See securityfs at its usual place", "/sys/kernel/security")


@attempt()
def vmcoreinfo() -> str:
    """Read /sys/kernel/notes, which reveals addresses of the kernel."""
    return read("/sys/kernel/notes")
