"""New, changed and removed mounts. Each is made in a mount namespace of its own if possible, and undone."""

import contextlib
import errno
import os
from collections.abc import Iterator

from harness import (
    MNT_DETACH,
    MS_BIND,
    MS_REC,
    MS_REMOUNT,
    RefusedError,
    attempt,
    call,
    empty_directory,
    keep_mounts_private,
    lines,
    passes,
    targets,
    variant,
)


@contextlib.contextmanager
def mounted(kind: bytes | None, source: bytes, flags: int = 0, options: bytes | None = None) -> Iterator[str]:
    """Mount on a directory that can hold it; unmount at the end."""
    keep_mounts_private()
    with contextlib.ExitStack() as stack:
        try:
            place = stack.enter_context(empty_directory())
        except RefusedError:
            place = "/mnt" if os.path.isdir("/mnt") else "/tmp"
        call("mount", source, place.encode(), kind, flags, options)
        try:
            yield place
        finally:
            call("umount2", place.encode(), MNT_DETACH)


def new_mount(kind: str, options: str = "") -> str:
    """Mount a file system of this type."""
    with mounted(kind.encode(), b"none", 0, options.encode()) as place:
        return f"mounted, {len(os.listdir(place))} entries"


for _kind, _options in (
    ("tmpfs", ""),
    ("proc", ""),
    ("sysfs", ""),
    ("cgroup2", ""),
    ("cgroup", "devices"),
    ("devpts", ""),
    ("mqueue", ""),
    ("debugfs", ""),
    ("tracefs", ""),
    ("securityfs", ""),
    ("bpf", ""),
    ("binfmt_misc", ""),
    ("devtmpfs", ""),
    ("fusectl", ""),
):
    _text = f"Mount a new {'cgroup file system of version 1' if _kind == 'cgroup' else _kind}"
    variant(new_mount, f"mount-{_kind}", _text, _kind, _options)


@attempt()
def mount_overlay() -> str:
    """Mount an overlay of /etc."""
    with mounted(b"overlay", b"none", 0, b"lowerdir=/etc:/usr"):
        return "mounted"


@attempt()
def mount_bind() -> str:
    """Bind-mount / elsewhere."""
    with mounted(None, b"/", MS_BIND):
        return "mounted"


@attempt()
def mount_disk() -> str:
    """Mount a disk (of a name that does not exist, which fails after the check)."""
    return passes("mount", b"/dev/no-such-disk", b"/", b"ext4", 0, None, but=(errno.ENOENT, errno.ENOTBLK))


def remount(path: str) -> str:
    """Make a mount writable again, in place or as a copy of it."""
    private = keep_mounts_private()
    flags = os.statvfs(path).f_flag
    if not flags & os.ST_RDONLY and os.path.ismount(path):
        if not private:
            raise RefusedError("it is writable, and no namespace for the attempt")
        call("mount", None, path.encode(), None, MS_REMOUNT | MS_BIND, None)
        return "remounted; it was writable before"
    call("mount", None, path.encode(), None, MS_REMOUNT | MS_BIND, None)
    if not private:
        call("mount", None, path.encode(), None, MS_REMOUNT | MS_BIND | 1, None)
    return "remounted writable"


variant(remount, "remount-proc-sys", "Make /proc or a part of it writable", "/proc")
variant(remount, "remount-sys", "Make /sys writable", "/sys")


@attempt()
def remount_super() -> str:
    """Change the options of the root file system (a remount with an option that does not exist)."""
    return passes("mount", None, b"/", None, MS_REMOUNT, b"no-such-option", but=(errno.EINVAL, errno.ENOENT, 0))


@attempt()
def unmount() -> str:
    """Unmount (a directory that is not a mount point, which fails after the check)."""
    if os.path.ismount("/usr/lib"):
        raise RefusedError("a mount point in this sandbox")
    return passes("umount2", b"/usr/lib", 0, but=(errno.EINVAL, errno.EBUSY))


