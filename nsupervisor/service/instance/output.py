"""The output of one workload instance: from the pipes of a generation to the destinations of its lines."""

import contextlib
from functools import partial
from pathlib import Path
from typing import Any

import attrs

from nsupervisor.condition_variable import ConditionVariable
from nsupervisor.config.expansion import Instance
from nsupervisor.config.line_patterns import compile_pattern
from nsupervisor.config.model import LogConfig, LogDestination
from nsupervisor.keeper.messages import Spawned
from nsupervisor.logs import (
    Blockage,
    Capture,
    LineSequence,
    LineWatch,
    LogFile,
    OffsetFile,
    OutputRoute,
    RateLimiter,
    Rotation,
    SharedStream,
    Tail,
    read_next_seq,
    run_in_thread,
)
from nsupervisor.logs.offsets import STREAMS_DIRECTORY
from nsupervisor.metrics.counters import STREAMS, Counters
from nsupervisor.service.context import ServiceContext


def offset_files_left(directory: Path) -> dict[str, list[Path]]:
    """List the offset files in the runtime directory by instance, with one scan for all instances."""
    paths: dict[str, list[Path]] = {}
    for path in (directory / STREAMS_DIRECTORY).glob("*#*"):
        paths.setdefault(path.name.partition("#")[0], []).append(path)
    return paths


