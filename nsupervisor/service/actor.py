"""One workload instance while the service runs: facts in, actions out.

The actor decides nothing. It takes messages from its mailbox one by one (the keeper's reports, the watcher's readings,
people's wishes), turns each into an event or a reading for `nsupervisor.core.mind`, does what that answers, and says so
in the journal.

The order of two things at a program's end matters. The counters of its cgroup are read *before* its exit is told to the
lifecycle: the kernel counts an OOM kill before it sends the SIGKILL, but our notice of the count may come after the
notice of the death, and a rule on it must be heard while the generation it is about still counts.
"""

import contextlib
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs
import trio

from nsupervisor.cgroups import Cgroup, CgroupError, CgroupGoneError, Reading
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
from nsupervisor.service.notify import attend, host_owner, notify_socket
from nsupervisor.service.output import Output
from nsupervisor.service.setting import Setter
from nsupervisor.service.spec import file_variables, spawn_spec
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
"""What a record of something that failed calls it, as traces do."""


@attrs.define(eq=False)
class Leaving:
    """One reload's removal of an instance; a later reload may call it off."""

    wanted: bool
    """It was to run until then."""


@attrs.define(eq=False)
class Actor:
    """The shell around one workload instance. ``name`` is "web", or "web@2" where there are several."""

    name: str
    workload: Workload
    instance: int | None
    cgroup: Cgroup
    world: World
    waits_for: str = ""
    """While its start waits for other workloads: which, in words."""
    pid: int | None = None
    """The program's pid, in the host's PID namespace."""
    last_exit: Exit | None = None
    groups: tuple["Group", ...] = ()
    """Those that it is in, the outermost first, and the host; `Groups.add` says so."""
    moves_to: Callable[[Resources], Cgroup] | None = None
    """Makes the cgroup in which its next generation is to live, with these limits; None where it stays."""
    pending: trio.CancelScope | None = None
    """The start that waits for other workloads, so that a stop can call it off."""
    leaving: Leaving | None = None
    """While it goes, by a reload."""
    configured: Workload = attrs.field(init=False)
    """The workload as the file has it; `workload` is without the rules that this host cannot have."""
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
    """The present generation's notify socket."""
    starting: bool = attrs.field(init=False, default=False)
    """The keeper is being asked to start a generation."""
    catch_up: Callable[[], Awaitable[None]] | None = attrs.field(init=False, default=None)
    """What has to be done first where an earlier supervisor has left a life."""
    _stillborn: str = ""
    """The id of the latest start that failed. Where it was killed at birth its end comes later, and is no news."""
    _listening: contextlib.ExitStack = attrs.field(init=False, factory=contextlib.ExitStack)
    """This generation's notify socket and the task that reads it."""

    def __attrs_post_init__(self) -> None:
        self.configured = self.workload
        mind = Mind(Life(), Engine.of(self.workload.policy))
        self.thinker = Thinker(self.name, self.workload, mind, self.world.listeners)
        hands = Hands(self.say, self._follow, lambda *what: self.setter.adjust(*what), lambda: self.post(Nudge()))
        self.voice = Voice(self.name, self.instance, self.world.journal)
        self.ends = Ends(self.voice, self.world.nursery, self.remember)
        self.judge = Judge(self.cgroup, self.counters, self.world, hands, self.thinker)
        nursery, refresh, resources = self.world.nursery, self._limits_changed, self.workload.resources
        self.setter = Setter(self.cgroup, self.workload, nursery, self.say, refresh, resources)
        self.output = Output(self.name, self.instance, self.workload.log, self.counters, self.world)

    @property
    def life(self) -> Life:
        """Where it stands."""
        return self.thinker.mind.life

    # ---- what others may do

    def post(self, message: Message) -> None:
        """Leave a message; it is taken in its turn. Never blocks."""
        self.mail.post(message)

    async def ask(self, wish: events.Wish) -> None:
        """Post a wish and wait until it has been heard: the life then shows what it led to at once."""
        await self.mail.ask(wish)

    async def until(self, reached: Callable[[Life], bool]) -> None:
        """Wait until ``reached(life)`` holds; it is asked again after each change."""
        while not reached(self.life):
            await self._changed.park()

    def poke(self) -> None:
        """Something outside the life has changed that somebody may wait for (`pending`)."""
        self._changed.unpark_all()

    async def run(self) -> None:
        """Take messages until `retire`."""
        self.judge.watch(self._hear, anew=self.catch_up is None)
        if self.catch_up is not None:
            await self.catch_up()
        while not isinstance(message := await self.mail.next(self.life.deadline), Leave):
            await self._take(message)
        self.mail.close()
        self.world.watcher.remove(self.cgroup)
        self._changed.unpark_all()

    async def retire(self) -> None:
        """End it, stopped as it is, after all that it has yet to hear."""
        self.post(Leave())
        await self.mail.closed.wait()

    def remember(self) -> None:
        """Leave word for the supervisor that comes after this one."""
        if not self.mail.closed.is_set():
            self.world.state.keep(self.name, self.trail.record(self))

    async def drained(self) -> None:
        """Wait until all output of generations that have ended has been read, and how they ended has been told."""
        await self.output.drained()
        await self.ends.told()

    async def signal(self, signum: int) -> bool:
        """Send a signal to the program, as an operator asks; False when there is none."""
        if not self.life.alive:
            return False
        self.say("action", action="signal", cause={"by": "operator"}, signal=signal_name(signum))
        return await self.world.keeper.signal(self.id, signum)

    async def change(self, changes: Mapping[str, Any], by: str = "operator") -> tuple[bool, str]:
        """As `Setter.change`. No message: the limits take part in no decision that could be half done now."""
        return await self.setter.change(changes, by)

    @property
    def resources(self) -> Resources:
        """The limits in force: the configuration's, with what `change` and rules have made of them."""
        return self.setter.resources

    def _limits_changed(self) -> None:
        self.judge.refresh()
        self.remember()

    async def remeasure(self) -> str:
        """A limit of a group around it has changed: set anew what is in per cent of it. Why not, if that failed."""
        return await self.setter.remeasure()

    def sentence(self, fired: Fired, generation: int) -> None:
        """A rule of a group has chosen this one; it is done in its turn, if it is still about the same generation."""
        self.thinker.take(Sentence(generation, fired))
        self.post(Nudge())

    def adopt(self, configured: Workload, workload: Workload) -> None:
        """Be another workload by the same name from now on. What needs a new process is seen by the next one. The
        limits are the setter's.

        ``configured`` is as the file has it, ``workload`` without the rules that this host cannot have.
        """
        rules = self.workload.policy != workload.policy
        if rules:
            self.judge.look_at_counters()  # what has happened so far is for the old ones
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
        """Those that wait for this workload may start: it works, or it did its one job."""
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
        self.voice.hold()  # a restart is on its way before it is written down
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
        """Have recorded how this generation ended: by its wait status, and by what the cgroup has counted meanwhile."""
        oom_kills = self.read("memory.events").get("oom_kill", 0.0)
        why = failure.message if failure else None
        self.last_exit = Exit.from_wait_status(status, oom_killed=oom_kills > self.trail.oom_kills, failure=why)
        self.trail.oom_kills = oom_kills
        self.ends.say(End(self.life.generation, self.last_exit, self.pid))
        return self.last_exit

    def _hear(self, reading: Reading) -> None:
        """What the watcher says. Most samples set nothing off, so they are looked at here, and wake nobody."""
        if reading.file == "cgroup.events":
            self.post(reading)
        else:
            self.judge.look(reading.file, reading.values, reading.at)

    # ---- the lifecycle

    async def _happen(self, event: events.Event) -> None:
        await self._follow(self.life, self.thinker.take(event))

    async def _follow(self, old: Life, thought: Thought) -> None:
        """Say and do what has come of an event, or of a rule's turn."""
        if self.life is old and not thought.actions:
            return
        if thought.event is not None:
            self.counters.stepped(old, thought.event, self.life, self.workload)
            tell(self, old, thought.event)
        # Before it is done: what a dead supervisor has decided, the next one carries on with. A start is the exception,
        # which is written down while the keeper is at work: the keeper's table, or the cgroup, will tell of it.
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
        """Do one thing; what fails is said."""
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
        """After the keeper was lost in the middle of a start: end what may have come of it, so that nothing runs twice.

        A program whose set-up is not complete then ends by itself, as nobody hears its report; any other was in the
        cgroup before the keeper died.
        """
        self._listening.close()
        if self.populated():
            self.cgroup.kill()
            while self.populated():  # noqa: ASYNC110 - rarely, and a moment
                await trio.sleep(0.005)

    async def _try_spawn(self, generation: int) -> bool:
        """Whether it is known what came of it: True also where the start has failed."""
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
            spec = spawn_spec(self.workload, self.name, self.instance, generation, self.cgroup, variables)
            self.notify = -1
            if self.workload.speaks:
                spec["env"] |= self.listen(host_owner(spec))[1]
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
        """From now on it lives in another cgroup; in the old one nobody is left."""
        self.world.watcher.remove(self.cgroup)
        self.cgroup.remove()
        self.moves_to = None
        self.cgroup = self.judge.cgroup = self.setter.cgroup = cgroup
        self.judge.refresh()
        self.judge.watch(self._hear)

    def _meanwhile(self) -> None:
        """What must not hold up a start: the records about the end before it, and the word for a next supervisor."""
        self.voice.release()
        self.remember()

    # ---- what the program says of itself

    def listen(self, owner: tuple[int, int] | None = None, fd: int = -1) -> tuple[int, dict[str, str]]:
        """Open this generation's notify socket, or go on with the one of an earlier supervisor; returns it, and the
        variables that tell the program of it."""
        path = self.world.directory / "notify"
        socket = self._listening.enter_context(notify_socket(path, self.id, owner, fd))
        scope = trio.CancelScope()
        self._listening.callback(scope.cancel)
        said = partial(self._said, self.life.generation)
        self.world.nursery.start_soon(attend, socket, scope, self.workload.watchdog_sec, said)
        variables = {"NOTIFY_SOCKET": str(path / self.id)}
        if self.workload.watchdog_sec:
            variables["WATCHDOG_USEC"] = str(round(self.workload.watchdog_sec * 1e6))
        self.notify = socket.fileno()
        return self.notify, variables

    def _said(self, generation: int, what: str, text: str) -> None:
        if what == "READY":
            self.post(events.Ready(generation))
        elif what == "STATUS":
            self.say("status", message=text)
        elif self.life.state is not State.FROZEN:  # a frozen program cannot say that it is well
            self.post(events.Unhealthy(generation, text))

    # ---- helpers

    @property
    def id(self) -> str:
        """The present generation, as the keeper knows it."""
        return f"{self.name}#{self.life.generation}"

    def read(self, file: str) -> Mapping[str, float]:
        """As `Judge.read`."""
        return self.judge.read(file)

    @property
    def limits(self) -> Mapping[str, float | None]:
        """The limits in force, as the kernel has them."""
        return self.judge.limits

    def populated(self) -> bool:
        """Whether anybody is left. Where it says yes, the watcher will report the end of that."""
        try:
            return self.world.watcher.read(self.cgroup, "cgroup.events")["populated"] == 1
        except CgroupGoneError:
            return False

    def say(self, event: str, level: str = "info", **fields: Any) -> dict[str, Any]:
        """Write a record about the present generation."""
        return self.voice.say(self.life.generation, event, level, **fields)

    def status(self) -> dict[str, Any]:
        """The object that ``status --json`` shows for this instance."""
        return status(self)


def _generation(id_: str) -> int:
    return int(id_.rpartition("#")[2])
