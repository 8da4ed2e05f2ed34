"""The keeper outlives its clients, forgets nothing, and takes no harm from what it is sent."""

import json
import os
import select
import signal
import socket
import stat
import subprocess
import sys
import traceback
import types
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path

import pytest
import trio

from nsupervisor.keeper import protocol
from nsupervisor.keeper.client import open_keeper
from nsupervisor.keeper.messages import Ended, Execed, KeeperLost, RefusedError
from nsupervisor.keeper.server import loop
from nsupervisor.keeper.server.connection import ClientConnection
from nsupervisor.keeper.server.zygote import Kind
from nsupervisor.keeper.setup.spec import Spec
from nsupervisor.linux import syscalls
from tests.cli.test_namespace_shell import others_may_use, python_for_others
from tests.descriptors import open_descriptors
from tests.keeper.conftest import ISOLATED, PATH, Harness, end_all, gone
from tests.needs import NOBODY, needs
from tests.timing import deadline

pytestmark = needs("root")

SPEC = {"argv": ["sleep", "1000"], "env": {"PATH": PATH}, "cwd": "/"}


def test_imports_the_standard_library_only() -> None:
    script = """
import sys
sys.path.append(sys.argv[1])
import nsupervisor.keeper.server.loop
print(*(name for name, module in sys.modules.items() if module is not None))
"""
    root = Path(protocol.__file__).parents[2]
    command = [sys.executable, "-I", "-S", "-c", script, str(root)]
    names = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    tops = {name.partition(".")[0] for name in names} - {"__main__", "nsupervisor"}
    assert tops <= sys.stdlib_module_names
    assert not tops & {"typing", "threading", "asyncio", "inspect", "dataclasses", "subprocess"}, "they cost start time"


async def test_socket_is_ours_alone_and_the_process_is_its_own_session(
    harness: Harness, runtime_directory: Path
) -> None:
    mode = (runtime_directory / protocol.SOCKET_NAME).stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600
    pid = harness.keeper.pid
    assert os.getsid(pid) == pid
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    assert os.readlink(f"/proc/{pid}/fd/0") == os.readlink(f"/proc/{pid}/fd/1") == "/dev/null"
    assert os.readlink(f"/proc/{pid}/fd/2") == os.readlink("/proc/self/fd/2")
    assert len(os.listdir(f"/proc/{pid}/task")) == 1


async def test_no_inherited_descriptor_stays_open(runtime_directory: Path) -> None:
    read, write = os.pipe()
    os.set_inheritable(write, True)
    try:
        async with open_keeper(runtime_directory) as keeper:
            os.close(write)
            with trio.fail_after(deadline(10)):
                await trio.lowlevel.wait_readable(read)
            assert os.read(read, 1) == b""
            await keeper.shutdown()
    finally:
        os.close(read)


async def test_a_second_client_gets_the_table_the_descriptors_and_the_ends(runtime_directory: Path) -> None:
    async with open_keeper(runtime_directory) as first:
        pid = first.pid
        living = await first.spawn(
            {
                **SPEC,
                "id": "lives#1",
                "name": "lives",
                "argv": ["sh", "-c", "read _ < /dev/null; sleep 0.05; echo late; exec sleep 1000"],
            }
        )
        dead = await first.spawn(
            {**SPEC, "id": "dead#1", "argv": ["sh", "-c", "echo last words; exit 7"], "namespaces": ISOLATED}
        )
        failed = await first.spawn({**SPEC, "id": "failed#1", "cwd": "/no/such"})
        ends = {}
        while len(ends) < 2:
            event = await first.events.receive()
            if isinstance(event, Ended):
                ends[event.id] = event
        # As after kill -9: nothing acknowledged, all descriptors closed by the kernel, and output nobody has read.
        for spawned in (living, dead, failed):
            for fd in (spawned.stdout, spawned.stderr):
                os.close(fd)
    async with open_keeper(runtime_directory) as second:
        assert second.pid == pid
        with trio.fail_after(deadline(10)):
            again = [await second.events.receive() for _ in range(2)]
        assert {event.id: event for event in again} == ends
        assert ends["failed#1"].failure is not None
        children = {child.id: child for child in await second.list()}
        assert {id_: (child.pid, child.status) for id_, child in children.items()} == {
            "lives#1": (living.pid, None),
            "dead#1": (dead.pid, 7 << 8),
            "failed#1": (failed.pid, 125 << 8),
        }
        lives = children["lives#1"]
        assert (lives.name, lives.program_pid) == ("lives", living.pid)
        with trio.fail_after(deadline(10)):
            await trio.lowlevel.wait_readable(lives.stdout)
        assert os.read(lives.stdout, 100) == b"late\n", "written while no supervisor was there, without a SIGPIPE"
        assert os.read(children["dead#1"].stdout, 100) == b"last words\n"
        assert await second.signal("lives#1", signal.SIGTERM)
        with trio.fail_after(deadline(10)):
            event = await second.events.receive()
        assert event == Ended("lives#1", signal.SIGTERM)
        for child in children.values():
            for fd in (child.stdout, child.stderr):
                os.close(fd)
            await second.acknowledge(child.id)
            await second.acknowledge(child.id)
        assert await second.list() == []
        await second.shutdown()
        with pytest.raises(trio.EndOfChannel):
            await second.events.receive()


