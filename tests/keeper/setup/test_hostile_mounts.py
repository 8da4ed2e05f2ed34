"""Mounts whose sources and destinations are in directories of another user, who replaces them by links."""

import os
from pathlib import Path

import pytest

from tests.keeper.conftest import ISOLATED, Harness
from tests.needs import needs
from tests.roots import open_directories

pytestmark = needs("root")

NOBODY = 65534
REFUSED = "is a symbolic link to {}, which is not followed, as other users may control it; write the path without it"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A directory of nobody's, with files of nobody's in `data`."""
    home = tmp_path / "home"
    (home / "data").mkdir(parents=True)
    (home / "data" / "passwd").write_text("of nobody")
    for path in (home, home / "data"):
        os.chown(path, NOBODY, NOBODY)
    open_directories(tmp_path / "x")  # for the users of user namespaces
    return home


def link(path: Path, target: str) -> Path:
    path.symlink_to(target)
    os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    return path


async def failure(harness: Harness, *mounts: dict, **spec: object) -> str:
    """Start a program with the mounts; return why that was refused."""
    result = await harness.run("cat", "/etc/passwd", namespaces=ISOLATED, mounts=list(mounts), **spec)
    assert result.stdout == ""
    assert result.failure is not None
    assert result.failure.step == "mount_all"
    return result.failure.message


@pytest.mark.fault("A11")
@pytest.mark.parametrize("below", ["", "/ssl"])
async def test_a_destination_that_was_replaced_by_a_link_gave_the_program_another_etc(
    harness: Harness, home: Path, below: str
) -> None:
    target = link(home / "target", "/etc")
    mount = {"source": str(home / "data"), "destination": f"{target}{below}"}
    message = await failure(harness, mount)
    place = f"{mount['source']} on {mount['destination']}: {mount['destination']}"
    assert message == f"cannot mount {place}: {target} {REFUSED.format('/etc')}"


@pytest.mark.fault("A11")
async def test_a_source_that_was_replaced_by_a_link_showed_another_directory(harness: Harness, home: Path) -> None:
    source = link(home / "source", "/root")
    mount = {"source": str(source), "destination": "/mnt"}
    assert (
        await failure(harness, mount) == f"cannot mount {source} on /mnt: {source}: {source} {REFUSED.format('/root')}"
    )


@pytest.mark.fault("A11")
async def test_a_tmpfs_was_mounted_where_a_link_of_another_user_leads(harness: Harness, home: Path) -> None:
    target = link(home / "target", "/etc")
    mount = {"type": "tmpfs", "destination": str(target)}
    assert (
        await failure(harness, mount) == f"cannot mount tmpfs on {target}: {target}: {target} {REFUSED.format('/etc')}"
    )


@pytest.mark.fault("A11")
@pytest.mark.parametrize("option", ["lowerdir={}:/usr", "lowerdir=/usr:{}", "lowerdir=/usr,upperdir={}"])
async def test_a_layer_of_an_overlay_was_where_a_link_of_another_user_leads(
    harness: Harness, home: Path, option: str
) -> None:
    layer = link(home / "layer", "/root")
    mount = {"type": "overlay", "destination": "/mnt", "options": [option.format(layer)]}
    message = await failure(harness, mount)
    assert message == f"cannot mount overlay on /mnt: overlay: {layer} {REFUSED.format('/root')}"


@pytest.mark.fault("A11")
async def test_no_directory_for_a_mount_is_made_through_a_link_of_another_user(harness: Harness, home: Path) -> None:
    """In a tmpfs, missing directories are made; a bind mount in it may have links of others."""
    link(home / "data" / "link", "/mnt")
    mounts = [
        {"type": "tmpfs", "destination": "/mnt"},
        {"source": str(home / "data"), "destination": "/mnt/data"},
        {"source": "/usr", "destination": "/mnt/data/link/new/usr"},
    ]
    message = await failure(harness, *mounts)
    assert message.endswith(f"/mnt/data/link {REFUSED.format('/mnt')}")


@pytest.mark.fault("A11")
async def test_directories_of_another_user_are_mounted(harness: Harness, home: Path) -> None:
    (home / "target").mkdir()
    mounts = [
        {"source": str(home / "data"), "destination": str(home / "target")},
        {"type": "overlay", "destination": "/mnt", "options": [f"lowerdir={home}/data:/usr/games"]},
    ]
    script = f"cat {home}/target/passwd /mnt/passwd"
    result = await harness.run("sh", "-c", script, namespaces=ISOLATED, mounts=mounts)
    assert (result.failure, result.stderr, result.stdout) == (None, "", "of nobodyof nobody")


@pytest.mark.fault("A11")
async def test_links_of_root_are_followed(harness: Harness, home: Path) -> None:
    links = home.parent / "links"
    links.mkdir()
    (links / "source").symlink_to(home / "data")
    (links / "target").symlink_to("/mnt")
    mounts = [{"source": str(links / "source"), "destination": str(links / "target")}]
    result = await harness.run("cat", "/mnt/passwd", namespaces=ISOLATED, mounts=mounts)
    assert (result.failure, result.stdout) == (None, "of nobody")


@pytest.mark.fault("A11")
@needs("userns")
async def test_in_a_user_namespace_no_link_is_followed_whose_owner_has_no_number_there(
    harness: Harness, home: Path
) -> None:
    """The numbers of root and of nobody on the host are the same there: that of an unknown user."""
    target = link(home / "target", "/mnt")
    mounts = [{"source": "/usr", "destination": str(target)}]
    maps = {"uid_mappings": [[0, 100_000, 1000]], "gid_mappings": [[0, 100_000, 1000]]}
    result = await harness.run("true", namespaces=[*ISOLATED, "user"], mounts=mounts, **maps)
    assert result.failure is not None
    assert result.failure.message.endswith(f"{target} {REFUSED.format('/mnt')}")


@pytest.mark.fault("C11")
@needs("userns")
async def test_a_bind_mount_of_a_directory_with_mounts_below_it_named_no_cause_in_a_user_namespace(
    harness: Harness,
) -> None:
    given = {"namespaces": [*ISOLATED, "user"]}
    mount = {"source": "/", "destination": "/mnt"}
    result = await harness.run("true", mounts=[mount], **given)
    assert result.failure is not None
    hint = 'a user namespace may not uncover what is below the mounts in /: add the option "rbind"'
    assert result.failure.message == f"cannot mount / on /mnt: Invalid argument ({hint})"
    result = await harness.run("test", "-d", "/mnt/proc/self", mounts=[{**mount, "options": ["rbind"]}], **given)
    assert (result.failure, result.code) == (None, 0)
