"""The runtime directory is hidden from programs, whatever else is mounted for them; their own sockets are not."""

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
import trio

from nsupervisor.keeper.messages import SpawnError
from tests.keeper.conftest import ISOLATED, Harness
from tests.needs import needs

pytestmark = needs("root")

USER = {"namespaces": [*ISOLATED, "user"]}
SHIFTED = {**USER, "uid_mappings": [[0, 100000, 1000]], "gid_mappings": [[0, 100000, 1000]]}
WITHOUT_ROOT = {**USER, "uid_mappings": [[1000, 100000, 10]], "gid_mappings": [[1000, 100000, 10]], "uid": 1000}
WAYS = pytest.mark.parametrize(
    "spec",
    [
        pytest.param({"namespaces": ISOLATED}, id="init"),
        pytest.param({"namespaces": ISOLATED, "init": False}, id="pid1"),
        pytest.param({"namespaces": ["mount"]}, id="host-pids"),
        pytest.param({"namespaces": ISOLATED, "uid": 65534, "gid": 65534, "groups": []}, id="nobody"),
        pytest.param(USER, id="user"),
        pytest.param(SHIFTED, id="shifted"),
        pytest.param(WITHOUT_ROOT, id="without-root"),
    ],
)


@attrs.frozen
class Place:
    """A runtime directory with a secret and two notify sockets, in a directory of its own."""

    parent: Path
    directory: Path
    sock: socket.socket

    def cover(self, *show: str, **links: str) -> dict:
        return {"cover": {"directory": str(self.directory), "show": {name: name for name in show}, "links": links}}


@pytest.fixture
def place() -> Iterator[Place]:
    parent = Path(tempfile.mkdtemp(prefix="cover-"))
    parent.chmod(0o755)
    directory = parent / "run"
    (directory / "notify").mkdir(parents=True)
    (directory / "notify").chmod(0o711)
    (directory / "state.json").write_text("secret")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock, socket.socket(socket.AF_UNIX) as other:
        sock.bind(str(directory / "notify" / "own"))
        os.chmod(directory / "notify" / "own", 0o666)
        other.bind(str(directory / "notify" / "other"))
        sock.settimeout(0)
        yield Place(parent, directory, sock)
    shutil.rmtree(parent)


_SEND = 'import socket, sys; socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b"hello", sys.argv[1])'
SEND = f"python3 -c '{_SEND}'"


@pytest.mark.fault("A7")
@pytest.mark.fault("A4")
@WAYS
async def test_only_the_own_socket_is_there(harness: Harness, place: Place, spec: dict) -> None:
    script = f'cd "{place.directory}" && find . | sort && {SEND} notify/own && ! touch x 2>/dev/null'
    result = await harness.run("sh", "-c", script, **spec, **place.cover("notify/own"))
    assert (result.failure, result.stderr, result.code) == (None, "", 0)
    assert result.stdout.split() == [".", "./notify", "./notify/own"]
    assert place.sock.recv(10) == b"hello"


@WAYS
async def test_a_directory_is_shown_elsewhere_and_shows_what_is_made_in_it_later(
    harness: Harness, place: Place, spec: dict
) -> None:
    """After a crash of the service its sockets are made again."""
    cover = {"directory": str(place.directory), "show": {"notify": "n"}, "links": {"link": "n/later"}}
    script = f'cd "{place.directory}" && find . -maxdepth 1 && read _ <&3; cat link'
    fifo = place.parent / "fifo"
    os.mkfifo(fifo, 0o666)
    fifo.chmod(0o666)
    script = f'exec 3<"{fifo}"; ' + script
    spawned = await harness.spawn("sh", "-c", script, **spec, cover=cover)
    end = await trio.to_thread.run_sync(os.open, fifo, os.O_WRONLY)
    (place.directory / "notify" / "later").write_text("here")
    os.write(end, b"\n")
    os.close(end)
    result = await harness.finish(spawned)
    assert (result.failure, result.stderr) == (None, "")
    assert set(result.stdout.split()) >= {".", "./link", "./n", "here"}
    assert "secret" not in result.stdout


