"""The supervisor's client of the keeper: connect to or start it, spawn programs, send signals, receive exits."""

import base64
import errno
import fcntl
import json
import os
import resource
import signal
import socket
import struct
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import attrs
import trio

from nsupervisor.keeper import protocol
from nsupervisor.keeper.entry import LOST, Entry, KeptEntry
from nsupervisor.keeper.messages import (
    Child,
    Ended,
    Execed,
    KeeperLost,
    RefusedError,
    SetupFailure,
    Spawned,
    SpawnError,
    UnknownChildError,
)
from nsupervisor.nurseries import open_background_nursery

REPLY_TIMEOUT_S = 30.0
"""Seconds without a message after which a keeper with pending requests counts as lost. A keeper answers within
milliseconds unless it is stopped."""

START_TIMEOUT_S = 30.0
"""Seconds for a keeper to start, or for one that is leaving to exit."""

_EVENTS = ("hello", "child", "held", "kept", "execed", "ended", "entered", "left")
_RETRY_DELAY_S = 0.005
_CONNECT_TIMEOUT_S = 1  # a cancellation waits for it
_SPAWNED_FDS = 2  # pipes
_WITH_DESCRIPTORS = range(_SPAWNED_FDS, _SPAWNED_FDS + 3)  # and a notify socket, and the pipe of the readiness
_MAX_SOCKET_PATH = 107  # bytes, unix(7)
_MAX_BATCH = 32
"""Requests in one message: while thousands stop, the keeper begins with the first ones before the last are made."""
_MAX_SPAWNS = protocol.MAX_FDS // _SPAWNED_FDS
"""Requests "spawn" among them: the reply has the pipes of all."""
_NOT_SENT = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.ENOBUFS, errno.ETOOMANYREFS)
"""Errors of memfd_create(2), write(2) and sendmsg(2) that say nothing about the connection."""

INITIAL_NOFILE = resource.getrlimit(resource.RLIMIT_NOFILE)
"""The limit on open files before the supervisor raised it; programs get it."""
_LOCK_FD, _LISTENER_FD = 3, 4  # as in server.py


class _Answer:
    """Wakes the one task that waits for a reply. Made for each request, so it costs less than a `trio.Event`."""

    __slots__ = ("_is_set", "_task")

    def __init__(self) -> None:
        self._is_set = False
        self._task: trio.lowlevel.Task | None = None

    def set(self) -> None:
        """Wake the task, or let it pass."""
        self._is_set = True
        if self._task is not None:
            task, self._task = self._task, None
            trio.lowlevel.reschedule(task)

    async def wait(self, *, is_cancellable: bool = True) -> None:
        """Wait until it is set."""
        if self._is_set:
            return
        self._task = trio.lowlevel.current_task()

        def abort(_: object) -> trio.lowlevel.Abort:
            if not is_cancellable:
                return trio.lowlevel.Abort.FAILED
            self._task = None
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)


@attrs.define(eq=False)
class _PendingCall:
    """A request that waits for its reply."""

    answered: _Answer = attrs.field(factory=_Answer)
    reply: dict[str, Any] | None = None
    fds: Sequence[int] = ()
    children: list[Child] = attrs.field(factory=list)
    held: dict[str, int] = attrs.field(factory=dict)
    kept: list[KeptEntry] = attrs.field(factory=list)
    without_descriptors: bool = False
    """The children in the reply to "list" come without descriptors."""


@attrs.define(eq=False)
class _Batch:
    """Requests that are about to be sent in one message."""

    requests: list[dict[str, Any]] = attrs.field(factory=list)
    spawns: int = 0
    """How many of them are requests "spawn"."""
    sent: trio.Event = attrs.field(factory=trio.Event)
    """Set when the message has been sent, or cannot be sent."""

    @property
    def is_nearly_full(self) -> bool:
        """Whether one more request fills it."""
        return len(self.requests) >= _MAX_BATCH - 1

    def add(self, request: dict[str, Any]) -> bool:
        """Add a request; return whether the batch is full."""
        self.requests.append(request)
        self.spawns += request["do"] == "spawn"
        return len(self.requests) >= _MAX_BATCH or self.spawns >= _MAX_SPAWNS


def _no_op() -> None:
    pass


def _no_filter(name: str) -> bytes:
    raise KeyError(name)


