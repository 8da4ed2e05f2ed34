"""Histories: a seed becomes a list of steps, which happen to a simulated site with crashes in between.

`generate` makes the steps, `run` carries them out and returns what was wrong, `shrink` removes the steps that do not
matter. Steps hold all that they need, and the machine draws its own random numbers, so a shorter list of steps with the
same seed is a history as well.
"""

from __future__ import annotations

import hashlib
import json
import random
import signal
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import trio

from nsupervisor.config.problems import ConfigError
from nsupervisor.core.lifecycle import State
from tests.simulation import invariants
from tests.simulation.configs import (
    ACTIVATED_KINDS,
    FIRST_ACTIVATED_SEED,
    FIRST_RELATED_SEED,
    FIRST_TIMED_SEED,
    JOB_FILE,
    KINDS,
    LAZY_ADDRESS,
    OVERLAPPING_KINDS,
    RELATED_KINDS,
    SERVED_ADDRESS,
    TIMED_KINDS,
    WEB_FILE,
    Kind,
    Part,
)
from tests.simulation.service import HEADER, Service, Site

QUIET_S = 6.0
"""Seconds after the last step until everything must have settled: longer than all stops and back-offs together."""
SETTLED_S = 2.0
"""Seconds after the last step until what has settled is looked at: longer than every level, watchdog and cooldown.
Instances that start, stop or wait are given until `QUIET_S`."""
SHUTDOWN_S = 30.0
"""Seconds until a supervisor has stopped everything."""
MAX_LIVES = 12
OVERLAPPING_SHARE = 0.3
"""The share of the histories with a kind of site of `OVERLAPPING_KINDS`."""
UNDER_WAY = frozenset({State.STARTING, State.STOPPING, State.BACKOFF})
VERBS = ("start", "stop", "restart", "restart", "kill", "freeze", "thaw")


@attrs.frozen
class Step:
    """Something that happens `at` a time, in seconds from the beginning."""

    at: float
    do: str
    target: str = ""
    value: str = ""

    def __str__(self) -> str:
        return f"{self.at:7.3f} {self.do} {self.target} {self.value}".rstrip()


@attrs.frozen
class Outcome:
    """The result of one history."""

    problems: tuple[str, ...]
    digest: str
    """A digest of all events and records."""
    events: tuple[str, ...]
    lives: int


def generate(seed: int) -> tuple[Kind, tuple[Step, ...]]:
    """Return the kind of site and the steps of a seed."""
    chance = random.Random(f"history {seed}")
    kind = chance.choice(KINDS)
    if random.Random(f"overlaps {seed}").random() < OVERLAPPING_SHARE:
        kind = chance.choice(OVERLAPPING_KINDS)
    if seed >= FIRST_ACTIVATED_SEED:
        kind = chance.choice(ACTIVATED_KINDS)
    elif seed >= FIRST_TIMED_SEED:
        kind = chance.choice(TIMED_KINDS)
    elif seed >= FIRST_RELATED_SEED:
        kind = chance.choice(RELATED_KINDS)
    steps: list[Step] = []
    at = 0.0
    crashes = chance.choice((1, 1, 1, 2))
    count = chance.randint(2, 7)
    crash_after = sorted(chance.sample(range(count), min(crashes, count)))
    for number in range(count):
        at += chance.choice((0.0, 0.001, 0.01, 0.02, 0.05, 0.2, 0.5, 1.5)) * (0.5 + chance.random())
        if kind.overlaps and chance.random() < 0.5:
            steps += _overlap(chance, kind, at, chance.choice(kind.overlaps))
            at = steps[-1].at
        else:
            steps.append(_step(chance, kind, at))
            if steps[-1].do in ("set group", "reload") and chance.random() < 0.5:
                steps.append(_step(chance, kind, at, steps[-1].do))
        if number in crash_after:
            at += chance.choice((0.0, 0.0, 0.005, 0.1))
            how = chance.choice(("call", "call", "call", "time"))
            value = str(chance.randint(1, 60) if how == "call" else round(chance.random() * 0.3, 3))
            if chance.random() < 0.25:
                steps.append(Step(at, "keeper dies", value=chance.choice(("now", "in spawn"))))
            steps.append(Step(at, f"crash by {how}", value=value))
            if chance.random() < 0.5:
                steps.append(Step(at + 0.01, "edit", *_edit(chance, kind)))
            at += chance.choice((0.05, 0.5, 2.0))
    if chance.random() < 0.1:
        steps.append(Step(at + chance.choice((0.0, 0.02)), "reload", *_edit(chance, kind)))
        steps.append(Step(steps[-1].at + chance.choice((0.0, 0.005, 0.02)), "SIGTERM"))
    return kind, tuple(steps)


