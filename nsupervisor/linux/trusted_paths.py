"""Open, create, rename and remove what is below directories that other users may write to.

A user that may write to a directory can put a symbolic link, a hard link or another directory in the place of any name
in it, at any moment. So a process with more rights follows no name there: it opens a path part by part, each in the
directory that it has open, checks who controls that directory, and then uses the descriptor instead of the path.

- `TrustedDirectory`: a directory of which no other user can change any part of the path, and the files in it. For log
  files. `open_trusted_directory` is for the service's own directories, which are then used by their names.
- `locate`: what is at a path of which others may control a part, without following their links. For mounts, which may
  show directories of other users.
- `open_in_root` and `make_in_root`: what is at a path inside of a root file system that others may control.

These are the only functions by which the service and the keeper use paths outside of the runtime directory and of the
kernel's file systems; a test over the sources holds them to it. Standard library only.
"""

from __future__ import annotations

import errno
import os
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Container, Sequence

SYS_OPENAT2 = 437  # Linux 5.6
_AT_FDCWD = -100
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_NO_SYMLINKS = 0x04
_RESOLVE_IN_ROOT = 0x10
_ANY = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_DIRECTORY = _ANY | os.O_DIRECTORY
_LISTED = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MAX_SHOWN = 256
_MAX_LINKS = 40  # the kernel's own limit, path_resolution(7)


class UntrustedPathError(OSError):
    """Another user controls a part of a path. The text says which part, who, and what to do instead."""

    def __init__(self, message: str) -> None:
        super().__init__(errno.EACCES, message)

    def __str__(self) -> str:
        return str(self.strerror)


def trusted_users() -> frozenset[int]:
    """Return the users that may control a path: root, the user of this process, and the owner of `/`.

    The last one differs from root in a user namespace that does not map root, where all other users of the host have
    the same number.
    """
    return frozenset({0, os.geteuid(), os.stat("/").st_uid})


# ---- directories that no other user controls


def open_trusted_directory(path: str, instead: str, mode: int | None = None, by_name: bool = True) -> int:
    """Open a directory; return its descriptor (O_PATH, close-on-exec).

    Each directory of the path must belong to a trusted user, must not be writable by others (unless it is sticky, and
    not the last one), and must not be a symbolic link. `path` is absolute. `instead`: what to do otherwise. `mode`: of
    the directory if it has to be made; directories above it get 0755. None: it must exist.

    `by_name`: it is used by its name later. If not, a group may write to the directories above it, as to /var/log on
    some distributions: a member can at most put another directory of a trusted user in the place of one.

    Raises:
        UntrustedPathError: another user controls a part of the path.
        OSError: see open(2) and mkdir(2); `filename` is the part of the path.
    """
    users = trusted_users()
    names = [name for name in path.split("/") if name not in ("", ".")]
    fd, place = os.open("/", _DIRECTORY), ""
    try:
        _check_directory(os.fstat(fd), "/", users, not names, by_name, instead)
        for position, name in enumerate(names, 1):
            place, is_last = f"{place}/{name}", position == len(names)
            try:
                child = _open_or_make(name, fd, mode if is_last or mode is None else 0o755)
            except NotADirectoryError:
                raise _not_a_directory(name, fd, place, path, instead) from None
            except OSError as error:
                raise OSError(error.errno, error.strerror, place) from None
            os.close(fd)
            fd = child
            _check_directory(os.fstat(fd), place, users, is_last, by_name, instead)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _open_or_make(name: str, directory: int, mode: int | None) -> int:
    try:
        return os.open(name, _DIRECTORY, dir_fd=directory)
    except FileNotFoundError:
        if mode is None:
            raise
    try:
        os.mkdir(name, mode, dir_fd=directory)
    except FileExistsError:  # another process has made it since, or a link: the next open tells
        pass
    return os.open(name, _DIRECTORY, dir_fd=directory)


