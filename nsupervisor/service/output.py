"""The output of one workload instance: from a generation's pipes to where its lines go."""

from functools import partial
from pathlib import Path
from typing import Any

import attrs
import trio

from nsupervisor.config.model import Log
from nsupervisor.keeper.told import Spawned
from nsupervisor.logs import Capture, LogFile, Pipe, Progress, Rotation, Route, Sequence, in_thread, last_number
from nsupervisor.metrics.counters import STREAMS, Counters
from nsupervisor.service.world import World

STREAMS_DIRECTORY = "streams"
"""In the runtime directory: how far each capture has come (`nsupervisor.logs.progress`)."""


def notes_left(directory: Path) -> dict[str, list[Path]]:
    """The notes of captures in the runtime directory, by instance; all at once, as each look is one at all of them."""
    found: dict[str, list[Path]] = {}
    for path in (directory / STREAMS_DIRECTORY).glob("*#*"):
        found.setdefault(path.name.partition("#")[0], []).append(path)
    return found


@attrs.define(eq=False)
class Output:
    """The captures of one instance. A generation's may go on after its end, beside those of the next one."""

    name: str
    instance: int | None
    settings: Log
    counters: Counters
    world: World
    file: LogFile | None = attrs.field(init=False)
    """The instance's own log file, if it has one."""
    _spawned: Spawned | None = None
    """The descriptors of a generation whose capture has not begun."""
    _captures: set[Capture] = attrs.field(init=False, factory=set)
    _sequences: dict[str, Sequence] = attrs.field(init=False)
    _past: list[Path] = attrs.field(init=False)
    """Notes of captures that have ended; the numbers in them count until the next generation has some."""
    _ended: trio.lowlevel.ParkingLot = attrs.field(init=False, factory=trio.lowlevel.ParkingLot)

    def __attrs_post_init__(self) -> None:
        self.file = self._file(self.settings)
        self._sequences = {stream: Sequence() for stream in STREAMS}
        # Left by a supervisor that was killed. Which of them go on shows only when their pipes are handed over.
        self._past = self.world.notes.pop(self.name, [])

    def expect(self, spawned: Spawned) -> None:
        """Keep the pipes of a new generation until `begin`."""
        self._spawned = spawned

    def begin(self, generation: int, pid: int | None) -> None:
        """Begin to read. Only once the program's own pid is known, or that there is none: the pipes wait, and so each
        record of its output has its pid, and comes after the one that says that it started."""
        spawned, self._spawned = self._spawned, None
        if spawned is None:
            return
        self.capture(generation, pid, spawned.stdout, spawned.stderr)

    def capture(self, generation: int, pid: int | None, stdout: int, stderr: int) -> None:
        """Read a generation's pipes to their ends; they belong to us from now on. Where a supervisor that was killed
        had read them, its captures go on."""
        labels: dict[str, Any] = {"workload": self.name, "generation": generation, "pid": pid}
        if self.instance is not None:
            labels["instance"] = self.instance
        for fd, stream in ((stdout, "stdout"), (stderr, "stderr")):
            route = self._route(stream)
            pipe = Pipe(fd)
            capture = Capture(
                pipe,
                route,
                labels,
                stream,
                self.counters.output[stream].add,
                self._progress(generation, stream, pipe.inode) if route.journal or route.file else None,
                self._sequences[stream],
                partial(self._say, labels),
            )
            self._captures.add(capture)
            self.world.nursery.start_soon(self._run, capture)

    def change(self, settings: Log) -> None:
        """Other settings, from now on, also for what is being captured."""
        old, self.settings = self.file, settings
        self.file = self._file(settings)
        if old is not None:
            # In a thread, which may have to wait for another one that writes to it, or for a disk.
            self.world.nursery.start_soon(in_thread, old.path.parent, old.close)
        for capture in self._captures:
            capture.reroute(self._route(capture.stream))

    def place(self) -> dict[str, Any]:
        """The instance's own file, for whoever wants to read it: its path (None: there is none), format and streams."""
        streams = [stream for stream in STREAMS if getattr(self.settings, stream) in ("file", "both")]
        path = str(self.file.path) if self.file is not None else None
        return {"file": path, "format": self.settings.format, "streams": streams}

    async def drained(self) -> None:
        """Wait until all output of generations that have ended has been read."""
        while self._captures:
            await self._ended.park()

    def _file(self, settings: Log) -> LogFile | None:
        if not {settings.stdout, settings.stderr} & {"file", "both"}:
            return None
        path = Path(settings.path) if settings.path else self.world.log_directory / f"{self.name}.log"
        rotation = Rotation(settings.max_size, settings.max_files, settings.max_age, settings.compress)
        return LogFile(path, rotation, records=settings.format == "json")

    def _route(self, stream: str) -> Route:
        settings = self.settings
        where = getattr(settings, stream)
        return Route(
            self.world.journal if where in ("journal", "both") else None,
            self.file if where in ("file", "both") else None,
            settings.format == "raw",
            settings.max_line,
            settings.parse_json,
            settings.on_full == "block",
        )

    def _progress(self, generation: int, stream: str, pipe: int) -> Progress | None:
        """The notes of a capture. A generation's first line has the number after the last one of the one before."""
        directory = self.world.directory / STREAMS_DIRECTORY
        sequence = self._sequences[stream]
        path = directory / f"{self.name}#{generation}.{stream}"
        try:
            if not self._past:  # else it is there
                directory.mkdir(mode=0o700, exist_ok=True)
            for past in [past for past in self._past if past.suffix == path.suffix]:
                if past == path:
                    continue
                sequence.next = max(sequence.next, last_number(past))
                if int(past.stem.rpartition("#")[2]) < generation:
                    past.unlink(missing_ok=True)
                    self._past.remove(past)
            progress = Progress(path, pipe)
            sequence.next = max(sequence.next, progress.note.done().seq)
            progress.advance(sequence.next)
        except OSError as error:  # it is for the next supervisor; this one can do without
            message = f"cannot note how far {stream} has been recorded: {error}; after a crash, lines may come twice"
            self.world.journal.log.warning("warning", workload=self.name, message=message)
            return None
        return progress

    async def _run(self, capture: Capture) -> None:
        try:
            await capture.run()
        finally:
            self._captures.discard(capture)
            if capture.progress is not None and capture.progress.path not in self._past:
                self._past.append(capture.progress.path)
            self._ended.unpark_all()

    def _say(self, labels: dict[str, Any], level: str, event: str, **fields: Any) -> None:
        getattr(self.world.journal.log, level)(event, **labels, **fields)
