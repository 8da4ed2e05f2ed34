"""Device nodes: those that are there, and those that the workload makes. They are only opened."""

import fcntl
import os
import signal
import stat
import struct
import termios

from harness import UNIQUE, RefusedError, attempt, first, lines, opens, targets, variant, writable_directories

NULL = os.makedev(1, 3)


def make_and_open(kind: int, device: int, flags: int | None) -> str:
    """Make a node in any directory that is writable; open it if `flags` are given; remove it."""

    def one(directory: str) -> str:
        path = f"{directory}/.escape-node-{UNIQUE}"
        os.mknod(path, kind | 0o600, device)
        try:
            return f"made a node in {directory}" if flags is None else opens(path, flags)
        finally:
            os.unlink(path)

    found = writable_directories()
    if not found:
        raise RefusedError("no directory is writable")
    return first([lambda d=d: one(d) for d in found])


def device(path: str, kind: int, number: int, flags: int = os.O_RDONLY) -> str:
    """Open a device by its node, or else by a node of the own making."""
    tries = [lambda: make_and_open(kind, number, flags)]
    if os.path.exists(path) and stat.S_IFMT(os.stat(path).st_mode) == kind:
        tries.insert(0, lambda: opens(path, flags))
    return first(tries)


variant(make_and_open, "mknod-null", "Make a device node, of a harmless device (1:3)", stat.S_IFCHR, NULL, None)
variant(make_and_open, "mknod-block", "Make a node of a disk", stat.S_IFBLK, os.makedev(254, 0), None)

for _name, _major, _minor, _flags in (
    ("mem", 1, 1, os.O_RDONLY),
    ("kmsg", 1, 11, os.O_RDONLY),
    ("console", 5, 1, os.O_WRONLY),
    ("tty1", 4, 1, os.O_WRONLY),
    ("ttyS0", 4, 64, os.O_RDONLY),
    ("vcs", 7, 0, os.O_RDONLY),
    ("hwrng", 10, 183, os.O_RDONLY),
    ("kvm", 10, 232, os.O_RDWR),
    ("fuse", 10, 229, os.O_RDWR),
    ("loop-control", 10, 237, os.O_RDWR),
    ("userfaultfd", 10, -1, os.O_RDWR),
    ("cpu_dma_latency", 10, -1, os.O_RDONLY),
    ("vga_arbiter", 10, -1, os.O_RDONLY),
    ("btrfs-control", 10, 234, os.O_RDONLY),
    ("udmabuf", 10, -1, os.O_RDONLY),
):
    variant(
        device,
        f"dev-{_name}",
        f"open /dev/{_name}",
        f"/dev/{_name}",
        stat.S_IFCHR,
        os.makedev(_major, max(_minor, 0)) if _minor >= 0 else NULL + 0x100,
        _flags,
    )


@attempt()
def dev_disk() -> str:
    """Read the host's disk, the first block device of /proc/partitions."""
    tries = []
    for line in lines("/proc/partitions"):
        fields = line.split()
        if len(fields) == 4 and fields[0].isdigit() and not fields[3].startswith(("loop", "zram", "ram")):
            number = os.makedev(int(fields[0]), int(fields[1]))
            tries.append(lambda p=f"/dev/{fields[3]}", n=number: device(p, stat.S_IFBLK, n))
    return first(tries)


@attempt()
def dev_loop() -> str:
    """Open a loop device."""
    return device("/dev/loop0", stat.S_IFBLK, os.makedev(7, 0))


@attempt()
def host_device_nodes() -> str:
    """See device nodes of the host in /dev, more than those of a terminal and of randomness."""
    usual = {"null", "zero", "full", "random", "urandom", "tty", "ptmx", "console"}
    found = []
    for name in os.listdir("/dev"):
        mode = os.lstat(f"/dev/{name}").st_mode
        if (stat.S_ISCHR(mode) or stat.S_ISBLK(mode)) and name not in usual:
            found.append(name)
    if not found:
        raise RefusedError("none")
    return f"{len(found)} nodes, such as {sorted(found)[0]}"


@attempt()
def host_terminals() -> str:
    """See the terminals of the host in /dev/pts."""
    path = f"/dev/pts/{targets['terminal']}"
    status = os.stat(path)
    if (status.st_dev, status.st_ino) != tuple(targets["terminal_inode"]):  # type: ignore[arg-type]
        raise RefusedError("another terminal")
    return opens(path, os.O_RDONLY)


@attempt()
def tun() -> str:
    """Configure a tunnel (tunsetiff without a kind, which fails after the check)."""
    tunsetiff = 0x400454CA
    fd = -1
    path = "/dev/net/tun"
    if not os.path.exists(path):
        directory = next(iter(writable_directories()), "")
        if not directory:
            raise RefusedError("no directory is writable")
        path = f"{directory}/.escape-tun-{UNIQUE}"
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(10, 200))
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        fcntl.ioctl(fd, tunsetiff, struct.pack("16sH22x", b"", 0))
    except OSError as error:
        if error.errno != 22:
            raise
    finally:
        if fd >= 0:
            os.close(fd)
        if path != "/dev/net/tun":
            os.unlink(path)
    return "allowed, then EINVAL for its arguments"


@attempt()
def tiocsti() -> str:
    """Type into the own terminal (TIOCSTI), as into one that is shared with a shell outside."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # of the terminal's end
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
    fcntl.ioctl(slave, termios.TIOCSTI, b"x")
    os.close(master)
    return "typed"


@attempt()
def tioccons() -> str:
    """Redirect the host's console (TIOCCONS to a terminal that is not writable, which fails after the check)."""
    master, slave = os.openpty()
    fd = os.open(os.ttyname(slave), os.O_RDONLY | os.O_NOCTTY)
    try:
        fcntl.ioctl(fd, termios.TIOCCONS, 0)
    except OSError as error:
        if error.errno != 9:
            raise
    os.close(master)
    return "allowed, then EBADF for its arguments"
