"""Cut bytes into lines, whatever pieces they arrive in. Pure: no file, no clock."""

from __future__ import annotations

_SAMPLE_SIZE, _SHORT_LINE = 2048, 32
"""The number of bytes sampled to estimate the length of lines, and the length of a short line."""


def count_newlines(data: bytes) -> int:
    """Count the newlines in `data`.

    `bytes.count` compares byte by byte; `replace` jumps from one newline to the next, which is three times as fast with
    lines of 100 bytes, and slower only if they are very short.
    """
    if data.count(b"\n", 0, _SAMPLE_SIZE) * _SHORT_LINE > _SAMPLE_SIZE:
        return data.count(b"\n")
    return len(data) - len(data.replace(b"\n", b""))


class Framing:
    """Cuts a stream of bytes into lines.

    A line ends with a newline, which is not part of it; neither is one carriage return directly before the newline (a
    program that assumes a terminal ends its lines with both). A line longer than `max_line` bytes is returned in pieces
    of at most `max_line` bytes, all but the last of them marked partial; if the bytes are valid UTF-8, no piece ends
    inside a character. How the input was split between calls makes no difference to the lines.

    Memory: at most `max_line` + 1 bytes are held between calls.
    """

    def __init__(self, max_line: int, *, keeps_carriage_returns: bool = False) -> None:
        """Raise ValueError for a `max_line` (bytes) below 4, the longest UTF-8 character.

        `keeps_carriage_returns`: one before a newline belongs to the line, too, for a copy of the bytes.
        """
        if max_line < 4:
            raise ValueError(f"max_line must be at least 4 bytes, not {max_line}")
        self._max_line = max_line
        self._keeps_carriage_returns = keeps_carriage_returns
        self._partial_line = bytearray()

    def feed(self, data: bytes) -> list[tuple[bytes, bool]]:
        """Process the next bytes; return the (line, partial) pairs that they complete."""
        head, newline, tail = data.partition(b"\n")
        rest = self._partial_line
        rest += head
        if not newline:
            return self._cut_partial_line()
        lines = self._cut_line(bytes(rest))
        *middle, last = tail.split(b"\n")
        rest[:] = last
        # The usual chunk has neither carriage returns nor long lines, so one check for all lines is worthwhile.
        if b"\r" not in tail and len(max(middle, key=len, default=b"")) <= self._max_line:
            lines += [(line, False) for line in middle]
        else:
            for line in middle:
                lines += self._cut_line(line)
        return lines + self._cut_partial_line()

    def feed_complete(self, data: bytes) -> bytes | None:
        """Process the usual chunk at once: return the lines that it completes, with newlines between them.

        The lines are the same as from `feed`. Returns None, and processes nothing, if a line must be cut or may end
        with a carriage return.
        """
        end = data.rfind(b"\n")
        if end < 0 or (b"\r" in data and not self._keeps_carriage_returns):
            return None
        text = b"".join((self._partial_line, memoryview(data)[:end]))
        if (b"\r" in self._partial_line and not self._keeps_carriage_returns) or len(data) - end - 1 > self._max_line:
            return None
        # No line is too long if each stretch of `max_line` + 1 bytes contains a newline.
        start, stretch = 0, self._max_line + 1
        while len(text) - start >= stretch:
            newline = text.rfind(b"\n", start, start + stretch)
            if newline < 0:
                return None
            start = newline + 1
        self._partial_line[:] = data[end + 1 :]
        return text

    @property
    def partial_line(self) -> bytes:
        """The beginning of a line whose end has not arrived."""
        return bytes(self._partial_line)

    @partial_line.setter
    def partial_line(self, rest: bytes) -> None:
        self._partial_line[:] = rest

    def flush(self) -> list[tuple[bytes, bool]]:
        """Return the last line if no newline ended it: one line, in rare cases in two pieces, or nothing."""
        rest = bytes(self._partial_line)
        self._partial_line.clear()
        if len(rest) > self._max_line:  # the one byte over is a carriage return that no newline followed
            return [(rest[: self._max_line], True), (rest[self._max_line :], False)]
        return [(rest, False)] if rest else []

    def _cut_line(self, line: bytes) -> list[tuple[bytes, bool]]:
        """Split a complete line, given without its newline."""
        pieces = []
        while self._is_too_long(line):
            cut = self._cut_position(line)
            pieces.append((line[:cut], True))
            line = line[cut:]
        is_stripped = line.endswith(b"\r") and not self._keeps_carriage_returns
        pieces.append((line[:-1] if is_stripped else line, False))
        return pieces

    def _cut_partial_line(self) -> list[tuple[bytes, bool]]:
        """Split off the pieces of an incomplete line that is already too long."""
        pieces = []
        while self._is_too_long(self._partial_line):
            cut = self._cut_position(self._partial_line)
            pieces.append((bytes(self._partial_line[:cut]), True))
            del self._partial_line[:cut]
        return pieces

    def _is_too_long(self, line: bytes | bytearray) -> bool:
        """Return whether to cut.

        The carriage return of a possible CR LF does not count, so no empty last piece arises.
        """
        excess = len(line) - self._max_line
        return excess > 1 or (excess == 1 and (self._keeps_carriage_returns or not line.endswith(b"\r")))

    def _cut_position(self, line: bytes | bytearray) -> int:
        """Return where to cut: at `max_line`, or up to three bytes before it if that would cut a UTF-8 character.

        Looks at no byte after the one at `max_line`: a byte that may not have arrived yet must not decide.
        """
        cut = self._max_line
        if line[cut] & 0xC0 == 0x80:  # a continuation byte, as RFC 3629 calls it
            for back in (1, 2, 3):
                byte = line[cut - back]
                if byte >= 0xC0:
                    length = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
                    return cut - back if length > back else cut
                if byte < 0x80:
                    break
        return cut
