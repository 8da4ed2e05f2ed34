"""What a group does when its rule goes off, on real cgroups: whom it chooses, and what it does when that does not help.

The members here do not have the service's lifecycle around them; so one of them can be made not to die.
"""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import attrs
import jsonschema
import pytest
import trio

from nsupervisor.cgroups import Cgroup, Tree, open_watcher
from nsupervisor.config.conditions import parse_condition
from nsupervisor.config.model import GroupConfig as GroupConfig
from nsupervisor.config.model import GroupRule, Resources, WorkloadConfig
from nsupervisor.core.lifecycle import State
from nsupervisor.core.rules.rules import Firing
from nsupervisor.logs import schema
from nsupervisor.service.group.group import Group
from tests.cgroups.conftest import Programs, host, programs, tree, wait_until  # noqa: F401 - fixtures
from tests.needs import needs
from tests.timing import deadline

pytestmark = [pytest.mark.host_only, needs("root", "cgroup", "memory", "pids")]


class Journal:
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[dict[str, Any]] = []
        self.log = self

    def warning(self, event: str, **fields: Any) -> None:
        self.said.append({"event": event, **fields})

    info = warning


@attrs.define(eq=False)
class Member:
    """What a group needs of an actor. ``obeys``: what it is told to do is done."""

    name: str
    cgroup: Cgroup
    workload: WorkloadConfig
    obeys: bool = True
    lifecycle: Any = attrs.field(
        factory=lambda: SimpleNamespace(is_alive=True, state=State.RUNNING, generation=1, started_at=0.0)
    )
    received: list[Firing] = attrs.field(factory=list)

    def impose(self, firing: Firing, generation: int) -> None:
        self.received.append(firing)
        if self.obeys and not firing.rule.dry_run:
            self.cgroup.kill()
            self.lifecycle.is_alive = False


@attrs.frozen
class Setting:
    """A group of three, who have 3, 2 and 1 processes."""

    group: Group
    journal: Journal
    members: dict[str, Member]

    async def until(self, reached: Callable[[], bool]) -> None:
        with trio.fail_after(deadline(10)):
            while not reached():  # noqa: ASYNC110 - nobody tells
                await trio.sleep(0.01)

    def acts(self) -> list[str]:
        return [name for name, member in self.members.items() if member.received]


@asynccontextmanager
async def setting(
    tree: Tree,  # noqa: F811
    programs: Programs,  # noqa: F811
    *rules: GroupRule,
    stuck: tuple[str, ...] = (),
    **preferences: str,
) -> AsyncIterator[Setting]:
    cgroup = tree.make_group("batch", Resources())
    journal, members = Journal(), {}
    async with open_watcher() as watcher, trio.open_nursery() as nursery:
        state = SimpleNamespace(save_group=lambda *_: None)
        context: Any = SimpleNamespace(
            journal=journal, watcher=watcher, nursery=nursery, warnings_logged=set(), state=state, group_listeners=set()
        )
        config, lock = GroupConfig(name="batch", policy=rules), trio.Lock()
        group = Group("group/batch", config, cgroup, context, Resources(), lambda name: (), lock)
        for number, name in enumerate(("one", "two", "three")):
            one = tree.make(name, Resources(), [cgroup])
            programs.python(
                one, f"import os, time; [os.fork() or time.sleep(1000) for _ in range({2 - number})]; time.sleep(1000)"
            )
            wait_until(lambda one=one, number=number: one.read_cached("pids.current")[""] == 3 - number)
            workload = WorkloadConfig(
                name, ("x",), priority=number, managed_oom_preference=preferences.get(name, "none")
            )  # type: ignore[arg-type]
            members[name] = Member(name, one, workload, name not in stuck)
        for member in members.values():
            group.add_member(member)  # type: ignore[arg-type]
        group.watch()
        yield Setting(group, journal, members)
        nursery.cancel_scope.cancel()


def rule(when: str = "pids.current >= 6", **keys: Any) -> GroupRule:
    return GroupRule(
        **{
            "when": parse_condition(when),
            "action": "kill",
            "victim": "lowest-priority",
            "verify_sec": 0.3,
            "name": "group.batch.policy[0]",
            "line": 3,
            **keys,
        }
    )


async def test_a_member_that_cannot_be_killed_saves_nobody_else(tree: Tree, programs: Programs) -> None:  # noqa: F811
    async with setting(tree, programs, rule(), stuck=("one",)) as it:
        await it.until(lambda: any(said["event"] == "verified" for said in it.journal.said))
        assert it.acts() == ["one", "two"]
        (warning,) = [said["message"] for said in it.journal.said if said["event"] == "warning"]
        assert warning.startswith("group.batch.policy[0]: kill of one did not help: it still has processes after 0.")
        cause = it.members["two"].received[0].cause
        assert cause.previous_attempt is not None
        assert cause.previous_attempt.startswith("one: it still has processes")
        assert cause.candidates is not None
        assert [(one["name"], one["turn"]) for one in cause.candidates] == [("two", 1), ("three", 2), ("one", None)]


async def test_when_nobody_is_left_that_is_said_and_the_rule_waits(tree: Tree, programs: Programs) -> None:  # noqa: F811
    async with setting(tree, programs, rule(), stuck=("one", "two"), three="omit") as it:
        await it.until(lambda: len(it.journal.said) == 3)
        assert it.acts() == ["one", "two"]
        assert it.journal.said[-1]["message"] == (
            "group.batch.policy[0] (pids.current >= 6): no member is left to kill "
            "(one: was tried, and it did not help; three: managed_oom_preference = omit; "
            "two: was tried, and it did not help)"
        )


async def test_two_rules_for_the_same_reason_hit_one_member_only(tree: Tree, programs: Programs) -> None:  # noqa: F811
    other = rule("pids.current >= 5", victim="newest", name="group.batch.policy[1]")
    async with setting(tree, programs, rule(), other) as it:
        await it.until(lambda: any(said["event"] == "verified" for said in it.journal.said))
        await trio.sleep(0.3)  # long enough for another look or two
        assert len(it.acts()) == 1  # equally new are all of them, and the kernel charges memory in batches


async def test_a_dry_run_names_whom_it_would_have_been_once(tree: Tree, programs: Programs) -> None:  # noqa: F811
    async with setting(tree, programs, rule(dry_run=True)) as it:
        await it.until(lambda: it.acts() == ["one"])
        assert it.members["one"].cgroup.is_populated()
        assert it.journal.said == []


@pytest.mark.fault("G10")
async def test_an_exec_gets_the_groups_record_as_it_is_logged(tree: Tree, programs: Programs, tmp_path: Any) -> None:  # noqa: F811
    received = tmp_path / "received"
    command = ("sh", "-c", f"cat >{received}.new && mv {received}.new {received}")
    async with setting(tree, programs, rule(action="exec", victim=None, exec_=command)) as it:
        await it.until(received.exists)
        record = json.loads(received.read_text())
        assert it.acts() == []
        (logged,) = [said for said in it.journal.said if said["event"] == "action"]
        assert record == {**logged, "level": "warning"}
        assert (record["group"], record["cause"]["after"]) == ("group/batch", 6)
        jsonschema.validate(record, schema())
