"""A group while something else happens during an action or a change: without a kernel, on a simulated clock."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock

from nsupervisor.config.conditions import parse_condition
from nsupervisor.config.model import GroupConfig, GroupRule, Resources, WorkloadConfig
from nsupervisor.core.lifecycle import Lifecycle, State
from nsupervisor.core.rules.rules import Firing
from nsupervisor.service.group.group import Group
from nsupervisor.service.instance import limits
from nsupervisor.service.jobs.jobs import Jobs
from nsupervisor.service.state.file import GroupCheckpoint


class FakeCgroup:
    """A cgroup of version 2 whose files the test sets."""

    path = "/fake"

    def __init__(self, **files: float) -> None:
        self.files: dict[str, dict[str, float]] = {name.replace("_", "."): {"": value} for name, value in files.items()}
        self.populated = True

    def read_cached(self, file: str) -> Mapping[str, float]:
        return self.files.get(file, {})

    read_once = read_cached

    def read_limits(self, files: Any = ()) -> dict[str, float | None]:
        return {}

    def is_v1(self, file: str) -> bool:
        return False

    def is_populated(self) -> bool:
        return self.populated


@attrs.define(eq=False)
class Member:
    """A member that obeys no action until the test ends it."""

    name: str
    cgroup: FakeCgroup = attrs.field(factory=FakeCgroup)
    lifecycle: Lifecycle = attrs.field(factory=lambda: Lifecycle(state=State.RUNNING, generation=1))
    received: list[Firing] = attrs.field(factory=list)
    reapplied: list[Resources] = attrs.field(factory=list)
    group: Group | None = None

    @property
    def workload(self) -> WorkloadConfig:
        return WorkloadConfig(self.name, ("x",))

    @property
    def limit_writer(self) -> Any:
        return self

    async def reapply_percentages(self) -> str:
        assert self.group is not None
        self.reapplied.append(self.group.resources)
        return ""

    def impose(self, firing: Firing, generation: int) -> None:
        self.received.append(firing)


@attrs.define(eq=False)
class Setting:
    group: Group
    cgroup: FakeCgroup
    members: dict[str, Member]
    records: list[dict[str, Any]] = attrs.field(factory=list)
    saved: list[GroupCheckpoint] = attrs.field(factory=list)

    def of(self, event: str) -> list[dict[str, Any]]:
        return [record for record in self.records if record["event"] == event]

    def see(self, file: str, value: float, key: str = "") -> None:
        """Have the rules see a value."""
        self.cgroup.files[file] = {key: value}
        self.group.observer.observe(file, self.cgroup.files[file], None)


@asynccontextmanager
async def setting(*rules: GroupRule, **members: State) -> AsyncIterator[Setting]:
    records: list[dict[str, Any]] = []
    saved: list[GroupCheckpoint] = []

    def write(event: str, **fields: Any) -> None:
        records.append({"event": event, **fields})

    nothing = lambda *_, **__: None  # noqa: E731 - the watcher is not used
    watcher = SimpleNamespace(add=nothing, remove=nothing, sample_now=nothing)
    async with trio.open_nursery() as nursery:
        context: Any = SimpleNamespace(
            journal=SimpleNamespace(log=SimpleNamespace(info=write, warning=write)),
            watcher=watcher,
            nursery=nursery,
            state=SimpleNamespace(save_group=lambda _name, checkpoint: saved.append(checkpoint)),
            group_listeners=(),
            warnings_logged=set(),
        )
        cgroup: Any = FakeCgroup(pids_current=1)
        config = GroupConfig(name="batch", policy=rules)
        group = Group("group/batch", config, cgroup, context, Resources(), lambda name: (), trio.Lock())
        found = {
            name: Member(name, lifecycle=Lifecycle(state=state, generation=1), group=group)
            for name, state in members.items()
        }
        for member in found.values():
            group.add_member(member)  # type: ignore[arg-type]
        group.watch()
        yield Setting(group, cgroup, found, records, saved)
        nursery.cancel_scope.cancel()


def rule(when: str, action: str, **keys: Any) -> GroupRule:
    keys = {"name": "group.batch.policy[0]", "line": 3, "verify_sec": 2.0, "cooldown": 1.0, **keys}
    if action not in ("log",):
        keys = {"victim": "newest", **keys}
    return GroupRule(when=parse_condition(when), action=action, **keys)


@pytest.mark.fault("H2")
async def test_an_action_finishes_under_the_rule_that_it_began_with(autojump_clock: MockClock) -> None:
    """A reload with one more line in the file ended the service: the group looked for the rule of the old line."""
    old = rule("pids.current >= 3", "kill")
    async with setting(old, one=State.RUNNING) as it:
        it.see("pids.current", 3)
        await trio.sleep(0.5)
        assert len(it.members["one"].received) == 1
        other = rule("pids.current >= 100", "log", line=4)
        it.group.apply_config(attrs.evolve(it.group.config, policy=(other,)))
        await trio.sleep(5)
        assert it.of("warning")[0]["message"].startswith("group.batch.policy[0]: kill of one did not help")


@pytest.mark.fault("H2")
async def test_an_action_helps_if_the_condition_of_its_old_rule_no_longer_holds(autojump_clock: MockClock) -> None:
    async with setting(rule("memory.current >= 3", "kill"), one=State.RUNNING) as it:
        it.members["one"].cgroup.files["memory.stat"] = {"anon": 1000.0}
        it.see("memory.current", 3)
        await trio.sleep(0.5)
        it.group.apply_config(attrs.evolve(it.group.config, policy=()))
        it.members["one"].cgroup.populated = False
        await trio.sleep(0.5)
        assert it.of("verified") == []  # no memory has come back
        it.cgroup.files["memory.current"] = {"": 2.0}
        await trio.sleep(0.5)
        assert [record["workload"] for record in it.of("verified")] == ["one"]


@pytest.mark.fault("H7")
@pytest.mark.parametrize("is_kept", [True, False])
async def test_a_counter_that_rises_just_before_a_reload_counts(autojump_clock: MockClock, is_kept: bool) -> None:
    """The reload took the new value as the base line, also for rules that it left as they were."""
    hit = rule("pids.events max", "log", cooldown=0.0)
    async with setting(hit, one=State.RUNNING) as it:
        it.see("pids.events", 0, "max")
        it.cgroup.files["pids.events"] = {"max": 1.0}
        other = rule("pids.current >= 100", "log", name="group.batch.policy[1]", line=9)
        it.group.apply_config(attrs.evolve(it.group.config, policy=(hit, other) if is_kept else (other,)))
        await trio.sleep(1)
        assert [(record["action"], record["cause"]["after"]) for record in it.of("action")] == [("log", 1.0)]
        if is_kept:
            it.see("pids.events", 2, "max")
            await trio.sleep(1)
            assert [record["cause"]["after"] for record in it.of("action")] == [1.0, 2.0]


async def test_a_rule_is_saved_as_it_was_before_it_fired_until_its_action_is_done(autojump_clock: MockClock) -> None:
    """A reload saved that the rule had fired. After a crash at that moment no supervisor carried out its action."""
    hit = rule("pids.events max", "kill")
    async with setting(hit, one=State.RUNNING) as it:
        it.see("pids.events", 0, "max")
        it.see("pids.events", 1, "max")
        other = rule("pids.current >= 100", "log", name="group.batch.policy[1]", line=9)
        it.group.apply_config(attrs.evolve(it.group.config, policy=(hit, other)))
        assert [atom.value for atom in it.saved[-1].rules[0].state.atoms] == [0.0]
        it.members["one"].cgroup.populated = False
        await trio.sleep(3)
        assert [record["workload"] for record in it.of("verified")] == ["one"]
        assert [atom.value for atom in it.saved[-1].rules[0].state.atoms] == [1.0]


@pytest.mark.fault("H11")
async def test_a_frozen_member_is_left_out_when_a_rule_freezes(autojump_clock: MockClock) -> None:
    async with setting(rule("pids.current >= 3", "freeze"), frozen=State.FROZEN, runs=State.RUNNING) as it:
        it.members["frozen"].cgroup.files["memory.current"] = {"": 1000.0}  # so it comes first, being equally new
        it.see("pids.current", 3)
        await trio.sleep(0.5)
        assert [name for name, member in it.members.items() if member.received] == ["runs"]
        (left_out,) = [
            candidate
            for candidate in it.members["runs"].received[0].cause.candidates or ()
            if candidate["name"] == "frozen"
        ]
        assert (left_out["turn"], left_out["why"]) == (None, "is frozen already")


@pytest.fixture
def slow_writes(monkeypatch: pytest.MonkeyPatch) -> list[Resources]:
    """Have each change of limits take a second; return the limits that were written."""
    written: list[Resources] = []

    async def write(cgroup: Any, before: Resources, after: Resources, *, optional: bool = False) -> list[Any]:
        await trio.sleep(1)
        written.append(after)
        return []

    monkeypatch.setattr(limits, "_write_limits", write)
    monkeypatch.setattr(limits.cgroup_limits, "find_foreign_changes", lambda *_: {})
    return written


@pytest.mark.fault("H10")
async def test_two_changes_of_a_groups_limits_at_once_are_both_made(
    autojump_clock: MockClock, slow_writes: list[Resources]
) -> None:
    """Both began from the same limits, and the second one to end brought back what the first had changed."""
    async with setting(one=State.RUNNING) as it:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(it.group.change_limits, {"pids_max": 10})
            nursery.start_soon(it.group.change_limits, {"memory_max": 1 << 20})
        assert (it.group.resources.pids_max, it.group.resources.memory_max) == (10, 1 << 20)
        assert slow_writes[-1] == it.group.resources
        assert len(it.members["one"].reapplied) == 2


@pytest.mark.fault("H10")
async def test_limits_that_are_put_back_reach_the_percentages_inside(
    autojump_clock: MockClock, slow_writes: list[Resources]
) -> None:
    """A refused reload put back the group's limit, and left its members' percentages as those of the refused one."""
    async with setting(one=State.RUNNING) as it:
        before = it.group.resources
        wanted = Resources(memory_max=1 << 20)
        await it.group.apply_limits(lambda limits: attrs.evolve(limits, memory_max=1 << 20), wanted)
        await it.group.undo_limits(lambda limits: before)
        assert [resources.memory_max for resources in it.members["one"].reapplied] == [1 << 20, None]


async def test_limits_of_a_reload_that_is_not_in_force_yet_were_saved_as_an_operators(
    autojump_clock: MockClock, slow_writes: list[Resources]
) -> None:
    """After a crash the next supervisor preferred them to those of its file, if that was the earlier one again."""
    async with setting(one=State.RUNNING) as it:
        await it.group.change_limits({"pids_max": 10})
        wanted = Resources(memory_max=1 << 20)
        await it.group.apply_limits(lambda limits: attrs.evolve(limits, memory_max=1 << 20), wanted)
        assert dict(it.saved[-1].changed_limits) == {"pids_max": 10}
        await it.group.change_limits({"pids_max": 11})
        assert dict(it.saved[-1].changed_limits) == {"pids_max": 11}
        it.group.apply_config(attrs.evolve(it.group.config, memory_max=1 << 20))
        assert dict(it.saved[-1].changed_limits) == {"pids_max": 11}


@pytest.mark.fault("H10")
async def test_a_change_is_completed_when_its_caller_is_cancelled(
    autojump_clock: MockClock, slow_writes: list[Resources]
) -> None:
    async with setting(one=State.RUNNING) as it:
        with trio.move_on_after(0.5):
            await it.group.change_limits({"pids_max": 10})
        assert it.group.resources.pids_max is None
        await trio.sleep(1)
        assert (it.group.resources.pids_max, len(it.members["one"].reapplied)) == (10, 1)


async def test_limits_of_what_has_been_removed_are_refused(slow_writes: list[Resources]) -> None:
    async with setting(one=State.RUNNING) as it:
        it.group.limit_writer.close()
        assert await it.group.change_limits({"pids_max": 10}) == (False, "it has just been removed")
        assert slow_writes == []


@pytest.mark.fault("H13")
async def test_a_member_that_is_being_removed_is_in_no_group() -> None:
    """`freeze group/g` found a member that the list of instances no longer had, and answered 500."""
    steps: list[str] = []

    @attrs.define(eq=False)
    class Stopped:
        name: str = "web"
        lifecycle: Lifecycle = attrs.field(factory=lambda: Lifecycle(state=State.STOPPED))
        cgroup: Any = attrs.field(factory=lambda: SimpleNamespace(remove=lambda: steps.append("cgroup")))

        async def wait_drained(self) -> None:
            steps.append("drain")

        async def retire(self) -> None:
            steps.append("retire")

        def wake_waiters(self) -> None:
            steps.append("wake")

    actor: Any = Stopped()
    groups: Any = SimpleNamespace(remove=lambda actor: steps.append("groups"))
    actors: Any = {"web": actor}
    context: Any = SimpleNamespace(state=SimpleNamespace(save=lambda name, checkpoint: None))
    async with trio.open_nursery() as nursery:
        jobs = Jobs(actors, groups, context, nursery)
        removal: Any = object()
        jobs._removals[actor] = removal
        assert await jobs._remove(actor, removal)
    assert (steps, actors) == (["drain", "groups", "retire", "wake", "cgroup"], {})
