"""Compressed data that costs more time than its size: what no limit on bytes counts."""

import gzip
import io

import pytest

from nsupervisor.images import tar
from nsupervisor.images.errors import ImageError
from nsupervisor.images.streams import MAX_EMPTY_MEMBERS, Decompressed

EMPTY = gzip.compress(b"")


class Bytes:
    """Some bytes as a reader, which notes how many were asked for at once."""

    def __init__(self, content: bytes) -> None:
        self._file, self.most = io.BytesIO(content), 0

    def read(self, size: int) -> bytes:
        self.most = max(self.most, size)
        return self._file.read(size)

    def skip(self, size: int) -> None:
        self._file.seek(size, io.SEEK_CUR)


def test_empty_members_before_between_and_after_data_are_read():
    content = EMPTY * 1000 + gzip.compress(b"one") + EMPTY * 1000 + gzip.compress(b"two") + EMPTY * 1000
    assert Decompressed(Bytes(content)).read(100) == b"onetwo"


def test_a_great_number_of_empty_members_is_refused():
    content = gzip.compress(b"data") + EMPTY * (MAX_EMPTY_MEMBERS + 2)
    with pytest.raises(ImageError, match="empty gzip members"):
        Decompressed(Bytes(content)).read(100)


def test_members_with_data_are_not_limited():
    member = gzip.compress(b"x")
    number = MAX_EMPTY_MEMBERS + 100
    assert Decompressed(Bytes(member * number)).read(2 * number) == b"x" * number


def test_what_is_left_of_compressed_data_is_small_because_each_call_copies_it():
    """With 256 KiB, to read a megabyte in blocks of 512 bytes copied up to 512 MiB."""
    content = Bytes(gzip.compress(bytes(1 << 20)) + EMPTY)
    reader = Decompressed(content)
    assert all(reader.read(512) == bytes(512) for _ in range(2048))
    assert reader.read(1) == b""
    assert content.most <= 16 << 10


def test_the_records_of_an_extended_header_are_read_in_linear_time():
    copied = 0

    class Counted(bytes):
        def __getitem__(self, place):
            nonlocal copied
            found = bytes.__getitem__(self, place)
            copied += len(found) if isinstance(found, bytes) else 1
            return found

    header = Counted(b"6 a=b\n" * 10_000)
    assert tar._parse_pax(header) == {"a": b"b"}
    assert copied < 4 * len(header)
