"""Where the own cgroup is, from the texts that different kinds of host have in /proc."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsupervisor.cgroups import Host
from nsupervisor.cgroups.mounts import (
    CgroupMount,
    Hierarchy,
    find_hierarchies,
    own_directory,
    parse_memberships,
    parse_mountinfo,
)

SYSTEMD_V2 = (
    """\
22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw,errors=remount-ro
24 22 0:22 / /sys rw,nosuid,nodev,noexec,relatime shared:2 - sysfs sysfs rw
31 24 0:27 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate
32 24 0:28 / /sys/fs/pstore rw,nosuid,nodev,noexec,relatime shared:5 - pstore pstore rw
""",
    "0::/system.slice/nsupervisor.service\n",
)

ONE_BY_ONE = (
    """\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
33 31 0:30 / /sys/fs/cgroup/cpuacct rw,relatime - cgroup cgroup rw,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
39 31 0:36 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
""",
    "9:name=systemd:/\n8:pids:/\n4:memory:/jobs/7\n2:cpuacct:/\n1:cpu:/\n0::/\n",
)

UBUNTU_20_04 = (
    """\
28 23 0:24 / /sys/fs/cgroup ro,nosuid,nodev,noexec shared:9 - tmpfs tmpfs ro,mode=755
29 28 0:25 / /sys/fs/cgroup/unified rw,nosuid,nodev,noexec,relatime shared:10 - cgroup2 cgroup2 rw,nsdelegate
30 28 0:26 / /sys/fs/cgroup/systemd rw,nosuid,nodev,noexec,relatime shared:11 - cgroup cgroup rw,xattr,name=systemd
33 28 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid,nodev,noexec,relatime shared:15 - cgroup cgroup rw,cpu,cpuacct
34 28 0:30 / /sys/fs/cgroup/memory rw,nosuid,nodev,noexec,relatime shared:16 - cgroup cgroup rw,memory
36 28 0:32 / /sys/fs/cgroup/pids rw,nosuid,nodev,noexec,relatime shared:18 - cgroup cgroup rw,pids
""",
    """\
12:memory:/user.slice/user-1000.slice/session-3.scope
7:cpu,cpuacct:/user.slice
5:pids:/user.slice/user-1000.slice/session-3.scope
1:name=systemd:/user.slice/user-1000.slice/session-3.scope
0::/user.slice/user-1000.slice/session-3.scope
""",
)

RHEL_8 = (
    """\
25 18 0:22 / /sys/fs/cgroup ro,nosuid,nodev,noexec shared:4 - tmpfs tmpfs ro,seclabel,mode=755
26 25 0:23 / /sys/fs/cgroup/systemd rw,relatime shared:5 - cgroup cgroup rw,seclabel,xattr,release_agent=/x,name=systemd
30 25 0:27 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid,nodev,noexec,relatime shared:9 - cgroup cgroup rw,seclabel,cpu,cpuacct
33 25 0:30 / /sys/fs/cgroup/memory rw,nosuid,nodev,noexec,relatime shared:12 - cgroup cgroup rw,seclabel,memory
""",
    "11:memory:/user.slice\n4:cpu,cpuacct:/\n1:name=systemd:/user.slice/user-0.slice/session-1.scope\n",
)

CONTAINER_WITH_NAMESPACE = (
    """\
612 611 0:61 / /sys rw,nosuid,nodev,noexec,relatime - sysfs sysfs rw
613 612 0:27 / /sys/fs/cgroup ro,nosuid,nodev,noexec,relatime - cgroup2 cgroup rw,nsdelegate,memory_recursiveprot
""",
    "0::/\n",
)

CONTAINER_OF_V1 = (
    """\
704 703 0:33 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime - tmpfs tmpfs rw,mode=755
705 704 0:26 /docker/5f2c /sys/fs/cgroup/systemd ro,nosuid,relatime master:11 - cgroup cgroup rw,xattr,name=systemd
706 704 0:30 /docker/5f2c /sys/fs/cgroup/memory ro,nosuid,nodev,noexec,relatime master:16 - cgroup cgroup rw,memory
""",
    "12:memory:/docker/5f2c\n1:name=systemd:/docker/5f2c\n0::/system.slice/containerd.service\n",
)

WSL_2 = (
    """\