def _not_a_directory(name: str, directory: int, place: str, path: str, instead: str) -> OSError:
    if stat.S_ISLNK(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
        real = os.path.realpath(path)
        return UntrustedPathError(f"{place} is a symbolic link; write {real} if that is the place, or {instead}")
    return UntrustedPathError(f"{place} is not a directory; {instead}")


def _check_directory(
    status: os.stat_result, place: str, users: Container[int], is_last: bool, by_name: bool, instead: str
) -> None:
    if status.st_uid not in users:
        reason, remedy = f"belongs to user {status.st_uid}", "chown"
    elif (writers := _other_writers(status, is_last)) and (is_last or by_name or writers == _EVERY_USER):
        reason, remedy = f"is writable by {writers}", "chmod"
    else:
        return
    raise UntrustedPathError(f"{place} {reason}, who could put files into it; {remedy} it, or {instead}")


_EVERY_USER = "every user"


def _other_writers(status: os.stat_result, is_last: bool = False) -> str:
    """Return who else may put files into a directory, in the place of existing ones; "" if no other user may.

    In a sticky directory each user has files of their own, which no other user may rename or remove; so for the last
    directory of a path that does not count. A group of the same number as the user is that user's own.
    """
    if status.st_mode & stat.S_ISVTX and not is_last:
        return ""
    if status.st_mode & stat.S_IWOTH:
        return _EVERY_USER
    is_private_group = status.st_gid == 0 or status.st_gid == os.getegid() == os.geteuid()
    return "" if is_private_group or not status.st_mode & stat.S_IWGRP else f"group {status.st_gid}"


def untrusted_part(path: str, instead: str) -> str:
    """Return why a directory cannot be used for files, as far as it exists; "" if it can.

    `instead`: what to do then.
    """
    try:
        os.close(open_trusted_directory(path, instead, by_name=False))
    except UntrustedPathError as error:
        return str(error)
    except OSError:  # it is made when it is needed
        pass
    return ""


class TrustedDirectory:
    """A directory of which no other user can change any part of the path, and its files. A context manager."""

    __slots__ = ("_fd", "_instead", "_path")

    def __init__(self, path: str, instead: str, mode: int | None = None, by_name: bool = False) -> None:
        """Open the directory. The arguments and errors are those of `open_trusted_directory`."""
        self._path, self._instead = path, instead
        self._fd = open_trusted_directory(path, instead, mode, by_name)

    def __enter__(self) -> TrustedDirectory:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def open(self, name: str, flags: int, mode: int | None = None) -> int:
        """Open a file; return its descriptor, close-on-exec. `mode`: of the file if it is made. None: it must exist.

        It does not wait for the other side of a FIFO. A regular file must belong to a trusted user and must have this
        one name.

        Raises:
            UntrustedPathError: it is a symbolic link, belongs to another user, or has other names.
            OSError: see open(2).
        """
        flags |= os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        try:
            fd = self._open_existing(name, flags)
        except FileNotFoundError:
            if mode is None:
                raise
            try:
                fd = self.create(name, flags, mode)
            except FileExistsError:  # another process has made it since
                fd = self._open_existing(name, flags)
        try:
            self._check_file(name, os.fstat(fd))
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _open_existing(self, name: str, flags: int) -> int:
        try:
            return os.open(name, flags, dir_fd=self._fd)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            raise self._refuse(name, "is a symbolic link", "remove it") from None

    def create(self, name: str, flags: int, mode: int) -> int:
        """Create a file that must not exist, not even as a link; return its descriptor (close-on-exec).

        Raises OSError.
        """
        return os.open(name, flags | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode, dir_fd=self._fd)

    def _check_file(self, name: str, status: os.stat_result) -> None:
        if not stat.S_ISREG(status.st_mode):
            return
        if status.st_nlink > 1:
            raise self._refuse(name, "is a file with other names (hard links)", "remove it")
        if status.st_uid not in trusted_users():
            raise self._refuse(name, f"belongs to user {status.st_uid}", "chown it")

    def _refuse(self, name: str, reason: str, remedy: str) -> UntrustedPathError:
        return UntrustedPathError(f"{self._path}/{name} {reason}; {remedy}, or {self._instead}")

    def make_directory(self, name: str, mode: int) -> bool:
        """Make a directory; return False if something is there. Raises OSError."""
        try:
            os.mkdir(name, mode, dir_fd=self._fd)
        except FileExistsError:
            return False
        fd = os.open(name, _DIRECTORY, dir_fd=self._fd)
        try:
            os.chmod(f"/proc/self/fd/{fd}", mode)  # whatever the umask
        finally:
            os.close(fd)
        return True

    def give_contents(self, name: str, uid: int, gid: int) -> None:
        """Give all that is in a directory and belongs to the owner of the directory to another owner.

        Files of other users, such as those of root with another name here, keep theirs. Nothing is done if the
        directory has the right owner: so it has to be changed last, for a process that is killed in between. Raises
        OSError.
        """
        fd = os.open(name, _LISTED, dir_fd=self._fd)
        try:
            owner = os.fstat(fd).st_uid
            if owner != uid:
                _give(fd, owner, uid, gid)
        finally:
            os.close(fd)

    def set_directory(self, name: str, mode: int, uid: int, gid: int) -> None:
        """Set the mode and the owner of a directory; -1: unchanged. What is in it stays as it is.

        Raises OSError: NotADirectoryError for a symbolic link, or what else is no directory.
        """
        fd = os.open(name, _LISTED, dir_fd=self._fd)
        try:
            status = os.fstat(fd)
            if any(wanted not in (-1, present) for wanted, present in ((uid, status.st_uid), (gid, status.st_gid))):
                os.fchown(fd, uid, gid)
            if stat.S_IMODE(os.fstat(fd).st_mode) != mode:
                os.fchmod(fd, mode)
        finally:
            os.close(fd)

    def remove_directory(self, name: str) -> None:
        """Remove a directory with all that is in it; no link is followed. Raises OSError.

        Its depth does not matter: directories in directories are moved up before they are removed, so that this needs
        neither recursion nor a descriptor for each level.
        """
        top = os.open(name, _LISTED, dir_fd=self._fd)
        try:
            _empty_directory(top)
        finally:
            os.close(top)
        os.rmdir(name, dir_fd=self._fd)

    def give(self, name: str, uid: int, gid: int) -> None:
        """Change the owner of a file or directory; -1: unchanged. Raises OSError."""
        os.chown(name, uid, gid, dir_fd=self._fd, follow_symlinks=False)

    def rename(self, old: str, new: str) -> None:
        """Rename a file, in place of any other. Raises OSError."""
        os.rename(old, new, src_dir_fd=self._fd, dst_dir_fd=self._fd)

    def replace(self, name: str, content: bytes) -> None:
        """Write a file of mode 0644, flush it to the disk, and put it in place of any other. Raises OSError.

        After a kill or a power cut there is either the former file or the new one, and perhaps NAME.part.
        """
        part = f"{name}.part"
        try:
            self.unlink(part)
        except FileNotFoundError:
            pass
        with os.fdopen(self.create(part, os.O_WRONLY, 0o644), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        self.rename(part, name)

    def unlink(self, name: str) -> None:
        """Remove a file. Raises OSError."""
        os.unlink(name, dir_fd=self._fd)

    def set_mode(self, name: str, mode: int) -> None:
        """Set the mode of a file that is not a symbolic link. Raises OSError."""
        os.chmod(name, mode, dir_fd=self._fd)

    def status(self, name: str) -> os.stat_result:
        """Return the status of a file, not of what a link leads to. Raises OSError."""
        return os.stat(name, dir_fd=self._fd, follow_symlinks=False)


def _empty_directory(top: int) -> None:
    """Remove what is in a directory. Raises OSError, for instance if another process adds to it meanwhile."""
    directories = _remove_files(top)
    while directories:
        name = directories.pop()
        fd = os.open(name, _LISTED, dir_fd=top)
        try:
            for inner in _remove_files(fd):
                moved = os.urandom(16).hex()  # a name that the owner of the directory cannot have taken
                os.rename(inner, moved, src_dir_fd=fd, dst_dir_fd=top)
                directories.append(moved)
        finally:
            os.close(fd)
        os.rmdir(name, dir_fd=top)


def _remove_files(directory: int) -> list[str]:
    """Remove what is in a directory but its directories, whose names are returned. Raises OSError."""
    directories = []
    with os.scandir(directory) as entries:
        found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_directory in found:
        if is_directory:
            directories.append(name)
        else:
            os.unlink(name, dir_fd=directory)
    return directories


# ---- paths of which others may control a part


def locate(path: str, users: Container[int]) -> tuple[int, str]:
    """Find what is at an absolute path; return a descriptor of it (O_PATH, close-on-exec), and its path without links.

    A symbolic link is followed only if one of `users` has made it, in a directory of which no other user controls a
    part of the path; with no `users`, none is followed. The last part of the path may be a link, too.

    Raises:
        UntrustedPathError: another user controls a link.
        OSError: see open(2).
    """
    try:
        return open_without_links(path), os.path.normpath(path)
    except OSError as error:
        # ELOOP: a link. EAGAIN: something was renamed meanwhile. ENOSYS, EPERM: an old kernel, or the filter of a
        # container engine.
        if error.errno not in (errno.ELOOP, errno.EAGAIN, errno.ENOSYS, errno.EPERM):
            raise
    walk = _Walk(path, users)
    try:
        return walk.run()
    finally:
        walk.close()


def open_without_links(path: str) -> int:
    """Open what is at a path (O_PATH, close-on-exec) if no part of it is a symbolic link. Raises OSError: ELOOP."""
    return _openat2(_AT_FDCWD, path, os.O_PATH, _RESOLVE_NO_SYMLINKS | _RESOLVE_NO_MAGICLINKS)


def _openat2(directory: int, path: str, flags: int, resolve: int) -> int:
    import ctypes  # imported here: `check` uses this module, and the import is slow

    from nsupervisor.linux.syscalls import last_error, libc

    how = (ctypes.c_uint64 * 3)(flags | os.O_CLOEXEC, 0, resolve)  # struct open_how: flags, mode, resolve
    size = ctypes.c_size_t(ctypes.sizeof(how))
    fd: int = libc.syscall(SYS_OPENAT2, directory, os.fsencode(path), how, size)
    if fd < 0:
        raise last_error(f"open {path}")
    return fd


def open_for_reading(path: str, flags: int = os.O_RDONLY) -> int:
    """Open a file at an absolute path for reading; return its descriptor, close-on-exec. An `opener` for `open`.

    A user that controls a part of the path cannot make it lead to a file of another one: a link of that user must lead
    to a file of the same user, and what is in a directory of that user must have no other name.

    Raises:
        UntrustedPathError: another user may have put the name of a foreign file there.
        OSError: see open(2); `filename` is `path`.
    """
    walk = _Walk(path, trusted_users(), follows_all=True)
    try:
        fd, real = walk.run()
        try:
            walk.check_file(os.fstat(fd), real)
            return os.open(f"/proc/self/fd/{fd}", flags | os.O_CLOEXEC)
        finally:
            os.close(fd)
    except UntrustedPathError:
        raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None
    finally:
        walk.close()


def make_below(directory: int, names: Sequence[str], is_file: bool) -> int:
    """Make directories, each in the one before, and as the last one a file if `is_file`; return its descriptor.

    None of them may exist. Raises OSError.
    """
    fd = os.dup(directory)
    try:
        for position, name in enumerate(names, 1):
            if is_file and position == len(names):
                os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644, dir_fd=fd))
            else:
                os.mkdir(name, 0o755, dir_fd=fd)
            child = os.open(name, _ANY, dir_fd=fd)
            os.close(fd)
            fd = child
    except BaseException:
        os.close(fd)
        raise
    return fd


