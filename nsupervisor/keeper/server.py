"""The keeper: the parent of every workload, which outlives the supervisor. It decides nothing, reads no configuration.

One thread and one epoll: the signalfd (SIGCHLD, SIGTERM), the listening socket, the client, what the inits tell, and of
each child the report of its set-up. Nothing here waits for a child or for a slow client. Standard library only.

One client at a time: a supervisor that connects replaces the one before, which is dead or hangs. It hears again of each
end that was not acknowledged. A child's log pipes stay open here until then, so that no workload gets a SIGPIPE and no
line is lost while no supervisor is there.

Before a new connection replaces the client, its process is checked (linux/peers.py): it must have the keeper's own
effective uid and user namespace, and be in no cgroup of the tree that the supervisor has named. A refused connection is
closed at once and changes nothing else.

The keeper leaves when it is told to and nothing lives, or by itself when it has neither a client nor a child.
"""

from __future__ import annotations

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

from nsupervisor.keeper import child as setup
from nsupervisor.keeper import protocol
from nsupervisor.keeper.connection import Client
from nsupervisor.keeper.descriptors import FIRST_FREE, Spare
from nsupervisor.keeper.exits import Exits
from nsupervisor.keeper.records import Refusals, complain
from nsupervisor.keeper.spawn import Child, SpawnError, spawn
from nsupervisor.keeper.spec import Spec, SpecError
from nsupervisor.keeper.zygote import Zygote
from nsupervisor.linux import syscalls
from nsupervisor.linux.peers import PeerRefused, Policy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

# Where the client that starts a keeper puts the descriptors that it hands over.
LOCK_FD, LISTENER_FD = 3, 4

FIRST_CLIENT_TIMEOUT = 10.0  # seconds; who starts a keeper has its connection waiting already
MESSAGES_PER_TURN = 32
FEATURES = ("cover", "protect")
"""What a client may use that the first version lacks: the key `cover` of a specification, and the request `protect`."""
_ADOPTED_FDS = 3


class RequestError(Exception):
    """What a client asked for can't be done now; the text says why."""


