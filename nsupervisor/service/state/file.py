"""The state file, `state.json` in the runtime directory: what the next supervisor needs to know of running workloads.

Each line is one JSON object with a checksum. The first is about the supervisor, each other about one instance or group;
the last line of each instance or group counts. A change is one write(2) at the end of the file, about 10 µs, so that it
can be made before the action that it describes. From time to time the file is rewritten and renamed, so that it stays
short.

Nothing is flushed to a disk. What write(2) has taken survives the death of any process, and a power cut ends the
processes as well. So the file names its boot, and is void in the next one. All times in it are of the monotonic clock,
which setting the clock does not change.
"""

import errno
import json
import os
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs

from nsupervisor.config.model import KillMode
from nsupervisor.core.exits import Exit
from nsupervisor.core.initiators import Initiator
from nsupervisor.core.lifecycle import Lifecycle
from nsupervisor.core.path_triggers import PathTriggerState
from nsupervisor.core.rules.rules import RuleState as RuleMemory
from nsupervisor.core.serialize import from_json, to_json_sparse
from nsupervisor.core.timers.state import RunMode, TimerState
from nsupervisor.json_codec import encode_strict
from nsupervisor.linux.files import KERNEL_FILES, Files
from nsupervisor.wire_names import wire

STATE_FORMAT = 1
"""Format of the file; a newer format is refused.

Within one format, attributes and kinds of lines may be added. A reader ignores those that it does not know, so that an
earlier version can take over, too.
"""
STATE_FILE = "state.json"
NO_LINES: Mapping[str, bytes] = {}
_MIN_REWRITE_BYTES = 256 * 1024
"""Size of the file, in bytes, below which it is not rewritten."""


@attrs.frozen
class Process:
    """A pid with the start time of its process (clock ticks since the boot): together they identify one process."""

    pid: int = attrs.field(metadata=wire("pid"))
    start_ticks: int = attrs.field(metadata=wire("started"))


@attrs.frozen
class ProcessRef:
    """The processes and pipes of a generation, as the kernel identifies them."""

    first: Process = attrs.field(metadata=wire("first"))
    """The init if there is one, otherwise the program."""
    program: Process = attrs.field(metadata=wire("program"))
    pipes: tuple[int, int] = attrs.field(default=(0, 0), metadata=wire("pipes"))
    """The inodes of the pipes of standard output and standard error."""


@attrs.frozen
class SavedRule:
    """The state of one rule. It is restored only to a rule of the same name and condition."""

    name: str = attrs.field(metadata=wire("name"))
    when: str = attrs.field(metadata=wire("when"))
    state: RuleMemory = attrs.field(metadata=wire("memory"))


@attrs.frozen
class ExitReport:
    """How one generation ended."""

    generation: int = attrs.field(metadata=wire("generation"))
    exit: Exit = attrs.field(metadata=wire("exit"))
    pid: int | None = attrs.field(default=None, metadata=wire("pid"))
    """The pid of the program."""


