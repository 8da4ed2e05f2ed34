"""A simulated keeper. It outlives simulated supervisors, and may die itself."""

from __future__ import annotations

import errno
import os
import signal
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import trio

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
from tests.simulation.machine import INIT_PID, Behaviour, DatagramSocket, Machine, Pipe, Process

if TYPE_CHECKING:
    from tests.simulation.seam import Life

PROGRAM = "program"
"""The only program that exists."""
MakeBehaviour = Callable[[Mapping[str, Any]], Behaviour]
"""Returns how the program of a specification behaves."""


@attrs.define(eq=False)
class KeptChild:
    """An entry of the keeper's table."""

    id: str
    process: Process
    stdout: Pipe
    stderr: Pipe
    notify: DatagramSocket | None
    has_execed: bool = False
    is_adopted: bool = False
    status: int | None = None
    failure: SetupFailure | None = None


@attrs.define(eq=False)
class Keeper:
    """The keeper's process."""

    machine: Machine
    make_behaviour: MakeBehaviour
    pid: int
    children: dict[str, KeptChild] = attrs.field(factory=dict)
    held: dict[str, Any] = attrs.field(factory=dict)
    """The descriptors that it holds, by key."""
    connection: Connection | None = None
    latest_connection: Connection | None = None
    """The latest one, also if the supervisor is dead: what it has sent is still read."""
    is_dead: bool = False
    fail_spawns: int = 0
    """How many of the next requests to spawn fail, for lack of descriptors."""
    fail_setups: int = 0
    """How many of the next programs cannot be executed."""
    die_in_spawn: bool = False
    """Whether the keeper dies in the middle of the next spawn."""

    # ---- requests; each raises what the client raises

    def spawn(self, spec: Mapping[str, Any], notify: DatagramSocket | None) -> Callable[[Life], Spawned]:
        """Start a program."""
        machine = self.machine
        if spec["id"] in self.children:
            raise SpawnError("id", f"{spec['id']} is in use", 0)
        if self.fail_spawns:
            self.fail_spawns -= 1
            raise SpawnError("clone", "cannot start a process: Too many open files", errno.EMFILE)
        try:
            cgroup = machine.find_cgroup(spec["cgroup"])
        except OSError as error:
            raise SpawnError("open_cgroup", f"cannot open the cgroup: {error.strerror}", error.errno or 0) from None
        if cgroup.subtree_control:
            raise SpawnError("clone", "cannot start a process: Device or resource busy", errno.EBUSY)
        if not cgroup.may_fork():
            raise SpawnError("clone", "cannot start a process: Resource temporarily unavailable", errno.EAGAIN)
        for key, _ in spec.get("descriptors", ()):
            if key not in self.held:
                raise SpawnError("descriptors", f"the keeper does not hold {key}", errno.ENOENT)
        process = machine.start_process(cgroup, spec["id"], self.make_behaviour(spec), self.pid)
        process.is_leader = True
        process.listeners = [self.held[key] for key, _ in spec.get("descriptors", ())]
        child = KeptChild(spec["id"], process, machine.new_pipe(), machine.new_pipe(), notify)
        child.stdout.writers.add(process.pid)
        child.stderr.writers.add(process.pid)
        self.children[child.id] = child
        machine.log("spawned", child.id, pid=process.pid)
        if cgroup.was_killed:
            process.end(signal.SIGKILL)  # see `Cgroup.recreate_directory`
        elif spec["argv"][0] != PROGRAM:
            text = (
                f"cannot execute {spec['argv'][0]}: {os.strerror(errno.ENOENT)} (searched PATH={spec['env']['PATH']})"
            )
            machine.after(machine.delay(), lambda: self._fail(child, SetupFailure("execve", text, errno.ENOENT)))
        elif self.fail_setups:
            self.fail_setups -= 1
            text = "cannot execute the program: Input/output error"
            machine.after(machine.delay(), lambda: self._fail(child, SetupFailure("execve", text, errno.EIO)))
        else:
            machine.after(machine.delay(), lambda: self._execute(child))
        if self.die_in_spawn:
            self.die()
        return lambda life: Spawned(child.id, process.pid, life.add_fd(child.stdout), life.add_fd(child.stderr))

    def _execute(self, child: KeptChild) -> None:
        process = child.process
        if process.status is not None or self.is_dead:
            return
        process.command = "program"
        child.has_execed = True
        self.machine.log("execed", child.id)
        for listener in self.machine.started_listeners:
            listener(process)
        self._send(Execed(child.id, process.pid))
        process.behaviour.on_start(process)

    def _fail(self, child: KeptChild, failure: SetupFailure) -> None:
        if child.process.status is None and not self.is_dead:
            child.failure = failure
            child.process.end(127 << 8)

    def on_ended(self, process: Process) -> None:
        """Reap a child."""
        # An adopted program may have another number than it was started with.
        child = next((child for child in self.children.values() if child.process is process), None)
        if child is not None:
            self.machine.after(self.machine.delay(), lambda: self._reap(child, process))

    def _reap(self, child: KeptChild, process: Process) -> None:
        if child.process is not process:  # it has handed over to another process meanwhile
            if not self.is_dead:
                self.machine.processes.pop(process.pid, None)
            return
        if self.is_dead or child.status is not None:
            return
        known = not child.is_adopted or self.machine.statuses_of_others
        child.status = child.process.status if known else -1
        if not child.is_adopted:
            self.machine.processes.pop(child.process.pid, None)
        self._send_ended(child)

    def _send_ended(self, child: KeptChild) -> None:
        assert child.status is not None
        self._send(Ended(child.id, child.status, child.failure))

    def _send(self, report: Execed | Ended) -> None:
        if self.connection is not None:
            connection = self.connection
            connection.deliver(lambda: connection.report(report))

    def adopt(self, id_: str, pid: int, fds: Sequence[Any]) -> Callable[[Life], None]:
        """Monitor a program that an earlier keeper started."""
        if id_ in self.children:
            raise RefusedError(f"{id_} is in use")
        process, stdout, stderr, *notify = fds
        child = self.children[id_] = KeptChild(id_, process, stdout, stderr, *(notify or [None]))
        child.has_execed = child.is_adopted = True
        if process.status is not None:
            self.on_ended(process)
        return lambda _life: None

    def set_main(self, id_: str, main: Process) -> Callable[[Life], None]:
        """Make another process the program of a child."""
        if id_ not in self.children:
            raise UnknownChildError(f"{id_} is not here")
        child = self.children[id_]
        child.process, child.status, child.is_adopted = main, None, True
        if main.status is not None:
            self.on_ended(main)
        return lambda _life: None

    def signal(self, id_: str, signums: Sequence[int]) -> Callable[[Life], bool]:
        """Send signals to a program."""
        child = self.children.get(id_)
        if child is None:
            return lambda _life: False
        for signum in signums:
            if child.status is not None or child.process.status is not None:
                break
            if child.has_execed or signum == signal.SIGKILL:
                child.process.receive(signum)
            else:
                child.process.end(signum)  # a signal ends the set-up of a program without an init
        return lambda _life: child.status is None

    def acknowledge(self, id_: str) -> Callable[[Life], None]:
        """Forget an ended child."""
        child = self.children.get(id_)
        if child is not None:
            if child.status is None:
                raise RefusedError(f"{id_} has not ended")
            del self.children[id_]
            for pipe in (child.stdout, child.stderr):
                if not pipe.writers and not pipe.data:
                    self.machine.pipes.pop(pipe.inode, None)
        return lambda _life: None

    def list(self, ids: Sequence[str], without_descriptors: bool) -> Callable[[Life], list[Child]]:
        """Return the table."""
        children = [child for child in self.children.values() if not ids or child.id in ids]

        def entries(life: Life) -> list[Child]:
            return [
                Child(
                    child.id,
                    child.id.rpartition("#")[0],
                    child.process.pid,
                    -1 if without_descriptors else life.add_fd(child.stdout),
                    -1 if without_descriptors else life.add_fd(child.stderr),
                    child.process.pid if child.has_execed else None,
                    child.status,
                    child.failure,
                    *([life.add_fd(child.notify)] if child.notify and not without_descriptors else []),
                )
                for child in children
            ]

        return entries

    def hold(self, key: str, file: Any) -> Callable[[Life], None]:
        """Keep a descriptor."""
        self.held[key] = file
        return lambda _life: None

    def release(self, keys: Sequence[str]) -> Callable[[Life], None]:
        """Close descriptors."""
        for key in keys:
            self.held.pop(key, None)
        return lambda _life: None

    def list_held(self) -> Callable[[Life], dict[str, int]]:
        """Return duplicates of all descriptors."""
        held = dict(self.held)
        return lambda life: {key: life.add_fd(file) for key, file in held.items()}

    def shutdown(self) -> Callable[[Life], None]:
        """Exit."""
        if any(child.status is None for child in self.children.values()):
            raise RefusedError("a program runs")
        self.machine.after(0.0, self.die)
        return lambda _life: None

    # ---- life and death

    def die(self) -> None:
        """Die. Programs that have been executed run on."""
        if self.is_dead:
            return
        self.is_dead = True
        self.machine.log("keeper dies")
        self.held.clear()
        self.machine.ended_listeners.remove(self.on_ended)
        if self.connection is not None:
            connection, self.connection = self.connection, None
            connection.deliver(lambda: connection.lose("the keeper has ended"))
        for child in list(self.children.values()):
            child.process.parent = INIT_PID
            if not child.has_execed:  # its report has no reader
                child.process.end(signal.SIGPIPE)
            if child.process.status is not None:
                self.machine.processes.pop(child.process.pid, None)


