"""Sockets that the service listens on for workloads: real programs, real clients, kills of everything."""

import json
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import trio

from tests.needs import needs
from tests.system.service import Service, service
from tests.timing import deadline

pytestmark = needs("root")

SERVER = """
import os, socket
assert int(os.environ["LISTEN_PID"]) == os.getpid()
listener = socket.socket(fileno=3)
while True:
    connection, _ = listener.accept()
    with connection:
        connection.recv(1)
        connection.sendall(b"%d\\n" % os.getpid())
"""
"""Answers each client with its own pid, one after the other."""
KILLS = 25
CLIENTS = 10


def workload(name: str, *lines: str, script: str = SERVER) -> str:
    command = json.dumps(["python3", "-Ic", script])
    keys = ('restart = "always"', "restart_sec = 0", "start_limit_burst = 100000")
    return "\n".join((f"[workload.{name}]", f"command = {command}", *keys, *lines, ""))


def stream(address: object) -> str:
    return f'sockets = [{{ listen_stream = "{address}" }}]'


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def ask(port: int) -> str:
    """Connect and return the answer; "" if the connection was accepted by a program that was killed then.

    Raises ConnectionRefusedError if nothing listens.
    """
    client = trio.socket.socket()
    with client:
        with trio.fail_after(deadline(20)):
            await client.connect(("127.0.0.1", port))
            try:
                await client.send(b"?")
                return (await client.recv(100)).decode().strip()
            except ConnectionResetError:
                return ""


async def until_answered(port: int, is_wanted: Callable[[str], bool] = bool) -> str:
    """Ask until an answer is as wanted; no connection may be refused meanwhile."""
    with trio.fail_after(deadline(30)):
        while not is_wanted(answer := await ask(port)):
            pass
    return answer


class Load:
    """Clients that connect one after the other, and count the answers."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.answers = 0
        self.refused = 0
        self.is_over = False

    async def run(self) -> None:
        while not self.is_over:
            try:
                answer = await ask(self.port)
                self.answers += bool(answer)
            except ConnectionRefusedError:
                self.refused += 1


async def test_no_connection_is_refused_while_a_program_is_killed_again_and_again(tmp_path: Path) -> None:
    port = free_port()
    async with service(tmp_path, workload("web", stream(f"127.0.0.1:{port}")), isolation="none") as it:
        load = Load(port)
        async with trio.open_nursery() as nursery:
            for _ in range(CLIENTS):
                nursery.start_soon(load.run)
            for generation in range(1, KILLS + 1):
                pid = await it.pid("web", generation)
                before = load.answers
                with trio.fail_after(deadline(30)):
                    while load.answers == before:  # noqa: ASYNC110 - each generation answers
                        await trio.sleep(0.001)
                os.kill(pid, signal.SIGKILL)
            await it.pid("web", KILLS + 1)
            load.is_over = True
        assert load.refused == 0
        assert load.answers >= KILLS


async def kill_and_wait(pid: int) -> None:
    """Kill a program; afterwards it accepts no connection."""
    pidfd = os.pidfd_open(pid)
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    with trio.fail_after(deadline(20)):
        await trio.lowlevel.wait_readable(pidfd)
    os.close(pidfd)


async def test_a_socket_outlives_the_service_and_its_upgrade(tmp_path: Path) -> None:
    """The program dies while no service runs: its clients wait for the next one."""
    port = free_port()
    toml = workload("web", stream(f"127.0.0.1:{port}"))
    async with service(tmp_path, toml, isolation="none", status=-signal.SIGKILL) as it:
        first = await until_answered(port)
        it.process.kill()
        await it.process.wait()
        await kill_and_wait(int(first))
    waiting = socket.create_connection(("127.0.0.1", port))  # nothing accepts it yet
    with waiting:
        async with service(tmp_path, toml, isolation="none") as it:
            waiting.sendall(b"?")
            answer = (await trio.to_thread.run_sync(waiting.recv, 100)).decode().strip()
            assert answer not in ("", first)
            await it.cli("upgrade")
            await it.record(event="supervisor upgraded", patience=30)
            os.kill(int(answer), signal.SIGKILL)
            assert await until_answered(port, lambda text: text not in ("", answer))


async def test_a_socket_survives_the_death_of_service_and_keeper(tmp_path: Path) -> None:
    port = free_port()
    toml = workload("web", stream(f"127.0.0.1:{port}"))
    async with service(tmp_path, toml, isolation="none", status=-signal.SIGKILL) as it:
        first = await until_answered(port)
        keeper = (await it.record(event="supervisor started"))["keeper_pid"]
        os.kill(it.process.pid, signal.SIGKILL)
        os.kill(keeper, signal.SIGKILL)
    async with service(tmp_path, toml, isolation="none") as it:
        assert await ask(port) == first
        os.kill(int(first), signal.SIGKILL)
        assert await until_answered(port, lambda text: text not in ("", first))


async def test_a_new_keeper_gets_the_sockets(tmp_path: Path) -> None:
    port = free_port()
    toml = workload("web", stream(f"127.0.0.1:{port}"))
    async with service(tmp_path, toml, isolation="none") as it:
        first = await until_answered(port)
        os.kill((await it.record(event="supervisor started"))["keeper_pid"], signal.SIGKILL)
        await it.record(event="keeper replaced")
        os.kill(int(first), signal.SIGKILL)
        assert await until_answered(port, lambda text: text not in ("", first))


# ---- files


UNIX = """
import os, socket
for fd in range(3, 3 + int(os.environ["LISTEN_FDS"])):
    with socket.socket(fileno=os.dup(fd)) as found:
        print(found.type.name, found.getsockname(), flush=True)
