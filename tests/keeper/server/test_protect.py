"""The keeper accepts its supervisor alone: refused connections change nothing."""

import contextlib
import os
import resource
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from nsupervisor.keeper import protocol
from nsupervisor.keeper.client import _start_keeper, open_keeper
from nsupervisor.keeper.messages import KeeperLost, RefusedError
from nsupervisor.linux.peers import cgroups_of
from tests.keeper.conftest import Harness, end_all
from tests.keeper.server.test_loop import SPEC, Raw
from tests.needs import cgroup_directories, needs
from tests.timing import deadline

pytestmark = needs("root")


async def test_a_refused_connection_does_not_disturb_the_client(harness: Harness, runtime_directory: Path) -> None:
    """A process in a protected cgroup cannot take the keeper over; after that its own client still can."""
    own = cgroups_of("self")
    await harness.keeper.protect([*own, "memory:/no/such"])
    for _ in range(20):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            sock.settimeout(deadline(20))
            sock.connect(str(runtime_directory / protocol.SOCKET_NAME))
            with contextlib.suppress(ConnectionError):  # it may be closed before or after that
                sock.send(protocol.encode({"request": 1, "do": "shutdown"}))
                assert sock.recv(1) == b""
    assert (await harness.run("true")).code == 0, "the present client is served as before"
    await harness.keeper.protect([])
    with closing(Raw(runtime_directory)):
        await harness.keeper.wait_lost()


async def test_protect_takes_texts_of_cgroups_only(harness: Harness) -> None:
    for wrong in ("/x", ["x"], [7], None):
        with pytest.raises(RefusedError, match="CONTROLLERS:/PATH"):
            await harness.keeper._call({"do": "protect", "cgroups": wrong})


CONNECT = """
import os, socket, sys
with open(sys.argv[1] + "/cgroup.procs", "w") as file: file.write("0")
sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); sock.connect(sys.argv[2])
try: print(sock.recv(7).decode())
except ConnectionResetError: print()
"""


def output_of(script: str, *arguments: object) -> str:
    """Run a script in a process of its own; return what it prints, "" for a connection that was refused."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


CONNECT_AS_NOBODY = """
import os, socket, sys
os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); sock.connect(sys.argv[1])
try: print(sock.recv(7).decode())
except ConnectionResetError: print()
"""


async def test_the_keeper_answers_its_own_user_alone(harness: Harness, runtime_directory: Path) -> None:
    """Another user is refused even if the modes of the directory and of the socket let it connect."""
    path = runtime_directory / protocol.SOCKET_NAME
    runtime_directory.chmod(0o711)
    path.chmod(0o666)
    assert output_of(CONNECT_AS_NOBODY, path) == "", "refused without a message"
    assert (await harness.run("true")).code == 0, "the present client is served as before"


async def test_the_keeper_decides_when_no_descriptor_is_left(harness: Harness, runtime_directory: Path) -> None:
    """A supervisor that restarts must be able to take over a keeper that has used up all descriptors."""
    pid = harness.keeper.pid
    used = {int(fd) for fd in os.listdir(f"/proc/{pid}/fd")}
    assert used == set(range(len(used))), "no number below the limit is free"
    limit = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (len(used), limit[1]))
    with closing(Raw(runtime_directory)):
        await harness.keeper.wait_lost()
    resource.prlimit(pid, resource.RLIMIT_NOFILE, limit)


@pytest.mark.fault("A4")
@needs("cgroup")
async def test_a_keeper_refuses_workloads_before_it_has_a_client(runtime_directory: Path) -> None:
    """A keeper that is started knows the protected cgroups from its command line."""
    path = str(runtime_directory / protocol.SOCKET_NAME)
    cgroup = cgroup_directories()[""] / f"test-protect-first-{os.getpid()}"
    cgroup.mkdir()
    shown = next(text for text in cgroups_of("self") if text.startswith(":")).rstrip("/")
    try:
        assert _start_keeper(runtime_directory, path, [f"{shown}/{cgroup.name}"]) is not None
        received = output_of(CONNECT, cgroup, path)
        async with open_keeper(runtime_directory) as keeper:
            await end_all(keeper)
        assert received == "", "no other connection came before it"
    finally:
        cgroup.rmdir()


@needs("cgroup")
async def test_protected_cgroups_survive_an_upgrade(runtime_directory: Path) -> None:
    package, path = str(Path(protocol.__file__).parents[2]), str(runtime_directory / protocol.SOCKET_NAME)
    cgroup = cgroup_directories()[""] / f"test-protect-{os.getpid()}"
    cgroup.mkdir()
    shown = next(one for one in cgroups_of("self") if one.startswith(":")).rstrip("/")

    def connect() -> str:
        return output_of(CONNECT, cgroup, path)

    try:
        async with open_keeper(runtime_directory, [f"{shown}/{cgroup.name}"]) as keeper:
            spawned = await keeper.spawn({**SPEC, "id": "x#1"})
            protocol.close_all([spawned.stdout, spawned.stderr])
            assert connect() == "", "by the command line of a keeper that is started"
            with pytest.raises(KeeperLost):
                await keeper.execute(sys.executable, package)
        assert connect() == "", "by the table of one that becomes another version"
        async with open_keeper(runtime_directory) as keeper:
            await keeper.protect(["memory:/no/such"])
            assert connect() == '{"v":1,', "what is protected is what was said last"
        async with open_keeper(runtime_directory) as keeper:
            await end_all(keeper)
    finally:
        cgroup.rmdir()