@attrs.define(eq=False)
class _Request:
    answered: trio.Event = attrs.field(factory=trio.Event)
    reply: Callable[[Life], Any] | None = None
    error: Exception | None = None


class Connection:
    """A supervisor's connection to the keeper: the interface `nsupervisor.keeper.connection.KeeperConnection`."""

    def __init__(self, life: Life, keeper: Keeper) -> None:
        self.pid = keeper.pid
        self.held_at_start = len(keeper.held)
        self.kept_at_start = 0
        self.sender, self.events = trio.open_memory_channel[Execed | Ended](float("inf"))
        self.on_answer: Callable[[str, float], None] | None = None
        self.filter_program: Callable[[str], bytes] | None = None
        self._life, self._keeper, self._machine = life, keeper, keeper.machine
        self._lost = ""
        self.is_replaced = False
        """Whether the keeper has accepted another connection, and closed this one with what it had not read."""
        self._closed = trio.Event()
        self._pending: dict[_Request, None] = {}
        self._inbox: deque[Callable[[], None]] = deque()
        self._outbox: deque[Callable[[], None]] = deque()

    # ---- transport: messages in either direction arrive late, and in order

    def deliver(self, message: Callable[[], None]) -> None:
        """Pass a message of the keeper to the supervisor."""
        self._outbox.append(message)
        self._machine.after(self._machine.delay(), self._deliver_next)

    def _deliver_next(self) -> None:
        message = self._outbox.popleft()
        if not self._life.is_dead and not self._lost:
            message()

    def _send(self, message: Callable[[], None]) -> None:
        self._inbox.append(message)
        self._machine.after(self._machine.delay(), self._receive_next)

    def _receive_next(self) -> None:
        message = self._inbox.popleft()
        if not self._keeper.is_dead and not self.is_replaced:
            message()

    def report(self, report: Execed | Ended) -> None:
        """Receive a report."""
        self.sender.send_nowait(report)

    def lose(self, reason: str) -> None:
        """Notice that the keeper is gone, or has another client."""
        if not self._lost:
            self._lost = reason
            self._closed.set()
            self.sender.close()
            for request in self._pending:
                request.answered.set()

    async def _call(self, name: str, work: Callable[[], Any], while_waiting: Callable[[], None] | None = None) -> Any:
        self._life.call(f"keeper {name}")
        if self._lost:
            raise KeeperLost(self._lost)
        request = _Request()
        self._pending[request] = None

        def handle() -> None:
            try:
                request.reply = work()
            except Exception as error:
                request.error = error
            self.deliver(request.answered.set)

        self._send(handle)
        if while_waiting is not None:
            while_waiting()
        with trio.CancelScope(shield=True):
            await request.answered.wait()
        self._life.call(f"keeper {name} answered")
        del self._pending[request]
        if self._lost and (not request.answered.is_set() or request.reply is None) and request.error is None:
            raise KeeperLost(self._lost)
        if request.error is not None:
            raise request.error
        assert request.reply is not None
        if self._lost:  # the reply was on its way when the keeper died, or was lost with it
            raise KeeperLost(self._lost)
        return request.reply(self._life)

    # ---- requests

    async def spawn(
        self,
        spec: Mapping[str, Any],
        while_waiting: Callable[[], None] = lambda: None,
        notify_fd: int = -1,
        join_fds: Sequence[int] = (),
    ) -> Spawned:
        notify = self._life.fds[notify_fd] if notify_fd >= 0 else None
        spawned: Spawned = await self._call("spawn", lambda: self._keeper.spawn(spec, notify), while_waiting)
        return spawned

    async def adopt(
        self,
        id: str,  # noqa: A002
        first_process: tuple[int, int],
        program_pid: int,
        fds: Sequence[int],
        has_readiness: bool = False,
    ) -> None:
        assert not has_readiness
        files = [self._life.fds[fd] for fd in fds]
        await self._call("adopt", lambda: self._keeper.adopt(id, program_pid, files))

    async def set_main(self, id: str, process: tuple[int, int], pidfd: int) -> None:  # noqa: A002
        main = self._life.fds[pidfd]
        await self._call("main", lambda: self._keeper.set_main(id, main))

    async def execute(self, python: str, package: str) -> None:
        raise RefusedError("not simulated")

    async def signal(self, id: str, *signums: int) -> bool:  # noqa: A002
        return bool(await self._call("signal", lambda: self._keeper.signal(id, signums)))

    async def acknowledge(self, id: str) -> None:  # noqa: A002
        await self._call("acknowledge", lambda: self._keeper.acknowledge(id))

    async def list(self, ids: Sequence[str] = (), without_descriptors: bool = False) -> list[Child]:
        children: list[Child] = await self._call("list", lambda: self._keeper.list(ids, without_descriptors))
        return children

    async def hold(self, key: str, fd: int) -> None:
        file = self._life.fds[fd]
        await self._call("hold", lambda: self._keeper.hold(key, file))

    async def release(self, keys: Sequence[str]) -> None:
        await self._call("release", lambda: self._keeper.release(keys))

    async def held(self) -> dict[str, int]:
        held: dict[str, int] = await self._call("held", self._keeper.list_held)
        return held

    async def listen_again(self, runtime_directory: str | Path) -> bool:
        """Its socket is never removed."""
        return False

    async def shutdown(self) -> None:
        await self._call("shutdown", self._keeper.shutdown)
        await self._closed.wait()

    async def wait_lost(self) -> None:
        await self._closed.wait()

    def reap(self) -> bool:
        return True

    def close_descriptors(self, fds: Sequence[int]) -> None:
        for fd in fds:
            self._life.close(fd)