def _step(chance: random.Random, kind: Kind, at: float, do: str = "") -> Step:
    weights = {
        "command": 6,
        "reload": 3,
        "hit": 3,
        "forks": 2 if kind.name in ("group", "rules") else 0,
        "eats": 2 if kind.name == "rules" else 0,
        "set group": 2 if kind.name == "group" else 0,
        "set": 1 if kind.name == "rules" else 0,
        "SIGHUP": 0.5,
        "keeper dies": 0.5,
        "spawn fails": 0.5,
        "setup fails": 0.5,
        "disk full": 0.3,
        "overflow": 0.3,
    }
    if kind.name == "activated":
        weights |= {"connect": 6, "write": 6}
    do = do or chance.choices(list(weights), list(weights.values()))[0]
    name = chance.choice(kind.workloads)
    match do:
        case "command":
            return Step(at, do, name, chance.choice(VERBS))
        case "reload" | "SIGHUP":
            return Step(at, do, *_edit(chance, kind))
        case "connect":
            return Step(at, do, chance.choice((LAZY_ADDRESS, SERVED_ADDRESS)))
        case "write":
            return Step(at, do, chance.choice((JOB_FILE, WEB_FILE)))
        case "hit":
            return Step(at, do, name, chance.choice(("SIGKILL", "SIGKILL", "SIGSEGV", "SIGTERM")))
        case "forks":
            return Step(at, do, name, chance.choice(("1", "3", "8")))
        case "eats":
            return Step(at, do, name, chance.choice(("4", "32")))
        case "set group":
            return Step(
                at, do, "group/batch", chance.choice(("pids_max=5", "pids_max=7", "memory_max=64M", "cpu_weight=50"))
            )
        case "set":
            return Step(at, do, name, chance.choice(("pids_max=5", "memory_max=12M", "cpu_weight=50")))
        case "keeper dies":
            return Step(at, do, value=chance.choice(("now", "in spawn")))
        case "disk full":
            return Step(at, do, value=str(chance.choice((0.05, 0.5))))
    return Step(at, do)


def _overlap(chance: random.Random, kind: Kind, at: float, parts: Sequence[Part]) -> list[Step]:
    """Make steps that happen at about the same time."""
    steps: list[Step] = []
    targets: dict[tuple[str, ...], str] = {}
    for part in parts:
        at += part.delay_s * chance.random()
        target = targets.setdefault(part.targets, chance.choice(part.targets))
        values = kind.choices[target] if part.do in ("edit", "reload") else part.values
        steps.append(Step(at, part.do, target, chance.choice(values)))
    return steps


def _edit(chance: random.Random, kind: Kind) -> tuple[str, str]:
    choice = chance.choice(list(kind.choices))
    return choice, chance.choice(kind.choices[choice])


@attrs.define(eq=False)
class Command:
    """A command of an operator, and what became of it."""

    at: float
    verb: str
    name: str
    value: str = ""
    answered_at: float | None = None
    ok: bool = False
    message: str = ""


