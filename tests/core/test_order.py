"""The start order of workloads and its reverse."""

from nsupervisor.config.model import Workload
from nsupervisor.core import order

WORKLOADS = {
    name: Workload(name, command=("x",), **keys)
    for name, keys in {
        "db": {},
        "cache": {"after": ("db",)},
        "web": {"requires": ("db",), "wants": ("cache",), "after": ("db",)},
        "cron": {},
    }.items()
}


def test_each_of_the_three_edges_means_after():
    assert order.before(WORKLOADS["web"]) == ("db", "cache")
    assert order.before(WORKLOADS["cron"]) == ()


def test_stopping_is_the_reverse():
    assert order.dependants(WORKLOADS) == {"db": ("cache", "web"), "cache": ("web",), "web": (), "cron": ()}


def test_the_closure_has_each_name_once_nearest_first():
    edges = {name: (*w.requires, *w.wants) for name, w in WORKLOADS.items()}
    assert order.closure(["web"], edges) == ("web", "db", "cache")
    assert order.closure(["cron", "cron"], edges) == ("cron",)
    assert order.closure([], edges) == ()
