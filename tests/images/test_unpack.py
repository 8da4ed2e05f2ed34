"""Layers become the tree that an overlay of them would show, and nothing outside of it is touched."""

import os
import random
import stat
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nsupervisor.images.errors import ImageError
from nsupervisor.images.limits import MAX_DEPTH
from nsupervisor.images.streams import Budget, FilePart, Layer
from nsupervisor.images.unpack import Unpacker
from tests.images.archives import device, digest, directory, file, hardlink, make_tar, symlink
from tests.images.trees import read_tree
from tests.needs import needs

CAPABILITY = b"\x00\x00\x00\x02\x00\x20\x00\x00" + b"\0" * 12
"""cap_net_raw=p, struct vfs_cap_data."""


def unpack(root: Path, *layers: bytes, keeps_owners: bool = False, budget: int = 1 << 30) -> Unpacker:
    root.mkdir(mode=0o700)
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        unpacker, left = Unpacker(fd, keeps_owners), Budget(budget)
        for content in layers:
            blob = os.memfd_create("layer")
            try:
                os.write(blob, content)
                layer = Layer(FilePart(blob, 0, len(content)), left)
                unpacker.add_layer(layer)
                layer.finish(None, digest(content))
            finally:
                os.close(blob)
        unpacker.finish()
    finally:
        os.close(fd)
    return unpacker


# ---- what is right


def test_files_directories_and_links(tmp_path):
    layer = make_tar(
        [
            directory("./", mode=0o711),
            directory("./d", mode=0o1777),
            file("./d/f", b"content", mode=0o4755, mtime=1700000000),
            hardlink("h", "d/f"),
            symlink("s", "../../../etc/passwd"),
            ("p", {"type": tarfile.FIFOTYPE, "mode": 0o640}),
            file("implied/above/x"),
        ]
    )
    unpack(tmp_path / "root", layer)
    root = tmp_path / "root"
    assert stat.S_IMODE(root.stat().st_mode) == 0o711
    assert read_tree(root) == {
        "d": ("directory", 0o1777),
        "d/f": ("file", 0o4755, b"content"),
        "h": ("file", 0o4755, b"content"),
        "s": ("symlink", "../../../etc/passwd"),
        "p": ("other", stat.S_IFIFO),
        "implied": ("directory", 0o755),
        "implied/above": ("directory", 0o755),
        "implied/above/x": ("file", 0o644, b""),
    }
    assert (root / "h").stat().st_ino == (root / "d/f").stat().st_ino
    assert (root / "h").stat().st_mtime == 1700000000


def test_a_directory_without_permissions_gets_its_files_all_the_same(tmp_path):
    unpack(tmp_path / "root", make_tar([directory("d", mode=0o111), file("d/f")]), make_tar([file("d/g")]))
    assert read_tree(tmp_path / "root").keys() >= {"d"}
    (tmp_path / "root/d").chmod(0o755)
    assert sorted(os.listdir(tmp_path / "root/d")) == ["f", "g"]


@needs("root")
def test_owners_and_capabilities_are_kept_and_other_attributes_are_not(tmp_path):
    attributes = {
        "SCHILY.xattr.security.capability": CAPABILITY.decode(errors="surrogateescape"),
        "SCHILY.xattr.trusted.overlay.opaque": "y",
        "SCHILY.xattr.user.note": "n",
    }
    entries = [
        directory("d", uid=5, gid=6),
        file("ping", b"x", mode=0o6755, uid=1234, gid=1235, pax_headers=attributes),
        ("s", {"type": tarfile.SYMTYPE, "linkname": "x", "uid": 7, "gid": 8}),
    ]
    unpacker = unpack(tmp_path / "root", make_tar(entries), keeps_owners=True)
    found = tmp_path / "root/ping"
    status = found.stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (1234, 1235, 0o6755)
    assert os.listxattr(found) == ["security.capability"]
    assert os.getxattr(found, "security.capability") == CAPABILITY
    assert [(s.st_uid, s.st_gid) for s in map(os.lstat, (tmp_path / "root/d", tmp_path / "root/s"))] == [(5, 6), (7, 8)]
    assert unpacker.left_out.attributes == 2


def test_devices_are_left_out_and_counted(tmp_path):
    lower = make_tar([file("dev/sda", b"a file")])
    unpacker = unpack(tmp_path / "root", lower, make_tar([device("dev/null"), device("dev/sda", tarfile.BLKTYPE)]))
    assert unpacker.left_out.devices == 2
    assert read_tree(tmp_path / "root") == {"dev": ("directory", 0o755)}


