"""Tar files are read as `tarfile` writes them, and hostile ones are refused."""

import io
import os
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsupervisor.images.errors import ImageError
from nsupervisor.images.tar import BLOCK, MAX_EXTENDED_BYTES, read_entries
from tests.images.archives import directory, file, hardlink, make_tar, symlink


class Bytes(io.BytesIO):
    def skip(self, size: int) -> None:
        self.seek(size, io.SEEK_CUR)


def read(content: bytes) -> list[tuple[object, bytes]]:
    found = []
    for entry, data in read_entries(Bytes(content)):
        parts = []
        while part := data.read(1000):
            parts.append(part)
        found.append((entry, b"".join(parts)))
    return found


NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=300)


@given(
    NAMES,
    st.binary(max_size=2000),
    st.integers(0, 0o7777),
    st.integers(0, 2**32 - 2),
    st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
)
def test_what_tarfile_writes_is_read(name, content, mode, uid, tar_format):
    made = make_tar([file(name, content, mode=mode, uid=uid, mtime=1700000000)], tar_format)
    ((entry, data),) = read(made)
    assert (entry.name, data, entry.kind) == (name, content, "file")
    assert (entry.mode, entry.uid, entry.mtime) == (mode, uid, 1700000000)


@given(st.binary(max_size=3000))
def test_no_bytes_lead_to_another_error(content):
    try:
        read(content)
    except ImageError:
        pass


@given(st.lists(st.tuples(st.integers(0, 3 * BLOCK - 1), st.integers(0, 255)), max_size=5))
def test_no_change_of_an_archive_leads_to_another_error(changes):
    content = bytearray(make_tar([file("a" * 150, b"b"), symlink("c", "d")]))
    for place, value in changes:
        content[place] = value
    try:
        read(bytes(content))
    except ImageError:
        pass


def test_each_kind_of_entry_is_read():
    made = make_tar(
        [
            directory("d"),
            symlink("s", "../../etc"),
            hardlink("h", "f"),
            ("p", {"type": tarfile.FIFOTYPE}),
            ("c", {"type": tarfile.CHRTYPE}),
            ("x", {"type": tarfile.REGTYPE, "pax_headers": {"SCHILY.xattr.user.a": "b"}}),
        ]
    )
    entries = [entry for entry, _ in read(made)]
    assert [entry.kind for entry in entries] == ["directory", "symlink", "hardlink", "fifo", "device", "file"]
    assert (entries[1].link, entries[2].link, entries[5].xattrs) == ("../../etc", "f", {"user.a": b"b"})


def test_a_name_that_is_not_utf_8_is_kept():
    made = make_tar([file(os.fsdecode(b"\xff\xfe"))], tarfile.GNU_FORMAT)
    assert [os.fsencode(entry.name) for entry, _ in read(made)] == [b"\xff\xfe"]


def header(name: bytes, kind: bytes, size: int, size_field: bytes | None = None) -> bytes:
    """Return a header with a right check sum."""
    block = bytearray(BLOCK)
    block[: len(name)] = name
    block[100:108] = block[108:116] = block[116:124] = b"0000644\0"
    block[124:136] = size_field or b"%011o\0" % size
    block[136:148] = b"%011o\0" % 0
    block[156:157] = kind
    block[257:265] = b"ustar\x0000"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def pax(*records: bytes) -> bytes:
    data = b"".join(records)
    return header(b"pax", b"x", len(data)) + data + b"\0" * (-len(data) % BLOCK)


def record(key: bytes, value: bytes) -> bytes:
    rest = b" " + key + b"=" + value + b"\n"
    length = len(rest)
    while length != len(str(length)) + len(rest):
        length = len(str(length)) + len(rest)
    return str(length).encode() + rest


HOSTILE = {
    "a wrong check sum": (b"x" * BLOCK, "check sum"),
    "a negative size": (header(b"a", b"0", 0, b"\xff" * 12), "negative"),
    "a huge extended header": (header(b"a", b"x", MAX_EXTENDED_BYTES + 1), "extended header"),
    "a huge long name": (header(b"a", b"L", 8 << 30), "extended header"),
    "a chain of extended headers": (pax(record(b"path", b"a")) * 1000, "more than 8 extended headers"),
    "an extended header without end": (pax(b"9999 path=a\n"), "damaged"),
    "an extended header with another length": (pax(b"12 path=a\n"), "damaged"),
    "an extended header with a length of nothing": (pax(b"0 path=a\n"), "damaged"),
    "a size that is no number": (pax(record(b"size", b"1e9")) + header(b"a", b"0", 0), "wrong size"),
    "a time that is no number": (pax(record(b"mtime", b"x")) + header(b"a", b"0", 0), "wrong time"),
    "a name with NUL": (pax(record(b"path", b"a\0b")) + header(b"a", b"0", 0), "NUL"),
    "an id of nobody": (pax(record(b"uid", b"4294967295")) + header(b"a", b"0", 0), "an id that is none"),
    "a sparse file of GNU": (header(b"a", b"S", 0), "sparse"),
    "a sparse file of pax": (pax(record(b"GNU.sparse.major", b"1")) + header(b"a", b"0", 0), "sparse"),
    "another type": (header(b"a", b"V", 0), "has the type"),
    "a cut file": (header(b"a", b"0", 100) + b"x", "middle of a file"),
    "a cut header": (header(b"a", b"0", 0)[:100], "middle of an entry"),
    "an extended header at the end": (pax(record(b"path", b"a")), "middle of an entry"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_archive_is_refused(name):
    content, reason = HOSTILE[name]
    with pytest.raises(ImageError, match=reason):
        read(content)


def test_an_infinite_time_is_none():
    ((entry, _),) = read(pax(record(b"mtime", b"inf")) + header(b"a", b"0", 0))
    assert entry.mtime == 0
