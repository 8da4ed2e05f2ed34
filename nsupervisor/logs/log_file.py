"""A log file, of a workload or of the stream: rotated when it is full or old, with a limited number of files.

Names: `web.log` is written to; `web.log.1` was rotated last, `web.log.2` before it, …; with the suffix `.gz` if they
are compressed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gzip
import os
import shutil
import stat
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs

from nsupervisor.linux.trusted_paths import TrustedDirectory
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


NO_ROTATION = Rotation(max_size=1 << 62)


@attrs.frozen
class FileUse:
    """How a log file is used, by the workloads or by the stream of records."""

    instead: str
    """The advice if the directory may be changed by others."""
    in_use: str
    """The error if another writer has locked the file."""
    makes_directory: bool = True
    """Whether the directory is made if it does not exist."""
    has_other_writers: bool = False
    """Whether other programs may append to the file, for example the service's standard error: then nothing of theirs
    is overwritten or cut off, and rotated files are removed only by a rotation: logrotate may have made them."""


WORKLOAD_FILE = FileUse(
    "set log.path, or supervisor.log_directory, to another place",
    "another workload, supervisor.log_output or another service writes to it",
)
STREAM_FILE = FileUse(
    "set supervisor.log_output to another place",
    "is the log file of a workload or of another service; write another path",
    makes_directory=False,
    has_other_writers=True,
)
_RECORD_START = b'{"timestamp":'


class LogFiles:
    """The log files of the workloads: one `LogFile` for a path, however often a reload changes its settings.

    So all writers of a file share its lock, and one thread at a time rotates or compresses. A file is forgotten when
    its last user is gone.
    """

    def __init__(self) -> None:
        self._files: weakref.WeakValueDictionary[str, LogFile] = weakref.WeakValueDictionary()

    def get(self, path: Path, rotation: Rotation, *, records: bool) -> LogFile:
        """Return the file with this path, which uses these settings from its next write on. Does no input or output."""
        key = os.path.abspath(str(path)).lstrip("/")
        file = self._files.get(key)
        if file is None:
            file = self._files[key] = LogFile(path, rotation, records=records)
        else:
            file.configure(rotation, records=records)
        return file


@attrs.frozen
class _Settings:
    rotation: Rotation
    records: bool


class LogFile:
    """One log file, written to by the captures of both streams of a workload, each in its own thread, or by the sink.

    It is opened when it is first needed, and again if it has been removed. If the disk accepted only a part of a
    record, the rest is kept and written first when there is room again, so no record is torn. Each method that writes
    holds `lock`; a caller with several steps holds it around them. While the file is open it is locked (flock(2)), so a
    second writer is refused, whatever path or link it uses.
    """

    def __init__(
        self,
        path: Path,
        rotation: Rotation,
        *,
        records: bool = True,
        use: FileUse = WORKLOAD_FILE,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """Set up the file without opening it.

        `records`: whole records are written, so an incomplete one at the end of the file was left by a writer that was
        killed, and is cut off. Otherwise the bytes may be of any kind. The age of the file counts by `clock`; only the
        age that it has when it is opened is known by `wall_clock`.
        """
        self.path = path
        self.lock = threading.RLock()
        self.error: str | None = None
        """Why the file cannot be written just now, in the system's words."""
        self._use = use
        self._is_at_record_end = True  # whether what `append_part` has written ends with a whole record
        self._must_reopen = False
        self._wanted = _Settings(rotation, records)
        self._settings = self._wanted  # changed by the writers only, with the lock
        self._clock = clock
        self._wall_clock = wall_clock
        self._fd = -1
        self._size = 0
        self._started_at = 0.0  # by `clock`
        self._unwritten = b""
        self._compressing: threading.Thread | None = None

    @property
    def rotation(self) -> Rotation:
        """The rotation in use, or that the next write will use."""
        return self._wanted.rotation

    def configure(self, rotation: Rotation, *, records: bool) -> None:
        """Use other settings from the next write on. Never waits: the lock may belong to a thread that does."""
        self._wanted = _Settings(rotation, records)

    def apply_settings(self) -> None:
        """Apply the settings of the latest `configure` now: remove files over their number. Raises OSError."""
        with self.lock, self._recording_error():
            self._open()

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

    def append_part(self, data: bytes) -> int:
        """Write records, of which the first may be the rest of one; return how many bytes were written.

        The rest of a record goes to the file that has its beginning, whatever becomes of that. Raises OSError.
        """
        with self.lock, self._recording_error():
            self._open()
            count = self._writable_length(data) if self._is_at_record_end else data.find(b"\n") + 1 or len(data)
            written = os.write(self._fd, memoryview(data)[:count])
            self._size += written
            self._is_at_record_end = data[written - 1 : written] == b"\n"
            return written

    def splice(self, pipe: Pipe) -> int | None:
        """Splice the content of a pipe unread; return how many bytes, 0 at the pipe's end.

        Returns None, and moves nothing, if the file is nearly full or old, so that the line ends matter: see
        `append_raw`.
        """
        with self.lock, self._recording_error():
            self._open()
            if self._size + 2 * MAX_SPLICE > self._settings.rotation.max_size or self._is_expired():
                return None
            moved = pipe.splice_to(self._fd, MAX_SPLICE)
            self._size += moved
            return moved

    def append_raw(self, pipe: Pipe, data: bytes) -> int:
        """Move bytes of any kind from a pipe, at whose front `data` is; return how many, possibly fewer."""
        with self.lock, self._recording_error():
            self._open()
            count = self._writable_length(data)  # may rotate: the descriptor is another one afterwards
            moved = pipe.splice_to(self._fd, count)
            self._size += moved
            return moved

    def end_line(self) -> None:
        """End an incomplete line, so that the next write does not continue it. Raises OSError."""
        with self.lock, self._recording_error():
            self._open()
            if not self._ends_with_line():
                self._size += os.write(self._fd, b"\n")

    def append_bytes(self, data: bytes) -> int:
        """Write bytes of any kind; return how many were written. Raises OSError."""
        with self.lock, self._recording_error():
            self._open()
            count = self._writable_length(data)  # may rotate: the descriptor is another one afterwards
            written = os.write(self._fd, memoryview(data)[:count])
            self._size += written
            return written

    def reopen(self) -> None:
        """Open the file again after an external rotation has renamed it. Raises OSError."""
        with self.lock, self._recording_error():
            self._must_reopen = True
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
        max_size = self._settings.rotation.max_size
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
        return self._settings.records or not self._size or os.pread(self._fd, 1, self._size - 1) == b"\n"

    def _is_expired(self) -> bool:
        age = self._settings.rotation.max_age
        return age is not None and self._clock() - self._started_at >= age

    # ---- the files

    def _open(self) -> None:
        """Apply changed settings, and open the file if it is closed or was removed.

        Notices if the file was truncated (logrotate's copytruncate).
        """
        if self._settings is not self._wanted:
            if self._fd >= 0 and self._wanted.records and not self._ends_with_line():
                self._size += os.write(self._fd, b"\n")  # it was raw; a record begins with a line
            self._settings = self._wanted
            if self._fd >= 0:  # otherwise the files are tidied when it is open
                with self._directory() as directory:
                    self._tidy(directory)
        if self._fd >= 0:
            status = os.fstat(self._fd)
            if not self._is_at_record_end or (status.st_nlink and not self._must_reopen):
                if status.st_size < self._size:
                    self._size = os.lseek(self._fd, 0, os.SEEK_END)
                elif self._use.has_other_writers:
                    self._size = status.st_size
                return
            self._close()
        self._must_reopen = False
        with self._directory() as directory:
            self._open_in(directory)
            if not self._use.has_other_writers:
                self._tidy(directory)

    def _directory(self) -> TrustedDirectory:
        """Open the directory for one use: an operator may remove it, or change its mode, between two uses."""
        mode = 0o750 if self._use.makes_directory else None
        return TrustedDirectory(str(self.path.parent), self._use.instead, mode=mode)

    def _open_in(self, directory: TrustedDirectory) -> None:
        # O_APPEND only if it is needed: splice(2) refuses it.
        flags = os.O_RDWR | os.O_APPEND if self._use.has_other_writers else os.O_RDWR
        fd = directory.open(self.path.name, flags, mode=0o640)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise OSError(errno.EINVAL, "it is not a regular file")
            _lock(fd, self._use.in_use)
            size = os.lseek(fd, 0, os.SEEK_END)
            tail = os.pread(fd, _TAIL_SIZE, max(size - _TAIL_SIZE, 0))
            torn = tail[tail.rfind(b"\n") + 1 :] if self._settings.records and not self._unwritten else b""
            if self._use.has_other_writers and not (torn.startswith(_RECORD_START) or _RECORD_START.startswith(torn)):
                torn = b""  # another program wrote it
            if torn:
                size -= len(torn)
                os.ftruncate(fd, size)
                os.lseek(fd, size, os.SEEK_SET)
        except BaseException:
            os.close(fd)
            raise
        self._fd, self._size = fd, size
        self._started_at = self._clock()
        if size:  # of an earlier supervisor; it began when the last rotation ended
            with contextlib.suppress(OSError):
                rotated_at = directory.status(self._rotated_name(1)).st_mtime
                self._started_at -= max(self._wall_clock() - rotated_at, 0)

    def _close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def _rotate(self) -> None:
        last = self._settings.rotation.max_files - 1
        with self._directory() as directory:
            if last:
                for suffix in ("", ".gz"):
                    _unlink(directory, self._rotated_name(last, suffix))
                for number in range(last - 1, 0, -1):
                    for suffix in ("", ".gz"):
                        _rename(directory, self._rotated_name(number, suffix), self._rotated_name(number + 1, suffix))
                _rename(directory, self.path.name, self._rotated_name(1))
            else:
                _unlink(directory, self.path.name)
        self._close()
        self._open()
        if self._use.has_other_writers:
            with self._directory() as directory:
                self._tidy(directory)

    def _rotated_name(self, number: int, suffix: str = "") -> str:
        return f"{self.path.name}.{number}{suffix}"

    def _tidy(self, directory: TrustedDirectory) -> None:
        """Remove rotated files above the limit, which was larger before, and compress those that are not."""
        number = self._settings.rotation.max_files
        # Only successive numbers: a file such as web.log.20260131 is not ours.
        while [suffix for suffix in ("", ".gz") if _unlink(directory, self._rotated_name(number, suffix))]:
            number += 1
        has_uncompressed = self._oldest_uncompressed(directory) is not None
        if self._settings.rotation.compress and self._compressing is None and has_uncompressed:
            self._compressing = threading.Thread(target=self._compress, name="compress", daemon=True)
            self._compressing.start()

    def _compress(self) -> None:
        """Compress rotated files, the oldest first, until none is left, also of those rotated meanwhile."""
        try:
            with self._directory() as directory:
                while self._compress_next(directory):
                    pass
        except OSError:  # for example a full disk: files stay uncompressed until the next rotation
            with self.lock:
                self._compressing = None

    def _compress_next(self, directory: TrustedDirectory) -> bool:
        """Compress the oldest rotated file; return False if there is none to compress. Raises OSError."""
        with self.lock:
            name = self._oldest_uncompressed(directory) if self._settings.rotation.compress else None
            if name is None:
                self._compressing = None
                return False
        part = f".{self.path.name}.gz.part"
        _unlink(directory, part)
        try:
            self._compress_file(directory, name, part)
        except FileNotFoundError:
            pass  # it has been renamed or removed meanwhile
        finally:
            _unlink(directory, part)
        return True

    def _compress_file(self, directory: TrustedDirectory, name: str, part: str) -> None:
        """Compress a rotated file. It may be renamed or removed meanwhile."""
        with os.fdopen(directory.open(name, os.O_RDONLY), "rb") as plain:
            status = os.fstat(plain.fileno())
            target_fd = directory.create(part, os.O_WRONLY, stat.S_IMODE(status.st_mode))
            # With the log's name and time inside: else `gunzip --name` would restore those of the part.
            with os.fdopen(target_fd, "wb") as target:
                with gzip.GzipFile(self.path.name, "wb", 6, target, status.st_mtime) as compressed:
                    shutil.copyfileobj(plain, compressed, 1 << 20)
                target.flush()
                os.fchmod(target_fd, stat.S_IMODE(status.st_mode))  # whatever the umask
                os.utime(target_fd, ns=(status.st_mtime_ns, status.st_mtime_ns))
        with self.lock:
            for present_name in self._uncompressed_names(directory):
                if os.path.samestat(directory.status(present_name), status):
                    directory.rename(part, f"{present_name}.gz")
                    directory.unlink(present_name)
                    break

    def _oldest_uncompressed(self, directory: TrustedDirectory) -> str | None:
        return next(self._uncompressed_names(directory), None)

    def _uncompressed_names(self, directory: TrustedDirectory) -> Iterator[str]:
        """Yield the rotated files that are not compressed, the oldest first."""
        for number in range(self._settings.rotation.max_files - 1, 0, -1):
            with contextlib.suppress(FileNotFoundError):
                directory.status(name := self._rotated_name(number))
                yield name

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


def _rename(directory: TrustedDirectory, old: str, new: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        directory.rename(old, new)


def _unlink(directory: TrustedDirectory, name: str) -> bool:
    """Remove a file; return whether there was one."""
    try:
        directory.unlink(name)
    except FileNotFoundError:
        return False
    return True


def _lock(fd: int, in_use: str) -> None:
    """Lock an open file for this writer (flock(2)). Raises OSError if another one has it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OSError(errno.EBUSY, in_use) from None
    except OSError:
        pass  # this file system has no locks, or no more of them