async def test_acknowledged_ends_are_not_repeated(runtime_directory: Path) -> None:
    async with open_keeper(runtime_directory) as first:
        for number in range(2):
            spawned = await first.spawn({**SPEC, "id": f"x#{number}", "argv": ["true"]})
            for fd in (spawned.stdout, spawned.stderr):
                os.close(fd)
            while not isinstance(await first.events.receive(), Ended):
                pass
        await first.acknowledge("x#0")
    async with open_keeper(runtime_directory) as second:
        with trio.fail_after(deadline(10)):
            assert await second.events.receive() == Ended("x#1", 0)
        with pytest.raises(trio.WouldBlock):
            second.events.receive_nowait()
        await end_all(second)


async def test_the_latest_client_wins(runtime_directory: Path) -> None:
    async with open_keeper(runtime_directory) as first, open_keeper(runtime_directory) as second:
        assert first.pid == second.pid
        with pytest.raises(trio.EndOfChannel):
            await first.events.receive()
        with pytest.raises(KeeperLost, match="has a new client"):
            await first.spawn({**SPEC, "id": "x#1"})
        assert await second.list() == []
        await second.shutdown()


async def test_a_dead_keeper_is_noticed_and_its_left_overs_are_no_obstacle(runtime_directory: Path) -> None:
    async with open_keeper(runtime_directory) as first:
        spawned = await first.spawn({**SPEC, "id": "x#1"})
        assert isinstance(await first.events.receive(), Execed)
        os.kill(first.pid, signal.SIGKILL)
        with trio.fail_after(deadline(10)), pytest.raises(trio.EndOfChannel):
            await first.events.receive()
        with pytest.raises(KeeperLost):
            await first.list()
        os.kill(spawned.pid, signal.SIGKILL)  # whoever reaps it, that is not before
        for fd in (spawned.stdout, spawned.stderr):
            os.close(fd)
        assert (runtime_directory / protocol.SOCKET_NAME).exists()
    await gone(first.pid)
    async with open_keeper(runtime_directory) as second:
        assert second.pid != first.pid
        await second.shutdown()


async def test_many_supervisors_at_once_start_one_keeper(runtime_directory: Path) -> None:
    """The lock belongs to an open file, so there is no moment between looking and starting."""
    pids = set()
    opened = 0
    everybody = trio.Event()

    async def one() -> None:
        nonlocal opened
        async with open_keeper(runtime_directory) as keeper:
            pids.add(keeper.pid)
            opened += 1
            if opened == 5:
                everybody.set()
            await everybody.wait()

    with trio.fail_after(deadline(20)):
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(one)
    assert len(pids) == 1
    await gone(pids.pop())


async def test_leaves_by_itself_when_there_is_nothing_to_keep(runtime_directory: Path) -> None:
    async with open_keeper(runtime_directory) as keeper:
        pass
    await gone(keeper.pid)
    assert not (runtime_directory / protocol.SOCKET_NAME).exists()


