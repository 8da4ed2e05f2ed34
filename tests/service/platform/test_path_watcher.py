"""Looks at real files and directories, and the kernel's events about them."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from nsupervisor.config.paths import PathConfig
from nsupervisor.service.platform import path_watcher
from nsupervisor.service.platform.path_watcher import MISSING, InotifyWatcher, WatchedLook
from tests.needs import needs
from tests.timing import deadline


@pytest.fixture
def watcher() -> Iterator[InotifyWatcher]:
    opened = InotifyWatcher()
    yield opened
    opened.close()


def names(watcher: InotifyWatcher, look: WatchedLook) -> set[str]:
    """Return the names of events that are about the path of a look, or on the way to it."""
    by_wd: dict[int, set[str | None]] = {}
    for watch in look.watches:
        by_wd.setdefault(watch.wd, set()).add(watch.name)
    return {event.name for event in watcher.read() if by_wd.get(event.wd, set()) & {event.name, None}}


def changed(path: Path) -> PathConfig:
    return PathConfig(path_changed=str(path))


def test_a_file_that_is_written_and_one_that_replaces_it(watcher: InotifyWatcher, tmp_path: Path) -> None:
    file = tmp_path / "web.toml"
    file.write_text("a")
    before = watcher.look(changed(file), ())
    with file.open("a") as opened:
        opened.write("b")
        opened.flush()
        assert names(watcher, before) == set()  # it is not closed yet
    assert names(watcher, before) == {"web.toml"}
    (tmp_path / ".web.toml.swp").write_text("c")
    assert names(watcher, before) == set()
    os.replace(tmp_path / ".web.toml.swp", file)
    assert names(watcher, before) == {"web.toml"}
    after = watcher.look(changed(file), ())
    assert before.look is not None
    assert after.look is not None
    assert before.look.fingerprint != after.look.fingerprint


def test_each_write_of_what_may_be_modified(watcher: InotifyWatcher, tmp_path: Path) -> None:
    file = tmp_path / "log"
    file.write_text("a")
    look = watcher.look(PathConfig(path_modified=str(file)), ())
    with file.open("a") as opened:
        opened.write("b")
        opened.flush()
        assert names(watcher, look) == {"log"}


def test_what_does_not_exist_yet_is_waited_for(watcher: InotifyWatcher, tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "c"
    look = watcher.look(PathConfig(path_exists=str(path)), ())
    assert look.look is not None
    assert (look.look.holds, look.look.fingerprint) == (False, MISSING)
    path.parent.mkdir(parents=True)
    assert names(watcher, look) == {"a"}
    look = watcher.look(PathConfig(path_exists=str(path)), ())
    path.touch()
    assert names(watcher, look) == {"c"}
    look = watcher.look(PathConfig(path_exists=str(path)), ())
    assert look.look is not None
    assert look.look.holds


def test_a_link_that_is_replaced(watcher: InotifyWatcher, tmp_path: Path) -> None:
    """Kubernetes shows a volume by `..data`, a link to a directory, which it replaces."""
    for number in "12":
        (tmp_path / number).mkdir()
        (tmp_path / number / "app.toml").write_text(number)
    (tmp_path / "..data").symlink_to("1")
    (tmp_path / "app.toml").symlink_to("..data/app.toml")
    before = watcher.look(changed(tmp_path / "app.toml"), ())
    (tmp_path / "..new").symlink_to("2")
    os.replace(tmp_path / "..new", tmp_path / "..data")
    assert "..data" in names(watcher, before)
    after = watcher.look(changed(tmp_path / "app.toml"), ())
    assert before.look is not None
    assert after.look is not None
    assert before.look.fingerprint != after.look.fingerprint


def test_a_directory_has_something_in_it(watcher: InotifyWatcher, tmp_path: Path) -> None:
    spool = PathConfig(directory_not_empty=str(tmp_path), exclude=("*.part",))
    (tmp_path / "x.part").touch()
    (tmp_path / "job.log").touch()
    look = watcher.look(spool, ("job.log",))
    assert look.look is not None
    assert not look.look.holds
    os.rename(tmp_path / "x.part", tmp_path / "x")
    assert "x" in names(watcher, look)
    look = watcher.look(spool, ("job.log",))
    assert look.look is not None
    assert look.look.holds


def test_a_pattern(watcher: InotifyWatcher, tmp_path: Path) -> None:
    path = PathConfig(path_exists_glob=str(tmp_path / "*.job"))
    (tmp_path / "a.txt").touch()
    look = watcher.look(path, ())
    assert look.look is not None
    assert not look.look.holds
    (tmp_path / "a.job").touch()
    assert "a.job" in names(watcher, look)
    look = watcher.look(path, ())
    assert look.look is not None
    assert look.look.holds


def test_a_large_directory_is_read_in_part(
    watcher: InotifyWatcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(path_watcher, "MAX_ENTRIES", 3)
    for number in range(5):
        (tmp_path / str(number)).touch()
    before = watcher.look(changed(tmp_path), ())
    (tmp_path / "5").touch()
    after = watcher.look(changed(tmp_path), ())
    assert before.look is not None
    assert after.look is not None
    assert before.look.fingerprint.startswith("3 ")
    assert before.look.fingerprint != after.look.fingerprint


def test_a_large_directory_in_which_nothing_that_was_read_counts_is_a_problem(
    watcher: InotifyWatcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another user may fill a directory with names that do not count, so that what counts is not found."""
    monkeypatch.setattr(path_watcher, "MAX_ENTRIES", 3)
    path = PathConfig(path_exists_glob=str(tmp_path / "*.job"))
    for number in range(4):
        (tmp_path / str(number)).touch()
    look = watcher.look(path, ())
    assert look.look is None
    assert "has more than 3 names, and none of those that were read counts" in look.problem
    os.unlink(tmp_path / "0")
    assert "0" in {event.name for event in watcher.read()}
    assert watcher.look(path, ()).problem == ""


