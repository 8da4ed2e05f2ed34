"""The step that gives a program a root file system of its own: a directory, with or without an upper layer.

What the program gets of the host is made or copied before, as mounts that are attached nowhere: /dev, /proc and /sys as
the sandbox has protected them, and each mount of the specification. Then the root is changed by pivot_root(2), never by
chroot(2), and the host's mounts are detached. What comes after finds only paths inside.

Everything in the root may belong to others, also while this step runs. So each path inside is looked up once, by
openat2(2) with RESOLVE_IN_ROOT, and used by its descriptor. Of the mount points of /dev, /proc and /sys no part may be
a link: a program that believes in such a link would see files of the root in place of the kernel's. No mount may be
attached in them by a link either.
"""

from __future__ import annotations

import errno
import os
import stat

from nsupervisor.keeper.setup import name_files, sandbox
from nsupervisor.keeper.setup.errors import StepError, step_error
from nsupervisor.keeper.setup.mount_steps import Mounter, describe, file_creator_ids, show_credentials
from nsupervisor.linux import mounts, syscalls
from nsupervisor.linux.mounts import Mount
from nsupervisor.linux.trusted_paths import locate, make_in_root, open_in_root
from nsupervisor.mount_data import INACCESSIBLE, MASKED, READ_ONLY, READ_WRITE, TEMPORARY

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nsupervisor.keeper.setup.cover import Cover
    from nsupervisor.keeper.setup.spec import Spec

KERNEL_DIRECTORIES = ("/dev", "/proc", "/sys")
_LINK_ERRORS = (errno.ELOOP, errno.ENOTDIR)


def enter_root(spec: Spec) -> None:
    """Make the mounts of a specification with a root of its own, and change to that root. Raises StepError."""
    if spec.root is None:
        return
    owner = file_creator_ids(spec)
    if owner is not None:
        syscalls.set_file_system_ids(*owner)
    path, is_read_only, upper = spec.root
    directory, real = _find_root(path, _users())
    cover = spec.held_cover
    if cover is not None:
        _record_root(cover, path, real, upper)
        show_credentials(spec, cover)
    held = _hold_mounts(spec, cover)
    kernel = _hold_kernel_directories()
    root = _copy_root(path, directory, upper)
    try:
        mounts.move_mount(root, "", directory)
        os.close(directory)
        mounts.pivot_root(root)
    except OSError as error:
        hint = "the root of this host is the kernel's initial one, which cannot be changed"
        raise step_error(f"make {path} the root", error, hint if error.errno == errno.EINVAL else "") from None
    sandbox.forget()
    _make_mount_points(spec, root, held, cover)
    name_files.make_places(spec, root)
    kept = _hold_writable(spec, root)
    if is_read_only or _protects_root(spec):
        _try(f"make the root {path} read-only", mounts.set_tree_attributes, root, mounts.ATTR_RDONLY, 0, True)
    for place, tree in kernel.items():
        _attach_kernel_directory(root, place, tree)
    _protect(spec, root, kept)
    for mount, tree, source in held:
        _attach(root, mount, tree, source, cover)
    name_files.attach(spec, root)
    os.close(root)
    if cover is not None:
        cover.apply(set(), owner)


def _users() -> frozenset[int]:
    return frozenset({0, os.geteuid()})


def _try(text: str, call: object, *arguments: object) -> None:
    try:
        call(*arguments)  # type: ignore[operator]
    except OSError as error:
        raise step_error(text, error) from None


# ---- outside of the root


def _find_root(path: str, users: frozenset[int]) -> tuple[int, str]:
    try:
        directory, real = locate(path, users)
    except OSError as error:
        raise step_error(f"find the root {path}", error) from None
    if not stat.S_ISDIR(os.fstat(directory).st_mode):
        raise StepError(f"cannot use {path} as root: it is not a directory", errno.ENOTDIR)
    return directory, real


def _record_root(cover: Cover, path: str, real: str, upper: str | None) -> None:
    """Let the cover know what the root shows. Raises StepError if that is the runtime directory."""
    if upper is None:
        cover.record_mount(Mount("bind", path, "/", ["rbind"]), real, "/")
    else:
        cover.check_layers(Mount("overlay", path, "/"), {path: real})


def _hold_mounts(spec: Spec, cover: Cover | None) -> list[tuple[Mount, int, str]]:
    """Return each mount with its descriptor, and for a bind mount the path of what it shows."""
    mounter = Mounter(cover, "user" in spec.namespaces, set(), {})
    return [(mount, *mounter.hold(mount)) for mount in spec.mounts]


