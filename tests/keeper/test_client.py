"""The client's patience, with a keeper that answers when the test says so."""

import errno
import fcntl
import os
import socket
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from nsupervisor.keeper import client, protocol
from nsupervisor.keeper.client import REPLY_TIMEOUT_S, Keeper
from nsupervisor.keeper.messages import Ended, Execed, KeeperLost, SpawnError
from tests.timing import deadline


async def asked(theirs: socket.socket) -> int:
    """The number of the next question."""
    await trio.lowlevel.wait_readable(theirs)
    received = protocol.receive(theirs)
    assert received is not None
    return int(received[0]["request"])


def pair() -> tuple[Keeper, socket.socket]:
    """A keeper's client, and the other end of its connection."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (ours, theirs):
        end.setblocking(False)
    sender, events = trio.open_memory_channel[Execed | Ended](float("inf"))
    return Keeper(0, events, ours, sender), theirs


def last_words(theirs: socket.socket) -> None:
    """An end is told, and then the keeper is killed."""
    protocol.send(theirs, protocol.encode({"event": "ended", "id": "x#1", "status": 7 << 8, "failure": None}))
    theirs.close()


@pytest.mark.parametrize("asked_before", [True, False])
async def test_what_a_keeper_has_said_before_it_died_is_heard(asked_before: bool) -> None:
    """How a program had ended was lost where the keeper had not read all that it was asked (the kernel tells ECONNRESET
    first), or where somebody asked it something just then."""
    keeper, theirs = pair()
    with keeper._socket:
        async with trio.open_nursery() as nursery:
            if asked_before:
                nursery.start_soon(keeper._receive)
                protocol.send(keeper._socket, protocol.encode({"request": 1}))
                last_words(theirs)
            else:
                last_words(theirs)
                with pytest.raises(KeeperLost):
                    await keeper.acknowledge("y#1")
        assert [event async for event in keeper.events] == [Ended("x#1", 7 << 8)]


async def test_a_slow_keeper_is_waited_for_and_one_that_answers_nobody_is_lost(mock_clock: MockClock) -> None:
    """Of thousands that are asked for at once the last is answered late. One that is stopped answers nobody; who had
    asked it waited for its replacement, which nobody had made, without pause and for ever."""
    keeper, theirs = pair()
    lost: list[str] = []

    async def ask(name: str) -> None:
        try:
            await keeper.signal(name, 15)
        except KeeperLost as error:
            lost.append(f"{name}: {error}")

    with keeper._socket, theirs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keeper._receive)
            nursery.start_soon(ask, "first")
            await asked(theirs)
            for _ in range(3):
                mock_clock.jump(REPLY_TIMEOUT_S * 0.6)
                async with trio.open_nursery() as other:
                    other.start_soon(ask, "other")
                    number = await asked(theirs)
                    protocol.send(theirs, protocol.encode({"reply": number, "sent": True}))
            assert lost == []
            mock_clock.jump(REPLY_TIMEOUT_S * 1.1)
            await keeper.wait_lost()
            await wait_all_tasks_blocked()
            assert lost == [f"first: the keeper has not answered any request for {REPLY_TIMEOUT_S:g} s"]
            with pytest.raises(trio.EndOfChannel):
                await keeper.events.receive()
            nursery.cancel_scope.cancel()


async def next_request(theirs: socket.socket) -> dict:
    await trio.lowlevel.wait_readable(theirs)
    received = protocol.receive(theirs)
    assert received is not None
    return received[0]


async def test_requests_that_are_made_together_are_sent_together() -> None:
    """A message for each of thousands of stops wakes the keeper, and then the supervisor, as many times."""
    keeper, theirs = pair()
    keeper.features = frozenset({"batch"})
    sent: dict[int, bool] = {}

    async def signal(number: int) -> None:
        sent[number] = await keeper.signal(f"x{number}#1", 15, 18)

    with keeper._socket, theirs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keeper._receive)
            for number in range(client._MAX_BATCH + 2):
                nursery.start_soon(signal, number)
            messages = [await next_request(theirs), await next_request(theirs)]
            assert [len(message["requests"]) for message in messages] == [client._MAX_BATCH, 2]
            for message in messages:
                replies = []
                for request in message["requests"]:
                    assert (request["do"], request["signums"]) == ("signal", [15, 18])
                    replies.append({"reply": request["request"], "sent": request["id"] != "x3#1"})
                protocol.send(theirs, protocol.encode({"replies": replies}))
            await wait_all_tasks_blocked()
            assert sent == {number: number != 3 for number in range(client._MAX_BATCH + 2)}
            nursery.start_soon(keeper.acknowledge, "x1#1")
            alone = await next_request(theirs)
            assert (alone["do"], alone["id"]) == ("acknowledge", "x1#1")
            protocol.send(theirs, protocol.encode({"reply": alone["request"]}))
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()


async def test_a_keeper_of_version_0_1_0_gets_one_signal_a_message() -> None:
    keeper, theirs = pair()
    with keeper._socket, theirs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keeper._receive)
            nursery.start_soon(keeper.signal, "x#1", 15, 18)
            for signum in (15, 18):
                request = await next_request(theirs)
                assert (request["do"], request["signum"]) == ("signal", signum)
                protocol.send(theirs, protocol.encode({"reply": request["request"], "sent": True}))
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()


async def test_a_batch_is_lost_with_its_keeper() -> None:
    """Only one of the tasks sends it; the others must not wait for a reply that cannot come."""
    keeper, theirs = pair()
    keeper.features = frozenset({"batch"})
    lost = []

    async def acknowledge(number: int) -> None:
        try:
            await keeper.acknowledge(f"x{number}#1")
        except KeeperLost:
            lost.append(number)

    with keeper._socket:
        theirs.close()
        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(acknowledge, number)
    assert sorted(lost) == [0, 1, 2]
    assert keeper._pending == {}


def spawned_reply(requests: list[dict], pipes: int) -> dict:
    """The reply to these requests "spawn", each of which has as many pipes."""
    return {"replies": [{"reply": one["request"], "pid": 7, "fds": pipes} for one in requests]}


async def test_spawns_while_others_are_pending_are_sent_together() -> None:
    """A single start is sent at once. A checkpoint is not saved before the keeper has been sent the request."""
    keeper, theirs = pair()
    keeper.features = frozenset({"batch", "batch-spawn"})
    spawned, before_message = {}, []

    def while_waiting() -> None:
        try:
            theirs.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            before_message.append(True)

    async def spawn(number: int) -> None:
        spawned[number] = await keeper.spawn({"id": f"x{number}#1"}, while_waiting)

    with keeper._socket, theirs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keeper._receive)
            nursery.start_soon(spawn, 0)
            await wait_all_tasks_blocked()
            for number in range(1, client._MAX_SPAWNS + 3):
                nursery.start_soon(spawn, number)
            await wait_all_tasks_blocked()
            alone = await next_request(theirs)
            batches = [(await next_request(theirs))["requests"] for _ in range(2)]
            assert alone["spec"] == {"id": "x0#1"}
            assert [len(batch) for batch in batches] == [client._MAX_SPAWNS, 2]
            fds = [os.open(os.devnull, os.O_RDONLY) for _ in range(2)]
            protocol.send(theirs, protocol.encode({"reply": alone["request"], "pid": 7}), fds)
            for batch in batches:
                protocol.send(theirs, protocol.encode(spawned_reply(batch, 2)), fds * len(batch))
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
    protocol.close_all(fds)
    assert {number: one.id for number, one in spawned.items()} == {
        number: f"x{number}#1" for number in range(client._MAX_SPAWNS + 3)
    }
    pipes = [fd for one in spawned.values() for fd in (one.stdout, one.stderr)]
    assert len({*pipes}) == 2 * len(spawned)
    protocol.close_all(pipes)
    assert before_message == []


async def test_a_spawn_of_a_batch_whose_pipes_did_not_arrive_is_ended() -> None:
    """The kernel leaves out the last descriptors of a message if the supervisor may have no more of them."""
    keeper, theirs = pair()
    keeper.features = frozenset({"batch", "batch-spawn"})
    outcomes: dict[int, str] = {}

    async def spawn(number: int) -> None:
        try:
            spawned = await keeper.spawn({"id": f"x{number}#1"})
            protocol.close_all([spawned.stdout, spawned.stderr])
            outcomes[number] = "spawned"
        except SpawnError as error:
            outcomes[number] = error.step

    with keeper._socket, theirs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keeper._receive)
            keeper._spawn_count = 1
            for number in range(2):
                nursery.start_soon(spawn, number)
            requests = (await next_request(theirs))["requests"]
            fds = [os.open(os.devnull, os.O_RDONLY) for _ in range(3)]
            protocol.send(theirs, protocol.encode(spawned_reply(requests, 2)), fds)
            protocol.close_all(fds)
            kill = await next_request(theirs)
            assert (kill["do"], kill["id"], kill["signums"]) == ("signal", requests[1]["spec"]["id"], [9])
            protocol.send(theirs, protocol.encode({"reply": kill["request"], "sent": True}))
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
    assert sorted(outcomes.values()) == ["descriptors", "spawned"]


async def outcome_of(keeper: Keeper, spec: dict, outcomes: dict[str, object]) -> None:
    """Request a start, and note what becomes of it: "spawned", or the errno."""
    try:
        spawned = await keeper.spawn(spec)
        protocol.close_all([spawned.stdout, spawned.stderr])
        outcomes[spec["id"]] = "spawned"
    except SpawnError as error:
        outcomes[spec["id"]] = error.errno


async def answer_all(theirs: socket.socket, count: int) -> list[dict]:
    """Answer as many messages, each of which is one request or a batch of signals; return them."""
    messages = []
    for _ in range(count):
        messages.append(message := await next_request(theirs))
        if message["do"] == "batch":
            replies = [{"reply": one["request"], "sent": True} for one in message["requests"]]
            protocol.send(theirs, protocol.encode({"replies": replies}))
        else:
            has_pipes = message["do"] == "spawn"
            fds = [os.open(os.devnull, os.O_RDONLY) for _ in range(2 * has_pipes)]
            protocol.send(theirs, protocol.encode({"reply": message["request"], "pid": 7, "sent": True}), fds)
            protocol.close_all(fds)
    return messages


async def test_a_specification_that_is_too_large_takes_no_others_along(autojump_clock: MockClock) -> None:
    """The keeper answers a message that it cannot receive once, so all other starts in it would wait without end."""
    keeper, theirs = pair()
    keeper.features = frozenset({"batch", "batch-spawn"})
    outcomes: dict[str, object] = {}
    with keeper._socket, theirs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keeper._receive)
            keeper._spawn_count = 1
            for id_, size in (("small#1", 1), ("large#1", 40_000), ("huge#1", protocol.MAX_MESSAGE), ("other#1", 1)):
                nursery.start_soon(outcome_of, keeper, {"id": id_, "environment": "x" * size}, outcomes)
            nursery.start_soon(keeper.acknowledge, "old#1")
            requests = await answer_all(theirs, 4)
            await wait_all_tasks_blocked()
            assert keeper._pending == {}
            nursery.cancel_scope.cancel()
    assert {message["do"] for message in requests} == {"spawn", "acknowledge"}
    assert outcomes == {"small#1": "spawned", "large#1": "spawned", "huge#1": errno.E2BIG, "other#1": "spawned"}


async def test_a_start_without_a_descriptor_for_its_request_fails_alone(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    """A large request is sent in a memfd. The keeper counted as lost, with all that was pending, if none was free."""

    def no_memfd(name: str, flags: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "memfd_create", no_memfd)
    keeper, theirs = pair()
    keeper.features = frozenset({"batch", "batch-spawn"})
    outcomes: dict[str, object] = {}
    large = {"environment": "x" * protocol.MAX_DATAGRAM}
    with keeper._socket, theirs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keeper._receive)
            await outcome_of(keeper, {"id": "alone#1", **large}, outcomes)
            keeper._spawn_count = 1
            nursery.start_soon(outcome_of, keeper, {"id": "large#1", **large}, outcomes)
            nursery.start_soon(outcome_of, keeper, {"id": "small#1"}, outcomes)
            await answer_all(theirs, 1)
            await wait_all_tasks_blocked()
            assert (keeper._pending, keeper._loss_reason) == ({}, "")
            nursery.cancel_scope.cancel()
    assert outcomes == {"alone#1": errno.EMFILE, "large#1": errno.EMFILE, "small#1": "spawned"}


async def test_a_stopped_keeper_is_noticed_by_requests_that_were_split(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    """The task that sends them has its own reply, and no longer waits for those of the others."""
    keeper, theirs = pair()
    keeper.features = frozenset({"batch", "batch-spawn"})
    outcomes: dict[str, object] = {}
    lost, released = [], trio.Event()

    async def acknowledge() -> None:
        try:
            await keeper.acknowledge("old#1")
        except KeeperLost:
            lost.append("old#1")

    # The first task of a batch lets the others run for as long as the test says.
    monkeypatch.setattr(trio.lowlevel, "cancel_shielded_checkpoint", released.wait)
    async with trio.open_nursery() as nursery:
        with keeper._socket, theirs:
            nursery.start_soon(keeper._receive)
            keeper._spawn_count = 1
            spec = {"id": "large#1", "environment": "x" * protocol.MAX_DATAGRAM}
            nursery.start_soon(outcome_of, keeper, spec, outcomes)
            await wait_all_tasks_blocked()
            nursery.start_soon(acknowledge)
            await wait_all_tasks_blocked()
            released.set()
            await answer_all(theirs, 1)
            await wait_all_tasks_blocked()
            await trio.sleep(REPLY_TIMEOUT_S + 1)
            nursery.cancel_scope.cancel()
    assert (outcomes, lost) == ({"large#1": "spawned"}, ["old#1"])


async def test_spawns_of_a_batch_are_lost_with_their_keeper() -> None:
    keeper, theirs = pair()
    keeper.features = frozenset({"batch", "batch-spawn"})
    lost = []

    async def spawn(number: int) -> None:
        try:
            await keeper.spawn({"id": f"x{number}#1"})
        except KeeperLost:
            lost.append(number)

    with keeper._socket:
        theirs.close()
        keeper._spawn_count = 1
        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(spawn, number)
    assert sorted(lost) == [0, 1, 2]
    assert keeper._pending == {}


async def test_a_batch_without_an_answer_means_that_the_keeper_is_lost(autojump_clock: MockClock) -> None:
    """Only the task that sends it watches the time."""
    keeper, theirs = pair()
    keeper.features = frozenset({"batch"})
    lost = []

    async def acknowledge(number: int) -> None:
        with pytest.raises(KeeperLost, match="has not answered"):
            await keeper.acknowledge(f"x{number}#1")
        lost.append(number)

    with keeper._socket, theirs:
        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(acknowledge, number)
    assert sorted(lost) == [0, 1, 2]
    assert keeper._pending == {}


async def test_a_cancelled_request_of_a_batch_waits_for_its_reply() -> None:
    keeper, theirs = pair()
    keeper.features = frozenset({"batch"})
    with keeper._socket, theirs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keeper._receive)
            async with trio.open_nursery() as callers:
                for number in range(3):
                    callers.start_soon(keeper.acknowledge, f"x{number}#1")
                message = await next_request(theirs)
                callers.cancel_scope.cancel()
                with trio.CancelScope(shield=True):
                    await wait_all_tasks_blocked()
                assert len(keeper._pending) == 3
                replies = [{"reply": request["request"]} for request in message["requests"]]
                protocol.send(theirs, protocol.encode({"replies": replies}))
            assert keeper._pending == {}
            nursery.cancel_scope.cancel()


async def test_a_full_queue_of_connections_is_waited_for_in_the_kernel(
    runtime_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that only tries again may never find room in a flood of refused connections."""
    monkeypatch.setattr(client, "_RETRY_DELAY_S", 1000)
    monkeypatch.setattr(client, "_CONNECT_TIMEOUT_S", 1000)
    path = str(runtime_directory / protocol.SOCKET_NAME)
    lock = os.open(runtime_directory / protocol.LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o600)
    found = []

    async def connect() -> None:
        connection, pid, *_ = await client._connect(runtime_directory, path, ())
        connection.close()
        found.append(pid)

    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        fcntl.flock(lock, fcntl.LOCK_EX)  # as a keeper holds it
        listener.settimeout(deadline(20))
        listener.bind(path)
        listener.listen(0)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as first:
            first.connect(path)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(connect)
                await wait_all_tasks_blocked()
                listener.accept()[0].close()
                keeper, _ = await trio.to_thread.run_sync(listener.accept)
                with keeper:
                    protocol.send(keeper, protocol.encode({"event": "hello", "pid": 7}))
    os.close(lock)
    assert found == [7]
