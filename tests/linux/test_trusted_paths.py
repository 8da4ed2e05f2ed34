"""Directories that other users control are refused, and their links are not followed."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from nsupervisor.linux.mounts import MNT_DETACH, Mount, umount2
from nsupervisor.linux.trusted_paths import (
    TrustedDirectory,
    UntrustedPathError,
    locate,
    make_below,
    open_for_reading,
    open_trusted_directory,
)
from tests.needs import needs
from tests.roots import open_directories

pytestmark = needs("root")

NOBODY = 65534
ROOT = frozenset({0})
INSTEAD = "write another path"


def own(path: Path, user: int = NOBODY, group: int = -1) -> Path:
    os.chown(path, user, group, follow_symlinks=False)
    return path


def opened(path: Path, mode: int | None = None) -> str:
    """Open a directory, and return its path as the kernel knows it."""
    fd = open_trusted_directory(str(path), INSTEAD, mode)
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


def located(path: Path | str) -> str:
    """Return the path that `locate` returns, which is that of the descriptor."""
    fd, real = locate(str(path), ROOT)
    try:
        assert os.readlink(f"/proc/self/fd/{fd}") == real
        return real
    finally:
        os.close(fd)


@pytest.fixture
def parent(tmp_path: Path) -> Path:
    """A directory of root in /tmp, which is sticky."""
    (tmp_path / "parent" / "last").mkdir(parents=True)
    return tmp_path / "parent"


# ---- directories that no other user controls


@pytest.mark.fault("A12")
def test_a_directory_of_root_is_opened(parent: Path) -> None:
    assert opened(parent / "last") == str(parent / "last")
    assert opened(Path(f"{parent}/./last/../last/")) == str(parent / "last")
    assert opened(Path("/")) == "/"


@pytest.mark.fault("A12")
@pytest.mark.parametrize("place", ["parent", "parent/last"])
def test_a_directory_of_another_user_is_refused(parent: Path, place: str) -> None:
    directory = own(parent.parent / place)
    message = f"{directory} belongs to user 65534, who could put files into it; chown it, or write another path"
    with pytest.raises(UntrustedPathError, match=f"^{message}$"):
        opened(parent / "last")


@pytest.mark.fault("A12")
@pytest.mark.parametrize(
    ("mode", "group", "place", "writers"),
    [
        (0o777, 0, "parent", "every user"),
        (0o777, 0, "parent/last", "every user"),
        (0o1777, 0, "parent", ""),
        (0o1777, 0, "parent/last", "every user"),
        (0o775, 50, "parent", "group 50"),
        (0o1775, 50, "parent", ""),
        (0o775, 50, "parent/last", "group 50"),
        (0o775, 0, "parent/last", ""),
        (0o755, 50, "parent/last", ""),
    ],
)
def test_a_directory_that_others_may_write_to_is_refused_unless_it_is_sticky(
    parent: Path, mode: int, group: int, place: str, writers: str
) -> None:
    directory = own(parent.parent / place, 0, group)
    directory.chmod(mode)
    if not writers:
        assert opened(parent / "last") == str(parent / "last")
        return
    with pytest.raises(UntrustedPathError, match=f"^{directory} is writable by {writers}, who could put files into it"):
        opened(parent / "last")


@pytest.mark.fault("A12")
def test_no_link_is_followed_not_even_one_of_root(parent: Path) -> None:
    link = parent.parent / "link"
    link.symlink_to(parent)
    message = f"^{link} is a symbolic link; write {parent}/last if that is the place, or write another path$"
    with pytest.raises(UntrustedPathError, match=message):
        opened(link / "last")
    with pytest.raises(UntrustedPathError, match="is a symbolic link"):
        opened(link / "new", mode=0o755)
    assert not (parent / "new").exists()


@pytest.mark.fault("A12")
def test_missing_directories_are_made_only_on_request(parent: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        opened(parent / "a" / "b")
    assert caught.value.filename == str(parent / "a")
    assert opened(parent / "a" / "b", mode=0o700) == str(parent / "a" / "b")
    assert [oct(path.stat().st_mode & 0o777) for path in (parent / "a", parent / "a" / "b")] == ["0o755", "0o700"]
    (parent / "file").touch()
    with pytest.raises(UntrustedPathError, match=f"^{parent}/file is not a directory; write another path$"):
        opened(parent / "file" / "x", mode=0o700)


@pytest.mark.fault("A12")
def test_nothing_is_made_in_a_directory_of_another_user(parent: Path) -> None:
    own(parent)
    with pytest.raises(UntrustedPathError, match="belongs to user 65534"):
        opened(parent / "new", mode=0o755)
    assert not (parent / "new").exists()


# ---- paths of which others may control a part


@pytest.mark.fault("A11")
def test_links_of_root_in_directories_of_root_are_followed(parent: Path) -> None:
    (parent / "absolute").symlink_to(parent / "last")
    (parent / "relative").symlink_to("../parent/./last")
    (parent / "chain").symlink_to("absolute")
    (parent / "last" / "file").touch()
    for name in ("last", "absolute", "relative", "chain", "last/../chain"):
        assert located(parent / name) == str(parent / "last")
        assert located(f"{parent}/{name}//./file") == str(parent / "last" / "file")
    (parent / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        located(parent / "loop")
    (parent / "dangling").symlink_to("missing")
    with pytest.raises(FileNotFoundError):
        located(parent / "dangling")
    assert located("/") == "/"


@pytest.mark.fault("A11")
def test_directories_of_other_users_are_entered(parent: Path) -> None:
    own(parent)
    own(parent / "last")
    assert located(parent / "last") == str(parent / "last")


@pytest.mark.fault("A11")
@pytest.mark.parametrize(
    ("link_owner", "directory_owner", "mode"),
    [
        pytest.param(NOBODY, 0, 0o1777, id="of another user in a sticky directory"),
        pytest.param(0, NOBODY, 0o755, id="of root in a directory of another user"),
        pytest.param(0, 0, 0o777, id="of root in a directory that every user may write to"),
        pytest.param(NOBODY, NOBODY, 0o755, id="of another user in a directory of that user"),
    ],
)
@pytest.mark.parametrize("below", ["", "/passwd"])
def test_links_that_others_may_control_are_not_followed(
    parent: Path, link_owner: int, directory_owner: int, mode: int, below: str
) -> None:
    directory = own(parent / "last", directory_owner)
    directory.chmod(mode)
    (directory / "link").symlink_to("/etc")
    own(directory / "link", link_owner)
    message = f"^{directory}/link is a symbolic link to /etc, which is not followed, as other users may control it"
    with pytest.raises(UntrustedPathError, match=message):
        located(f"{directory}/link{below}")


@pytest.mark.fault("A11")
def test_a_link_of_root_deep_in_a_directory_of_another_user_is_not_followed(parent: Path) -> None:
    """That user can move the directory of root to another name."""
    (parent / "last" / "etc").symlink_to("/etc")
    own(parent)
    with pytest.raises(UntrustedPathError, match="is a symbolic link to /etc"):
        located(parent / "last" / "etc")


@pytest.mark.fault("A11")
def test_a_directory_that_is_replaced_after_it_was_found_is_not_mounted(parent: Path) -> None:
    """The mount is made between the descriptors, whatever is at their paths by then."""
    source, target, other = parent / "source", parent / "last", parent / "other"
    source.mkdir()
    other.mkdir()
    (source / "of-source").touch()
    (other / "of-other").touch()
    source_fd, _ = locate(str(source), ROOT)
    target_fd, _ = locate(str(target), ROOT)
    source.rename(parent / "moved-source")
    target.rename(parent / "moved-target")
    source.symlink_to(other)
    target.symlink_to(other)
    Mount("bind", str(source), str(target), ["ro"]).bind(target_fd, source_fd)
    try:
        assert os.listdir(parent / "moved-target") == ["of-source"]
        assert os.listdir(other) == ["of-other"]
    finally:
        umount2(str(parent / "moved-target"), MNT_DETACH)
        os.close(source_fd)
        os.close(target_fd)


# ---- files that are read


def read(path: Path) -> str:
    with open(path, opener=open_for_reading) as file:
        return file.read()


@pytest.mark.fault("A10")
def test_a_file_of_another_user_is_read_through_that_users_own_links(parent: Path) -> None:
    """As `current/.env`, where `current` is a link to the latest release."""
    own(parent)
    release = own(parent / "last")
    (release / "env").write_text("A=1")
    own(release / "env")
    (parent / "current").symlink_to("last")
    own(parent / "current")
    assert read(parent / "current" / "env") == read(release / "env") == "A=1"
    own(release / "env", 0)
    assert read(release / "env") == "A=1", "a file that root has put there"
    with pytest.raises(FileNotFoundError) as caught:
        read(parent / "current" / "missing")
    assert caught.value.filename == f"{parent}/current/missing"


@pytest.mark.fault("A10")
@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_another_user_made_root_read_a_file_of_root(parent: Path, link: Callable[[Path, Path], None]) -> None:
    (parent.parent / "secret").write_text("SECRET=1")
    own(parent)
    link(parent.parent / "secret", parent / "env")
    if link is os.symlink:
        own(parent / "env")
    with pytest.raises(UntrustedPathError, match=r"by a link that another user may control|with other names"):
        read(parent / "env")


@pytest.mark.fault("A10")
def test_links_of_root_lead_anywhere(parent: Path) -> None:
    (parent / "last" / "env").write_text("A=1")
    (parent / "env").symlink_to("last/env")
    assert read(parent / "env") == "A=1"


def test_directories_and_files_are_made_one_in_the_other(parent: Path) -> None:
    directory = os.open(parent, os.O_PATH)
    try:
        for names, is_file in ((["a", "b"], False), (["c", "d"], True)):
            fd = make_below(directory, names, is_file)
            assert os.readlink(f"/proc/self/fd/{fd}") == str(parent.joinpath(*names))
            assert parent.joinpath(*names).is_file() == is_file
            os.close(fd)
        with pytest.raises(FileExistsError):
            make_below(directory, ["a", "e"], False)
    finally:
        os.close(directory)


@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_file_that_another_process_makes_at_the_same_moment_is_opened_and_checked(tmp_path, monkeypatch, kind):
    """Two services that start together open the same lock file: one creates it between the two steps of the other."""
    create = TrustedDirectory.create

    def create_after_another(directory: TrustedDirectory, name: str, flags: int, mode: int) -> int:
        if kind == "file":
            (tmp_path / name).write_text("theirs")
        else:
            (tmp_path / name).symlink_to("elsewhere")
        return create(directory, name, flags, mode)

    monkeypatch.setattr(TrustedDirectory, "create", create_after_another)
    with TrustedDirectory(str(tmp_path), "choose another place") as directory:
        if kind == "file":
            fd = directory.open("lock", os.O_RDWR, mode=0o600)
            assert os.read(fd, 10) == b"theirs"
            os.close(fd)
        else:
            with pytest.raises(UntrustedPathError, match="is a symbolic link"):
                directory.open("lock", os.O_RDWR, mode=0o600)


# ---- removal


def make_deep(directory: Path, depth: int) -> None:
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=fd)
        os.mkdir("beside", dir_fd=fd)
        below = os.open("d", os.O_PATH | os.O_DIRECTORY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)


def test_a_directory_is_removed_however_deep_it_is(tmp_path: Path) -> None:
    """A program that nests its runtime directory deeper than Python's stack must not end the service."""
    open_directories(tmp_path / "site")
    (tmp_path / "site").mkdir()
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/file").touch()
    (tmp_path / "site/link").symlink_to(tmp_path / "kept")
    make_deep(tmp_path / "site", 2 * sys.getrecursionlimit())
    with TrustedDirectory(str(tmp_path), INSTEAD) as parent:
        parent.remove_directory("site")
    assert os.listdir(tmp_path) == ["kept"]
    assert (tmp_path / "kept/file").exists()


