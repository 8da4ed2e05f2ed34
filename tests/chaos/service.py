"""The real service for the chaos tests: ``nsupervisor run`` as a process of its own, its stream followed by a thread.

A `Site` is a configuration with its directory; it may be run several times, as a `Run` each, because runs get killed.
"""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import jsonschema

from nsupervisor.api.client import Client
from nsupervisor.logs import schema
from tests.chaos import invariants, observe
from tests.needs import ROOT, cgroup_directories
from tests.timing import deadline

PATIENCE = 20.0
"""Seconds after which what should have happened long ago counts as not happening."""
POLL = 0.01
COMMAND = (sys.executable, "-m", "nsupervisor")
"""`nsupervisor` of this version."""
DISK_SIZE = 4 << 20
"""Bytes of the file system that the stream of records goes to where its disk is to run full."""

_numbers = count(1)
T = TypeVar("T")
_VALIDATOR = jsonschema.Draft202012Validator(schema())


class BrokenError(AssertionError):
    """An invariant does not hold, or what had to happen did not."""


def demand(wrong: Sequence[str]) -> None:
    """Raise BrokenError if anything is wrong."""
    if wrong:
        raise BrokenError("\n".join(wrong))


def until(what: str, ask: Callable[[], T | None], patience: float = PATIENCE) -> T:
    """Ask until the answer is true, and return it."""
    end = time.monotonic() + deadline(patience)
    while not (answer := ask()):
        if time.monotonic() > end:
            raise BrokenError(f"not within {deadline(patience):g} s: {what}")
        time.sleep(POLL)
    return answer