socket.socket(fileno=3).accept()
"""


async def test_unix_sockets_have_their_modes_owners_and_types(tmp_path: Path) -> None:
    directory = tmp_path / "made/for/it"
    toml = (
        workload("web", script=UNIX)
        + f"""
        [[workload.web.sockets]]
        listen_stream = "{directory}/stream"
        socket_mode = "0640"
        socket_user = "1234"
        socket_group = "4321"
        remove_on_stop = true
        [[workload.web.sockets]]
        listen_datagram = "{directory}/datagram"
        [[workload.web.sockets]]
        listen_sequential_packet = "@{tmp_path.name}"
        """
    )
    tmp_path.chmod(0o755)
    async with service(tmp_path, toml, isolation="none") as it:
        await it.record(event="output", message=f"SOCK_STREAM {directory}/stream")
        await it.record(event="output", message=f"SOCK_DGRAM {directory}/datagram")
        await it.record(event="output", message=f"SOCK_SEQPACKET {f'{chr(0)}{tmp_path.name}'.encode()}")
        status = (directory / "stream").stat()
        assert (oct(status.st_mode), status.st_uid, status.st_gid) == ("0o140640", 1234, 4321)
        shown = await it.cli("status", "web")
        assert f"{directory}/stream (stream)" in shown
        config = tmp_path / "nsupervisor.toml"
        config.write_text(config.read_text().replace('"0640"', '"0600"'))
        await it.cli("reload")
        assert oct((directory / "stream").stat().st_mode) == "0o140600"
        assert (await it.status("web"))["generation"] == 1
    assert sorted(path.name for path in directory.iterdir()) == ["datagram"]
    async with service(tmp_path, toml, isolation="none") as it:  # the file that was left is replaced
        await it.record(event="output", message=f"SOCK_DGRAM {directory}/datagram")


async def failure(it: Service, name: str) -> str:
    """Return why the first start of a workload has failed."""
    return str((await it.record(event="not started", workload=name))["message"])


async def test_sockets_that_cannot_be_made_fail_the_start_with_the_reason(tmp_path: Path) -> None:
    """Root replaces nothing but a socket without a listener, and follows no name of another user."""
    tmp_path.chmod(0o755)
    foreign, file, hostile = tmp_path / "foreign", tmp_path / "file", tmp_path / "hostile"
    file.write_text("precious")
    hostile.mkdir()
    os.chown(hostile, 1234, 1234)
    (tmp_path / "link").symlink_to(hostile)
    used = socket.create_server(("127.0.0.1", 0))
    with used, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(foreign))
        listener.listen()
        toml = "".join(
            workload(name, stream(address)).replace("restart_sec = 0", "restart_sec = 10")
            for name, address in {
                "port": f"127.0.0.1:{used.getsockname()[1]}",
                "foreign": foreign,
                "file": file,
                "hostile": hostile / "socket",
                "link": tmp_path / "link/socket",
                "absent": "192.0.2.1:1",
                "good": f"127.0.0.1:{free_port()}",
            }.items()
        )
        async with service(tmp_path, toml, isolation="none") as it:
            assert "Address already in use; another program listens there" in await failure(it, "port")
            assert "Address already in use" in await failure(it, "foreign")
            assert "there is something else than a socket; remove it" in await failure(it, "file")
            assert "belongs to user 1234" in await failure(it, "hostile")
            assert "is a symbolic link" in await failure(it, "link")
            assert "free_bind = true" in await failure(it, "absent")
            await it.pid("good")
            assert "127.0.0.1" in (await it.status("port"))["sockets"][0]["problem"]
    assert file.read_text() == "precious"
    assert list(hostile.iterdir()) == []
