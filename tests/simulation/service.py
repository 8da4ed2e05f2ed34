"""Runs the whole service on a simulated machine, from its start to its end or its death.

`Site` is a machine with one runtime directory, its keepers, and the configuration file. Each `run` is one supervisor in
a run of trio of its own, with a clock that jumps to the next deadline whenever nothing else is to be done, and with
an order of tasks that the seed determines.
"""

from __future__ import annotations

import contextlib
import contextvars
import ctypes
import functools
import gc
import json
import random
import warnings
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import trio
import trio._core._run as trio_run

from nsupervisor.cgroups import Cgroup
from nsupervisor.config.compose import Find
from nsupervisor.config.load import Parsed, parse, parse_sound_parts
from nsupervisor.config.model import Config
from nsupervisor.keeper.reconnecting import ReconnectingKeeper, open_reconnecting_keeper
from nsupervisor.logs import THREAD_RUNNER, open_journal
from nsupervisor.service.control import Supervisor
from nsupervisor.service.observe.history import History
from nsupervisor.service.preflight import requirements
from nsupervisor.service.run import Platform, run_service
from tests.simulation import seam
from tests.simulation.keeper import Keepers
from tests.simulation.machine import Machine
from tests.simulation.paths import FileTree, SimulatedPathWatcher
from tests.simulation.programs import make_program
from tests.simulation.seam import Life, SupervisorDiedError
from tests.simulation.timer_host import SimulatedTimerHost, TimerDisk

CONFIG_PATH = "/sim/site.toml"
DIRECTORY = Path("/sim/run")
HEADER = """
[supervisor]
runtime_directory = "/sim/run"
name = "sim"
"""

NEVER_S = 24 * 60 * 60
"""The longest that trio sleeps: no task has a deadline."""
MACHINE_FIRST = 0.5
"""How likely the machine does what is due before the tasks that can run now, and not after them."""
DEAD_RUNS: list[Any] = []
"""The runs of dead supervisors, kept until nothing runs: their clean-up code runs when they are collected.

Not even the end of the process frees them: the clean-up code would run in the middle of a later test.
"""
ctypes.pythonapi.Py_IncRef(ctypes.py_object(DEAD_RUNS))
cached_parse = functools.cache(parse)
"""Histories share few configurations, and parsing is what takes longest."""


@functools.cache
def _cached_parts(text: str, path: str) -> Parsed:
    return parse_sound_parts(text, path)


def _parts(text: str, path: str, _find: Find) -> Parsed:
    parsed = _cached_parts(text, path)
    return parsed._replace(problems=parsed.problems.copy())  # the caller adds others


class JumpingClock(trio.abc.Clock):
    """A clock that jumps to the next deadline when every task waits, as `trio.testing.MockClock` does, but cheaper.

    `Site` makes it jump: it runs trio's loop itself, and no task waits for real I/O.
    """

    def __init__(self, now: float) -> None:
        self.now = now

    def start_clock(self) -> None:
        """Do nothing: time passes only by jumps."""

    def current_time(self) -> float:
        """Return the time in seconds."""
        return self.now

    def deadline_to_sleep_time(self, deadline: float) -> float:
        """Return how far to jump."""
        return deadline - self.now


class _NoInstruments(trio_run.Instruments):  # type: ignore[name-defined, misc]
    """No instruments: the lag of the event loop of this machine means nothing."""

    def add_instrument(self, instrument: trio.abc.Instrument) -> None:
        """Do nothing."""


class _NeverLong:
    """A tick that is never long: the real one reads the clock of this machine."""

    async def yield_if_long(self) -> None:
        """Return at once."""


class Service:
    """One supervisor while it runs, as a step of a history sees it."""

    def __init__(self, site: Site, life: Life, nursery: trio.Nursery) -> None:
        self.site, self.life, self.nursery = site, life, nursery
        self.signals = seam.Signals()
        self.supervisor: Supervisor | None = None
        """The API's control object, once the API is open."""
        self.is_started = False

    async def open_api(self, supervisor: Supervisor, keeper: ReconnectingKeeper) -> None:
        """Accept commands: `nsupervisor.service.run.Endpoints`."""
        self.life.call("listen")
        self.supervisor = supervisor

    async def open_metrics(self, supervisor: Supervisor) -> None:
        """Note that the service has started."""
        self.is_started = True

    def start_soon(self, work: Callable[..., Awaitable[Any]], *arguments: Any) -> None:
        """Run a task of a client as long as this supervisor lives."""

        async def run() -> None:
            # Whatever happens to a client, the service goes on; a dead supervisor's tasks do nothing more.
            with contextlib.suppress(SupervisorDiedError):
                await work(*arguments)

        self.nursery.start_soon(run)