class History:
    """One history while it happens."""

    def __init__(self, seed: int, kind: Kind, steps: Sequence[Step]) -> None:
        self.kind, self.steps = kind, steps
        self.choices = {name: values[0] for name, values in kind.choices.items()}
        self.written: dict[str, float] = {}
        """When a file was last written that the service watched."""
        self.in_force = dict(self.choices)
        self.site = Site(seed, kind.text(self.choices))
        self.machine = self.site.machine
        self.commands: list[Command] = []
        self.status: list[dict[str, Any]] | None = None
        """The status at the end, when all was quiet."""
        self.started_at = self.machine.now
        self.quiet_at = self.machine.now + (self.steps[-1].at if self.steps else 0.0) + QUIET_S
        self.disk_was_full = False
        self.is_ending = False
        self.sigterm_at: float | None = None
        edited = {step.target for step in steps if step.do in ("edit", "reload", "SIGHUP")}
        self.watch = invariants.Watch(self.machine, kind, self.site.config.workloads, edited)
        self.site.on_record = self.watch.on_record
        self.machine.unlink_listeners.append(self._on_unlink)
        self.machine.write_listeners.append(self._on_write)

    def problem(self, text: str) -> None:
        """Note that something is wrong."""
        self.watch.problem(text)

    def _on_unlink(self, name: str) -> None:
        if name == "state.json":  # everything has been stopped; the next supervisor begins without a state
            self.watch.on_end(len(self.site.stream))
            self.commands.clear()

    def _on_write(self, data: bytes) -> None:
        for line in data.splitlines():
            if line.endswith(b'"is":null}}'):  # an instance has been removed; the next one begins with #1
                self.watch.on_removed(json.loads(line)["of"].get("name", ""))

    # ---- the course

    def run(self) -> None:
        """Run supervisors until one has ended in order."""
        for step in self.steps:
            self.machine.after(step.at, lambda step=step: self._do(step))
        settled_s = SETTLED_S if self.kind.name != "group" else invariants.REACTION_S + 0.5
        self.machine.after(self.quiet_at - QUIET_S + settled_s - self.machine.now, self._finish)
        while True:
            if self.site.lives >= MAX_LIVES:
                self.problem("it does not come to an end")
                return
            try:
                status = self.site.run(on_start=self._on_start)
            except Exception as error:
                self.problem(f"the service ends: {_describe(error)}")
                return
            if status is None:
                self.machine.advance(0.05 + self.machine.random.choice((0.0, 0.3, 1.0)))
                if self.is_ending:
                    self.machine.after(3.0, self._stop)
                continue
            if status != 0:
                self.problem(f"exit status {status}")
            if self.is_ending:
                break
            if self.sigterm_at is None:
                self.problem("the service has ended by itself")
                break
            self.machine.advance(0.1)  # it was stopped by a step; run it again
            self.sigterm_at = None
        for text in invariants.after_the_end(self):
            self.problem(text)

    def _on_start(self, service: Service) -> None:
        self.in_force = dict(self.choices)
        self.watch.on_start()

    def _service(self) -> Service | None:
        service = self.site.service
        if service is None or service.supervisor is None or service.life.is_dead:
            return None
        if service.supervisor.nursery.cancel_scope.cancel_called:
            return None  # it has closed its API, and ends
        return service

    def _finish(self) -> None:
        """Look at what has become of everything, and stop the service."""
        service = self._service()
        if service is None or not service.is_started:
            self.machine.after(1.0, self._finish)
            return
        assert service.supervisor is not None
        is_late = self.machine.now >= self.quiet_at
        if not is_late and not self._is_settled(service):
            self.machine.after(0.5, self._finish)
            return
        service.life.dies_at_call = None  # the step came too late to matter
        self.status = service.supervisor.status()
        wrong = invariants.when_quiet(self, self.status)
        if wrong and not is_late:
            self.machine.after(0.5, self._finish)
            return
        for text in wrong:
            self.problem(text)
        self._stop()

    def _is_settled(self, service: Service) -> bool:
        """Return whether nothing is under way, and no crash is still to come: then waiting shows nothing more."""
        if service.life.dies_at_call is not None or service.supervisor is None:
            return False
        jobs = service.supervisor.jobs
        return not any(
            actor.lifecycle.state in UNDER_WAY or jobs.is_starting(actor)
            for actor in jobs.all_actors
            if actor.name not in ("brief", "tick", "poll")  # they are never quiet
        )

    def _stop(self) -> None:
        self.is_ending = True
        service = self._service()
        if service is None or not service.is_started:
            self.machine.after(1.0, self._stop)
            return
        life = service.life
        service.signals.send(signal.SIGTERM)
        self.sigterm_at = self.machine.now

        def late() -> None:
            if not life.is_dead and self.site.service is not None and self.site.service.life is life:
                self.problem("a stop does not come to an end")
                life.die()
                self.site.lives = MAX_LIVES

        self.machine.after(SHUTDOWN_S, late)

    # ---- steps

    def _do(self, step: Step) -> None:
        service = self._service()
        machine = self.machine
        machine.log("step", str(step))
        leader = next(
            (one for one in machine.living() if one.is_leader and one.id.rpartition("#")[0] == step.target), None
        )
        match step.do:
            case "edit":
                self._edit(step)
            case "reload":
                self._edit(step)
                if service is not None:
                    service.start_soon(self._reload, service, dict(self.choices))
            case "SIGHUP":
                self._edit(step)
                if service is not None and service.is_started:
                    self.in_force = dict(self.choices)
                    service.signals.send(signal.SIGHUP)
            case "SIGTERM":
                if service is not None and service.is_started:
                    self.sigterm_at = machine.now
                    service.signals.send(signal.SIGTERM)
            case "command" | "set" | "set group" if service is not None:
                verb = step.value if step.do == "command" else step.do
                command = Command(machine.now, verb, step.target, step.value)
                self.commands.append(command)
                service.start_soon(self._command, service, command)
            case "hit" if leader is not None:
                self.watch.hit(leader)
                leader.receive(signal.Signals[step.value])
            case "forks" if leader is not None:
                for _ in range(int(step.value)):
                    if leader.status is None:
                        machine.fork(leader)
            case "eats" if leader is not None:
                leader.cgroup.allocate(leader, int(step.value) << 20)
            case "connect":
                for listener in machine.listeners:
                    if listener.address == step.target and machine.holds(listener):
                        listener.connect()
            case "write":
                if service is not None and _is_watched(service, step.target):
                    self.written[step.target] = machine.now
                self.site.file_tree.write(step.target)
            case "keeper dies":
                self.watch.may_repeat = True
                keeper = self.site.keepers.current
                if keeper is not None and step.value == "in spawn":
                    keeper.die_in_spawn = True
                elif keeper is not None:
                    keeper.die()
            case "spawn fails" if self.site.keepers.current is not None:
                self.site.keepers.current.fail_spawns += 1
            case "setup fails" if self.site.keepers.current is not None:
                self.site.keepers.current.fail_setups += 1
            case "disk full":
                self.disk_was_full = machine.disk_is_full = True
                self.watch.may_repeat = True
                machine.after(float(step.value), self._disk_has_room)
            case "overflow":
                machine.lose_notifications = True
                machine.after(0.2, self._notifications_are_back)
            case "busy":
                machine.wake_delay_s = float(step.value)
                machine.after(0.3, self._is_no_longer_busy)
            case "crash by call" if service is not None:
                service.life.dies_at_call = service.life.calls + int(step.value)
            case "crash by time" if service is not None:
                machine.after(float(step.value), service.life.die)

    def _disk_has_room(self) -> None:
        self.machine.disk_is_full = False

    def _notifications_are_back(self) -> None:
        self.machine.lose_notifications = False

    def _is_no_longer_busy(self) -> None:
        self.machine.wake_delay_s = 0.0

    def _edit(self, step: Step) -> None:
        self.choices[step.target] = step.value
        self.site.text = self.kind.text(self.choices)

    async def _reload(self, service: Service, choices: dict[str, str]) -> None:
        assert service.supervisor is not None
        try:
            stream = await service.supervisor.reload(None, HEADER + self.kind.text(choices))
        except ConfigError:
            return
        self.in_force = choices
        with stream as reports:
            async for _ in reports:
                pass

    async def _command(self, service: Service, command: Command) -> None:
        supervisor = service.supervisor
        assert supervisor is not None
        key, _, value = command.value.partition("=")
        if command.verb == "set group":
            if not supervisor.matching_groups(command.name):
                return
            answer = await supervisor.set_group(command.name, invariants.parse_limit(key, value))
        elif command.verb == "set":
            answer = await supervisor.command("set", command.name, changes=invariants.parse_limit(key, value))
        else:
            if command.name not in supervisor.actors:
                return
            answer = await supervisor.command(command.verb, command.name)
        if service.life.is_dead:
            return
        command.answered_at, command.ok = trio.current_time(), answer["ok"]
        command.message = str(answer["message"])
        self.machine.log("answer", f"{command.verb} {command.name}", ok=command.ok, message=command.message)


