"""The keeper and its client may be of different versions: messages, the table, and what one executes of the other."""

import array
import fcntl
import inspect
import json
import os
import socket
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from nsupervisor.keeper import protocol
from nsupervisor.keeper.client import open_keeper
from nsupervisor.keeper.messages import KeeperLost
from nsupervisor.keeper.server.children import Child
from nsupervisor.keeper.setup import steps as setup
from nsupervisor.service.recovery import upgrade
from tests.needs import ROOT

DATA = Path(__file__).parent / "data" / "0.1.0"
DESCRIPTORS = ("notify", "program_pidfd", "report", "stderr", "stdout")
START = "import sys; sys.path.insert(0, sys.argv[1]); from nsupervisor.keeper.server import main; main(*sys.argv[2:])"
ENTRY = "import sys; sys.path.insert(0, sys.argv.pop(1)); from nsupervisor.cli.main import main; main()"


def table_of_0_1_0():
    """The table that a keeper of 0.1.0 handed over, with descriptors of this process in place of its own."""
    table = json.loads((DATA / "table.json").read_text())
    ours = []
    for values in table["children"]:
        for key in DESCRIPTORS:
            if values[key] >= 0:
                one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                ours.append(other)
                values[key] = one.detach()
    return table, ours


def test_the_table_of_0_1_0_is_read_and_the_same_is_written():
    table, ours = table_of_0_1_0()
    assert table.keys() == {"children", "processes", "exits"}
    by_name = {}
    for values in table["children"]:
        with_more = {**values, "colour": "blue"}  # of a later version
        child = Child.from_table(with_more)
        by_name[child.name] = child
        assert json.loads(json.dumps(child.to_table())) == values
        child.close()
    for one in ours:
        one.close()
    inside, plain, broken = by_name["inside"], by_name["plain"], by_name["broken"]
    assert (inside.has_init, plain.has_init) == (True, False)
    assert inside.program_pid not in (0, inside.pid)
    assert (plain.program_pid, plain.has_execed, plain.status) == (plain.pid, True, None)
    assert (broken.has_execed, broken.failure["step"]) == (False, "enter_directory")
    assert os.waitstatus_to_exitcode(broken.status) == setup.EXIT_SETUP


def test_each_step_of_the_set_up_has_a_name_of_its_own():
    assert set(setup.STEP_NAMES) == set(setup.STEPS)
    assert len(set(setup.STEP_NAMES.values())) == len(setup.STEPS)


def test_what_another_version_executes_is_there():
    assert protocol.START_CODE == START
    assert upgrade.ENTRY_POINT == ENTRY
    script = "import inspect, sys; sys.path.insert(0, sys.argv[1]);from {} import main; print(inspect.signature(main))"
    for module, arguments in (("nsupervisor.keeper.server", ("socket", "1:2", "3")), ("nsupervisor.cli.main", ())):
        options = protocol.PYTHON_OPTIONS[:-1] if "keeper" in module else ("-P",)
        said = subprocess.run(
            [sys.executable, *options, "-c", script.format(module), str(ROOT)], capture_output=True, text=True
        )
        assert said.returncode == 0, said.stderr
        main = __import__(module, fromlist=["main"]).main
        inspect.signature(main).bind(*arguments)


@asynccontextmanager
async def open_keeper_of(directory, listener):
    """A client, and the other end of its connection."""
    opened = trio.Event()

    async def accept():
        nonlocal sock
        await trio.lowlevel.wait_readable(listener)
        sock, _ = listener.accept()
        sock.sendmsg([protocol.encode({"event": "hello", "pid": os.getpid(), "colour": "blue"})])
        opened.set()

    sock = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept)
        async with open_keeper(directory) as keeper:
            await opened.wait()
            with sock:
                yield keeper, sock


@pytest.fixture
def speaker(tmp_path_factory):
    """A socket on which a keeper is to listen, and the connection of its client once it has come."""
    directory = tmp_path_factory.mktemp("k")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(directory / protocol.SOCKET_NAME))
        listener.listen()
        lock = os.open(directory / protocol.LOCK_NAME, os.O_RDWR | os.O_CREAT)
        fcntl.flock(lock, fcntl.LOCK_EX)  # as a keeper does
        yield directory, listener
        os.close(lock)


async def test_a_client_ignores_events_and_keys_of_a_later_keeper(speaker):
    directory, listener = speaker

    def say(**message):
        sock.sendmsg([protocol.encode(message)])

    async with open_keeper_of(directory, listener) as (keeper, sock):
        read, write = os.pipe()
        body = protocol.encode({"event": "moved", "id": "web#1"})
        sock.sendmsg([body], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [write]))])
        os.close(write)
        say(event="execed", id="web#1", pid=7, colour="blue")
        say(event="ended", id="web#1", status=0, failure=None, colour="blue")
        events = keeper.events
        assert (await events.receive()).pid == 7
        assert (await events.receive()).status == 0
        assert os.read(read, 1) == b""  # what came with the unknown event has been closed
        os.close(read)
        say(nonsense=True)
        await keeper.wait_lost()
        with pytest.raises(KeeperLost, match="an unknown message"):
            await keeper.list()
