"""The tree's cgroups as /proc/PID/cgroup shows them."""

import os
import subprocess
from pathlib import Path

import pytest

from nsupervisor.cgroups import Host, Tree
from nsupervisor.cgroups.membership import instance_of, shown_path, tree_cgroups
from nsupervisor.cgroups.mounts import CgroupMount, own_directory
from nsupervisor.config.model import Resources
from nsupervisor.linux.peers import below, cgroups_of
from tests.needs import needs

NONE: frozenset[str] = frozenset()
MEMORY = frozenset({"memory"})


def mount(point: str, root: str = "/", version: int = 2, controllers: frozenset[str] = NONE) -> CgroupMount:
    return CgroupMount(version, point, root, controllers, read_only=False)


@pytest.mark.parametrize(
    ("mounts", "directory", "shown"),
    [
        ([mount("/sys/fs/cgroup")], "/sys/fs/cgroup/tree", "/tree"),
        ([mount("/sys/fs/cgroup")], "/sys/fs/cgroup", "/"),
        ([mount("/sys/fs/cgroup", "/docker/1")], "/sys/fs/cgroup/tree", "/docker/1/tree"),
        ([mount("/sys/fs/cgroup", "/..")], "/sys/fs/cgroup/tree", "/../tree"),
        ([mount("/sys/fs/cgroup"), mount("/sys/fs/cgroup/a", "/b")], "/sys/fs/cgroup/a/tree", "/b/tree"),
        ([mount("/c", "/hidden"), mount("/c", "/seen")], "/c/tree", "/seen/tree"),
        ([mount("/c"), mount("/c", version=1, controllers=MEMORY)], "/c/tree", "/tree"),
        ([mount("/c2")], "/c/tree", None),
    ],
)
def test_a_directory_as_proc_shows_it(mounts: list[CgroupMount], directory: str, shown: str | None) -> None:
    assert shown_path(mounts, 2, NONE, directory) == shown
    if shown is not None and ".." not in shown:
        assert directory in {own_directory(one, shown) for one in mounts if one.version == 2}


def test_the_instance_of_a_cgroup() -> None:
    tree = "/a/tree"
    assert instance_of("/a/tree/web", tree) == "web"
    assert instance_of("/a/tree/web@2/below/it", tree) == "web@2"
    assert instance_of("/a/tree/group.outer/group.inner/web/x", tree) == "web"
    assert instance_of("/a/tree", tree) == ""
    assert instance_of("/a/tree/group.outer", tree) == ""
    assert instance_of("/a/tree2/web", tree) == ""
    assert instance_of("/other/web", tree) == ""


@needs("root", "cgroup")
def test_a_process_in_the_tree_is_found_in_every_hierarchy_that_it_was_put_into() -> None:
    host = Host.discover()
    tree = Tree.create(host, f"test-membership-{os.getpid()}")
    try:
        cgroups = tree_cgroups(host, tree.name)
        cgroup = tree.make("web", Resources())
        with subprocess.Popen(["sleep", "1000"]) as process:
            try:
                assert below(cgroups_of(process.pid), cgroups) == ""
                for directory in (cgroup.path, *cgroup.v1.values()):
                    Path(directory, "cgroup.procs").write_text(str(process.pid))
                inside = [text for text in cgroups_of(process.pid) if below([text], cgroups)]
                assert len(inside) == 1 + len(cgroup.v1)
                paths = {text.partition(":")[0]: text.partition(":")[2] for text in inside}
                assert instance_of(paths[""], cgroups[0][1:]) == "web"
            finally:
                process.kill()
        cgroup.close()
    finally:
        tree.close()
