"""sd_notify(3), with a real client of it where there is one."""

import os
import socket
import stat
import subprocess
import tempfile
from pathlib import Path

import pytest
import trio

from nsupervisor.service.notify import host_owner, messages, notify_socket
from tests.needs import needs
from tests.timing import deadline


@pytest.fixture
def directory():
    """A runtime directory that other users can pass through, as the real one."""
    with tempfile.TemporaryDirectory() as parent:
        os.chmod(parent, 0o711)
        yield Path(parent) / "notify"


async def test_assignments_of_a_datagram(directory):
    with (
        notify_socket(directory, "web#1", None) as ours,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as theirs,
    ):
        theirs.connect(str(directory / "web#1"))
        theirs.send(b"READY=1\nSTATUS=a=b \xff\nrubbish\n\n")
        assert await messages(ours) == {"READY": "1", "STATUS": "a=b \ufffd"}
        theirs.send(b"")
        assert await messages(ours) == {}
    assert os.listdir(directory) == []


@needs("program:systemd-notify")
async def test_systemds_own_client_is_understood(directory):
    with notify_socket(directory, "web#1", None) as ours:
        env = {**os.environ, "NOTIFY_SOCKET": str(directory / "web#1")}
        with trio.fail_after(deadline(10)):
            command = ["systemd-notify", "--ready", "--status=warm"]
            await trio.run_process(command, env=env, check=False)  # the socket keeps what is sent before it is read
            said = await messages(ours)
        assert said["READY"] == "1"
        assert said["STATUS"] == "warm"


@needs("root")
async def test_only_the_programs_user_may_speak(directory):
    with notify_socket(directory, "web#1", (65534, 65534)):
        mode = os.lstat(directory / "web#1")
        assert (stat.S_IMODE(mode.st_mode), mode.st_uid) == (0o600, 65534)
        path = str(directory / "web#1")
        talk = f"import socket; socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b'READY=1', {path!r})"
        for uid, status in ((65534, 0), (65533, 1)):
            result = await trio.run_process(
                ["/usr/bin/python3", "-c", talk], user=uid, check=False, capture_stderr=True, stdout=subprocess.DEVNULL
            )
            assert result.returncode == status, result.stderr


def test_the_owner_on_the_host_follows_the_mappings():
    def spec(uid, gid, mappings=()):
        return {"uid": uid, "gid": gid, "uid_mappings": list(mappings), "gid_mappings": list(mappings)}

    assert host_owner(spec(None, None)) is None
    assert host_owner(spec(33, 33)) == (33, 33)
    assert host_owner(spec(33, None, [[0, 100000, 65536]])) == (100033, 100000)
