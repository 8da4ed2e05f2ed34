"""Files that are put aside: by size, by age, at line ends; whole records whatever happens to the disk."""

import gzip
import os
import shutil
import stat
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsupervisor.logs import LogFile, LogFiles, Pipe, Rotation


@pytest.fixture
def pipe():
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    yield Pipe(reader), writer
    for fd in (reader, writer):
        os.close(fd)


def everything(path):
    """What all files together hold, oldest first."""
    names = sorted(path.parent.glob(f"{path.name}.[0-9]*"), key=lambda name: -int(name.suffixes[1][1:]))
    return b"".join(gzip.decompress(n.read_bytes()) if n.suffix == ".gz" else n.read_bytes() for n in [*names, path])


def append(file, data):
    while data:
        data = data[file.append(data) :]


def move(file, pipe, data):
    left, writer = pipe
    os.write(writer, data)
    while True:
        try:
            file.append_raw(left, left.peek())
        except BlockingIOError:
            return


def join_compression(file):
    if (thread := file._compressing) is not None:
        thread.join()


@given(st.lists(st.binary(max_size=30).map(lambda b: b.replace(b"\n", b"") + b"\n"), max_size=60), st.integers(8, 100))
def test_records_are_never_split_and_files_never_too_long(tmp_path_factory, records, most):
    path = tmp_path_factory.mktemp("log") / "web.log"
    file = LogFile(path, Rotation(max_size=most, max_files=1000))
    for first in range(0, len(records), 7):
        append(file, b"".join(records[first : first + 7]))
    file.close()
    if not records:
        return
    assert everything(path) == b"".join(records)
    for name in path.parent.iterdir():
        data = name.read_bytes()
        assert data.endswith(b"\n")
        assert len(data) <= most or data.count(b"\n") == 1


@pytest.mark.parametrize("size", [1, 7, 64, 1000])
def test_raw_bytes_are_put_aside_at_the_end_of_a_line_however_they_come(tmp_path, pipe, size):
    path = tmp_path / "web.log"
    file = LogFile(path, Rotation(max_size=100, max_files=1000), records=False)
    text = b"".join(b"%d %s\n" % (number, b"x" * (number % 40)) for number in range(100))
    for at in range(0, len(text), size):
        move(file, pipe, text[at : at + size])
    file.close()
    assert everything(path) == text
    for name in tmp_path.iterdir():
        data = name.read_bytes()
        assert data.endswith(b"\n") or name == path
        assert len(data) < 150


def test_a_line_without_an_end_does_not_fill_the_disk(tmp_path, pipe):
    path = tmp_path / "web.log"
    file = LogFile(path, Rotation(max_size=100, max_files=3), records=False)
    for _ in range(50):
        move(file, pipe, b"x" * 30)
    assert sum(name.stat().st_size for name in tmp_path.iterdir()) <= 3 * 200
    assert len(list(tmp_path.iterdir())) == 3


def test_no_more_files_than_allowed_and_one_may_be_all(tmp_path):
    for count in (1, 2, 5):
        path = tmp_path / str(count) / "web.log"
        file = LogFile(path, Rotation(max_size=10, max_files=count))
        for number in range(20):
            append(file, b"line %02d\n" % number)
        assert len(list(path.parent.iterdir())) == count
        assert everything(path) == b"".join(b"line %02d\n" % number for number in range(20 - count, 20))
        assert stat.S_IMODE(path.stat().st_mode) & 0o027 == 0


def test_an_old_file_is_put_aside_with_the_next_line(tmp_path):
    now = [1000.0]
    path = tmp_path / "web.log"
    file = LogFile(path, Rotation(max_age=60), clock=lambda: now[0], wall_clock=lambda: now[0])
    append(file, b"one\n")
    now[0] += 59
    append(file, b"two\n")
    now[0] += 1
    append(file, b"three\n")
    assert (tmp_path / "web.log.1").read_bytes() == b"one\ntwo\n"
    assert path.read_bytes() == b"three\n"


def test_those_put_aside_are_compressed_while_others_come(tmp_path):
    path = tmp_path / "web.log"
    file = LogFile(path, Rotation(max_size=1000, max_files=50, compress=True))
    lines = [b"line %04d\n" % number for number in range(1000)]
    for line in lines:
        append(file, line)
        join_compression(file)
    assert everything(path) == b"".join(lines)
    packed = list(tmp_path.glob("*.gz"))
    assert len(packed) == 9
    assert all(stat.S_IMODE(name.stat().st_mode) == stat.S_IMODE(path.stat().st_mode) for name in packed)
    assert not list(tmp_path.glob(".*"))
    # RFC 1952: behind ten bytes with the time among them, the name; it was that of the part.
    assert {name.read_bytes()[10:18] for name in packed} == {b"web.log\0"}
    assert all(int.from_bytes(name.read_bytes()[4:8], "little") == int(name.stat().st_mtime) for name in packed)


