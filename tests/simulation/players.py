"""Play the scenarios of `tests.simulation.scenarios` on the simulated machine and on the kernel.

Both return a transcript per workload: its records, its status after the last step, and its cgroup's files at that time,
without what differs from run to run. Lines of output are apart and in order, because a line of a program that exits may
be recorded after its exit.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import re
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import attrs
import trio

from nsupervisor.api.client import Client
from nsupervisor.config.changes import parse_changes
from tests.needs import missing
from tests.simulation.machine import Process
from tests.simulation.scenarios import BARRIERS, Scenario, Step
from tests.simulation.service import HEADER, Service, Site
from tests.system.service import Service as KernelService
from tests.system.service import service
from tests.timing import deadline

VOLATILE = frozenset(
    {
        "timestamp",
        "pid",
        "uptime_sec",
        "delay_sec",
        "line",
        "before",
        "after",
        "started_at",
        "exited_at",
        "since",
        "id",
        "detail",  # of an initiator: the pid of the client
    }
)
"""Keys of records and status objects whose values differ from run to run."""
PUMP_S = 0.002
"""How often the simulated player looks whether its next step is due, in simulated seconds."""
LIMIT_S = 60.0
"""Simulated seconds within which a scenario ends."""
CGROUP_FILES = (
    "cgroup.events",
    "cgroup.freeze",
    "pids.max",
    "pids.events",
    "memory.max",
    "memory.events",
    "cpu.weight",
)
KERNEL_COUNTERS = re.compile(r"(low|high|max|oom|oom_group_kill|sock_throttled) \d+\n")
"""Lines of memory.events whose numbers depend on how often the kernel tried to reclaim memory."""

Transcript = Mapping[str, Any]


def normalize(value: Any) -> Any:
    """Return a record or status object without its volatile keys."""
    if isinstance(value, Mapping):
        return {key: normalize(item) for key, item in value.items() if key not in VOLATILE}
    if isinstance(value, list):
        return [normalize(item) for item in value]
    return value


def matches(record: Mapping[str, Any], step: Step) -> bool:
    """Return whether a record is one that a step waits for."""
    return (
        record.get("workload") == step.name
        and record["event"] == step.value
        and all(record.get(key) == value for key, value in step.fields.items())
    )


def shown_files(read: Any, files: Sequence[str]) -> dict[str, str]:
    """Return the content of a cgroup's files, without counters that differ from run to run."""
    return {file: KERNEL_COUNTERS.sub("", read(file)) if file == "memory.events" else read(file) for file in files}


def transcript(
    scenario: Scenario,
    name: str,
    records: Sequence[Mapping[str, Any]],
    status: Mapping[str, Any],
    files: Mapping[str, str],
) -> dict[str, Any]:
    """Return the transcript of one workload of a scenario."""
    records = [record for record in records if record.get("workload") == name]
    dropped = {"cgroup", "command", "memory_current", "cpu_usage_usec"}  # real programs have another command
    if scenario.barriers:  # process 1 reaps the orphans of a dead keeper late; until then the kernel counts them
        dropped.add("pids_current")
    return {
        "records": [normalize(one) for one in records if one["event"] != "output" and not _depends_on_host(one)],
        "output": sorted((one["generation"], one["stream"], one["message"]) for one in records if "stream" in one),
        "status": normalize({key: value for key, value in status.items() if key not in dropped}),
        "files": dict(files),
    }


def _depends_on_host(record: Mapping[str, Any]) -> bool:
    """Return whether only one side, or a slow host, has a record.

    The files of log offsets are outside the seam; and on a busy host, processes may end late after SIGKILL.
    """
    return str(record.get("message", "")).startswith(("cannot note how far", "still populated"))


# ---- the simulated machine