class Keepers:
    """All keepers of a machine, of which one lives at a time."""

    def __init__(self, machine: Machine, make_behaviour: MakeBehaviour) -> None:
        self.machine, self.make_behaviour = machine, make_behaviour
        self.current: Keeper | None = None

    def start(self) -> Keeper:
        """Return the keeper that lives, or start one."""
        if self.current is None or self.current.is_dead:
            self.machine.last_pid += 1
            self.current = Keeper(self.machine, self.make_behaviour, self.machine.last_pid)
            self.machine.ended_listeners.append(self.current.on_ended)
            held = self.current.held
            self.machine.holds = lambda listener: listener in held.values()
            self.machine.log("keeper starts", pid=self.current.pid)
        return self.current

    def disconnect(self) -> None:
        """The supervisor has closed its connection, or is dead. A keeper without children exits."""
        keeper = self.current
        if keeper is not None and not keeper.is_dead:
            keeper.connection = None
            if not keeper.children and not keeper.held:
                keeper.die()

    def opener(self, life: Life) -> Callable[[Path, Sequence[str]], Any]:
        """Return what connects to the keeper for a supervisor, as `nsupervisor.keeper.client.open_keeper`."""

        @asynccontextmanager
        async def open_connection(_directory: Path, _protected: Sequence[str] = ()) -> AsyncIterator[Connection]:
            life.call("keeper connect")
            await trio.sleep(0.03)
            life.call("keeper connected")
            keeper = self.start()
            connection = Connection(life, keeper)
            if keeper.latest_connection is not None:
                keeper.latest_connection.is_replaced = True
            keeper.connection = keeper.latest_connection = connection
            for child in keeper.children.values():
                if child.status is not None:
                    keeper._send_ended(child)
            try:
                yield connection
            finally:
                if not life.is_dead:
                    connection.lose("the connection to the keeper is closed")
                    if keeper.connection is connection:
                        self.disconnect()

        return open_connection