async def test_shutdown_is_refused_while_something_lives(harness: Harness) -> None:
    spawned = await harness.spawn("sleep", "1000")
    with pytest.raises(RefusedError, match=f"still running: {spawned.id}"):
        await harness.keeper.shutdown()
    with pytest.raises(RefusedError, match="has not ended"):
        await harness.keeper.acknowledge(spawned.id)
    assert await harness.keeper.signal(spawned.id, 0)
    assert not await harness.keeper.signal("nobody#1", signal.SIGTERM)


async def test_sigterm_does_not_end_a_keeper_that_is_needed(harness: Harness) -> None:
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        os.kill(harness.keeper.pid, signum)
    assert (await harness.run("echo", "fine")).stdout == "fine\n"


def test_a_runtime_directory_that_is_too_long_is_named(tmp_path: Path) -> None:
    directory = tmp_path / ("x" * 100)
    directory.mkdir()

    async def main() -> None:
        async with open_keeper(directory):
            pass

    with pytest.raises(OSError, match="at most 107 bytes"):
        trio.run(main)


# ---- clients that misbehave


class Raw:
    """A client that can say anything."""

    def __init__(self, directory: Path) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.settimeout(deadline(20))
        self.sock.connect(str(directory / protocol.SOCKET_NAME))
        assert self.receive()["event"] == "hello"

    def close(self) -> None:
        self.sock.close()

    def receive(self) -> dict:
        received = protocol.receive(self.sock)
        assert received is not None
        message, fds = received
        protocol.close_all(fds)
        return message

    def say(self, body: bytes, fds: tuple[int, ...] = ()) -> dict:
        socket.send_fds(self.sock, [body], fds)
        return self.receive()


RUBBISH = [
    b"\0",
    b"{",
    b"[]",
    b"null",
    b"\xff\xfe",
    b"[" * 60_000,
    b'{"v":2,"request":1,"do":"list"}',
    b'{"v":1}',
    b'{"v":1,"request":1,"do":"dance"}',
    b'{"v":1,"request":[],"do":{}}',
    b'{"v":1,"request":1,"do":"spawn"}',
    b'{"v":1,"request":1,"do":"spawn","spec":[]}',
    b'{"v":1,"request":1,"do":"spawn","spec":{"id":"x"}}',
    b'{"v":1,"request":1,"do":"signal","id":"x","signum":"SIGTERM"}',
    b'{"v":1,"request":1,"do":"signal","id":"x","signum":[]}',
    b'{"v":1,"request":1,"do":"signal","id":"x","signum":1.0}',
    b'{"v":1,"request":1,"do":"signal","id":"x","signum":true}',
    b'{"v":1,"request":1,"do":"signal","id":"x","signums":15}',
    b'{"v":1,"request":1,"do":"signal","id":"x","signums":[15,"SIGCONT"]}',
    b'{"v":1,"request":1,"do":"batch"}',
    b'{"v":1,"request":1,"do":"batch","requests":[5]}',
    b'{"v":1,"request":1,"do":"batch","requests":[{"do":[]}]}',
    b'{"v":1,"request":1,"do":"batch","requests":[{"do":"acknowledge","id":"x"},{"do":"list"}]}',
    b'{"v":1,"request":1,"do":"batch","requests":[{"do":"batch","requests":[]}]}',
    b'{"v":1,"request":1,"do":"list","ids":5}',
    b'{"v":1,"request":1,"do":"list","ids":[[]]}',
    b'{"v":1,"request":1,"do":"list","ids":{"x":1}}',
    b'{"v":1,"request":1,"do":"execute","python":"/x\\u0000","package":"/"}',
    b'{"v":1,"request":1,"do":"execute","python":"/x","package":"\\ud800"}',
    b'{"v":1,"request":1,"do":"acknowledge","id":null}',
    b'{"v":1,"memfd":true}',
    b"x" * protocol.MAX_DATAGRAM,
    b"x" * (protocol.MAX_DATAGRAM + 1),
]


@pytest.fixture
async def raw(harness: Harness, runtime_directory: Path) -> AsyncIterator[Raw]:
    with closing(Raw(runtime_directory)) as client:
        yield client


