"""Mounting: mount(2), umount2(2), mount_setattr(2), and the option words of fstab(5) and OCI's `mounts[].options`."""

from __future__ import annotations

import ctypes
import errno
import os

from nsupervisor.linux.syscalls import last_error, libc
from nsupervisor.mount_data import value_paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_REMOUNT = 0x20
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x4_0000
MS_SLAVE = 0x8_0000
MNT_DETACH = 2

SYS_OPEN_TREE = 428  # Linux 5.2
SYS_MOVE_MOUNT = 429  # Linux 5.2
SYS_FSOPEN = 430  # Linux 5.2
SYS_FSCONFIG = 431  # Linux 5.2
SYS_FSMOUNT = 432  # Linux 5.2
SYS_MOUNT_SETATTR = 442  # Linux 5.12
_FSOPEN_CLOEXEC, _FSMOUNT_CLOEXEC = 1, 1
_FSCONFIG_SET_FLAG, _FSCONFIG_SET_STRING, _FSCONFIG_CMD_CREATE = 0, 1, 6
OPEN_TREE_CLONE = 0x1
MOVE_MOUNT_F_EMPTY_PATH = 0x4
MOVE_MOUNT_T_EMPTY_PATH = 0x40
_AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000
ATTR_RDONLY, ATTR_NOSUID, ATTR_NODEV, ATTR_NOEXEC = 0x1, 0x2, 0x4, 0x8
"""MOUNT_ATTR_* of mount_setattr(2)."""
_ATTR_ATIME_MASK = 0x70

# word: (flag for mount(2), attribute for mount_setattr(2), whether the word sets or clears them)
_FLAG_WORDS: dict[str, tuple[int, int, bool]] = {
    "ro": (MS_RDONLY, ATTR_RDONLY, True),
    "rw": (MS_RDONLY, ATTR_RDONLY, False),
    "nosuid": (MS_NOSUID, ATTR_NOSUID, True),
    "suid": (MS_NOSUID, ATTR_NOSUID, False),
    "nodev": (MS_NODEV, ATTR_NODEV, True),
    "dev": (MS_NODEV, ATTR_NODEV, False),
    "noexec": (MS_NOEXEC, ATTR_NOEXEC, True),
    "exec": (MS_NOEXEC, ATTR_NOEXEC, False),
    "nodiratime": (0x800, 0x80, True),
    "diratime": (0x800, 0x80, False),
    "nosymfollow": (0x100, 0x20_0000, True),
    "symfollow": (0x100, 0x20_0000, False),
}
# The access time options exclude each other: one field of three bits among the attributes.
_ATIME_WORDS: dict[str, tuple[int, int]] = {
    "relatime": (0x20_0000, 0x00),
    "noatime": (0x400, 0x10),
    "strictatime": (0x100_0000, 0x20),
}
# These options belong to the file system as a whole, so a bind mount can't have them.
_SUPERBLOCK_WORDS: dict[str, int] = {"sync": 0x10, "dirsync": 0x80}
_PROPAGATION_WORDS: dict[str, int] = {
    "unbindable": 0x2_0000,
    "runbindable": 0x2_0000 | MS_REC,
    "private": MS_PRIVATE,
    "rprivate": MS_PRIVATE | MS_REC,
    "slave": MS_SLAVE,
    "rslave": MS_SLAVE | MS_REC,
    "shared": 0x10_0000,
    "rshared": 0x10_0000 | MS_REC,
}


class MountOptions:
    """The meaning of a list of option words.

    `flags`: for mount(2). `set_attributes`, `clear_attributes`: for mount_setattr(2). `data`: for the file system.
    """

    __slots__ = (
        "clear_attributes",
        "data",
        "flags",
        "is_bind",
        "is_recursive",
        "propagation",
        "set_attributes",
        "superblock_options",
    )

    def __init__(self, words: Iterable[str] = ()) -> None:
        self.is_bind = False
        self.is_recursive = False
        self.flags = 0
        self.set_attributes = 0
        self.clear_attributes = 0
        self.propagation: list[int] = []
        self.superblock_options: list[str] = []
        data = []
        for word in words:
            if word in _FLAG_WORDS:
                flag, attribute, is_set = _FLAG_WORDS[word]
                self.flags = self.flags | flag if is_set else self.flags & ~flag
                self.set_attributes = self.set_attributes | attribute if is_set else self.set_attributes & ~attribute
                self.clear_attributes = (
                    self.clear_attributes & ~attribute if is_set else self.clear_attributes | attribute
                )
            elif word in _ATIME_WORDS:
                flag, attribute = _ATIME_WORDS[word]
                self.flags |= flag
                self.set_attributes = self.set_attributes & ~_ATTR_ATIME_MASK | attribute
                self.clear_attributes |= _ATTR_ATIME_MASK
            elif word in ("bind", "rbind"):
                self.is_bind = True
                self.is_recursive = word == "rbind"
            elif word in _PROPAGATION_WORDS:
                self.propagation.append(_PROPAGATION_WORDS[word])
            elif word in _SUPERBLOCK_WORDS:
                self.flags |= _SUPERBLOCK_WORDS[word]
                self.superblock_options.append(word)
            elif word != "defaults":
                data.append(word)
        self.data = ",".join(data)


