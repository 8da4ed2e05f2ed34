"""The actor of one workload instance while the service runs: events in, actions out.

The actor decides nothing. It handles the messages in its mailbox one by one (the keeper's reports, the watcher's
readings, commands of operators), turns each into an input for `nsupervisor.core.decider`, carries out the resulting
actions and records them in the journal.

The order of two things at a program's exit matters. The counters of its cgroup are read *before* the lifecycle handles
the exit: the kernel counts an OOM kill before it sends the SIGKILL, but the notification of the count may arrive after
the report of the exit, and a rule on the count must see it while its generation is still current.
"""

import contextlib
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs
import trio

from nsupervisor.cgroups import Cgroup, CgroupError, CgroupGoneError, Reading
from nsupervisor.cgroups.membership import is_part_of
from nsupervisor.config.load import ConfigError
from nsupervisor.config.model import Resources, Workload
from nsupervisor.core import events
from nsupervisor.core.actions import Action, Complain, FreezeAll, KillAll, Signal, Spawn, ThawAll
from nsupervisor.core.exits import Exit, signal_name
from nsupervisor.core.lifecycle import Life, State
from nsupervisor.core.mind import Adopt, Mind, Sentence, Thought
from nsupervisor.core.rules import Engine, Fired
from nsupervisor.keeper.told import Ended, Execed, Failure, KeeperLost, SpawnError
from nsupervisor.metrics.counters import Counters
from nsupervisor.service.ends import Ends
from nsupervisor.service.identity import IdentityError
from nsupervisor.service.judge import Hands, Judge
from nsupervisor.service.mailbox import Again, Asked, Leave, Mailbox, Message, Nudge
from nsupervisor.service.notify import attend, host_owner, notify_socket, socket_path
from nsupervisor.service.output import Output
from nsupervisor.service.setting import Setter
from nsupervisor.service.spec import cover, file_variables, spawn_spec
from nsupervisor.service.state import End
from nsupervisor.service.status import status
from nsupervisor.service.step import tell
from nsupervisor.service.thinker import Thinker
from nsupervisor.service.trail import Trail, essence
from nsupervisor.service.voice import Voice
from nsupervisor.service.world import World

if TYPE_CHECKING:
    from nsupervisor.service.group import Group

_DOING: Mapping[type[Action], str] = {
    Spawn: "start",
    Signal: "signal",
    KillAll: "kill",
    FreezeAll: "freeze",
    ThawAll: "thaw",
    Complain: "complain",
}
"""Names of actions in the record of a failure, as in traces."""


@attrs.define(eq=False)
class Leaving:
    """The removal of an instance by one reload; a later reload may cancel it."""

    wanted: bool
    """Whether the instance was to run when the removal began."""