64 60 0:38 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime - tmpfs tmpfs rw,mode=755
65 64 0:39 / /sys/fs/cgroup/unified rw,nosuid,nodev,noexec,relatime - cgroup2 cgroup2 rw,nsdelegate
67 64 0:41 / /sys/fs/cgroup/cpu rw,nosuid,nodev,noexec,relatime - cgroup cgroup rw,cpu
70 64 0:44 / /sys/fs/cgroup/memory rw,nosuid,nodev,noexec,relatime - cgroup cgroup rw,memory
76 64 0:50 / /sys/fs/cgroup/pids rw,nosuid,nodev,noexec,relatime - cgroup cgroup rw,pids
""",
    "11:pids:/\n5:memory:/\n2:cpu:/\n0::/\n",
)


def directories(recording: tuple[str, str]) -> dict[str, str]:
    """{"v2" or the v1 controllers: the own directory}."""
    found = find_hierarchies(parse_mountinfo(recording[0]), parse_memberships(recording[1]))
    return {",".join(sorted(one.controllers)) or "v2": one.directory for one in found}


@pytest.mark.parametrize(
    ("recording", "expected"),
    [
        pytest.param(SYSTEMD_V2, {"v2": "/sys/fs/cgroup/system.slice/nsupervisor.service"}, id="systemd, pure v2"),
        pytest.param(
            ONE_BY_ONE,
            {
                "v2": "/sys/fs/cgroup/unified",
                "memory": "/sys/fs/cgroup/memory/jobs/7",
                "pids": "/sys/fs/cgroup/pids",
                "cpu": "/sys/fs/cgroup/cpu",
                "cpuacct": "/sys/fs/cgroup/cpuacct",
            },
            id="hybrid, controllers one by one",
        ),
        pytest.param(
            UBUNTU_20_04,
            {
                "v2": "/sys/fs/cgroup/unified/user.slice/user-1000.slice/session-3.scope",
                "memory": "/sys/fs/cgroup/memory/user.slice/user-1000.slice/session-3.scope",
                "pids": "/sys/fs/cgroup/pids/user.slice/user-1000.slice/session-3.scope",
                "cpu,cpuacct": "/sys/fs/cgroup/cpu,cpuacct/user.slice",
            },
            id="hybrid, controllers mounted together",
        ),
        pytest.param(
            RHEL_8,
            {"memory": "/sys/fs/cgroup/memory/user.slice", "cpu,cpuacct": "/sys/fs/cgroup/cpu,cpuacct"},
            id="v1 alone",
        ),
        pytest.param(CONTAINER_WITH_NAMESPACE, {"v2": "/sys/fs/cgroup"}, id="container with a cgroup namespace"),
        pytest.param(CONTAINER_OF_V1, {"memory": "/sys/fs/cgroup/memory"}, id="container without one, v1"),
        pytest.param(
            WSL_2,
            {
                "v2": "/sys/fs/cgroup/unified",
                "memory": "/sys/fs/cgroup/memory",
                "pids": "/sys/fs/cgroup/pids",
                "cpu": "/sys/fs/cgroup/cpu",
            },
            id="WSL 2",
        ),
    ],
)
def test_finds_the_own_directories(recording: tuple[str, str], expected: dict[str, str]) -> None:
    assert directories(recording) == expected


def test_read_only_mounts_are_known_as_such() -> None:
    (one,) = parse_mountinfo(CONTAINER_WITH_NAMESPACE[0])
    assert one.read_only


def test_of_two_mounts_the_writable_one_wins() -> None:
    text = CONTAINER_WITH_NAMESPACE[0] + "700 612 0:27 / /mnt/cgroup rw,relatime - cgroup2 none rw\n"
    (one,) = find_hierarchies(parse_mountinfo(text), parse_memberships("0::/\n"))
    assert one == Hierarchy(2, frozenset(), "/mnt/cgroup", "/mnt/cgroup", False)


def test_a_mount_made_outside_of_the_namespace_does_not_show_where_one_is() -> None:
    mount = CgroupMount(2, "/sys/fs/cgroup", "/..", frozenset(), False)
    assert own_directory(mount, "/") is None


def test_a_process_outside_of_its_namespace_is_not_looked_for() -> None:
    mount = CgroupMount(2, "/sys/fs/cgroup", "/", frozenset(), False)
    assert own_directory(mount, "/../other") is None


def test_spaces_in_mount_points_are_unescaped() -> None:
    (one,) = parse_mountinfo(r"31 24 0:27 / /mnt/my\040cgroups rw - cgroup2 cgroup2 rw" + "\n")
    assert one.mount_point == "/mnt/my cgroups"


def test_other_lines_than_the_kernels_are_refused() -> None:
    with pytest.raises(ValueError, match="not a line of"):
        parse_memberships("nonsense\n")


@pytest.mark.fault("B9", "F4")
@pytest.mark.parametrize("separator", ["\r", "\x0b", "\x0c", "\x1c", "\x85", "\u2028"])
def test_only_a_newline_ends_a_line_of_mounts_and_cgroups(separator: str, tmp_path: Path) -> None:
    """The kernel escapes a newline in a mount point, and refuses it in the name of a cgroup; not so the others."""
    mountinfo, own = tmp_path / "mountinfo", tmp_path / "cgroup"
    point, path = f"{tmp_path}/a{separator}b", f"/a{separator}0::/b"
    mountinfo.write_text(f"31 24 0:27 / {point} rw - cgroup2 cgroup2 rw\n", newline="\n")
    own.write_text(f"0::{path}\n", newline="\n")
    host = Host.discover(str(mountinfo), str(own))
    assert host.core is not None
    assert host.core.directory == f"{point}{path}"


names = st.text("abc.-", min_size=1, max_size=5).filter(lambda name: name.strip("."))


@given(st.lists(names, max_size=4), st.lists(names, max_size=4))
def test_a_mount_of_a_part_shows_what_is_below_that_part(root: list[str], below: list[str]) -> None:
    mount = CgroupMount(2, "/m", "/" + "/".join(root), frozenset(), False)
    path = "/" + "/".join([*root, *below])
    assert own_directory(mount, path) == "/".join(["/m", *below])


@given(st.text(max_size=200))
def test_any_text_as_mountinfo_gives_mounts_or_nothing(text: str) -> None:
    for mount in parse_mountinfo(text):
        assert mount.version in (1, 2)
