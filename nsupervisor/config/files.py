"""Read configuration files, with errors that say what to do instead."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from functools import partial
from typing import NamedTuple

from nsupervisor.config.problems import ConfigError, Problem

MAX_FILE_SIZE = 16 * 2**20
"""Largest file in bytes. A larger one is probably a device, a log or a disk image."""

MAX_INCLUDED_FILES = 1000
"""Most files that a configuration may include."""


class SourceFile(NamedTuple):
    """The text of a file, and its path for messages."""

    path: str
    text: str


class IncludedFile(NamedTuple):
    """A file that was included, and the path of the include that names it, perhaps with wildcards."""

    pattern: str
    path: str
    text: str


def find_among(files: Sequence[IncludedFile]) -> Callable[[str], list[SourceFile]]:
    """Return a function like `find_included` that finds these files, which another process has read."""
    return lambda pattern: [SourceFile(file.path, file.text) for file in files if file.pattern == pattern]


def read_text(path: str | os.PathLike[str], opener: Callable[[str, int], int] | None = None) -> str:
    """Read a file's text; ConfigError if it cannot be read, is too large, or is not UTF-8.

    FIFOs are accepted ("/dev/stdin", a shell's "<(…)"). A byte order mark at the beginning is dropped. `opener`: as for
    `open`.
    """
    name = os.fspath(path)
    try:
        with open(path, "rb", opener=opener) as file:
            data = file.read(MAX_FILE_SIZE + 1)
    except FileNotFoundError:
        raise _read_error(name, "there is no such file; check the path") from None
    except IsADirectoryError:
        raise _read_error(name, "is a directory; name the file in it") from None
    except PermissionError:
        raise _read_error(name, f"may not be read by user {os.geteuid()}; run as its owner, or chmod it") from None
    except OSError as error:
        raise _read_error(name, f"cannot be read: {error.strerror}; name a readable file") from None
    except ValueError:
        raise _read_error(name.replace("\0", "\\0"), "has a NUL byte in its path; check the path") from None
    if len(data) > MAX_FILE_SIZE:
        raise _read_error(name, f"is larger than {MAX_FILE_SIZE // 2**20} MiB; name a configuration file")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # The position is relative to the end of a byte order mark, which has no newline: the line is the
        # same.
        line = error.object.count(b"\n", 0, error.start) + 1
        byte = error.object[error.start]
        message = f"byte 0x{byte:02x} is not UTF-8; save the file in UTF-8"
        raise ConfigError([Problem(name, line, "", message)]) from None


def reread_text(path: str) -> str:
    """Read a configuration file again, as `read_text` does; ConfigError if it is a FIFO, which has no second text."""
    if os.path.exists(path) and not stat.S_ISREG(os.stat(path).st_mode):
        raise _read_error(path, "is no file that can be read again; name one: nsupervisor reload FILE")
    return read_text(path)


def find_included(pattern: str) -> list[SourceFile]:
    """Read the files that an include names, in the order of their names; ConfigError if one cannot be read.

    The last part of `pattern` may have the wildcards of glob(7); names with a leading dot match only a pattern that has
    one. A directory that does not exist has no files. A file that every user may change, by itself or by its directory,
    is refused: it commands the service.
    """
    directory, name = os.path.split(pattern)
    shown = directory or "."
    has_wildcard = is_wildcard(name)
    if is_wildcard(directory):
        raise _read_error(pattern, "has a wildcard in a directory; write wildcards in the last part of the path only")
    try:
        fd = os.open(shown, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        if has_wildcard:
            return []
        raise _read_error(pattern, "there is no such file; check the path") from None
    except OSError as error:
        raise _read_error(shown, f"cannot be read: {error.strerror}; name a readable directory") from None
    except ValueError:
        raise _read_error(pattern.replace("\0", "\\0"), "has a NUL byte in its path; check the path") from None
    try:
        if has_wildcard:
            found = (entry for entry in os.listdir(fd) if fnmatchcase(entry, name))
            names = sorted(entry for entry in found if entry[0] != "." or name[0] == ".")
        else:
            names = [name]
        if len(names) > MAX_INCLUDED_FILES:
            raise _read_error(pattern, f"names more than {MAX_INCLUDED_FILES} files; include fewer")
        if names and os.fstat(fd).st_mode & stat.S_IWOTH:
            message = "every user may write to this directory, and so command the service: chmod o-w it"
            raise _read_error(shown, message)
        opener = partial(_open_included, directory=fd)
        return [SourceFile(path, read_text(path, opener)) for path in (os.path.join(directory, name) for name in names)]
    except OSError as error:
        raise _read_error(shown, f"cannot be read: {error.strerror}; name a readable directory") from None
    finally:
        os.close(fd)


def is_wildcard(text: str) -> bool:
    """Check for the wildcards of glob(7)."""
    return any(character in text for character in "*?[")


def _open_included(path: str, flags: int, directory: int) -> int:
    """Open a regular file in a directory, without waiting for the writer of a FIFO."""
    fd = os.open(os.path.basename(path), flags | os.O_NONBLOCK, dir_fd=directory)
    mode = os.fstat(fd).st_mode
    if stat.S_ISREG(mode) and not mode & stat.S_IWOTH:
        return fd
    os.close(fd)
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is not a regular file")
    raise OSError(errno.EINVAL, "every user may write to it, and so command the service (chmod o-w)")


def _read_error(name: str, message: str) -> ConfigError:
    return ConfigError([Problem(name, 0, "", message)])