def test_later_layers_replace_and_hide(tmp_path):
    lower = make_tar(
        [file("a", b"1"), directory("d"), file("d/x", b"1"), directory("o"), file("o/x"), symlink("l", "a")]
    )
    upper = make_tar(
        [file("a", b"2"), file("d/.wh.x"), file("o/new"), file("o/.wh..wh..opq"), directory("l"), file("l/in", b"3")]
    )
    unpack(tmp_path / "root", lower, upper)
    found = {path: node[-1] for path, node in read_tree(tmp_path / "root").items() if node[0] == "file"}
    assert found == {"a": b"2", "o/new": b"", "l/in": b"3"}


@pytest.mark.parametrize("order", [1, -1])
def test_a_whiteout_concerns_the_layers_below_only(tmp_path, order):
    lower = make_tar([directory("d"), file("d/lower"), file("f", b"lower")])
    entries = [file(".wh.d"), directory("d"), file("d/upper"), file(".wh.f"), file("f", b"upper")]
    if order < 0:
        entries = [directory("d"), file("d/upper"), file("f", b"upper"), file(".wh.f"), file(".wh.d")]
    unpack(tmp_path / "root", lower, make_tar(entries))
    assert read_tree(tmp_path / "root") == {
        "d": ("directory", 0o755),
        "d/upper": ("file", 0o644, b""),
        "f": ("file", 0o644, b"upper"),
    }


def test_what_aufs_keeps_for_itself_is_left_out(tmp_path):
    unpack(tmp_path / "root", make_tar([directory(".wh..wh.plnk"), file(".wh..wh.plnk/1.2"), file(".wh..wh.aufs")]))
    assert read_tree(tmp_path / "root") == {}


# ---- what is hostile

