"""Peers of Unix sockets: the facts, and what is decided from them."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nsupervisor.linux import peers
from nsupervisor.linux.peers import Peer, PeerRefused, Policy, below, refusal
from tests.needs import needs

OURS, OTHER = (4, 100), (4, 200)
TREE = (":/a/tree", "memory:/own/tree")


@pytest.mark.parametrize(
    ("cgroup", "found"),
    [
        (":/a/tree", True),
        (":/a/tree/web", True),
        (":/a/tree/group.batch/web@2", True),
        (":/a/tree (deleted)", True),
        (":/a/tree/web (deleted)", True),
        ("memory:/own/tree/web", True),
        (":/a/tree2", False),
        (":/a", False),
        (":/", False),
        (":/own/tree/web", False),
        ("memory:/a/tree/web", False),
        ("name=systemd:/a/tree", False),
    ],
)
def test_a_cgroup_counts_only_in_its_own_hierarchy(cgroup: str, found: bool) -> None:
    assert below(["pids:/", cgroup], TREE) == (cgroup if found else "")


def test_everything_is_below_the_root() -> None:
    assert below([":/anything"], [":/"]) == ":/anything"


@pytest.mark.parametrize(
    ("peer", "kind"),
    [
        (Peer(7, 0, 0, [":/"], OURS), None),
        (Peer(7, 33, 33, [":/"], OURS), None),
        (Peer(7, 0, 0, [":/a/tree/web"], OURS), peers.WORKLOAD),
        (Peer(7, 0, 0, [":/", "memory:/own/tree/web"], OURS), peers.WORKLOAD),
        (Peer(7, 0, 0, [":/a/tree/web"], OTHER), peers.WORKLOAD),
        (Peer(7, 0, 0, [":/"], OTHER), peers.USER_NAMESPACE),
        (Peer(7, 0, 0, [":/"], None), peers.UNIDENTIFIED),
    ],
)
def test_the_decision_of_a_service_of_root(peer: Peer, kind: str | None) -> None:
    refused = refusal(peer, OURS, TREE, 0)
    assert (refused.kind if refused else None) == kind


def test_an_unprivileged_service_cannot_inspect_root_but_answers_it() -> None:
    assert refusal(Peer(7, 0, 0, [":/"], None), OURS, TREE, 1000) is None
    refused = refusal(Peer(7, 1000, 1000, [":/"], None), OURS, TREE, 1000)
    assert refused is not None
    assert refused.kind == peers.UNIDENTIFIED


def test_a_keeper_answers_its_own_user_alone() -> None:
    for uid, kind in ((1000, None), (0, peers.USER), (33, peers.USER)):
        refused = refusal(Peer(7, uid, uid, [":/"], OURS), OURS, TREE, 1000, only_own_uid=True)
        assert (refused.kind if refused else None) == kind


# ---- real sockets


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.bind(str(tmp_path / "socket"))
        sock.listen()
        yield sock


CONNECT = (
    "import os, socket, sys\n"
    "sock = socket.socket(socket.AF_UNIX); sock.connect(sys.argv[1])\n"
    "print(os.getpid(), flush=True); sys.stdin.readline()\n"
)


def test_a_peer_is_the_process_that_connected(listener) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(listener.getsockname())
        with listener.accept()[0] as sock:
            peer = Policy(TREE).check(sock)
    assert (peer.pid, peer.uid, peer.gid) == (os.getpid(), os.geteuid(), os.getegid())
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    assert [f":{text}" for text in peer.cgroups] == [line[line.index(":") :] for line in lines]
    assert f"0::{peer.cgroup}" in lines


@pytest.mark.parametrize("pidfds", [True, False], ids=["pidfd", "start time"])
@pytest.mark.parametrize("reaped", [True, False], ids=["reaped", "zombie"])
def test_a_peer_that_has_ended_is_refused(listener, monkeypatch, pidfds: bool, reaped: bool) -> None:
    if not pidfds:
        monkeypatch.setattr(peers, "SO_PEERPIDFD", 9999)
    command = [sys.executable, "-c", CONNECT, listener.getsockname()]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert int(process.stdout.readline()) == process.pid
        with listener.accept()[0] as sock:
            assert Policy(TREE).check(sock).pid == process.pid
            process.stdin.close()
            if reaped:
                process.wait()
            else:
                os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
            if reaped or pidfds:
                with pytest.raises(PeerRefused, match="has ended") as caught:
                    Policy(TREE).check(sock)
                assert caught.value.kind == peers.UNIDENTIFIED


def test_a_pid_that_is_used_again_during_the_check_is_noticed(listener, monkeypatch) -> None:
    """Without SO_PEERPIDFD the start time before and after decides."""
    monkeypatch.setattr(peers, "SO_PEERPIDFD", 9999)
    times = iter((1, 2))
    monkeypatch.setattr(peers.processes, "start_time", lambda pid: next(times))
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(listener.getsockname())
        with listener.accept()[0] as sock, pytest.raises(PeerRefused, match="has ended"):
            Policy(TREE).check(sock)


def test_a_check_needs_one_free_descriptor(listener) -> None:
    """A keeper that has no other left can still decide, with the one that it keeps for that."""
    script = (
        "import os, resource, socket, sys\n"
        "from nsupervisor.linux.peers import Policy, PeerRefused\n"
        "listener = socket.socket(fileno=int(sys.argv[1]))\n"
        "client = socket.socket(socket.AF_UNIX); client.connect(listener.getsockname())\n"
        "sock = listener.accept()[0]\n"
        "policy = Policy([':/no/such'])\n"
        "used = max(map(int, os.listdir('/proc/self/fd')))\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (used + 10,) * 2)\n"
        "spare = []\n"
        "try:\n"
        "    while True: spare.append(os.dup(0))\n"
        "except OSError: pass\n"
        "try: policy.check(sock)\n"
        "except PeerRefused as refused: assert 'cannot be identified' in str(refused), refused\n"
        "else: raise SystemExit('admitted without a descriptor')\n"
        "os.close(spare.pop())\n"
        "assert policy.check(sock).pid == os.getpid()\n"
    )
    fd = listener.fileno()
    subprocess.run([sys.executable, "-c", script, str(fd)], pass_fds=[fd], check=True)


@needs("root", "userns", "program:unshare")
def test_a_peer_in_another_user_namespace_is_refused(listener) -> None:
    command = ["unshare", "--user", "--map-root-user", sys.executable, "-c", CONNECT, listener.getsockname()]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        with listener.accept()[0] as sock, pytest.raises(PeerRefused, match="another user namespace") as caught:
            Policy(TREE).check(sock)
        process.stdin.close()
    assert caught.value.kind == peers.USER_NAMESPACE
    assert caught.value.peer.uid == os.geteuid()
