"""Images are loaded from each kind of source, once; damaged ones leave nothing behind; `gc` removes the rest."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from nsupervisor.config.image_reference import ImageReference, parse_reference
from nsupervisor.images.errors import ImageError
from nsupervisor.images.loading import find_loaded, load_image
from nsupervisor.images.store import Store, Use
from tests.images.archives import (
    compress,
    directory,
    file,
    make_config,
    make_tar,
    symlink,
    write_docker_archive,
    write_layout,
    write_oci_archive,
)
from tests.images.trees import read_tree
from tests.needs import ROOT, needs
from tests.timing import deadline

LAYERS = [
    make_tar([directory("etc"), file("etc/a", b"1"), file("gone")]),
    make_tar([file(".wh.gone"), file("b", b"2")]),
]
TREE = {"etc": ("directory", 0o755), "etc/a": ("file", 0o644, b"1"), "b": ("file", 0o644, b"2")}


@pytest.fixture
def state(tmp_path):
    path = tmp_path / "state"
    path.mkdir(mode=0o700)
    return path


@pytest.fixture
def store(state):
    with Store(str(state)) as store:
        yield store


def reference(transport: str, path: Path, name: str = "") -> ImageReference:
    return parse_reference(f"{transport}:{path}" + f":{name}" * bool(name))


def leftovers(state: Path) -> list[str]:
    return os.listdir(state / "images/tmp") + os.listdir(state / "images/chains")


SOURCES = {
    "oci": lambda path: reference("oci", write_layout(path, LAYERS), "latest"),
    "oci without compression": lambda path: reference("oci", write_layout(path, LAYERS, suffix="")),
    "oci-archive": lambda path: reference(
        "oci-archive", write_oci_archive(path, write_layout(path.parent / "l", LAYERS))
    ),
    "docker-archive": lambda path: reference("docker-archive", write_docker_archive(path, LAYERS), "site:1"),
}


@pytest.mark.parametrize("name", SOURCES)
def test_an_image_is_loaded_from_each_source(tmp_path, state, store, name):
    source = SOURCES[name](tmp_path / "source")
    record = load_image(source, store, clock=lambda: 5.0)
    assert read_tree(Path(store.root_path(record.chain))) == TREE
    assert store.find(str(source)) == record == find_loaded(source, store)
    assert store.list_records() == [record]
    assert os.listdir(state / "images/tmp") == []
    assert [(state / "images").stat().st_mode & 0o777] == [0o700]


def test_a_loaded_image_is_not_unpacked_again(tmp_path, store):
    source = SOURCES["oci"](tmp_path / "source")
    first = load_image(source, store)
    inode = os.stat(store.root_path(first.chain)).st_ino
    lines = []
    assert load_image(source, store, report=lines.append) == first
    # The same layers from elsewhere are the same files.
    other = load_image(SOURCES["docker-archive"](tmp_path / "other.tar"), store, report=lines.append)
    assert (other.chain, other.size, lines) == (first.chain, first.size, [])
    assert os.stat(store.root_path(first.chain)).st_ino == inode


def test_an_image_that_was_replaced_is_loaded_again_and_one_that_is_gone_is_kept(tmp_path, store):
    path = tmp_path / "source.tar"
    source = reference("docker-archive", write_docker_archive(path, LAYERS))
    first = load_image(source, store)
    write_docker_archive(path, LAYERS[:1])
    assert find_loaded(source, store) is None
    second = load_image(source, store)
    assert second.chain != first.chain
    path.unlink()
    assert find_loaded(source, store) == second == load_image(source, store)


# ---- damage


def damaged_layout(path: Path, **arguments) -> ImageReference:
    return reference("oci", write_layout(path, LAYERS, **arguments))


def change(path: Path, name: str, content: bytes) -> None:
    (path / name).write_bytes(content)


def with_index(path: Path, **members) -> ImageReference:
    write_layout(path, LAYERS)
    table = json.loads((path / "index.json").read_text())
    table["manifests"][0] |= members
    change(path, "index.json", json.dumps(table).encode())
    return reference("oci", path)


def with_link(path: Path) -> ImageReference:
    write_layout(path, LAYERS)
    (path / "index.json").rename(path.parent / "elsewhere")
    (path / "index.json").symlink_to(path.parent / "elsewhere")
    return reference("oci", path)


def with_fifo(path: Path) -> ImageReference:
    write_layout(path, LAYERS)
    (path / "index.json").unlink()
    os.mkfifo(path / "index.json")
    return reference("oci", path)


def archive(path: Path, *entries) -> ImageReference:
    path.write_bytes(make_tar(entries))
    return reference("docker-archive", path)


def manifest(config: str = "c.json", layers: tuple[str, ...] = ()) -> tuple:
    return file("manifest.json", json.dumps([{"Config": config, "RepoTags": [], "Layers": layers}]).encode())


def cut(path: Path) -> ImageReference:
    write_docker_archive(path, [make_tar([file("large", os.urandom(50_000))])])
    path.write_bytes(path.read_bytes()[:30_000])
    return reference("docker-archive", path)


def compressed_as_a_whole(path: Path) -> ImageReference:
    write_docker_archive(path, LAYERS)
    path.write_bytes(compress(path.read_bytes()))
    return reference("docker-archive", path)


OTHER = make_tar([file("other")])
DAMAGED = {
    "a blob that was replaced": (lambda p: damaged_layout(p, blobs={1: compress(OTHER)}), "bytes instead of"),
    "a blob with other bytes": (
        lambda p: damaged_layout(p, suffix="", blobs={1: LAYERS[1].replace(b"2", b"3", 1)}),
        "check sum|has the digest",
    ),
    "a layer with another diff_id": (lambda p: damaged_layout(p, config=make_config([LAYERS[0], OTHER])), "unpacks to"),
    "more layers than diff_ids": (
        lambda p: damaged_layout(p, config=make_config(LAYERS[:1])),
        "2 layers, and the conf",
    ),
    "a manifest with another digest": (lambda p: with_index(p, digest="sha256:" + "0" * 64), "has no blobs/sha256/000"),
    "a digest that is a path": (lambda p: with_index(p, digest="sha256:../../etc/passwd"), "not a SHA-256 digest"),
    "an index that is a link": (with_link, "symbolic link"),
    "an index that is a FIFO": (with_fifo, "is not a file"),
    "no layout": (lambda p: reference("oci", p.parent), "has no index.json|no image"),
    "no archive": (lambda p: reference("oci-archive", p), "there is no image"),
    "a directory for an archive": (lambda p: reference("oci-archive", p.parent), "is not a file; write oci:"),
    "an archive of something else": (lambda p: archive(p, file("a")), 'has no "manifest.json"'),
    "a layer outside of the archive": (
        lambda p: archive(p, manifest(layers=("../../etc/passwd",)), file("c.json", make_config([OTHER]))),
        "the archive has no",
    ),
    "links in a circle": (
        lambda p: archive(
            p, manifest(layers=("a",)), file("c.json", make_config([OTHER])), symlink("a", "b"), symlink("b", "a")
        ),
        "a link to a link",
    ),
    "a cut archive": (cut, "ends too early|middle of|has no"),
    "an archive that is compressed as a whole": (compressed_as_a_whole, "decompress it"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_image_is_refused_and_leaves_nothing(tmp_path, state, store, name):
    make, reason = DAMAGED[name]
    with pytest.raises((ImageError, OSError), match=reason):
        load_image(make(tmp_path / "source"), store)
    assert leftovers(state) == []
    assert store.list_records() == []


def test_a_decompression_bomb_is_refused_long_before_its_end(tmp_path, state, store):
    bomb = make_tar([file("zeros", bytes(400 << 20))])
    source = reference("oci", write_layout(tmp_path / "source", [bomb]))
    with pytest.raises(ImageError, match="more than 250 times its size"):
        load_image(source, store)
    with pytest.raises(ImageError, match="unpacks to more than 1000000 bytes"):
        load_image(source, store, max_bytes=1_000_000)
    assert leftovers(state) == []


@needs("module:zstandard")
def test_zstd_is_read(tmp_path, store):
    import zstandard

    blobs = {0: zstandard.compress(LAYERS[0])}
    path = write_layout(tmp_path / "source", LAYERS[:1], suffix="+zstd", blobs=blobs)
    _repair_sizes(path, blobs[0], LAYERS[0])
    record = load_image(reference("oci", path), store)
    assert "etc/a" in read_tree(Path(store.root_path(record.chain)))


def _repair_sizes(path: Path, blob: bytes, written: bytes) -> None:
    """Have the manifest of a layout name a blob as it is."""
    from tests.images.archives import digest

    index = json.loads((path / "index.json").read_text())
    entry = index["manifests"][0]
    manifest = (path / "blobs/sha256" / entry["digest"].removeprefix("sha256:")).read_text()
    manifest = manifest.replace(digest(written), digest(blob)).replace(
        f'"size": {len(written)}', f'"size": {len(blob)}'
    )
    (path / "blobs/sha256" / digest(blob).removeprefix("sha256:")).write_bytes(blob)
    name = digest(manifest.encode())
    (path / "blobs/sha256" / name.removeprefix("sha256:")).write_text(manifest)
    entry |= {"digest": name, "size": len(manifest)}
    (path / "index.json").write_text(json.dumps(index))


def test_zstd_without_a_library_is_refused_with_what_to_do(tmp_path, store, monkeypatch):
    monkeypatch.setitem(sys.modules, "zstandard", None)
    monkeypatch.setitem(sys.modules, "compression.zstd", None)
    blob = b"\x28\xb5\x2f\xfd" + b"x" * (len(LAYERS[0]) - 4)
    path = write_layout(tmp_path / "source", LAYERS[:1], suffix="+zstd", blobs={0: blob})
    with pytest.raises(ImageError, match="install the Python package zstandard, or copy the image with skopeo"):
        load_image(reference("oci", path), store)


@needs("root")
def test_another_user_than_root_loads_and_removes_an_image():
    """Also directories that their owner may not write to; files belong to this user."""
    layers = [
        make_tar(
            [
                directory("d", mode=0o555, uid=0),
                file("d/f", b"x", uid=0),
                file("d/g", mode=0o4700),
                directory("e", mode=0),
            ]
        ),
        make_tar([file("d/.wh.f"), file("d/h", uid=5)]),
    ]
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        state = Path(place, "state")
        state.mkdir(mode=0o700)
        source = reference("oci", write_layout(Path(place, "source"), layers))
        for path in (Path(place), state):
            os.chown(path, 65534, 65534)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.setgroups([])
                os.setresgid(65534, 65534, 65534)
                os.setresuid(65534, 65534, 65534)
                with Store(str(state)) as store:
                    chain = load_image(source, store).chain
                    found = {name: node[1] for name, node in read_tree(Path(store.root_path(chain))).items()}
                    assert found == {"d": 0o555, "d/g": 0o4700, "d/h": 0o644, "e": 0}
                    assert os.stat(f"{store.root_path(chain)}/d/h").st_uid == 65534
                    store.remove_record(str(source))
                    assert store.collect().chains == (chain,)
                assert leftovers(state) == []
                status = 0
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# ---- uses and gc


def test_gc_removes_what_nothing_refers_to(tmp_path, state, store):
    path = tmp_path / "source.tar"
    source = reference("docker-archive", write_docker_archive(path, LAYERS))
    old = load_image(source, store)
    store.note_use(Use("web@1", str(source), old.chain))
    write_docker_archive(path, LAYERS[:1])
    new = load_image(source, store)
    assert store.collect().chains == ()  # the instance still runs from it
    store.forget_use("web@1")
    assert store.collect().chains == (old.chain,)
    assert os.listdir(state / "images/chains") == [new.chain]
    store.remove_record(str(source))
    assert store.find(str(source)) is None
    assert store.collect().chains == (new.chain,)
    assert leftovers(state) == []


def test_a_use_of_what_was_removed_is_refused(store):
    with pytest.raises(ImageError, match="was removed meanwhile"):
        store.note_use(Use("web", "oci:/a", "0" * 64))
    assert store.list_uses() == []


def test_gc_leaves_what_another_process_unpacks(state, store):
    with store.new_directory() as (name, _):
        with Store(str(state)) as other:
            assert other.collect().unfinished == 0
        assert os.listdir(state / "images/tmp") == [name]
    assert os.listdir(state / "images/tmp") == []


def test_what_was_removed_while_it_was_loaded_is_unpacked_again(tmp_path, store):
    source = SOURCES["oci"](tmp_path / "source")
    first = load_image(source, store)
    store.remove_record(str(source))
    calls = []

    def remove_once() -> float:
        if not calls:
            store.collect()
        calls.append(None)
        return 1.0

    assert load_image(source, store, clock=remove_once).chain == first.chain
    assert len(calls) == 2
    assert read_tree(Path(store.root_path(first.chain))) == TREE


STEPS = ("mkdir", "open", "write", "fsync", "rename", "unlink", "fchmod")
KILLED = """
import os, signal, sys
from nsupervisor.config.image_reference import parse_reference
from nsupervisor.images.loading import load_image
from nsupervisor.images.store import Store
name, count = sys.argv[3], int(sys.argv[4])
real, calls = getattr(os, name), 0
def replaced(*arguments, **keywords):
    global calls
    calls += 1
    if calls == count:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments, **keywords)
