"""The start order of workloads."""

from nsupervisor.config.model import WorkloadConfig
from nsupervisor.core import dependencies

WORKLOADS = {
    name: WorkloadConfig(name, command=("x",), **keys)
    for name, keys in {
        "db": {},
        "cache": {"after": ("db",)},
        "web": {"requires": ("db",), "wants": ("cache",), "after": ("db",)},
        "cron": {},
    }.items()
}


def test_each_of_the_three_edges_means_after():
    assert dependencies.start_dependencies(WORKLOADS["web"]) == ("db", "cache")
    assert dependencies.start_dependencies(WORKLOADS["cron"]) == ()


def test_the_closure_has_each_name_once_nearest_first():
    edges = {name: dependencies.started_along(w) for name, w in WORKLOADS.items()}
    assert dependencies.transitive_closure(["web"], edges) == ("web", "db", "cache")
    assert dependencies.transitive_closure(["cron", "cron"], edges) == ("cron",)
    assert dependencies.transitive_closure([], edges) == ()