async def test_rubbish_gets_an_error_for_an_answer(raw: Raw) -> None:
    for body in RUBBISH:
        answer = raw.say(body)
        assert answer["error"]["message"], body
        assert answer["error"]["step"] != "keeper", "a wrong request is not a defect of the keeper"
        assert raw.say(b'{"v":1,"request":5,"do":"list"}') == {"v": 1, "reply": 5}
    raw.say(b'{"v":1,"request":5,"do":"shutdown"}')


async def test_each_request_of_a_batch_is_answered_for_itself(raw: Raw) -> None:
    requests = [
        {"request": 1, "do": "signal", "id": "x#1", "signums": [15, 18]},
        {"request": 2, "do": "signal", "id": "x#1", "signums": [-1]},
        {"request": 3, "do": "acknowledge", "id": "x#1"},
    ]
    sent, refused, acknowledged = raw.say(protocol.encode({"do": "batch", "requests": requests}))["replies"]
    assert sent == {"reply": 1, "sent": False}
    assert (refused["reply"], refused["error"]["step"]) == (2, "refused")
    assert acknowledged == {"reply": 3}
    raw.say(b'{"v":1,"request":5,"do":"shutdown"}')


async def test_each_spawn_of_a_batch_has_its_own_pipes(raw: Raw) -> None:
    specs = [{**SPEC, "id": "x#1", "argv": ["true"]}, {"id": "y#1"}, {**SPEC, "id": "z#1", "argv": ["true"]}]
    requests = [{"request": number, "do": "spawn", "spec": spec} for number, spec in enumerate(specs)]
    protocol.send(raw.sock, protocol.encode({"do": "batch", "requests": requests}))
    received = protocol.receive(raw.sock)
    assert received is not None
    replies, fds = received[0]["replies"], received[1]
    inodes = {os.fstat(fd).st_ino for fd in fds}
    protocol.close_all(fds)
    assert [reply.get("fds", 0) for reply in replies] == [2, 0, 2]
    assert (replies[1]["reply"], replies[1]["error"]["step"]) == (1, "spec")
    assert len(inodes) == 4
    ended: set[str] = set()
    while ended != {"x#1", "z#1"}:
        event = raw.receive()
        ended |= {event["id"]} if event["event"] == "ended" else set()
    for id_ in ended:
        raw.say(protocol.encode({"request": 4, "do": "acknowledge", "id": id_}))
    raw.say(b'{"v":1,"request":5,"do":"shutdown"}')


async def test_more_spawns_than_a_reply_can_have_pipes_of_are_refused_all(raw: Raw) -> None:
    requests = [{"request": n, "do": "spawn", "spec": {**SPEC, "id": f"x#{n}"}} for n in range(9)]
    answer = raw.say(protocol.encode({"request": 1, "do": "batch", "requests": requests}))
    assert answer["error"]["message"] == 'at most 8 requests "spawn" are possible in a batch'
    assert raw.say(b'{"v":1,"request":5,"do":"list"}') == {"v": 1, "reply": 5}
    raw.say(b'{"v":1,"request":5,"do":"shutdown"}')


@pytest.mark.parametrize(
    "wrong", [{"name": 5}, {"with_init": 1}, {"pid": "7"}, {"started": 1.0}, {"program": True}, {"pid": -1}]
)
async def test_an_adoption_with_wrong_fields_is_refused(raw: Raw, wrong: dict) -> None:
    fields = {"id": "x#1", "name": "x", "pid": 7, "started": 7, "program": 7, "with_init": False}
    body = protocol.encode({"request": 1, "do": "adopt", **fields, **wrong})
    pidfd = os.pidfd_open(os.getpid())
    try:
        answer = raw.say(body, (pidfd, pidfd, pidfd))
    finally:
        os.close(pidfd)
    assert answer["error"]["step"] == "refused"
    assert raw.say(b'{"v":1,"request":5,"do":"list"}') == {"v": 1, "reply": 5}
    raw.say(b'{"v":1,"request":5,"do":"shutdown"}')


def test_no_duplicate_is_left_if_a_message_cannot_be_queued() -> None:
    ours, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, other:
        ours.setblocking(False)
        connection = ClientConnection(ours)
        while connection.epoll_events == select.EPOLLIN:
            connection.send({"fill": "x" * 1000})
        before = open_descriptors()
        with pytest.raises(OSError, match="Bad file descriptor"):
            connection.send({}, (0, 0, -1))
        assert open_descriptors() == before
        connection.close()


