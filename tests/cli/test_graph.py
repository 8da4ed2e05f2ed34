"""`nsupervisor graph`: the tree, DOT, and what is met."""

import pytest

from nsupervisor.cli.graph import ORDERING_KEYS, dot_lines, make_graph, selected, tree_lines
from nsupervisor.config import relations


def instance(name, state="running", *edges, ready=None, reason="", **last_exit):
    """An instance whose last exit has these keys, if it has ended."""
    return {
        "name": name,
        "state": state,
        "ready": state in ("running", "ready") if ready is None else ready,
        "reason": reason,
        "last_exit": {"code": 0, **last_exit} if state in ("exited", "failed") else None,
        "edges": [
            {"key": key, "name": other, "condition": condition[0] if condition else "ready"}
            for key, other, *condition in edges
        ],
    }


SITE = [
    instance("web@1", "stopped", ("requires", "db"), ("wants", "job", "completed"), reason="waits for db"),
    instance("web@2", "running", ("requires", "db"), ("wants", "job", "completed")),
    instance("db", "starting", ("after", "log"), ("on_failure", "page"), reason="started by boot"),
    instance("job", "failed", reason="exit code 3"),
    instance("log"),
    instance("page", "stopped"),
    instance("proxy", "running", ("requires", "db")),
]


def tree(*roots, width=80, site=SITE):
    return list(tree_lines(make_graph(site), roots, False, width))


def test_a_tree_has_each_workload_above_those_that_it_waits_for():
    assert tree() == [
        "web  1 stopped, 1 running: waits for db",
        "├─ requires db  starting: started by boot",
        "│  ├─ after log  running",
        "│  └─ on_failure page  stopped",
        "└─ wants (completed) job  failed: exit code 3",
        "page  stopped",
        "proxy  running",
        "└─ requires db  starting …",
    ]


def test_a_part_of_the_graph():
    assert list(selected(make_graph(SITE), ["proxy"])) == ["db", "log", "page", "proxy"]
    assert tree("job") == ["job  failed: exit code 3"]


def test_lines_have_at_most_the_width_of_the_terminal():
    site = [instance("w" * 40, "stopped", ("requires", "x" * 60), reason="y" * 200), instance("x" * 60)]
    assert [len(line) <= 80 for line in tree(site=site)] == [True, True]
    assert all(len(line) <= 40 for line in tree(site=site, width=40))


def test_which_edges_are_met():
    edges = [edge for node in make_graph(SITE).values() for edge in node["edges"]]
    assert [(edge["name"], edge["met"]) for edge in edges] == [
        *(("db", False), ("job", True), ("log", True), ("page", None), ("db", False)),
    ]


@pytest.mark.parametrize(
    ("condition", "state", "last_exit", "met"),
    [
        ("ready", "frozen", {}, False),
        ("started", "frozen", {}, True),
        ("started", "backoff", {}, False),
        ("completed", "failed", {}, True),
        ("completed", "failed", {"failure": "cannot execute x"}, False),
        ("completed", "exited", {"skipped": "condition_host = a"}, False),
        ("completed", "stopped", {}, False),
        ("completed_successfully", "failed", {}, False),
        ("completed_successfully", "exited", {}, True),
        ("completed_successfully", "exited", {"skipped": "condition_host = a"}, False),
    ],
)
def test_conditions(condition, state, last_exit, met):
    db = instance("db", state, ready=False, **last_exit)
    site = [instance("web", "stopped", ("requires", "db", condition)), db]
    assert make_graph(site)["web"]["edges"][0]["met"] is met


def test_a_start_waits_by_the_keys_of_the_configuration():
    assert ORDERING_KEYS == relations.ORDERING_KEYS


def test_a_long_chain_is_a_tree():
    site = [instance(f"w{n}", "running", ("after", f"w{n + 1}")) for n in range(1999)] + [instance("w1999")]
    assert len(tree(site=site)) == 2000


def test_control_characters_do_not_reach_the_terminal():
    assert tree(site=[instance("web", "failed", reason="a\nb")]) == ["web  failed: a b"]
    assert "\x1b" not in "".join(tree(site=[instance("web", "failed", reason="\x1b[2J")]))


def test_an_earlier_version_reports_no_edges():
    site = [{"name": "web", "state": "running", "ready": True, "reason": ""}]
    assert tree(site=site) == ["web  running"]


def test_dot():
    text = "\n".join(dot_lines(make_graph(SITE[2:4])))
    assert '"db" [label="db\\nstarting"];' in text
    assert '"db" -> "log" [label="after"];' in text
    assert '"db" -> "page" [label="on_failure"];' in text