class Site:
    """A machine with a configuration, on which supervisors run one after the other."""

    def __init__(self, seed: int, text: str, path: str = CONFIG_PATH) -> None:
        self.path, self.header = path, HEADER
        self.machine = Machine(seed)
        self.timer_disk = TimerDisk()
        self.file_tree = FileTree()
        self.keepers = Keepers(self.machine, make_program)
        self.seed = seed
        self.text = text
        self.stream = bytearray()
        """The records of all supervisors."""
        self.service: Service | None = None
        self.lives = 0
        self.on_record: Callable[[str, Mapping[str, Any]], None] = lambda _event, _fields: None
        """Called with each record, also with one that a death loses."""
        self._on_start: Callable[[Service], None] = lambda _service: None
        self._context = contextvars.copy_context()
        """The context of the present supervisor's main task, for tasks that the machine starts."""

    @property
    def config(self) -> Config:
        return cached_parse(self.header + self.text, self.path)

    def read_config(self, path: str) -> str:
        """Return the text of the configuration file."""
        return self.header + self.text

    def run(
        self, dies_at_call: int | None = None, on_start: Callable[[Service], None] = lambda _service: None
    ) -> int | None:
        """Run a supervisor; return its exit status, or None if it has died. Raises what ends the service."""
        life = Life(self.machine, dies_at_call)
        self._on_start = on_start
        self.lives += 1
        clock = JumpingClock(self.machine.now)
        self.machine.attach(clock)
        self.machine.log("supervisor starts", calls=dies_at_call)
        Cgroup._open_files = 0
        collects = gc.isenabled()
        gc.disable()  # the tasks of dead supervisors would end in the middle of this one's
        try:
            with seeded_scheduler(f"{self.seed} {self.lives}"), cached_parsers():
                status = self._run_until_death(life, clock)
        finally:
            if collects:
                gc.enable()
            life.is_dead = True
            self.machine.detach()
            self.keepers.disconnect()
            self.service = None
        if status is not None and life.fds:
            raise AssertionError(f"descriptors left open: {life.fds}")
        return status

    def _run_until_death(self, life: Life, clock: JumpingClock) -> int | None:
        machine = self.machine
        runner = trio_run.setup_runner(clock, [], False, True)
        runner.instruments = _NoInstruments([])
        run = trio_run.unrolled_run(runner, self._main, (life,))
        events: Any = None
        while True:
            try:
                timeout = run.send(events)
            except StopIteration:
                break
            events = []
            if not life.is_dead:
                if timeout <= 0:  # tasks can run; what the machine does is one of them, in any order
                    if machine.next_at() <= clock.now and trio_run._r.random() < MACHINE_FIRST:
                        self._context.run(machine.run_due)
                else:
                    events = runner.io_manager.get_events(0)  # only trio's own, when it wakes itself
                    if not events:
                        self._jump(clock, timeout)
            if life.is_dead:
                DEAD_RUNS.append((runner, list(runner.tasks)))
                with warnings.catch_warnings(), contextlib.suppress(trio.TrioInternalError):
                    warnings.simplefilter("ignore", RuntimeWarning)
                    run.close()
                return None
        if life.is_dead:
            return None
        assert runner.main_task_outcome is not None
        status: int = runner.main_task_outcome.unwrap()
        return status

    def _jump(self, clock: JumpingClock, timeout: float) -> None:
        """Let time pass until a task has a deadline, in `timeout` seconds, or until the machine does something."""
        machine_at = self.machine.next_at()
        if timeout >= NEVER_S and machine_at == float("inf"):
            raise AssertionError("every task waits, and nothing will happen")
        if machine_at <= clock.now + timeout:
            clock.now = max(clock.now, machine_at)
            self._context.run(self.machine.run_due)
        else:
            clock.now += timeout

    async def _main(self, life: Life) -> int:
        THREAD_RUNNER.set(self._run_inline)
        self._context = contextvars.copy_context()
        async with trio.open_nursery() as nursery:
            service = self.service = Service(self, life, nursery)
            self._on_start(service)
            status = await self._serve(service)
            nursery.cancel_scope.cancel()
        return status

    async def _serve(self, service: Service) -> int:
        life, settings = service.life, self.config.supervisor
        target = seam.RecordTarget(life, self.stream)
        async with open_journal(target, level=settings.log_level, format="json") as journal:
            journal.tick = _NeverLong()  # type: ignore[assignment]
            history = History()

            def listen(timestamp: str, level: str, event: str, fields: Mapping[str, Any], line: bytes) -> None:
                history.add(timestamp, level, event, fields, line)
                self.on_record(event, fields)

            journal.listener = listen
            async with open_reconnecting_keeper(DIRECTORY, (), self.keepers.opener(life)) as keeper:
                timers = SimulatedTimerHost(self.timer_disk, life)
                kernel = attrs.evolve(
                    seam.kernel(life, self.read_config),
                    timers=timers,
                    open_path_watcher=lambda: SimulatedPathWatcher(self.file_tree, life),
                )
                opened = seam.host(life), kernel, keeper, journal, DIRECTORY, history
                platform = Platform(*opened, service.signals, service, lambda: None)  # type: ignore[arg-type]
                status = await run_service(self.config, platform)
            journal.log.info("supervisor stopped")
        return status

    async def _run_inline(self, work: Callable[..., Any], *arguments: Any, **_options: Any) -> Any:
        """Call a function as if in a thread: later, and its caller cannot be cancelled meanwhile."""
        with trio.CancelScope(shield=True):
            await trio.sleep(self.machine.delay())
        return work(*arguments)

    def records(self) -> list[dict[str, Any]]:
        """Return all records that have been written."""
        return [json.loads(line) for line in self.stream.splitlines()]


@contextlib.contextmanager
def seeded_scheduler(seed: str) -> Any:
    """Let trio schedule tasks in an order that only the seed determines.

    Trio shuffles each batch of runnable tasks with this generator, to avoid assumptions about the order. The flag
    makes it sort the batch before; it exists for Hypothesis, and there is no public interface.
    """
    before = trio_run._ALLOW_DETERMINISTIC_SCHEDULING, trio_run._r
    trio_run._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[misc]
    trio_run._r = random.Random(seed)
    try:
        yield
    finally:
        trio_run._ALLOW_DETERMINISTIC_SCHEDULING, trio_run._r = before  # type: ignore[misc]


@contextlib.contextmanager
def cached_parsers() -> Any:
    """Let reloads parse each text once."""
    before = requirements.parse_sound_parts
    requirements.parse_sound_parts = _parts
    try:
        yield
    finally:
        requirements.parse_sound_parts = before
