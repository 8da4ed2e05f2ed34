"""Observe the files that the rules of one cgroup read, and show the rules each reading.

This is the only module that knows which files are watched and how: event files and pressure triggers by notifications
of the kernel, levels by samples. Workload instances and groups use it alike.

Rules see only the snapshots that they are given. A snapshot also holds values that are in no file of the cgroup: how
the program exited (`exit`), how long it has been running (`uptime`), what its probes have found (`probe`), and that a
pressure trigger fired (a key of the pressure file).
"""

import math
from collections.abc import Callable, Mapping
from time import perf_counter
from typing import Protocol

import attrs
import trio

from nsupervisor.cgroups import Cgroup, CgroupError, Reading, Watcher
from nsupervisor.config.condition_terms import EXIT, NOT_FILES, PROBE, UPTIME, has_notification
from nsupervisor.config.conditions import Atom
from nsupervisor.core.exits import Exit
from nsupervisor.core.rules.limit_steps import cgroup_file
from nsupervisor.core.rules.rules import Engine, Limits, Snapshot
from nsupervisor.core.rules.sampling import FASTEST_S, MOVING_COUNTER_S, next_sample_delay, quiescent_until


class ObservedRules(Protocol):
    """The rules that an observer shows snapshots to, and what it asks about their owner."""

    @property
    def engine(self) -> Engine:
        """The rules, with the state of each rule."""

    @property
    def generation(self) -> int | None:
        """The generation that a sample belongs to; None if no process lives, so that there is nothing to sample."""

    def observe(self, snapshot: Snapshot, limits: Limits, reported_at: float | None, now: float) -> None:
        """Show the rules a snapshot as of the time `now`.

        `reported_at` is when the kernel reported it, on the clock of `time.perf_counter`, if that is known.
        """


def _no_limit(now: float) -> float:
    return math.inf


