"""Initiators: their texts, and what earlier versions have written."""

import pytest

from nsupervisor.core import events
from nsupervisor.core.initiators import (
    BOOT,
    CONFIGURATION,
    OPERATOR,
    RELOAD,
    SHUTDOWN,
    Initiator,
    by_relation,
    by_workload,
    person,
)
from nsupervisor.core.replay.trace import parse_input
from nsupervisor.core.serialize import from_json, to_json_sparse

ALL = (BOOT, CONFIGURATION, OPERATOR, RELOAD, SHUTDOWN, by_workload("web@2"), by_relation("db"))
RELATIONS = (by_relation("db", "binds_to"), by_relation("web", "upholds"), by_relation("web", "on_failure"))


@pytest.mark.parametrize("initiator", [*ALL, *RELATIONS, Initiator("timer", "night"), Initiator("token", "deploy")])
def test_a_text_has_all_parts(initiator):
    assert Initiator.from_text(str(initiator)).parts() == initiator.parts()


@pytest.mark.parametrize(
    ("initiator", "phrase"),
    [
        (person(1000, 4711), "by operator"),
        (by_relation("db"), "with db"),
        (by_relation("db", "part_of"), "with db (part_of)"),
        (by_relation("web", "upholds"), "for web (upholds)"),
        (Initiator("rule", "policy[0]", "pids.current > 9"), "by policy[0] (pids.current > 9)"),
        (by_workload("pool"), "by workload pool"),
    ],
)
def test_phrases(initiator, phrase):
    assert initiator.phrase == phrase


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("operator", "person"),
        ("boot", "boot"),
        ("with db", "dependency"),
        ("Ann", "person"),
        ("workload a", "workload"),
    ],
)
def test_texts_of_earlier_versions(text, kind):
    command = parse_input({"event": "Stop", "by": text})
    assert (command, command.requested_by, command.requested_by.kind) == (events.Stop(text), text, kind)


def test_a_trace_line_without_an_initiator_is_of_a_person():
    assert parse_input({"event": "Start"}).requested_by.kind == "person"


def test_a_trace_has_the_details_of_a_person():
    initiator = person(1000, 4711)
    line = {"event": "Stop", **to_json_sparse(events.Stop(initiator)), "initiator": initiator.parts()}
    assert parse_input(line).requested_by.detail == "uid 1000, pid 4711"


@pytest.mark.parametrize("parts", [None, 7, {"kind": "king"}, {"kind": "person", "name": 7}, {}])
def test_a_trace_line_with_something_else_is_refused(parts):
    with pytest.raises(ValueError, match="in place of"):
        parse_input({"event": "Stop", "initiator": parts})


def test_a_command_is_stored_with_a_text():
    assert to_json_sparse(events.Stop(person(0, 1))) == {}  # the default of a text
    assert to_json_sparse(events.Stop(BOOT)) == {"by": "boot"}
    assert from_json(events.Stop, {"by": "boot"}).requested_by.kind == "boot"
    with pytest.raises(ValueError, match="in place of"):
        from_json(events.Stop, {"by": 7})
