"""The keeper accepts its supervisor alone: refused connections change nothing."""

import contextlib
import os
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from nsupervisor.keeper import protocol
from nsupervisor.keeper.client import open_keeper
from nsupervisor.keeper.messages import KeeperLost, RefusedError
from nsupervisor.linux.peers import cgroups_of
from tests.keeper.conftest import Harness, end_all
from tests.keeper.test_server import SPEC, Raw
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


@needs("cgroup")
async def test_protected_cgroups_survive_an_upgrade(runtime_directory: Path) -> None:
    package, path = str(Path(protocol.__file__).parents[2]), str(runtime_directory / protocol.SOCKET_NAME)
    cgroup = cgroup_directories()[""] / f"test-protect-{os.getpid()}"
    cgroup.mkdir()
    shown = next(one for one in cgroups_of("self") if one.startswith(":")).rstrip("/")

    def connect() -> str:
        command = [sys.executable, "-c", CONNECT, str(cgroup), path]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

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
