"""The view of the file system that a security profile gives a program: devices, and paths hidden or read-only.

`operations` decides, and has no effects: it returns system calls, which a standby performs (plan.py), or a process of
Python (`perform`). `resolve` looks at what there is before: paths that other users control are found as descriptors
(linux/trusted_paths.py) and are mounted by those, all others by their names.

Order: what stays writable is held as a detached copy of its mounts; then /dev is made; then each path is protected, a
directory before those in it, so that the most specific entry for a path decides. A read-only copy of a directory shows
the mounts below it, too. Sources: systemd.exec(5) "Sandboxing", the OCI runtime specification ("Default Devices",
"Masked Paths"), mount_setattr(2), mount_namespaces(7).
"""

from __future__ import annotations

import errno
import functools
import os
import stat
import struct

from nsupervisor.linux import mounts
from nsupervisor.linux.trusted_paths import locate
from nsupervisor.mount_data import ACTIONS, INACCESSIBLE, MASKED, OWN_CGROUP, READ_ONLY, READ_WRITE, TEMPORARY

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import Any

    _Entry = tuple[str, str, bool, bool, bool]
    """Path, action, whether it is a directory, whether it is a mount point, whether it is used by its name.

    After `resolve`, the action may also be `_MOUNT_CGROUP` and the options of a v1 hierarchy; "" for version 2."""

