"""The rules of one workload instance: readings in, what the rules ask for out.

It decides nothing: it shows `nsupervisor.core.mind` each reading, and does what the rules that go off ask for when
their turn comes. What concerns the workload's life goes back to the actor.
"""

import signal
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import attrs

from nsupervisor.cgroups import Cgroup, CgroupError
from nsupervisor.cgroups.watcher import EVENT_FILES
from nsupervisor.config.model import Rule
from nsupervisor.core.exits import signal_name
from nsupervisor.core.lifecycle import Life
from nsupervisor.core.mind import Due, Seen, Thought, Turn
from nsupervisor.core.rules import Engine
from nsupervisor.metrics.counters import Counters
from nsupervisor.service.hooks import run_hook
from nsupervisor.service.thinker import Thinker
from nsupervisor.service.world import World


@attrs.frozen
class Hands:
    """What the judge has the actor do."""

    say: Callable[..., dict[str, Any]]
    """Write a record about the present generation: `Voice.say` without its first argument."""
    follow: Callable[[Life, Thought], Awaitable[None]]
    """Do what a thought asks for; the life is the one before it."""


@attrs.define(eq=False)
class Judge:
    """The eyes and hands of one instance's rules."""

    cgroup: Cgroup
    counters: Counters
    world: World
    hands: Hands
    thinker: Thinker
    limits: Mapping[str, float | None] = attrs.field(init=False)
    """The limits in force, as the kernel has them."""

    def __attrs_post_init__(self) -> None:
        self.limits = self.cgroup.limits()

    @property
    def engine(self) -> Engine:
        """The rules, with what is remembered of each."""
        return self.thinker.mind.engine

    def files(self) -> tuple[dict[str, None], list[str]]:
        """The event files and the levels that the watcher has to tell of: what is needed, and nothing else, as some
        files cost samples on some hosts."""
        files = dict.fromkeys(atom.file for rule in self.engine.rules for atom in rule.when.atoms)
        events_ = dict.fromkeys(("cgroup.events", *(file for file in files if file in EVENT_FILES)))
        return events_, [file for file in files if file not in EVENT_FILES]

    def begin(self, base_line: Mapping[str, Mapping[str, float]]) -> None:
        """What the files say before anything happens."""
        for file, values in base_line.items():
            self.thinker.take(Seen({file: values}, {}))

    def look(self, file: str, values: Mapping[str, float], at: float | None) -> bool:
        """Show the rules a reading; whether any of them has to have its turn now.

        They do not go through the mailbox: a program's end that is in it already must not overtake them.
        """
        others = [other for other in self.engine.together(file) if other != file]
        snapshot = {file: values, **{other: self.read(other) for other in others}}
        return bool(self.thinker.take(Seen(snapshot, self.limits, at)).mind.due)

    def look_at_counters(self) -> None:
        """Read every counter that a rule looks at, now: at a program's end, before it is told (see actor.py)."""
        counters = [atom.file for rule in self.engine.rules for atom in rule.when.atoms if atom.kind == "counter"]
        for file in dict.fromkeys(counters):
            self.look(file, self.read(file), None)

    async def carry_out(self) -> None:
        """Give each rule that has gone off its turn; what is about a generation that is gone does nothing."""
        while self.thinker.mind.due:
            life = self.thinker.mind.life
            thought = self.thinker.take(Turn())
            if thought.due is not None:
                await self._fire(thought.due, life, thought)

    async def _fire(self, due: Due, life: Life, thought: Thought) -> None:
        rule, action = due.fired.rule, due.fired.action
        cause = {key: value for key, value in attrs.asdict(due.fired.cause).items() if value is not None}
        more: dict[str, Any] = {"dry_run": True} if rule.dry_run else {}
        if action == "signal":
            more["signal"] = signal_name(rule.signal or signal.SIGTERM)
        record = self.hands.say("action", "warning", action=action, cause=cause, **more)
        if rule.dry_run:
            return
        self.counters.acted(rule.name, action)
        if due.at is not None:
            self.world.measures.reacted(due.at)
        if action == "exec":
            self.world.nursery.start_soon(self._exec, rule, record)
        await self.hands.follow(life, thought)

    async def _exec(self, rule: Rule, record: dict[str, Any]) -> None:
        """Run what a rule's ``exec`` names, as the supervisor itself: it is the operator's, not the workload's."""
        problem = await run_hook(rule.exec_, record)
        if problem:
            self.hands.say("warning", "warning", message=f"{rule.name}: {problem}")

    def read(self, file: str) -> Mapping[str, float]:
        """What a file of the cgroup says; nothing where this host has none: its controller is not there.

        Only what the watcher watches stays open: with thousands of workloads, descriptors are scarce.
        """
        try:
            return self.cgroup.look(file)
        except CgroupError:
            return {}