def _is_watched(service: Service, path: str) -> bool:
    """Return whether a change of this path is found from now on, whatever dies."""
    if service.supervisor is None or not service.is_started:
        return False
    triggers = (trigger for name in ("job", "web") for trigger in service.supervisor.paths.status_of(name))
    return any(trigger["path"] == path and trigger["is_watched"] for trigger in triggers)


def _describe(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({frame.filename.rpartition('/')[2]}:{frame.name})"


def run(seed: int, kind: Kind | None = None, steps: Sequence[Step] | None = None) -> Outcome:
    """Run the history of a seed, or other steps with the seed's randomness."""
    if kind is None or steps is None:
        kind, generated = generate(seed)
        steps = generated if steps is None else steps
    history = History(seed, kind, steps)
    history.run()
    digest = hashlib.sha256("\n".join(history.machine.events).encode())
    digest.update(repr(history.watch.shown).encode())
    problems, events = tuple(history.watch.problems), tuple(history.machine.events)
    return Outcome(problems, digest.hexdigest()[:16], events, history.site.lives)


def shrink(
    seed: int, fails: Callable[[Outcome], bool] = lambda outcome: bool(outcome.problems)
) -> tuple[Kind, tuple[Step, ...]]:
    """Return the fewest steps that still fail in the same way: remove one after the other."""
    kind, steps = generate(seed)
    progress = True
    while progress:
        progress = False
        for position in range(len(steps) - 1, -1, -1):
            shorter = (*steps[:position], *steps[position + 1 :])
            if fails(run(seed, kind, shorter)):
                steps, progress = shorter, True
    return kind, steps


def report(seed: int, outcome: Outcome) -> str:
    """Describe a failing history, shrunk, with how to run it again."""
    first = outcome.problems[0]
    kind, steps = shrink(seed, lambda shorter: first in shorter.problems)
    lines = [f"seed {seed} ({kind.name}): {first}", f"replay: scripts/chaos --simulate --seed {seed}"]
    lines += [f"shrunk from {len(generate(seed)[1])} to {len(steps)} steps:", *map(str, steps)]
    return "\n".join(lines)
