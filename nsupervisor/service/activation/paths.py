"""Starts, restarts and reloads of workloads because of files and directories.

Each path trigger has a task that looks at its path, in a thread, when an event of the kernel or the end of its workload
says so; `nsupervisor.core.path_triggers` decides. The state of each is saved after every change, so that a supervisor
that takes over finds what has changed meanwhile. An action is saved as pending until it has begun: after a kill it may
be done twice, and is never lost.

Other processes may change the paths as often as they like. So events are read in batches, with pauses that leave nine
tenths of a processor to others; an event that is lost makes every trigger look again; looks of all paths together are
paused in the same way; and there is one record for a problem, not one for each change.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import attrs
import trio

from nsupervisor.config.model import Config, WorkloadConfig
from nsupervisor.config.paths import PathConfig
from nsupervisor.core import events
from nsupervisor.core.decider import Transition, WorkloadInput, WorkloadState
from nsupervisor.core.initiators import Initiator
from nsupervisor.core.lifecycle import Instant
from nsupervisor.core.path_triggers import PathTriggerState, counts, on_action, on_look, on_request
from nsupervisor.core.pauses import pause_after
from nsupervisor.core.states import State
from nsupervisor.linux.inotify import IN_IGNORED, IN_Q_OVERFLOW, InotifyEvent
from nsupervisor.logs.threads import call_in_thread
from nsupervisor.service.context import ServiceContext
from nsupervisor.service.instance.actor import Actor
from nsupervisor.service.jobs.jobs import Jobs
from nsupervisor.service.platform.path_watcher import PathWatcher, Watch, WatchedLook
from nsupervisor.service.state.file import PathCheckpoint

MAX_WATCHES = 16_384
"""The most watches of all triggers."""
MAX_EARLY_EVENTS = 1024
"""Events of unknown watches that are kept while a look runs, which may be about to return these watches."""
MAX_PAUSE_S = 10.0
"""The longest pause after events, or after a look."""
MIN_PAUSE_S = 0.02
LOOK_TIMEOUT_S = 10.0
RETRY_INTERVAL_S = 60.0
"""Seconds until a path with a problem is looked at again, and between two records of its problems."""
MAX_LOOKS = 8
"""Looks at the same time. One that has not answered does not count any more; its path has no other before it ends."""
NO_CHECKPOINTS: Mapping[str, PathCheckpoint] = {}


@attrs.define(eq=False)
class _Call:
    """A look in a thread, which cannot be ended if its file system does not answer."""

    watcher: PathWatcher
    is_running: bool = False

    def run(self, config: PathConfig, own_logs: tuple[str, ...]) -> WatchedLook:
        """Look; in the thread."""
        self.is_running = True
        try:
            return self.watcher.look(config, own_logs)
        finally:
            self.is_running = False


@attrs.define(eq=False)
class _Trigger:
    """A path of a workload, and what is known of it."""

    workload: str
    config: PathConfig
    own_logs: tuple[str, ...]
    state: PathTriggerState = attrs.field(factory=PathTriggerState)
    problem: str = ""
    """Why it is not watched, in words; or ""."""
    watches: tuple[Watch, ...] = ()
    is_watched: bool = False
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    is_acting: bool = False
    """Whether an action has begun that is saved as pending."""
    has_changed: bool = False
    """Whether an event since the latest look is about the path itself."""
    latest_call: _Call | None = None
    reported_at: float = -RETRY_INTERVAL_S
    hint: trio.Event = attrs.field(factory=trio.Event)
    """Set when there is a reason to look."""
    first_event_at: float | None = None
    last_event_at: float = 0.0

    def configure(self, config: PathConfig, own_logs: tuple[str, ...]) -> None:
        """Take other keys of the same path."""
        self.config, self.own_logs = config, own_logs

    def set_state(self, state: PathTriggerState) -> None:
        """Note the state."""
        self.state = state

    def set_acting(self, is_acting: bool) -> None:
        """Note whether an action has begun that is saved as pending."""
        self.is_acting = is_acting

    def ask(self) -> None:
        """Have the task look."""
        self.hint.set()

    def on_event(self, is_target: bool, now: float) -> None:
        """Have the task look, once the path is quiet."""
        self.has_changed = self.has_changed or is_target
        if self.first_event_at is None:
            self.first_event_at = now
        self.last_event_at = now
        self.hint.set()

    async def wait(self, timeout_s: float) -> None:
        """Wait for a reason to look, and until the path is quiet, or has been busy for ten times `debounce_sec`."""
        with trio.move_on_after(timeout_s):
            await self.hint.wait()
        debounce = self.config.debounce_sec
        while self.first_event_at is not None:
            until = min(self.last_event_at + debounce, self.first_event_at + 10 * debounce)
            if trio.current_time() >= until:
                break
            await trio.sleep_until(until)
        self.hint = trio.Event()

    def begin_call(self, watcher: PathWatcher) -> _Call | None:
        """Return a new look for a thread; None while the one before has not answered: it would keep another thread."""
        if self.latest_call is not None and self.latest_call.is_running:
            return None
        self.latest_call = _Call(watcher)
        return self.latest_call

    def begin_look(self) -> bool:
        """Forget the reasons to look; return whether one of them was an event about the path itself."""
        has_changed, self.has_changed, self.first_event_at = self.has_changed, False, None
        return has_changed

    def set_look(self, watches: tuple[Watch, ...], problem: str, now: float) -> bool:
        """Note the result of a look; return whether a record of its problem is due."""
        is_due = bool(problem) and problem != self.problem and now - self.reported_at >= RETRY_INTERVAL_S
        if is_due:
            self.reported_at = now
        self.watches, self.problem, self.is_watched = watches, problem, not problem
        return is_due


@attrs.define(eq=False)
class PathTriggers:
    """The path triggers of all workloads of a configuration."""

    jobs: Jobs
    context: ServiceContext
    nursery: trio.Nursery
    _triggers: dict[str, dict[str, _Trigger]] = attrs.field(init=False, factory=dict)
    """By workload, and by `PathConfig.identity`."""
    _watcher: PathWatcher | None = attrs.field(init=False, default=None)
    _interests: dict[int, dict[_Trigger, list[Watch]]] = attrs.field(init=False, factory=dict)
    """By watch descriptor."""
    _looking: int = attrs.field(init=False, default=0)
    _early: list[InotifyEvent] = attrs.field(init=False, factory=list)
    """Events of unknown watches since a look began."""
    _free_at: float = attrs.field(init=False, default=-float("inf"))
    """When the next look may begin: all looks together leave nine tenths of a processor to others."""
    _slots: trio.CapacityLimiter = attrs.field(init=False, factory=lambda: trio.CapacityLimiter(MAX_LOOKS))

    # ---- queries

    def status_of(self, workload: str) -> list[dict[str, Any]]:
        """Return one object for each path of a workload: `Path` of `nsupervisor schema api`."""
        return [
            {
                "condition": trigger.config.condition,
                "path": trigger.config.path,
                "action": trigger.config.action,
                "is_watched": trigger.is_watched,
                "is_pending": trigger.state.is_pending,
                "is_suspended": trigger.state.is_suspended,
                "problem": _limit_text(trigger) if trigger.state.is_suspended else trigger.problem,
            }
            for trigger in self._triggers.get(workload, {}).values()
        ]

    # ---- changes from outside

    def begin(self, config: Config, saved: Mapping[str, PathCheckpoint]) -> None:
        """Watch the paths of a configuration; at the start only, after the first jobs have begun."""
        self.context.listeners.add(self._on_transition)
        for workload in saved.keys() - {name for name, workload in config.workloads.items() if workload.paths}:
            self.context.state.save_paths(workload, None)
        self.configure(config, saved)

    def configure(self, config: Config, saved: Mapping[str, PathCheckpoint] = NO_CHECKPOINTS) -> None:
        """Watch the paths of another configuration; those that stay keep their state."""
        before, self._triggers = self._triggers, {}
        for name, workload in config.workloads.items():
            known = before.pop(name, {})
            states = saved[name].triggers if name in saved else {}
            if not workload.paths and not known:
                continue
            for path in workload.paths:
                logs = _own_logs(workload, path, config.supervisor.log_directory)
                trigger = known.pop(path.identity, None)
                if trigger is None:
                    trigger = _Trigger(name, path, logs, states.get(path.identity, PathTriggerState()))
                    self.nursery.start_soon(self._run, trigger)
                else:
                    trigger.configure(path, logs)
                self._triggers.setdefault(name, {})[path.identity] = trigger
                trigger.ask()
            self._drop(known.values())
            self._save(name)
        for name, triggers in before.items():
            self._drop(triggers.values())
            self.context.state.save_paths(name, None)

    def _drop(self, triggers: Iterable[_Trigger]) -> None:
        for trigger in triggers:
            trigger.scope.cancel()
            self._set_watches(trigger, ())

    def _on_transition(
        self,
        name: str,
        workload: WorkloadConfig,
        before: WorkloadState,
        input_: WorkloadInput,
        _instant: Instant,
        transition: Transition,
    ) -> None:
        """Take a transition of an instance: it may be down now, or be started by a request."""
        if not self._triggers:
            return
        triggers = self._triggers.get(workload.name, {})
        command = transition.lifecycle_input
        if triggers and isinstance(command, events.Start | events.Restart) and command.requested_by.is_request:
            for trigger in triggers.values():
                trigger.set_state(on_request(trigger.state))
            self._save(workload.name)
        if triggers and transition.state.lifecycle.generation > before.lifecycle.generation:
            for trigger in triggers.values():
                if not trigger.config.is_level and trigger.state.is_pending:  # the new program finds the change
                    trigger.set_state(attrs.evolve(trigger.state, is_pending=False))
            self._save(workload.name)
        has_settled = before.lifecycle.state is not transition.state.lifecycle.state
        for trigger in triggers.values():
            if has_settled and (trigger.state.is_pending or trigger.config.is_level):
                trigger.ask()
        for others in self._triggers.values() if has_settled else ():
            for trigger in others.values():
                if trigger.state.is_pending and not trigger.state.is_suspended:
                    trigger.ask()  # it may have waited for this workload

    # ---- the tasks

    async def _run(self, trigger: _Trigger) -> None:
        """Look at a path whenever there is a reason, and act; until the trigger is dropped."""
        with trigger.scope:
            if self._watcher is None:
                try:
                    self._watcher = self.context.kernel.open_path_watcher()
                except OSError as error:
                    self._report(trigger, (), f"cannot watch {trigger.config.path}: {error}")
                    return
                self.nursery.start_soon(self._read, self._watcher)
            while True:
                await trigger.wait(RETRY_INTERVAL_S if trigger.problem else float("inf"))
                has_changed = trigger.begin_look()
                result = await self._look(self._watcher, trigger)
                if trigger.scope.cancel_called:
                    return
                is_watched = self._set_watches(trigger, result.watches)
                self._report(trigger, result.watches, result.problem or ("" if is_watched else _watches_text(trigger)))
                self._apply_early_events()
                if result.look is not None:
                    state = on_look(trigger.state, trigger.config, result.look, has_changed)
                    if state != trigger.state:
                        trigger.set_state(state)
                        self._save(trigger.workload)
                    self._act(trigger)
                await trio.sleep(MIN_PAUSE_S)

    async def _look(self, watcher: PathWatcher, trigger: _Trigger) -> WatchedLook:
        async with self._slots:
            await trio.sleep_until(self._free_at)
            self._looking += 1
            try:
                with trio.move_on_after(LOOK_TIMEOUT_S):
                    if (call := trigger.begin_call(watcher)) is not None:
                        result: WatchedLook = await call_in_thread(
                            *(call.run, trigger.config, trigger.own_logs),
                            abandon_on_cancel=True,
                            limiter=trio.CapacityLimiter(1),  # the default one is for all of the service
                        )
                        pause = min(pause_after(result.cost_s), MAX_PAUSE_S)
                        self._free_at = max(self._free_at, trio.current_time()) + pause
                        return result
            finally:
                self._looking -= 1
        return WatchedLook(None, trigger.watches, f"{trigger.config.path} does not answer: look at its file system")

    def _report(self, trigger: _Trigger, watches: tuple[Watch, ...], problem: str) -> None:
        if trigger.set_look(watches, problem, trio.current_time()):
            self.context.journal.log.warning("warning", workload=trigger.workload, message=problem)

    async def _read(self, watcher: PathWatcher) -> None:
        """Read events until cancelled."""
        try:
            while True:
                await watcher.wait()
                began_at = trio.current_time()
                for event in watcher.read():
                    self._on_event(event)
                pause = pause_after(trio.current_time() - began_at)
                await trio.sleep(min(max(pause, MIN_PAUSE_S), MAX_PAUSE_S))
        finally:
            watcher.close()

    def _on_event(self, event: InotifyEvent) -> None:
        now = trio.current_time()
        if event.mask & IN_Q_OVERFLOW:
            for triggers in self._triggers.values():
                for trigger in triggers.values():
                    trigger.on_event(False, now)  # what has changed is found by its fingerprint
            return
        interests = self._interests.get(event.wd)
        if interests is None:
            if not self._looking and not event.mask & IN_IGNORED and self._watcher is not None:
                self._watcher.remove(event.wd)  # made by a look whose trigger was dropped
            if self._looking and len(self._early) < MAX_EARLY_EVENTS:
                self._early.append(event)
            elif self._looking:
                self._early = [InotifyEvent(-1, IN_Q_OVERFLOW)]
            return
        for trigger, watches in interests.items():
            for watch in watches:
                is_about = not event.name or watch.name == event.name
                if watch.name is None and event.name:
                    is_about = counts(trigger.config, event.name, trigger.own_logs)
                if is_about:
                    trigger.on_event(watch.is_target and bool(event.name), now)
        if event.mask & IN_IGNORED:
            del self._interests[event.wd]

    def _apply_early_events(self) -> None:
        """Take the events of watches that were not known yet."""
        early, self._early = self._early, []
        for event in early:
            if event.wd in self._interests or event.mask & IN_Q_OVERFLOW:
                self._on_event(event)
            elif self._looking:
                self._early.append(event)

    def _set_watches(self, trigger: _Trigger, watches: tuple[Watch, ...]) -> bool:
        """Replace the watches of a trigger, and end those that no trigger has; return whether the limit allows all."""
        wanted: dict[int, list[Watch]] = {}
        for watch in watches:
            wanted.setdefault(watch.wd, []).append(watch)
        for wd in {watch.wd for watch in trigger.watches} - wanted.keys():
            interests = self._interests.get(wd, {})
            interests.pop(trigger, None)
            if wd in self._interests and not interests:
                del self._interests[wd]
                if self._watcher is not None:
                    self._watcher.remove(wd)
        is_complete = True
        for wd, those in wanted.items():
            if wd in self._interests or len(self._interests) < MAX_WATCHES:
                self._interests.setdefault(wd, {})[trigger] = those
            else:
                is_complete = False
                if self._watcher is not None:
                    self._watcher.remove(wd)
        return is_complete

    # ---- actions

    def _act(self, trigger: _Trigger) -> None:
        """Do what is due and possible; what is not possible yet stays pending."""
        state, action = trigger.state, trigger.config.action
        if not state.is_pending or state.is_suspended or self.jobs.is_stopping or trigger.is_acting:
            return
        actors = self._startable(trigger) if action == "start" else self._running(trigger)
        if not actors:
            if action != "start" and not self._is_starting(trigger):  # its next start finds the change anyway
                trigger.set_state(attrs.evolve(state, is_pending=False))
                self._save(trigger.workload)
            return
        state = on_action(state, trigger.config, trio.current_time())
        trigger.set_state(state)
        if state.is_suspended:
            self._save(trigger.workload)
            self.context.journal.log.error("warning", workload=trigger.workload, message=_limit_text(trigger))
            return
        by = Initiator("path", trigger.config.path)
        if action == "start":
            self.jobs.start(extra=actors, by=by)
            self._save(trigger.workload)
        else:
            trigger.set_acting(True)
            self._save(trigger.workload)
            self.nursery.start_soon(self._carry_out, trigger, actors, by)

    async def _carry_out(self, trigger: _Trigger, actors: list[Actor], by: Initiator) -> None:
        """Restart or reload instances, one after the other."""
        for actor in actors:
            if trigger.config.action == "restart":
                is_done, message = await self.jobs.restart_and_wait(actor, by)
            else:
                is_done, message = await actor.reload(by)
            if not is_done:
                text = f"{actor.name}: not {trigger.config.action}ed because of {trigger.config.path}: {message}"
                self.context.journal.log.warning("warning", workload=actor.name, message=text)
        trigger.set_acting(False)
        self._save(trigger.workload)
        trigger.ask()

    def _startable(self, trigger: _Trigger) -> list[Actor]:
        """Return the instances that a path starts: those that are down by themselves."""
        workload = trigger.workload
        if not all(map(self.jobs.is_down, self.jobs.actors.instances(workload))):
            return []
        if self.jobs.start_obstacle(workload) is not None:
            return []
        return self.jobs.startable(workload)

    def _running(self, trigger: _Trigger) -> list[Actor]:
        return [
            actor
            for actor in self.jobs.actors.instances(trigger.workload)
            if actor.lifecycle.state in (State.RUNNING, State.READY) and self.jobs.removal_of(actor) is None
        ]

    def _is_starting(self, trigger: _Trigger) -> bool:
        return any(
            actor.lifecycle.state in (State.STARTING, State.FROZEN)
            for actor in self.jobs.actors.instances(trigger.workload)
        )

    def _save(self, workload: str) -> None:
        triggers = self._triggers.get(workload)
        if not triggers:
            self.context.state.save_paths(workload, None)
            return
        states = {
            identity: attrs.evolve(trigger.state, is_pending=True) if trigger.is_acting else trigger.state
            for identity, trigger in triggers.items()
        }
        self.context.state.save_paths(workload, PathCheckpoint(states))


def _own_logs(workload: WorkloadConfig, path: PathConfig, log_directory: str) -> tuple[str, ...]:
    """Return the names of the workload's log files in the directory of a path."""
    files = workload.own_log_files(log_directory)
    return tuple(os.path.basename(file) for file in files if os.path.dirname(file) == path.watched_path)


def _watches_text(trigger: _Trigger) -> str:
    return (
        f"cannot watch {trigger.config.path}: the service has {MAX_WATCHES} watches, the most that it makes; it looks "
        f"every {RETRY_INTERVAL_S:g} s instead: remove other paths"
    )


def _limit_text(trigger: _Trigger) -> str:
    config = trigger.config
    return (
        f"{config.condition} {config.path} has acted {config.trigger_limit_burst} times within "
        f"{config.trigger_limit_interval_sec:g} s, which may be a loop, and is suspended: look whether the program "
        f"itself causes it, then run: nsupervisor start {trigger.workload}"
    )
