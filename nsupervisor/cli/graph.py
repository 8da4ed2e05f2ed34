"""The graph of workloads and what their starts wait for, from their status: as a tree, in DOT, or as JSON. Pure."""

from __future__ import annotations

from nsupervisor.terminal.style import FAINT, MAGENTA, colorize, escape_control

TYPE_CHECKING = False  # importing typing takes time
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from typing import Any

    Graph = dict[str, dict[str, Any]]

ORDERING_KEYS = ("requires", "binds_to", "wants", "part_of", "after")
"""The keys by which a start waits; the edges of the others are shown, but not followed.

Those of `nsupervisor.config.relations`, which takes too long to import.
"""
_STARTED_STATES = ("running", "ready", "frozen")
_MIN_WIDTH = 20


def make_graph(instances: Iterable[Mapping[str, Any]]) -> Graph:
    """Return the workloads by name: their instances' states, the reason of one that is not up, and their edges.

    Each edge has the key, the other workload, the condition, and whether it is met; null if no start waits for it.
    """
    graph: Graph = {}
    by_workload: dict[str, list[Mapping[str, Any]]] = {}
    for instance in instances:
        by_workload.setdefault(instance["name"].partition("@")[0], []).append(instance)
    for name, members in by_workload.items():
        waiting = [instance for instance in members if not instance["ready"]]
        graph[name] = {
            "name": name,
            "states": [instance["state"] for instance in members],
            "reason": waiting[0]["reason"] if waiting else "",
            "edges": [
                {**edge, "met": _is_met(edge, by_workload.get(edge["name"], ()))}
                for edge in members[0].get("edges", ())  # an earlier version does not report them
            ],
        }
    return graph


def _is_met(edge: Mapping[str, str], others: Sequence[Mapping[str, Any]]) -> bool | None:
    if edge["key"] not in ORDERING_KEYS:
        return None
    return all(other["ready"] or _is_condition_met(edge["condition"], other) for other in others)


def _is_condition_met(condition: str, other: Mapping[str, Any]) -> bool:
    """Check a condition as `nsupervisor.core.edges.is_met` does; a program that never ran has not completed."""
    state, last_exit = other["state"], other.get("last_exit")
    match condition:
        case "started":
            return state in _STARTED_STATES
        case "completed":
            has_run = last_exit is not None and not last_exit.get("failure") and not last_exit.get("skipped")
            return state in ("exited", "failed") and has_run
        case "completed_successfully":
            return state == "exited" and not (last_exit or {}).get("skipped")
    return False


def selected(graph: Graph, names: Iterable[str]) -> Graph:
    """Return the part of a graph that workloads of these names reach."""
    reached: Graph = {}
    queue = [name for name in names if name in graph]
    for name in queue:  # grows in the loop
        if name not in reached:
            reached[name] = graph[name]
            queue += [edge["name"] for edge in graph[name]["edges"] if edge["name"] in graph]
    return {name: node for name, node in graph.items() if name in reached}


def tree_lines(graph: Graph, roots: Sequence[str], colour: bool, width: int) -> Iterator[str]:
    """Yield a tree below each root, of at most `width` columns: each workload above those that its start waits for.

    A workload that is shown already is not unfolded again ("…"). Roots: those that no other one waits for, by default.
    """
    waited_for = {edge["name"] for node in graph.values() for edge in node["edges"] if edge["key"] in ORDERING_KEYS}
    shown: set[str] = set()
    for root in roots or [name for name in graph if name not in waited_for]:
        # An explicit stack: a chain may be longer than Python's recursion limit.
        stack: list[tuple[str, str, dict[str, Any] | None, str]] = [("", "", None, root)]
        while stack:
            head, below, edge, name = stack.pop()
            node = graph.get(name)
            is_again = name in shown and bool(node and node["edges"])
            yield _line(head, edge, name, node, is_again, colour, width)
            is_followed = edge is None or edge["key"] in ORDERING_KEYS
            if node is None or name in shown or not is_followed:
                continue
            shown.add(name)
            edges = node["edges"]
            for number, inner in reversed(list(enumerate(edges))):
                is_last = number == len(edges) - 1
                branch, indent = ("└─ ", "   ") if is_last else ("├─ ", "│  ")
                stack.append((below + branch, below + indent, inner, inner["name"]))


def _line(
    head: str,
    edge: Mapping[str, Any] | None,
    name: str,
    node: Mapping[str, Any] | None,
    is_again: bool,
    colour: bool,
    width: int,
) -> str:
    relation = ""
    if edge is not None:
        condition = "" if edge["condition"] == "ready" else f" ({edge['condition']})"
        relation = f"{edge['key']}{condition} "
    state = _state_text(node["states"]) if node is not None else "not in the configuration"
    reason = f": {node['reason']}" if node is not None and node["reason"] and not is_again else ""
    text = f"{relation}{name}  {state}{' …' if is_again else reason}"
    room = max(width - len(head), _MIN_WIDTH)
    text = escape_control(text).replace("\n", " ")
    if len(text) > room:
        text = f"{text[: room - 1]}…"
    is_waiting = edge is not None and edge["met"] is False
    return colorize(head, FAINT, colour) + colorize(text, MAGENTA if is_waiting else "", colour)


def _state_text(states: Sequence[str]) -> str:
    if len(states) == 1:
        return states[0]
    return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))


def dot_lines(graph: Graph) -> Iterator[str]:
    """Yield the graph in the language of Graphviz, dot(1): an edge leads from a workload to one that it names."""
    yield "digraph nsupervisor {"
    yield "  rankdir=LR;"
    for name, node in graph.items():
        yield f'  "{name}" [label="{name}\\n{_state_text(node["states"])}"];'
    for name, node in graph.items():
        for edge in node["edges"]:
            condition = "" if edge["condition"] == "ready" else f"\\n{edge['condition']}"
            style = ", style=dashed" if edge["met"] is False else ""
            yield f'  "{name}" -> "{edge["name"]}" [label="{edge["key"]}{condition}"{style}];'
    yield "}"
