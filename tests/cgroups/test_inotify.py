"""The inotify wrapper on ordinary files, whose semantics are inotify(7)'s own."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from nsupervisor.linux.inotify import IN_DELETE_SELF, IN_IGNORED, IN_MODIFY, IN_Q_OVERFLOW, Inotify


@pytest.fixture
def inotify() -> Iterator[Inotify]:
    inotify = Inotify()
    yield inotify
    inotify.close()


def test_tells_changes_by_watch(inotify: Inotify, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for path in (one, two):
        path.write_text("")
    first, second = inotify.add(str(one), IN_MODIFY), inotify.add(str(two), IN_MODIFY)
    assert inotify.read() == []
    two.write_text("x")
    one.write_text("x")
    assert [(event.wd, event.mask) for event in inotify.read()] == [(second, IN_MODIFY), (first, IN_MODIFY)]


def test_the_same_file_is_the_same_watch(inotify: Inotify, tmp_path: Path) -> None:
    (tmp_path / "one").write_text("")
    assert inotify.add(str(tmp_path / "one"), IN_MODIFY) == inotify.add(str(tmp_path / "one"), IN_MODIFY)


def test_names_of_directory_entries_are_skipped(inotify: Inotify, tmp_path: Path) -> None:
    wd = inotify.add(str(tmp_path), IN_MODIFY)
    (tmp_path / "a-rather-long-name").write_text("x")
    (tmp_path / "b").write_text("x")
    assert {event.wd for event in inotify.read()} == {wd}


def test_a_removed_watch_says_ignored_and_can_be_removed_again(inotify: Inotify, tmp_path: Path) -> None:
    (tmp_path / "one").write_text("")
    wd = inotify.add(str(tmp_path / "one"), IN_MODIFY)
    inotify.remove(wd)
    assert inotify.read() == [(wd, IN_IGNORED, "")]
    inotify.remove(wd)


def test_a_removed_file_says_ignored(inotify: Inotify, tmp_path: Path) -> None:
    (tmp_path / "one").write_text("")
    wd = inotify.add(str(tmp_path / "one"), IN_DELETE_SELF)
    (tmp_path / "one").unlink()
    assert inotify.read() == [(wd, IN_DELETE_SELF, ""), (wd, IN_IGNORED, "")]


def test_too_many_events_say_overflow(inotify: Inotify, tmp_path: Path) -> None:
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    if limit > 50_000:
        pytest.skip(f"the queue holds {limit} events here, which takes too long to fill")
    fds = []
    try:
        for name in ("one", "two"):
            fds.append(os.open(tmp_path / name, os.O_CREAT | os.O_WRONLY))
            inotify.add(str(tmp_path / name), IN_MODIFY)
        for _ in range(limit // 2 + 1):  # in turn, because equal events in a row become one
            for fd in fds:
                os.write(fd, b"x")
    finally:
        for fd in fds:
            os.close(fd)
    masks = set()
    while events := inotify.read():
        masks |= {event.mask for event in events}
    assert masks == {IN_MODIFY, IN_Q_OVERFLOW}


def test_a_missing_file_is_named(inotify: Inotify) -> None:
    with pytest.raises(FileNotFoundError, match="/nowhere"):
        inotify.add("/nowhere", IN_MODIFY)
