"""Archives that the kernel unpacks as its first file system ("newc" format).

Source: Documentation/driver-api/early-userspace/buffer-format.rst. Archives may follow one another in one file.
"""

from collections.abc import Iterable
from typing import NamedTuple


class Entry(NamedTuple):
    """A file: its name without leading slash, mode with the type's bits, content, device number."""

    name: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def archive(entries: Iterable[Entry]) -> bytes:
    """Put entries into an archive; directories must come before their contents."""
    out = bytearray()
    for inode, entry in enumerate([*entries, Entry("TRAILER!!!", 0)], 1):
        name = entry.name.encode() + b"\0"
        fields = (inode, entry.mode, 0, 0, 1, 0, len(entry.data), 0, 0, *entry.device, len(name), 0)
        out += b"070701" + b"".join(b"%08X" % field for field in fields) + name
        out += b"\0" * (-len(out) % 4) + entry.data
        out += b"\0" * (-len(out) % 4)
    return bytes(out) + b"\0" * (-len(out) % 512)