def _give(top: int, owner: int, uid: int, gid: int) -> None:
    """Give all that is in a directory and belongs to `owner` to `uid` and `gid`, without following any link.

    Its depth does not matter: this needs neither recursion nor a descriptor for each level. Raises OSError, for
    instance if another process moves a directory meanwhile.
    """
    current, device = os.dup(top), os.fstat(top).st_dev
    names = os.listdir(current)
    above: list[tuple[int, list[str]]] = []  # for each directory above: its inode, and what is left to do in it
    try:
        while names or above:
            if not names:
                inode, names = above.pop()
                current = _replace(current, os.open("..", _LISTED, dir_fd=current))
                if os.fstat(current).st_ino != inode:
                    raise OSError(errno.EAGAIN, "a directory was moved while its contents got another owner")
                continue
            fd = os.open(names.pop(), _ANY, dir_fd=current)
            try:
                status = os.fstat(fd)
                if status.st_uid == owner:
                    os.chown(f"/proc/self/fd/{fd}", uid, gid)
                if stat.S_ISDIR(status.st_mode) and status.st_dev == device:
                    above.append((os.fstat(current).st_ino, names))
                    current = _replace(current, os.open(".", _LISTED, dir_fd=fd))
                    names = os.listdir(current)
            finally:
                os.close(fd)
    finally:
        os.close(current)


