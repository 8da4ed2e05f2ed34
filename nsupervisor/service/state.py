"""``state.json`` in the runtime directory: what the next supervisor has to know of the workloads that run on.

One JSON object a line. The first is about the supervisor, each other about one instance or group, and the last one of
each counts; each has a checksum. A change is one write(2) at the end of the file, some 10 µs, so that it can be
made before the act that it is about; now and then the file is written anew and renamed, so that it stays short.

Nothing is flushed to a disk. What write(2) has taken survives the death of any process; what a power cut takes away
would be about processes that are gone, too. So the file says for which boot it is, and is void in the next one. All
times in it are of the monotonic clock, which no clock setting moves.
"""

import json
import os
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs

from nsupervisor.core.exits import Exit
from nsupervisor.core.lifecycle import Life
from nsupervisor.core.plain import restored, sparse
from nsupervisor.core.rules import Memory as RuleMemory
from nsupervisor.wire import wire

FORMAT = 1
"""Of the file. A newer one is not understood. Within one, attributes may come, and sorts of lines; who does not know
them goes on without, so that a version before can take over, too."""
NAME = "state.json"
NOTHING: Mapping[str, bytes] = {}
_LEAST = 256 * 1024
"""Bytes below which the file is not worth writing anew."""


@attrs.frozen
class Process:
    """A pid, and when that process started (clock ticks since the boot): together they mean one process only."""

    pid: int = attrs.field(metadata=wire("pid"))
    started: int = attrs.field(metadata=wire("started"))


@attrs.frozen
class Body:
    """The processes and pipes of a generation, by what the kernel knows them by."""

    first: Process = attrs.field(metadata=wire("first"))
    """The init where there is one, else the program."""
    program: Process = attrs.field(metadata=wire("program"))
    pipes: tuple[int, int] = attrs.field(default=(0, 0), metadata=wire("pipes"))
    """The inodes of standard output's and standard error's pipes."""


@attrs.frozen
class Remembered:
    """What is remembered of one rule. It is for a rule of the same name and condition only."""

    name: str = attrs.field(metadata=wire("name"))
    when: str = attrs.field(metadata=wire("when"))
    memory: RuleMemory = attrs.field(metadata=wire("memory"))


@attrs.frozen
class End:
    """How one generation ended."""

    generation: int = attrs.field(metadata=wire("generation"))
    exit: Exit = attrs.field(metadata=wire("exit"))
    pid: int | None = attrs.field(default=None, metadata=wire("pid"))
    """The program's."""


@attrs.frozen
class Record:
    """One instance."""

    life: Life = attrs.field(factory=Life, metadata=wire("life"))
    body: Body | None = attrs.field(default=None, metadata=wire("body"))
    """None before the program has been executed, and after its end."""
    last_exit: Exit | None = attrs.field(default=None, metadata=wire("last_exit"))
    oom_kills: float = attrs.field(default=0.0, metadata=wire("oom_kills"))
    """What the cgroup's counter had said when the latest end was judged."""
    acting: bool = attrs.field(default=False, metadata=wire("acting"))
    """What this life's state asks for may not have been done."""
    renew: bool = attrs.field(default=False, metadata=wire("renew"))
    """The cgroup has been killed, and must be made anew before the next process is put into it."""
    rules: tuple[Remembered, ...] = attrs.field(default=(), metadata=wire("rules"))
    set: Mapping[str, Any] = attrs.field(factory=dict, metadata=wire("set"))
    """The limits that `nsupervisor set` has changed, by the wire names of `Resources`."""
    pending: str = attrs.field(default="", metadata=wire("pending"))
    """Its start waits for others; who asked for it."""
    print: str = attrs.field(default="", metadata=wire("print"))
    """What it was started with, as a digest (`seal`)."""
    kill_signal: int = attrs.field(default=15, metadata=wire("kill_signal"))
    timeout_stop_sec: float = attrs.field(default=10.0, metadata=wire("timeout_stop_sec"))
    limits: str = attrs.field(default="", metadata=wire("limits"))
    """The limits that its cgroup has been given, as a short digest."""
    untold: tuple[End, ...] = attrs.field(default=(), metadata=wire("untold"))
    """Ends whose records may not be in the output."""
    files: str = attrs.field(default="", metadata=wire("files"))
    """What its environment files said, as a digest (`seal`)."""


@attrs.frozen
class GroupRecord:
    """One group, or the host."""

    rules: tuple[Remembered, ...] = attrs.field(default=(), metadata=wire("rules"))
    set: Mapping[str, Any] = attrs.field(factory=dict, metadata=wire("set"))
    """As `Record.set`."""


def _nobody(problem: str) -> None:
    """Told of what nobody wants to hear."""


def _key(kind: str, name: str) -> str:
    """By what a line is found: an instance's by its name, a group's by another that no instance has."""
    return name if kind == "name" else f"{kind} {name}"