class SimulatedPlayer:
    """Plays one scenario on a simulated machine of its own."""

    def __init__(self, scenario: Scenario, seed: int) -> None:
        self.scenario = scenario
        self.site = Site(seed, scenario.text)
        self.machine = self.site.machine
        self.steps = list(scenario.steps)
        self.status: dict[str, Mapping[str, Any]] = {}
        self.files: dict[str, Mapping[str, str]] = {}
        self._records: list[dict[str, Any]] = []
        self._parsed_bytes = 0
        self._is_busy = False
        self._is_down = False
        self.is_stuck = False
        self._ends_at = self.machine.now + LIMIT_S

    def play(self) -> dict[str, Transcript]:
        """Play it to its end; return the transcript of each workload."""
        self._schedule()
        while self.site.run() is None and not self.is_stuck:
            while self._is_down:
                self.machine.advance(PUMP_S)
        shown = "\n".join(map(str, self._records[-40:]))
        if self.steps or self.is_stuck:
            raise AssertionError(f"not within {LIMIT_S:g} s: {self.steps}\n{shown}")
        self._read_records()
        return {
            name: transcript(self.scenario, name, self._records, self.status[name], self.files[name])
            for name in self.scenario.workloads
        }

    def _schedule(self) -> None:
        self.machine.after(PUMP_S, self._pump)

    def _read_records(self) -> None:
        end = self.site.stream.rfind(b"\n") + 1
        self._records += map(json.loads, self.site.stream[self._parsed_bytes : end].splitlines())
        self._parsed_bytes = end

    def _give_up(self) -> None:
        self._is_down = False
        self.is_stuck = True
        if self.site.service is not None:
            self.site.service.life.die()

    def _service(self) -> Service | None:
        found = self.site.service
        return found if found is not None and found.is_started and not found.life.is_dead else None

    def _pump(self) -> None:
        self._read_records()
        if self.machine.now > self._ends_at:
            self._give_up()
            return
        while self.steps and not self._is_busy and self._try(self.steps[0]):
            del self.steps[0]
        found = self._service()
        if self.steps or self._is_busy or found is None:
            self._schedule()
            return
        assert found.supervisor is not None
        self.status = {status["name"]: status for status in found.supervisor.status()}
        for name in self.scenario.workloads:
            cgroup = self.machine.find_cgroup(self.status[name]["cgroup"])
            self.files[name] = shown_files(cgroup.read, CGROUP_FILES)
        found.signals.send(signal.SIGTERM)

    def _program(self, name: str) -> Process:
        return next(one for one in self.machine.living() if one.is_leader and one.id.rpartition("#")[0] == name)

    def _try(self, step: Step) -> bool:
        """Do a step, or begin it; return False if it cannot be done yet."""
        found = self._service()
        match step.do:
            case "record":
                return sum(matches(record, step) for record in self._records) >= step.nth
            case "ended":
                return not any(one.id.rpartition("#")[0] == step.name for one in self.machine.living())
            case "boot":
                self._is_down = False
                return True
            case "instruct":
                self._instruct(self._program(step.name), step.value)
                return True
            case "hit":
                self._program(step.name).receive(signal.Signals[step.value])
                return True
        if found is None:
            return False
        match step.do:
            case "crash":
                self._is_down = True
                found.life.die()
            case "kill keeper":
                keeper = self.site.keepers.current
                assert keeper is not None
                keeper.die()
            case "reload":
                assert self.site.text.count(step.name) == 1
                self.site.text = self.site.text.replace(step.name, step.value)
                self._begin(found, self._reload)
            case _:
                self._begin(found, functools.partial(self._command, step))
        return True

    def _begin(self, found: Service, work: Any) -> None:
        self._is_busy = True

        async def run() -> None:
            await work(found)
            self._is_busy = False

        found.start_soon(run)

    async def _command(self, step: Step, found: Service) -> None:
        assert found.supervisor is not None
        if step.do == "set":
            answer = await found.supervisor.command("set", step.name, changes=parse_changes(step.fields))
        else:
            answer = await found.supervisor.command(step.value, step.name)
        assert answer["ok"], answer

    async def _reload(self, found: Service) -> None:
        assert found.supervisor is not None
        with await found.supervisor.reload(None, HEADER + self.site.text) as reports:
            async for _ in reports:
                pass

    def _instruct(self, process: Process, words: str) -> None:
        verb, _, number = words.partition(" ")
        match verb:
            case "exit":
                process.end(int(number) << 8)
            case "fork":
                for _ in range(int(number)):
                    if process.status is None:
                        self.machine.fork(process)
            case "allocate":
                process.cgroup.allocate(process, int(number) << 20)
            case "ready":
                process.behaviour.notify(process, "READY=1")  # type: ignore[attr-defined]


def play_simulated(scenario: Scenario, seed: int) -> dict[str, Transcript]:
    """Play a scenario on the simulated machine."""
    return SimulatedPlayer(scenario, seed).play()


# ---- the kernel