@attrs.define(eq=False)
class Output:
    """The captures of one instance. Those of a generation may run on after its end, next to those of the next one."""

    name: str
    instance: Instance | None
    settings: LogConfig
    counters: Counters
    context: ServiceContext
    readiness_pattern: str | None = None
    """The pattern of the line that says that the program is ready; None: no line says so."""
    files: dict[str, LogFile] = attrs.field(init=False)
    """The instance's log files by stream; both streams may have the same one."""
    _spawned: Spawned | None = None
    """The descriptors of a generation whose capture has not started."""
    _captures: set[Capture] = attrs.field(init=False, factory=set)
    _sequences: dict[str, LineSequence] = attrs.field(init=False)
    _old_offset_files: list[Path] = attrs.field(init=False)
    """Offset files of captures that have ended; the next generation continues the line numbers in them."""
    _is_stopping: bool = False
    """Whether the program is being stopped, so that its output must not block it."""
    _watch: LineWatch | None = attrs.field(init=False, default=None)
    """Waits for a line of the present generation, or of the one before."""
    _capture_ended: ConditionVariable = attrs.field(init=False, factory=ConditionVariable)

    _limiter: RateLimiter | None = attrs.field(init=False, default=None)
    """Limits how much of both streams is recorded in a second; None: all."""

    def __attrs_post_init__(self) -> None:
        self._apply_rate_limit(self.settings)
        self.files = self._open_files(self.settings)
        self._sequences = {stream: LineSequence() for stream in STREAMS}
        # Left by a supervisor that was killed. Which captures continue is known only when their pipes are handed over.
        self._old_offset_files = self.context.offset_files.pop(self.name, [])

    def expect(self, spawned: Spawned) -> None:
        """Keep the pipes of a new generation until `begin`.

        Earlier ones are closed: the keeper was lost before their program was executed, and the start is repeated.
        """
        if self._spawned is not None:
            for fd in (self._spawned.stdout, self._spawned.stderr):
                self.context.kernel.processes.close(fd)
        self._spawned = spawned

    def begin(self, generation: int, pid: int | None) -> None:
        """Start to read the pipes of the new generation.

        This happens only when the program's pid is known, or is known not to exist. The pipes wait until then, so that
        each record of output has the pid and follows the record of the start.
        """
        spawned, self._spawned = self._spawned, None
        if spawned is None:
            return
        self.capture(generation, pid, spawned.stdout, spawned.stderr)

    def capture(self, generation: int, pid: int | None, stdout: int, stderr: int) -> None:
        """Read a generation's pipes until they are closed; this object owns them from now on.

        If a supervisor that was killed had read them, its captures continue where it stopped.
        """
        labels: dict[str, Any] = {"workload": self.name, "generation": generation, "pid": pid}
        if self.instance is not None:
            labels["instance"] = self.instance
        watch = self.watch_lines(generation)
        for fd, stream in ((stdout, "stdout"), (stderr, "stderr")):
            route = self._route(stream)
            pipe = self.context.kernel.open_pipe(fd)
            capture = Capture(
                pipe,
                route,
                labels,
                stream,
                self.counters.output[stream].add,
                self._offset_file(generation, stream, pipe.inode) if route.shared or route.file else None,
                self._sequences[stream],
                partial(self._log, labels),
                self.counters.output[stream].drop,
                self.counters.output[stream].limit,
                watch,
            )
            self._captures.add(capture)
            if self._is_stopping:
                capture.release()
            self.context.nursery.start_soon(self._run, capture)

    def watch_lines(self, generation: int) -> LineWatch | None:
        """Return what waits for the line that says that a generation is ready; None if no line says so.

        It sees what the program writes from its start on, or from a change of the pattern on.
        """
        pattern, watch = self.readiness_pattern, self._watch
        if watch is not None and (watch.generation, watch.pattern) == (generation, pattern):
            return watch
        self.end_watch()
        if pattern is None:
            return None
        self._watch = LineWatch(generation, pattern, compile_pattern(pattern))
        for capture in self._captures:
            if capture.labels["generation"] == generation:
                capture.search_lines(self._watch)
        return self._watch

    def set_readiness_pattern(self, pattern: str | None) -> None:
        """Change the pattern that `watch_lines` uses from now on."""
        self.readiness_pattern = pattern

    def end_watch(self) -> None:
        """Do not look for a line any more: its program is ready, which has been saved, or cannot become so."""
        if self._watch is not None:
            self._watch.end()

    def apply_config(self, settings: LogConfig) -> None:
        """Apply changed log settings, also to captures that are running."""
        old, self.settings = self.files, settings
        self._apply_rate_limit(settings)
        self.files = self._open_files(settings)
        # In threads, because the disk may block, and so may another thread that writes to the file.
        in_use = set(self.files.values())
        for file in set(old.values()) - in_use:
            self.context.nursery.start_soon(run_in_thread, file.path.parent, file.close)
        for file in in_use & set(old.values()):
            self.context.nursery.start_soon(self._apply_file_settings, file)
        for capture in self._captures:
            capture.reroute(self._route(capture.stream))

    def set_stopping(self, is_stopping: bool) -> None:
        """Note whether the program is being stopped.

        If so, output that cannot be written is dropped and counted from now on: a program that waits for it could not
        obey. This remains so for the generation's output, also after the program's end.
        """
        if is_stopping and not self._is_stopping:
            self.end_watch()
            self.release()
        self._is_stopping = is_stopping

    def release(self) -> None:
        """Drop and count the output so far, and of the programs so far, that cannot be written."""
        for capture in self._captures:
            capture.release()

    def blockages(self) -> dict[str, Blockage]:
        """Return the blocked output by stream; of several generations, the one that has waited longest."""
        blocked = ((capture.stream, capture.blockage) for capture in self._captures)
        found = [(stream, blockage) for stream, blockage in blocked if blockage is not None]
        return dict(sorted(found, key=lambda item: item[1].seconds))

    def make_offset_files_again(self) -> None:
        """Make the directory of the offset files again if it was removed; each file follows with its next note."""
        directory = self.context.runtime_directory / STREAMS_DIRECTORY
        if directory in self.context.made_directories and not directory.exists():
            directory.mkdir(mode=0o700)
        for capture in self._captures:
            if capture.offset_file is not None:
                capture.offset_file.reopen_at_next_note()

    def location(self) -> dict[str, Any]:
        """Return the paths, format and streams of the instance's log files.

        `file` is the path of the first (None without own log files), as for version 0.1.0.
        """
        paths = {stream: str(file.path) for stream, file in self.files.items()}
        has_tail = any(self._tail(getattr(self.settings, stream)) is not None for stream in STREAMS)
        return {
            "file": next(iter(paths.values()), None),
            "files": paths,
            "format": self.settings.format,
            "streams": [*paths],
            "tail": has_tail,
        }

    def retire(self) -> None:
        """Forget the latest output."""
        if self.context.tails is not None:
            self.context.tails.remove(self.name)

    async def wait_drained(self) -> None:
        """Wait until all output of ended generations has been read."""
        await self._capture_ended.wait_for(lambda: not self._captures)

    def _open_files(self, settings: LogConfig) -> dict[str, LogFile]:
        rotation = Rotation(settings.max_size, settings.max_files, settings.max_age, settings.compress)
        files = {}
        for stream, key in settings.file_keys().items():
            path = Path(getattr(settings, key)) if key else self.context.log_directory / f"{self.name}.log"
            files[stream] = self.context.log_files.get(path, rotation, records=settings.format == "json")
        return files

    async def _apply_file_settings(self, file: LogFile) -> None:
        with contextlib.suppress(OSError):  # reported when the next line is written
            await run_in_thread(file.path.parent, file.apply_settings)

    def _apply_rate_limit(self, settings: LogConfig) -> None:
        limit = settings.rate_limit
        if limit.bytes is None and limit.lines is None:
            self._limiter = None
        elif self._limiter is None:
            self._limiter = RateLimiter(limit.bytes, limit.lines)
        else:
            self._limiter.configure(limit.bytes, limit.lines)

    def _route(self, stream: str) -> OutputRoute:
        settings = self.settings
        where = getattr(settings, stream)
        return OutputRoute(
            self._shared_stream(where, stream),
            self.files.get(stream),
            settings.format == "raw",
            settings.max_line,
            settings.parse_json,
            settings.on_full == "block",
            self._tail(where),
            self._limiter,
        )

    def _shared_stream(self, where: LogDestination, stream: str) -> SharedStream | None:
        if where == "inherit":
            return self.context.own_streams.get(stream) if self.context.own_streams is not None else None
        return self.context.journal if where in ("journal", "both") else None

    def _tail(self, where: LogDestination) -> Tail | None:
        """Return the place of the latest lines of a stream that goes there; None: they are in a file, or not kept."""
        is_kept = where == "inherit" or (where == "journal" and not self.context.has_records_file)
        if not is_kept or self.context.tails is None or not self.settings.tail:
            return None
        return self.context.tails.get(self.name, self.settings.tail)

    def _offset_file(self, generation: int, stream: str, pipe: int) -> OffsetFile | None:
        """Open the offset file of a capture, and continue the line numbers of the previous generation."""
        directory = self.context.runtime_directory / STREAMS_DIRECTORY
        sequence = self._sequences[stream]
        path = directory / f"{self.name}#{generation}.{stream}"
        try:
            if directory not in self.context.made_directories:
                directory.mkdir(mode=0o700, exist_ok=True)
                self.context.made_directories.add(directory)
            for old_path in [old_path for old_path in self._old_offset_files if old_path.suffix == path.suffix]:
                if old_path == path:
                    continue
                sequence.continue_from(read_next_seq(old_path))
                if int(old_path.stem.rpartition("#")[2]) < generation:
                    old_path.unlink(missing_ok=True)
                    self._old_offset_files.remove(old_path)
            # What is there was listed when this supervisor began, or belongs to a capture that it has made.
            earlier = (capture.offset_file for capture in self._captures)
            may_exist = path in self._old_offset_files or any(file and file.path == path for file in earlier)
            progress = OffsetFile(path, pipe, is_new=not may_exist)
            sequence.continue_from(progress.offset.committed().seq)
            progress.advance(sequence.next_seq)
        except OSError as error:  # only the next supervisor needs the file; the capture works without it
            message = f"cannot note how far {stream} has been recorded: {error}; after a crash, lines may come twice"
            self.context.journal.log.warning("warning", workload=self.name, message=message)
            return None
        return progress

    async def _run(self, capture: Capture) -> None:
        try:
            await capture.run()
        finally:
            self._captures.discard(capture)
            if capture.offset_file is not None and capture.offset_file.path not in self._old_offset_files:
                self._old_offset_files.append(capture.offset_file.path)
            self._capture_ended.notify()

    def _log(self, labels: dict[str, Any], level: str, event: str, **fields: Any) -> None:
        getattr(self.context.journal.log, level)(event, **labels, **fields)