setattr(os, name, replaced)
with Store(sys.argv[1]) as store:
    load_image(parse_reference(sys.argv[2]), store)
"""


@pytest.mark.parametrize("step", STEPS)
def test_a_load_that_is_killed_leaves_a_store_in_order(tmp_path, state, step):
    """After SIGKILL at each call of a kind the image is either loaded or not, and gc removes the rest."""
    source = SOURCES["docker-archive"](tmp_path / "source.tar")
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{KILLED}"
    counts = {"mkdir": (1, 5, 6, 7), "open": (3, 12, 20), "write": (1, 2), "fsync": (1, 2, 3)}.get(step, (1, 2))
    for count in counts:
        arguments = [sys.executable, "-c", code, str(state), str(source), step, str(count)]
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=deadline(60))
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        with Store(str(state)) as store:
            found = store.list_records()
            for record in found:
                assert read_tree(Path(store.root_path(record.chain))) == TREE
            store.collect()
            assert os.listdir(state / "images/tmp") == []
            assert len(os.listdir(state / "images/chains")) == len(found)
            assert load_image(source, store).reference == str(source)
            store.remove_record(str(source))
            store.collect()


def test_two_loads_at_a_time_unpack_once(tmp_path, state, store):
    source = SOURCES["oci"](tmp_path / "source")
    code = (
        "import sys\nfrom nsupervisor.config.image_reference import parse_reference\n"
        "from nsupervisor.images.loading import load_image\nfrom nsupervisor.images.store import Store\n"
        "with Store(sys.argv[1]) as store:\n"
        "    print('waits', flush=True)\n"
        "    load_image(parse_reference(sys.argv[2]), store, report=print)\n"
    )
    with store.locked("load.lock"):
        other = subprocess.Popen(
            [sys.executable, "-c", code, str(state), str(source)], stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        assert other.stdout is not None
        assert other.stdout.readline() == "waits\n"
    load_image(source, store)
    out, _ = other.communicate(timeout=deadline(60))
    assert other.returncode == 0
    unpacked = out.count("layer")
    assert unpacked in (0, len(LAYERS))  # whichever came first
    assert len(os.listdir(state / "images/chains")) == 1


def test_a_damaged_record_is_reported_with_its_path(tmp_path, state, store):
    load_image(SOURCES["oci"](tmp_path / "source"), store)
    (name,) = os.listdir(state / "images/references")
    (state / "images/references" / name).write_text('{"reference": 1}')
    with pytest.raises(ImageError, match=f"references/{name} is damaged; remove it"):
        store.list_records()
    with pytest.raises(ImageError):  # and nothing is removed because of it
        store.collect()


@needs("root")
def test_another_user_s_directory_is_no_store(tmp_path):
    path = tmp_path / "theirs"
    path.mkdir()
    os.chown(path, 1234, 1234)
    with pytest.raises(OSError, match="belongs to user 1234"):
        Store(str(path))
