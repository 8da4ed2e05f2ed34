"""Unpack the layers of an image into one directory, each over those below, with whiteouts applied.

Source: github.com/opencontainers/image-spec, layer.md. Nothing in an archive is trusted. Each entry's directory is
opened by openat2(2) below the root, with no symbolic link followed; the entry itself is made in it by its last name,
and must not exist. Links are made, and never followed.

What the result has is what an overlay of the layers shows: whiteouts concern the layers below only, wherever they are
in their own layer.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable

import attrs

from nsupervisor.images.errors import ImageError
from nsupervisor.images.limits import MAX_DEPTH, MAX_ENTRIES, MAX_PATH_BYTES
from nsupervisor.images.streams import CHUNK, Reader
from nsupervisor.images.tar import Content, TarEntry, read_entries
from nsupervisor.linux.trusted_paths import open_in_root

WHITEOUT, OPAQUE = ".wh.", ".wh..wh..opq"
_LISTED = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPENED = os.O_RDONLY | os.O_DIRECTORY  # openat2(2) refuses links itself: ELOOP, where O_NOFOLLOW gives ENOTDIR
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
CAPABILITY = "security.capability"
_CAPABILITY_BYTES = (20, 24)
"""Sizes of the value: struct vfs_cap_data and vfs_ns_cap_data, capabilities(7)."""
_IMPLIED_MODE = 0o755


@attrs.define
class LeftOut:
    """How much of an image has no place in a root: device nodes, and extended attributes other than capabilities."""

    devices: int = 0
    attributes: int = 0


class Unpacker:
    """Unpacks layers into an empty directory, a descriptor of its own. `finish` has to be called at the end.

    `keeps_owners`: files get the users and groups that the image has. Otherwise they are this process's own, as an
    ordinary user cannot give files away.
    """

    def __init__(self, root: int, keeps_owners: bool) -> None:
        self._root, self._keeps_owners = root, keeps_owners
        self.left_out = LeftOut()
        self.entries = 0
        # Of this layer: what it has. False: a directory that it only implies.
        self._own: dict[str, bool] = {}
        # Final modes and times of directories: until the end this process has to be able to write to them.
        self._directories: dict[str, tuple[int, float]] = {"": (_IMPLIED_MODE, 0.0)}
        self._open: tuple[str, int] = ("", -1)

    def add_layer(self, layer: Reader) -> None:
        """Unpack the tar file of the next layer. Raises ImageError; then the directory is of no use."""
        self._own = {"": False}
        try:
            for entry, content in read_entries(layer):
                self.entries += 1
                if self.entries > MAX_ENTRIES:
                    raise ImageError(f"the image has more than {MAX_ENTRIES} files")
                try:
                    self._add(entry, content)
                except OSError as error:
                    raise ImageError(f"cannot unpack {_quoted(entry.name)}: {_explain(error)}") from None
        finally:
            self._forget_directory()

    def finish(self) -> None:
        """Give the directories their modes and times. Raises ImageError."""
        try:
            self._finish(self._root, "")
        except OSError as error:
            raise ImageError(f"cannot finish the directories of the image: {_explain(error)}") from None

    # ---- entries

    def _add(self, entry: TarEntry, content: Content) -> None:
        path = clean_path(entry.name)
        parent, _, name = path.rpartition("/")
        if name.startswith(WHITEOUT):
            self._whiteout(parent, name, entry)
            return
        if any(part.startswith(f"{WHITEOUT}{WHITEOUT}") for part in parent.split("/")):  # what AUFS keeps for itself
            return
        if any(part.startswith(WHITEOUT) for part in parent.split("/")):
            raise ImageError(f"{_quoted(entry.name)} is in a whiteout")
        self.left_out.attributes += sum(key != CAPABILITY for key in entry.xattrs)
        if not path:
            self._add_root(entry)
        elif entry.kind == "device":
            self._replace(self._enter(parent), path, name)
            self.left_out.devices += 1
        else:
            self._make(path, parent, name, entry, content)
            self._own[path] = True

    def _add_root(self, entry: TarEntry) -> None:
        if entry.kind != "directory":
            raise ImageError("the root of the image is not a directory")
        self._own[""] = True
        self._directories[""] = entry.mode, entry.mtime
        if self._keeps_owners:
            os.fchown(self._root, entry.uid, entry.gid)

    def _make(self, path: str, parent: str, name: str, entry: TarEntry, content: Content) -> None:
        if entry.kind == "hardlink":
            self._link(path, parent, name, entry)
            return
        directory = self._enter(parent)
        if entry.kind == "directory":
            self._make_directory(directory, path, name, entry)
            return
        self._replace(directory, path, name)
        if entry.kind == "file":
            self._write(directory, name, entry, content)
            return
        if entry.kind == "symlink":
            if not entry.link:
                raise ImageError(f"{_quoted(entry.name)} is a symbolic link to nothing")
            os.symlink(entry.link, name, dir_fd=directory)
        else:
            os.mkfifo(name, 0o600, dir_fd=directory)
        if self._keeps_owners:
            os.chown(name, entry.uid, entry.gid, dir_fd=directory, follow_symlinks=False)
        if entry.kind == "fifo":
            os.chmod(name, entry.mode, dir_fd=directory)  # just made, by this process, which is alone here
        os.utime(name, (entry.mtime, entry.mtime), dir_fd=directory, follow_symlinks=False)

    def _make_directory(self, directory: int, path: str, name: str, entry: TarEntry) -> None:
        try:
            os.mkdir(name, 0o700, dir_fd=directory)
        except FileExistsError:
            if not stat.S_ISDIR(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
                self._replace(directory, path, name)
                os.mkdir(name, 0o700, dir_fd=directory)
        self._directories[path] = entry.mode, entry.mtime
        if self._keeps_owners:
            os.chown(name, entry.uid, entry.gid, dir_fd=directory, follow_symlinks=False)

    def _write(self, directory: int, name: str, entry: TarEntry, content: Content) -> None:
        fd = os.open(name, _NEW_FILE, 0o600, dir_fd=directory)
        try:
            while data := content.read(CHUNK):
                view = memoryview(data)
                while view:
                    view = view[os.write(fd, view) :]
            if self._keeps_owners:
                os.fchown(fd, entry.uid, entry.gid)
            os.fchmod(fd, entry.mode)  # after the owner, whose change removes the setuid bit
            if (value := entry.xattrs.get(CAPABILITY)) is not None:
                self._set_capability(fd, value)
            os.utime(fd, (entry.mtime, entry.mtime))
        finally:
            os.close(fd)

    def _set_capability(self, fd: int, value: bytes) -> None:
        is_kept = self._keeps_owners and len(value) in _CAPABILITY_BYTES
        if is_kept:
            try:
                os.setxattr(fd, CAPABILITY, value)
            except OSError as error:  # without CAP_SETFCAP, or on a file system without such attributes
                if error.errno not in (errno.EPERM, errno.ENOTSUP):
                    raise
                is_kept = False
        self.left_out.attributes += not is_kept

    def _link(self, path: str, parent: str, name: str, entry: TarEntry) -> None:
        target = clean_path(entry.link)
        if not self._own.get(target):
            raise ImageError(
                f"{_quoted(entry.name)} is a hard link to {_quoted(entry.link)}, which its layer does not have"
            )
        if target == path:
            raise ImageError(f"{_quoted(entry.name)} is a hard link to itself")
        above, _, target_name = target.rpartition("/")
        source = open_in_root(self._root, above or ".", _OPENED, follows=False)
        try:
            if stat.S_ISDIR(os.stat(target_name, dir_fd=source, follow_symlinks=False).st_mode):
                raise ImageError(f"{_quoted(entry.name)} is a hard link to a directory")
            directory = self._enter(parent)
            self._replace(directory, path, name)
            os.link(target_name, name, src_dir_fd=source, dst_dir_fd=directory, follow_symlinks=False)
        finally:
            os.close(source)

    def _replace(self, directory: int, path: str, name: str) -> None:
        """Remove what layers below have in the place of a new entry, or this one, if that is not a directory."""
        if path in self._own and stat.S_ISDIR(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
            raise ImageError(f"a layer has {_quoted(path)} twice, once as a directory")
        remove_tree(directory, name)

    # ---- directories

    def _enter(self, path: str) -> int:
        """Return a descriptor of a directory, which is made if it is missing. It is open until another one is."""
        known, fd = self._open
        if fd >= 0 and known == path:
            return fd
        try:
            fd = open_in_root(self._root, path or ".", _OPENED, follows=False)
        except FileNotFoundError:
            parent, _, name = path.rpartition("/")
            directory = self._enter(parent)
            os.mkdir(name, 0o700, dir_fd=directory)
            self._directories[path] = _IMPLIED_MODE, 0.0
            fd = os.open(name, _LISTED, dir_fd=directory)
        self._forget_directory()
        self._open = path, fd
        while path and path not in self._own:
            self._own[path] = False
            path = path.rpartition("/")[0]
        return fd

    def _forget_directory(self) -> None:
        if self._open[1] >= 0:
            os.close(self._open[1])
        self._open = "", -1

    # ---- whiteouts

    def _whiteout(self, parent: str, name: str, entry: TarEntry) -> None:
        hidden = name.removeprefix(WHITEOUT)
        if name != OPAQUE and hidden.startswith(WHITEOUT):  # what AUFS keeps for itself
            return
        if entry.kind != "file" or hidden in ("", ".", ".."):
            raise ImageError(f"{_quoted(entry.name)} is not a whiteout: it is not a file, or names none")
        try:
            directory = open_in_root(self._root, parent or ".", _OPENED, follows=False)
        except (FileNotFoundError, NotADirectoryError):
            return
        try:
            self._forget_directory()  # it may be removed
            prefix = f"{parent}/" if parent else ""
            names = os.listdir(directory) if name == OPAQUE else [hidden]
            for child in names:
                self._hide(directory, f"{prefix}{child}", child)
        finally:
            os.close(directory)

    def _hide(self, directory: int, path: str, name: str) -> None:
        """Remove what the layers below have at a path, and keep what this one has."""
        is_explicit = self._own.get(path)
        if is_explicit is None:
            remove_tree(directory, name)
            return
        if not stat.S_ISDIR(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
            return
        if not is_explicit:  # that of the layers below is gone: this is a new one
            self._directories[path] = _IMPLIED_MODE, 0.0
            if self._keeps_owners:
                os.chown(name, os.geteuid(), os.getegid(), dir_fd=directory, follow_symlinks=False)
        fd = os.open(name, _LISTED, dir_fd=directory)
        try:
            for child in os.listdir(fd):
                self._hide(fd, f"{path}/{child}", child)
        finally:
            os.close(fd)

    def _finish(self, directory: int, path: str) -> None:
        with os.scandir(directory) as found:
            names = [entry.name for entry in found if entry.is_dir(follow_symlinks=False)]
        for name in names:
            fd = os.open(name, _LISTED, dir_fd=directory)
            try:
                self._finish(fd, f"{path}/{name}" if path else name)
            finally:
                os.close(fd)
        mode, mtime = self._directories[path]
        os.fchmod(directory, mode)
        os.utime(directory, (mtime, mtime))


def clean_path(name: str) -> str:
    """Return the path of an entry without "." and empty parts; "" for the root. Raises ImageError for a hostile one."""
    if name.startswith("/"):
        raise ImageError(f"{_quoted(name)} is an absolute path")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise ImageError(f'{_quoted(name)} has ".." in its path')
    if len(parts) > MAX_DEPTH:
        raise ImageError(f"{_quoted(name)} is {len(parts)} directories deep, and may be {MAX_DEPTH}")
    path = "/".join(parts)
    if len(os.fsencode(path)) > MAX_PATH_BYTES:
        raise ImageError(f"{_quoted(name)} is longer than {MAX_PATH_BYTES} bytes")
    return path


def remove_tree(directory: int, name: str) -> None:
    """Remove a file, or a directory with all that is in it, of which this process is the owner. Raises OSError.

    No deeper than an image may be. A missing one is no error.
    """
    try:
        os.unlink(name, dir_fd=directory)
        return
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno not in (errno.EISDIR, errno.EPERM):
            raise
    try:
        fd = os.open(name, _LISTED, dir_fd=directory)
    except PermissionError:  # an ordinary user's, and without permissions for it
        os.chmod(name, 0o700, dir_fd=directory)
        fd = os.open(name, _LISTED, dir_fd=directory)
    try:
        children = os.listdir(fd)
        if children and os.geteuid() and stat.S_IMODE(os.fstat(fd).st_mode) & 0o700 != 0o700:
            os.fchmod(fd, 0o700)
        for child in children:
            remove_tree(fd, child)
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=directory)


def _quoted(name: str) -> str:
    shown = ascii(name if len(name) <= 200 else name[:200] + "…")
    return f'"{shown[1:-1]}"'


def _explain(error: OSError) -> str:
    if error.errno == errno.ELOOP:
        return "a directory in its path is a symbolic link, which is not followed"
    if error.errno == errno.ENOTDIR:
        return "a part of its path is not a directory"
    if error.errno == errno.EINVAL:
        return "its user or group is not mapped in this user namespace, or its name is not possible"
    return str(error.strerror)


def describe_left_out(left_out: LeftOut) -> Iterable[str]:
    """Yield a text for each kind of thing that was left out."""
    if left_out.devices:
        nodes = "1 device node was" if left_out.devices == 1 else f"{left_out.devices} device nodes were"
        yield f"{nodes} left out, as a root has the kernel's own in /dev"
    if left_out.attributes:
        attributes = (
            "1 extended attribute was"
            if left_out.attributes == 1
            else f"{left_out.attributes} extended attributes were"
        )
        yield f"{attributes} left out; only file capabilities are kept"
