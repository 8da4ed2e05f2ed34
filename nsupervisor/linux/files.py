"""The files of the service as an interface, and the kernel's own implementation. Standard library only."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol


class Files(Protocol):
    """Operations on files, as in `os`. All raise OSError."""

    def open(self, path: Path, flags: int, mode: int = 0o600) -> int:
        """Open a file, always with O_CLOEXEC; return a descriptor."""

    def write(self, fd: int, data: bytes | memoryview) -> int:
        """Write at the file's offset; return how many bytes the kernel has taken."""

    def close(self, fd: int) -> None:
        """Close a descriptor that `open` returned."""

    def read(self, path: Path) -> bytes:
        """Return the content of a file."""

    def rename(self, source: Path, target: Path) -> None:
        """Rename a file; one at `target` is replaced."""

    def unlink(self, path: Path) -> None:
        """Remove a file; one that does not exist is no error."""

    def exists(self, path: Path) -> bool:
        """Return whether there is a file at `path`."""


class KernelFiles:
    """The files of this host."""

    def open(self, path: Path, flags: int, mode: int = 0o600) -> int:
        return os.open(path, flags | os.O_CLOEXEC, mode)

    def write(self, fd: int, data: bytes | memoryview) -> int:
        return os.write(fd, data)

    def close(self, fd: int) -> None:
        os.close(fd)

    def read(self, path: Path) -> bytes:
        return path.read_bytes()

    def rename(self, source: Path, target: Path) -> None:
        source.rename(target)

    def unlink(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    def exists(self, path: Path) -> bool:
        return path.exists()


KERNEL_FILES: Files = KernelFiles()
"""The files of this host."""
