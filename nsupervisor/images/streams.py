"""Readers of blobs: a part of a file, what is compressed in it, and its digest, while it is read.

A reader has `read(size)`, which returns fewer bytes only at the end, and `skip(size)`.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import zlib
from collections.abc import Callable
from typing import Any, Protocol

from nsupervisor.images.errors import ImageError
from nsupervisor.images.limits import MAX_RATIO, RATIO_FROM_BYTES

CHUNK = 256 << 10
_GZIP_CHUNK = 16 << 10
"""How much compressed data is read at once. zlib copies what is left of it at each call and for each member."""
MAX_EMPTY_MEMBERS = 10_000
"""How many members of gzip data may be empty: each takes time, and none of the limits on sizes counts it."""
GZIP_MAGIC, ZSTD_MAGIC = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_MAX_ZSTD_WINDOW = 128 << 20


class Reader(Protocol):
    """Bytes, one after the other."""

    def read(self, size: int) -> bytes: ...
    def skip(self, size: int) -> None: ...


class FilePart:
    """`size` bytes of a file, a descriptor, from `offset` on. Raises ImageError if the file is shorter."""

    def __init__(self, fd: int, offset: int, size: int) -> None:
        self._fd, self._offset, self._end = fd, offset, offset + size

    def read(self, size: int) -> bytes:
        parts = []
        size = min(size, self._end - self._offset)
        while size > 0:
            part = os.pread(self._fd, size, self._offset)
            if not part:
                raise ImageError("the file ends too early; it may be cut, or still be written")
            self._offset += len(part)
            size -= len(part)
            parts.append(part)
        return b"".join(parts)

    def skip(self, size: int) -> None:
        self._offset = min(self._offset + size, self._end)


class Hashed:
    """The bytes of another reader; `digest` is that of all bytes so far, `count` their number."""

    def __init__(self, reader: Reader) -> None:
        self._reader, self._hash, self.count = reader, hashlib.sha256(), 0

    @property
    def digest(self) -> str:
        return f"sha256:{self._hash.hexdigest()}"

    def read(self, size: int) -> bytes:
        data = self._reader.read(size)
        self._hash.update(data)
        self.count += len(data)
        return data

    def skip(self, size: int) -> None:
        while size > 0 and (data := self.read(min(size, CHUNK))):
            size -= len(data)


class Decompressed:
    """The decompressed bytes of another reader: with gzip, zstd, or not at all; its first bytes say which.

    No more than is asked for is decompressed. Raises ImageError for broken data, and if zstd cannot be read.
    """

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._buffer = reader.read(4)
        self._more: Callable[[int], bytes]
        if self._buffer.startswith(GZIP_MAGIC):
            self._input, self._buffer = self._buffer, b""
            self._gzip: Any = zlib.decompressobj(31)
            self._is_member_empty, self._empty_members = True, 0
            self._more = self._read_gzip
        elif self._buffer == ZSTD_MAGIC:
            self._zstd = _open_zstd(_Rejoined(self._buffer, reader))
            self._buffer = b""
            self._more = self._read_zstd
        else:
            self._more = reader.read

    def read(self, size: int) -> bytes:
        parts, self._buffer = [self._buffer[:size]], self._buffer[size:]
        size -= len(parts[0])
        while size > 0 and (part := self._more(size)):
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def skip(self, size: int) -> None:
        while size > 0 and (data := self.read(min(size, CHUNK))):
            size -= len(data)

    def _read_gzip(self, size: int) -> bytes:
        while True:
            if self._gzip.eof:
                self._input = (self._gzip.unused_data or self._input) or self._reader.read(_GZIP_CHUNK)
                if not self._input:
                    return b""
                self._empty_members += self._is_member_empty
                if self._empty_members > MAX_EMPTY_MEMBERS:
                    raise ImageError(f"a layer has more than {MAX_EMPTY_MEMBERS} empty gzip members; compress it again")
                self._gzip, self._is_member_empty = zlib.decompressobj(31), True
            elif not self._input:
                self._input = self._reader.read(_GZIP_CHUNK)
                if not self._input:
                    raise ImageError("the compressed data ends too early")
            try:
                data: bytes = self._gzip.decompress(self._input, size)
            except zlib.error:
                raise ImageError("the compressed data is damaged") from None
            self._input = b"" if self._gzip.eof else self._gzip.unconsumed_tail
            if data:
                self._is_member_empty = False
                return data

    def _read_zstd(self, size: int) -> bytes:
        try:
            data: bytes = self._zstd.read(size)
        except ImageError:
            raise
        except Exception as error:  # the libraries have errors of their own
            raise ImageError(f"the compressed data is damaged: {error}") from None
        return data


class _Rejoined:
    """A file object for libraries: some bytes, then those of a reader."""

    def __init__(self, first: bytes, reader: Reader) -> None:
        self._first, self._reader = first, reader

    def read(self, size: int = -1) -> bytes:
        data, self._first = self._first[:size], self._first[size:]
        return data or self._reader.read(size)


def _open_zstd(source: _Rejoined) -> Any:
    """Return a file object of decompressed data. Raises ImageError without a library for zstd."""
    try:
        zstandard = importlib.import_module("zstandard")
    except ImportError:
        pass
    else:
        decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_ZSTD_WINDOW)
        return decompressor.stream_reader(source, read_across_frames=True)
    try:
        zstd = importlib.import_module("compression.zstd")  # Python 3.14
    except ImportError:
        raise ImageError(
            "a layer is compressed with zstd, for which there is no library; install the Python package zstandard, or "
            "copy the image with skopeo copy --dest-compress-format gzip"
        ) from None
    limit = {zstd.DecompressionParameter.window_log_max: _MAX_ZSTD_WINDOW.bit_length() - 1}
    return zstd.ZstdFile(source, options=limit)


class Budget:
    """How many bytes all layers of an image may unpack to together."""

    def __init__(self, limit: int) -> None:
        self.limit, self.used = limit, 0

    def take(self, size: int) -> None:
        """Use some of the bytes. Raises ImageError if there are not that many left."""
        self.used += size
        if self.used > self.limit:
            raise ImageError(
                f"the image unpacks to more than {self.limit} bytes; load it with --max-size if it is that large"
            )


class Layer:
    """The tar file in a blob, checked while it is read: both digests, its size, and that it is not a bomb."""

    def __init__(self, blob: Reader, budget: Budget) -> None:
        self._blob = Hashed(blob)
        self._tar = Hashed(Decompressed(self._blob))
        self._budget = budget

    def read(self, size: int) -> bytes:
        data = self._tar.read(size)
        self._budget.take(len(data))
        if self._tar.count > RATIO_FROM_BYTES and self._tar.count > self._blob.count * MAX_RATIO:
            raise ImageError(f"a layer unpacks to more than {MAX_RATIO} times its size, as a decompression bomb does")
        return data

    def skip(self, size: int) -> None:
        while size > 0 and (data := self.read(min(size, CHUNK))):
            size -= len(data)

    def finish(self, digest: str | None, diff_id: str) -> None:
        """Read what is left, and compare the digests of the blob and of the tar file in it. Raises ImageError.

        `digest`: of the blob; None: it has none.
        """
        while self.read(CHUNK):
            pass
        self._blob.skip(1 << 62)
        if digest is not None and self._blob.digest != digest:
            raise ImageError(
                f"the layer {digest} has the digest {self._blob.digest}; the image is damaged, copy it again"
            )
        if self._tar.digest != diff_id:
            raise ImageError(
                f"a layer that unpacks to {diff_id} unpacks to {self._tar.digest}; the image is damaged, copy it again"
            )