def _replace(fd: int, new: int) -> int:
    os.close(fd)
    return new


# ---- paths inside of a root file system


def open_in_root(root: int, path: str, flags: int = os.O_PATH, follows: bool = True) -> int:
    """Open what a process whose root directory is `root` would find at `path`; return a descriptor, close-on-exec.

    No symbolic link and no ".." leads out of `root`, and none of the kind of /proc/self/root is followed, openat2(2).
    `follows`: symbolic links inside are followed. If not, one is ELOOP.

    Raises OSError: see openat2(2); ENOSYS before Linux 5.6.
    """
    resolve = _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS | (0 if follows else _RESOLVE_NO_SYMLINKS)
    attempt = 0
    while True:
        try:
            return _openat2(root, path, flags, resolve)
        except OSError as error:
            attempt += 1
            if error.errno != errno.EAGAIN or attempt == _MAX_ATTEMPTS:  # EAGAIN: something was renamed meanwhile
                raise


_MAX_ATTEMPTS = 100


def read_in_root(root: int, path: str, max_bytes: int) -> bytes:
    """Read a regular file inside of `root`; what else is there is not opened. Raises OSError; EFBIG if it is larger."""
    fd = open_in_root(root, path)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "is not a regular file", path)
        with open(f"/proc/self/fd/{fd}", "rb") as file:
            content = file.read(max_bytes + 1)
    finally:
        os.close(fd)
    if len(content) > max_bytes:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), path)
    return content


