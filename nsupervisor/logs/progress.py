"""How far the capture of a stream has come, in a small file, so that the next supervisor goes on where one was killed.

Three things cannot be done at once: write records out, note it, take their bytes from the pipe. So what is about to be
done is noted first (`begin`), and that it is done afterwards (`commit`). Whoever finds a beginning without an end looks
into the pipe: if the bytes are still at its front, they are recorded again, with the same sequence numbers and marked;
if not, all had been done but the note.

A file holds one header, and two places for the beginning of a line whose end has not come, of which the header names
the one that counts: a header is written in one piece, so it is there or not.
"""

from __future__ import annotations

import os
import resource
import struct
import zlib
from pathlib import Path

import attrs

_HEADER = struct.Struct("<4sQQQIIBIBI")
_MAGIC = b"nsp1"
_NONE = 2**64 - 1  # no pipe has it
_PLACES = (1 << 12, 1 << 40)
"""Where the two begin. The file has holes; no line is as long as the second one."""
_SUM = struct.Struct("<I")
_HIGH = 0.97
"""Of the limit on open files: who gets so high a number closes the file at once, as there are few left."""
_LOOK = 4096
"""Bytes at either end of a chunk that tell it from another."""


def fingerprint(data: bytes) -> int:
    """Of a chunk's first and last bytes."""
    return zlib.crc32(data[-_LOOK:], zlib.crc32(data[:_LOOK]))


@attrs.frozen
class Note:
    """What is noted: the number of the next line, the beginning of a line; and what had been begun, if anything."""

    seq: int = 0
    rest: bytes = b""
    length: int = 0
    """Bytes in the pipe that were being recorded; 0: nothing was."""
    mark: int = 0
    """Their fingerprint."""
    next_seq: int = 0
    """`seq` and `rest` once they are."""
    next_rest: bytes = b""

    def done(self) -> Note:
        """What is so when the beginning has been finished."""
        return Note(self.next_seq, self.next_rest) if self.length else self


class Progress:
    """The file of one generation's stream. Notes survive our death, but not the host's: the pipe would not, either."""

    def __init__(self, path: Path, pipe: int = 0) -> None:
        """Open or make `path`, which is about the pipe with that inode number: of notes about another one nothing
        counts but the number of the next line. Raises OSError."""
        self.path = path
        self._pipe = pipe
        self._place = 0
        self._rests = [b"", b""]
        self._fd = self._open()
        self.note = self._read()
        self.release()

    def begin(self, data: bytes, next_seq: int, next_rest: bytes) -> None:
        """The records of `data`, which is at the front of the pipe, are about to be written."""
        other = 1 - self._place
        self._rests[other] = next_rest
        note = self.note
        self.note = Note(note.seq, note.rest, len(data), fingerprint(data), next_seq, next_rest)
        self._write()

    def commit(self) -> None:
        """They have been written, and taken from the pipe."""
        if self.note.length:
            self._place = 1 - self._place
            self.note = self.note.done()
            self._write()

    def advance(self, seq: int) -> None:
        """The next line has at least this number, unless it is one that had been begun."""
        if not self.note.length and self.note.seq < seq:
            self.note = attrs.evolve(self.note, seq=seq)
            self._write()

    def restart(self, seq: int) -> None:
        """Nothing is left of a line, and the next one has this number."""
        self._rests = [b"", b""]
        self.note = Note(seq)
        self._write()

    def release(self) -> None:
        """Hold no descriptor while there is nothing to note: there may be many of us."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def close(self) -> None:
        """Close the file. It stays: the numbers go on with the next generation."""
        self.release()

    def _open(self) -> int:
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._few_left = fd > _HIGH * resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return fd

    def _write(self) -> None:
        note, place = self.note, self._place
        head = _HEADER.pack(
            _MAGIC,
            self._pipe,
            note.seq,
            note.next_seq,
            note.length,
            note.mark,
            place,
            len(self._rests[place]),
            1 - place,
            len(self._rests[1 - place]),
        )
        try:
            if self._fd < 0:
                self._fd = self._open()
            if note.length and self._rests[1 - place]:
                os.pwrite(self._fd, self._rests[1 - place], _PLACES[1 - place])
            os.pwrite(self._fd, head + _SUM.pack(zlib.crc32(head)), 0)
            if self._few_left:
                self.release()
        except OSError:
            pass  # no room, say: should we be killed now, lines come twice, unmarked; the capture goes on

    def _read(self) -> Note:
        """What is in the file; a file that is new, torn or of another version counts as empty."""
        size = _HEADER.size
        head = os.pread(self._fd, size + _SUM.size, 0)
        if len(head) < size + _SUM.size or _SUM.pack(zlib.crc32(head[:size])) != head[size:]:
            return Note()
        magic, pipe, seq, next_seq, length, mark, place, used, other, other_used = _HEADER.unpack(head[:size])
        if magic != _MAGIC or place + other != 1:
            return Note()
        if pipe != self._pipe:
            return Note(next_seq if length else seq)
        self._place = place
        for index, count in ((place, used), (other, other_used)):
            self._rests[index] = os.pread(self._fd, count, _PLACES[index])
        return Note(seq, self._rests[place], length, mark, next_seq, self._rests[other] if length else b"")


def last_number(path: Path) -> int:
    """The number of the next line, as far as is noted in `path`. Raises OSError."""
    progress = Progress(path, _NONE)
    progress.close()
    return progress.note.seq
