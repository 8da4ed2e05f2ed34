"""Errors of connections are all counted, and few of them logged."""

import trio

from nsupervisor.api.http.errors import ERROR_KINDS, ConnectionErrors, describe, shorten


async def test_a_kind_is_logged_once_a_minute_with_the_number_of_those_that_were_not(autojump_clock):
    records = []
    errors = ConnectionErrors(lambda level, fields: records.append((level, dict(fields))))
    for _ in range(5):
        errors.count("unix", "timeout", "slow", peer="uid 0")
    errors.count("tcp", "timeout", "slow")
    await trio.sleep(59.9)
    errors.count("unix", "timeout", "slow")
    assert [fields.get("suppressed") for _, fields in records] == [None, None]
    await trio.sleep(0.2)
    errors.count("unix", "timeout", "slow again")
    assert records[0] == ("warning", {"listener": "unix", "kind": "timeout", "message": "slow", "peer": "uid 0"})
    assert records[2] == ("warning", {"listener": "unix", "kind": "timeout", "message": "slow again", "suppressed": 5})
    await trio.sleep(61)
    errors.count("unix", "timeout", "slow")
    assert "suppressed" not in records[3][1]
    assert errors.counts == {("unix", "timeout"): 8, ("tcp", "timeout"): 1}


async def test_defects_are_errors_and_the_rest_are_warnings():
    levels = {}
    for kind in ERROR_KINDS:
        ConnectionErrors(lambda level, fields: levels.update({fields["kind"]: level})).count("tcp", kind, "")
    assert {kind for kind, level in levels.items() if level == "error"} == {"handler", "internal"}


def test_an_exception_is_described_in_one_line_with_its_place():
    def fail():
        raise ExceptionGroup("", [ValueError("a\nb")])

    try:
        fail()
    except ExceptionGroup as error:
        error.exceptions[0].__traceback__ = error.__traceback__
        text = describe(error)
    assert text.startswith("ValueError: a b (at test_connection_errors.py:")
    assert " fail < " in text


def test_long_texts_are_cut():
    assert len(shorten("x" * 10_000)) < 600