class Keeper:
    """The table of children and the loop."""

    def __init__(
        self,
        listener: socket.socket,
        socket_path: str,
        lock: int = -1,
        before: dict[str, Any] | None = None,
        protected: Iterable[str] = (),
    ) -> None:
        """`before`: what the keeper had in its version before. `protected`: as in the request `protect`."""
        self.lock = lock
        self.listener = listener
        self.socket_path = socket_path
        self.client: Client | None = None
        self.children: dict[str, Child] = {}  # by id, until acknowledged
        self.processes: dict[int, Child] = {}  # by pid, until reaped
        self.signals = syscalls.signalfd((signal.SIGCHLD, signal.SIGTERM))
        self.epoll = select.epoll()
        self.handlers: dict[int, Callable[[], None]] = {}
        self.exits = Exits(None if before is None else before["exits"])
        self.zygote = Zygote(self.exits.theirs)
        self.used_up: set[int] = set()  # namespaces of which another init is wanted in advance
        self.spare = Spare()
        self.policy = Policy(protected, only_own_uid=True)
        self.refusals = Refusals()
        self.had_client = False
        self.leaving = False
        self._watch(self.signals, self._on_signals)
        self._watch(listener.fileno(), self._on_connection)
        self._watch(self.exits.fileno(), self._on_exits)
        self.lasting = set(self.handlers)
        self._watch(self.zygote.mounts_fd, self.zygote.forget_old, select.EPOLLPRI)
        if before is not None:
            self._restore(before)

    # ---- the loop

    def run(self) -> None:
        """Until there is nothing left to keep."""
        while not self._may_leave():
            ready = self.epoll.poll(-1 if self.had_client else FIRST_CLIENT_TIMEOUT)
            if not ready and not self.had_client:
                break
            for fd, _ in ready:
                handler = self.handlers.get(fd)
                if handler is None:  # closed by another handler in this round
                    continue
                try:
                    handler()
                except Exception as error:  # whatever it is: the workloads need their parent
                    complain(error)
                    if fd in self.handlers and fd not in self.lasting:
                        self._unwatch(fd)
            while self.used_up:
                self.zygote.make_ready(self.used_up.pop())
        self.zygote.leave()
        try:
            os.unlink(self.socket_path)
        except FileNotFoundError:  # the whole runtime directory has been removed
            pass

    def _may_leave(self) -> bool:
        lives = self.processes or any(child.status is None for child in self.children.values())
        if self.leaving:
            return not lives
        return self.had_client and self.client is None and not self.children and not self.processes

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
            elif self.client is None:  # otherwise the supervisor is there to say when
                self.leaving = True

    def _reap(self) -> None:
        while True:
            try:
                pid, raw = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid not in self.processes:  # an orphan that some workload left behind
                continue
            self._on_exits()  # while the pid still stands for this child
            child = self.processes.pop(pid)
            if child.status is None:
                self._on_report(child, ended=True)
                self._ended(child, child.status_of(raw))

    def _on_report(self, child: Child, ended: bool = False) -> None:
        if child.report is None:
            return
        fd = child.report.fileno()
        done = child.read_report(ended)
        if child.wanted and (child.ready or done):  # not earlier: its set-up shall have the processors for itself
            self.used_up.add(child.wanted)
            child.wanted = 0
        if done:
            self._unwatch_closed(fd)
            if child.execed:
                self._tell({"event": "execed", "id": child.id, "pid": child.program_pid})

    def _on_exits(self) -> None:
        """Inits tell how their programs have ended. What they still do then, tearing down their namespaces, takes as
        long as the rest of a restart; nobody has to wait for it, as they are in no workload's cgroup."""
        for pid, status in self.exits.read():
            child = self.processes.get(pid)
            if child is not None and child.with_init and child.status is None:
                self._on_report(child, ended=True)
                self._ended(child, status)

    def _unwatch_closed(self, fd: int) -> None:
        """Closing has taken it out of the epoll: nobody else has a duplicate of our ends."""
        self.handlers.pop(fd, None)

    def _ended(self, child: Child, status: int) -> None:
        child.status = status
        self._tell_end(child)

    def _tell_end(self, child: Child) -> None:
        self._tell({"event": "ended", "id": child.id, "status": child.status, "failure": child.failure})

    # ---- the client

    def _on_connection(self) -> None:
        """Take one connection: others wait for the next round of the loop, so that a flood of them delays nothing."""
        self.spare.close()
        try:
            sock = self._accept()
            if sock is None:
                return
            self._drop_client()  # first, so that there is a descriptor for the spares
        finally:
            self.spare = Spare()
        client = self.client = Client(sock)
        self.had_client = True
        self._watch(sock.fileno(), lambda: self._on_client(client))
        self._tell({"event": "hello", "pid": os.getpid(), "features": FEATURES})
        for child in self.children.values():
            if child.status is not None:
                self._tell_end(child)

    def _accept(self) -> socket.socket | None:
        """A new connection whose process may be the client; None if there is none."""
        try:
            sock, _ = self.listener.accept()
        except BlockingIOError:
            return None
        try:
            self.policy.check(sock)
        except PeerRefused as refused:
            sock.close()
            self.refusals.note(refused)
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

    def _on_client(self, client: Client) -> None:
        try:
            client.flush()
            for _ in range(MESSAGES_PER_TURN):
                try:
                    received = protocol.receive(client.sock)
                except protocol.ProtocolError as error:
                    self._tell({"reply": None, "error": _error("protocol", str(error))})
                    continue
                if received is None:
                    self._drop_client()
                    return
                message, fds = received
                try:
                    self._answer(message, fds)
                finally:
                    protocol.close_all(fds)  # what is left of them
                if self.client is not client:
                    return
        except BlockingIOError:
            pass
        except OSError:
            self._drop_client()
            return
        self.epoll.modify(client.sock.fileno(), client.interest)

    def _tell(self, message: dict[str, Any], fds: tuple[int, ...] = ()) -> None:
        """To the client, if there is one that listens."""
        client = self.client
        if client is None:
            return
        try:
            client.send(message, fds)
            self.epoll.modify(client.sock.fileno(), client.interest)
        except OSError:
            self._drop_client()

    def _answer(self, message: dict[str, Any], given: list[int]) -> None:
        number = message.get("request")
        do = message.get("do")
        try:
            request = _REQUESTS.get(do) if isinstance(do, str) else None
            if request is None:
                raise RequestError(f"there is no request {do!r:.80}; there are {', '.join(_REQUESTS)}")
            reply, fds = request(self, message, given)
        except SpawnError as error:
            self._tell({"reply": number, "error": _error(error.step, str(error), error.number)})
        except SpecError as error:
            self._tell({"reply": number, "error": _error("spec", str(error), errno.EINVAL)})
        except RequestError as error:
            self._tell({"reply": number, "error": _error("refused", str(error))})
        except Exception as error:
            complain(error)
            self._tell({"reply": number, "error": _error("keeper", f"{type(error).__name__}: {error}")})
        else:
            self._tell({"reply": number, **reply}, fds)

    # ---- what a client may ask for

    def _spawn(self, message: dict[str, Any], given: list[int]) -> tuple[dict[str, Any], tuple[int, ...]]:
        spec = Spec(message.get("spec"))
        if spec.id in self.children:
            raise SpecError(f"id: {spec.id} is in use; its end has not been acknowledged")
        child = spawn(spec, self.zygote)
        self.children[child.id] = child
        self.processes[child.pid] = child
        assert child.report is not None
        self._watch(child.report.fileno(), lambda: self._on_report(child))
        if given:
            child.notify = given.pop()
        if child.wanted and self.zygote.in_a_hurry:
            self.used_up.add(child.wanted)
            child.wanted = 0
        return {"pid": child.pid}, (child.stdout, child.stderr)

    def _adopt(self, message: dict[str, Any], given: list[int]) -> tuple[dict[str, Any], tuple[int, ...]]:
        """The keeper before this one is dead; from now on this program is ours, although not as a child."""
        if _id(message) in self.children:
            raise RequestError(f"{_id(message)} is here already")
        if len(given) not in (_ADOPTED_FDS, _ADOPTED_FDS + 1):
            raise RequestError(f"not {len(given)} descriptors are wanted but {_ADOPTED_FDS}, or one more")
        child = Child.adopted(message, given)
        given.clear()
        self.children[child.id] = child
        self._watch(child.program_pidfd, lambda: self._on_adopted_end(child))
        return {}, ()

    def _on_adopted_end(self, child: Child) -> None:
        self._unwatch(child.program_pidfd)
        self.spare.close()  # it may take a file to learn how it ended, and there may be no other left
        status = child.read_end()
        self.spare = Spare()
        self._ended(child, status)

    def _signal(self, message: dict[str, Any], given: list[int]) -> tuple[dict[str, Any], tuple[int, ...]]:
        signum = message.get("signum")
        if signum not in signal.valid_signals() | {0}:
            raise RequestError(f"{signum!r:.80} is not the number of a signal")
        child = self.children.get(_id(message))
        return {"sent": child is not None and child.signal(signum)}, ()

    def _acknowledge(self, message: dict[str, Any], given: list[int]) -> tuple[dict[str, Any], tuple[int, ...]]:
        child = self.children.get(_id(message))
        if child is not None:  # otherwise it was acknowledged before
            if child.status is None:
                raise RequestError(f"{child.id} has not ended")
            del self.children[child.id]
            child.close()
        return {}, ()

    def _list(self, message: dict[str, Any], given: list[int]) -> tuple[dict[str, Any], tuple[int, ...]]:
        ids, bare = message.get("ids"), bool(message.get("bare"))
        for child in [self.children[id_] for id_ in ids if id_ in self.children] if ids else self.children.values():
            about = {
                "id": child.id,
                "name": child.name,
                "pid": child.pid,
                "program": child.program_pid if child.execed else None,
                "status": child.status,
                "failure": child.failure,
            }
            fds = () if bare else (child.stdout, child.stderr, *([child.notify] if child.notify >= 0 else ()))
            self._tell({"event": "child", "reply": message.get("request"), **about}, fds)
        return {}, ()

    def _execute(self, message: dict[str, Any], given: list[int]) -> tuple[dict[str, Any], tuple[int, ...]]:
        """Become the keeper of another version: the same process, so its children stay its children."""
        python, package = message.get("python"), message.get("package")
        if not isinstance(python, str) or not isinstance(package, str):
            raise RequestError("no version is said to be executed")
        self.zygote.end()
        self._reap()
        children = [child.table() for child in self.children.values()]
        table = os.memfd_create("table", 0)
        with open(table, "w", closefd=False) as file:
            processes = [child.id for child in self.processes.values()]
            about = {"children": children, "processes": processes, "exits": self.exits.inherit(True)}
            json.dump({**about, "protected": self.policy.prefixes}, file)  # an older version passes over this key
        born = setup.initial_nofile or (0, 0)
        argv = [python, *protocol.OPTIONS, protocol.START, package, self.socket_path, f"{born[0]}:{born[1]}"]
        try:
            os.dup2(self.lock, LOCK_FD)
            os.dup2(self.listener.fileno(), LISTENER_FD)
            os.execv(python, [*argv, str(table)])  # noqa: S606 - there is none to be wanted
        except OSError as error:
            raise RequestError(f"cannot execute {python}: {error.strerror}") from None
        finally:  # it was not to be
            os.close(table)
            for child in self.children.values():
                child.inherit(False)
            self.exits.inherit(False)
            for place in (LOCK_FD, LISTENER_FD):
                os.dup2(0, place, inheritable=False)

    def _restore(self, before: dict[str, Any]) -> None:
        # Without a child it would leave at once, before the client of the version before has found it again.
        self.had_client = bool(before["children"])
        self.policy.prefixes = tuple(before.get("protected", ()))  # the first version has none
        for values in before["children"]:
            child = self.children[values["id"]] = Child.restored(values)
            if child.id in before["processes"]:
                self.processes[child.pid] = child
            if child.report is not None:
                self._watch(child.report.fileno(), partial(self._on_report, child))
            if child.status is None and child.id not in before["processes"]:
                self._watch(child.program_pidfd, partial(self._on_adopted_end, child))
        self._reap()

    def _protect(self, message: dict[str, Any], given: list[int]) -> tuple[dict[str, Any], tuple[int, ...]]:
        """From now on no process in these cgroups may become the client."""
        cgroups = message.get("cgroups")
        if not isinstance(cgroups, list) or not all(isinstance(one, str) and ":/" in one for one in cgroups):
            raise RequestError('"cgroups" is not a list of texts "CONTROLLERS:/PATH"')
        self.policy.prefixes = tuple(cgroups)
        return {}, ()

    def _shutdown(self, message: dict[str, Any], given: list[int]) -> tuple[dict[str, Any], tuple[int, ...]]:
        living = [child.id for child in self.children.values() if child.status is None]
        if living:
            raise RequestError(f"still running: {', '.join(living)}")
        self.leaving = True
        return {}, ()


