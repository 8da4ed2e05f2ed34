"""The actors by name and by workload."""

from types import SimpleNamespace

from nsupervisor.service.registry import Registry


def actor(name: str, *requires: str):
    return SimpleNamespace(name=name, workload=SimpleNamespace(name=name.partition("@")[0], requires=requires))


def test_instances_and_requirers_are_found_and_follow_every_change() -> None:
    one, two, db, other = actor("web@1", "db"), actor("web@2", "db"), actor("db"), actor("web@2")
    roster = Registry((each.name, each) for each in (one, two, db))
    assert roster.instances("web") == [one, two]
    assert roster.requirers("db") == [one, two]
    assert roster.instances("no") == roster.requirers("no") == []
    roster["web@2"] = other
    assert (roster.instances("web"), roster.requirers("db")) == ([one, other], [one])
    del roster["web@1"]
    assert (roster.instances("web"), roster.requirers("db")) == ([other], [])
    roster.clear()
    assert roster.instances("web") == []
    roster.update({"web@1": one})
    assert (roster.instances("web"), roster.requirers("db")) == ([one], [one])
