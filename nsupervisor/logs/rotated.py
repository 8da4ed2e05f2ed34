"""A workload's log file: appended to, put aside by a rename when it is full or old, and never more than so many.

Names: `web.log` is written to; `web.log.1` was put aside last, `web.log.2` before it, …; with `.gz` behind them where
they are compressed.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import os
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs

from .pipe import Pipe

POUR = 256 * 1024
"""Bytes moved at once at most: a quarter of what a busy pipe holds, so that its writer need not wait meanwhile."""
_TAIL = 1 << 20
"""How far back from its end the end of a file's last whole record is looked for."""


@attrs.frozen
class Rotation:
    """When to put a file aside (bytes; seconds, or None), how many there are with the one in use, and whether the
    others are compressed."""

    max_size: int = 64 << 20
    max_files: int = 5
    max_age: float | None = None
    compress: bool = False


class LogFile:
    """One file, written to by the captures of both streams of a workload, each in a thread of its own.

    It is opened when it is first needed, and again where it has been removed. Of a record of which the disk took only a
    part, the rest is kept and goes first when there is room again, so no record is torn. `lock` is held while anything
    is done; whoever has several things to do holds it around them.
    """

    def __init__(
        self, path: Path, rotation: Rotation, *, records: bool = True, clock: Callable[[], float] = time.time
    ) -> None:
        """`records`: what is written are whole records, so that a torn one at the end of the file is somebody's who was
        killed while writing it, and is cut off; otherwise bytes of any kind."""
        self.path = path
        self.rotation = rotation
        self.lock = threading.RLock()
        self.error: str | None = None
        """Why it cannot be written just now, in the system's words."""
        self._records = records
        self._clock = clock
        self._fd = -1
        self._size = 0
        self._born = 0.0
        self._torn = b""
        self._compressing: threading.Thread | None = None

    def append(self, data: bytes) -> int:
        """Write records; returns how many bytes are accounted for, which is up to the end of a record. Fewer than all
        when the file was full with that, or the disk; OSError when nothing could be written."""
        with self.lock, self._telling():
            self._open()
            while self._torn:
                written = os.write(self._fd, self._torn)
                self._size += written
                self._torn = self._torn[written:]
            count = self._share(data)
            written = os.write(self._fd, memoryview(data)[:count])
            self._size += written
            if written == count:
                return count
            end = written if data[written - 1 : written] == b"\n" else data.find(b"\n", written) + 1 or count
            self._torn = data[written:end]
            return end

    def pour(self, pipe: Pipe) -> int | None:
        """Move what waits in a pipe, as it is and unseen; how many bytes, 0 at the pipe's end. None, and nothing is
        moved, where the file is nearly full or old, so that it matters where the lines end: see `take`."""
        with self.lock, self._telling():
            self._open()
            if self._size + 2 * POUR > self.rotation.max_size or self._old():
                return None
            moved = pipe.move(self._fd, POUR)
            self._size += moved
            return moved

    def take(self, pipe: Pipe, data: bytes) -> int:
        """Move bytes from a pipe, at whose front `data` is, as they are; how many, which may be fewer."""
        with self.lock, self._telling():
            self._open()
            moved = pipe.move(self._fd, self._share(data))
            self._size += moved
            return moved

    def end_line(self) -> None:
        """What comes next does not go on with the line that has begun. Raises OSError."""
        with self.lock, self._telling():
            self._open()
            if not self._whole():
                self._size += os.write(self._fd, b"\n")

    def reopen(self) -> None:
        """Somebody has renamed the file: make it anew. Raises OSError."""
        with self.lock, self._telling():
            self._close()
            self._open()

    def close(self) -> None:
        """Close it; a further write would open it again."""
        with self.lock:
            self._close()

    def __del__(self) -> None:
        if hasattr(self, "_fd"):  # a capture that had other settings meanwhile may have written once more
            self._close()

    # ---- when to put it aside

    def _share(self, data: bytes) -> int:
        """How much of `data` belongs into this file, which may be a new one after this: whole lines, as many as fit.

        A line longer than a whole file gets one of its own; if it has no end, it is cut at twice the size.
        """
        most = self.rotation.max_size
        if self._size and (self._size >= most or self._old()) and self._whole():
            self._rotate()
        if self._size + len(data) <= most:
            return len(data)
        cut = data.rfind(b"\n", 0, max(most - self._size, 0)) + 1
        if cut:
            return cut
        if self._size and self._whole():
            self._rotate()
            return self._share(data)
        if end := data.find(b"\n") + 1:
            return end
        if self._size + len(data) > 2 * most:
            self._rotate()
        return min(len(data), most)

    def _whole(self) -> bool:
        """Whether it ends with the end of a line. Of a torn record the end is known, and comes first."""
        return self._records or not self._size or os.pread(self._fd, 1, self._size - 1) == b"\n"

    def _old(self) -> bool:
        age = self.rotation.max_age
        return age is not None and self._clock() - self._born >= age

    # ---- the files

    def _open(self) -> None:
        """Open it, if it is not, or was removed; and see if somebody has cut it (logrotate's copytruncate)."""
        if self._fd >= 0:
            found = os.fstat(self._fd)
            if found.st_nlink:
                if found.st_size < self._size:
                    self._size = os.lseek(self._fd, 0, os.SEEK_END)
                return
            self._close()
        self.path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        # No O_APPEND: splice(2) refuses it. Nobody else has a reason to write to it.
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, 0o640)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise OSError(errno.EINVAL, "it is not a regular file")
            size = os.lseek(fd, 0, os.SEEK_END)
            tail = os.pread(fd, _TAIL, max(size - _TAIL, 0))
            if self._records and tail and not tail.endswith(b"\n") and not self._torn:
                size -= len(tail) - (tail.rfind(b"\n") + 1)
                os.ftruncate(fd, size)
                os.lseek(fd, size, os.SEEK_SET)
        except BaseException:
            os.close(fd)
            raise
        self._fd, self._size = fd, size
        self._born = self._clock()
        if size:
            with contextlib.suppress(OSError):
                self._born = os.stat(self._aside(1)).st_mtime

    def _close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def _rotate(self) -> None:
        last = self.rotation.max_files - 1
        if last:
            for suffix in ("", ".gz"):
                _unlink(self._aside(last, suffix))
            for number in range(last - 1, 0, -1):
                for suffix in ("", ".gz"):
                    _rename(self._aside(number, suffix), self._aside(number + 1, suffix))
            _rename(str(self.path), self._aside(1))
        else:
            _unlink(str(self.path))
        self._close()
        self._open()
        if self.rotation.compress and last and (self._compressing is None or not self._compressing.is_alive()):
            self._compressing = threading.Thread(target=self._compress, name="compress", daemon=True)
            self._compressing.start()

    def _aside(self, number: int, suffix: str = "") -> str:
        return f"{self.path}.{number}{suffix}"

    def _compress(self) -> None:
        """Compress what has been put aside, the oldest first. It may be put further aside, or go, meanwhile."""
        part = self.path.with_name(f".{self.path.name}.gz.part")
        try:
            for number in range(self.rotation.max_files, 0, -1):
                with contextlib.suppress(FileNotFoundError), open(self._aside(number), "rb") as plain:
                    found = os.fstat(plain.fileno())
                    # With its own name and time inside: `gunzip --name` would give it those of the part.
                    name, time_ = self.path.name, found.st_mtime
                    with open(part, "wb") as target, gzip.GzipFile(name, "wb", 6, target, time_) as packed:
                        shutil.copyfileobj(plain, packed, 1 << 20)
                    os.chmod(part, stat.S_IMODE(found.st_mode))
                    os.utime(part, ns=(found.st_mtime_ns, found.st_mtime_ns))
                    with self.lock:
                        for name in self._plain_names():
                            if os.path.samestat(os.stat(name), found):
                                os.rename(part, f"{name}.gz")
                                os.unlink(name)
                                break
        except OSError:
            pass  # no room for it, say: it stays as it is, and will be tried again at the next rotation
        finally:
            _unlink(str(part))

    def _plain_names(self) -> Iterator[str]:
        for number in range(1, self.rotation.max_files + 1):
            if os.path.exists(self._aside(number)):
                yield self._aside(number)

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except BlockingIOError:
            raise
        except OSError as error:
            self.error = os.strerror(error.errno) if error.errno and not error.strerror else str(error.strerror)
            raise
        else:
            self.error = None


def _rename(old: str, new: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.rename(old, new)


def _unlink(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
