"""Read tar files from a stream: the formats ustar and pax of POSIX, and the long names of GNU tar.

Not `tarfile`: that reads extended headers of any size into memory, follows chains of them recursively, and takes
damaged headers for the end. Sources: POSIX.1-2017, pax, "pax Interchange Format"; tar(5) of libarchive.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Literal

import attrs

from nsupervisor.images.errors import ImageError
from nsupervisor.images.streams import Reader

BLOCK = 512
MAX_EXTENDED_BYTES = 1 << 20
"""The most bytes of an extended header, or of a long name."""
_MAX_EXTENSIONS = 8
"""The most extended headers of one entry."""

Kind = Literal["file", "directory", "symlink", "hardlink", "fifo", "device"]
_KINDS: dict[bytes, Kind] = {
    b"0": "file",
    b"\0": "file",
    b"7": "file",
    b"1": "hardlink",
    b"2": "symlink",
    b"3": "device",
    b"4": "device",
    b"5": "directory",
    b"6": "fifo",
}


@attrs.frozen
class TarEntry:
    """One entry. Names are those of os.fsdecode(). `link`: what a link leads to. `mtime`: seconds since 1970."""

    name: str
    kind: Kind
    mode: int
    uid: int
    gid: int
    mtime: float
    size: int
    link: str
    xattrs: dict[str, bytes]


class Content:
    """The content of the present entry."""

    def __init__(self, reader: Reader, size: int) -> None:
        self._reader, self.left = reader, size

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes; b"" at the end. Raises ImageError if the archive ends before."""
        size = min(size, self.left)
        data = self._reader.read(size)
        if len(data) < size:
            raise ImageError("the archive ends in the middle of a file")
        self.left -= size
        return data


def read_entries(reader: Reader) -> Iterator[tuple[TarEntry, Content]]:
    """Yield each entry with its content, which has to be read before the next entry. Raises ImageError."""
    while (found := _read_entry(reader)) is not None:
        content = Content(reader, found.size)
        yield found, content
        reader.skip(content.left + -found.size % BLOCK)


def _read_entry(reader: Reader) -> TarEntry | None:
    """Return the next entry; None at the end."""
    pax: dict[str, bytes] = {}
    long: dict[bytes, bytes] = {}
    for _ in range(_MAX_EXTENSIONS):
        header = reader.read(BLOCK)
        if len(header) < BLOCK or not header.strip(b"\0"):
            if header.strip(b"\0") or pax or long:
                raise ImageError("the archive ends in the middle of an entry")
            return None
        _check_sum(header)
        kind, size = header[156:157], _number(header[124:136], "size")
        if kind not in (b"x", b"g", b"L", b"K"):
            return _make_entry(header, kind, pax, long)
        if size > MAX_EXTENDED_BYTES:
            raise ImageError(f"an extended header has {size} bytes, and may have {MAX_EXTENDED_BYTES}")
        data = Content(reader, size).read(size)
        reader.skip(-size % BLOCK)
        if kind == b"x":
            pax |= _parse_pax(data)
        elif kind != b"g":  # a global header is for the programs of its author: no image needs one
            long[kind] = data.partition(b"\0")[0]
    raise ImageError(f"an entry has more than {_MAX_EXTENSIONS} extended headers")


def _check_sum(header: bytes) -> None:
    if _number(header[148:156], "check sum") != sum(header) - sum(header[148:156]) + 8 * 32:
        raise ImageError("it is not a tar file, or it is damaged: a header has a wrong check sum")


def _number(field: bytes, what: str) -> int:
    """Return a number: octal digits, or with the first bit set, base 256 (GNU)."""
    if field[0] & 0x80:
        is_negative = field[0] == 0xFF
        return int.from_bytes(field if is_negative else bytes([field[0] & 0x7F]) + field[1:], "big", signed=is_negative)
    text = field.strip(b" \0")
    if not text:
        return 0
    if not text.isdigit() or b"8" in text or b"9" in text:
        raise ImageError(f"it is not a tar file, or it is damaged: a {what} in a header is not a number")
    return int(text, 8)


def _make_entry(header: bytes, kind: bytes, pax: dict[str, bytes], long: dict[bytes, bytes]) -> TarEntry:
    name, link = _until_nul(header[:100]), _until_nul(header[157:257])
    if header[257:263] == b"ustar\0" and (prefix := _until_nul(header[345:500])):
        name = prefix + b"/" + name
    name, link = long.get(b"L", name), long.get(b"K", link)
    name, link = pax.get("path", name), pax.get("linkpath", link)
    if b"\0" in name + link:
        raise ImageError("a name in the archive has a NUL byte")
    if kind == b"S" or any(key.startswith("GNU.sparse.") for key in pax):
        raise ImageError(f"{os.fsdecode(name)!r} is a sparse file of GNU tar, which images do not have")
    if kind not in _KINDS:
        raise ImageError(f"{os.fsdecode(name)!r} has the type {kind!r}, which images do not have")
    found = _KINDS[kind]
    if kind == b"\0" and name.endswith(b"/"):
        found = "directory"
    size = _pax_number(pax, "size") if "size" in pax else _number(header[124:136], "size")
    uid = _pax_number(pax, "uid") if "uid" in pax else _number(header[108:116], "uid")
    gid = _pax_number(pax, "gid") if "gid" in pax else _number(header[116:124], "gid")
    if size < 0 or not 0 <= uid < 2**32 - 1 or not 0 <= gid < 2**32 - 1:
        raise ImageError(f"{os.fsdecode(name)!r} has a negative size, or an id that is none")
    prefix_length = len("SCHILY.xattr.")
    return TarEntry(
        name=os.fsdecode(name),
        kind=found,
        mode=_number(header[100:108], "mode") & 0o7777,
        uid=uid,
        gid=gid,
        mtime=_mtime(header, pax),
        size=size if found == "file" else 0,
        link=os.fsdecode(link),
        xattrs={key[prefix_length:]: value for key, value in pax.items() if key.startswith("SCHILY.xattr.")},
    )


def _until_nul(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def _parse_pax(data: bytes) -> dict[str, bytes]:
    """Return the records "LENGTH KEY=VALUE\\n" of an extended header."""
    found, place = {}, 0
    data = data.rstrip(b"\0")  # once: to look for the end at each record would take quadratic time
    while place < len(data):
        space = data.find(b" ", place, place + 10)
        digits = data[place:space] if space >= 0 else b""
        end = place + int(digits) if digits.isdigit() else 0
        record = data[space + 1 : end]
        if not place < end <= len(data) or record[-1:] != b"\n" or b"=" not in record:
            raise ImageError("an extended header of the archive is damaged")
        key, _, value = record[:-1].partition(b"=")
        if value:
            found[key.decode(errors="replace")] = value
        place = end
    return found


def _pax_number(pax: dict[str, bytes], key: str) -> int:
    text = pax[key]
    if not text.isdigit() or len(text) > 20:
        raise ImageError(f"an extended header of the archive has a wrong {key}")
    return int(text)


def _mtime(header: bytes, pax: dict[str, bytes]) -> float:
    try:
        value = float(pax["mtime"]) if "mtime" in pax else float(_number(header[136:148], "mtime"))
    except (ValueError, OverflowError):
        raise ImageError("an entry of the archive has a wrong time") from None
    return value if 0 <= value < 2**40 else 0.0
