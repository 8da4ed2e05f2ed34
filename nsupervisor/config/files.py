"""Read configuration files, with errors that say what to do instead."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable

from nsupervisor.config.problems import ConfigError, Problem

MAX_FILE_SIZE = 16 * 2**20
"""Largest file in bytes. A larger one is probably a device, a log or a disk image."""


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


def _read_error(name: str, message: str) -> ConfigError:
    return ConfigError([Problem(name, 0, "", message)])