@attrs.frozen
class InstanceCheckpoint:
    """The state of one instance that the next supervisor needs."""

    lifecycle: Lifecycle = attrs.field(factory=Lifecycle, metadata=wire("life"))
    process: ProcessRef | None = attrs.field(default=None, metadata=wire("body"))
    """None before the program has been executed, and after its end."""
    last_exit: Exit | None = attrs.field(default=None, metadata=wire("last_exit"))
    oom_kills: float = attrs.field(default=0.0, metadata=wire("oom_kills"))
    """Value of the cgroup's counter when the latest exit was judged."""
    has_unfinished_actions: bool = attrs.field(default=False, metadata=wire("acting"))
    """Whether actions of the lifecycle's state may not have been carried out."""
    recreate_cgroup: bool = attrs.field(default=False, metadata=wire("renew"))
    """Whether the cgroup was killed and must be created again before the next process enters it."""
    rules: tuple[SavedRule, ...] = attrs.field(default=(), metadata=wire("rules"))
    changed_limits: Mapping[str, Any] = attrs.field(factory=dict, metadata=wire("set"))
    """The limits that `nsupervisor set` has changed, by the wire names of `Resources`."""
    pending_start: str = attrs.field(default="", metadata=wire("pending"))
    """The text of the initiator of a start that waits for others, or ""."""
    pending_detail: str = attrs.field(default="", metadata=wire("pending_detail"))
    """The uid and pid of a person, which the text lacks (`Initiator.detail`)."""
    spawn_digest: str = attrs.field(default="", metadata=wire("print"))
    """Digest of what it was started with (`nsupervisor.service.state.digest`)."""
    kill_signal: int = attrs.field(default=15, metadata=wire("kill_signal"))
    timeout_stop_sec: float = attrs.field(default=10.0, metadata=wire("timeout_stop_sec"))
    kill_mode: KillMode = attrs.field(default="main", metadata=wire("kill_mode"))
    send_sighup: bool = attrs.field(default=False, metadata=wire("send_sighup"))
    final_kill_signal: int = attrs.field(default=9, metadata=wire("final_kill_signal"))
    limits_digest: str = attrs.field(default="", metadata=wire("limits"))
    """Short digest of the limits that its cgroup has."""
    undelivered: tuple[ExitReport, ...] = attrs.field(default=(), metadata=wire("untold"))
    """Exits whose records may not be in the output."""
    environment_digest: str = attrs.field(default="", metadata=wire("files"))
    """Digest of the contents of its environment files (`nsupervisor.service.state.digest`)."""
    replaced_generation: int | None = attrs.field(default=None, metadata=wire("replaces"))
    """With `pending_start`: the latest generation when the start was requested; the start follows its end."""
    dependencies: tuple[str, ...] = attrs.field(default=(), metadata=wire("after"))
    """The workloads that it starts after and stops before; needed if the next configuration lacks it."""
    watchdog_sec: float | None = attrs.field(default=None, metadata=wire("watchdog_sec"))
    """The `watchdog_sec` that its program was started with; None if it is not known (version 0.1.0)."""

    start_revision: int = attrs.field(default=0, metadata=wire("start_revision"))
    """The revision of the version that started its program (`nsupervisor.core.reload.start_changes`)."""
    scaled_to: int = attrs.field(default=0, metadata=wire("scaled_to"))
    """The number of instances of its workload that `nsupervisor scale` has set; 0 if it has not."""
    scaled_from: int = attrs.field(default=0, metadata=wire("scaled_from"))
    """The number of the file when another one was set."""
    start_has_failed: bool = attrs.field(default=False, metadata=wire("start_failed"))
    """Whether the start of the present generation has failed, as `last_exit` says, and the lifecycle has yet to handle
    that."""
    announced_main: int = attrs.field(default=0, metadata=wire("announced_main"))
    """The pid of the process that MAINPID has named and that is not followed yet, or 0."""

    @property
    def start_initiator(self) -> Initiator | None:
        """The initiator of the start that waits; None if none does."""
        if not self.pending_start:
            return None
        initiator = Initiator.from_text(self.pending_start)
        return Initiator(initiator.kind, initiator.name, self.pending_detail or initiator.detail)

    @property
    def start_is_due(self) -> bool:
        """Whether the start that waits has not happened yet.

        The supervisor may have been killed between a start and the note that nothing waits any more.
        """
        if self.replaced_generation is None:  # written by a version that does not save it
            return bool(self.pending_start) and not self.lifecycle.is_alive
        return bool(self.pending_start) and self.lifecycle.generation == self.replaced_generation


@attrs.frozen
class GroupCheckpoint:
    """The state of one group, or the host, that the next supervisor needs."""

    rules: tuple[SavedRule, ...] = attrs.field(default=(), metadata=wire("rules"))
    changed_limits: Mapping[str, Any] = attrs.field(factory=dict, metadata=wire("set"))
    """The changed limits, as in `InstanceCheckpoint`."""