class Run:
    """One life of the supervisor's process."""

    def __init__(self, site: "Site", wrapper: Sequence[str] = (), command: Sequence[str] = COMMAND) -> None:
        self.site = site
        self.raw = bytearray()
        self.records: list[dict[str, Any]] = []
        self.may_complain = False
        """Whether something has been done to it that it may tell of on standard error."""
        self._reading = threading.Event()
        self._reading.set()
        self._over = threading.Event()
        self._dead = threading.Event()
        self._pool = ThreadPoolExecutor(32)
        self.stderr = site.directory / f"stderr-{next(_numbers)}"
        with self.stderr.open("wb") as stderr:
            self.process = subprocess.Popen(
                [*wrapper, *site.wrapper(), *command, "run", str(site.config)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                cwd=ROOT,
                env={**os.environ, observe.MARK: site.mark},
            )
        self.pid = self.process.pid
        self._reader = threading.Thread(target=self._follow, daemon=True)
        self._reader.start()
        try:
            started = self.record(event="supervisor started")
        except BrokenError as error:
            self.end()
            raise BrokenError(f"{error}\n{self.stderr.read_text()}") from None
        self.keeper_pid: int = started["keeper_pid"]
        self.name: str = started["name"]

    # ---- its stream

    def _follow(self) -> None:
        assert self.process.stdout is not None
        pipe = self.process.stdout.fileno()
        fds = {"stdout": lambda: os.dup(pipe), "fifo": self.site.open_fifo, "disk": self._open_disk}
        fd = fds[self.site.output]()
        if fd is None:
            return
        os.set_blocking(fd, False)
        try:
            while not self._dead.is_set():
                over = self._over.is_set()
                self._reading.wait()
                if self._dead.is_set():
                    break
                try:
                    chunk = os.read(fd, 1 << 16)
                except BlockingIOError:
                    chunk = b""
                if chunk:
                    self._take(chunk)
                elif over:
                    return
                else:
                    time.sleep(POLL)
        finally:
            os.close(fd)

    def _open_disk(self) -> int | None:
        """The file in the service's own mount namespace, as soon as it is there; None when the service has ended."""
        path = f"/proc/{self.pid}/root{self.site.disk}/stream"
        while not self._over.is_set():
            try:
                return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                time.sleep(POLL)
        return None

    def _take(self, chunk: bytes) -> None:
        begin = self.raw.rfind(b"\n") + 1
        self.raw += chunk
        lines = self.raw[begin:].split(b"\n")[:-1]
        for line in lines:
            try:
                self.records.append(json.loads(line))
            except ValueError:
                pass  # `whole_lines` looks at all of `raw`, and tells

    def stop_reading(self) -> None:
        """From now on nobody reads the stream."""
        self._reading.clear()

    def read_on(self) -> None:
        self._reading.set()

    def die_as_reader(self) -> None:
        """Close the reading end of its standard output, for good."""
        assert self.process.stdout is not None
        self._dead.set()
        self._reading.set()
        self._reader.join()
        self.process.stdout.close()

    def matching(self, after: int = 0, **fields: Any) -> list[dict[str, Any]]:
        """The records from no. ``after`` on that have these fields ("from" as from_)."""
        records = self.records[after:]
        return [r for r in records if all(r.get(key.rstrip("_")) == value for key, value in fields.items())]

    def record(self, after: int = 0, patience: float = PATIENCE, **fields: Any) -> dict[str, Any]:
        """The first such record; waits for it, unless the service has ended."""

        seen = after

        def ask() -> list[dict[str, Any]] | None:
            nonlocal seen
            begin, seen = seen, len(self.records)
            if found := self.matching(begin, **fields):
                return found
            if not self._reader.is_alive() or (self.process.poll() is not None and self._gone()):
                return self.matching(after, **fields) or [{}]
            return None

        found = until(f"a record {fields}", ask, patience)[0]
        if not found:
            raise BrokenError(f"the service ended (status {self.process.returncode}) without a record {fields}")
        return found

    def _gone(self) -> bool:
        """After the process' end: let the reader come to the end of the stream."""
        self._over.set()
        self._reading.set()
        self._reader.join(deadline(PATIENCE))
        return True

    # ---- its API

    @property
    def client(self) -> Client:
        return Client(str(self.site.runtime / "api.sock"))

    def status(self) -> list[dict[str, Any]]:
        """What the API says of all workloads."""
        found = self.client.status()
        demand(invariants.answers(found))
        return found

    def one(self, name: str) -> dict[str, Any]:
        return next(one for one in self.status() if one["name"] == name)

    def ask(self, verb: str, *names: str, **parameters: Any) -> "Future[list[dict[str, Any]]]":
        """A command, under way."""
        return self._pool.submit(lambda: self.client.command(verb, names, **parameters))

    def tell(self, verb: str, *names: str, **parameters: Any) -> list[dict[str, Any]]:
        """A command, done."""
        return answer(self.ask(verb, *names, **parameters), f"{verb} {' '.join(names)}")

    def program(self, name: str) -> int:
        """The pid of a program, once it runs."""

        def ask() -> int | None:
            one = self.one(name)
            return one["pid"] if one["state"] in invariants.HAS_PROGRAM else None

        return int(until(f"{name} runs", ask))

    # ---- its processes

    def processes(self) -> list[invariants.Process]:
        return observe.processes(self.site.mark, (self.pid, self.keeper_pid))

    def signal(self, signum: int) -> None:
        self.process.send_signal(signum)

    def wait(self, patience: float = 40.0) -> int:
        """The exit status; the stream has been read to its end."""
        try:
            status = self.process.wait(deadline(patience))
        except subprocess.TimeoutExpired:
            raise BrokenError(f"the service has not ended within {deadline(patience):g} s") from None
        self._gone()
        return status

    def stop(self) -> int:
        """SIGTERM, and the exit status."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def close(self) -> None:
        """Let go of a run whose process has ended."""
        self._gone()
        if self.process.stdout:
            self.process.stdout.close()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def end(self) -> None:
        """Whatever it does: afterwards its processes are gone, the keeper and the workloads, too."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.close()
        self.site.sweep()

    # ---- what it says in the end

    def stream_problems(self) -> list[str]:
        """What is wrong with the records so far."""
        end = self.raw.rfind(b"\n") + 1
        raw = self.raw if self._over.is_set() and self.process.returncode in (0, 1) else self.raw[:end]
        return [
            *invariants.whole_lines(raw),
            *invariants.valid_records(list(self.records), _problem),
            *invariants.exits_once(list(self.records)),
            *invariants.states_chain(list(self.records)),
            *invariants.output_gapless(list(self.records)),
        ]

    def complaints(self) -> list[str]:
        """What it has said on standard error, where nothing that was done to it excuses that."""
        text = self.stderr.read_text()
        return [f"no complaints: standard error says:\n{text[-3000:]}"] if text and not self.may_complain else []


def answer(future: "Future[list[dict[str, Any]]]", what: str) -> list[dict[str, Any]]:
    """The answer to a command."""
    try:
        return future.result(deadline(PATIENCE))
    except TimeoutError:
        raise BrokenError(f"answers: nothing within {deadline(PATIENCE):g} s to: {what}") from None


def _problem(record: Mapping[str, Any]) -> str | None:
    error = next(_VALIDATOR.iter_errors(record), None)
    return error.message if error else None


class Site:
    """A configuration, and where it lives. ``output`` is where the stream goes: stdout, fifo, or disk (a small file
    system of its own, in a mount namespace that only the service and its children see)."""

    def __init__(self, toml: str, output: str = "stdout") -> None:
        number = next(_numbers)
        self.mark = f"{os.getpid()}-{number}"
        self.name = f"chaos-{self.mark}"
        self.output = output
        self.directory = Path(tempfile.mkdtemp(prefix=f"{self.name}-"))
        self.runtime = self.directory / "run"
        self.disk = self.directory / "disk"
        self.fifo = self.directory / "stream"
        self.disk.mkdir()
        self.config = self.directory / "nsupervisor.toml"
        paths = {"stdout": "stdout", "fifo": str(self.fifo), "disk": f"{self.disk}/stream"}
        head = {"name": self.name, "runtime_directory": str(self.runtime), "log_output": paths[output]}
        if output == "fifo":
            os.mkfifo(self.fifo)
        lines = "".join(f"{key} = {json.dumps(value)}\n" for key, value in head.items())
        marked = []
        for line in toml.splitlines():
            marked.append(line)
            if line.strip().startswith("[workload.") and line.count(".") == 1:
                marked.append(f'environment = {{ {observe.MARK} = "{self.mark}" }}')
        self.config.write_text(f"[supervisor]\n{lines}\n" + "\n".join(marked) + "\n")

    def wrapper(self) -> list[str]:
        """What to put before the command."""
        if self.output != "disk":
            return []
        script = f'mount -t tmpfs -o size={DISK_SIZE},mode=755 chaos {self.disk} && exec "$@"'
        return ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh"]

    def open_fifo(self) -> int:
        return os.open(self.fifo, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)

    def left(self) -> dict[str, list[str]]:
        """What is there that must not be once the service has ended."""
        files = sorted(path.name for path in self.runtime.iterdir()) if self.runtime.exists() else []
        return {
            "process": [str(process) for process in observe.processes(self.mark)],
            "cgroup": observe.cgroups(self.name),
            "mount": observe.mounts(self.directory),
            # The keeper's lock stays, as another could take it at any moment; "notify" is an empty directory.
            # A keeper that is killed cannot remove its socket; the next one does.
            "file": [name for name in files if name not in ("keeper.lock", "keeper.sock", "notify")],
            "notify socket": sorted(str(path) for path in self.runtime.glob("notify/*")),
        }

    def demand_nothing_left(self) -> None:
        """Wait a moment for the kernel to take apart what has ended, then raise BrokenError for what is left."""
        try:
            until("gone", lambda: not any(self.left().values()), 5)
        except BrokenError:
            demand(invariants.nothing_left(self.left()))

    def sweep(self) -> None:
        """Remove whatever is left, after a test that went wrong; only what carries this site's mark."""
        while found := [p for p in observe.processes(self.mark) if not p.dead]:
            for process in found:
                try:
                    os.kill(process.pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            time.sleep(POLL)
        for own in set(cgroup_directories().values()):
            for path, _, _ in os.walk(own / self.name, topdown=False):
                until(f"{path} is empty", lambda path=path: _removed(path))

    def remove(self) -> None:
        """The directory."""
        shutil.rmtree(self.directory)


def _removed(path: str) -> bool:
    try:
        os.rmdir(path)
    except FileNotFoundError:
        pass
    except OSError:
        return False
    return True


@contextmanager
def site(toml: str, output: str = "stdout") -> Iterator[Site]:
    """A site that leaves nothing behind, whatever happens."""
    it = Site(toml, output)
    try:
        yield it
    finally:
        it.sweep()
        it.remove()


@contextmanager
def running(site: Site, wrapper: Sequence[str] = (), command: Sequence[str] = COMMAND) -> Iterator[Run]:
    """A run of it, by `command`, that has ended at the end, one way or another."""
    run = Run(site, wrapper, command)
    try:
        yield run
    finally:
        run.end()


def over(run: Run, status: int = 0) -> None:
    """After an orderly end: it said what it did, and left nothing. ``status`` is the exit status that it must have."""
    if run.process.returncode != status:
        text = run.stderr.read_text()[-3000:]
        raise BrokenError(f"orderly end: exit status {run.process.returncode}, not {status}\n{text}")
    # Without a keeper nobody learns how the programs ended.
    ends = invariants.all_ended(run.records, {}) if status == 0 else []
    demand([*run.stream_problems(), *run.complaints(), *ends])
    run.site.demand_nothing_left()


# ---- faults


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """SIGSTOP until the end of the block."""
    os.kill(pid, signal.SIGSTOP)
    try:
        until(f"{pid} is stopped", lambda: _state(pid) in "TZX")
        yield
    finally:
        try:
            os.kill(pid, signal.SIGCONT)
        except ProcessLookupError:
            pass


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


@contextmanager
def few_descriptors(pid: int, room: int) -> Iterator[None]:
    """A running process may open ``room`` more files, and no more, until the end of the block (EMFILE). Below 0: none,
    not even in the place of one that it closes."""
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    # The limit is on the highest number: holes below it are room, too.
    taken = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
    free = (number for number in count() if number not in taken)
    limit = next(number for index, number in enumerate(free) if index == room) if room >= 0 else 3
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, before[1]))
    try:
        yield
    finally:
        try:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
        except ProcessLookupError:
            pass


@contextmanager
def full_disk(run: Run) -> Iterator[None]:
    """The file system that the stream goes to has not one byte left, until the end of the block."""
    path = Path(f"/proc/{run.pid}/root{run.site.disk}/filler")
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC)
    try:
        for size in (1 << 20, 1 << 12):
            try:
                while True:
                    os.write(fd, b"\0" * size)
            except OSError:  # ENOSPC
                pass
        yield
    finally:
        os.close(fd)
        path.unlink(missing_ok=True)
