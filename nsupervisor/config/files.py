"""Reading a text file that a person wrote, with errors that say what to do."""

from __future__ import annotations

import os

from nsupervisor.config.problems import ConfigError, Problem

LARGEST = 16 * 2**20
"""Bytes. A larger file is not what a person meant: a device, a log, a disk image."""


def read_text(path: str | os.PathLike[str]) -> str:
    """The file's text; ConfigError when it cannot be read, is too large, or is not UTF-8.

    FIFOs are fine ("/dev/stdin", a shell's "<(…)"). A byte order mark at the beginning is dropped.
    """
    name = os.fspath(path)
    try:
        with open(path, "rb") as file:
            data = file.read(LARGEST + 1)
    except FileNotFoundError:
        raise _unreadable(name, "there is no such file; check the path") from None
    except IsADirectoryError:
        raise _unreadable(name, "is a directory; name the file in it") from None
    except PermissionError:
        raise _unreadable(name, f"may not be read by user {os.geteuid()}; run as its owner, or chmod it") from None
    except OSError as error:
        raise _unreadable(name, f"cannot be read: {error.strerror}; name a readable file") from None
    except ValueError:
        raise _unreadable(name.replace("\0", "\\0"), "has a NUL byte in its path; check the path") from None
    if len(data) > LARGEST:
        raise _unreadable(name, f"is larger than {LARGEST // 2**20} MiB; name a configuration file")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # The position counts from behind a byte order mark, which holds no newline: the line is the same.
        line = error.object.count(b"\n", 0, error.start) + 1
        byte = error.object[error.start]
        message = f"byte 0x{byte:02x} is not UTF-8; save the file in UTF-8"
        raise ConfigError([Problem(name, line, "", message)]) from None


def _unreadable(name: str, message: str) -> ConfigError:
    return ConfigError([Problem(name, 0, "", message)])
