"""The rules of one workload instance: readings in, what the rules ask for out.

It decides nothing: it shows `nsupervisor.core.rules` each reading, keeps what goes off until the actor's turn, and does
it. What concerns the workload's life goes back to the actor as a wish.
"""

import signal
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import attrs
import trio

from nsupervisor.cgroups import Cgroup, CgroupError
from nsupervisor.cgroups.watcher import EVENT_FILES
from nsupervisor.config.model import Rule
from nsupervisor.core import events
from nsupervisor.core.exits import signal_name
from nsupervisor.core.rules import Engine, Fired
from nsupervisor.metrics.counters import Counters
from nsupervisor.service.hooks import run_hook
from nsupervisor.service.world import World

_WISHES: dict[str, type[events.Wish]] = {
    "restart": events.Recycle,
    "stop": events.Stop,
    "kill": events.Kill,
    "freeze": events.Freeze,
    "thaw": events.Thaw,
}
"""What a rule's action asks of the lifecycle; the others concern nobody's life."""


@attrs.frozen
class Hands:
    """What the judge has the actor do."""

    say: Callable[..., dict[str, Any]]
    """Write a record about the present generation: `Voice.say` without its first argument."""
    wish: Callable[[events.Wish], Awaitable[None]]
    signal: Callable[[int], Awaitable[None]]


@attrs.define(eq=False)
class Judge:
    """The engine of one instance's rules, and what they have set off."""

    cgroup: Cgroup
    counters: Counters
    world: World
    hands: Hands
    engine: Engine
    limits: Mapping[str, float | None] = attrs.field(init=False)
    """The limits in force, as the kernel has them."""
    _fired: deque[tuple[int, Fired, float | None]] = attrs.field(init=False, factory=deque)
    """Rules that have gone off, each with the generation that it is about, and when the kernel told of it."""

    def __attrs_post_init__(self) -> None:
        self.limits = self.cgroup.limits()

    def files(self) -> tuple[dict[str, None], list[str]]:
        """The event files and the levels that the watcher has to tell of: what is needed, and nothing else, as some
        files cost samples on some hosts."""
        files = dict.fromkeys(atom.file for rule in self.engine.rules for atom in rule.when.atoms)
        events_ = dict.fromkeys(("cgroup.events", *(file for file in files if file in EVENT_FILES)))
        return events_, [file for file in files if file not in EVENT_FILES]

    def begin(self, base_line: Mapping[str, Mapping[str, float]]) -> None:
        """What the files say before anything happens."""
        for file, values in base_line.items():
            self.engine, _ = self.engine.observe({file: values}, {}, trio.current_time())

    def reborn(self) -> None:
        """A new generation begins."""
        self.engine = self.engine.reborn()

    def look(self, generation: int, file: str, values: Mapping[str, float], at: float | None) -> bool:
        """Show the rules a reading, and keep those that it sets off until the actor's turn; whether there are any.

        They do not go through the mailbox: a program's end that is in it already must not overtake them.
        """
        others = [other for other in self.engine.together(file) if other != file]
        snapshot = {file: values, **{other: self.read(other) for other in others}}
        self.engine, fired = self.engine.observe(snapshot, self.limits, trio.current_time())
        self._fired += [(generation, one, at) for one in fired]
        return bool(fired)

    def look_at_counters(self, generation: int) -> None:
        """Read every counter that a rule looks at, now: at a program's end, before it is told (see actor.py)."""
        counters = [atom.file for rule in self.engine.rules for atom in rule.when.atoms if atom.kind == "counter"]
        for file in dict.fromkeys(counters):
            self.look(generation, file, self.read(file), None)

    async def carry_out(self, concerns: Callable[[int], bool]) -> None:
        """Do what has gone off; what is about a generation that ``concerns`` nobody any more is dropped."""
        while self._fired:
            generation, fired, at = self._fired.popleft()
            if concerns(generation):
                await self._fire(fired, at)

    async def _fire(self, fired: Fired, at: float | None) -> None:
        rule, action = fired.rule, fired.action
        cause = {key: value for key, value in attrs.asdict(fired.cause).items() if value is not None}
        more: dict[str, Any] = {"dry_run": True} if rule.dry_run else {}
        if action == "signal":
            more["signal"] = signal_name(rule.signal or signal.SIGTERM)
        record = self.hands.say("action", "warning", action=action, cause=cause, **more)
        if rule.dry_run:
            return
        self.counters.acted(rule.name, action)
        if at is not None:
            self.world.measures.reacted(at)
        by = f"{rule.name} ({rule.when.text})"
        match action:
            case "signal":
                await self.hands.signal(rule.signal or signal.SIGTERM)
            case "exec":
                self.world.nursery.start_soon(self._exec, rule, record)
            case _ if action in _WISHES:
                await self.hands.wish(_WISHES[action](by))

    async def _exec(self, rule: Rule, record: dict[str, Any]) -> None:
        """Run what a rule's ``exec`` names, as the supervisor itself: it is the operator's, not the workload's."""
        problem = await run_hook(rule.exec_, record)
        if problem:
            self.hands.say("warning", "warning", message=f"{rule.name}: {problem}")

    def read(self, file: str) -> Mapping[str, float]:
        """What a file of the cgroup says; nothing where this host has none: its controller is not there."""
        try:
            return self.cgroup.read(file)
        except CgroupError:
            return {}
