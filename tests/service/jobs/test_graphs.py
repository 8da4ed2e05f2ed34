"""Any graph of dependencies: starts wait for their conditions and end, stops are final, cycles are found.

The graphs are of Hypothesis, and the service runs on a simulated machine.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from nsupervisor.config.load import parse
from nsupervisor.config.problems import ConfigError
from nsupervisor.core import dependencies, edges
from nsupervisor.core.lifecycle import State
from nsupervisor.service.jobs.jobs import Jobs
from tests.service.simulated import Client, make_site, serve, workload

NAMES = "abcdef"
KEYS = ("requires", "binds_to", "wants", "part_of", "after")
PROGRAMS = ("", "", "term=0@0.3", "exit=0@0.2", "exit=1@0.2", "exit=1@0")
ENDING_PROGRAMS = PROGRAMS[3:]
SETTLED_S = 60.0


class Node(NamedTuple):
    """A workload of a graph."""

    type: str
    program: str
    edges: tuple[tuple[str, str, str], ...]
    """Key, name and condition of each edge."""


@st.composite
def graphs(draw: st.DrawFn, *, acyclic: bool = True) -> dict[str, Node]:
    """Draw workloads with edges; without `acyclic`, in any direction."""
    names = NAMES[: draw(st.integers(2, len(NAMES)))]
    types = {name: draw(st.sampled_from(("simple", "oneshot"))) for name in names}
    nodes = {}
    for number, name in enumerate(names):
        others = names[:number] if acyclic else names
        found: dict[str, tuple[str, str, str]] = {}
        for other in draw(st.lists(st.sampled_from(others), unique=True, max_size=3)) if others else ():
            key = draw(st.sampled_from(KEYS))
            conditions = ("ready", "started", *(("completed",) if types[other] == "oneshot" else ()))
            condition = draw(st.sampled_from(conditions)) if key in ("requires", "wants", "after") else "ready"
            found[other] = key, other, condition
        programs = PROGRAMS if types[name] == "simple" else ENDING_PROGRAMS
        nodes[name] = Node(types[name], draw(st.sampled_from(programs)), tuple(found.values()))
    return nodes


def text_of(graph: dict[str, Node]) -> str:
    """Return the configuration of a graph."""
    texts = []
    for name, node in graph.items():
        keys = []
        for key in KEYS:
            related = [(other, condition) for k, other, condition in node.edges if k == key]
            if key in ("requires", "wants", "after"):
                values = [f'{{ name = "{other}", condition = "{condition}" }}' for other, condition in related]
            else:
                values = [f'"{other}"' for other, _ in related]
            if values:
                keys.append(f"{key} = [{', '.join(values)}]")
        common = ("autostart = false", 'restart = "no"', f'type = "{node.type}"')
        texts.append(workload(name, *common, *keys, program=node.program))
    return "".join(texts)


commands = st.lists(
    st.tuples(
        st.sampled_from(("start", "start", "stop", "restart")), st.sampled_from(NAMES), st.sampled_from((0.0, 0.5))
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=60, deadline=None)
@given(graphs(), commands)
def test_starts_wait_and_end_and_stops_are_final(graph: dict[str, Node], steps: list[tuple[str, str, float]]) -> None:
    problems: list[str] = []

    def check_start(jobs: Jobs, name: str) -> None:
        actor = jobs.actors[name]
        for wait in dependencies.waits(actor.workload):
            (other,) = jobs.actors.instances(wait.name)
            if wait.is_required and not edges.is_met(wait.condition, other.lifecycle, other.workload):
                problems.append(f"{name} starts, and {wait.name} is {other.lifecycle.state} ({wait.condition})")

    async def act(service: Client) -> None:
        supervisor, last = service.supervisor, dict[str, str]()

        def listen(name: str, _w: Any, before: Any, _i: Any, _n: Any, transition: Any) -> None:
            after = transition.state.lifecycle
            if after.state is State.STARTING and after.generation != before.lifecycle.generation:
                check_start(supervisor.jobs, name)

        supervisor.context.listeners.add(listen)
        answers = []
        for verb, name, pause_s in steps:
            if name in graph:
                answers.append(await service.begin(service.command, verb, name))
                last |= dict.fromkeys(supervisor.jobs.actors, "") if verb != "stop" else {name: "stop"}
                await trio.sleep(pause_s)
        await trio.sleep(SETTLED_S)
        for name, verb in last.items():
            if verb == "stop" and service.state(name) not in ("stopped",):
                problems.append(f"{name} was stopped, and is {service.state(name)}")
        for answer in answers:
            if not answer:
                problems.append("a command has no end")
            elif not answer[0]["ok"] and not answer[0]["message"]:
                problems.append(f"a command failed without a reason: {answer[0]}")
        for actor in supervisor.jobs.all_actors:
            if supervisor.jobs.has_pending_start(actor) and not supervisor.jobs.is_blocked(actor):
                problems.append(f"{actor.name} still waits, and nothing blocks it")
            if supervisor.jobs.is_blocked(actor) and "requires" not in service.status(actor.name)["reason"]:
                problems.append(f"{actor.name} is blocked without a reason")

    serve(make_site(text_of(graph)), act)
    assert problems == []


def has_cycle(graph: dict[str, Node]) -> bool:
    """Remove nodes without edges to others until none is left; a cycle is what stays."""
    left = {name: {other for _, other, _ in node.edges} for name, node in graph.items()}
    while free := [name for name, others in left.items() if not others & left.keys()]:
        for name in free:
            del left[name]
    return bool(left)


@settings(max_examples=200, deadline=None)
@given(graphs(acyclic=False))
def test_every_cycle_is_found(graph: dict[str, Node]) -> None:
    if not has_cycle(graph):
        parse(text_of(graph), "f.toml")
        return
    with pytest.raises(ConfigError) as caught:
        parse(text_of(graph), "f.toml")
    assert any("closes a cycle" in problem.message for problem in caught.value.problems)