def make_in_root(root: int, path: str, is_file: bool) -> int:
    """Open what is at `path` inside of `root`, and make it if it is missing; return a descriptor (O_PATH).

    What is made is an empty file or directories of mode 0755, less the umask. Raises OSError.
    """
    missing: list[str] = []
    parent = os.path.normpath(path)
    while True:
        try:
            fd = open_in_root(root, parent or "/")
            break
        except FileNotFoundError:
            if not parent.rstrip("/"):
                raise
        parent, _, name = parent.rpartition("/")
        missing.insert(0, name)
    if not missing:
        return fd
    try:
        return make_below(fd, missing, is_file)
    finally:
        os.close(fd)


def walk_directories(path: str, on_directory: Callable[[int, str, bool], None]) -> int:
    """Find what is at an absolute path; return a descriptor of it (O_PATH, close-on-exec).

    `on_directory` is called before a name is looked up in a directory: with the descriptor of the directory, which is
    open during the call, the name, and whether it is the last one of the path or of a link. So the caller can watch
    each directory on the way, and misses no change. Links are followed as by `locate`.

    Raises:
        UntrustedPathError: another user controls a link.
        OSError: see open(2).
    """
    walk = _Walk(path, trusted_users(), on_directory=on_directory)
    try:
        return walk.run()[0]
    finally:
        walk.close()