class Mount:
    """One mount to make: `fstype` is "bind" or a file system type, as in /proc/filesystems.

    Raises:
        ValueError: options that a bind mount can't have, a bind mount without a source, a path that isn't absolute.
    """

    __slots__ = ("arguments", "destination", "fstype", "options", "source")

    def __init__(self, kind: str, source: str | None, destination: str, options: Iterable[str] = ()) -> None:
        self.arguments = (kind, source, destination, tuple(options))
        self.options = MountOptions(options)
        self.fstype = "bind" if self.options.is_bind else kind
        self.destination = destination
        self.source = source or kind
        if not destination.startswith("/"):
            raise ValueError(f"the destination of a mount must be an absolute path, not {destination!r}")
        if self.fstype == "bind":
            if not source or not source.startswith("/"):
                raise ValueError(f"the source of a bind mount must be an absolute path, not {source!r}")
            refused = self.options.data or ",".join(self.options.superblock_options)
            if refused:
                raise ValueError(f"the bind mount on {destination} can't have the option {refused!r}")

    def layer_paths(self) -> list[str]:
        """Return the paths that a mount of a file system may be built of: its source, and all values of its options.

        For example "/lower" for the option "lowerdir=/lower" of an overlay. Other values, such as a size, are returned
        as paths too; relative ones are relative to "/".
        """
        return [self.source] * self.source.startswith("/") + value_paths(self.options.data)

    def mount_file_system(self, destination: int, source: str, data: str) -> None:
        """Mount a file system on a directory; `destination` is its descriptor.

        `source`, `data`: the source and the options for the file system, with its paths as they were found. The
        propagation is left to `propagate`, as the new mount has no descriptor.

        Raises:
            OSError: see mount(2).
        """
        os.fchdir(destination)
        try:
            mount(source, ".", self.fstype, self.options.flags, data)
        finally:
            os.chdir("/")

    def propagate(self, root: int) -> None:
        """Set the propagation of a mounted file system; `root` is a descriptor of its root. Raises OSError."""
        os.fchdir(root)
        try:
            for propagation in self.options.propagation:
                mount(None, ".", None, propagation)
        finally:
            os.chdir("/")

    def bind(self, destination: int, source: int) -> None:
        """Make the bind mount, with its attributes and propagation.

        `destination`, `source`: descriptors of what to mount on, and of what to show there. No path is looked up, so it
        does not matter whether others have replaced a part of one since.

        A bind mount keeps the attributes of the mount it shows, except for those that the options name: in a user
        namespace the attributes from outside are locked, and removing one is EPERM. With "rbind" the options apply to
        submounts too. It is private if the options name no propagation: what is mounted below its source later would
        appear in it with other attributes, for instance writable in a read-only mount.

        Raises:
            OSError: see mount(2), open_tree(2) and mount_setattr(2); ENOSYS for options on a bind mount before Linux
                5.12.
        """
        tree, later = self._copy(source)
        try:
            move_mount(tree, "", destination)
            for propagation in later:
                mount(None, f"/proc/self/fd/{tree}", None, propagation)
        finally:
            os.close(tree)

    def copy(self, source: int) -> int:
        """Return a descriptor of what `bind` mounts, not yet mounted anywhere. Raises OSError, as `bind` does."""
        tree, later = self._copy(source)
        if later:
            os.close(tree)
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        return tree

    def _copy(self, source: int) -> tuple[int, list[int]]:
        """Return a detached copy, and each propagation that can be set only when it is mounted, before Linux 5.12."""
        options = self.options
        tree = open_tree("", options.is_recursive, source)
        try:
            if options.set_attributes or options.clear_attributes:
                set_tree_attributes(tree, options.set_attributes, options.clear_attributes, options.is_recursive)
            later = []
            for propagation in options.propagation or (MS_PRIVATE | MS_REC,):
                try:
                    set_tree_propagation(tree, propagation)
                except OSError as error:
                    if error.errno != errno.ENOSYS:
                        raise
                    later.append(propagation)
        except BaseException:
            os.close(tree)
            raise
        return tree, later

    def make(self, source: str, data: str) -> int:
        """Make the file system; return a descriptor of its root, not yet mounted anywhere: fsopen(2), Linux 5.2.

        `source`, `data`: as for `mount_file_system`. Raises OSError.
        """
        options = self.options
        words = [word for word, flag in (("ro", MS_RDONLY), ("sync", 0x10), ("dirsync", 0x80)) if options.flags & flag]
        tree = new_file_system(self.fstype, ",".join([*words, *[data] * bool(data)]), source, options.set_attributes)
        try:
            for propagation in options.propagation:
                set_tree_propagation(tree, propagation)
        except BaseException:
            os.close(tree)
            raise
        return tree