async def test_strange_descriptors_are_refused_and_closed(raw: Raw, harness: Harness) -> None:
    fds = f"/proc/{harness.keeper.pid}/fd"
    before = len(os.listdir(fds))
    read, write = os.pipe()
    huge = os.memfd_create("huge")
    os.truncate(huge, protocol.MAX_MESSAGE + 1)
    try:
        # Reading from a pipe would block for ever.
        assert "not a memfd" in raw.say(b'{"v":1,"memfd":true}', (read,))["error"]["message"]
        assert "are allowed" in raw.say(b'{"v":1,"memfd":true}', (huge,))["error"]["message"]
        assert "error" in raw.say(b'{"v":1,"request":1,"do":"list"}', (write,) * 200)
        assert raw.say(b'{"v":1,"request":1,"do":"list"}', (write,) * protocol.MAX_FDS) == {"v": 1, "reply": 1}
    finally:
        for fd in (read, write, huge):
            os.close(fd)
    with trio.fail_after(deadline(20)):
        while len(os.listdir(fds)) != before:  # noqa: ASYNC110 - it answers first, and closes then
            await trio.sleep(0.001)
    raw.say(b'{"v":1,"request":5,"do":"shutdown"}')


class RecordedZygote:
    """A zygote that makes nothing, and the order of what is asked of it."""

    is_urgent = True

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.reports: list[socket.socket] = []

    def refill(self, kind: Kind) -> None:
        self.steps.append("refill")

    def spawn(self, spec: Spec, zygote: object) -> types.SimpleNamespace:
        self.steps.append(spec.id)
        self.reports += socket.socketpair()
        fields = {"pid": len(self.steps), "stdout": 0, "stderr": 0, "refill_kind": Kind(0), "report": self.reports[-1]}
        return types.SimpleNamespace(id=spec.id, **fields)


def test_the_next_init_is_ordered_between_two_starts_of_one_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """31 of 32 starts in one round of the loop waited until their init had been ordered and made."""
    zygote = RecordedZygote()
    monkeypatch.setattr(loop, "spawn", zygote.spawn)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.setblocking(False)
    keeper = loop.Keeper.__new__(loop.Keeper)
    keeper.zygote, keeper.client = zygote, ClientConnection(theirs)
    keeper.children, keeper.processes, keeper.lingering, keeper.handlers = {}, {}, {}, {}
    keeper.pending_refills, keeper.epoll, keeper.filters = set(), select.epoll(), {}
    with ours, theirs, closing(keeper.epoll):
        keeper._watch(theirs.fileno(), lambda: None)
        for number in (1, 2):
            spec = {**SPEC, "id": f"x#{number}"}
            protocol.send(ours, protocol.encode({"request": number, "do": "spawn", "spec": spec}))
        keeper._on_client(keeper.client)
        for report in zygote.reports:
            report.close()
        for _ in range(2):
            received = protocol.receive(ours)
            assert received is not None
            protocol.close_all(received[1])
    assert zygote.steps == ["x#1", "refill", "x#2", "refill"]


async def test_a_client_that_never_reads_does_not_stop_the_keeper(raw: Raw, runtime_directory: Path) -> None:
    """Its answers queue, the keeper goes on, and the next client takes over."""
    raw.sock.settimeout(0)
    sent = 0
    body = protocol.encode({"request": 1, "do": "spawn", "spec": {"id": "y" * 8000}})
    while sent < 2000:
        try:
            raw.sock.send(body)
            sent += 1
        except BlockingIOError:
            await trio.sleep(0.01)
            if sent > 200:
                break
    async with open_keeper(runtime_directory) as keeper:
        with trio.fail_after(deadline(10)):
            assert await keeper.list() == []
            await keeper.shutdown()


