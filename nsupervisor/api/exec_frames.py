"""The protocol of a connection that `POST /v1/exec/{name}` has switched to: frames in both directions.

A frame has a kind (one byte), the length of its content (four bytes, big-endian), and the content. From the client:
`STDIN` (an empty one is its end), `RESIZE` (rows and columns, two bytes each) and `SIGNAL` (the number, one byte). From
the service: `STDOUT` and `STDERR`, and last `EXIT`, a JSON object. Standard library only, as the command line uses it,
too.
"""

from __future__ import annotations

import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

PROTOCOL = "nsupervisor-exec"
"""The value of the field `Upgrade`."""
STDIN, STDOUT, STDERR, RESIZE, SIGNAL, EXIT = range(6)
MAX_CONTENT = 64 << 10
"""Bytes of the content of a frame."""
SIZE = struct.Struct(">HH")
"""The content of `RESIZE`."""
_HEADER = struct.Struct(">BI")


class FrameError(Exception):
    """The received bytes are not a frame; the text says why."""


def pack(kind: int, content: bytes = b"") -> bytes:
    """Return the bytes of a frame."""
    return _HEADER.pack(kind, len(content)) + content


class Unpacker:
    """Splits received bytes into frames. It holds less than one frame."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Yield the kind and the content of each frame that is complete now. Raises FrameError."""
        self._data += data
        while len(self._data) >= _HEADER.size:
            kind, size = _HEADER.unpack_from(self._data)
            if kind > EXIT or size > MAX_CONTENT:
                raise FrameError(f"a frame of kind {kind} with {size} bytes; at most {MAX_CONTENT} are allowed")
            end = _HEADER.size + size
            if len(self._data) < end:
                return
            content = bytes(self._data[_HEADER.size : end])
            del self._data[:end]
            yield kind, content