@WAYS
async def test_nothing_is_there_without_a_socket(harness: Harness, place: Place, spec: dict) -> None:
    script = f'find "{place.directory}" && ! touch "{place.directory}/x" 2>/dev/null'
    result = await harness.run("sh", "-c", script, **spec, **place.cover())
    assert (result.failure, result.stderr, result.code) == (None, "", 0)
    assert result.stdout == f"{place.directory}\n"
    assert not (place.directory / "x").exists()


@pytest.mark.fault("B11")
@WAYS
async def test_a_tmpfs_above_leaves_the_socket_reachable(harness: Harness, place: Place, spec: dict) -> None:
    """A program with a tmpfs over /run could never say that it was ready."""
    mounts = [{"type": "tmpfs", "destination": str(place.parent), "options": ["mode=0755"]}]
    script = f'find "{place.parent}" | sort && {SEND} {place.directory}/notify/own'
    given = {**spec, "mounts": mounts, **place.cover("notify/own")}
    if spec is WITHOUT_ROOT:
        mounts[0]["options"] = ["mode=0755", "uid=1000", "gid=1000"]
    result = await harness.run("sh", "-c", script, **given)
    assert (result.failure, result.stderr, result.code) == (None, "", 0)
    expected = [place.parent, place.directory, place.directory / "notify", place.directory / "notify/own"]
    assert result.stdout.split() == [str(path) for path in expected]
    assert place.sock.recv(10) == b"hello"


async def test_a_tmpfs_above_that_needs_no_socket_stays_empty(harness: Harness, place: Place) -> None:
    mounts = [{"type": "tmpfs", "destination": str(place.parent)}]
    result = await harness.run("find", str(place.parent), namespaces=ISOLATED, mounts=mounts, **place.cover())
    assert (result.failure, result.stdout) == (None, f"{place.parent}\n")