class StateFile:
    """The file while it is written to."""

    def __init__(
        self,
        directory: Path,
        about: Mapping[str, Any],
        tell: Callable[[str], None] = _nobody,
        as_found: Mapping[str, bytes] = NOTHING,
    ) -> None:
        """Begin a file with ``about`` (the supervisor) and what an earlier supervisor has left (`Found.lines`); the one
        before is replaced by the first `keep`. Never raises: see `problem`. ``tell`` is called with what is the problem
        when one begins, and with "" when it is over."""
        self.path = directory / NAME
        self.problem = ""
        """Why the file is not up to date, in words; the next change tries again."""
        self._tell = tell
        self._lines: dict[str, bytes] = {"": _line({"format": FORMAT, "boot": boot(), **about}), **as_found}
        self._counts = sum(map(len, self._lines.values()))
        """Bytes of the lines that count; the rest of `_size` are older ones of the same instances."""
        self._size = 0
        self._fd = -1

    def keep(self, name: str, record: Record | None) -> None:
        """Remember this of an instance from now on; None: it is no more."""
        self._keep(name, _line({"name": name, "is": None if record is None else sparse(record)}), record is None)

    def keep_group(self, name: str, record: GroupRecord | None) -> None:
        """Remember this of a group, by its full name, from now on; None: it is no more."""
        line = _line({"group": name, "is": None if record is None else sparse(record)})
        self._keep(_key("group", name), line, record is None)

    def _keep(self, key: str, line: bytes, gone: bool = False) -> None:
        before = self._lines.get(key, b"")
        if gone:
            self._lines.pop(key, None)
            self._counts -= len(before)
        elif before == line:
            return
        else:
            self._lines[key] = line
            self._counts += len(line) - len(before)
        try:
            if self._fd < 0 or (self._size > _LEAST and self._size > 4 * self._counts):
                self._rewrite()
            else:
                os.write(self._fd, line)
                self._size += len(line)
        except OSError as error:
            self._failed(error)
        else:
            self._went_well()

    def write_all(self, records: Mapping[str, Record], as_found: Mapping[str, bytes] = NOTHING) -> None:
        """Remember all of these at once. ``as_found``: lines of `Found.lines` that still hold."""
        self._lines |= as_found
        self._lines |= {name: _line({"name": name, "is": sparse(record)}) for name, record in records.items()}
        try:
            self._rewrite()
        except OSError as error:
            self._failed(error)
        else:
            self._went_well()

    def _failed(self, error: OSError) -> None:
        before, self.problem = self.problem, f"cannot write {self.path}: {error.strerror}"
        self._close()  # whatever is at its end now, the next time it is written anew
        if not before:
            self._tell(self.problem)

    def _went_well(self) -> None:
        if self.problem:
            self.problem = ""
            self._tell("")

    def _rewrite(self) -> None:
        self._close()
        new = self.path.with_suffix(".new")
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            data = b"".join(self._lines.values())
            self._counts = len(data)
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            os.rename(new, self.path)
        except BaseException:
            os.close(fd)
            raise
        self._fd, self._size = fd, len(data)

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def remove(self) -> None:
        """Everything has been stopped: there is nothing to be taken over."""
        self._close()
        self.path.unlink(missing_ok=True)


@attrs.frozen
class Found:
    """What an earlier supervisor has left in its file."""

    about: Mapping[str, Any] = attrs.field(factory=dict)
    records: Mapping[str, Record] = attrs.field(factory=dict)
    groups: Mapping[str, GroupRecord] = attrs.field(factory=dict)
    lines: Mapping[str, bytes] = attrs.field(factory=dict)
    """The records as they are written, by instance, or by "group " and its full name: what is the same needs not be
    made into a line again."""
    problem: str = ""
    """What is wrong with the file, and where it is now; what could be read of it is above."""


def read(directory: Path, aside: bool = True) -> Found:
    """Read the file; with ``aside`` False, without touching it. One that is torn, empty, from another version, or no
    such file at all, is kept aside; one of an earlier boot is about nothing any more. Raises OSError where it cannot be
    read."""
    path = directory / NAME
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return Found()
    problem, about = "", {}
    latest: dict[tuple[str, str], Any] = {}
    written: dict[str, bytes] = {}
    records: dict[str, Record] = {}
    groups: dict[str, GroupRecord] = {}
    try:
        lines = data.split(b"\n")
        about = _read_line(lines[0])
        if not isinstance(about, dict) or about.get("format") != FORMAT:
            raise ValueError(f"format {about.get('format')!r} is not understood here, only {FORMAT}")
        if about.get("boot") != boot():
            return Found()
        for line in lines[1:-1]:
            one = _read_line(line)
            if not isinstance(one, dict):
                raise ValueError(f"has a {type(one).__name__} in place of an object")
            kind = "name" if "name" in one else "group"
            if kind in one:  # else it is of a later version
                latest[kind, one[kind]] = one["is"]
                written[_key(kind, one[kind])] = line + b"\n"
        if lines[-1]:
            raise ValueError(f"its last line is torn after {len(lines[-1])} bytes")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        problem = str(error) or type(error).__name__
    for (kind, name), values in latest.items():
        try:
            if values is None:
                continue
            if kind == "group":
                groups[name] = restored(GroupRecord, values, newer=True)
            else:
                records[name] = restored(Record, values, newer=True)
        except ValueError as error:
            problem = problem or f"what it says of {name} {error}"
    if problem:
        problem = f"{path}: {problem}; it is kept as {_aside(path).name}" if aside else f"{path}: {problem}"
    names = [*records, *(_key("group", name) for name in groups)]
    return Found(about, records, groups, {name: written[name] for name in names}, problem)


def boot() -> str:
    """The id of this boot, random(4)."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _aside(path: Path) -> Path:
    for number in range(1, 100):
        aside = path.with_name(f"{NAME}.bad-{number}")
        if not aside.exists():
            break
    path.rename(aside)
    return aside


_encode = json.JSONEncoder(separators=(",", ":")).encode
_HEAD = len(b'{"sum":"00000000","of":')


def _line(value: Any) -> bytes:
    body = _encode(value).encode()
    return b'{"sum":"%08x","of":%s}\n' % (zlib.crc32(body), body)


def _read_line(line: bytes) -> Any:
    """Raises ValueError for whatever `_line` did not write."""
    body = line[_HEAD:-1]
    if line != b'{"sum":"%08x","of":%s}' % (zlib.crc32(body), body):
        raise ValueError(f"not a line with the right checksum: {line!r:.60}" if line else "it is empty")
    return json.loads(body)
