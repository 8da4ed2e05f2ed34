"""From words to flags, and back as the kernel understood them."""

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsupervisor.linux import mounts
from nsupervisor.linux.mounts import Mount, MountOptions
from nsupervisor.mount_data import value_paths
from tests.needs import needs

FLAG_WORDS = ["ro", "rw", "nosuid", "suid", "nodev", "dev", "noexec", "exec", "noatime", "relatime", "strictatime"]


@pytest.mark.parametrize(
    ("words", "flags", "set_attributes", "clear_attributes", "data"),
    [
        ([], 0, 0, 0, ""),
        (["defaults"], 0, 0, 0, ""),
        (["ro", "nosuid", "nodev", "noexec"], 0xF, 0xF, 0, ""),
        (["ro", "rw"], 0, 0, 0x1, ""),
        (["suid", "nosuid"], 0x2, 0x2, 0, ""),
        (["noatime"], 0x400, 0x10, 0x70, ""),
        (["size=64M", "mode=1777", "nosuid"], 0x2, 0x2, 0, "size=64M,mode=1777"),
    ],
)
def test_words(words: list[str], flags: int, set_attributes: int, clear_attributes: int, data: str) -> None:
    options = MountOptions(words)
    assert (options.flags, options.data) == (flags, data)
    assert (options.set_attributes, options.clear_attributes) == (set_attributes, clear_attributes)


@pytest.mark.parametrize(
    ("data", "paths"),
    [
        ("", []),
        ("ro,index=off", ["/off"]),
        ("lowerdir=/a:b::/c,upperdir=/u", ["/a", "/b", "/c", "/u"]),
        ("lowerdir+=/a,datadir+=/d", ["/a", "/d"]),
        (r"lowerdir=/a\:b:/c\,d,workdir=/w", ["/a:b", "/c,d", "/w"]),
        (r"lowerdir=/a\\:/b\\,upperdir=/u\\\:,workdir=/w", ["/a\\", "/b\\", "/u\\:", "/w"]),
    ],
)
def test_paths_in_the_options_of_a_file_system(data: str, paths: list[str]) -> None:
    assert value_paths(data) == paths


@given(words=st.lists(st.sampled_from(FLAG_WORDS)))
def test_the_last_word_wins(words: list[str]) -> None:
    options = MountOptions(words)
    for on, off, bit in (("ro", "rw", 1), ("nosuid", "suid", 2), ("nodev", "dev", 4), ("noexec", "exec", 8)):
        last = next((word for word in reversed(words) if word in (on, off)), None)
        assert bool(options.flags & bit) == bool(options.set_attributes & bit) == (last == on)
        assert bool(options.clear_attributes & bit) == (last == off)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("bind", "/a", "b"), "the destination of a mount must be an absolute path, not 'b'"),
        (("bind", None, "/b"), "the source of a bind mount must be an absolute path, not None"),
        (("bind", "/a", "/b", ["size=1M"]), "the bind mount on /b can't have the option 'size=1M'"),
        (("ext4", "/a", "/b", ["rbind", "sync"]), "the bind mount on /b can't have the option 'sync'"),
    ],
)
def test_refusals(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match="^" + message.replace("'", ".") + "$"):
        Mount(*arguments)


def test_errors_carry_errno_and_say_what_was_tried() -> None:
    with pytest.raises(FileNotFoundError) as caught:
        mounts.umount2("/no/such/place")
    assert caught.value.filename == "unmount /no/such/place"


@needs("root")
def test_unmounting_what_is_no_mount() -> None:
    with pytest.raises(OSError, match="Invalid argument") as caught:
        mounts.umount2("/usr/bin")
    assert caught.value.errno == errno.EINVAL
