"""How far the capture of a stream has come, in a small file, so that the next supervisor continues after a kill.

Three steps cannot be atomic: write the records, note that they are written, take their bytes from the pipe. So the
intention is noted first (`begin`), and the completion afterwards (`commit`). A supervisor that finds a beginning
without a completion looks into the pipe: if the bytes are still at its front, it records them again, with the same
sequence numbers and marked as possible duplicates; if not, only the note of the completion was missing.

A file has one header, and two slots for the beginning of a line whose end has not arrived. The header names the slot
that is valid. It is written in one piece, so it is complete or absent.
"""

from __future__ import annotations

import os
import resource
import struct
import zlib
from contextlib import suppress
from pathlib import Path

import attrs

STREAMS_DIRECTORY = "streams"
"""Directory within the runtime directory for the files of all captures."""
_HEADER = struct.Struct("<4sQQQIIBIBI")
_MAGIC = b"nsp1"
_NO_PIPE = 2**64 - 1  # an inode number that no pipe has
_SLOT_OFFSETS = (1 << 12, 1 << 40)
"""The offsets of the two slots. The file is sparse; no line is as long as the second offset."""
_CHECKSUM = struct.Struct("<I")
_NEAR_FD_LIMIT = 0.97
"""The fraction of the limit on open files from which a descriptor is closed at once, because few are left."""
_CHECKSUM_SIZE = 4096
"""The number of bytes at either end of a chunk that distinguish it from another."""


def chunk_checksum(data: bytes) -> int:
    """Return a checksum of a chunk's first and last bytes."""
    return zlib.crc32(data[-_CHECKSUM_SIZE:], zlib.crc32(data[:_CHECKSUM_SIZE]))


@attrs.frozen
class Offset:
    """The content of the file: the position in the stream, and the chunk that is being recorded, if any.

    seq: the number of the next line. rest: the beginning of an incomplete line.
    """

    seq: int = 0
    partial_line: bytes = b""
    pending_length: int = 0
    """The number of bytes in the pipe that are being recorded; 0: none."""
    pending_checksum: int = 0
    """The checksum of the bytes that are being recorded."""
    next_seq: int = 0
    """The value of `seq` after they are recorded, followed by the same for the incomplete line."""
    next_partial_line: bytes = b""

    def committed(self) -> Offset:
        """Return the offset after the begun chunk has been recorded."""
        return Offset(self.next_seq, self.next_partial_line) if self.pending_length else self


class OffsetFile:
    """The offset file of one generation's stream.

    Offsets survive the death of the supervisor, but not a crash of the host, which the pipe does not survive either.
    """

    def __init__(self, path: Path, pipe_inode: int = 0, is_new: bool = False) -> None:
        """Read `path`, if it exists, for the pipe with this inode number. Raises OSError.

        `is_new`: it is known not to exist.
        From an offset of another pipe, only the number of the next line is used. The file is made when there is
        something to note: most programs write nothing while thousands start.
        """
        self.path = path
        self._pipe_inode = pipe_inode
        self._slot = 0
        self._slots = [b"", b""]
        self._fd = -1
        self._must_reopen = False
        self.offset = Offset()
        if not is_new:
            with suppress(FileNotFoundError):
                self._fd = self._open(0)
                self.offset = self._read()
                self.close_fd()

    def begin(self, data: bytes, next_seq: int, next_partial_line: bytes) -> None:
        """Note that the records of `data`, which is at the front of the pipe, are about to be written."""
        free_slot = 1 - self._slot
        self._slots[free_slot] = next_partial_line
        note = self.offset
        self.offset = Offset(note.seq, note.partial_line, len(data), chunk_checksum(data), next_seq, next_partial_line)
        self._write()

    def commit(self) -> None:
        """Note that the begun records have been written, and their bytes taken from the pipe."""
        if self.offset.pending_length:
            self._slot = 1 - self._slot
            self.offset = self.offset.committed()
            self._write()

    def advance(self, seq: int) -> None:
        """Raise the number of the next line to at least `seq`, unless a chunk has been begun."""
        if not self.offset.pending_length and self.offset.seq < seq:
            self.offset = attrs.evolve(self.offset, seq=seq)
            self._write()

    def reset(self, seq: int) -> None:
        """Note that no incomplete line is left, and that the next line has this number."""
        if self.offset == Offset(seq):  # noted already, or there has been nothing to note
            return
        self._slots = [b"", b""]
        self.offset = Offset(seq)
        self._write()

    def reopen_at_next_note(self) -> None:
        """Open the file again for the next note, since it was removed. For any thread."""
        self._must_reopen = True

    def close_fd(self) -> None:
        """Close the descriptor while there is nothing to note: there may be many offset files."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def close(self) -> None:
        """Close the file. It stays on disk, because the next generation continues the numbers."""
        self.close_fd()

    def _open(self, flags: int) -> int:
        fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC | flags, 0o600)
        self._is_near_fd_limit = fd > _NEAR_FD_LIMIT * resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return fd

    def _write(self) -> None:
        note, slot = self.offset, self._slot
        header = _HEADER.pack(
            _MAGIC,
            self._pipe_inode,
            note.seq,
            note.next_seq,
            note.pending_length,
            note.pending_checksum,
            slot,
            len(self._slots[slot]),
            1 - slot,
            len(self._slots[1 - slot]),
        )
        if self._must_reopen:
            self._must_reopen = False
            self.close_fd()
        try:
            if self._fd < 0:
                self._fd = self._open(os.O_CREAT)
            if note.pending_length and self._slots[1 - slot]:
                os.pwrite(self._fd, self._slots[1 - slot], _SLOT_OFFSETS[1 - slot])
            os.pwrite(self._fd, header + _CHECKSUM.pack(zlib.crc32(header)), 0)
            if self._is_near_fd_limit:
                self.close_fd()
        except OSError:
            # For example a full disk. The capture continues; if the supervisor is killed now, lines are recorded twice
            # without a mark.
            pass

    def _read(self) -> Offset:
        """Return the offset in the file; a file that is new, torn or of another version counts as empty."""
        size = _HEADER.size
        header = os.pread(self._fd, size + _CHECKSUM.size, 0)
        if len(header) < size + _CHECKSUM.size or _CHECKSUM.pack(zlib.crc32(header[:size])) != header[size:]:
            return Offset()
        magic, pipe, seq, next_seq, length, mark, slot, length_used, other_slot, other_used = _HEADER.unpack(
            header[:size]
        )
        if magic != _MAGIC or slot + other_slot != 1:
            return Offset()
        if pipe != self._pipe_inode:
            return Offset(next_seq if length else seq)
        self._slot = slot
        for index, count in ((slot, length_used), (other_slot, other_used)):
            self._slots[index] = os.pread(self._fd, count, _SLOT_OFFSETS[index])
        return Offset(seq, self._slots[slot], length, mark, next_seq, self._slots[other_slot] if length else b"")


def read_next_seq(path: Path) -> int:
    """Return the number of the next line, as noted in `path`. Raises OSError."""
    progress = OffsetFile(path, _NO_PIPE)
    progress.close()
    return progress.offset.seq