async def test_queued_answers_arrive_in_order_with_their_descriptors(raw: Raw, harness: Harness) -> None:
    raw.sock.settimeout(0)
    spec = json.dumps({**SPEC, "id": "z#1"})
    raw.sock.send(f'{{"v":1,"request":0,"do":"spawn","spec":{spec}}}'.encode())
    asked = 0
    try:
        for _ in range(3000):
            raw.sock.send(b'{"v":1,"request":%d,"do":"list"}' % (asked + 1))
            asked += 1
    except BlockingIOError:
        pass
    raw.sock.settimeout(deadline(20))
    last, described = -1, 0
    while last < asked:
        received = protocol.receive(raw.sock)
        assert received is not None
        message, fds = received
        if message.get("event") == "child":
            assert len(fds) == 2
            described += 1
        elif "reply" in message:
            assert message["reply"] == last + 1
            last = message["reply"]
        protocol.close_all(fds)
    assert described == asked
    raw.sock.settimeout(deadline(20))
    raw.sock.send(b'{"v":1,"request":1,"do":"signal","id":"z#1","signum":9}')
    while raw.receive().get("event") != "ended":
        pass
    raw.say(b'{"v":1,"request":1,"do":"acknowledge","id":"z#1"}')
    raw.say(b'{"v":1,"request":5,"do":"shutdown"}')


@needs("unprivileged_userns")
def test_an_unprivileged_keeper_makes_user_namespaces(runtime_directory: Path) -> None:
    """Everything but other users' identities: namespaces, /proc, mounts, host name, an init."""
    python = python_for_others()
    if not python or not others_may_use(os.path.dirname(protocol.__file__)):
        pytest.skip("other users can't run what is here")
    os.chown(runtime_directory, NOBODY, NOBODY)
    path = str(runtime_directory / protocol.SOCKET_NAME)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(path)
        os.chown(path, NOBODY, NOBODY)
        listener.listen()
        main = (
            "import os, sys; os.dup2(int(sys.argv[3]), 4); os.dup2(0, 3); sys.path.append(sys.argv[1]); "
            "from nsupervisor.keeper.server.loop import main; main(sys.argv[2])"
        )
        root, fd = str(Path(protocol.__file__).parents[2]), listener.fileno()
        keeper = subprocess.Popen(
            [python, "-I", "-S", "-c", main, root, path, str(fd)],
            user=NOBODY,
            group=NOBODY,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[fd],
        )
    try:
        as_nobody(drive_unprivileged, runtime_directory)  # it answers no other user
        assert keeper.wait(deadline(10)) == 0
    finally:
        keeper.kill()
        keeper.wait()


def as_nobody(drive: Callable[[Raw], None], directory: Path) -> None:
    """Drive the keeper from a process of that user."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            syscalls.set_dumpable()  # so that the keeper may look at it
            with closing(Raw(directory)) as raw:
                drive(raw)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0


def drive_unprivileged(raw: Raw) -> None:
    spec = {
        "id": "x#1",
        "argv": ["sh", "-c", "id -u; hostname; echo $$; cat /proc/sys/kernel/ostype /mnt/hello"],
        "env": {"PATH": PATH},
        "cwd": "/",
        "namespaces": [*ISOLATED, "user"],
        "hostname": "inside",
        "mounts": [
            {"type": "tmpfs", "destination": "/mnt"},
            {"source": "/etc/hostname", "destination": "/mnt/hello", "options": ["ro", "nosuid"]},
        ],
    }
    raw.sock.send(protocol.encode({"request": 1, "do": "spawn", "spec": spec}))
    received = protocol.receive(raw.sock)
    assert received is not None
    message, (stdout, stderr) = received
    assert "error" not in message, message
    while (event := raw.receive())["event"] != "ended":
        pass
    assert (event["status"], event["failure"]) == (0, None)
    assert os.read(stdout, 1000).decode().split()[:4] == ["0", "inside", "3", "Linux"]
    for fd in (stdout, stderr):
        os.close(fd)
    # Without a user namespace it is told why not.
    answer = raw.say(
        protocol.encode({"request": 2, "do": "spawn", "spec": {**SPEC, "id": "y#1", "namespaces": ["uts"]}})
    )
    assert "Operation not permitted (these namespaces need root" in answer["error"]["message"]
    raw.say(b'{"v":1,"request":3,"do":"acknowledge","id":"x#1"}')
    raw.say(b'{"v":1,"request":4,"do":"shutdown"}')