@attrs.define(eq=False)
class RuleObserver:
    """Watches the files of one cgroup, and shows its rules what it reads."""

    cgroup: Cgroup
    watcher: Watcher
    rules: ObservedRules
    on_problem: Callable[[str], None]
    """Called with a deviation of the host from what a rule asks for, in words."""
    on_emptied: Callable[[], None] | None = None
    """Called when the last process of the cgroup has ended; None if that is not watched."""
    contains_cgroups: bool = False
    """Whether the processes are in cgroups inside this one. On v1, its event files do not notify of those."""
    has_limits: bool = True
    probe_values: Callable[[], Mapping[str, float]] = dict
    """Returns what the probes of the present generation have found (`Probes.condition_values`)."""
    longest_interval: Callable[[float], float] = _no_limit
    """Called before each sample, with its time; returns the most seconds until the next one."""
    started_at: float | None = attrs.field(init=False, default=None)
    """When the program was executed, on trio's clock; None while no program runs."""
    _limits: Limits | None = attrs.field(init=False, default=None)
    """The value of `limits` after it has been read."""
    _latest: Snapshot = attrs.field(init=False, factory=dict)
    """The latest sample of the level files that the rules have seen."""
    _shown_at: float = attrs.field(init=False, default=0.0)
    """When the rules saw that sample; `_sampled_at` is until when later samples were equal to it."""
    _sampled_at: float = attrs.field(init=False, default=0.0)
    _quiescent_until: float = attrs.field(init=False, default=0.0)
    """Until when the rules need not see an equal sample again."""
    _generation: int = attrs.field(init=False, default=0)
    """The generation that the latest sample belongs to."""
    _interval: float = attrs.field(init=False, default=0.0)
    _delay: float = attrs.field(init=False, default=FASTEST_S / 2)
    _uses_uptime: bool = attrs.field(init=False, default=False)
    """Whether any rule reads the uptime."""
    _uses_probe: bool = attrs.field(init=False, default=False)
    """Whether any rule reads the results of probes."""
    _files_read_along: list[str] = attrs.field(init=False, factory=list)
    """Event files that rules on level files read as well."""
    _samples_event_files: bool = attrs.field(init=False, default=False)

    @property
    def limits(self) -> Limits:
        """The limits in force, as the kernel has them; read when they are first needed, as most are not."""
        if self._limits is None:
            keys = (cgroup_file(key) for rule in self.rules.engine.rules for key in rule.set_)
            self._limits = self.cgroup.read_limits(keys) if self.has_limits else {}
        return self._limits

    # ---- what is watched

    def watch(self) -> None:
        """Watch exactly the files that the rules need: some files cost samples on some hosts.

        The rules see the present counters: a new rule compares later values with them, and one that was restored, or
        kept by a reload, fires if they have increased meanwhile. Raises CgroupError and OSError as `Watcher.add` does.
        """
        atoms = self._atoms()
        if not atoms and self.on_emptied is None:
            return
        files = dict.fromkeys(atom.file for atom in atoms if atom.kind != "stall" and atom.file not in NOT_FILES)
        notified = [file for file in files if self._is_notified(file)]
        levels = [file for file in files if file not in notified]
        self._files_read_along = [
            file for level in levels for file in self.rules.engine.files_read_with(level) if file in notified
        ]
        self._uses_uptime = any(atom.file == UPTIME for atom in atoms)
        self._uses_probe = any(atom.file == PROBE for atom in atoms)
        self._samples_event_files = any(map(has_notification, levels))
        events = notified if self.on_emptied is None else dict.fromkeys(("cgroup.events", *notified))
        self.watcher.add(self.cgroup, self._on_reading, events=events, levels=levels, on_sample=self.sample)
        self.read_counters()
        for stall in dict.fromkeys((atom.file, atom.key or "") for atom in atoms if atom.kind == "stall"):
            self._watch_pressure(*stall)

    def unwatch(self) -> None:
        """Stop watching; no callback comes after this."""
        self.watcher.remove(self.cgroup)

    def move_to(self, cgroup: Cgroup) -> None:
        """Watch another cgroup from now on, or the same one after it was created again."""
        self.unwatch()
        self.cgroup = cgroup
        self.refresh_limits()
        self.watch()

    def refresh_limits(self) -> None:
        """Read the limits again when they are next needed, after they have been changed."""
        self._limits, self._quiescent_until = None, 0.0

    def _is_notified(self, file: str) -> bool:
        return has_notification(file) and not (self.contains_cgroups and self.cgroup.is_v1(file))

    def _atoms(self) -> list[Atom]:
        return [atom for rule in self.rules.engine.rules for atom in rule.when.atoms]

    def _watch_pressure(self, file: str, key: str) -> None:
        """Set a pressure trigger in the kernel; if the kernel refuses, the watcher measures the stall itself."""
        kind, stall, window = key.split()

        def on_stall(reading: Reading) -> None:
            self.observe(file, {**reading.values, key: reading.values[f"{kind} total"]}, reading.read_at)

        base_line = {file: {key: self.read(file).get(f"{kind} total", 0.0)}}
        self.rules.observe(base_line, self.limits, None, trio.current_time())
        problem = self.watcher.add_stall(self.cgroup, file, kind, int(stall), int(window), on_stall)
        if problem:
            self.on_problem(problem)

    # ---- events

    def _on_reading(self, reading: Reading) -> None:
        """Handle a change of an event file."""
        if reading.file != "cgroup.events":
            self.observe(reading.file, reading.values, reading.read_at)
        elif self.on_emptied is not None and not reading.values.get("populated"):
            self.on_emptied()

    def observe(self, file: str, values: Mapping[str, float], reported_at: float | None) -> None:
        """Show the rules a reading, with the other files that rules on this one read."""
        other_files = [other for other in self.rules.engine.files_read_with(file) if other != file]
        snapshot = {file: values, **{other: self.read(other) for other in other_files}}
        self.rules.observe(snapshot, self.limits, reported_at, trio.current_time())

    def read_counters(self) -> None:
        """Show the rules every counter that they read, now: its notification may be late."""
        for file in dict.fromkeys(atom.file for atom in self._atoms() if atom.kind == "counter"):
            self.observe(file, self.read(file), None)

    # ---- the program

    def program_started(self) -> None:
        """Start sampling: the program has been executed."""
        self.started_at = trio.current_time()
        self.resume_sampling()

    def restore(self, started_at: float | None) -> None:
        """Continue for a program that an earlier supervisor started; call it before `watch`."""
        self.started_at = started_at

    def program_exited(self, exit_: Exit) -> None:
        """Show the rules how the program exited."""
        self.started_at = None
        if exit_.has_run and any(atom.file == EXIT for atom in self._atoms()):
            self.observe(EXIT, exit_.condition_values(), None)

    def probe_finished(self) -> None:
        """Show the rules the result of a probe."""
        if self._uses_probe:
            self.observe(PROBE, self.read(PROBE), None)
            self.resume_sampling()  # a rule may have to act after the time that it waits for

    # ---- samples

    def resume_sampling(self) -> None:
        """Sample the levels soon: the cgroup has processes again. Without rules there is nothing to sample."""
        if not self.rules.engine.rules:
            return
        self._quiescent_until, self._delay = 0.0, FASTEST_S / 2
        self.watcher.sample_now(self.cgroup)

    def sample(self, values: Snapshot) -> float:
        """Show the rules a sample of all level files; return the seconds until the next sample.

        Most samples of an idle cgroup are equal to the one before. The rules do not see those until something changes,
        and then make up for them in one step, because a rate needs to know until when nothing happened.
        """
        generation = self.rules.generation
        if generation is None:
            return math.inf
        if generation != self._generation:
            # Do not make up for the previous program's samples in this generation: its rules would act on them.
            self._generation, self._latest, self._sampled_at = generation, {}, self._shown_at
        now, reported_at, before = trio.current_time(), perf_counter(), self._latest
        longest = self.longest_interval(now)
        if self._files_read_along:
            values = {**values, **{file: self.read(file) for file in self._files_read_along}}
        same = all(reading is before.get(file) for file, reading in values.items())
        if same and now < self._quiescent_until:
            self._sampled_at = now
            return self._next_delay(longest)
        if self._sampled_at > self._shown_at:
            self.rules.observe(before, self.limits, None, self._sampled_at)
        snapshot = {**values, UPTIME: self.read(UPTIME)} if self._uses_uptime else values
        # Not in `_latest`: it would show the rules a result again after a later one.
        shown = {**snapshot, PROBE: self.read(PROBE)} if self._uses_probe else snapshot
        self.rules.observe(shown, self.limits, reported_at, now)
        engine = self.rules.engine
        self._interval = next_sample_delay(engine, before, snapshot, now - self._sampled_at, self.limits, now)
        self._quiescent_until = quiescent_until(engine, snapshot, self.limits, now) if same else now
        self._latest, self._sampled_at, self._shown_at = snapshot, now, now
        return self._next_delay(longest)

    def _next_delay(self, longest: float) -> float:
        """Return the sampling interval, but at most twice the time between the last two samples.

        A program that has just started may grow quickly, and how quickly shows only in the second sample.
        """
        self._delay = min(self._interval, max(2 * self._delay, FASTEST_S))
        return min(self._delay, longest, MOVING_COUNTER_S if self._samples_event_files else math.inf)

    # ---- files

    def read(self, file: str) -> Mapping[str, float]:
        """Return the values in a file of the cgroup; an empty mapping if this host does not have it (no controller).

        Only the files that the watcher watches stay open: with thousands of workloads, descriptors are scarce.
        """
        if file == PROBE:
            return dict(self.probe_values())
        if file in NOT_FILES:
            runs = file == UPTIME and self.started_at is not None
            return {"": trio.current_time() - (self.started_at or 0.0)} if runs else {}
        try:
            return self.cgroup.read_once(file)
        except CgroupError:
            return {}