@attrs.define(eq=False)
class Actor:
    """Runs one workload instance. `name` is "web", or "web@2" if there are several instances."""

    name: str
    workload: Workload
    instance: int | None
    cgroup: Cgroup
    world: World
    waits_for: str = ""
    """The workloads that its start waits for, in words, or ""."""
    pid: int | None = None
    """The program's pid, in the host's PID namespace."""
    last_exit: Exit | None = None
    groups: tuple["Group", ...] = ()
    """The groups that contain it, the outermost first, and the host; set by `Groups.add`."""
    moves_to: Callable[[Resources], Cgroup] | None = None
    """Makes the cgroup for its next generation, with these limits; None if it keeps the present one."""
    pending: trio.CancelScope | None = None
    """The start that waits for other workloads, so that a stop can cancel it."""
    leaving: Leaving | None = None
    """Set while a reload removes the instance."""
    configured: Workload = attrs.field(init=False)
    """The workload as in the configuration file; `workload` lacks the rules that this host cannot evaluate."""
    counters: Counters = attrs.field(init=False, factory=Counters)
    setter: Setter = attrs.field(init=False)
    thinker: Thinker = attrs.field(init=False)
    judge: Judge = attrs.field(init=False)
    output: Output = attrs.field(init=False)
    voice: Voice = attrs.field(init=False)
    ends: Ends = attrs.field(init=False)
    mail: Mailbox = attrs.field(init=False, factory=Mailbox)
    _changed: trio.lowlevel.ParkingLot = attrs.field(init=False, factory=trio.lowlevel.ParkingLot)
    trail: Trail = attrs.field(init=False, factory=Trail)
    notify: int = attrs.field(init=False, default=-1)
    """The current generation's notify socket, or -1."""
    starting: bool = attrs.field(init=False, default=False)
    """Whether the keeper is being asked to start a generation."""
    catch_up: Callable[[], Awaitable[None]] | None = attrs.field(init=False, default=None)
    """The first step to take if an earlier supervisor left a lifecycle."""
    _stillborn: str = ""
    """The id of the latest start that failed. If it was killed in its set-up, its later exit report is ignored."""
    _listening: contextlib.ExitStack = attrs.field(init=False, factory=contextlib.ExitStack)
    """This generation's notify socket and the task that reads it."""

    def __attrs_post_init__(self) -> None:
        self.configured = self.workload
        mind = Mind(Life(), Engine.of(self.workload.policy))
        self.thinker = Thinker(self.name, self.workload, mind, self.world.listeners)
        hands = Hands(self.say, self._follow, lambda *args: self.setter.adjust(*args), lambda: self.post(Nudge()))
        self.voice = Voice(self.name, self.instance, self.world.journal)
        self.ends = Ends(self.voice, self.world.nursery, self.remember)
        self.judge = Judge(self.cgroup, self.counters, self.world, hands, self.thinker)
        nursery, refresh, resources = self.world.nursery, self._limits_changed, self.workload.resources
        self.setter = Setter(self.cgroup, self.workload, nursery, self.say, refresh, resources)
        self.output = Output(self.name, self.instance, self.workload.log, self.counters, self.world)

    @property
    def life(self) -> Life:
        """The current state of the lifecycle."""
        return self.thinker.mind.life

    # ---- operations for other objects

    def post(self, message: Message) -> None:
        """Queue a message for the actor; never blocks."""
        self.mail.post(message)

    async def ask(self, wish: events.Wish) -> None:
        """Post a command and wait until it has been handled; `lifecycle` then shows its immediate effect."""
        await self.mail.ask(wish)

    async def until(self, reached: Callable[[Life], bool]) -> None:
        """Wait until `condition(lifecycle)` is true; it is checked after each change."""
        while not reached(self.life):
            await self._changed.park()

    def poke(self) -> None:
        """Check the conditions of `wait_until` again, after a change outside the lifecycle (`pending_start`)."""
        self._changed.unpark_all()

    async def run(self) -> None:
        """Handle messages until `retire`."""
        self.judge.watch(self._hear, anew=self.catch_up is None)
        if self.catch_up is not None:
            await self.catch_up()
        while not isinstance(message := await self.mail.next(self.life.deadline), Leave):
            await self._take(message)
        self.mail.close()
        self.world.watcher.remove(self.cgroup)
        self._changed.unpark_all()

    async def retire(self) -> None:
        """Stop the task of this actor, after all messages in its mailbox; the program has stopped before."""
        self.post(Leave())
        await self.mail.closed.wait()

    def remember(self) -> None:
        """Save the checkpoint for the next supervisor."""
        if not self.mail.closed.is_set():
            self.world.state.keep(self.name, self.trail.record(self))

    async def drained(self) -> None:
        """Wait until all output of ended generations has been read, and their exits have been recorded."""
        await self.output.drained()
        await self.ends.told()

    async def signal(self, signum: int) -> bool:
        """Send a signal to the program for an operator; return False if none runs."""
        if not self.life.alive:
            return False
        self.say("action", action="signal", cause={"by": "operator"}, signal=signal_name(signum))
        return await self.world.keeper.signal(self.id, signum)

    async def change(self, changes: Mapping[str, Any], by: str = "operator") -> tuple[bool, str]:
        """Call `LimitWriter.change_limits`; this needs no message, since no pending decision depends on limits."""
        return await self.setter.change(changes, by)

    @property
    def resources(self) -> Resources:
        """The limits in force: the configured ones, with later changes by operators and rules."""
        return self.setter.resources

    def _limits_changed(self) -> None:
        self.judge.refresh()
        self.remember()

    async def remeasure(self) -> str:
        """Write percentage limits again after a limit of an enclosing group changed; return the problem, or ""."""
        return await self.setter.remeasure()

    def sentence(self, fired: Fired, generation: int) -> None:
        """Queue the action of a group's rule that chose this instance; it is dropped if the generation has ended."""
        self.thinker.take(Sentence(generation, fired))
        self.post(Nudge())

    def adopt(self, configured: Workload, workload: Workload) -> None:
        """Switch to another configuration of this workload; what needs a new process applies to the next one.

        `configured` is the workload as in the file, `workload` the one without the rules that this host cannot
        evaluate. The limits are changed by `LimitWriter`.
        """
        rules = self.workload.policy != workload.policy
        if rules:
            self.judge.look_at_counters()  # changes so far belong to the old rules
        if workload.log != self.workload.log:
            self.output.change(workload.log)
        if workload != self.workload:
            self.thinker.take(Adopt(workload))
        self.configured = configured
        self.workload = self.setter.workload = workload
        if rules:
            try:
                self.world.watcher.remove(self.cgroup)
                self.judge.watch(self._hear)
                self.judge.refresh()
            except (CgroupError, OSError) as error:
                self.say("warning", "error", message=f"its rules get no news: {error}")
            if self.life.alive:
                self.judge.resume()

    @property
    def up(self) -> bool:
        """Whether dependents may start: the workload is up, or has done its single job."""
        state = self.life.state
        if state is State.RUNNING:
            return self.workload.type == "simple"
        return state is State.READY or (state is State.EXITED and self.workload.type == "oneshot")

    # ---- messages

    async def _take(self, message: Message) -> None:
        match message:
            case Reading(values=values):
                if not values.get("populated"):
                    await self._happen(events.Emptied(self.life.generation))
            case Nudge():
                await self.judge.carry_out()
                self.remember()
            case Execed(id=self._stillborn):
                pass
            case Execed(id=id_, pid=pid):
                if id_ == self.id and self.trail.body is None:
                    self.trail.executed(self.pid or pid, pid)
                    self.pid = pid
                    self.say("started", pid=pid)
                    self.judge.began()
                    for group in self.groups:
                        group.resume()
                    self.output.begin(self.life.generation, pid)
                await self._happen(events.Execed(_generation(id_)))
                self.remember()
            case Again():
                if self.life.state is State.STARTING and self.trail.body is None:
                    await self._clear()
                    await self._spawn(self.life.generation)
            case Ended():
                await self._ended(message)
            case Asked(wish=wish, heard=heard):
                await self._happen(wish)
                heard.set()
            case events.Event():
                await self._happen(message)

    async def _ended(self, ended: Ended) -> None:
        if ended.id != self.id or ended.id == self._stillborn or self.life.exit is not None:
            await self.world.keeper.acknowledge(ended.id)
            return
        self.voice.hold()  # start the next generation first, and write the records afterwards
        self.judge.look_at_counters()
        await self.judge.carry_out()
        generation = self.life.generation
        exit_ = self.say_end(ended.status, ended.failure)
        if exit_.failure is None:
            self.judge.exited(exit_)
            await self.judge.carry_out()
        self.output.begin(generation, self.pid)
        self.pid = None
        self.trail.end()
        self._listening.close()
        await self._happen(events.Exited(generation, exit_, self.populated()))
        self.ends.settle()
        await self.world.keeper.acknowledge(ended.id)

    def say_end(self, status: int, failure: Failure | None) -> Exit:
        """Report how this generation ended, from its wait status and the OOM kills that its cgroup has counted."""
        oom_kills = self.read("memory.events").get("oom_kill", 0.0)
        reason = failure.message if failure else None
        self.last_exit = Exit.from_wait_status(status, oom_killed=oom_kills > self.trail.oom_kills, failure=reason)
        self.trail.oom_kills = oom_kills
        self.ends.say(End(self.life.generation, self.last_exit, self.pid))
        return self.last_exit

    def _hear(self, reading: Reading) -> None:
        """Handle a reading of the watcher at once: most samples change nothing, and need not wake the actor."""
        if reading.file == "cgroup.events":
            self.post(reading)
        else:
            self.judge.look(reading.file, reading.values, reading.at)

    # ---- the lifecycle

    async def _happen(self, event: events.Event) -> None:
        await self._follow(self.life, self.thinker.take(event))

    async def _follow(self, old: Life, thought: Thought) -> None:
        """Record and carry out a transition that an input or a pending action has caused."""
        if self.life is old and not thought.actions:
            return
        if thought.event is not None:
            self.counters.stepped(old, thought.event, self.life, self.workload)
            tell(self, old, thought.event)
        # Save before acting: the next supervisor completes what this one has decided. A start is the exception: it is
        # saved while the keeper works on it, since the keeper's table, or the cgroup, will show it.
        starts = any(isinstance(action, Spawn) for action in thought.actions)
        self.trail.acting = bool(thought.actions) and not starts
        if not starts:
            self.remember()
        for action in thought.actions:
            await self.do(action)
        if self.trail.acting:
            self.trail.acting = False
            self.remember()
        self._changed.unpark_all()

    async def do(self, action: Action) -> None:
        """Carry out one action; a failure is logged."""
        try:
            match action:
                case Spawn(generation=generation):
                    await self._spawn(generation)
                case Signal(signal=signum, everyone=everyone):
                    if everyone:
                        self.cgroup.signal(signum)
                    else:
                        await self.world.keeper.signal(self.id, signum)
                case KillAll():
                    self.cgroup.kill()
                case FreezeAll():
                    self.cgroup.freeze()
                case ThawAll():
                    self.cgroup.thaw()
                case Complain(text=text):
                    self.say("warning", "warning", message=text)
        except (OSError, CgroupError) as error:
            self.say("warning", "error", message=f"{_DOING[type(action)]}: {error}")

    async def _spawn(self, generation: int) -> None:
        self.starting = True
        try:
            while not await self._try_spawn(generation):
                await self._clear()
        finally:
            self.starting = False

    async def _clear(self) -> None:
        """Kill what a start may have left when the keeper was lost in the middle of it, so that nothing runs twice.

        A program whose set-up is not complete ends by itself, since its report has no reader. Any other was in the
        cgroup before the keeper died.
        """
        self._listening.close()
        if self.populated():
            self.cgroup.kill()
            while self.populated():  # noqa: ASYNC110 - rare and brief
                await trio.sleep(0.005)

    async def _try_spawn(self, generation: int) -> bool:
        """Start a generation; return whether the outcome is known, which is also the case if the start has failed."""
        try:
            if self.populated():
                pids = ", ".join(map(str, self.cgroup.procs()[:5]))
                raise CgroupError(f"its cgroup {self.cgroup.path} is still populated (pids {pids}); end them first")
            if self.moves_to is not None:
                await self.setter.settled()
                self._move(self.moves_to(self.resources))
            elif self.cgroup.killed:
                await self.setter.settled()
                self.world.watcher.remove(self.cgroup)
                self.cgroup.renew(self.resources)
                self.setter.given = self.resources
                self.judge.refresh()
                self.judge.watch(self._hear)
            await self.setter.catch_up()
            self.trail.oom_kills = self.read("memory.events").get("oom_kill", 0.0)
            variables = file_variables(self.workload)
            who, directory, self.notify = (self.workload, self.name, self.instance), self.world.directory, -1
            spec = spawn_spec(*who, generation, self.cgroup, directory, variables)
            own = self.listen(host_owner(spec))[1] if self.workload.speaks else {}
            spec["env"] |= own
            if self.workload.namespaces.mount:
                spec["cover"] = cover(self.workload, directory, own.get("NOTIFY_SOCKET"))
            spawned = await self.world.keeper.spawn(spec, self._meanwhile, self.notify)
        except KeeperLost:
            return False
        except (IdentityError, ConfigError, CgroupError, SpawnError, OSError) as error:
            exit_ = Exit(failure=error.message if isinstance(error, SpawnError) else str(error))
            self.last_exit = exit_
            self._stillborn = f"{self.name}#{generation}"
            self._listening.close()
            self.ends.say(End(generation, exit_))
            self.ends.settle()
            self.post(events.Exited(generation, exit_, populated=False))
            return True
        self.pid = spawned.pid
        seal = self.world.seal
        files = seal.print(variables) if self.workload.environment_file else ""
        self.trail.spawned(spawned, seal.print(essence(spec)), files)
        self.output.expect(spawned)
        return True

    def _move(self, cgroup: Cgroup) -> None:
        """Continue in another cgroup; the old one is empty and is removed."""
        self.world.watcher.remove(self.cgroup)
        self.cgroup.remove()
        self.moves_to = None
        self.cgroup = self.judge.cgroup = self.setter.cgroup = cgroup
        self.judge.refresh()
        self.judge.watch(self._hear)

    def _meanwhile(self) -> None:
        """Do while a start is in progress what must not delay it: write held records, and save the checkpoint."""
        self.voice.release()
        self.remember()

    # ---- sd_notify(3)

    def listen(
        self, owner: tuple[int, int] | None = None, fd: int = -1, again: bool = False
    ) -> tuple[int, dict[str, str]]:
        """Open this generation's notify socket, or continue with that of an earlier supervisor; `again`: it was lost.

        Returns its descriptor, and the environment variables that name it to the program.
        """
        path = socket_path(self.world.directory, self.id, self.world.seal.token(self.id), again)
        ours = self._listening.enter_context(notify_socket(path, owner, fd))
        scope = trio.CancelScope()
        self._listening.callback(scope.cancel)
        on_notification = partial(self._said, self.life.generation)
        is_own = partial(is_part_of, instance=self.name, tree=self.world.keeper.tree)
        self.world.nursery.start_soon(attend, ours, scope, self.workload.watchdog_sec, on_notification, is_own)
        variables = {"NOTIFY_SOCKET": str(ours.path)}
        if self.workload.watchdog_sec:
            variables["WATCHDOG_USEC"] = str(round(self.workload.watchdog_sec * 1e6))
        self.notify = ours.socket.fileno()
        return self.notify, variables

    def _said(self, generation: int, what: str, text: str) -> None:
        if what == "READY":
            self.post(events.Ready(generation))
        elif what == "STATUS":
            self.say("status", message=text)
        elif what == "REFUSED":
            self.say("notify refused", "warning", message=text)
        elif self.life.state is not State.FROZEN:  # a frozen program cannot report that it is healthy
            self.post(events.Unhealthy(generation, text))

    # ---- helpers

    @property
    def id(self) -> str:
        """The current generation's id in the keeper."""
        return f"{self.name}#{self.life.generation}"

    def read(self, file: str) -> Mapping[str, float]:
        """Read a file of the cgroup, as `PolicyRunner.read` does."""
        return self.judge.read(file)

    @property
    def limits(self) -> Mapping[str, float | None]:
        """The limits in force, as the kernel has them."""
        return self.judge.limits

    def populated(self) -> bool:
        """Return whether the cgroup has processes; if so, the watcher will report when it becomes empty."""
        try:
            return self.world.watcher.read(self.cgroup, "cgroup.events")["populated"] == 1
        except CgroupGoneError:
            return False

    def say(self, event: str, level: str = "info", **fields: Any) -> dict[str, Any]:
        """Write a record about the current generation."""
        return self.voice.say(self.life.generation, event, level, **fields)

    def status(self) -> dict[str, Any]:
        """Return the object that `status --json` shows for this instance."""
        return status(self)


def _generation(id_: str) -> int:
    return int(id_.rpartition("#")[2])