DEEP = "/".join(["d"] * (MAX_DEPTH + 1))
HOSTILE = {
    "a path above": ([file("../outside", b"x")], r'has "\.\." in its path'),
    "a path above, hidden": ([directory("a"), file("a/../../outside", b"x")], r'has "\.\." in its path'),
    "an absolute path": ([file("/outside", b"x")], "is an absolute path"),
    "a file through a symbolic link": ([symlink("l", "{outside}"), file("l/x", b"x")], "symbolic link, which is not"),
    "a file through a relative symbolic link": (
        [symlink("l", "../.."), file("l/x", b"x")],
        "symbolic link, which is not",
    ),
    "a directory through a symbolic link": (
        [symlink("l", "{outside}"), directory("l/x/y")],
        "symbolic link, which is not",
    ),
    "a whiteout through a symbolic link": (
        [symlink("l", "{outside}"), file("l/.wh.kept")],
        "symbolic link, which is not",
    ),
    "an opaque link": ([symlink("l", "{outside}"), file("l/.wh..wh..opq")], "symbolic link, which is not"),
    "a whiteout of what is above": ([file("d/.wh...")], "is not a whiteout"),
    "a whiteout of itself": ([file("d/.wh..")], "is not a whiteout"),
    "a whiteout of nothing": ([file("d/.wh.")], "is not a whiteout"),
    "a whiteout that is a directory": ([directory(".wh.a")], "is not a whiteout"),
    "a file in a whiteout": ([file(".wh.a/b")], "is in a whiteout"),
    "a hard link to the host": ([hardlink("h", "/etc/passwd")], "is an absolute path"),
    "a hard link above": ([hardlink("h", "../kept")], r'has "\.\." in its path'),
    "a hard link through a symbolic link": (
        [symlink("l", "{outside}"), hardlink("h", "l/kept")],
        "its layer does not have",
    ),
    "a hard link to a directory": ([directory("d"), hardlink("h", "d")], "hard link to a directory"),
    "a hard link to itself": ([file("h"), hardlink("h", "h")], "hard link to itself"),
    "a hard link to what is missing": ([hardlink("h", "a")], "its layer does not have"),
    "a root that is a link": ([symlink(".", "{outside}")], "root of the image is not a directory"),
    "a root that is a file": ([file("./", b"x")], "root of the image is not a directory"),
    "a directory that becomes a link": (
        [directory("d"), file("d/x"), symlink("d", "{outside}")],
        "twice, once as a directory",
    ),
    "a file below a file": ([file("f"), file("f/x")], "not a directory"),
    "deep directories": ([file(DEEP)], "directories deep"),
    "a long name": ([file("x" * 300)], "File name too long"),
    "a long path": ([file("/".join(["x" * 200] * 30))], "longer than 4095 bytes"),
    "an empty link": ([("l", {"type": tarfile.SYMTYPE, "linkname": ""})], "link to nothing"),
    "too much": ([file("f", b"x" * 200_000)], "unpacks to more than 100000 bytes"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_layer_is_refused_and_changes_nothing_outside(tmp_path, name):
    entries, reason = HOSTILE[name]
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    made = make_tar(
        [
            (
                path,
                {key: value.format(outside=outside) if key == "linkname" else value for key, value in values.items()},
            )
            for path, values in entries
        ]
    )
    (tmp_path / "in").mkdir()
    with pytest.raises(ImageError, match=reason):
        unpack(tmp_path / "in/root", made, budget=100_000)
    assert read_tree(outside) == {"kept": ("file", 0o644, b"kept")}
    assert sorted(os.listdir(tmp_path)) == ["in", "outside"]
    assert os.listdir(tmp_path / "in") == ["root"]


def test_a_link_of_a_layer_below_is_not_followed(tmp_path):
    lower = make_tar([symlink("l", str(tmp_path))])
    with pytest.raises(ImageError, match="symbolic link, which is not followed"):
        unpack(tmp_path / "root", lower, make_tar([file("l/x")]))
    assert os.listdir(tmp_path) == ["root"]


def test_a_message_has_no_control_characters(tmp_path):
    with pytest.raises(ImageError) as raised:
        unpack(tmp_path / "root", make_tar([file("../\x1b[2J\n" + "x" * 1000)]))
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 300


# ---- against a model

NAMES = ("a", "b", "c")
Tree = dict[str, tuple[object, ...]]
"""Path → ("directory", mode), ("file", mode, content) or ("symlink", target)."""


@st.composite
def layers(draw: st.DrawFn) -> tuple[dict[str, tuple[object, ...]], set[str], set[str], int]:
    """One layer: what it has at each path, its whiteouts, its opaque directories, and an order."""
    tree: Tree = {}

    def fill(path: str, depth: int) -> None:
        for name in draw(st.sets(st.sampled_from(NAMES))):
            place = f"{path}{name}"
            kind = draw(st.sampled_from(["directory", "directory", "file", "symlink"]))
            if kind == "directory":
                tree[place] = "directory", draw(st.sampled_from([0o755, 0o700, 0o1777, 0o555]))
                if depth < 3:
                    fill(f"{place}/", depth + 1)
            elif kind == "file":
                tree[place] = "file", draw(st.sampled_from([0o644, 0o4755])), draw(st.binary(max_size=4))
            else:
                tree[place] = "symlink", draw(st.sampled_from(["a", "../b", "/c", "nowhere"]))

    fill("", 1)
    inside = ["", *(f"{path}/" for path, node in tree.items() if node[0] == "directory")]
    whiteouts = draw(st.sets(st.builds("{}{}".format, st.sampled_from(inside), st.sampled_from(NAMES)), max_size=4))
    opaque = draw(st.sets(st.sampled_from(inside), max_size=2))
    return tree, whiteouts, opaque, draw(st.integers(0, 2**32))


def merge(lower: Tree, tree: Tree, whiteouts: set[str], opaque: set[str]) -> Tree:
    """Return what an overlay of a layer over `lower` shows."""

    def hidden(path: str) -> bool:
        parts = path.split("/")
        above = ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]
        return (
            any(place in whiteouts for place in above)
            or any(path.startswith(place) for place in opaque)
            or any(place in tree and tree[place][0] != "directory" for place in above)
            or path in tree
        )

    # A directory over a directory shows both; over something else, itself.
    return {path: node for path, node in lower.items() if not hidden(path)} | tree


@settings(max_examples=150, deadline=None)
@given(st.lists(layers(), min_size=1, max_size=4))
def test_random_layers_become_the_merged_tree(tmp_path_factory, given_layers):
    expected: Tree = {}
    archives = []
    for tree, whiteouts, opaque, seed in given_layers:
        expected = merge(expected, tree, whiteouts, opaque)
        makers = {"directory": _directory, "file": _file, "symlink": symlink}
        entries = [makers[str(node[0])](path, *node[1:]) for path, node in tree.items()]  # type: ignore[operator]
        marks = [file("/".join([*path.split("/")[:-1], f".wh.{path.split('/')[-1]}"])) for path in sorted(whiteouts)]
        marks += [file(f"{place}.wh..wh..opq") for place in sorted(opaque)]
        shuffled = [*entries, *marks]
        random.Random(seed).shuffle(shuffled)
        archives.append(make_tar(_parents_first(shuffled)))
    root = tmp_path_factory.mktemp("unpacked") / "root"
    unpack(root, *archives)
    assert read_tree(root) == expected


def _directory(path: str, mode: int) -> tuple[str, object]:
    return directory(path, mode=mode)


def _file(path: str, mode: int, content: bytes) -> tuple[str, object]:
    return file(path, content, mode=mode)


def _parents_first(entries):
    """Keep the order, but for entries whose directory comes later: an implied directory would be in its place."""
    done, waiting, result = {""}, list(entries), []
    names = {name for name, values in entries if values["type"] == tarfile.DIRTYPE}
    while waiting:
        for entry in waiting:
            parent = entry[0].rpartition("/")[0]
            if parent in done or parent not in names:
                break
        waiting.remove(entry)
        result.append(entry)
        done.add(entry[0])
    return result