def test_a_record_that_a_killed_writer_left_torn_is_cut_off_but_bytes_are_not(tmp_path):
    path = tmp_path / "web.log"
    path.write_bytes(b"whole\nto")
    append(LogFile(path, Rotation()), b"next\n")
    assert path.read_bytes() == b"whole\nnext\n"
    path.write_bytes(b"whole\nto")
    append(LogFile(path, Rotation(), records=False), b"rn\n")
    assert path.read_bytes() == b"whole\ntorn\n"


def test_a_file_that_was_renamed_or_removed_or_cut_by_somebody(tmp_path):
    path = tmp_path / "web.log"
    file = LogFile(path, Rotation())
    append(file, b"one\n")
    path.rename(tmp_path / "kept")
    append(file, b"two\n")  # logrotate has not told us yet
    file.reopen()
    append(file, b"three\n")
    assert ((tmp_path / "kept").read_bytes(), path.read_bytes()) == (b"one\ntwo\n", b"three\n")
    path.unlink()
    append(file, b"four\n")
    assert path.read_bytes() == b"four\n"
    os.truncate(path, 0)  # copytruncate
    append(file, b"five\n")
    assert path.read_bytes() == b"five\n"


def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "web.log")
    file = LogFile(tmp_path / "web.log", Rotation())
    with pytest.raises(OSError, match="not a regular file"):
        file.append(b"one\n")
    assert file.error == "it is not a regular file"


@pytest.mark.fault("D4")
@pytest.mark.parametrize("step", [-365 * 86400, 365 * 86400])
def test_a_step_of_the_wall_clock_does_not_change_the_age_of_an_open_file(tmp_path, step):
    monotonic, wall = [50.0], [1e9]
    path = tmp_path / "web.log"
    file = LogFile(path, Rotation(max_age=60), clock=lambda: monotonic[0], wall_clock=lambda: wall[0])
    append(file, b"one\n")
    wall[0] += step
    monotonic[0] += 59
    append(file, b"two\n")
    monotonic[0] += 1
    append(file, b"three\n")
    assert (tmp_path / "web.log.1").read_bytes() == b"one\ntwo\n"
    assert path.read_bytes() == b"three\n"


@pytest.mark.fault("D4")
@pytest.mark.parametrize(("rotated", "expired"), [(-61, True), (-59, False), (3600, False)])
def test_a_file_of_an_earlier_supervisor_has_the_age_that_the_wall_clock_shows(tmp_path, rotated, expired):
    path, wall = tmp_path / "web.log", 1e9
    path.write_bytes(b"old\n")
    previous = tmp_path / "web.log.1"
    previous.write_bytes(b"older\n")
    os.utime(previous, (wall + rotated, wall + rotated))
    file = LogFile(path, Rotation(max_age=60), clock=lambda: 50.0, wall_clock=lambda: wall)
    append(file, b"new\n")
    assert path.read_bytes() == (b"new\n" if expired else b"old\nnew\n")


@pytest.mark.fault("H3")
def test_a_path_has_one_file_however_it_is_spelled_and_whatever_its_settings(tmp_path):
    files = LogFiles()
    first = files.get(tmp_path / "web.log", Rotation(max_files=3), records=True)
    again = files.get(tmp_path / "x" / ".." / "." / "web.log", Rotation(max_files=4), records=False)
    assert again is first
    assert first.rotation.max_files == 4
    assert files.get(tmp_path / "other.log", Rotation(), records=True) is not first


@pytest.mark.fault("D3")
@pytest.mark.parametrize("compress", [False, True])
def test_fewer_files_are_kept_as_soon_as_the_setting_changes(tmp_path, compress):
    path = tmp_path / "web.log"
    file = LogFile(path, Rotation(max_size=10, max_files=6, compress=compress))
    for number in range(8):
        append(file, b"line %02d\n" % number)
        join_compression(file)
    (tmp_path / "web.log.20260131").write_bytes(b"of another program\n")
    file.configure(Rotation(max_size=10, max_files=2, compress=compress), records=True)
    file.apply_settings()
    suffix = ".gz" if compress else ""
    assert {name.name for name in tmp_path.iterdir()} == {"web.log", f"web.log.1{suffix}", "web.log.20260131"}


@pytest.mark.fault("D3")
def test_a_new_supervisor_removes_files_above_the_limit(tmp_path):
    path = tmp_path / "web.log"
    for number in range(1, 6):
        (tmp_path / f"web.log.{number}").write_bytes(b"old\n")
    append(LogFile(path, Rotation(max_files=3)), b"new\n")
    assert {name.name for name in tmp_path.iterdir()} == {"web.log", "web.log.1", "web.log.2"}


