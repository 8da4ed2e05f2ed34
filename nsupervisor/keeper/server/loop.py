"""The keeper: the parent of every workload, which outlives the supervisor. It decides nothing, reads no configuration.

It has one thread and one epoll for the signalfd (SIGCHLD, SIGTERM), the listening socket, the client, the exit channel,
and the set-up reports of each child. It never waits for a child or for a slow client. Standard library only.

It serves one client at a time: a supervisor that connects replaces the previous one, which is dead or hangs. The new
client is sent each unacknowledged end again. The keeper holds a child's log pipes open until its end is acknowledged,
so no workload gets a SIGPIPE and no line is lost while no supervisor runs.

Before a new connection replaces the client, its process is checked (linux/peers.py): it must have the keeper's own
effective uid and user namespace, and must not be in a cgroup that the supervisor has named in "protect". A refused
connection is closed at once and changes nothing else.

The keeper exits on the request "shutdown" when no program runs, or by itself when it has neither a client nor a child,
and holds no descriptor for a later one.
"""

from __future__ import annotations

import base64
import errno
import fcntl
import gc
import json
import os
import resource
import select
import signal
import socket
import sys
from functools import partial

from nsupervisor.keeper import protocol
from nsupervisor.keeper.server.children import Child, SpawnError, spawn
from nsupervisor.keeper.server.connection import ClientConnection
from nsupervisor.keeper.server.entries import Entrance, Entry, start_sandbox
from nsupervisor.keeper.server.exit_channel import ExitChannel
from nsupervisor.keeper.server.records import RefusalLog, log_defect
from nsupervisor.keeper.server.zygote import Kind, Zygote
from nsupervisor.keeper.setup import steps as setup
from nsupervisor.keeper.setup.descriptors import FIRST_FREE_FD, ReserveFds, open_readiness_pipe
from nsupervisor.keeper.setup.spec import Spec, SpecError
from nsupervisor.linux import processes, syscalls
from nsupervisor.linux.peers import PeerRefused, Policy
from nsupervisor.linux.process_titles import INIT_COMMAND
from nsupervisor.linux.syscalls import SECCOMP_INSTRUCTION_SIZE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

LOCK_FD, LISTENER_FD = 3, 4
"""The numbers of the descriptors that the client passes to a keeper which it starts."""

FIRST_CLIENT_TIMEOUT_S = 10.0  # the client that starts a keeper connects before the keeper runs
MESSAGES_PER_WAKEUP = 32
FEATURES = (
    *(
        "batch",
        "batch-spawn",
        "cover",
        "debug",
        "enter",
        "hold",
        "join",
        "keep",
        "listen",
        "main",
        "process-tree",
        "protect",
        "readiness-fd",
        "security",
    ),
)
"""Features that version 0.1.0 lacks, as `nsupervisor.keeper.protocol` describes them."""
_ADOPTED_FDS = 3
_STDIO_FDS = 3
_KEPT_FDS = 2
_MAX_FILTER_BYTES = 4096 * SECCOMP_INSTRUCTION_SIZE
"""BPF_MAXINSNS instructions, linux/bpf_common.h."""
_OWN_COMMANDS = ("nsupervisor-zyg", INIT_COMMAND)
"""Names of children of the keeper that are not in its table: the zygote, and inits that wait for a program."""


class RequestError(Exception):
    """A request that is not possible; the text says why."""