def _hold_kernel_directories() -> dict[str, int]:
    held = {}
    for place in KERNEL_DIRECTORIES:
        try:
            held[place] = mounts.open_tree(place, recursive=True)
            mounts.set_tree_propagation(held[place], mounts.MS_PRIVATE | mounts.MS_REC)
        except FileNotFoundError:  # a host without /sys
            pass
        except OSError as error:
            raise step_error(f"hold {place}", error) from None
    return held


def _copy_root(path: str, directory: int, upper: str | None) -> int:
    """Return a descriptor of the mount that becomes the root, not yet attached, without devices."""
    try:
        if upper is None:
            root = mounts.open_tree("", True, directory)
            mounts.set_tree_attributes(root, mounts.ATTR_NODEV, 0, recursive=True)
        else:
            root = _make_overlay(directory, upper)
        mounts.set_tree_propagation(root, mounts.MS_PRIVATE | mounts.MS_REC)
    except OSError as error:
        hint = "a root of its own needs Linux 5.12" if error.errno == errno.ENOSYS else ""
        if upper is not None and error.errno == errno.EINVAL:
            hint = "its file system cannot be a layer of an overlay, or another overlay uses the same upper layer"
        raise step_error(f"use {path} as root", error, hint) from None
    return root


def _make_overlay(directory: int, upper: str) -> int:
    """Return an overlay over the directory. `upper`: where its upper layer is; "": in memory."""
    if upper:
        layers, _ = locate(upper, users=())
    else:
        layers = mounts.new_file_system("tmpfs", "mode=755")
        # Layers have to be mounted somewhere (before Linux 6.15). The overlay, on top of this, hides it.
        mounts.move_mount(layers, "", directory)
        for name in ("upper", "work"):
            os.mkdir(name, 0o755, dir_fd=layers)
    flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    fds = [directory, *(os.open(name, flags, dir_fd=layers) for name in ("upper", "work"))]
    keys = ("lowerdir", "upperdir", "workdir")
    options = [f"{key}=/proc/self/fd/{fd}" for key, fd in zip(keys, fds, strict=True)]
    if _is_in_user_namespace():
        options.append("userxattr")
    root = mounts.new_file_system("overlay", ",".join(options), "overlay", mounts.ATTR_NODEV)
    for fd in (layers, *fds[1:]):
        os.close(fd)
    return root


def _is_in_user_namespace() -> bool:
    """Return whether this process is in a user namespace other than the host's: trusted attributes need its root."""
    with open("/proc/self/uid_map") as file:
        return file.read().split() != ["0", "0", "4294967295"]


# ---- inside


def _make_mount_points(spec: Spec, root: int, held: list[tuple[Mount, int, str]], cover: Cover | None) -> None:
    """Make the directories and files to mount on that the root lacks, while it is writable."""
    points = dict.fromkeys(KERNEL_DIRECTORIES, False)
    if cover is not None and cover.mount_point:
        points[cover.mount_point] = False
    shown = list(points)
    for mount, tree, _ in held:
        place = os.path.normpath(mount.destination)
        if not any(f"{place}/".startswith(f"{above}/") for above in shown):
            points[place] = not stat.S_ISDIR(os.fstat(tree).st_mode)
            shown.append(place)
    for place, is_file in points.items():
        try:
            os.close(make_in_root(root, place, is_file))
        except FileExistsError:  # a link to what is not there yet: the mount is refused later, if it is not there then
            pass
        except OSError as error:
            hint = "make it there" if error.errno in (errno.EROFS, errno.EACCES, errno.EOVERFLOW) else ""
            raise step_error(f"make {place} in the root {_name(spec)}", error, hint) from None


def _name(spec: Spec) -> str:
    return "" if spec.root is None else spec.root[0]


def _attach_kernel_directory(root: int, place: str, tree: int) -> None:
    try:
        fd = open_in_root(root, place, os.O_PATH | os.O_DIRECTORY, follows=False)
        mounts.move_mount(tree, "", fd)
        os.close(fd)
        os.close(tree)
    except OSError as error:
        hint = "it is not a directory in the root; make it one" if error.errno in _LINK_ERRORS else ""
        raise step_error(f"show {place} in the root", error, hint) from None


def _protects_root(spec: Spec) -> bool:
    return spec.sandbox is not None and any(path == "/" and action == READ_ONLY for path, action in spec.sandbox[2])


def _paths(spec: Spec) -> list[tuple[str, str]]:
    """Return the paths of the sandbox that are not the kernel's, a directory before those in it."""
    paths = () if spec.sandbox is None else spec.sandbox[2]
    found = [(given, action) for given, action in paths if given != "/" and not sandbox.is_of_kernel(given)]
    return sorted(found, key=lambda entry: entry[0].removeprefix("-").split("/"))