@attempt()
def unmount_proc_part() -> str:
    """Unmount what covers a part of /proc, /sys or /dev."""
    if not keep_mounts_private():
        raise RefusedError("no namespace for the attempt")
    points = [line.split()[4] for line in lines("/proc/self/mountinfo")]
    covers = [point for point in points if point.startswith(("/proc/", "/sys/", "/dev/"))]
    if not covers:
        call("umount2", b"/proc", MNT_DETACH)
        return "unmounted /proc"
    call("umount2", covers[-1].encode(), MNT_DETACH)
    return f"unmounted {covers[-1]}"


@attempt()
def make_shared() -> str:
    """Change the propagation of /, so that the host sees later mounts (to what it is)."""
    keep_mounts_private()
    call("mount", None, b"/", None, MS_REC | (1 << 19), None)  # MS_SLAVE
    return "changed"


@attempt()
def fsopen_tmpfs() -> str:
    """Mount with the newer calls (fsopen, fsconfig, fsmount)."""
    fd = call("fsopen", b"tmpfs", 1)
    call("fsconfig", fd, 6, None, None, 0)
    call("fsmount", fd, 1, 0)
    return "made a detached mount"


@attempt()
def fsopen_proc() -> str:
    """Reach a new, complete /proc by a detached mount (fsopen)."""
    fd = call("fsopen", b"proc", 1)
    call("fsconfig", fd, 6, None, None, 0)
    mount = call("fsmount", fd, 1, 0)
    os.close(os.open("sys/kernel/core_pattern", os.O_WRONLY, dir_fd=mount))
    return "opened core_pattern for writing"


@attempt()
def open_tree_clone() -> str:
    """Copy a mount (open_tree with OPEN_TREE_CLONE)."""
    at_fdcwd = -100
    call("open_tree", at_fdcwd, b"/", 1 | os.O_CLOEXEC)
    return "copied"


@attempt()
def move_mount() -> str:
    """Move a mount (of a path that does not exist, which fails after the check)."""
    return passes("move_mount", -100, b"/no-such", -100, b"/no-such", 0, but=(errno.ENOENT,))


@attempt()
def mount_setattr() -> str:
    """Change a mount (mount_setattr, of a path that does not exist)."""
    attributes = (0).to_bytes(8, "little") + (1).to_bytes(8, "little") + bytes(16)
    return passes("mount_setattr", -100, b"/no-such", 0, attributes, 32, but=(errno.ENOENT,))


@attempt()
def pivot_root() -> str:
    """Change the root mount (pivot_root, of a path that does not exist)."""
    return passes("pivot_root", b"/no-such", b"/no-such", but=(errno.ENOENT,))


@attempt()
def chroot() -> str:
    """Change the root directory."""
    call("chroot", b"/usr")
    return "changed"


@attempt()
def chroot_escape() -> str:
    """Leave the root directory by a chroot below an open directory."""
    root = os.stat("/")
    fd = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    below = next(entry.path for entry in os.scandir("/") if entry.is_dir(follow_symlinks=False))
    call("chroot", below.encode())
    os.fchdir(fd)
    for _ in range(64):
        os.chdir("..")
    found = os.stat(".")
    if (found.st_dev, found.st_ino) == (root.st_dev, root.st_ino):
        raise RefusedError("at the same root")
    return "reached another directory above"


@attempt()
def runtime_directory() -> str:
    """See the supervisor's files in its runtime directory."""
    names = os.listdir(str(targets["runtime"]))
    if "state.json" not in names and "keeper.sock" not in names:
        raise RefusedError(f"nothing of the supervisor: {names}")
    return "saw them"


@attempt()
def runtime_directory_uncovered() -> str:
    """Unmount what covers the supervisor's runtime directory."""
    path = str(targets["runtime"])
    private = keep_mounts_private()
    if not private and not os.path.ismount(path):
        raise RefusedError("not a mount, and no namespace for the attempt")
    if os.path.ismount(path):
        call("umount2", path.encode(), MNT_DETACH)
    if "keeper.sock" not in os.listdir(path):
        raise RefusedError("nothing below it")
    return "uncovered"


@attempt()
def runtime_directory_copied() -> str:
    """Find the supervisor's files in a copy of the mounts without what covers them (a bind mount of /)."""
    path = str(targets["runtime"])
    with mounted(None, b"/", MS_BIND) as place:
        if os.path.exists(f"{place}{path}/keeper.sock"):
            return "found them"
    raise RefusedError("not below the copy")