def mount(source: str | None, target: str, fstype: str | None, flags: int, data: str = "") -> None:
    """Call mount(2). Raises OSError."""
    encoded = [None if text is None else _encode(text) for text in (source, target, fstype, data or None)]
    if libc.mount(encoded[0], encoded[1], encoded[2], ctypes.c_ulong(flags), encoded[3]) != 0:
        raise last_error(f"mount {source or fstype or ''} on {target}")


def open_tree(path: str, recursive: bool = False, directory: int = _AT_FDCWD) -> int:
    """A new mount of what is at `path`, as a bind mount would be, but attached nowhere: a descriptor, close-on-exec.

    `recursive`: with all mounts below it. `directory`: what `path` is relative to; "" is that itself. open_tree(2) with
    OPEN_TREE_CLONE.
    """
    flags = OPEN_TREE_CLONE | os.O_CLOEXEC | (AT_RECURSIVE if recursive else 0) | (0 if path else AT_EMPTY_PATH)
    fd: int = libc.syscall(SYS_OPEN_TREE, directory, _encode(path), flags)
    if fd < 0:
        raise last_error(f"open the tree {path}")
    return fd


def new_file_system(fstype: str, data: str = "", source: str = "", attributes: int = 0) -> int:
    """Make a file system that is mounted nowhere; return a descriptor of its root. fsopen(2), fsmount(2), Linux 5.2.

    `data`: its options, "KEY=VALUE" or "KEY" with commas between them. `source`: "" if it has none. `attributes`: of
    the mount, for mount_setattr(2). Raises OSError.
    """
    context = libc.syscall(SYS_FSOPEN, _encode(fstype), _FSOPEN_CLOEXEC)
    if context < 0:
        raise last_error(f"make a {fstype}")
    try:
        options = [("source", "=", source)] * bool(source)
        options += [option.partition("=") for option in data.split(",") if option]
        for key, equals, value in options:
            command = _FSCONFIG_SET_STRING if equals else _FSCONFIG_SET_FLAG
            text = _encode(value) if equals else None
            if libc.syscall(SYS_FSCONFIG, context, command, _encode(key), text, 0) != 0:
                raise last_error(f"set the option {key}{equals}{value} of a {fstype}")
        if libc.syscall(SYS_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0) != 0:
            raise last_error(f"make a {fstype}")
        tree: int = libc.syscall(SYS_FSMOUNT, context, _FSMOUNT_CLOEXEC, attributes)
        if tree < 0:
            raise last_error(f"mount a {fstype}")
        return tree
    finally:
        os.close(context)


def move_mount(tree: int, target: str, directory: int = _AT_FDCWD) -> None:
    """Attach what `open_tree` gave to `target`, relative to `directory`; "" is that itself. move_mount(2)."""
    flags = MOVE_MOUNT_F_EMPTY_PATH | (0 if target else MOVE_MOUNT_T_EMPTY_PATH)
    if libc.syscall(SYS_MOVE_MOUNT, tree, b"", directory, _encode(target), flags) != 0:
        raise last_error(f"attach a mount on {target}")


def umount2(target: str, flags: int = 0) -> None:
    """Call umount2(2); `flags` may be MNT_DETACH. Raises OSError."""
    if libc.umount2(_encode(target), flags) != 0:
        raise last_error(f"unmount {target}")


def pivot_root(new_root: int) -> None:
    """Make a mount the root of this mount namespace, and detach all others, pivot_root(2). Ends in the new root.

    `new_root`: a descriptor of its root directory. All processes of the namespace that had the old root get the new
    one. Raises OSError.
    """
    os.fchdir(new_root)
    # The old root is mounted over the new one, so that no directory is needed for it (pivot_root(2), NOTES).
    if libc.pivot_root(b".", b".") != 0:
        raise last_error("change the root mount")
    umount2(".", MNT_DETACH)
    os.chdir("/")


def set_tree_attributes(tree: int, set_attributes: int, clear_attributes: int, recursive: bool) -> None:
    """Change some attributes of a mount, or of it and all below it; keep the others, mount_setattr(2)."""
    _set_attributes(tree, set_attributes, clear_attributes, 0, recursive)


def set_tree_propagation(tree: int, propagation: int) -> None:
    """Set the propagation of a mount: a flag of mount(2), with MS_REC also of all below it. mount_setattr(2)."""
    _set_attributes(tree, 0, 0, propagation & ~MS_REC, bool(propagation & MS_REC))


def _set_attributes(tree: int, set_: int, clear: int, propagation: int, recursive: bool) -> None:
    # struct mount_attr: attr_set, attr_clr, propagation, userns_fd
    attributes = (ctypes.c_uint64 * 4)(set_, clear, propagation)
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    size = ctypes.c_size_t(ctypes.sizeof(attributes))
    if libc.syscall(SYS_MOUNT_SETATTR, tree, b"", flags, attributes, size) != 0:
        raise last_error("set the attributes of a mount")


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