_REQUESTS: dict[str, Callable[[Keeper, dict[str, Any], list[int]], tuple[dict[str, Any], tuple[int, ...]]]] = {
    "spawn": Keeper._spawn,
    "adopt": Keeper._adopt,
    "signal": Keeper._signal,
    "acknowledge": Keeper._acknowledge,
    "list": Keeper._list,
    "execute": Keeper._execute,
    "protect": Keeper._protect,
    "shutdown": Keeper._shutdown,
}


def _id(message: dict[str, Any]) -> str:
    value = message.get("id")
    if not isinstance(value, str):
        raise RequestError(f"{value!r:.80} is not an id")
    return value


def _error(step: str, message: str, number: int = 0) -> dict[str, Any]:
    return {"step": step, "message": message, "errno": number}


def _read_table(fd: int) -> Any:
    with open(fd) as file:
        file.seek(0)
        return json.load(file)


def main(socket_path: str, nofile: str = "", table: str = "", protected: str = "[]") -> None:
    """Run on the descriptors `LOCK_FD` and `LISTENER_FD`; 0 and 1 are /dev/null. It holds the lock while it runs. The
    arguments are those that `protocol.START` tells of."""
    # Blocked for good, read from the signalfd. Without handlers a child has none to reset, and no call is interrupted.
    signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
    for signum in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(signum, signal.SIG_DFL)
    os.chdir("/")
    syscalls.set_process_name("nsupervisor-kee")
    syscalls.become_subreaper()
    now = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (now[1], now[1]))
    soft, _, hard = nofile.partition(":")
    setup.initial_nofile = (int(soft), int(hard)) if nofile else now
    if not table:
        os.closerange(max(LOCK_FD, LISTENER_FD) + 1, 0x7FFF_FFFF)  # what the supervisor did not close on exec
    lock = fcntl.fcntl(LOCK_FD, fcntl.F_DUPFD_CLOEXEC, FIRST_FREE)
    listener = socket.socket(fileno=fcntl.fcntl(LISTENER_FD, fcntl.F_DUPFD_CLOEXEC, FIRST_FREE))
    for place in range(3, FIRST_FREE):  # taken, so that no other descriptor gets a number that a child needs
        os.dup2(0, place, inheritable=False)
    listener.setblocking(False)
    before = _read_table(int(table)) if table else None
    keeper = Keeper(listener, socket_path, lock, before, json.loads(protected))
    gc.collect()
    gc.freeze()  # what is here now stays, and is not written to by collections: it is shared with every init
    keeper.run()