def test_no_link_in_the_place_of_a_directory_is_removed_through(tmp_path: Path) -> None:
    open_directories(tmp_path / "site")
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/file").touch()
    (tmp_path / "site").symlink_to(tmp_path / "kept")
    with TrustedDirectory(str(tmp_path), INSTEAD) as parent, pytest.raises(NotADirectoryError):
        parent.remove_directory("site")
    assert (tmp_path / "kept/file").exists()


def test_a_file_is_replaced_whatever_an_earlier_attempt_has_left(parent: Path) -> None:
    place = parent / "last"
    (place / "target").write_text("kept")
    (place / "x").write_text("before")
    (place / "x.part").symlink_to(place / "target")
    with TrustedDirectory(str(place), INSTEAD) as directory:
        directory.replace("x", b"after")
    assert {path.name: path.read_text() for path in place.iterdir()} == {"target": "kept", "x": "after"}
    assert (place / "x").stat().st_mode & 0o777 == 0o644


@needs("root")
def test_contents_are_given_to_another_owner_whatever_their_depth(tmp_path: Path) -> None:
    """A hostile program makes a deep tree, which must not prevent its next start."""
    depth = 2000
    top = tmp_path / "top"
    top.mkdir()
    fds = [os.open(top, os.O_RDONLY)]
    for _ in range(depth):
        os.mkdir("d", dir_fd=fds[-1])
        fds.append(os.open("d", os.O_RDONLY, dir_fd=fds[-1]))
        os.close(fds.pop(-2))
    os.close(os.open("last", os.O_CREAT, dir_fd=fds[-1]))
    (tmp_path / "outside").write_text("")
    os.chown(tmp_path / "outside", 61_184, 61_184)
    (top / "link").symlink_to("../outside")
    os.link(f"/proc/self/fd/{fds[-1]}/last", top / "of-root")
    with TrustedDirectory(str(tmp_path), "") as directory:
        directory.give_contents("top", 61_184, 61_184)  # root's own, to it
        directory.set_directory("top", 0o755, 61_184, 61_184)
        (top / "by-root").write_text("")
        directory.give_contents("top", 61_185, 61_186)
        directory.set_directory("top", 0o755, 61_185, 61_186)
        status = os.stat("last", dir_fd=fds[-1])
        assert (status.st_uid, status.st_gid) == (61_185, 61_186)
        assert {path.name: path.lstat().st_uid for path in top.iterdir()} == {
            **dict.fromkeys(("d", "link", "of-root"), 61_185), "by-root": 0
        }  # fmt: skip
        assert (tmp_path / "outside").stat().st_uid == 61_184
        os.close(fds[-1])
        directory.remove_directory("top")