def _shown(target: str) -> str:
    """Return the target of a link as a message shows it. Another user may have chosen it, to forge lines."""
    if len(target) > _MAX_SHOWN:
        target = f"{target[:_MAX_SHOWN]}…"
    return target if target.isprintable() else repr(target)


class _Walk:
    """Goes along a path part by part, through the links of trusted users; with `follows_all`, through all links."""

    __slots__ = ("_follows_all", "_foreign_links", "_links", "_names", "_on_directory", "_path", "_stack", "_users")

    def __init__(
        self,
        path: str,
        users: Container[int],
        follows_all: bool = False,
        on_directory: Callable[[int, str, bool], None] | None = None,
    ) -> None:
        self._path = path
        self._users = users
        self._follows_all = follows_all
        self._on_directory = on_directory
        self._foreign_links: list[int] = []  # the owners of the links that other users may control
        self._names = path.split("/")[::-1]
        self._links = 0
        # Each directory from "/" on: its name, its descriptor, and whether no other user controls it or one above it.
        root = os.open("/", _ANY)
        self._stack = [("", root, self._is_trusted(os.fstat(root)))]

    def run(self) -> tuple[int, str]:
        while self._names:
            name = self._names.pop()
            if name == "..":
                if len(self._stack) > 1:
                    os.close(self._stack.pop()[1])
            elif name not in ("", "."):
                self._enter(name)
        path = "/".join(name for name, _, _ in self._stack) or "/"
        return self._stack.pop()[1], path

    def check_file(self, status: os.stat_result, path: str) -> None:
        """Check the file that `run` has found at `path`, see `open_for_reading`. Raises UntrustedPathError."""
        is_trusted = self._stack[-1][2] if self._stack else True
        if self._foreign_links:
            if {*self._foreign_links} != {status.st_uid}:
                raise UntrustedPathError(
                    f"{self._path} leads to {path} of user {status.st_uid}, by a link that another user may control; "
                    f"write {path} if that is the file"
                )
        elif not is_trusted and stat.S_ISREG(status.st_mode) and status.st_nlink > 1:
            raise UntrustedPathError(
                f"{path} is a file with other names (hard links), in a directory that other users control; copy it"
            )

    def _enter(self, name: str) -> None:
        _, directory, trusted = self._stack[-1]
        if self._on_directory is not None:
            self._on_directory(directory, name, not self._names)
        fd = os.open(name, _ANY, dir_fd=directory)
        status = os.fstat(fd)
        if not stat.S_ISLNK(status.st_mode):
            self._stack.append((name, fd, trusted and self._is_trusted(status)))
            return
        try:
            self._follow(name, fd, status, trusted)
        finally:
            os.close(fd)

    def _follow(self, name: str, link: int, status: os.stat_result, trusted: bool) -> None:
        if trusted and status.st_uid in self._users:
            pass
        elif self._follows_all:
            self._foreign_links.append(status.st_uid)
        else:
            place = "/".join([*(name for name, _, _ in self._stack), name])
            target = _shown(os.readlink("", dir_fd=link))
            raise UntrustedPathError(
                f"{place} is a symbolic link to {target}, which is not followed, as other users may control it; "
                "write the path without it"
            )
        self._links += 1
        if self._links > _MAX_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), self._path)
        target = os.readlink("", dir_fd=link)
        self._names += target.split("/")[::-1]
        if target.startswith("/"):
            while len(self._stack) > 1:
                os.close(self._stack.pop()[1])

    def _is_trusted(self, status: os.stat_result) -> bool:
        return status.st_uid in self._users and not _other_writers(status)

    def close(self) -> None:
        while self._stack:
            os.close(self._stack.pop()[1])
