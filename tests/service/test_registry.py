"""The actors by name and by workload."""

from types import SimpleNamespace

from nsupervisor.service.registry import Registry


def actor(name: str, *requires: str):
    return SimpleNamespace(name=name, workload=SimpleNamespace(name=name.partition("@")[0], requires=requires))


def test_instances_and_requirers_are_found_and_follow_every_change() -> None:
    one, two, db, other = actor("web@1", "db"), actor("web@2", "db"), actor("db"), actor("web@2")
    registry = Registry((each.name, each) for each in (one, two, db))
    assert registry.instances("web") == [one, two]
    assert registry.requirers("db") == [one, two]
    assert registry.instances("no") == registry.requirers("no") == []
    registry["web@2"] = other
    assert (registry.instances("web"), registry.requirers("db")) == ([one, other], [one])
    del registry["web@1"]
    assert (registry.instances("web"), registry.requirers("db")) == ([other], [])
    registry.clear()
    assert registry.instances("web") == []
    registry.update({"web@1": one})
    assert (registry.instances("web"), registry.requirers("db")) == ([one], [one])
