"""The actors by name and by workload."""

from types import SimpleNamespace

from nsupervisor.config.model import WorkloadConfig
from nsupervisor.service.jobs.registry import Registry


def actor(name: str, *requires: str, wants: tuple[str, ...] = (), after: tuple[str, ...] = ()):
    workload = WorkloadConfig(name.partition("@")[0], ("a",), requires=requires, wants=wants, after=after)
    return SimpleNamespace(name=name, workload=workload)


def test_instances_and_requirers_are_found_and_follow_every_change() -> None:
    one, two, db, other = actor("web@1", "db"), actor("web@2", "db"), actor("db"), actor("web@2")
    registry = Registry((each.name, each) for each in (one, two, db))
    assert registry.instances("web") == [one, two]
    assert registry.stopped_with("db") == [one, two]
    assert registry.instances("no") == registry.stopped_with("no") == []
    registry["web@2"] = other
    assert (registry.instances("web"), registry.stopped_with("db")) == ([one, other], [one])
    del registry["web@1"]
    assert (registry.instances("web"), registry.stopped_with("db")) == ([other], [])
    registry.clear()
    assert registry.instances("web") == []
    registry.update({"web@1": one})
    assert (registry.instances("web"), registry.stopped_with("db")) == ([one], [one])


def test_what_starts_after_a_workload_depends_on_it_and_what_it_starts_is_known() -> None:
    web, log, cron, db = actor("web", "db", wants=("log",)), actor("log"), actor("cron", after=("db",)), actor("db")
    registry = Registry((each.name, each) for each in (web, log, cron, db))
    assert (registry.dependents("db"), registry.dependents("log")) == ([web, cron], [web])
    assert registry.start_edges == {"web": ("db", "log"), "log": (), "cron": (), "db": ()}
    del registry["db"]
    assert registry.start_edges["web"] == ("log",), "an instance that is removed may require one that is gone"
