"""A workload's log file: appended to, rotated when it is full or old, with a limited number of files.

Names: `web.log` is written to; `web.log.1` was rotated last, `web.log.2` before it, …; with the suffix `.gz` if they
are compressed.
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

from nsupervisor.logs.pipe import Pipe

MAX_SPLICE = 256 * 1024
"""The largest number of bytes moved at once: a quarter of a busy pipe, so that its writer need not wait meanwhile."""
_TAIL_SIZE = 1 << 20
"""The number of bytes at the end of a file that are searched for its last complete record."""


@attrs.frozen
class Rotation:
    """When to rotate a file (size in bytes; age in seconds, or None), how many to keep, and whether to compress.

    `max_files` includes the file in use. Only rotated files are compressed.
    """

    max_size: int = 64 << 20
    max_files: int = 5
    max_age: float | None = None
    compress: bool = False


class LogFile:
    """One log file, written to by the captures of both streams of a workload, each in its own thread.

    It is opened when it is first needed, and again if it has been removed. If the disk accepted only a part of a
    record, the rest is kept and written first when there is room again, so no record is torn. Each method holds `lock`;
    a caller with several steps holds it around them.
    """

    def __init__(
        self, path: Path, rotation: Rotation, *, records: bool = True, clock: Callable[[], float] = time.time
    ) -> None:
        """Set up the file without opening it.

        `records`: whole records are written, so an incomplete one at the end of the file was left by a writer that was
        killed, and is cut off. Otherwise the bytes may be of any kind.
        """
        self.path = path
        self.rotation = rotation
        self.lock = threading.RLock()
        self.error: str | None = None
        """Why the file cannot be written just now, in the system's words."""
        self._records = records
        self._clock = clock
        self._fd = -1
        self._size = 0
        self._started_at = 0.0
        self._unwritten = b""
        self._compressing: threading.Thread | None = None

    def append(self, data: bytes) -> int:
        """Write records; return how many bytes are accounted for, up to the end of a record.

        They are fewer than `data` if the file or the disk became full. Raises OSError if nothing could be written.
        """
        with self.lock, self._recording_error():
            self._open()
            while self._unwritten:
                written = os.write(self._fd, self._unwritten)
                self._size += written
                self._unwritten = self._unwritten[written:]
            count = self._writable_length(data)
            written = os.write(self._fd, memoryview(data)[:count])
            self._size += written
            if written == count:
                return count
            end = written if data[written - 1 : written] == b"\n" else data.find(b"\n", written) + 1 or count
            self._unwritten = data[written:end]
            return end

    def splice(self, pipe: Pipe) -> int | None:
        """Splice the content of a pipe unread; return how many bytes, 0 at the pipe's end.

        Returns None, and moves nothing, if the file is nearly full or old, so that the line ends matter: see
        `append_raw`.
        """
        with self.lock, self._recording_error():
            self._open()
            if self._size + 2 * MAX_SPLICE > self.rotation.max_size or self._is_expired():
                return None
            moved = pipe.splice_to(self._fd, MAX_SPLICE)
            self._size += moved
            return moved

    def append_raw(self, pipe: Pipe, data: bytes) -> int:
        """Move bytes of any kind from a pipe, at whose front `data` is; return how many, possibly fewer."""
        with self.lock, self._recording_error():
            self._open()
            moved = pipe.splice_to(self._fd, self._writable_length(data))
            self._size += moved
            return moved

    def end_line(self) -> None:
        """End an incomplete line, so that the next write does not continue it. Raises OSError."""
        with self.lock, self._recording_error():
            self._open()
            if not self._ends_with_line():
                self._size += os.write(self._fd, b"\n")

    def reopen(self) -> None:
        """Open the file again after an external rotation has renamed it. Raises OSError."""
        with self.lock, self._recording_error():
            self._close()
            self._open()

    def close(self) -> None:
        """Close the file; a further write would open it again."""
        with self.lock:
            self._close()

    def __del__(self) -> None:
        if hasattr(self, "_fd"):  # a capture with other settings may have written, and so opened it, after `close`
            self._close()

    # ---- when to rotate

    def _writable_length(self, data: bytes) -> int:
        """Return how much of `data` to write to the file: whole lines, as many as fit. May rotate the file first.

        A line longer than a whole file gets its own file; if it has no end, it is cut at twice the size.
        """
        max_size = self.rotation.max_size
        if self._size and (self._size >= max_size or self._is_expired()) and self._ends_with_line():
            self._rotate()
        if self._size + len(data) <= max_size:
            return len(data)
        cut = data.rfind(b"\n", 0, max(max_size - self._size, 0)) + 1
        if cut:
            return cut
        if self._size and self._ends_with_line():
            self._rotate()
            return self._writable_length(data)
        if end := data.find(b"\n") + 1:
            return end
        if self._size + len(data) > 2 * max_size:
            self._rotate()
        return min(len(data), max_size)

    def _ends_with_line(self) -> bool:
        """Return whether the file ends with the end of a line.

        The end of a torn record is known, and is written first.
        """
        return self._records or not self._size or os.pread(self._fd, 1, self._size - 1) == b"\n"

    def _is_expired(self) -> bool:
        age = self.rotation.max_age
        return age is not None and self._clock() - self._started_at >= age

    # ---- the files

    def _open(self) -> None:
        """Open the file if it is closed or was removed; notice if it was truncated (logrotate's copytruncate)."""
        if self._fd >= 0:
            status = os.fstat(self._fd)
            if status.st_nlink:
                if status.st_size < self._size:
                    self._size = os.lseek(self._fd, 0, os.SEEK_END)
                return
            self._close()
        self.path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        # No O_APPEND: splice(2) refuses it. No other program has a reason to write to the file.
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, 0o640)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise OSError(errno.EINVAL, "it is not a regular file")
            size = os.lseek(fd, 0, os.SEEK_END)
            tail = os.pread(fd, _TAIL_SIZE, max(size - _TAIL_SIZE, 0))
            if self._records and tail and not tail.endswith(b"\n") and not self._unwritten:
                size -= len(tail) - (tail.rfind(b"\n") + 1)
                os.ftruncate(fd, size)
                os.lseek(fd, size, os.SEEK_SET)
        except BaseException:
            os.close(fd)
            raise
        self._fd, self._size = fd, size
        self._started_at = self._clock()
        if size:
            with contextlib.suppress(OSError):
                self._started_at = os.stat(self._rotated_path(1)).st_mtime

    def _close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def _rotate(self) -> None:
        last = self.rotation.max_files - 1
        if last:
            for suffix in ("", ".gz"):
                _unlink(self._rotated_path(last, suffix))
            for number in range(last - 1, 0, -1):
                for suffix in ("", ".gz"):
                    _rename(self._rotated_path(number, suffix), self._rotated_path(number + 1, suffix))
            _rename(str(self.path), self._rotated_path(1))
        else:
            _unlink(str(self.path))
        self._close()
        self._open()
        if self.rotation.compress and last and (self._compressing is None or not self._compressing.is_alive()):
            self._compressing = threading.Thread(target=self._compress, name="compress", daemon=True)
            self._compressing.start()

    def _rotated_path(self, number: int, suffix: str = "") -> str:
        return f"{self.path}.{number}{suffix}"

    def _compress(self) -> None:
        """Compress rotated files, the oldest first. They may be renamed or removed meanwhile."""
        part = self.path.with_name(f".{self.path.name}.gz.part")
        try:
            for number in range(self.rotation.max_files, 0, -1):
                with contextlib.suppress(FileNotFoundError), open(self._rotated_path(number), "rb") as plain:
                    status = os.fstat(plain.fileno())
                    # With the log's name and time inside: else `gunzip --name` would restore those of the part.
                    name, modified_at = self.path.name, status.st_mtime
                    with open(part, "wb") as target, gzip.GzipFile(name, "wb", 6, target, modified_at) as compressed:
                        shutil.copyfileobj(plain, compressed, 1 << 20)
                    os.chmod(part, stat.S_IMODE(status.st_mode))
                    os.utime(part, ns=(status.st_mtime_ns, status.st_mtime_ns))
                    with self.lock:
                        for name in self._uncompressed_paths():
                            if os.path.samestat(os.stat(name), status):
                                os.rename(part, f"{name}.gz")
                                os.unlink(name)
                                break
        except OSError:
            pass  # for example a full disk: the file stays uncompressed until the next rotation
        finally:
            _unlink(str(part))

    def _uncompressed_paths(self) -> Iterator[str]:
        for number in range(1, self.rotation.max_files + 1):
            if os.path.exists(self._rotated_path(number)):
                yield self._rotated_path(number)

    @contextlib.contextmanager
    def _recording_error(self) -> Iterator[None]:
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
