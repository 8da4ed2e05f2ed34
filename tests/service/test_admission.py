"""Admission of peers to the socket for workloads, whose mode keeps no other user away."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from nsupervisor.linux.peers import USER, PeerRefused
from nsupervisor.service.admission import Admission
from tests.needs import needs

CONNECT = """
import os, socket, sys
uid = int(sys.argv[2])
os.setgroups([]); os.setresgid(uid, uid, uid); os.setresuid(uid, uid, uid)
sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM); sock.connect("\\0" + sys.argv[1])
print("connected", flush=True)
sys.stdin.read()
"""


@contextmanager
def connection_of(uid: int) -> Iterator[socket.socket]:
    """Yield the accepted connection of a process with this uid, which lives until the end of the block."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        name = f"nsupervisor-test-admission-{os.getpid()}"  # abstract, so that no directory keeps the user away
        listener.bind(f"\0{name}")
        listener.listen()
        command = [sys.executable, "-c", CONNECT, name, str(uid)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stdout.readline() == b"connected\n"
            sock, _ = listener.accept()
            with sock:
                yield sock
            process.stdin.close()


@needs("root")
def test_the_socket_for_workloads_refuses_other_users() -> None:
    admission = Admission((":/no/such",), {})
    with connection_of(65534) as sock:
        assert admission.admit(sock).uid == 65534, "`api.sock` leaves that to its mode"
        with pytest.raises(PeerRefused, match="is not of the service's user") as caught:
            admission.admit_workload(sock)
    assert caught.value.kind == USER
    with connection_of(0) as sock:
        assert admission.admit_workload(sock).uid == 0