def _without_merged_link(root: int, path: str) -> str:
    """Return a path below /lib as one below /usr/lib if /lib is a link to it in the root, and so for /bin and others.

    Only a link with exactly this target counts, so the owner of the root chooses no other place by it.
    """
    top, _, rest = path[1:].partition("/")
    try:
        if rest and os.readlink(top, dir_fd=root).removeprefix("/") == f"usr/{top}":
            return f"/usr{path}"
    except OSError:
        pass
    return path


def _find(root: int, given: str) -> int:
    """Open a path of the sandbox; -1 if it may be left out. Raises StepError."""
    path = given.removeprefix("-")
    try:
        return open_in_root(root, _without_merged_link(root, path), follows=False)
    except OSError as error:
        if sandbox.is_system(path) and error.errno in (errno.ENOENT, *_LINK_ERRORS):
            return -1
        if given != path and error.errno in (errno.ENOENT, errno.ENOTDIR):
            return -1
        hint = 'write "-" before a path that may be missing' if error.errno == errno.ENOENT else ""
        if error.errno == errno.ELOOP:
            hint = "a part of it is a symbolic link in the root; write the path without it"
        raise step_error(f"find {path} in the root", error, hint) from None


def _hold_writable(spec: Spec, root: int) -> dict[str, int]:
    kept = {}
    for given, action in _paths(spec):
        if action == READ_WRITE and (fd := _find(root, given)) >= 0:
            try:
                kept[given] = mounts.open_tree("", True, fd)
            except OSError as error:
                raise step_error(f"hold {given}", error) from None
            os.close(fd)
    return kept


def _protect(spec: Spec, root: int, kept: dict[str, int]) -> None:
    """Do what the sandbox says with the paths of the root."""
    for given, action in _paths(spec):
        fd = _find(root, given)
        if fd < 0:
            continue
        text = {READ_ONLY: f"make {given} read-only", READ_WRITE: f"keep {given} writable"}.get(action, f"hide {given}")
        try:
            tree = kept[given] if action == READ_WRITE else _replacement(fd, given, action)
            mounts.move_mount(tree, "", fd)
            os.close(tree)
            os.close(fd)
        except OSError as error:
            raise step_error(text, error) from None


def _replacement(fd: int, given: str, action: str) -> int:
    """Return a mount, not yet attached, to be shown in place of what is there."""
    if action == READ_ONLY:
        tree = mounts.open_tree("", True, fd)
        mounts.set_tree_attributes(tree, mounts.ATTR_RDONLY, 0, recursive=True)
        return tree
    if action == TEMPORARY:
        mode = "1777" if sandbox.is_sticky(given) else "755"
        return mounts.new_file_system("tmpfs", f"mode={mode}", "", mounts.ATTR_NOSUID | mounts.ATTR_NODEV)
    if not stat.S_ISDIR(os.fstat(fd).st_mode):
        return mounts.open_tree("/dev/null")
    mode = {INACCESSIBLE: "000", MASKED: "755"}[action]
    attributes = mounts.ATTR_RDONLY | mounts.ATTR_NOSUID | mounts.ATTR_NODEV | mounts.ATTR_NOEXEC
    return mounts.new_file_system("tmpfs", f"mode={mode},size=4k,nr_inodes=2", "", attributes)


def _attach(root: int, mount: Mount, tree: int, source: str, cover: Cover | None) -> None:
    """Attach a mount where its destination leads inside of the root."""
    operation = describe(mount)
    try:
        fd = make_in_root(root, mount.destination, not stat.S_ISDIR(os.fstat(tree).st_mode))
        place = os.readlink(f"/proc/self/fd/{fd}")
    except OSError as error:
        hint = "make it in the root, or mount a tmpfs over a directory above it" if error.errno == errno.EROFS else ""
        raise step_error(f"{operation}: {mount.destination}", error, hint) from None
    wanted = os.path.normpath(mount.destination)
    if _kernel_directory(place) != _kernel_directory(wanted):
        reason = f"it leads to {place} by a symbolic link in the root; write the path without it"
        raise StepError(f"cannot {operation}: {reason}", errno.ELOOP)
    _try(operation, mounts.move_mount, tree, "", fd)
    os.close(fd)
    os.close(tree)
    if cover is not None and mount.fstype == "bind":
        cover.record_mount(mount, source, place)


def _kernel_directory(path: str) -> str:
    top = "/" + path[1:].partition("/")[0]
    return top if top in KERNEL_DIRECTORIES else ""