NODES = (
    *(("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9)),
    ("tty", 5, 0),
)
"""The devices that each program has: name, major and minor number."""
LINKS = (
    *(("fd", "/proc/self/fd"), ("stdin", "/proc/self/fd/0"), ("stdout", "/proc/self/fd/1")),
    *(("stderr", "/proc/self/fd/2"), ("ptmx", "pts/ptmx")),
)
_DIRECTORIES = ("pts", "shm", "mqueue")
SYSLOG = "/dev/log"
_OWN_DEVICES = {SYSLOG, *(f"/dev/{name}" for name in (*(node[0] for node in NODES), *dict(LINKS), *_DIRECTORIES))}
TTY_GROUP = 5  # of all distributions with systemd, and of the OCI's runtimes
_DEV_FLAGS = mounts.MS_NOSUID | mounts.MS_NOEXEC
_DEV_OPTIONS = "mode=755,size=4m,nr_inodes=4k"
_MASK_FLAGS = mounts.MS_NOSUID | mounts.MS_NODEV | mounts.MS_NOEXEC | mounts.MS_RDONLY
_MASK_OPTIONS = {MASKED: b"mode=755,size=4k,nr_inodes=2", INACCESSIBLE: b"mode=000,size=4k,nr_inodes=2"}
_TEMPORARY_FLAGS = mounts.MS_NOSUID | mounts.MS_NODEV
_STICKY = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108 - directories for the files of all users
_UMASK = 0o022

_AT_FDCWD = -100
_OPEN_FLAGS = mounts.OPEN_TREE_CLONE | mounts.AT_RECURSIVE | os.O_CLOEXEC
_OPEN_EMPTY = _OPEN_FLAGS | mounts.AT_EMPTY_PATH
_MOVE_FLAGS = mounts.MOVE_MOUNT_F_EMPTY_PATH | mounts.MOVE_MOUNT_T_EMPTY_PATH
_ABSENT = errno.ENOENT, errno.ENOTDIR
_SYSTEM = (
    *("/", "/proc", "/sys", "/dev", "/usr", "/boot", "/efi", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"),
    *("/etc", "/home", "/root", "/run/user", "/tmp", "/var/tmp"),  # noqa: S108
)
"""Directories of root, which are found by their names."""
_KERNEL = ("/proc/", "/sys/", "/usr/lib/")
"""All that is below these belongs to root."""

TREE = 255
"""The number of the result that is a tree of `clone_tree`; `TREE` in setup.c."""


class Operation:
    """A system call with its arguments: an int, bytes for a string, or a `Structure`.

    `save`, `use` and `target`: the numbers of results, as `Plan.call` has them. `text`: the operation in a failure.
    """

    __slots__ = ("accepted", "arguments", "name", "save", "target", "text", "use")

    def __init__(
        self,
        text: str,
        name: str,
        *arguments: int | bytes | Structure,
        use: int = 0,
        target: int = 0,
        save: int = 0,
        accepted: Sequence[int] = (),
    ) -> None:
        self.text = text
        self.name = name
        self.arguments = arguments
        self.use = use
        self.target = target
        self.save = save
        self.accepted = accepted


class Structure(bytes):
    """The bytes of a C structure."""

    __slots__ = ()


_READ_ONLY_ATTRIBUTES = Structure(struct.pack("4Q", mounts.ATTR_RDONLY, 0, 0, 0))
_WRITABLE_ATTRIBUTES = Structure(struct.pack("4Q", 0, mounts.ATTR_RDONLY, 0, 0))
_OPEN_HOW = Structure(struct.pack("3Q", os.O_PATH | os.O_CLOEXEC, 0, 0x04 | 0x02))  # no links, linux/trusted_paths.py


# ---- the specification


def parse(value: Any) -> tuple[Any, ...]:
    """Check the key `sandbox` of a specification; return it as a tuple (devices, options of /proc, paths).

    `{"devices": {"nodes": [PATH, …], "shm_size": BYTES}, "proc": OPTIONS, "paths": [[PATH, ACTION], …]}`, each key
    optional. A path after "-" may be missing. Raises ValueError or TypeError.
    """
    if not isinstance(value, dict) or value.keys() - {"devices", "proc", "paths"}:
        raise ValueError(f"an object with devices, proc and paths is wanted, not {value!r:.80}")
    devices = value.get("devices")
    if devices is not None:
        devices = tuple(devices.get("nodes", ())), int(devices.get("shm_size", 0))
    sandbox = devices, value.get("proc", ""), tuple(map(tuple, value.get("paths", ())))
    _check(sandbox)
    return sandbox


@functools.lru_cache(64)
def _check(sandbox: tuple[Any, ...]) -> None:
    devices, proc, paths = sandbox
    for path in devices[0] if devices is not None else ():
        if not _path(path).removeprefix("-").startswith("/dev/"):
            raise ValueError("a device is in /dev")
    if not isinstance(proc, str):
        raise TypeError(f"options of /proc are a text, not {proc!r:.80}")
    for path, action in paths:
        _path(path)
        if action not in ACTIONS:
            raise ValueError(f"no action is called {action!r:.80}")


def _path(value: Any) -> str:
    path = value.removeprefix("-") if isinstance(value, str) else ""
    if not path.startswith("/") or "\0" in path or ".." in path.split("/"):
        raise ValueError(f"an absolute path without .. is wanted, not {value!r:.80}")
    return str(value)


# ---- what there is


class MissingPathError(OSError):
    """A path of the specification is not there, or another user controls a part of it."""


@functools.lru_cache(256)
def _look_at(path: str) -> tuple[bool, bool] | None:
    """Return of a path of root whether it is a directory and whether something is mounted there; None if it is missing
    or a symbolic link to one that has an entry of its own."""
    try:
        status = os.lstat(path)
    except OSError:
        return None
    if stat.S_ISLNK(status.st_mode):
        return None
    return stat.S_ISDIR(status.st_mode), os.path.ismount(path)


def forget() -> None:
    """Look at all paths again, after a mount on the host."""
    _look_at.cache_clear()
    _resolve_system.cache_clear()
    _hierarchies.cache_clear()
    _show_own_cgroup.cache_clear()


def is_system(path: str) -> bool:
    """Return whether a path of a sandbox is left out if it is missing or a symbolic link."""
    return path in _SYSTEM or (path.startswith(_KERNEL) and path == os.path.normpath(path))


def resolve(sandbox: tuple[Any, ...], users: frozenset[int], cgroups: tuple[str, ...] | None = None) -> tuple[Any, ...]:
    """Look at the host: return what `operations` needs, in which no path has a symbolic link. Raises MissingPathError.

    `users`: those whose links are followed, as for `locate`. `cgroups`: the files by which the process joins its v1
    cgroups; None if it has no cgroup, or no cgroup namespace: "own cgroup" then means "read-only".
    """
    devices, proc, paths = sandbox
    if _are_system(paths):
        ordered = _resolve_system(paths)
    else:
        ordered = _order(_resolve_path(given, action, users) for given, action in paths)
    return _resolve_devices(devices), proc, _show_own_cgroup(ordered, cgroups)


CGROUPS = "/sys/fs/cgroup"
_MOUNT_CGROUP = "mount "
_HIERARCHY_FLAGS = frozenset(("rw", "ro", "seclabel", "clone_children"))


@functools.lru_cache(64)
def _show_own_cgroup(paths: tuple[_Entry, ...], cgroups: tuple[str, ...] | None) -> tuple[_Entry, ...]:
    """Return the entries with those of each hierarchy in place of "own cgroup".

    In a cgroup namespace, a new mount of a hierarchy has the present cgroup as its root, cgroup_namespaces(7). The
    kernel refuses to mount a file system over itself, so an empty directory comes between. A v1 hierarchy in which the
    process has no cgroup of its own stays empty. Version 2 comes last: until then its empty directory serves for all.
    """
    index = next((number for number, entry in enumerate(paths) if entry[1] == OWN_CGROUP), -1)
    if index < 0:
        return paths
    shown: list[_Entry] = []
    if ("/sys", READ_ONLY) not in ((path, action) for path, action, *_ in paths):  # it includes what is mounted there
        shown.append((CGROUPS, READ_ONLY, *paths[index][2:]))
    hierarchies = _hierarchies() if cgroups is not None else {}
    for point, options in hierarchies.items():
        is_joined = any(file.startswith(f"{point}/") for file in cgroups or ())
        shown.append((point, f"{_MOUNT_CGROUP}{options}" if is_joined else MASKED, True, True, True))
    shown += [(point, _MOUNT_CGROUP, True, True, True) for point, options in hierarchies.items() if not options]
    return (*paths[:index], *shown, *paths[index + 1 :])


@functools.lru_cache(1)
def _hierarchies() -> dict[str, str]:
    """Return the options of each file system of cgroups in the usual place, by mount point; "" for version 2.

    proc_pid_mountinfo(5). Empty if version 2 is not there.
    """
    found: dict[str, str] = {}
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape", newline="\n") as file:
        for line in file:
            before, _, after = line.rstrip("\n").partition(" - ")
            point, (kind, _, options) = before.split(" ")[4], after.split(" ", 2)
            if kind in ("cgroup", "cgroup2") and f"{point}/".startswith(f"{CGROUPS}/") and "\\" not in point:
                wanted = [] if kind == "cgroup2" else options.split(",")
                names = [one for one in wanted if one not in _HIERARCHY_FLAGS and not one.startswith("release_agent=")]
                found[point] = ",".join(names)
    return dict(sorted(found.items(), key=lambda item: item[1])) if "" in found.values() else {}


@functools.lru_cache(64)
def _are_system(paths: tuple[tuple[str, str], ...]) -> bool:
    return all(is_system(path) for path, _ in paths)


@functools.lru_cache(64)
def _resolve_system(paths: tuple[tuple[str, str], ...]) -> tuple[_Entry, ...]:
    return _order(_look_up(path, action) for path, action in paths)


def _order(entries: Iterable[_Entry | None]) -> tuple[_Entry, ...]:
    found = {entry[0]: entry for entry in entries if entry is not None}
    return tuple(sorted(found.values(), key=lambda entry: entry[0].split("/") if entry[0] != "/" else []))


def _resolve_path(given: str, action: str, users: frozenset[int]) -> _Entry | None:
    if is_system(given):
        return _look_up(given, action)
    path = _without_merged_link(os.path.normpath(given.removeprefix("-")))
    if is_system(path):
        return _look_up(path, action)
    try:
        fd, path = locate(path, users)
    except OSError as error:
        if given.startswith("-") and error.errno in _ABSENT:
            return None
        raise MissingPathError(error.errno, str(error.strerror), path) from None
    is_directory = stat.S_ISDIR(os.fstat(fd).st_mode)
    os.close(fd)
    return path, action, is_directory, False, is_system(path)


def _without_merged_link(path: str) -> str:
    """Return a path below /lib as one below /usr/lib if /lib is the host's link to it, and so for /bin and others.

    In a user namespace all links of root look like those of another user. This one is of the owner of the root.
    """
    top = "/" + path[1:].partition("/")[0]
    try:
        is_own = stat.S_ISLNK((status := os.lstat(top)).st_mode) and status.st_uid == os.lstat("/").st_uid
        if is_own and os.readlink(top).removeprefix("/") == f"usr{top}":
            return f"/usr{path}"
    except OSError:
        pass
    return path


def _look_up(path: str, action: str) -> _Entry | None:
    seen = _look_at(path)
    return None if seen is None else (path, action, *seen, True)


def _resolve_devices(devices: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
    if devices is None:
        return None
    nodes, shm_size = devices
    bound = []
    for given in nodes:
        if given.removeprefix("-") in _OWN_DEVICES:
            continue  # the program has one of its own; that of the host must not cover it
        try:
            status = os.stat(given.removeprefix("-"))
            bound.append((given.removeprefix("-"), stat.S_ISDIR(status.st_mode)))
        except OSError as error:
            if not given.startswith("-"):
                raise MissingPathError(error.errno, str(error.strerror), given) from None
    return tuple(bound), shm_size, *_syslog()


@functools.lru_cache(1)
def can_make_nodes() -> bool:
    """Return whether this process may make device nodes, mknod(2): not in a user namespace, user_namespaces(7)."""
    with open("/proc/self/uid_map") as file:
        is_initial = file.read().split() == ["0", "0", "4294967295"]
    with open("/proc/self/status") as file:
        effective = next((int(line.split()[1], 16) for line in file if line.startswith("CapEff:")), 0)
    return is_initial and bool(effective >> 27 & 1)


def _syslog() -> tuple[str, str]:
    """Return the kind of the socket of the system's log and, for a link, its target. A daemon that restarts makes
    another socket, which is found again behind a link."""
    try:
        return ("link", os.readlink(SYSLOG)) if os.path.islink(SYSLOG) else ("bind" * os.path.exists(SYSLOG), "")
    except OSError:
        return "", ""


def split(resolved: tuple[Any, ...], joins_later: bool) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Divide what is resolved into what is done in advance and what is done in the cgroups and the cgroup namespace.

    `joins_later`: it has yet to write to a file below /sys.
    """
    devices, proc, paths = resolved
    if joins_later and paths and paths[0][0] == "/" and paths[0][1] == READ_ONLY:
        return (None, "", ()), resolved
    first: list[_Entry] = []
    late: list[_Entry] = []
    for entry in paths:
        is_late = entry[1].startswith(_MOUNT_CGROUP) or (joins_later and _closes_cgroups(entry))
        (late if is_late else first).append(entry)
    return (devices, proc, tuple(first)), (None, "", tuple(late))


def _closes_cgroups(entry: tuple[Any, ...]) -> bool:
    path = entry[0]
    return (path == "/sys" or path.startswith("/sys/fs")) and entry[1] in (READ_ONLY, READ_WRITE)


def kernel_part(sandbox: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the part of a sandbox that is about /dev, /proc and /sys."""
    devices, proc, paths = sandbox
    return devices, proc, tuple(entry for entry in paths if is_of_kernel(entry[0]))


def is_of_kernel(path: str) -> bool:
    """Return whether a path of a sandbox is in one of the kernel's file systems."""
    return path.removeprefix("-").split("/")[1] in ("dev", "proc", "sys")


def is_sticky(path: str) -> bool:
    """Return whether a directory is for the files of all users."""
    return path in _STICKY


def hides(sandbox: tuple[Any, ...], directory: str) -> bool:
    """Return whether another directory is shown in place of this one, or of one above it."""
    return any(
        action in (MASKED, INACCESSIBLE, TEMPORARY) and f"{directory}/".startswith(f"{path.removeprefix('-')}/")
        for path, action in sandbox[2]
    )


# ---- the operations


@functools.lru_cache(64)
def operations(
    resolved: tuple[Any, ...],
    has_ipc: bool,
    has_pid: bool,
    makes_nodes: bool,
    owner: tuple[int, int] | None = None,
    has_tty_group: bool = True,
    has_tree: bool = False,
    is_writable: bool = False,
) -> tuple[Operation, ...]:
    """Return the system calls that give a program in a new mount namespace this view.

    `has_ipc`: the IPC namespace is new or joined. `has_pid`: there is a new PID namespace. `makes_nodes`: device nodes
    are made; otherwise those of the host are bound. `owner`: (uid, gid) of new files in a user namespace without root.
    `has_tty_group`: the group of terminals is in the user namespace. `has_tree`: result `TREE` is a tree of
    `clone_tree`. `is_writable`: mounts of the program have destinations in /dev that are to be made.
    """
    devices, proc, paths = resolved
    if "subset=pid" in proc:  # it shows nothing else
        paths = tuple(entry for entry in paths if not entry[0].startswith("/proc/"))
    builder = _Builder()
    builder.hold(paths)
    if proc:
        builder.restrict_proc(proc, has_pid)
    if paths and paths[0][0] == "/" and paths[0][1] == READ_ONLY:
        builder.make_root_read_only(devices is not None)
        paths = paths[1:]
    if devices is not None:
        builder.make_devices(devices, has_ipc, makes_nodes, owner, has_tty_group, has_tree)
        if not has_tree and not is_writable:
            builder.make_dev_read_only()
    for entry in paths:
        builder.protect(entry)
    return tuple(builder.operations)


class _Builder:
    __slots__ = ("_empty", "_held", "_next", "operations")

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self._held: dict[str, int] = {}
        self._empty: dict[str, bytes] = {}  # by action, where its empty directory is mounted
        self._next = 1

    def _add(self, text: str, name: str, *arguments: int | bytes | Structure, **rest: Any) -> None:
        self.operations.append(Operation(text, name, *arguments, **rest))

    def _number(self) -> int:
        self._next += 1
        return self._next - 1

    def hold(self, paths: Sequence[_Entry]) -> None:
        """Hold what is to stay writable, before anything above it is changed."""
        for path, action, _, _, is_by_name in paths:
            if action == READ_WRITE:
                text = f"hold {path}"
                if is_by_name:
                    self._held[path] = self._number()
                    self._add(text, "open_tree", _AT_FDCWD, path.encode(), _OPEN_FLAGS, save=self._held[path])
                else:
                    self._held[path] = self._open_tree(path, text)

    def _open_tree(self, path: str, text: str) -> int:
        place, tree = self._number(), self._number()
        self._open(path, place, text)
        self._add(text, "open_tree", 0, b"", _OPEN_EMPTY, use=place, save=tree)
        self._add(text, "close", 0, use=place)
        return tree

    def _open(self, path: str, save: int, text: str) -> None:
        self._add(text, "openat2", _AT_FDCWD, os.fsencode(path), _OPEN_HOW, len(_OPEN_HOW), save=save)

    def restrict_proc(self, options: str, has_pid: bool) -> None:
        """Give /proc options: that of a new PID namespace is new already."""
        flags = _MASK_FLAGS & ~mounts.MS_RDONLY | (mounts.MS_REMOUNT if has_pid else 0)
        self._add("restrict /proc", "mount", b"proc", b"/proc", b"proc", flags, options.encode())

    def make_root_read_only(self, replaces_devices: bool) -> None:
        """Make all mounts read-only but those of the kernel's file systems."""
        text = "make the file system read-only"
        self._set_attributes(text, b"/", _READ_ONLY_ATTRIBUTES, mounts.AT_RECURSIVE)
        writable = [b"/proc"] if replaces_devices else [b"/proc", b"/dev", b"/dev/pts", b"/dev/shm", b"/dev/mqueue"]
        for path in writable:
            accepted = (*_ABSENT, errno.EINVAL, errno.EPERM)
            self._set_attributes(text, path, _WRITABLE_ATTRIBUTES, 0, accepted)

    def _set_attributes(
        self, text: str, path: bytes, attributes: Structure, flags: int, accepted: Sequence[int] = ()
    ) -> None:
        self._add(text, "mount_setattr", _AT_FDCWD, path, flags, attributes, len(attributes), accepted=tuple(accepted))

    def make_devices(
        self,
        devices: tuple[Any, ...],
        has_ipc: bool,
        makes_nodes: bool,
        owner: tuple[int, int] | None,
        has_tty_group: bool,
        has_tree: bool,
    ) -> None:
        """Mount a /dev of the program's own."""
        nodes, shm_size, syslog, syslog_target = devices
        text = "make a /dev"
        by_owner = "" if owner is None else f",uid={owner[0]},gid={owner[1]}"
        bound = {path: self._number() for path, _ in nodes}
        directories = {path for path, is_directory in nodes if is_directory}
        if not makes_nodes:
            bound |= {f"/dev/{name}": self._number() for name, _, _ in NODES}
        if syslog == "bind":
            bound[SYSLOG] = self._number()
        shared = [] if has_ipc else ["/dev/shm", "/dev/mqueue"]  # noqa: S108
        bound |= {path: self._number() for path in shared if _look_at(path)}
        directories.update(shared)
        for path, number in bound.items():
            self._add(f"hold {path}", "open_tree", _AT_FDCWD, os.fsencode(path), _OPEN_FLAGS, save=number)
        if has_tree:
            self._move(text, TREE, "/dev")
        else:
            self._add(text, "umask", 0)
            options = f"{_DEV_OPTIONS}{by_owner}".encode()
            self._add(text, "mount", b"tmpfs", b"/dev", b"tmpfs", _DEV_FLAGS, options)
            self._fill_dev(text, makes_nodes)
        group = f",gid={TTY_GROUP}" if has_tty_group else ""
        options = f"newinstance,ptmxmode=0666,mode=620{group}".encode()
        self._add("mount a new /dev/pts", "mount", b"devpts", b"/dev/pts", b"devpts", _DEV_FLAGS, options)
        if has_ipc:
            size = f",size={shm_size}" if shm_size else ""
            options = f"mode=1777{size}{by_owner}".encode()
            self._add("mount a new /dev/shm", "mount", b"tmpfs", b"/dev/shm", b"tmpfs", _TEMPORARY_FLAGS, options)
            queue = "mount", b"mqueue", b"/dev/mqueue", b"mqueue", _MASK_FLAGS & ~mounts.MS_RDONLY, 0
            self._add("mount a new /dev/mqueue", *queue, accepted=(errno.ENODEV,))
        made: set[str] = {"/dev"}
        for path, number in bound.items():
            self._show(path, number, made, path in directories)
        if not has_tree:
            if syslog == "link":
                self._add(text, "symlinkat", os.fsencode(syslog_target), _AT_FDCWD, SYSLOG.encode())
            self._add(text, "umask", _UMASK)

    def _fill_dev(self, text: str, makes_nodes: bool) -> None:
        if makes_nodes:
            for name, major, minor in NODES:
                mode, device = stat.S_IFCHR | 0o666, os.makedev(major, minor)
                self._add(f"make /dev/{name}", "mknodat", _AT_FDCWD, f"/dev/{name}".encode(), mode, device)
        for name, target in LINKS:
            self._add(text, "symlinkat", target.encode(), _AT_FDCWD, f"/dev/{name}".encode())
        for name in _DIRECTORIES:
            self._add(text, "mkdirat", _AT_FDCWD, f"/dev/{name}".encode(), 0o755)

    def make_dev_read_only(self) -> None:
        """Make /dev itself read-only, not what is mounted in it."""
        self._set_attributes("make /dev read-only", b"/dev", _READ_ONLY_ATTRIBUTES, 0)

    def _show(self, path: str, tree: int, made: set[str], is_directory: bool) -> None:
        text = f"bind {path}"
        parent = os.path.dirname(path)
        missing: list[str] = []
        while parent not in made:
            missing.insert(0, parent)
            made.add(parent)
            parent = os.path.dirname(parent)
        for directory in missing:
            self._add(text, "mkdirat", _AT_FDCWD, os.fsencode(directory), 0o755, accepted=(errno.EEXIST,))
        if is_directory:
            self._add(text, "mkdirat", _AT_FDCWD, os.fsencode(path), 0o755, accepted=(errno.EEXIST,))
        else:
            flags, number = os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, self._number()
            self._add(text, "openat", _AT_FDCWD, os.fsencode(path), flags, 0o644, save=number)
            self._add(text, "close", 0, use=number)
        self._move(text, tree, path)

    def _move(self, text: str, tree: int, path: str) -> None:
        flags = mounts.MOVE_MOUNT_F_EMPTY_PATH
        self._add(text, "move_mount", 0, b"", _AT_FDCWD, os.fsencode(path), flags, use=tree)
        self._add(text, "close", 0, use=tree)

    def protect(self, entry: _Entry) -> None:
        """Do what the entry says with its path."""
        path, action, is_directory, is_mount_point, is_by_name = entry
        if not is_by_name:
            self._protect_by_descriptor(path, action, is_directory)
            return
        name = os.fsencode(path)
        if action == READ_ONLY:
            text = f"make {path} read-only"
            if not is_mount_point:
                self._add(text, "mount", name, name, 0, mounts.MS_BIND | mounts.MS_REC, 0)
            self._set_attributes(text, name, _READ_ONLY_ATTRIBUTES, mounts.AT_RECURSIVE)
        elif action == READ_WRITE:
            self._move(f"keep {path} writable", self._held[path], path)
        elif action.startswith(_MOUNT_CGROUP):
            self._mount_own_cgroup(name, os.fsencode(action.removeprefix(_MOUNT_CGROUP)))
        elif action == TEMPORARY:
            self._mount_temporary(f"mount an empty {path}", name)
        elif is_directory:
            self._mount_empty(f"hide {path}", action, name)
        else:
            self._add(f"hide {path}", "mount", b"/dev/null", name, 0, mounts.MS_BIND, 0)

    def _mount_own_cgroup(self, name: bytes, options: bytes) -> None:
        text = f"mount the own cgroup on {os.fsdecode(name)}"
        kind = b"cgroup" if options else b"cgroup2"
        if options:
            empty = next(os.fsencode(point) for point, options in _hierarchies().items() if not options)
            self._add(text, "mount", empty, name, 0, mounts.MS_BIND, 0)
        self._add(text, "mount", kind, name, kind, _MASK_FLAGS, options or 0)

    def _mount_empty(self, text: str, action: str, name: bytes) -> None:
        """Mount an empty directory: the first one is a file system of its own, the others are copies of that mount."""
        if action in self._empty:
            self._add(text, "mount", self._empty[action], name, 0, mounts.MS_BIND, 0)
        else:
            self._empty[action] = name
            self._add(text, "mount", b"tmpfs", name, b"tmpfs", _MASK_FLAGS, _MASK_OPTIONS[action])

    def _mount_temporary(self, text: str, name: bytes) -> None:
        mode = "1777" if os.fsdecode(name) in _STICKY else "755"
        options = f"mode={mode}".encode()
        self._add(text, "mount", b"tmpfs", name, b"tmpfs", _TEMPORARY_FLAGS, options)

    def _protect_by_descriptor(self, path: str, action: str, is_directory: bool) -> None:
        """Do the same with a path of which other users may control a part: it is found without links, and once."""
        text = {READ_ONLY: f"make {path} read-only", READ_WRITE: f"keep {path} writable"}.get(action, f"hide {path}")
        place = self._number()
        self._open(path, place, text)
        if action == READ_WRITE:
            tree = self._held[path]
        elif action == READ_ONLY:
            tree = self._number()
            self._add(text, "open_tree", 0, b"", _OPEN_EMPTY, use=place, save=tree)
            flags = mounts.AT_EMPTY_PATH | mounts.AT_RECURSIVE
            self._add(
                *(text, "mount_setattr", 0, b"", flags, _READ_ONLY_ATTRIBUTES, len(_READ_ONLY_ATTRIBUTES)), use=tree
            )
        elif action == TEMPORARY or is_directory:
            tree = self._new_file_system(text, action)
        else:
            tree = self._number()
            self._add(text, "open_tree", _AT_FDCWD, b"/dev/null", _OPEN_FLAGS, save=tree)
        self._add(text, "move_mount", 0, b"", 0, b"", _MOVE_FLAGS, use=tree, target=place)
        self._add(text, "close", 0, use=tree)
        self._add(text, "close", 0, use=place)

    def _new_file_system(self, text: str, action: str) -> int:
        """Make a detached tmpfs, fsopen(2)."""
        context, tree = self._number(), self._number()
        mode = {INACCESSIBLE: b"000"}.get(action, b"755")
        attributes = mounts.ATTR_NOSUID | mounts.ATTR_NODEV
        if action != TEMPORARY:
            attributes |= mounts.ATTR_NOEXEC | mounts.ATTR_RDONLY
        self._add(text, "fsopen", b"tmpfs", 1, save=context)
        self._add(text, "fsconfig", 0, _FSCONFIG_SET_STRING, b"mode", mode, 0, use=context)
        self._add(text, "fsconfig", 0, _FSCONFIG_CMD_CREATE, 0, 0, 0, use=context)
        self._add(text, "fsmount", 0, 1, attributes, use=context, save=tree)
        self._add(text, "close", 0, use=context)
        return tree


_FSCONFIG_SET_STRING, _FSCONFIG_CMD_CREATE = 1, 6


# ---- a tree for all programs

_trees: dict[tuple[str, str], int] = {}
"""By what `_syslog` returns, a detached and read-only tree; -1 if it cannot be made or copied."""


def can_share(resolved: tuple[Any, ...]) -> bool:
    """Return whether all programs can have copies of one tree in place of a /dev that is filled for each.

    The tree is made by the first call. To copy a detached tree needs Linux 6.15.
    """
    devices = resolved[0]
    if devices is None or devices[0] or devices[2] == "bind":
        return False
    syslog = devices[2:]
    if syslog not in _trees:
        _trees[syslog] = _make_tree(syslog) if can_make_nodes() else -1
    return _trees[syslog] >= 0


def clone_tree(resolved: tuple[Any, ...]) -> int:
    """Return a descriptor of a detached copy of the tree, for one program. Raises OSError."""
    return mounts.open_tree("", directory=_trees[resolved[0][2:]])


def _make_tree(syslog: tuple[str, str]) -> int:
    tree = -1
    try:
        tree = mounts.new_file_system("tmpfs", _DEV_OPTIONS)
        umask = os.umask(0)
        try:
            for name, major, minor in NODES:
                os.mknod(name, stat.S_IFCHR | 0o666, os.makedev(major, minor), dir_fd=tree)
            for name in _DIRECTORIES:
                os.mkdir(name, 0o755, dir_fd=tree)
            links = (*LINKS, ("log", syslog[1])) if syslog[0] == "link" else LINKS
            for name, target in links:
                os.symlink(target, name, dir_fd=tree)
        finally:
            os.umask(umask)
        attributes = mounts.ATTR_RDONLY | mounts.ATTR_NOSUID | mounts.ATTR_NOEXEC
        mounts.set_tree_attributes(tree, attributes, 0, recursive=False)
        os.close(mounts.open_tree("", directory=tree))
    except OSError:
        if tree >= 0:
            os.close(tree)
        return -1
    return tree


# ---- in Python


class OperationError(OSError):
    """An operation failed; `filename` names it."""


def perform(todo: Sequence[Operation]) -> None:
    """Perform operations in this process. Raises OperationError."""
    import ctypes

    from nsupervisor.linux.syscalls import last_error, libc

    results: dict[int, int] = {}
    for operation in todo:
        arguments: list[Any] = list(operation.arguments)
        if operation.use:
            arguments[0] = results[operation.use]
        if operation.target:
            arguments[2] = results[operation.target]
        try:
            if operation.name in _IN_PYTHON:
                result = _IN_PYTHON[operation.name](*arguments) or 0
            else:
                native = [
                    ctypes.c_char_p(argument) if isinstance(argument, bytes) else ctypes.c_long(argument)
                    for argument in arguments
                ]
                if operation.name == "mount":
                    result = libc.mount(*native)
                else:
                    result = libc.syscall(ctypes.c_long(_NUMBERS[operation.name]), *native)
                if result < 0:
                    raise last_error(operation.text)
        except OSError as error:
            if error.errno not in operation.accepted:
                raise OperationError(error.errno, os.strerror(error.errno or 0), operation.text) from None
            result = -(error.errno or 0)
        if operation.save:
            results[operation.save] = result


_NUMBERS = {
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "openat2": 437,
    "mount_setattr": 442,
}
"""System call numbers, the same on each architecture."""
_IN_PYTHON: dict[str, Any] = {
    "umask": os.umask,
    "close": os.close,
    "mknodat": lambda _, path, mode, device: os.mknod(path, mode, device),
    "mkdirat": lambda _, path, mode: os.mkdir(path, mode),
    "symlinkat": lambda target, _, path: os.symlink(target, path),
    "openat": lambda _, path, flags, mode: os.open(path, flags, mode),
}


def temporary_paths(sandbox: tuple[Any, ...]) -> Iterator[str]:
    """Yield where new file systems are in which the mounts of a program may have their destinations."""
    devices, _, paths = sandbox
    if devices is not None:
        yield "/dev"
    for path, action in paths:
        if action == TEMPORARY:
            yield path.removeprefix("-")