@attrs.define(eq=False)
class KernelPlayer:
    """Plays scenarios that have the same barriers with the real service, at the same time."""

    scenarios: Sequence[Scenario]
    directory: Path
    services: list[KernelService] = attrs.field(factory=list)
    fifos: dict[str, int] = attrs.field(factory=dict)
    text: str = ""
    reloading: trio.Lock = attrs.field(factory=trio.Lock)
    status: dict[str, Mapping[str, Any]] = attrs.field(factory=dict)
    files: dict[str, Mapping[str, str]] = attrs.field(factory=dict)
    pids: dict[str, int] = attrs.field(factory=dict)

    async def play(self) -> dict[str, dict[str, Transcript]]:
        """Play them to their end; return the transcript of each workload of each scenario."""
        program = json.dumps([sys.executable, "-I", "-S", str(Path(__file__).with_name("real_program.py"))])[1:-1]
        text = "".join(scenario.text for scenario in self.scenarios)
        self.text = text.replace('"program"', f"{program}, {json.dumps(str(self.directory))}")
        try:
            for name in self._workloads():
                os.mkfifo(self.directory / name)
                self.fifos[name] = os.open(self.directory / name, os.O_RDWR | os.O_CLOEXEC)
            await self._play_phases()
        finally:
            for fd in self.fifos.values():
                os.close(fd)
        records = [record for one in self.services for record in one.records]
        return {
            scenario.name: {
                name: transcript(scenario, name, records, self.status[name], self.files[name])
                for name in scenario.workloads
            }
            for scenario in self.scenarios
        }

    def _workloads(self) -> list[str]:
        return [name for scenario in self.scenarios for name in scenario.workloads]

    async def _play_phases(self) -> None:
        phases = [_phases(scenario) for scenario in self.scenarios]
        barriers = [*self.scenarios[0].barriers, ""]
        async with AsyncExitStack() as stack:
            await self._boot(stack, dies="crash" in barriers)
            for number, barrier in enumerate(barriers):
                async with trio.open_nursery() as nursery:
                    for steps in phases:
                        nursery.start_soon(self._play_steps, steps[number])
                match barrier:
                    case "crash":
                        self.services[-1].process.kill()
                        await self.services[-1].process.wait()
                    case "boot":
                        await stack.aclose()
                        await self._boot(stack, dies=False)
                    case "kill keeper":
                        os.kill(await self._keeper_pid(), signal.SIGKILL)
            for name in self._workloads():
                self.status[name] = await self.services[-1].status(name)
                directory = Path(self.status[name]["cgroup"])
                files = [file for file in CGROUP_FILES if (directory / file).exists()]
                self.files[name] = shown_files(lambda file, directory=directory: (directory / file).read_text(), files)

    async def _boot(self, stack: AsyncExitStack, dies: bool) -> None:
        status = -signal.SIGKILL if dies else 0
        self.services.append(await stack.enter_async_context(service(self.directory, self.text, status=status)))

    async def _keeper_pid(self) -> int:
        return int((await self.services[-1].record(event="supervisor started"))["keeper_pid"])

    async def _play_steps(self, steps: Sequence[Step]) -> None:
        for step in steps:
            await self._do(step)

    async def _do(self, step: Step) -> None:
        match step.do:
            case "record":
                await self._record(step)
            case "ended":
                await self._wait_ended(self.pids[step.name])
            case "instruct":
                os.write(self.fifos[step.name], f"{step.value}\n".encode())
            case "hit":
                os.kill(self.pids[step.name], signal.Signals[step.value])
            case "reload":
                async with self.reloading:
                    config = self.directory / "nsupervisor.toml"
                    text = config.read_text()
                    assert text.count(step.name) == 1
                    config.write_text(text.replace(step.name, step.value))
                    await trio.to_thread.run_sync(lambda: list(self._client().reload({})))
            case "set":
                await self._command("set", step.name, resources=dict(step.fields))
            case _:
                await self._command(step.value, step.name)

    async def _record(self, step: Step) -> None:
        """Wait for a record, of whichever supervisor."""

        def count() -> int:
            return sum(matches(record, step) for one in self.services for record in one.records)

        latest = self.services[-1]
        if not await latest.heard(lambda: count() >= step.nth, patience=30):
            shown = "\n".join(map(str, [record for record in latest.records if record.get("workload") == step.name]))
            raise AssertionError(f"no record {step.fields} of {step.name}; there were:\n{shown}")
        started = [r for one in self.services for r in one.records if r["event"] == "started"]
        self.pids.update({record["workload"]: record["pid"] for record in started})

    async def _wait_ended(self, pid: int) -> None:
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        try:
            with trio.fail_after(deadline(30)):
                await trio.lowlevel.wait_readable(pidfd)
        finally:
            os.close(pidfd)

    async def _command(self, verb: str, name: str, **parameters: Any) -> None:
        answers = await trio.to_thread.run_sync(lambda: self._client().command(verb, [name], **parameters))
        assert all(answer["ok"] for answer in answers), answers

    def _client(self) -> Client:
        return Client(str(self.directory / "run" / "api.sock"))


def _phases(scenario: Scenario) -> list[list[Step]]:
    """Return the steps between the barriers."""
    phases: list[list[Step]] = [[]]
    for step in scenario.steps:
        if step.do in BARRIERS:
            phases.append([])
        else:
            phases[-1].append(step)
    return phases


async def play_on_kernel(scenarios: Sequence[Scenario], directory: Path) -> dict[str, dict[str, Transcript]]:
    """Play those scenarios for which this host has the controllers; one service for those with the same barriers."""
    possible = [one for one in scenarios if not any(missing(need) for need in one.needs)]
    transcripts: dict[str, dict[str, Transcript]] = {}
    by_barriers = sorted(possible, key=lambda scenario: scenario.barriers)
    for number, (_, group) in enumerate(itertools.groupby(by_barriers, key=lambda scenario: scenario.barriers)):
        place = directory / f"service-{number}"
        place.mkdir()
        transcripts |= await KernelPlayer(list(group), place).play()
    return transcripts