@attrs.frozen
class TimerCheckpoint:
    """The state of the timer of one workload that the next supervisor needs."""

    state: TimerState = attrs.field(factory=TimerState, metadata=wire("timer"))
    schedule: str = attrs.field(default="", metadata=wire("schedule"))
    """The configuration from which the times of the state were computed, as a file has it."""
    pending: RunMode | None = attrs.field(default=None, metadata=wire("pending"))
    """A run that was decided and may not have begun."""
    generations: Mapping[str, int] = attrs.field(factory=dict, metadata=wire("generations"))
    """With `pending`: the latest generation of each instance when it was decided."""


@attrs.frozen
class PathCheckpoint:
    """The state of the path triggers of one workload that the next supervisor needs."""

    triggers: Mapping[str, PathTriggerState] = attrs.field(factory=dict, metadata=wire("paths"))
    """By `PathConfig.identity`."""


def _ignore_problem(problem: str) -> None:
    """Ignore a problem of the state file."""


def _line_key(kind: str, name: str) -> str:
    """Return the key of a line: the name of an instance, or a name for a group that no instance can have."""
    return name if kind == "name" else f"{kind} {name}"


class StateFile:
    """The state file while it is written."""

    def __init__(
        self,
        directory: Path,
        header: Mapping[str, Any],
        on_problem: Callable[[str], None] = _ignore_problem,
        unchanged: Mapping[str, bytes] = NO_LINES,
        files: Files = KERNEL_FILES,
    ) -> None:
        """Begin a file with the header and the lines that an earlier supervisor has left (`SavedState.lines`).

        The first `save` replaces the earlier file. Never raises: see `problem`. `header` describes the supervisor.
        `on_problem` is called with the problem when one begins, and with "" when it is over.
        """
        self.path = directory / STATE_FILE
        self._files = files
        self.problem = ""
        """Why the file is not up to date, in words; the next change tries again."""
        self._on_problem = on_problem
        self._lines: dict[str, bytes] = {
            "": _encode_line({"format": STATE_FORMAT, "boot": boot_id(), **header}),
            **unchanged,
        }
        self._saved: dict[str, InstanceCheckpoint | None] = {}  # what `_lines` has been made of
        self._live_bytes = sum(map(len, self._lines.values()))
        """Bytes of the current lines; the rest of `_size` are older lines of the same instances."""
        self._size = 0
        self._fd = -1

    def save(self, name: str, checkpoint: InstanceCheckpoint | None) -> None:
        """Save the checkpoint of an instance; None removes it."""
        if checkpoint is not None and not self.problem and self._saved.get(name) == checkpoint:
            return  # several causes in a row save the same; to compare costs a tenth of encoding it
        self._saved[name] = checkpoint
        self._save_line(
            name,
            _encode_line({"name": name, "is": None if checkpoint is None else to_json_sparse(checkpoint)}),
            checkpoint is None,
        )

    def save_group(self, name: str, checkpoint: GroupCheckpoint | None) -> None:
        """Save the checkpoint of a group, by its full name; None removes it."""
        line = _encode_line({"group": name, "is": None if checkpoint is None else to_json_sparse(checkpoint)})
        self._save_line(_line_key("group", name), line, checkpoint is None)

    def save_timer(self, workload: str, checkpoint: TimerCheckpoint | None) -> None:
        """Save the checkpoint of the timer of a workload; None removes it."""
        line = _encode_line({"timer": workload, "is": None if checkpoint is None else to_json_sparse(checkpoint)})
        self._save_line(_line_key("timer", workload), line, checkpoint is None)

    def save_paths(self, workload: str, checkpoint: PathCheckpoint | None) -> None:
        """Save the checkpoint of the path triggers of a workload; None removes it."""
        line = _encode_line({"paths": workload, "is": None if checkpoint is None else to_json_sparse(checkpoint)})
        self._save_line(_line_key("paths", workload), line, checkpoint is None)

    def _save_line(self, key: str, line: bytes, is_removed: bool = False) -> None:
        before = self._lines.get(key, b"")
        if is_removed:
            self._lines.pop(key, None)
            self._live_bytes -= len(before)
        elif before == line:
            return
        else:
            self._lines[key] = line
            self._live_bytes += len(line) - len(before)
        try:
            if self._fd < 0 or (self._size > _MIN_REWRITE_BYTES and self._size > 4 * self._live_bytes):
                self._rewrite()
            else:
                self._append(line)
        except OSError as error:
            self._on_write_error(error)
        else:
            self._on_write_success()

    def _append(self, line: bytes) -> None:
        """Append a line to the file. Raises OSError, also if the kernel has taken only a part of it.

        It does that while the disk fills up. A line that followed would be lost with the torn one.
        """
        if self._files.write(self._fd, line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._size += len(line)

    def write_all(
        self, checkpoints: Mapping[str, InstanceCheckpoint], unchanged: Mapping[str, bytes] = NO_LINES
    ) -> None:
        """Save all of these at once. `unchanged`: lines of `SavedState.lines` that are still true."""
        self._saved |= checkpoints
        self._lines |= unchanged
        self._lines |= {
            name: _encode_line({"name": name, "is": to_json_sparse(record)}) for name, record in checkpoints.items()
        }
        try:
            self._rewrite()
        except OSError as error:
            self._on_write_error(error)
        else:
            self._on_write_success()

    def _on_write_error(self, error: OSError) -> None:
        before, self.problem = self.problem, f"cannot write {self.path}: {error.strerror}"
        self._close()  # the end of the file may be incomplete now, so the next change rewrites it
        if not before:
            self._on_problem(self.problem)

    def _on_write_success(self) -> None:
        if self.problem:
            self.problem = ""
            self._on_problem("")

    def _rewrite(self) -> None:
        self._close()
        new = self.path.with_suffix(".new")
        fd = self._files.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        try:
            data = b"".join(self._lines.values())
            self._live_bytes = len(data)
            view = memoryview(data)
            while view:
                view = view[self._files.write(fd, view) :]
            self._files.rename(new, self.path)
        except BaseException:
            self._files.close(fd)
            raise
        self._fd, self._size = fd, len(data)

    def _close(self) -> None:
        if self._fd >= 0:
            self._files.close(self._fd)
            self._fd = -1

    def write_again(self) -> bool:
        """Write the whole file again if it was removed while it was in use; return whether it was."""
        if self._fd < 0 or self._files.exists(self.path):
            return False
        self.write_all({})
        return True

    def remove(self) -> None:
        """Remove the file after everything has been stopped, so that no program is left to take over."""
        self._close()
        self._files.unlink(self.path)


@attrs.frozen
class SavedState:
    """The contents of the state file of an earlier supervisor."""

    header: Mapping[str, Any] = attrs.field(factory=dict)
    instances: Mapping[str, InstanceCheckpoint] = attrs.field(factory=dict)
    groups: Mapping[str, GroupCheckpoint] = attrs.field(factory=dict)
    timers: Mapping[str, TimerCheckpoint] = attrs.field(factory=dict)
    paths: Mapping[str, PathCheckpoint] = attrs.field(factory=dict)
    """By the name of the workload."""
    lines: Mapping[str, bytes] = attrs.field(factory=dict)
    """The current lines by instance, or by "group " and the full name of a group, for reuse if they do not change;
    those of timers and paths by "timer " or "paths " and the name of the workload."""
    problem: str = ""
    """The fault of the file and its new path; the other fields hold the readable part."""


def read_state(directory: Path, move_aside: bool = True, files: Files = KERNEL_FILES) -> SavedState:
    """Read the state file of an earlier supervisor; with `move_aside` False, without changing it.

    A file that is torn, empty, of another format or not a state file is renamed and kept. One of an earlier boot is
    ignored. Raises OSError if the file cannot be read.
    """
    path = directory / STATE_FILE
    try:
        data = files.read(path)
    except FileNotFoundError:
        return SavedState()
    problem, about = "", {}
    latest: dict[tuple[str, str], Any] = {}
    written: dict[str, bytes] = {}
    records: dict[str, InstanceCheckpoint] = {}
    groups: dict[str, GroupCheckpoint] = {}
    timers: dict[str, TimerCheckpoint] = {}
    paths: dict[str, PathCheckpoint] = {}
    try:
        lines = data.split(b"\n")
        about = _read_line(lines[0])
        if not isinstance(about, dict) or about.get("format") != STATE_FORMAT:
            raise ValueError(f"format {about.get('format')!r} is not understood here, only {STATE_FORMAT}")
        if about.get("boot") != boot_id():
            return SavedState()
        for line in lines[1:-1]:
            entry = _read_line(line)
            if not isinstance(entry, dict):
                raise ValueError(f"has a {type(entry).__name__} in place of an object")
            kind = next((kind for kind in ("name", "group", "timer", "paths") if kind in entry), "")
            if kind in entry:  # otherwise a later version wrote it
                latest[kind, entry[kind]] = entry["is"]
                written[_line_key(kind, entry[kind])] = line + b"\n"
        if lines[-1]:
            size = len(lines[-1])
            raise ValueError(f"its last line ends after {size} bytes: the disk was full, or the writer was killed")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        problem = str(error) or type(error).__name__
    for (kind, name), values in latest.items():
        try:
            if values is None:
                continue
            if kind == "group":
                groups[name] = from_json(GroupCheckpoint, values, ignore_unknown=True)
            elif kind == "timer":
                timers[name] = from_json(TimerCheckpoint, values, ignore_unknown=True)
            elif kind == "paths":
                paths[name] = from_json(PathCheckpoint, values, ignore_unknown=True)
            else:
                records[name] = from_json(InstanceCheckpoint, values, ignore_unknown=True)
        except ValueError as error:
            problem = problem or f"what it says of {name} {error}"
    if problem:
        problem = f"{path}: {problem}"
        if move_aside:
            problem = f"{problem}; it is kept as {_move_aside(path, files).name}"
    names = [
        *records,
        *(_line_key("group", name) for name in groups),
        *(_line_key("timer", name) for name in timers),
        *(_line_key("paths", name) for name in paths),
    ]
    return SavedState(about, records, groups, timers, paths, {name: written[name] for name in names}, problem)


def boot_id() -> str:
    """Return the id of this boot, random(4)."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _move_aside(path: Path, files: Files) -> Path:
    for number in range(1, 100):
        target = path.with_name(f"{STATE_FILE}.bad-{number}")
        if not files.exists(target):
            break
    files.rename(path, target)
    return target


_encode_text = json.JSONEncoder(separators=(",", ":")).encode
_HEADER_LENGTH = len(b'{"sum":"00000000","of":')


def _encode_line(value: Any) -> bytes:
    try:
        body = encode_strict(value)
    except TypeError:  # a lone surrogate, or an integer of more than 64 bits
        body = _encode_text(value).encode()
    return b'{"sum":"%08x","of":%s}\n' % (zlib.crc32(body), body)


def _read_line(line: bytes) -> Any:
    """Parse a line. Raises ValueError for anything that `_encode_line` did not write."""
    body = line[_HEADER_LENGTH:-1]
    if line != b'{"sum":"%08x","of":%s}' % (zlib.crc32(body), body):
        raise ValueError(f"not a line with the right checksum: {line!r:.60}" if line else "it is empty")
    return json.loads(body)
