"""Sockets that are looked for in programs, which may have made any socket themselves."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from nsupervisor.config.sockets import SocketConfig
from nsupervisor.service.platform.listeners import LinuxListeners
from tests.needs import needs

pytestmark = needs("root", "program:unshare")

ODD = "[socket.socket(socket.AF_NETLINK, socket.SOCK_RAW), socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)]"
OTHERS = "[socket.socket(socket.AF_PACKET, socket.SOCK_RAW), *socket.socketpair()]"


@contextmanager
def program(sockets: str, prefix: Sequence[str] = ()) -> Iterator[int]:
    """Run a program that has made some sockets; return its pid."""
    code = f"import os, socket, sys; kept = {sockets}; print(flush=True); sys.stdin.read()"
    command = [*prefix, sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        yield process.pid
        process.communicate()


def find(config: SocketConfig, pid: int) -> bool:
    """Return whether a socket is found in a program; no descriptor is left."""
    listeners, before = LinuxListeners(), len(os.listdir("/proc/self/fd"))
    if is_found := (fd := listeners.find(config, [pid])) >= 0:
        listeners.close(fd)
    assert len(os.listdir("/proc/self/fd")) == before
    return is_found


def listening(address: str) -> str:
    """Return an expression that makes a listening Unix socket."""
    return f"[s := socket.socket(socket.AF_UNIX), s.bind({address!r}), s.listen()]"


@pytest.mark.parametrize("sockets", [ODD, OTHERS])
def test_sockets_of_any_kind_leave_no_descriptor_behind(sockets: str) -> None:
    with program(sockets) as pid:
        assert not find(SocketConfig(listen_stream="127.0.0.1:80"), pid)
        assert not find(SocketConfig(listen_datagram="127.0.0.1:80"), pid)
        assert not find(SocketConfig(listen_sequential_packet="@nsupervisor-test"), pid)


def test_the_socket_of_an_abstract_name_is_found_in_this_network_namespace_only() -> None:
    name = f"nsupervisor-test-{os.getpid()}"
    config = SocketConfig(listen_stream=f"@{name}")
    with program(listening(f"\0{name}")) as pid:
        assert find(config, pid)
    with program(listening(f"\0{name}"), ["unshare", "--net"]) as pid:
        assert not find(config, pid)


def test_the_socket_of_a_path_below_another_root_is_not_found(tmp_path: Path) -> None:
    """Its address is the same text, but no client of the service's path reaches it."""
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as own:
        own.bind(path)
        own.listen()
        in_sandbox = f"[os.chdir({str(tmp_path)!r}), os.mkdir('root'), os.makedirs('root' + {str(tmp_path)!r}), " + (
            f"os.chroot('root'), *{listening(path)}]"
        )
        with program(in_sandbox) as pid:
            assert not find(SocketConfig(listen_stream=path), pid)
        assert find(SocketConfig(listen_stream=path), os.getpid())