def test_a_missing_directory_is_made(watcher: InotifyWatcher, tmp_path: Path) -> None:
    os.chmod(tmp_path, 0o755)
    path = tmp_path / "a" / "spool"
    look = watcher.look(PathConfig(directory_not_empty=str(path), make_directory=True), ())
    if look.problem:  # the test's own directory is below one that others may write to
        assert "could put files into it" in look.problem
    else:
        assert path.is_dir()


@needs("root")
def test_a_link_of_another_user_is_not_followed(watcher: InotifyWatcher, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("x")
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "link").symlink_to(secret)
    os.chown(theirs, 65534, 65534)
    os.chown(theirs / "link", 65534, 65534, follow_symlinks=False)
    look = watcher.look(changed(theirs / "link"), ())
    assert look.look is None
    assert "is a symbolic link" in look.problem
    assert "write the path without it" in look.problem
    os.unlink(theirs / "link")
    (theirs / "link").touch()
    assert "link" in names(watcher, look)  # so it is looked at again when it is replaced
    assert watcher.look(changed(theirs / "link"), ()).problem == ""


@needs("root")
def test_a_link_of_another_user_writes_no_lines_into_a_message(watcher: InotifyWatcher, tmp_path: Path) -> None:
    os.symlink(b"/x\xff\n\x1b[31mother: running" + b"/y" * 1000, tmp_path / "link")
    os.chown(tmp_path / "link", 65534, 65534, follow_symlinks=False)
    problem = watcher.look(changed(tmp_path / "link"), ()).problem
    assert problem.isprintable()
    assert "link to '/x\\udcff\\n\\x1b[31mother: running/y" in problem
    assert len(problem) < 1000


async def test_an_event_wakes_the_reader(watcher: InotifyWatcher, tmp_path: Path) -> None:
    watcher.look(changed(tmp_path), ())
    (tmp_path / "a").touch()
    with trio.fail_after(deadline(20)):
        await watcher.wait()
    assert {event.name for event in watcher.read()} == {"a"}