async def test_copies_of_the_directory_are_covered(harness: Harness, place: Place, tmp_path: Path) -> None:
    """A bind mount of a directory above, one of that copy, one through a link, and all of the host's files."""
    for name in ("first", "second", "third", "host"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to(place.parent)
    mounts = [
        {"source": str(place.parent), "destination": str(tmp_path / "first")},
        {"source": str(tmp_path / "first"), "destination": str(tmp_path / "second")},
        {"source": str(tmp_path / "link"), "destination": str(tmp_path / "third")},
        {"source": "/", "destination": str(tmp_path / "host"), "options": ["rbind"]},
    ]
    copies = [f"{tmp_path}/{name}/run" for name in ("first", "second", "third")]
    copies.append(f"{tmp_path}/host{place.directory}")
    given = {"namespaces": ISOLATED, "mounts": mounts, **place.cover("notify/own")}
    result = await harness.run("find", *copies, **given)
    assert (result.failure, result.stderr) == (None, "")
    assert result.stdout.split() == copies


@WAYS
async def test_a_directory_with_a_socket_is_read_only(harness: Harness, place: Place, spec: dict) -> None:
    """Otherwise a program could put its own socket in the place of the one that it shares with others."""
    os.chmod(place.directory / "notify", 0o777)
    attack = "! mv own other 2>/dev/null && ! rm -f own 2>/dev/null && ! touch x 2>/dev/null"
    script = f'cd "{place.directory}/notify" && {attack} && {SEND} own'
    result = await harness.run("sh", "-c", script, **spec, **place.cover("notify"))
    assert (result.failure, result.stderr, result.code) == (None, "", 0)
    assert place.sock.recv(10) == b"hello", "a socket needs no writable mount"
    assert sorted(os.listdir(place.directory / "notify")) == ["other", "own"]


@pytest.mark.parametrize("layer", ["run", "run/notify", "", "link", "copy/run"])
@pytest.mark.parametrize("option", ["lowerdir=/usr/games:{}", "lowerdir=/usr,upperdir={}", "workdir={}"])
async def test_no_overlay_shows_the_directory(
    harness: Harness, place: Place, tmp_path: Path, layer: str, option: str
) -> None:
    """An overlay has its own inodes, so the cover would not find the directory in it."""
    (place.parent / "link").symlink_to(place.directory)
    (place.parent / "copy").mkdir()
    mounts = [
        {"source": str(place.parent), "destination": str(place.parent / "copy")},
        {"type": "overlay", "destination": str(tmp_path), "options": [option.format(place.parent / layer)]},
    ]
    result = await harness.run("true", namespaces=ISOLATED, mounts=mounts, **place.cover())
    assert result.failure is not None
    assert "the supervisor's runtime directory, which programs may not see" in result.failure.message


async def test_another_overlay_is_mounted(harness: Harness, place: Place, tmp_path: Path) -> None:
    for name in ("first", "second", "merged"):
        (tmp_path / name).mkdir()
    (tmp_path / "first" / "here").touch()
    layers = f"lowerdir={tmp_path / 'first'}:{tmp_path / 'second'}"
    mounts = [{"type": "overlay", "destination": str(tmp_path / "merged"), "options": [layers]}]
    result = await harness.run("ls", str(tmp_path / "merged"), namespaces=ISOLATED, mounts=mounts, **place.cover())
    assert (result.failure, result.stdout) == (None, "here\n")


@pytest.mark.parametrize("way", ["link", "copy", "/proc/self/root"])
async def test_a_part_of_the_directory_cannot_be_mounted(
    harness: Harness, place: Place, tmp_path: Path, way: str
) -> None:
    """`check` sees names only; what they lead to shows at the start."""
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    (tmp_path / "link").symlink_to(place.directory / "notify")
    mounts = [{"source": str(place.parent), "destination": str(tmp_path / "first")}]
    sources = {"link": tmp_path / "link", "copy": tmp_path / "first" / "run" / "notify"}
    source = sources.get(way, f"{way}{place.directory}/notify")
    mounts.append({"source": str(source), "destination": str(tmp_path / "second")})
    result = await harness.run("true", namespaces=ISOLATED, mounts=mounts, **place.cover())
    assert result.failure is not None
    assert "is in the supervisor's runtime directory, which programs may not see" in result.failure.message


async def test_a_mount_that_hides_the_directory_is_refused_where_a_socket_is_needed(
    harness: Harness, place: Place, tmp_path: Path
) -> None:
    """Making it there would change the host's files."""
    mounts = [{"source": str(tmp_path), "destination": str(place.parent)}]
    given = {"namespaces": ISOLATED, "mounts": mounts, **place.cover("notify/own")}
    result = await harness.run("true", **given)
    assert result.failure is not None
    assert "its directory is missing (another mount hides it; remove that, or mount a tmpfs" in result.failure.message
    assert list(tmp_path.iterdir()) == []


async def test_no_descriptor_of_a_socket_is_left_to_the_program(harness: Harness, place: Place) -> None:
    given = {"namespaces": ISOLATED, **place.cover("notify/own", "notify/other")}
    result = await harness.run("sh", "-c", "ls /proc/self/fd | wc -w", **given)
    assert result.stdout.strip() == "4", "0 to 2, and the directory itself"


@pytest.mark.parametrize(
    "cover",
    [
        {"directory": "run"},
        {"directory": "/run/x", "show": {"/etc/passwd": "x"}},
        {"directory": "/run/x", "show": {"x": "../passwd"}},
        {"directory": "/run/x", "links": {"x": "/etc/passwd"}},
        {"directory": "/run/x", "other": 1},
        {},
    ],
)
async def test_a_wrong_cover_is_refused(harness: Harness, cover: dict) -> None:
    with pytest.raises(SpawnError, match="cover"):
        await harness.spawn("true", namespaces=ISOLATED, cover=cover)


async def test_a_cover_needs_a_mount_namespace(harness: Harness, place: Place) -> None:
    with pytest.raises(SpawnError, match="cover needs a new mount namespace"):
        await harness.spawn("true", **place.cover())


@needs("userns")
async def test_a_directory_below_a_closed_one_was_not_shown_in_a_user_namespace(harness: Harness, place: Place) -> None:
    (place.directory / "notify").chmod(0o700)
    script = f'cd "{place.directory}/notify" && {SEND} own'
    given = {"namespaces": [*ISOLATED, "user"], **{key: SHIFTED[key] for key in ("uid_mappings", "gid_mappings")}}
    result = await harness.run("sh", "-c", script, **given, **place.cover("notify/own"))
    assert (result.failure, result.stderr, result.code) == (None, "", 0)
    assert place.sock.recv(10) == b"hello"
