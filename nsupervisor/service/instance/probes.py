"""The probes of one workload instance: when they run, and what their verdicts mean for the lifecycle.

`nsupervisor.core.probes` decides about thresholds and times, `nsupervisor.service.platform.probe_client` sends. A probe
of one generation never reports about another: its events have the number of its own.
"""

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import attrs
import trio

from nsupervisor.config.condition_terms import TOOK
from nsupervisor.config.model import WorkloadConfig
from nsupervisor.config.probes import ProbeConfig, ProbeKind, ReadinessConfig
from nsupervisor.core import events
from nsupervisor.core.lifecycle import PROBED, Lifecycle, reports_readiness
from nsupervisor.core.probes import ProbeResult, ProbeState, begin, handle_result
from nsupervisor.core.states import State
from nsupervisor.logs import Pipe
from nsupervisor.metrics.counters import Counters
from nsupervisor.service.context import ServiceContext
from nsupervisor.service.instance.log import InstanceLog
from nsupervisor.service.instance.output import Output
from nsupervisor.service.instance.probe_command import MakeSpec, run_probe_command


class LatestResult(NamedTuple):
    """The state of a probe, with its latest result and how many seconds that took."""

    state: ProbeState
    result: ProbeResult
    took_s: float


class _Subject(NamedTuple):
    """One generation that is probed, with the probes in force."""

    generation: int
    workload: WorkloadConfig
    is_ready: bool
    """Whether it was ready when this began: after a takeover, a freeze or a reload."""
    is_complete: bool
    """Whether it had been ready before, so that the startup probe is over."""
    becomes_ready: bool
    """Whether probes alone make it ready."""
    pidfd: int


_AWAITS_LINE = State.STARTING, State.RUNNING, State.FROZEN
"""The states in which a line of the output may still say that the program is ready."""


AVERAGED_RESULTS = 10
"""How many of a probe's latest results "took avg" in conditions of rules is about."""
MAX_BYTES_WITHOUT_NEWLINE = 64 << 10


async def read_newline(pipe: Pipe, number: int) -> ProbeResult | None:
    """Wait for a newline, as s6 does; return None if the pipe ends without one, as at the end of the program.

    Race: the service may be killed before it is saved that the program is ready. So the newline stays in the pipe.
    `number`: the program's number of the descriptor, for the text of a failure.
    """
    total = 0
    while total <= MAX_BYTES_WITHOUT_NEWLINE:
        await pipe.wait_readable()
        try:
            data = pipe.peek(MAX_BYTES_WITHOUT_NEWLINE)
        except BlockingIOError:
            continue
        if b"\n" in data:
            return ProbeResult(True, f"a newline on descriptor {number}")
        if not data:
            return None
        pipe.discard(len(data))
        total += len(data)
    size = MAX_BYTES_WITHOUT_NEWLINE >> 10
    return ProbeResult(False, f"more than {size} KiB without a newline on descriptor {number}; no more is read")