_SECURITY_KEYS = (
    *("filters", "capability_bounding_set", "ambient_capabilities", "secure_bits", "oom_score_adjust", "io_priority"),
    *("cpu_scheduling", "sandbox", "timer_slack"),
)
"""Keys of a specification that need the feature "security"."""


_NO_ENTER = "the keeper is of an earlier version, which cannot do that; run: nsupervisor upgrade"
_NO_JOIN = "the keeper is of an earlier version, which cannot join namespaces; run: nsupervisor upgrade"
_NO_HOLD = "the keeper is of an earlier version, which cannot pass sockets on; run: nsupervisor upgrade"
_NO_READINESS_FD = "the keeper is of an earlier version, which does not know readiness.fd; run: nsupervisor upgrade"
_NO_SECURITY = (
    "the keeper is of an earlier version, which does not know the keys of the table security; run: nsupervisor upgrade"
)


def _without_security(spec: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in spec.items() if key not in _SECURITY_KEYS}


@attrs.define(eq=False)
class Keeper:
    """A connection to the keeper, made by `open_keeper`."""

    pid: int
    events: trio.MemoryReceiveChannel[Execed | Ended]
    """Ends when the connection is lost. Events of an id may arrive before `spawn` returns."""
    _socket: socket.socket
    _sender: trio.MemorySendChannel[Execed | Ended]
    _last_request: int = 0
    _batch: _Batch | None = None
    """The requests that are about to be sent together."""
    _spawn_count: int = 0
    """How many requests "spawn" have no reply yet."""
    _pending: dict[int, _PendingCall] = attrs.field(factory=dict)
    _send_lock: trio.Lock = attrs.field(factory=trio.Lock)
    _last_heard: float = 0.0
    """The time of the last message, or of the last request that was sent while none was pending, by trio's clock."""
    _loss_reason: str = ""
    _closed: trio.Event = attrs.field(factory=trio.Event)
    on_answer: Callable[[str, float], None] | None = None
    """Called for each reply with the request's wire name ("spawn") and the seconds it took."""
    features: frozenset[str] = frozenset()
    """The keeper's capabilities that version 0.1.0 lacks."""
    held_at_start: int = 0
    """How many descriptors the keeper held when the connection was made."""
    kept_at_start: int = 0
    """How many commands of hooks it had then."""
    filter_program: Callable[[str], bytes] = _no_filter
    """Returns the seccomp filter that a specification refers to by this name, or raises KeyError."""
    _filters: set[str] = attrs.field(factory=set)
    """The names of the filters that the keeper has."""
    _entries: dict[str, Entry] = attrs.field(factory=dict)
    """The entries that have not ended."""

    async def spawn(
        self,
        spec: Mapping[str, Any],
        while_waiting: Callable[[], None] = _no_op,
        notify_fd: int = -1,
        join_fds: Sequence[int] = (),
    ) -> Spawned:
        """Start a program and return when its first process exists; `events` then reports on it.

        A cancellation does not take effect half-way: either there is no process, or its descriptors have arrived.
        `while_waiting` is called while the keeper works, for work that would otherwise delay the start. `notify_fd` is
        a socket of which the keeper keeps a duplicate, for `list`. `join_fds`: those of the namespaces that the key
        "joins" of the specification names, in its order.

        Raises:
            SpawnError: there is no process and there will be no event. Exception: with EMFILE there was a process; it
                has been killed, and its `Ended` follows.
            KeeperLost: it is unknown whether there is a process.
        """
        fds = (*join_fds, *(() if notify_fd < 0 else (notify_fd,)))
        if join_fds and "join" not in self.features:
            raise SpawnError("join", _NO_JOIN, errno.EOPNOTSUPP)
        known = {key: value for key, value in spec.items() if key != "cover" or key in self.features}
        is_required = known.pop("requires_security", False)
        if known.get("descriptors") and "hold" not in self.features:
            raise SpawnError("descriptors", _NO_HOLD, errno.EOPNOTSUPP)
        if "readiness_fd" in known and "readiness-fd" not in self.features:
            raise SpawnError("descriptors", _NO_READINESS_FD, errno.EOPNOTSUPP)
        if "security" in self.features:
            await self._send_filters(known.get("filters", ()))
        elif is_required:
            raise SpawnError("security", _NO_SECURITY, errno.EOPNOTSUPP)
        else:
            known = _without_security(known)
        # A single start does not wait for others.
        has_readiness = "readiness_fd" in known  # its pipe would be one descriptor too many for a message of a batch
        may_gather = self._spawn_count > 0 and not (fds or has_readiness) and "batch-spawn" in self.features
        self._spawn_count += 1
        try:
            call = await self._call({"do": "spawn", "spec": known}, SpawnError, while_waiting, fds, may_gather)
        finally:
            self._spawn_count -= 1
        assert call.reply is not None
        if len(call.fds) != _SPAWNED_FDS + has_readiness:  # the program runs, but its output could not be read
            protocol.close_all(call.fds)
            await self.signal(spec["id"], signal.SIGKILL)
            text = f"cannot take the program's descriptors: {os.strerror(errno.EMFILE)}"
            raise SpawnError("descriptors", text, errno.EMFILE)
        return Spawned(spec["id"], call.reply["pid"], *call.fds)

    async def enter(
        self,
        into: str | None,
        spec: Mapping[str, Any],
        stdio: Sequence[int],
        has_terminal: bool,
        kept_fds: Sequence[int] = (),
    ) -> Entry:
        """Start a process in the namespaces of a program that runs; the result then shows what becomes of it.

        `into`: the id of the program; None: in a sandbox of its own, without a program, as `spec` describes it. `spec`:
        its specification, but for "id" and what is executed. `stdio`: the descriptors of the standard streams, of which
        the keeper gets duplicates; with `has_terminal` they are a new terminal. The process ends with this connection,
        unless `kept_fds`, the two ends to read of its output, are given: then it goes on, the next client finds it with
        `list_kept`, and its end has to be acknowledged.

        Raises SpawnError: there is no process. KeeperLost: nor is there one then.
        """
        if "enter" not in self.features:
            raise SpawnError("refused", _NO_ENTER, errno.EOPNOTSUPP)
        if kept_fds and "keep" not in self.features:
            raise SpawnError("refused", _NO_ENTER, errno.EOPNOTSUPP)
        if into is None and "debug" not in self.features:
            raise SpawnError("refused", _NO_ENTER, errno.EOPNOTSUPP)
        if "joins" in spec and "join" not in self.features:
            raise SpawnError("join", _NO_JOIN, errno.EOPNOTSUPP)
        await self._send_filters(spec.get("filters", ()))
        entry = self._entries[spec["id"]] = Entry(spec["id"])
        try:
            request = {"do": "enter", "into": into, "spec": spec, "terminal": has_terminal}
            if kept_fds:
                request["keep"] = True
            await self._call(request, SpawnError, fds=(*stdio, *kept_fds))
        except BaseException:
            self._entries.pop(entry.id, None)
            raise
        return entry

    async def list_kept(self) -> list[KeptEntry]:
        """List the entries that are kept and not acknowledged; the caller closes their descriptors."""
        return (await self._call({"do": "kept"})).kept if "keep" in self.features else []

    async def _send_filters(self, names: Sequence[str]) -> None:
        """Send the seccomp filters that this keeper does not have yet."""
        for name in names:
            if name not in self._filters:
                program = base64.b64encode(self.filter_program(name)).decode()
                await self._call({"do": "filter", "name": name, "program": program}, SpawnError)
                self._filters.add(name)

    async def adopt(
        self,
        id: str,  # noqa: A002
        first_process: tuple[int, int],
        program_pid: int,
        fds: Sequence[int],
        has_readiness: bool = False,
    ) -> None:
        """Make this keeper monitor a running program whose own keeper is dead.

        `first_process` identifies the first process: its pid and its start time (clock ticks since boot). `program_pid`
        is the program's pid. `fds` are the program's pidfd, the read ends of both pipes, and optionally the notify
        socket; `has_readiness`: then also the pipe of the readiness. The keeper gets duplicates. Raises RefusedError if
        the keeper already has the id.
        """
        pid, started = first_process
        fields = {"id": id, "name": id.rpartition("#")[0], "pid": pid, "started": started, "program": program_pid}
        fields["with_init"] = pid != program_pid
        if has_readiness:
            fields["readiness"] = True
        await self._call({"do": "adopt", **fields}, fds=fds)

    async def set_main(self, id: str, process: tuple[int, int], pidfd: int) -> None:  # noqa: A002
        """Make another process the program of a child; the keeper gets a duplicate of its pidfd.

        `process` is its pid and its start time (clock ticks since boot). Raises UnknownChildError if the keeper
        does not have the child, and RefusedError if it is of a version without this request.
        """
        if not await self.list([id], without_descriptors=True):
            raise UnknownChildError(f"{id} is not here")
        if "main" not in self.features:
            raise RefusedError("the keeper is of an earlier version, which cannot follow it; restart the service")
        await self._call({"do": "main", "id": id, "pid": process[0], "started": process[1]}, fds=[pidfd])

    async def protect(self, cgroups: Sequence[str]) -> None:
        """Make the keeper refuse connections from processes in these cgroups.

        The cgroups are strings "CONTROLLERS:PATH" as in `nsupervisor.linux.peers`. A keeper of version 0.1.0 does not
        have this request; nothing is sent to it.
        """
        if "protect" in self.features:
            await self._call({"do": "protect", "cgroups": list(cgroups)})

    async def listen_again(self, runtime_directory: str | Path) -> bool:
        """Make the keeper's socket, and its lock, again if they are missing; return whether one was made.

        A keeper of an older version does not have this request: nothing is made then, and a supervisor that starts
        later cannot find it. Raises OSError, also if another process has made them meanwhile.
        """
        directory, path = _paths(runtime_directory)
        if "listen" not in self.features or _has_files(directory):
            return False
        fds: list[int] = []
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
                with suppress(FileExistsError):  # the keeper still holds it
                    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
                    fds.append(os.open(directory / protocol.LOCK_NAME, flags, 0o600))
                    fcntl.flock(fds[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
                with suppress(FileNotFoundError):  # only the lock was removed
                    os.unlink(path)
                _bind(listener, path)
                await self._call({"do": "listen"}, fds=(listener.fileno(), *fds))
        finally:
            protocol.close_all(fds)
        return True

    async def execute(self, python: str, package: str) -> None:
        """Make the keeper execute another version of itself, in the same process.

        `python` is the interpreter, `package` the folder that contains the package. Raises KeeperLost when the keeper
        has executed the new version, RefusedError if it cannot.
        """
        await self._call({"do": "execute", "python": python, "package": package})

    async def signal(self, id: str, *signums: int) -> bool:  # noqa: A002
        """Send signals to the program, in this order; return False if it has ended. During the set-up they are queued.

        If the program has its own PID namespace with an init, SIGKILL ends all processes in the namespace.
        """
        if "batch" in self.features:
            return await self._signal({"signums": [*map(int, signums)]}, id)
        return all([await self._signal({"signum": int(signum)}, id) for signum in signums])

    async def _signal(self, fields: dict[str, Any], id_: str) -> bool:
        call = await self._call({"do": "signal", "id": id_, **fields}, may_gather=True)
        assert call.reply is not None
        return bool(call.reply["sent"])

    async def acknowledge(self, id: str) -> None:  # noqa: A002
        """Acknowledge a child's end, once it is stored: the keeper drops the child, closes its pipes and frees the id.

        Raises RefusedError while the program runs.
        """
        await self._call({"do": "acknowledge", "id": id}, may_gather=True)

    async def list(self, ids: Sequence[str] = (), without_descriptors: bool = False) -> list[Child]:
        """Return all unacknowledged children, oldest first, or only those with these `ids`.

        A supervisor that restarts calls it. `without_descriptors`: their descriptors are -1.
        """
        call = await self._call({"do": "list", "ids": ids, "bare": without_descriptors, "readiness": True})
        return call.children

    async def hold(self, key: str, fd: int) -> None:
        """Have the keeper keep a duplicate of a descriptor, for specifications and for later supervisors.

        A keeper of an older version does not have this request; nothing is sent to it, and it refuses to start a
        program with descriptors.
        """
        if "hold" in self.features:
            await self._call({"do": "hold", "key": key}, fds=(fd,))

    async def release(self, keys: Sequence[str]) -> None:
        """Have the keeper close descriptors that it holds."""
        if "hold" in self.features:
            await self._call({"do": "release", "keys": list(keys)})

    async def held(self) -> dict[str, int]:
        """Return duplicates of all descriptors that the keeper holds, by key; they belong to the caller."""
        if "hold" not in self.features:
            return {}
        return (await self._call({"do": "held"})).held

    async def shutdown(self) -> None:
        """Shut the keeper down and wait until it has exited. Raises RefusedError while a program runs."""
        await self._call({"do": "shutdown"})
        await self._closed.wait()
        while not try_reap(self.pid):  # noqa: ASYNC110  (it has closed its socket, so it exits now)
            await trio.sleep(_RETRY_DELAY_S)

    async def wait_lost(self) -> None:
        """Wait until the connection is lost."""
        await self._closed.wait()

    def reap(self) -> bool:
        """Reap the keeper if it has exited; see `try_reap`."""
        return try_reap(self.pid)

    def close_descriptors(self, fds: Sequence[int]) -> None:
        """Close descriptors that came with a reply."""
        protocol.close_all(fds)

    async def _call(
        self,
        message: dict[str, Any],
        error_type: type[SpawnError] | None = None,
        while_waiting: Callable[[], None] = _no_op,
        fds: Sequence[int] = (),
        may_gather: bool = False,
    ) -> _PendingCall:
        """Send a request and wait for its reply. `may_gather`: it may be sent together with those of other tasks."""
        call = _PendingCall(without_descriptors=bool(message.get("bare")))
        began = time.perf_counter()
        self._last_request += 1
        number = self._last_request
        if not self._pending:
            self._last_heard = trio.current_time()
        self._pending[number] = call
        sent = False
        try:
            batch = self._batch
            is_joined = may_gather and batch is not None and not batch.is_nearly_full and message["do"] != "spawn"
            if is_joined and not self._loss_reason:
                # Another task is about to send it with its own request, and both replies come in one message: that task
                # notices if there is none.
                assert batch is not None
                batch.add({"request": number, **message})
                sent = True
                await call.answered.wait(is_cancellable=False)
            while not self._loss_reason and call.reply is None:
                # A cancellation here does not undo what the keeper has begun, so its reply must be received.
                with trio.CancelScope(deadline=self._last_heard + REPLY_TIMEOUT_S, shield=True):
                    if not sent:
                        request = {"request": number, **message}
                        if may_gather and "batch" in self.features:
                            sent = True  # it is in the batch from then on, whatever interrupts this
                            await self._send_gathered(request)
                        else:
                            await self._send_one(request, fds)
                            sent = True
                        while_waiting()
                    await call.answered.wait()
                # With thousands of requests at once the last ones wait for long; replies to others keep them waiting.
                if call.reply is None and trio.current_time() >= self._last_heard + REPLY_TIMEOUT_S:
                    self._mark_lost(f"the keeper has not answered any request for {REPLY_TIMEOUT_S:g} s")
        except OSError as reason:
            self._handle_received()
            self._mark_lost(f"cannot send to the keeper: {reason.strerror}")
        finally:
            del self._pending[number]
        if call.reply is None:
            for child in call.children:
                protocol.close_all([fd for fd in _descriptors_of(child) if fd >= 0])
            protocol.close_all([*call.held.values(), *(fd for kept in call.kept for fd in kept.outputs)])
            raise KeeperLost(self._loss_reason)
        if self.on_answer is not None:
            self.on_answer(message["do"], time.perf_counter() - began)
        problem = call.reply.get("error")
        if problem is None:
            return call
        if error_type is not None:
            raise error_type(problem["step"], problem["message"], problem["errno"])
        raise RefusedError(problem["message"])

    async def _send_gathered(self, request: dict[str, Any]) -> None:
        """Send a request together with those that other tasks make now: a message of many costs little more than one.

        The first task lets the others run once. Nothing waits for that if the batch is full before.
        """
        batch, is_first = self._batch, self._batch is None
        if batch is None:
            batch = self._batch = _Batch()
        is_full = batch.add(request)
        if is_full:
            self._batch = None
        elif is_first:
            await trio.lowlevel.cancel_shielded_checkpoint()
            if self._batch is not batch:  # it was full, and another task has sent it, or is about to
                await batch.sent.wait()
                return
            self._batch = None
        else:
            if request["do"] == "spawn":  # its checkpoint must not be saved before the keeper can have the request
                await batch.sent.wait()
            return
        try:
            await self._send_batch(batch.requests)
        finally:
            batch.sent.set()

    async def _send_batch(self, requests: Sequence[dict[str, Any]]) -> None:
        """Send requests in one message if it is a datagram, otherwise each for itself.

        A message that the keeper cannot receive has one reply, without a number: the other requests would have none.
        """
        if len(requests) > 1:
            body = protocol.encode({"do": "batch", "requests": requests})
            if len(body) <= protocol.MAX_DATAGRAM:
                await self._send(body)
                return
        for request in requests:
            try:
                await self._send_one(request)
            except SpawnError as error:
                reply = {"error": {"step": error.step, "message": str(error), "errno": error.errno}}
                self._handle_message({"reply": request["request"], **reply}, ())
        for request in requests:  # their replies come in messages of their own, so let each task wait for its own
            if len(requests) > 1 and (call := self._pending.get(request["request"])) and call.reply is None:
                answered, call.answered = call.answered, _Answer()
                answered.set()

    async def _send_one(self, request: dict[str, Any], fds: Sequence[int] = ()) -> None:
        """Send one request. Raises SpawnError for a "spawn" that cannot be sent, though the connection is in order."""
        body = protocol.encode(request)
        if request["do"] == "spawn" and len(body) > protocol.MAX_MESSAGE:
            text = (
                f"the specification takes {len(body)} bytes; at most {protocol.MAX_MESSAGE} can be sent to the keeper"
            )
            raise SpawnError("spec", text, errno.E2BIG)
        try:
            await self._send(body, fds)
        except OSError as error:
            if request["do"] != "spawn" or error.errno not in _NOT_SENT:
                raise
            raise SpawnError("keeper", f"cannot send to the keeper: {error.strerror}", error.errno or 0) from None

    async def _send(self, body: bytes, fds: Sequence[int] = ()) -> None:
        if not self._send_lock.locked():  # almost always; without a checkpoint, as it delays a start
            try:
                protocol.send(self._socket, body, fds)
                return
            except BlockingIOError:
                pass
        async with self._send_lock:
            while True:
                try:
                    protocol.send(self._socket, body, fds)
                    return
                except BlockingIOError:
                    await trio.lowlevel.wait_writable(self._socket)

    async def _receive(self) -> None:
        """Handle the keeper's messages until the connection is lost."""
        while not self._loss_reason:
            await trio.lowlevel.wait_readable(self._socket)
            self._handle_received()

    def _handle_received(self) -> None:
        """Handle all messages that have arrived, including the last ones of a keeper that died.

        If the keeper had not read all of this side's messages, the kernel reports ECONNRESET once before it delivers
        what the keeper had sent.
        """
        was_reset = False
        try:
            while not self._loss_reason:
                try:
                    received = protocol.receive(self._socket, allow_missing_fds=True)
                except BlockingIOError:
                    return
                except ConnectionResetError:
                    if was_reset:
                        raise
                    was_reset = True
                    continue
                if received is None:
                    self._mark_lost("the keeper has closed the connection: it has ended, or has a new client")
                    return
                self._handle_message(*received)
        except (OSError, protocol.ProtocolError) as error:
            self._mark_lost(f"the connection to the keeper is broken: {error}")

    def _handle_message(self, message: dict[str, Any], fds: Sequence[int]) -> None:
        self._last_heard = trio.current_time()
        match message:
            case {"event": "child", "reply": number}:
                call = self._pending.get(number)
                if call is None or len(fds) not in ((0,) if call.without_descriptors else _WITH_DESCRIPTORS):
                    protocol.close_all(fds)
                else:
                    call.children.append(_decode_child(message, fds))
            case {"event": "held", "reply": number, "key": str(key)}:
                call = self._pending.get(number)
                if call is None or len(fds) != 1:  # without a free descriptor it is missing
                    protocol.close_all(fds)
                else:
                    call.held[key] = fds[0]
            case {"event": "kept", "reply": number, "id": str(id_), "pid": pid, "status": status, "failure": failure}:
                call = self._pending.get(number)
                if call is None:
                    protocol.close_all(fds)
                    return
                left = self._entries.get(id_) or Entry(id_)
                left.executed(pid)
                if status is not None:
                    left.ended(status, _decode_failure(failure))
                else:
                    self._entries[id_] = left  # now: its end may be in the next message
                call.kept.append(KeptEntry(left, tuple(fds)))
            case {"replies": [*replies]}:
                for reply in replies:
                    count = reply.get("fds", 0)  # fewer may have arrived: the kernel leaves out the last ones
                    own, fds = fds[:count], fds[count:]
                    self._handle_message(reply, own)
                protocol.close_all(fds)
            case {"reply": None}:  # to an unreadable request: the oldest pending one, as replies come in order
                for call in self._pending.values():
                    if call.reply is None:
                        call.reply = message
                        call.answered.set()
                        break
            case {"reply": number}:
                call = self._pending.get(number)
                if call is None:  # the caller has given up waiting
                    protocol.close_all(fds)
                    return
                call.reply, call.fds = message, fds
                call.answered.set()
            case {"event": "execed", "id": id_, "pid": pid}:
                self._sender.send_nowait(Execed(id_, pid))
            case {"event": "ended", "id": id_, "status": status, "failure": failure}:
                self._sender.send_nowait(Ended(id_, status, _decode_failure(failure)))
            case {"event": "entered", "id": id_, "pid": pid}:
                if (entry := self._entries.get(id_)) is not None:
                    entry.executed(pid)
            case {"event": "left", "id": id_, "status": status, "failure": failure}:
                if (entry := self._entries.pop(id_, None)) is not None:
                    entry.ended(status, _decode_failure(failure))
            case {"event": str(event)} if event not in _EVENTS:  # from a later version: its meaning is unknown
                protocol.close_all(fds)
            case _:
                protocol.close_all(fds)
                raise protocol.ProtocolError(f"an unknown message: {message!r:.200}")

    def _mark_lost(self, reason: str) -> None:
        self._loss_reason = self._loss_reason or reason
        self._closed.set()
        self._sender.close()
        for call in self._pending.values():
            call.answered.set()
        entries, self._entries = self._entries, {}
        for entry in entries.values():
            entry.ended(-1, LOST)

    def _close(self) -> None:
        self._mark_lost("the connection to the keeper is closed")
        self._socket.close()
        try_reap(self.pid)


def _decode_failure(value: dict[str, Any] | None) -> SetupFailure | None:
    return None if value is None else SetupFailure(value["step"], value["message"], value["errno"])


def _descriptors_of(child: Child) -> tuple[int, ...]:
    return child.stdout, child.stderr, child.notify, child.readiness


def _decode_child(message: dict[str, Any], fds: Sequence[int]) -> Child:
    readiness = -1
    if fds and message.get("readiness"):
        *fds, readiness = fds
    stdout, stderr, *notify = fds or (-1, -1)
    return Child(
        message["id"],
        message["name"],
        message["pid"],
        stdout,
        stderr,
        message["program"],
        message["status"],
        _decode_failure(message["failure"]),
        notify[0] if notify else -1,
        readiness,
    )


def try_reap(pid: int) -> bool:
    """Reap the keeper if it has exited. Return False only if it is this process' child and still runs.

    A keeper that an earlier supervisor started is not a child of this process; its exit cannot be seen here.
    """
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True


@asynccontextmanager
async def open_keeper(runtime_directory: str | Path, protected: Sequence[str] = ()) -> AsyncIterator[Keeper]:
    """Connect to the keeper of `runtime_directory`, which must exist, and start a keeper if there is none.

    The keeper refuses connections from the cgroups `protected`, if there are any; see `Keeper.protect`. When the block
    ends the keeper runs on, unless it has no children. It serves one supervisor at a time: a new connection replaces
    the previous one.

    Raises:
        KeeperLost: there is no keeper and none could be started.
        OSError: the directory cannot be used.
    """
    directory, path = _paths(runtime_directory)
    connection, pid, features, (held, kept) = await _connect(directory, path, protected)
    sender, events = trio.open_memory_channel[Execed | Ended](float("inf"))
    keeper = Keeper(pid, events, connection, sender, features=features, held_at_start=held, kept_at_start=kept)
    try:
        async with open_background_nursery() as nursery:
            nursery.start_soon(keeper._receive)
            if protected:
                await keeper.protect(protected)
            yield keeper
    finally:
        keeper._close()  # but not `events`: a task may be about to take the last ones


def _paths(runtime_directory: str | Path) -> tuple[Path, str]:
    directory = Path(runtime_directory).absolute()
    path = str(directory / protocol.SOCKET_NAME)
    if len(os.fsencode(path)) > _MAX_SOCKET_PATH:
        hint = f"a socket's path has at most {_MAX_SOCKET_PATH} bytes; use a shorter directory"
        raise OSError(errno.ENAMETOOLONG, hint, path)
    return directory, path


async def _connect(
    directory: Path, path: str, protected: Sequence[str]
) -> tuple[socket.socket, int, frozenset[str], tuple[int, int]]:
    """Return a connection on which the keeper has sent "hello", with its pid, its features, and what it holds."""
    with trio.move_on_after(START_TIMEOUT_S):
        while True:
            started = _start_keeper(directory, path, protected)
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            try:
                await _connect_socket(connection, path)
                return connection, *await _receive_hello(connection)
            except (FileNotFoundError, ConnectionError, BlockingIOError):
                connection.close()
            except BaseException:
                connection.close()
                raise
            if started is not None:
                _reap_failed(started)
            # Another process is starting a keeper, or the one that was connected to was about to leave.
            await trio.sleep(_RETRY_DELAY_S)
    raise KeeperLost(f"no keeper came up in {directory} within {START_TIMEOUT_S:g} s")


async def _connect_socket(connection: socket.socket, path: str) -> None:
    """Connect, and make the socket non-blocking. Raises OSError; BlockingIOError after `_CONNECT_TIMEOUT_S`.

    If the keeper's queue of connections is full, a non-blocking connect fails at once (EAGAIN, connect(2)), and one
    that is repeated may never find room in a flood of others. A blocking one waits in the kernel until there is room.
    """
    connection.setblocking(False)
    try:
        connection.connect(path)
    except BlockingIOError:
        connection.setblocking(True)
        timeout = struct.pack("ll", _CONNECT_TIMEOUT_S, 0)  # struct timeval, socket(7)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeout)
        await trio.to_thread.run_sync(connection.connect, path)
        connection.setblocking(False)


async def _receive_hello(connection: socket.socket) -> tuple[int, frozenset[str], tuple[int, int]]:
    while True:
        await trio.lowlevel.wait_readable(connection)
        try:
            received = protocol.receive(connection)
        except BlockingIOError:
            continue
        if received is None:
            raise ConnectionResetError
        message, fds = received
        protocol.close_all(fds)
        if message.get("event") != "hello":
            raise KeeperLost(f"what listens in the runtime directory is not a keeper: it says {message!r:.200}")
        counts = int(message.get("held", 0)), int(message.get("kept", 0))
        return int(message["pid"]), frozenset(message.get("features", ())), counts


def _reap_failed(pid: int) -> None:
    _, status = os.waitpid(pid, 0)  # its sockets are closed, so it exits now
    code = os.waitstatus_to_exitcode(status)
    if code != 0:
        raise KeeperLost(f"the keeper ended with exit status {code} when it started; standard error says why")


def _start_keeper(directory: Path, path: str, protected: Sequence[str]) -> int | None:
    """Start a keeper unless one holds the lock; return its pid, or None.

    The socket listens before the keeper runs, so a client can connect at once.
    """
    lock = os.open(directory / protocol.LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        try:
            os.unlink(path)  # left behind by a killed keeper
        except FileNotFoundError:
            pass
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            _bind(listener, path)
            return _execute_keeper(path, lock, listener.fileno(), protected)
    finally:
        os.close(lock)


def _has_files(directory: Path) -> bool:
    """Return whether the keeper's socket and lock exist."""
    return all(os.path.lexists(directory / name) for name in (protocol.SOCKET_NAME, protocol.LOCK_NAME))


def _bind(listener: socket.socket, path: str) -> None:
    # bind(2) creates the file with the socket's own mode, so no other user can connect at any moment.
    os.fchmod(listener.fileno(), 0o600)
    listener.bind(path)
    listener.listen(16)


def _execute_keeper(path: str, lock: int, listener: int, protected: Sequence[str]) -> int:
    """Execute the keeper in its own session and return its pid.

    The lock belongs to the open file description (flock(2)) that the keeper inherits, so it holds it from the start.
    """
    package = str(Path(__file__).parents[2])
    argv = [
        sys.executable,
        *protocol.PYTHON_OPTIONS,
        protocol.START_CODE,
        package,
        path,
        f"{INITIAL_NOFILE[0]}:{INITIAL_NOFILE[1]}",
    ]
    argv += ["", json.dumps(protected)]
    # Above the fixed numbers, so that neither dup2 overwrites the other's source.
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in (lock, listener)]
    try:
        return os.posix_spawn(
            sys.executable,
            argv,
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDWR, 0),
                (os.POSIX_SPAWN_DUP2, 0, 1),
                (os.POSIX_SPAWN_DUP2, high[0], _LOCK_FD),
                (os.POSIX_SPAWN_DUP2, high[1], _LISTENER_FD),
            ],
            setsid=True,
            setsigmask=(),
            setsigdef=[signal.SIGPIPE, signal.SIGINT, signal.SIGTERM, signal.SIGHUP],
        )
    finally:
        protocol.close_all(high)
