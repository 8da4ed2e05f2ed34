"""Starts of workloads by the first connection: real programs, real clients, kills of the service and the keeper."""

import os
import signal
import socket
from pathlib import Path

import trio

from tests.needs import needs
from tests.system.service import service
from tests.system.test_sockets import ask, free_port, stream, workload
from tests.timing import deadline

pytestmark = needs("root")

ONCE = """
import os, socket
listener = socket.socket(fileno=3)
connection, _ = listener.accept()
with connection:
    connection.recv(1)
    connection.sendall(b"%d\\n" % os.getpid())
"""
"""Answers one client with its own pid, and ends."""
READS = """
import socket
print(socket.socket(fileno=3).recv(100).decode(), flush=True)
"""
CLIENTS = 10
ROUNDS = 5
ACTIVATIONS_PER_ROUND = 20


def lazy(name: str, *lines: str, script: str = ONCE) -> str:
    text = workload(name, "autostart = false", *lines, script=script)
    return text.replace('restart = "always"', 'restart = "no"')


async def test_a_hundred_activations_while_service_and_keeper_are_killed(tmp_path: Path) -> None:
    """Each client is answered by a program of its own, and none is refused, whichever of the two is killed."""
    port = free_port()
    sockets = stream(f"127.0.0.1:{port}").replace(" }", ", trigger_limit_interval_sec = 0 }")
    answers: list[str] = []
    is_over = False

    async def run_client() -> None:
        while not is_over:
            answers.append(await ask(port))

    async def wait_for(count: int) -> None:
        with trio.fail_after(deadline(60)):
            while len(answers) < count:  # noqa: ASYNC110 - the clients count
                await trio.sleep(0.005)

    async with trio.open_nursery() as nursery:
        for number in range(1, ROUNDS + 1):
            is_last = number == ROUNDS
            status = 0 if is_last else -signal.SIGKILL
            async with service(tmp_path, lazy("web", sockets), isolation="none", status=status) as it:
                if number == 1:
                    for _ in range(CLIENTS):
                        nursery.start_soon(run_client)
                await wait_for(number * ACTIVATIONS_PER_ROUND - ACTIVATIONS_PER_ROUND // 2)
                if number % 2:
                    os.kill((await it.record(event="supervisor started"))["keeper_pid"], signal.SIGKILL)
                await wait_for(number * ACTIVATIONS_PER_ROUND)
                if is_last:
                    is_over = True
                    await wait_for(len(answers) + 1)
                    with trio.fail_after(deadline(60)):
                        while nursery.child_tasks:  # noqa: ASYNC110 - the last clients are answered
                            await trio.sleep(0.005)
                else:
                    it.process.kill()
                    await it.process.wait()
    given = [answer for answer in answers if answer]
    assert len(given) >= 100 - ROUNDS  # a kill may lose the program that has accepted a client
    assert len(given) == len(set(given))


async def test_a_datagram_starts_its_program(tmp_path: Path) -> None:
    port = free_port()
    toml = lazy("log", f'sockets = [{{ listen_datagram = "127.0.0.1:{port}" }}]', script=READS)
    async with service(tmp_path, toml, isolation="none") as it:
        for text in ("first", "second"):
            with trio.fail_after(deadline(20)):
                while not (await it.status("log"))["sockets"][0]["is_watched"]:
                    pass
            assert "waits for a datagram" in await it.cli("status", "log")
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                client.sendto(text.encode(), ("127.0.0.1", port))
            await it.record(event="output", message=text)


async def test_a_program_that_accepts_nothing_is_given_up(tmp_path: Path) -> None:
    port = free_port()
    sockets = stream(f"127.0.0.1:{port}").replace(
        " }", ', trigger_limit_interval_sec = "60s", trigger_limit_burst = 3 }'
    )
    async with service(tmp_path, lazy("web", sockets, script=""), isolation="none") as it:
        with socket.create_connection(("127.0.0.1", port)):
            record = await it.record(event="warning", workload="web")
            assert record["message"].endswith("nsupervisor start web")
            assert (await it.status("web"))["generation"] == 3
            shown = await it.cli("status", "web")
            assert "nsupervisor start web" in shown