@attrs.define(eq=False)
class Probes:
    """Runs the probes of one instance while its program runs.

    `post` takes the events `Ready`, `NotReady` and `Unhealthy` for the lifecycle.
    """

    name: str
    context: ServiceContext
    log: InstanceLog
    counters: Counters
    post: Callable[[events.Event], None]
    exec_spec: MakeSpec
    output: Output
    open_readiness_pipe: Callable[[], int]
    """Returns a descriptor of the pipe on which the program says that it is ready, for the caller; -1: none."""
    on_result: Callable[[], None]
    """Called after each result, when `condition_values` has it."""
    latest: dict[ProbeKind, LatestResult] = attrs.field(init=False, factory=dict)
    """The latest results of the probes of the present generation."""
    _generation: int = attrs.field(init=False, default=0)
    _verdicts: dict[ProbeKind, float] = attrs.field(init=False, factory=dict)
    """For rules: 1 for each probe of the generation that passes, 0 for one that fails."""
    _durations: dict[ProbeKind, deque[float]] = attrs.field(init=False, factory=dict)
    """For rules: the seconds that the latest results took."""
    _running: tuple[object, ...] | None = attrs.field(init=False, default=None)
    """The generation and the probes that run; None if none do."""
    _scope: trio.CancelScope = attrs.field(init=False, factory=trio.CancelScope)

    def update(self, lifecycle: Lifecycle, workload: WorkloadConfig, pidfd: int) -> None:
        """Begin, go on with, or end the probes, after a change of the lifecycle or of the configuration.

        `pidfd`: the program, for probes in its network namespace; -1 if it is not known.
        """
        wanted = self._wanted(lifecycle, workload)
        if lifecycle.generation != self._generation:
            self._generation = lifecycle.generation
            self._verdicts = {"readiness": float(lifecycle.state is State.READY), "liveness": 1.0}
            self._durations = {}
        if lifecycle.state not in _AWAITS_LINE:
            self.output.end_watch()
        if wanted == self._running:
            return
        self._scope.cancel()
        if wanted is None or self._running is None or wanted[0] != self._running[0]:
            self.latest = {}
        self._running = wanted
        if wanted is None:
            return
        self._scope = trio.CancelScope()
        becomes_ready = lifecycle.started_type == PROBED and lifecycle.state is State.RUNNING
        is_ready = lifecycle.state is State.READY
        subject = _Subject(
            lifecycle.generation,
            workload,
            is_ready,
            is_ready or lifecycle.was_ready,
            becomes_ready,
            pidfd if workload.namespaces.network else -1,
        )
        self.context.nursery.start_soon(self._run, subject, self._scope)

    def condition_values(self) -> dict[str, float]:
        """Return the values of `probe` for conditions: the verdicts, and the average seconds of the latest results.

        Before its first result readiness fails and liveness passes, as for the lifecycle, and no time has passed.
        """
        values: dict[str, float] = {}
        for kind, verdict in self._verdicts.items():
            took = self._durations.get(kind, ())
            values[kind] = verdict
            values[f"{kind} {TOOK}"] = round(sum(took) / len(took), 6) if took else 0.0
        return values

    def _wanted(self, lifecycle: Lifecycle, workload: WorkloadConfig) -> tuple[object, ...] | None:
        if lifecycle.state not in (State.RUNNING, State.READY) or lifecycle.is_reloading:
            return None  # a program that is frozen or stopping cannot answer, and one that reloads need not
        if not workload.probes and lifecycle.started_type != PROBED:
            return None
        if reports_readiness(lifecycle, workload) and lifecycle.state is not State.READY:
            return None
        return lifecycle.generation, workload.startup, workload.readiness, workload.liveness

    async def _run(self, subject: _Subject, scope: trio.CancelScope) -> None:
        with scope, self.log.contain_errors(subject.generation, "cannot go on with its probes"):
            if "startup" in subject.workload.probes and not subject.is_complete and not await self._start(subject):
                return
            if subject.becomes_ready and subject.workload.readiness is None:
                self.post(events.Ready(subject.generation))
            async with trio.open_nursery() as nursery:
                for kind, config in subject.workload.probes.items():
                    if kind != "startup":
                        nursery.start_soon(self._watch, subject, kind, config)

    async def _start(self, subject: _Subject) -> bool:
        """Run the startup probe until its verdict; return it."""
        config = subject.workload.probes["startup"]
        state = begin("startup", config, trio.current_time())
        while state.verdict is None:
            state = await self._probe(subject, "startup", config, state)
        return state.verdict

    async def _watch(self, subject: _Subject, kind: ProbeKind, config: ProbeConfig) -> None:
        """Run a readiness or liveness probe for as long as its program runs."""
        if isinstance(config, ReadinessConfig) and config.is_own_report:
            await self._await_report(subject, config)
            return
        is_passed = subject.is_ready if kind == "readiness" else subject.is_complete
        share = self.context.kernel.random() if is_passed else 0.0
        state = begin(kind, config, trio.current_time(), is_passed=is_passed, share=share)
        while True:
            state = await self._probe(subject, kind, config, state)
            if kind == "liveness" and not state.verdict:
                return  # the program is being ended

    async def _await_report(self, subject: _Subject, config: ReadinessConfig) -> None:
        """Wait until the program itself says that it is ready, which it does once."""
        if subject.is_complete:
            if not subject.is_ready:  # a probe that the configuration does not have any more has failed
                self.post(events.Ready(subject.generation))
            return
        began = trio.current_time()
        result = await self._receive_report(subject, config)
        if result is None:
            return
        took_s = trio.current_time() - began
        state = handle_result(begin("readiness", config, began), result, config, trio.current_time())
        self.latest["readiness"] = LatestResult(state, result, took_s)
        self.counters.count_probe("readiness", True)
        self._report(subject.generation, "readiness", state, result, took_s)
        self._note_result("readiness", state, took_s)

    async def _receive_report(self, subject: _Subject, config: ReadinessConfig) -> ProbeResult | None:
        """Return the report of the program; None if it was started without a way to give one."""
        if not subject.becomes_ready:
            return None
        if config.fd is not None:
            if (fd := self.open_readiness_pipe()) < 0:
                return None
            pipe = self.context.kernel.open_pipe(fd)
            try:
                return await read_newline(pipe, config.fd)
            finally:
                pipe.stop_waiting()
                pipe.close()
        watch = self.output.watch_lines(subject.generation)
        return None if watch is None else ProbeResult(True, f"a line of its output: {await watch.wait_found()}")

    async def _probe(self, subject: _Subject, kind: ProbeKind, config: ProbeConfig, state: ProbeState) -> ProbeState:
        """Wait until the next probe is due, send it, and report a new verdict; return the state after it."""
        await trio.sleep_until(state.due_at)
        async with self.context.probe_slots:
            began = trio.current_time()
            result = await self._send(subject, config)
            took_s = trio.current_time() - began
        before, state = state, handle_result(state, result, config, trio.current_time())
        self.latest[kind] = LatestResult(state, result, took_s)
        if result.is_success is not None:
            self.counters.count_probe(kind, result.is_success)
        if state.verdict is not before.verdict:
            self._report(subject.generation, kind, state, result, took_s)
        if result.is_success is not None:
            self._note_result(kind, state, took_s)
        return state

    def _note_result(self, kind: ProbeKind, state: ProbeState, took_s: float) -> None:
        """Show a result to the rules."""
        if kind in self._verdicts:
            self._verdicts[kind] = float(bool(state.verdict))
            self._durations.setdefault(kind, deque(maxlen=AVERAGED_RESULTS)).append(took_s)
            self.on_result()

    async def _send(self, subject: _Subject, config: ProbeConfig) -> ProbeResult:
        if not config.exec_:
            return await self.context.kernel.probe(config, subject.pidfd)
        into = f"{self.name}#{subject.generation}"
        return await run_probe_command(self.context, into, self.exec_spec, config)

    def _report(self, generation: int, kind: ProbeKind, state: ProbeState, result: ProbeResult, took_s: float) -> None:
        """Write a record of a new verdict, and tell the lifecycle what follows from it."""
        passes = bool(state.verdict)
        self.log.write(
            generation,
            "probe",
            "info" if passes else "warning",
            probe=kind,
            passes=passes,
            message=result.detail,
            in_a_row=state.run,
            took_sec=round(took_s, 6),
        )
        reason = f"{kind} probe failed {'once' if state.run == 1 else f'{state.run} times'}: {result.detail}"
        if kind == "readiness":
            self.post(events.Ready(generation) if passes else events.NotReady(generation, reason))
        elif not passes:
            self.post(events.Unhealthy(generation, reason, kind))
