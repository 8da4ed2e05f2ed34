"""An error about one workload is logged, and ends no task that serves the others."""

from collections.abc import Callable, Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from nsupervisor.cgroups import CgroupError
from nsupervisor.config.model import Resources, WorkloadConfig
from nsupervisor.core import events
from nsupervisor.core.initiators import OPERATOR
from nsupervisor.core.lifecycle import Lifecycle, State
from nsupervisor.service import run
from nsupervisor.service.instance import limits
from nsupervisor.service.instance.actor import Actor
from nsupervisor.service.instance.limits import LimitWriter
from nsupervisor.service.instance.log import InstanceLog
from nsupervisor.service.instance.mailbox import Mailbox
from nsupervisor.service.recovery import takeover

ERRORS = [CgroupError("cannot kill web: busy"), OSError(24, "Too many open files"), ValueError("not a number")]
each_error = pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)


class Journal:
    """Keeps the messages of all records."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def write(self, _level: str, _event: str, fields: Mapping[str, Any], _timestamp: str | None = None) -> None:
        self.messages.append(f"{fields['workload']}: {fields['message']}")


def raiser(error: Exception) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


def make_actor(journal: Journal, name: str, **fields: Any) -> Any:
    """Make an object with the log of an instance, and what else the caller needs of an actor."""
    log = InstanceLog(name, None, journal)
    lifecycle = fields.pop("lifecycle", Lifecycle())
    contain_errors = lambda doing: log.contain_errors(1, doing)  # noqa: E731
    return SimpleNamespace(
        name=name, log=log, lifecycle=lifecycle, id=f"{name}#1", contain_errors=contain_errors, **fields
    )


@each_error
async def test_an_actor_goes_on_after_a_message_that_it_could_not_handle(error, nursery):
    journal, handled = Journal(), []

    async def handle(message: Any) -> None:
        if not handled:
            handled.append(message)
            raise error
        handled.append(message)

    actor = make_actor(
        journal,
        "web",
        mailbox=Mailbox(),
        _must_recover=False,
        _update_store=lambda before: None,
        _handle=handle,
        _update_probes=lambda: None,
        _update_daemon_search=lambda: None,
        _daemon_search=None,
        _stop_between_generations=lambda: None,
        observer=SimpleNamespace(watch=raiser(error), unwatch=lambda: None),
        limit_writer=SimpleNamespace(close=lambda: None),
        workload=WorkloadConfig("web", command=("x",)),
        program=SimpleNamespace(set_watchdog=lambda is_active: None),
        _changed=SimpleNamespace(notify=lambda: None),
    )
    nursery.start_soon(Actor.run, actor)
    actor.mailbox.post(events.Emptied(1))
    actor.mailbox.post(events.Emptied(2))
    await trio.testing.wait_all_tasks_blocked()
    assert handled == [events.Emptied(1), events.Emptied(2)]
    assert journal.messages == [f"web: cannot begin to watch it: {error}", f"web: cannot handle Emptied: {error}"]
    assert not actor.mailbox.closed.is_set()


@each_error
async def test_a_takeover_goes_on_after_a_workload_that_it_could_not_take_over(error):
    journal = Journal()
    broken = SimpleNamespace(is_populated=raiser(error))
    sound = SimpleNamespace(is_populated=lambda: False)
    reports = SimpleNamespace(release=lambda: None)
    actors = {
        name: make_actor(journal, name, cgroup=cgroup, exit_reports=reports)
        for name, cgroup in (("web", broken), ("db", sound))
    }
    released = []
    keeper = SimpleNamespace(direct=SimpleNamespace(kept_at_start=0), release_waiters=lambda: released.append(True))
    saved = SimpleNamespace(instances={}, lines={})
    assert await takeover.take_over(actors, saved, {}, SimpleNamespace(keeper=keeper), "kill") == 0
    assert (journal.messages, released) == ([f"web: cannot take over what runs: {error}"], [True])


@each_error
async def test_a_new_keeper_gets_the_programs_after_one_that_it_could_not_get(error, monkeypatch):
    journal, given = Journal(), []

    async def reattach(actor: Any, *_: Any, **__: Any) -> None:
        if actor.name == "web":
            raise error
        given.append(actor.name)

    async def children(*_: Any, **__: Any) -> list[Any]:
        return []

    monkeypatch.setattr(takeover, "reattach", reattach)
    alive = Lifecycle(state=State.RUNNING, generation=1)
    actors = [make_actor(journal, name, lifecycle=alive, is_spawning=False) for name in ("web", "db")]
    keeper = SimpleNamespace(direct=SimpleNamespace(kept_at_start=0), children=children, release_waiters=lambda _: None)
    assert await takeover.hand_over_to_keeper(actors, keeper) == 2
    assert (given, journal.messages) == (["db"], [f"web: cannot give it to the new keeper: {error}"])


@each_error
async def test_the_end_kills_what_is_left_of_the_others(error):
    journal, killed, populated = Journal(), [], [True]

    def kill() -> None:
        killed.append("db")
        populated.clear()

    broken = SimpleNamespace(is_populated=raiser(error))
    sound = SimpleNamespace(is_populated=lambda: bool(populated), kill=kill)
    closed: list[str] = []
    actors = [
        make_actor(journal, name, cgroup=cgroup, close_cgroup=partial(closed.append, name))
        for name, cgroup in (("web", broken), ("db", sound))
    ]
    await run._kill_remaining(actors, True)
    assert closed == ["web", "db"]
    assert killed == ["db"]
    assert journal.messages == [f"web: cannot {what} what is left: {error}" for what in ("kill", "wait for")]


async def test_nothing_is_read_of_each_cgroup_at_the_end_if_the_tree_is_empty():
    closed: list[str] = []
    cgroup = SimpleNamespace(is_populated=raiser(AssertionError()))
    actors = [make_actor(Journal(), name, cgroup=cgroup, close_cgroup=partial(closed.append, name)) for name in "ab"]
    await run._kill_remaining(actors, False)
    assert closed == ["a", "b"]


@pytest.mark.parametrize("error", ERRORS[1:], ids=lambda error: type(error).__name__)
async def test_limits_are_changed_after_a_change_that_failed_unexpectedly(error, nursery, monkeypatch):
    outcomes: list[Exception | None] = [error, None]

    async def write(*_: Any, **__: Any) -> list[Any]:
        if (outcome := outcomes.pop(0)) is not None:
            raise outcome
        return []

    monkeypatch.setattr(limits, "_write_limits", write)
    monkeypatch.setattr(limits.LimitWriter, "_find_foreign_changes", lambda *_: {})
    workload = WorkloadConfig("web", command=("x",))
    writer = LimitWriter(object(), workload, Resources(), nursery, lambda *_, **__: None, lambda: None)
    assert await writer.change_limits({"pids_max": 5}, OPERATOR) == (False, str(error))
    assert await writer.change_limits({"pids_max": 6}, OPERATOR) == (True, "")
    assert writer.applied == Resources(pids_max=6)