@pytest.mark.fault("F7")
def test_files_rotated_while_another_is_compressed_are_compressed_too(tmp_path, monkeypatch):
    started, proceed, copy = threading.Event(), threading.Event(), shutil.copyfileobj

    def copy_later(*arguments):
        started.set()
        proceed.wait()
        copy(*arguments)

    monkeypatch.setattr(shutil, "copyfileobj", copy_later)
    path = tmp_path / "web.log"
    file = LogFile(path, Rotation(max_size=10, max_files=50, compress=True))
    lines = [b"line %02d\n" % number for number in range(10)]
    append(file, lines[0] + lines[1])
    started.wait()
    for line in lines[2:]:
        append(file, line)
    proceed.set()
    join_compression(file)
    assert len(list(tmp_path.glob("web.log.*.gz"))) == 9
    assert sorted(name.name for name in tmp_path.glob("*.log.[0-9]")) == []
    assert everything(path) == b"".join(lines)


@pytest.mark.fault("F7")
def test_files_that_an_earlier_supervisor_left_plain_are_compressed(tmp_path):
    (tmp_path / "web.log.1").write_bytes(b"one\n")
    file = LogFile(tmp_path / "web.log", Rotation(compress=True))
    append(file, b"two\n")
    join_compression(file)
    assert {name.name for name in tmp_path.iterdir()} == {"web.log", "web.log.1.gz"}


@pytest.mark.fault("D1")
@pytest.mark.parametrize(
    ("link", "reason"), [(os.link, r"is a file with other names \(hard links\)"), (os.symlink, "is a symbolic link")]
)
def test_no_writer_uses_a_link_to_the_file_of_another_one(tmp_path, link, reason):
    append(LogFile(tmp_path / "web.log", Rotation()), b"one\n")
    link(tmp_path / "web.log", tmp_path / "db.log")
    with pytest.raises(OSError, match=reason):
        LogFile(tmp_path / "db.log", Rotation()).append(b"two\n")
    assert (tmp_path / "web.log").read_bytes() == b"one\n"


@pytest.mark.fault("D1")
def test_two_writers_of_one_file_are_refused_whatever_their_paths(tmp_path):
    file = LogFile(tmp_path / "web.log", Rotation())
    append(file, b"one\n")
    (tmp_path / "folder").mkdir()
    other = LogFile(tmp_path / "folder" / ".." / "web.log", Rotation())
    with pytest.raises(OSError, match="another workload"):
        other.append(b"two\n")
    file.close()
    append(other, b"three\n")
    assert (tmp_path / "web.log").read_bytes() == b"one\nthree\n"


@pytest.mark.fault("H13")
def test_records_after_raw_output_begin_on_a_new_line(tmp_path, pipe):
    path = tmp_path / "web.log"
    file = LogFile(path, Rotation(), records=False)
    move(file, pipe, b"one\nhalf a li")
    file.configure(Rotation(), records=True)
    append(file, b"record\n")
    assert path.read_bytes() == b"one\nhalf a li\nrecord\n"


@pytest.mark.fault("H3")
def test_a_reload_while_a_file_is_compressed_starts_no_second_compression(tmp_path, monkeypatch):
    started, proceed, copy = threading.Event(), threading.Event(), shutil.copyfileobj
    copies = []

    def copy_later(*arguments):
        copies.append(threading.current_thread())
        started.set()
        proceed.wait()
        copy(*arguments)

    monkeypatch.setattr(shutil, "copyfileobj", copy_later)
    files, path, kept = LogFiles(), tmp_path / "web.log", []
    lines = [b"line %02d\n" % number for number in range(8)]
    for number, line in enumerate(lines):
        kept.append(files.get(path, Rotation(max_size=10, max_files=50 + number, compress=True), records=True))
        append(kept[-1], line)
        if number == 1:
            started.wait()
    assert len(copies) == 1
    proceed.set()
    for file in kept:
        join_compression(file)
    assert everything(path) == b"".join(lines)


@pytest.mark.parametrize("way", ["append_raw", "append_bytes"])
def test_bytes_after_a_rotation_go_to_the_new_file_whatever_its_descriptor(tmp_path, pipe, monkeypatch, way):
    """The rotation closes a descriptor, and another file of the process may get its number at once."""
    file = LogFile(tmp_path / "web.log", Rotation(max_size=4, max_files=9), records=False)
    file.append_bytes(b"one\n")
    others, open_again = [], file._open

    def open_after_another() -> None:
        if file._fd < 0:
            others.append(os.open(tmp_path / "other", os.O_RDWR | os.O_CREAT))
        open_again()

    monkeypatch.setattr(file, "_open", open_after_another)
    reader, writer = pipe
    os.write(writer, b"two\n")
    if way == "append_raw":
        file.append_raw(reader, b"two\n")
    else:
        file.append_bytes(b"two\n")
    file.close()
    for fd in others:
        os.close(fd)
    assert len(others) == 1
    assert [(tmp_path / name).read_bytes() for name in ("web.log.1", "web.log", "other")] == [b"one\n", b"two\n", b""]
