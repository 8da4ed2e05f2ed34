"""Programs that join namespaces: where they are, what they see, and what the keeper refuses."""

import os

import pytest

from nsupervisor.keeper.messages import SpawnError
from nsupervisor.linux import joining
from nsupervisor.linux.namespaces import NAMESPACES
from tests.keeper.conftest import Harness
from tests.needs import needs

pytestmark = needs("root", "netns")

OWN = ["mount", "pid", "cgroup"]
KINDS = ("network", "uts", "ipc")
JOINS = dict.fromkeys(KINDS, "workload:web")
FORMS = pytest.mark.parametrize(
    "spec",
    [
        pytest.param({"namespaces": OWN}, id="init"),
        pytest.param({"namespaces": OWN, "init": False}, id="pid1"),
        pytest.param({"namespaces": []}, id="plain"),
        pytest.param({"namespaces": OWN, "uid": 1234, "gid": 1234, "groups": []}, id="user"),
    ],
)


async def other(harness: Harness) -> tuple[int, list[int]]:
    """Start the program whose namespaces are joined; return its pid and the descriptors of the namespaces."""
    spawned = await harness.spawn("sleep", "1000", namespaces=[*OWN, *KINDS], hostname="other")
    pid = (await harness.execed(spawned)).pid
    pidfd = os.pidfd_open(pid)
    try:
        return pid, [joining.open_of_process(pidfd, kind) for kind in KINDS]
    finally:
        os.close(pidfd)


@FORMS
async def test_a_program_is_in_the_namespaces_that_it_joins(harness: Harness, spec: dict) -> None:
    pid, fds = await other(harness)
    expected = [os.readlink(f"/proc/{pid}/ns/{NAMESPACES[kind].file}") for kind in KINDS]
    script = "for kind in net uts ipc; do readlink /proc/self/ns/$kind; done; uname -n; ls -l /proc/self/fd | wc -l; "
    script += "ls -d /sys/class/net/lo; ls /sys/class/net | grep -c ^eth"
    result = await harness.run("sh", "-c", script, joins=JOINS, join_fds=fds, **spec)
    for fd in fds:
        os.close(fd)
    assert result.failure is None, result
    *namespaces, name, files, lo, host_devices = result.stdout.splitlines()
    assert (namespaces, name, lo) == (expected, "other", "/sys/class/net/lo")
    assert int(files) == 5, "its three streams, that of ls, and the line with the total"
    if spec["namespaces"]:
        assert host_devices == "0"


async def test_more_output_than_one_message_comes_with_descriptors(harness: Harness) -> None:
    """A specification that does not fit into a datagram is sent in a file, whose descriptor follows the others."""
    pid, fds = await other(harness)
    result = await harness.run(
        "sh", "-c", "readlink /proc/self/ns/net", joins=JOINS, join_fds=fds, namespaces=OWN, env={"LONG": "x" * 100_000,
        "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    for fd in fds:
        os.close(fd)
    assert result.stdout.strip() == os.readlink(f"/proc/{pid}/ns/net"), result


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ({"joins": {"mount": "workload:web"}}, "no namespace to join is called mount"),
        ({"joins": {"network": "workload:web"}, "namespaces": ["network"]}, "cannot be both new and joined"),
        ({"joins": {"network": "workload:web"}, "namespaces": ["user"]}, "not possible in a new user namespace"),
        ({"joins": {"network": "workload:web"}}, "1 descriptors are wanted, not 0"),
    ],
)
async def test_what_cannot_be_joined_is_refused(harness: Harness, spec: dict, text: str) -> None:
    with pytest.raises(SpawnError, match=text):
        await harness.spawn("true", **spec)


@FORMS
async def test_what_is_not_the_namespace_fails_by_name(harness: Harness, spec: dict) -> None:
    fd = os.open(os.devnull, os.O_RDONLY)
    result = await harness.run("true", joins={"network": "path:/dev/null"}, join_fds=[fd], **spec)
    os.close(fd)
    assert result.failure is not None
    assert (result.failure.step, result.failure.message) == (
        "join_namespaces",
        "cannot join the network namespace: Invalid argument",
    )