class Keeper:
    """The keeper's state, such as its table of children, and its event loop."""

    def __init__(
        self,
        listener: socket.socket,
        socket_path: str,
        lock: int = -1,
        table: dict[str, Any] | None = None,
        protected: Iterable[str] = (),
    ) -> None:
        """Create a keeper without children, or continue with the table of the previous version of this process.

        `table`: the table, decoded; None for a new keeper. `protected`: cgroups, as in the request "protect".
        """
        self.lock = lock
        self.listener = listener
        self.socket_path = socket_path
        self.client: ClientConnection | None = None
        self.children: dict[str, Child] = {}  # by id, until acknowledged
        self.processes: dict[int, Child] = {}  # by pid, until reaped
        self.filters: dict[str, bytes] = {}
        """The seccomp filters of this client's specifications, by name."""
        self.held: dict[str, int] = {}
        """Descriptors that the client has given into custody, by key. Those of programs are duplicates of them."""
        self.entries: dict[str, Entry] = {}
        """The processes that have entered a workload's namespaces, or are about to, by id."""
        self.entrance = Entrance()
        self.lingering: dict[str, Child] = {}  # by name: an init that has reported its program's end
        self.signals = syscalls.signalfd((signal.SIGCHLD, signal.SIGTERM))
        self.epoll = select.epoll()
        self.handlers: dict[int, Callable[[], None]] = {}
        self.exits = ExitChannel(None if table is None else table["exits"])
        self.zygote = Zygote(self.exits.init_end)
        self.pending_refills: set[Kind] = set()  # of which the zygote is to create another init in advance
        self.reserve_fds = ReserveFds()
        self.policy = Policy(protected, only_own_uid=True)
        self.refusal_log = RefusalLog()
        self.had_client = False
        self.is_leaving = False
        self.has_strays = False
        self._watch(self.signals, self._on_signals)
        self._watch(listener.fileno(), self._on_connection)
        self._watch(self.exits.fileno(), self._on_exits)
        self.permanent_fds = set(self.handlers)
        self._watch(self.zygote.mounts_fd, self.zygote.discard_outdated, select.EPOLLPRI)
        if table is not None:
            self._restore(table)

    # ---- the loop

    def run(self) -> None:
        """Run the event loop until the keeper may exit."""
        while not self._may_exit():
            ready = self.epoll.poll(self._idle_timeout() if self.had_client else FIRST_CLIENT_TIMEOUT_S)
            if not ready and not self.had_client:
                break
            for fd, _ in ready:
                handler = self.handlers.get(fd)
                if handler is None:  # closed by another handler in this round
                    continue
                try:
                    handler()
                except Exception as error:  # any defect: the keeper must not exit, as the workloads need their parent
                    log_defect(error)
                    if fd in self.handlers and fd not in self.permanent_fds:
                        self._unwatch(fd)
            self._refill()
        self.zygote.shut_down()
        try:
            os.unlink(self.socket_path)
        except FileNotFoundError:  # the whole runtime directory has been removed
            pass

    def _idle_timeout(self) -> float:
        """Return the seconds until something is to be done without an event; 0 while inits in advance are missing."""
        return 0 if self.zygote.refill_further() else self.zygote.discard_further()

    def _refill(self) -> None:
        while self.pending_refills:
            self.zygote.refill(self.pending_refills.pop())

    def _may_exit(self) -> bool:
        is_needed = self.processes or any(child.status is None for child in self.children.values())
        is_needed = is_needed or any(entry.is_kept and not entry.has_ended for entry in self.entries.values())
        if self.is_leaving:
            return not is_needed
        is_unused = not (self.children or self.processes or self.held or self.entries)
        return self.had_client and self.client is None and is_unused

    def _watch(self, fd: int, handler: Callable[[], None], events: int = select.EPOLLIN) -> None:
        self.handlers[fd] = handler
        self.epoll.register(fd, events)

    def _unwatch(self, fd: int) -> None:
        del self.handlers[fd]
        self.epoll.unregister(fd)

    # ---- children

    def _on_signals(self) -> None:
        while True:
            try:
                record = os.read(self.signals, syscalls.SIGNALFD_SIGINFO_SIZE)
            except BlockingIOError:
                return
            signum = int.from_bytes(record[:4], sys.byteorder)
            if signum == signal.SIGCHLD:
                self._reap()
            elif self.client is None:  # otherwise the supervisor decides when the keeper exits
                self.is_leaving = True

    def _reap(self) -> None:
        while True:
            try:
                pid, raw = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                pid, raw = 0, 0
            if pid == 0:
                break
            if pid not in self.processes:
                if (child := self._child_with_main(pid)) is not None:
                    self._on_ended(child, raw)
                else:
                    self._on_entry_process(pid, raw)  # or an orphan of a workload
                continue
            self._on_exits()  # read reports while the pid still identifies this child
            child = self.processes.pop(pid)
            if self.lingering.get(child.name) is child:
                del self.lingering[child.name]
            if child.is_tree and os.WIFSIGNALED(raw):
                self.has_strays = True
                self._kill_strays()
            if child.has_other_main and pid != child.pid:
                pass  # it was the program before, and has handed over to another process
            elif child.status is None and child.has_other_main:
                self._on_adopted_end(child)  # this is the end of the first process, for example of its init
            elif child.status is None:
                self._on_report(child, ended=True)
                self._on_ended(child, child.program_status(raw))
        if self.has_strays:
            self._kill_strays()

    def _child_with_main(self, pid: int) -> Child | None:
        """Return the child whose program has become this process, which was the keeper's own child by then."""
        return next(
            (
                child
                for child in self.children.values()
                if child.has_other_main and child.program_pid == pid and child.status is None
            ),
            None,
        )

    def _kill_strays(self) -> None:
        """Kill what an init without a PID namespace has left because it was killed itself.

        Its children, the program among them, have become those of the keeper. Theirs follow when they have ended, which
        SIGCHLD reports. Where each workload has such an init, no other process becomes a child of the keeper; a waiting
        init, and the zygote, are known by their names.
        """
        own, known = os.getpid(), {*self.processes}
        for entry in self.entries.values():
            known |= {entry.pid, entry.setup_pid}
        table = processes.process_table()
        strays = [pid for pid, entry in table.items() if entry.parent == own and pid not in known]
        strays = [pid for pid in strays if processes.command_name(pid) not in _OWN_COMMANDS]
        for pid in strays:
            os.kill(pid, signal.SIGKILL)  # a child that is not reaped
        self.has_strays = bool(strays)

    def _on_report(self, child: Child, ended: bool = False) -> None:
        if child.report is None:
            return
        fd = child.report.fileno()
        done = child.read_report(ended)
        if child.refill_kind is not None and (
            child.is_ready or done
        ):  # not earlier, so as not to compete with the set-up for processors
            self.pending_refills.add(child.refill_kind)
            child.refill_kind = None
        if done:
            self._unwatch_closed(fd)
            if child.has_execed:
                self._send({"event": "execed", "id": child.id, "pid": child.program_pid})

    def _on_exits(self) -> None:
        """Handle the exit statuses that inits have reported.

        A report counts only if the program's pidfd confirms it. An init then waits for the processes that the program
        has left, and tears down its namespaces, which takes as long as the rest of a restart. A restart does not wait
        for that, as the init is not in the workload's cgroup.
        """
        for pid, status in self.exits.read():
            child = self.processes.get(pid)
            if child is not None and child.has_init and child.status is None and not child.has_other_main:
                self._on_report(child, ended=True)
                if child.may_have_ended():
                    self.lingering[child.name] = child
                    self._on_ended(child, status)

    def _unwatch_closed(self, fd: int) -> None:
        """Remove the handler of a closed descriptor. Closing removed it from the epoll, as it has no duplicates."""
        self.handlers.pop(fd, None)

    def _on_ended(self, child: Child, status: int) -> None:
        if child.has_other_main and child.program_pidfd in self.handlers:
            self._unwatch(child.program_pidfd)
        child.status = status
        self._send_ended(child)

    def _send_ended(self, child: Child) -> None:
        self._send({"event": "ended", "id": child.id, "status": child.status, "failure": child.failure})

    # ---- processes that enter

    def _on_entry_process(self, pid: int, raw: int) -> None:
        """Note the end of a process of an entry. Its report, which says the pid, may be unread."""
        if not any(entry.has_process(pid) for entry in self.entries.values()):
            for entry in [entry for entry in self.entries.values() if entry.report is not None]:
                self._on_entry_report(entry)
        for entry in [entry for entry in self.entries.values() if entry.has_process(pid)]:
            self._on_entry_report(entry)  # first: it may say that this was the command's process
            entry.reaped(pid, raw)
            self._on_entry_report(entry)
            self._finish_entry(entry)

    def _on_entry_report(self, entry: Entry) -> None:
        if entry.report is None:
            return
        fd = entry.report.fileno()
        if entry.read_report():
            self._unwatch_closed(fd)
            if entry.has_executed:
                self._send({"event": "entered", "id": entry.id, "pid": entry.pid})
            self._finish_entry(entry)

    def _finish_entry(self, entry: Entry) -> None:
        if not entry.has_ended or self.entries.get(entry.id) is not entry:
            return
        if not entry.is_kept:
            del self.entries[entry.id]
            entry.close()
        self._send(entry.end_message())

    def _abandon_entries(self, is_upgrade: bool = False) -> None:
        """Kill the entries whose client, which has their input and output, is gone.

        Those that are kept stay; with `is_upgrade` only if the command runs, or has ended.
        """
        entries = [
            entry for entry in self.entries.values() if not entry.is_kept or (is_upgrade and entry.report is not None)
        ]
        for entry in entries:
            del self.entries[entry.id]
            if entry.report is not None:
                self._unwatch_closed(entry.report.fileno())
            entry.abandon()
            entry.close()

    # ---- the client

    def _on_connection(self) -> None:
        """Accept one connection. Others wait for the next round of the loop, so a flood of them delays nothing."""
        self.reserve_fds.close()
        try:
            sock = self._accept()
            if sock is None:
                return
            self._drop_client()  # first, so that a descriptor is free for the reserve
        finally:
            self.reserve_fds = ReserveFds()
        client = self.client = ClientConnection(sock)
        self.had_client = True
        self.filters.clear()  # a client sends those that it needs
        self._watch(sock.fileno(), lambda: self._on_client(client))
        self._send({"event": "hello", "pid": os.getpid(), "features": FEATURES, **self._counts()})
        for child in self.children.values():
            if child.status is not None:
                self._send_ended(child)

    def _counts(self) -> dict[str, int]:
        """Return how many descriptors, and how many commands of hooks, an earlier client has left."""
        return {"held": len(self.held), "kept": len(self.entries)}

    def _accept(self) -> socket.socket | None:
        """Accept a connection whose process may be the client; return None if there is none, or it is refused."""
        try:
            sock, _ = self.listener.accept()
        except BlockingIOError:
            return None
        try:
            self.policy.check(sock)
        except PeerRefused as refused:
            sock.close()
            self.refusal_log.record(refused)
            return None
        except BaseException:
            sock.close()
            raise
        sock.setblocking(False)
        return sock

    def _drop_client(self) -> None:
        if self.client is not None:
            del self.handlers[self.client.sock.fileno()]
            self.client.close()
            self.client = None
            self._abandon_entries()

    def _on_client(self, client: ClientConnection) -> None:
        try:
            client.flush()
            for _ in range(MESSAGES_PER_WAKEUP):
                try:
                    received = protocol.receive(client.sock)
                except protocol.ProtocolError as error:
                    self._send({"reply": None, "error": _error_fields("protocol", str(error))})
                    continue
                if received is None:
                    self._drop_client()
                    return
                message, fds = received
                try:
                    self._handle_request(message, fds)
                finally:
                    protocol.close_all(fds)  # the descriptors that the request did not take
                # Before the next request of this round: while many start, that needs the next init, which the zygote
                # makes while this process reads the request.
                self._refill()
                if self.client is not client:
                    return
        except BlockingIOError:
            pass
        except OSError:
            self._drop_client()
            return
        self._poll_client(client)

    def _poll_client(self, client: ClientConnection) -> None:
        """Wait for what the client's connection waits for, if that has changed."""
        events = client.epoll_events
        if events != client.polled_events:
            client.polled_events = events
            self.epoll.modify(client.sock.fileno(), events)

    def _send(self, message: dict[str, Any], fds: tuple[int, ...] = ()) -> None:
        """Send a message to the client, if there is one."""
        client = self.client
        if client is None:
            return
        try:
            client.send(message, fds)
            self._poll_client(client)
        except OSError:
            self._drop_client()

    def _handle_request(self, message: dict[str, Any], fds: list[int]) -> None:
        self._send(*self._answer(message, fds))

    def _answer(self, message: dict[str, Any], fds: list[int]) -> tuple[dict[str, Any], tuple[int, ...]]:
        """Do what a request asks for; return the reply and its descriptors."""
        number = message.get("request")
        do = message.get("do")
        try:
            request = _REQUESTS.get(do) if isinstance(do, str) else None
            if request is None:
                raise RequestError(f"there is no request {do!r:.80}; there are {', '.join(_REQUESTS)}")
            reply, reply_fds = request(self, message, fds)
        except SpawnError as error:
            return {"reply": number, "error": _error_fields(error.step, str(error), error.number)}, ()
        except SpecError as error:
            return {"reply": number, "error": _error_fields("spec", str(error), errno.EINVAL)}, ()
        except RequestError as error:
            return {"reply": number, "error": _error_fields("refused", str(error))}, ()
        except Exception as error:
            log_defect(error)
            return {"reply": number, "error": _error_fields("keeper", f"{type(error).__name__}: {error}")}, ()
        return {"reply": number, **reply}, reply_fds

    # ---- what a client may ask for

    def _spawn(self, message: dict[str, Any], fds: list[int]) -> tuple[dict[str, Any], tuple[int, ...]]:
        spec = Spec(message.get("spec"), self.filters)
        if spec.id in self.children:
            raise SpecError(f"id: {spec.id} is in use; its end has not been acknowledged")
        if len(fds) < len(spec.joins):
            raise SpecError(f"joins: {len(spec.joins)} descriptors are wanted, not {len(fds)}")
        spec.join_fds = tuple(fds[: len(spec.joins)])
        for key, _ in spec.descriptors:
            if key not in self.held:
                raise SpawnError("descriptors", f"the keeper does not hold {key}", errno.ENOENT)
        spec.passed_fds = [self.held[key] for key, _ in spec.descriptors]
        self._end_lingering(spec.name)
        child = self._spawn_child(spec)
        self.children[child.id] = child
        self.processes[child.pid] = child
        assert child.report is not None
        self._watch(child.report.fileno(), lambda: self._on_report(child))
        if len(fds) > len(spec.joins):
            child.notify = fds.pop()
        if child.refill_kind is not None and self.zygote.is_urgent:
            self.pending_refills.add(child.refill_kind)
            child.refill_kind = None
        readiness = (child.readiness,) if child.readiness >= 0 else ()
        return {"pid": child.pid}, (child.stdout, child.stderr, *readiness)

    def _spawn_child(self, spec: Spec) -> Child:
        """Create a child, with the pipe of its readiness if it has one. Raises as `spawn`."""
        if spec.readiness_fd < 0:
            return spawn(spec, self.zygote)
        try:
            reader, writer = open_readiness_pipe()
        except OSError as error:
            text = f"cannot make a pipe: {error.strerror}"
            raise SpawnError("descriptors", text, error.errno or 0) from None
        spec.passed_fds.append(writer)
        try:
            child = spawn(spec, self.zygote)
        except BaseException:
            os.close(reader)
            raise
        finally:
            os.close(writer)
        child.readiness = reader
        return child

    def _enter(self, message: dict[str, Any], fds: list[int]) -> tuple[dict[str, Any], tuple[int, ...]]:
        """Start a process in the namespaces of a child's program, with the standard streams that come with it."""
        spec, has_terminal = Spec(message.get("spec"), self.filters), message.get("terminal")
        is_kept = message.get("keep", False)
        count = _STDIO_FDS + _KEPT_FDS * bool(is_kept)
        if type(has_terminal) is not bool or type(is_kept) is not bool or len(fds) != count:
            raise RequestError(f'"enter" needs "terminal" and {count} descriptors')
        if spec.id in self.entries or spec.id in self.children:
            raise SpecError(f"id: {spec.id} is in use")
        if message.get("into") is None:
            self._add_entry(self._start_sandbox(spec, fds[:_STDIO_FDS], has_terminal), fds)
            return {}, ()
        into = _child_id({"id": message.get("into")})
        child = self.children.get(into)
        if child is None or child.status is not None or not child.has_execed:
            raise RequestError(f"{into} does not run")
        program = cgroup = -1
        try:
            # The child of the keeper is not reaped, and any other has a descriptor: so it is this program.
            program = os.pidfd_open(child.program_pid) if child.program_pidfd < 0 else os.dup(child.program_pidfd)
            if spec.cgroup is not None:
                cgroup = os.open(spec.cgroup, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            entry = self.entrance.start(spec, cgroup, program, fds[:_STDIO_FDS], has_terminal)
        except OSError as error:
            raise SpawnError("enter", f"cannot enter {into}: {error.strerror}", error.errno or 0) from None
        finally:
            for fd in (program, cgroup):
                if fd >= 0:
                    os.close(fd)
        self._add_entry(entry, fds)
        return {}, ()

    def _start_sandbox(self, spec: Spec, fds: list[int], has_terminal: bool) -> Entry:
        """Start a process in a sandbox of its own. It is not in a list of children, as it ends with the client."""
        if "pid" not in spec.namespaces:
            raise SpecError("namespaces: a sandbox without a program needs a new pid namespace, which ends with it")
        cgroup = -1
        try:
            if spec.cgroup is not None:
                cgroup = os.open(spec.cgroup, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            return start_sandbox(spec, cgroup, fds, has_terminal)
        except OSError as error:
            raise SpawnError("clone", f"cannot start {spec.name}: {error.strerror}", error.errno or 0) from None
        finally:
            if cgroup >= 0:
                os.close(cgroup)

    def _add_entry(self, entry: Entry, fds: list[int]) -> None:
        """Note an entry. `fds`: all descriptors of the request; those after the standard streams become its own."""
        if len(fds) > _STDIO_FDS:
            entry.keep(fds[_STDIO_FDS:])
            del fds[_STDIO_FDS:]
        self.entries[entry.id] = entry
        assert entry.report is not None
        self._watch(entry.report.fileno(), lambda: self._on_entry_report(entry))

    def _filter(self, message: dict[str, Any], fds: list[int]) -> tuple[dict[str, Any], tuple[int, ...]]:
        """Keep a seccomp filter, which specifications then refer to by its name."""
        name, text = message.get("name"), message.get("program")
        if not isinstance(name, str) or not isinstance(text, str):
            raise RequestError('"filter" needs a "name" and a "program"')
        try:
            program = base64.b64decode(text, validate=True)
        except ValueError:
            raise RequestError('"program" is not base64') from None
        if not program or len(program) % SECCOMP_INSTRUCTION_SIZE or len(program) > _MAX_FILTER_BYTES:
            raise RequestError('"program" is not a filter')
        self.filters[name] = program
        return {}, ()

    def _end_lingering(self, name: str) -> None:
        """Kill the init of the previous generation, and with it any process that has left the workload's cgroup.

        Otherwise it would live next to the new generation: to the supervisor the previous one is dead.
        """
        if name in self.lingering:
            os.kill(self.lingering[name].pid, signal.SIGKILL)  # a child that is not reaped

    def _adopt(self, message: dict[str, Any], fds: list[int]) -> tuple[dict[str, Any], tuple[int, ...]]:
        """Monitor a program whose own keeper is dead. It is not a child of this keeper."""
        if _child_id(message) in self.children:
            raise RequestError(f"{_child_id(message)} is here already")
        count = _ADOPTED_FDS + (message.get("readiness") is True)
        if len(fds) not in (count, count + 1):
            raise RequestError(f'"adopt" needs {count} or {count + 1} descriptors, not {len(fds)}')
        if not isinstance(message.get("name"), str) or type(message.get("with_init")) is not bool:
            raise RequestError('"adopt" needs a "name" and "with_init"')
        for key in ("pid", "started", "program"):
            if type(message.get(key)) is not int or not 0 <= message[key] < 1 << 63:
                raise RequestError(f'"adopt" needs a number "{key}"')
        child = Child.from_adoption(message, fds)
        fds.clear()
        self.children[child.id] = child
        self._watch(child.program_pidfd, lambda: self._on_adopted_end(child))
        return {}, ()

    def _main(self, message: dict[str, Any], fds: list[int]) -> tuple[dict[str, Any], tuple[int, ...]]:
        """Make another process the program of a child, for a daemon that has gone to the background."""
        child = self.children.get(_child_id(message))
        if child is None:
            raise RequestError(f"{message['id']:.80} is not here")
        for key in ("pid", "started"):
            if type(message.get(key)) is not int or not 0 < message[key] < 1 << 63:
                raise RequestError(f'"main" needs a number "{key}"')
        if len(fds) != 1:
            raise RequestError(f'"main" needs one descriptor, not {len(fds)}')
        if child.program_pidfd in self.handlers:
            self._unwatch(child.program_pidfd)
        if self.lingering.get(child.name) is child:
            del self.lingering[child.name]
        child.set_program(message["pid"], message["started"], fds.pop())
        self._watch(child.program_pidfd, lambda: self._on_adopted_end(child))
        return {}, ()

    def _on_adopted_end(self, child: Child) -> None:
        self._unwatch(child.program_pidfd)
        self.reserve_fds.close()  # `read_exit_status` may need to open a file, and no other descriptor may be free
        status = child.read_exit_status()
        self.reserve_fds = ReserveFds()
        self._on_ended(child, status)

    def _signal(self, message: dict[str, Any], fds: list[int]) -> tuple[dict[str, Any], tuple[int, ...]]:
        signums = message["signums"] if "signums" in message else [message.get("signum")]
        if not isinstance(signums, list):
            raise RequestError(f"{signums!r:.80} is not a list of signals")
        for signum in signums:
            if type(signum) is not int or signum not in _SIGNUMS:
                raise RequestError(f"{signum!r:.80} is not the number of a signal")
        id_ = _child_id(message)
        target = self.children.get(id_) or self.entries.get(id_)
        return {"sent": target is not None and all(map(target.signal, signums))}, ()

    def _batch(self, message: dict[str, Any], fds: list[int]) -> tuple[dict[str, Any], tuple[int, ...]]:
        """Handle several requests in their order, and send their replies together."""
        requests = message.get("requests")
        if not isinstance(requests, list) or not all(isinstance(request, dict) for request in requests):
            raise RequestError('"requests" is not a list of requests')
        if other := [request.get("do") for request in requests if request.get("do") not in _BATCHED]:
            raise RequestError(f"{other[0]!r:.80} is not possible in a batch; {', '.join(_BATCHED)} are")
        if sum(request["do"] == "spawn" for request in requests) > _MAX_BATCHED_SPAWNS:
            raise RequestError(f'at most {_MAX_BATCHED_SPAWNS} requests "spawn" are possible in a batch')
        replies: list[dict[str, Any]] = []
        reply_fds: list[int] = []
        for request in requests:
            reply, own_fds = self._answer(request, [])
            replies.append({**reply, "fds": len(own_fds)} if own_fds else reply)
            reply_fds += own_fds
            self._refill()  # before the next one, as in `_on_client`
        return {"replies": replies}, tuple(reply_fds)

    def _acknowledge(self, message: dict[str, Any], fds: list[int]) -> tuple[dict[str, Any], tuple[int, ...]]:
        entry = self.entries.get(_child_id(message))
        if entry is not None and entry.is_kept:
            if not entry.has_ended:
                raise RequestError(f"{entry.id} has not ended")
            del self.entries[entry.id]
            entry.close()
        child = self.children.get(_child_id(message))
        if child is not None:  # otherwise it was acknowledged before
            if child.status is None:
                raise RequestError(f"{child.id} has not ended")
            del self.children[child.id]
            child.close()
        return {}, ()

    def _list(self, message: dict[str, Any], fds: list[int]) -> tuple[dict[str, Any], tuple[int, ...]]:
        ids, bare, has_readiness = message.get("ids") or [], bool(message.get("bare")), bool(message.get("readiness"))
        if not isinstance(ids, list) or not all(isinstance(id_, str) for id_ in ids):
            raise RequestError('"ids" is not a list of texts')
        for child in [self.children[id_] for id_ in ids if id_ in self.children] if ids else self.children.values():
            entry = {
                "id": child.id,
                "name": child.name,
                "pid": child.pid,
                "program": child.program_pid if child.has_execed else None,
                "status": child.status,
                "failure": child.failure,
            }
            child_fds = () if bare else (child.stdout, child.stderr, *([child.notify] if child.notify >= 0 else ()))
            if has_readiness and not bare and child.readiness >= 0:
                child_fds, entry["readiness"] = (*child_fds, child.readiness), True
            self._send({"event": "child", "reply": message.get("request"), **entry}, child_fds)
        return {}, ()

    def _hold(self, message: dict[str, Any], fds: list[int]) -> tuple[dict[str, Any], tuple[int, ...]]:
        """Keep a descriptor under a key, in place of an earlier one, until "release"."""
        key = message.get("key")
        if not isinstance(key, str) or not key or len(fds) != 1:
            raise RequestError('"hold" needs a "key" and one descriptor')
        if key in self.held:
            os.close(self.held.pop(key))
        self.held[key] = fds.pop()
        return {}, ()

    def _release(self, message: dict[str, Any], fds: list[int]) -> tuple[dict[str, Any], tuple[int, ...]]:
        """Close descriptors that are held; a key that is not held is no error."""
        keys = message.get("keys")
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise RequestError('"keys" is not a list of texts')
        for key in keys:
            if key in self.held:
                os.close(self.held.pop(key))
        return {}, ()

    def _list_held(self, message: dict[str, Any], fds: list[int]) -> tuple[dict[str, Any], tuple[int, ...]]:
        for key, fd in self.held.items():
            self._send({"event": "held", "reply": message.get("request"), "key": key}, (fd,))
        return {}, ()

    def _list_kept(self, message: dict[str, Any], fds: list[int]) -> tuple[dict[str, Any], tuple[int, ...]]:
        """List the entries that are kept, each with the ends to read of its output."""
        for entry in self.entries.values():
            if entry.is_kept:
                end = entry.end_message() if entry.has_ended else {"status": None, "failure": None}
                pid = entry.pid if entry.has_executed else 0
                fields = {"id": entry.id, "pid": pid, "status": end["status"], "failure": end["failure"]}
                self._send({"event": "kept", "reply": message.get("request"), **fields}, entry.outputs)
        return {}, ()

    def _execute(self, message: dict[str, Any], fds: list[int]) -> tuple[dict[str, Any], tuple[int, ...]]:
        """Execute another version of the keeper in the same process, so that its children stay its children."""
        python, package = message.get("python"), message.get("package")
        if not isinstance(python, str) or not isinstance(package, str):
            raise RequestError('"execute" needs a "python" and a "package"')
        if not _is_argument(python) or not _is_argument(package):
            raise RequestError('"python" or "package" is not a path')
        self.zygote.kill()
        self._reap()
        self._abandon_entries(is_upgrade=True)
        children = [child.to_table() for child in self.children.values()]
        table = os.memfd_create("table", 0)
        with open(table, "w", closefd=False) as file:
            processes = [child.id for child in self.processes.values()]
            values = {"children": children, "processes": processes, "exits": self.exits.inherit(True)}
            for fd in self.held.values():
                os.set_inheritable(fd, True)
            for entry in self.entries.values():
                entry.inherit(True)
            kept = [entry.to_table() for entry in self.entries.values()]
            # An older version ignores the further keys.
            json.dump({**values, "protected": self.policy.prefixes, "held": self.held, "kept": kept}, file)
        soft, hard = setup.initial_nofile or (0, 0)
        argv = [python, *protocol.PYTHON_OPTIONS, protocol.START_CODE, package, self.socket_path, f"{soft}:{hard}"]
        try:
            os.dup2(self.lock, LOCK_FD)
            os.dup2(self.listener.fileno(), LISTENER_FD)
            os.execv(python, [*argv, str(table)])  # noqa: S606 - no shell is wanted
        except OSError as error:
            raise RequestError(f"cannot execute {python}: {error.strerror}") from None
        finally:  # execv returns only if it has failed
            os.close(table)
            for child in self.children.values():
                child.inherit(False)
            for fd in self.held.values():
                os.set_inheritable(fd, False)
            for entry in self.entries.values():
                entry.inherit(False)
            self.exits.inherit(False)
            for fd in (LOCK_FD, LISTENER_FD):
                os.dup2(0, fd, inheritable=False)

    def _restore(self, table: dict[str, Any]) -> None:
        # With `had_client`, a keeper without children would exit at once, before the client has reconnected.
        self.policy.prefixes = tuple(table.get("protected", ()))  # version 0.1.0 does not write this key
        self.held = table.get("held", {})  # nor this one
        self.entries = {entry["id"]: Entry.from_table(entry) for entry in table.get("kept", ())}
        self.had_client = bool(table["children"] or self.held or self.entries)
        for fd in self.held.values():
            os.set_inheritable(fd, False)
        for entry in table["children"]:
            child = self.children[entry["id"]] = Child.from_table(entry)
            if child.id in table["processes"]:
                self.processes[child.pid] = child
                if child.status is not None:
                    self.lingering[child.name] = child
            if child.report is not None:
                self._watch(child.report.fileno(), partial(self._on_report, child))
            if child.status is None and (child.has_other_main or child.id not in table["processes"]):
                self._watch(child.program_pidfd, partial(self._on_adopted_end, child))
        self._reap()

    def _protect(self, message: dict[str, Any], fds: list[int]) -> tuple[dict[str, Any], tuple[int, ...]]:
        """Refuse connections from processes in these cgroups from now on."""
        cgroups = message.get("cgroups")
        if not isinstance(cgroups, list) or not all(isinstance(cgroup, str) and ":/" in cgroup for cgroup in cgroups):
            raise RequestError('"cgroups" is not a list of texts "CONTROLLERS:/PATH"')
        self.policy.prefixes = tuple(cgroups)
        return {}, ()

    def _listen(self, message: dict[str, Any], fds: list[int]) -> tuple[dict[str, Any], tuple[int, ...]]:
        """Listen on another socket, and hold another lock if one comes with it: the earlier files were removed."""
        if len(fds) not in (1, 2):
            raise RequestError(f'"listen" needs one or two descriptors, not {len(fds)}')
        listener = socket.socket(fileno=fds.pop(0))
        listener.setblocking(False)
        self._unwatch(self.listener.fileno())
        self.permanent_fds.discard(self.listener.fileno())
        self.listener.close()
        self.listener = listener
        self._watch(listener.fileno(), self._on_connection)
        self.permanent_fds.add(listener.fileno())
        if fds:
            os.close(self.lock)
            self.lock = fds.pop(0)
        return {}, ()

    def _shutdown(self, message: dict[str, Any], fds: list[int]) -> tuple[dict[str, Any], tuple[int, ...]]:
        living = [child.id for child in self.children.values() if child.status is None]
        if living:
            raise RequestError(f"still running: {', '.join(living)}")
        for name in self.lingering:
            self._end_lingering(name)
        self.is_leaving = True
        return {}, ()


_REQUESTS: dict[str, Callable[[Keeper, dict[str, Any], list[int]], tuple[dict[str, Any], tuple[int, ...]]]] = {
    "batch": Keeper._batch,
    "filter": Keeper._filter,
    "spawn": Keeper._spawn,
    "enter": Keeper._enter,
    "adopt": Keeper._adopt,
    "main": Keeper._main,
    "signal": Keeper._signal,
    "acknowledge": Keeper._acknowledge,
    "list": Keeper._list,
    "hold": Keeper._hold,
    "release": Keeper._release,
    "held": Keeper._list_held,
    "kept": Keeper._list_kept,
    "execute": Keeper._execute,
    "protect": Keeper._protect,
    "listen": Keeper._listen,
    "shutdown": Keeper._shutdown,
}
_BATCHED = ("signal", "acknowledge", "spawn")
_MAX_BATCHED_SPAWNS = protocol.MAX_FDS // 2  # the reply has both pipes of each
_SIGNUMS = frozenset((0, *signal.valid_signals()))


def _child_id(message: dict[str, Any]) -> str:
    value = message.get("id")
    if not isinstance(value, str):
        raise RequestError(f"{value!r:.80} is not an id")
    return value


def _is_argument(value: str) -> bool:
    """Return whether execve(2) accepts `value`: it has no NUL, and `os.fsencode` accepts it."""
    try:
        return b"\0" not in os.fsencode(value)
    except UnicodeEncodeError:
        return False


def _error_fields(step: str, message: str, number: int = 0) -> dict[str, Any]:
    return {"step": step, "message": message, "errno": number}


def _read_table(fd: int) -> Any:
    with open(fd) as file:
        file.seek(0)
        return json.load(file)


def main(socket_path: str, nofile: str = "", table: str = "", protected: str = "[]") -> None:
    """Run a keeper on the descriptors `LOCK_FD` and `LISTENER_FD`; 0 and 1 are /dev/null.

    The keeper holds the lock while it runs. `protocol.START_CODE` describes the arguments.
    """
    # Blocked permanently and read from the signalfd. Without handlers a child has none to reset, and no system call is
    # interrupted.
    signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
    for signum in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(signum, signal.SIG_DFL)
    os.chdir("/")
    os.umask(0o022)  # the modes of what is made for programs do not depend on how the supervisor was started
    syscalls.join_new_session_keyring()
    syscalls.set_process_name("nsupervisor-kee")
    syscalls.set_process_title("nsupervisor: keeper")
    syscalls.become_subreaper()
    present_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (present_limit[1], present_limit[1]))
    soft, _, hard = nofile.partition(":")
    setup.initial_nofile = (int(soft), int(hard)) if nofile else present_limit
    if not table:
        os.closerange(max(LOCK_FD, LISTENER_FD) + 1, 0x7FFF_FFFF)  # descriptors that the supervisor left inheritable
    lock = fcntl.fcntl(LOCK_FD, fcntl.F_DUPFD_CLOEXEC, FIRST_FREE_FD)
    listener = socket.socket(fileno=fcntl.fcntl(LISTENER_FD, fcntl.F_DUPFD_CLOEXEC, FIRST_FREE_FD))
    for fd in range(3, FIRST_FREE_FD):  # occupied, so that no other descriptor gets a number that a child needs
        os.dup2(0, fd, inheritable=False)
    listener.setblocking(False)
    previous_table = _read_table(int(table)) if table else None
    keeper = Keeper(listener, socket_path, lock, previous_table, json.loads(protected))
    gc.collect()
    gc.freeze()  # collections no longer write to the present objects, so their pages stay shared with every init
    keeper.run()
