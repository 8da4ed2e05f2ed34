import datetime
import re
from pathlib import Path

import jsonschema
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsupervisor.logs.record import JsonFormat, schema, timestamp_now
from tests.logs.records import LABELS, records
from tests.needs import ROOT

TIME = "2026-01-31T12:00:00.000000Z"
JSON = JsonFormat()
OUTPUT = {"timestamp": TIME, "level": "info", "event": "output", **LABELS, "stream": "stdout", "message": "hello"}


class Nameless:
    def __str__(self) -> str:
        raise RuntimeError("no words for it")


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters())  # lone surrogates included, as in file names that are not UTF-8
    | st.binary()
    | st.builds(Path, st.just("/srv"))
    | st.builds(Nameless),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner)
        | st.dictionaries(st.text(st.characters()) | st.integers() | st.binary(), inner, max_size=3)
    ),
    max_leaves=8,
)


def test_time_stamps_are_rfc3339_in_utc_with_microseconds():
    stamp = timestamp_now()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", stamp)
    age = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(stamp)
    assert abs(age) < datetime.timedelta(minutes=1)


def test_the_keys_that_every_record_has_come_first_and_cannot_be_overwritten():
    line = JSON.render_record(TIME, "info", "supervisor started", {"pid": 1, "level": "high", "timestamp": 0})
    assert line == b'{"timestamp":"%s","level":"info","event":"supervisor started","pid":1}\n' % TIME.encode()


@given(st.dictionaries(st.text(st.characters(), min_size=1), ANYTHING, max_size=4))
def test_whatever_is_logged_becomes_one_line_of_json(fields):
    line = JSON.render_record(TIME, "info", "anything", fields)
    assert line.count(b"\n") == 1
    assert orjson.loads(line)["event"] == "anything"


def test_values_that_json_does_not_have():
    fields = {"path": Path("/srv"), "raw": b"a\xff", "big": 2**70, "name": "\udc80", "set": {1}, "odd": Nameless()}
    (record,) = records(JSON.render_record(TIME, "info", "x", fields))
    assert [record[key] for key in fields] == ["/srv", "a\ufffd", str(2**70), "\\udc80", [1], "<Nameless>"]


@given(st.lists(st.tuples(st.binary(max_size=50).map(lambda line: line.replace(b"\n", b"")), st.booleans())))
def test_output_records_hold_the_line_as_text(lines):
    found = records(b"".join(JSON.render_lines(TIME, {**LABELS, "instance": 2}, "stderr", lines)))
    assert [(record["message"], record.get("partial", False)) for record in found] == [
        (line.decode("utf-8", "replace"), partial) for line, partial in lines
    ]
    assert all({**record, **LABELS, "instance": 2, "stream": "stderr"} == record for record in found)


@pytest.mark.parametrize(
    "changes",
    [
        {"timestamp": "2026-01-31T12:00:00Z"},
        {"timestamp": "2026-01-31T13:00:00.000000+01:00"},
        {"level": "notice"},
        {"level": "error"},
        {"event": ""},
        {"workload": "a b"},
        {"generation": None},
        {"pid": "4711"},
        {"stream": "stdlog"},
        {"message": None},
        {"partial": False},
        {"colour": "red"},
        {"event": "dropped"},
        {"event": "state", "from": "ready", "to": "asleep", "reason": ""},
        {"event": "exited", "code": None, "signal": 9, "core_dumped": False, "oom_killed": True},
        {"event": "exited", "code": 0, "signal": "SIGKILL", "core_dumped": False, "oom_killed": True},
        {"event": "action", "action": "restart", "cause": {}},
        {"event": "action", "action": "restart", "cause": {"by": "operator", "why": "because"}},
        {"event": "warning", "message": None},
    ],
)
def test_the_schema_refuses(changes):
    jsonschema.validate(OUTPUT, schema())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**OUTPUT, **changes}, schema())


@pytest.mark.parametrize(
    "fields",
    [
        {"event": "supervisor started", "version": "0.1.0"},
        {"event": "started", **LABELS},
        {"event": "ready", **LABELS},
        {"event": "state", **LABELS, "from": "running", "to": "backoff", "reason": "exit code 1"},
        {"event": "exited", **LABELS, "code": None, "signal": "SIGKILL", "core_dumped": False, "oom_killed": True},
        {"event": "exited", **LABELS, "code": 3, "signal": None, "core_dumped": False, "oom_killed": False},
        {"event": "action", **LABELS, "action": "start", "cause": {"by": "boot"}},
        {
            "event": "action",
            **LABELS,
            "action": "restart",
            "delay_sec": 0.1,
            "cause": {"exit": "exit code 1", "restart": "on-failure", "reason": "exit code 1"},
        },
        {
            "event": "action",
            **LABELS,
            "action": "restart",
            "cause": {
                "rule": "policy[0]",
                "line": 14,
                "when": "memory.events oom_kill",
                "file": "memory.events",
                "key": "oom_kill",
                "before": 0,
                "after": 1,
            },
        },
        {
            "event": "action",
            **LABELS,
            "action": "stop",
            "cause": {
                "rule": "policy[0]",
                "line": 0,  # of an included file
                "when": "uptime > 1h",
                "file": "uptime",
                "key": "",
                "before": 0,
                "after": 3600,
            },
        },
        {"event": "timer", "workload": "web", "do": "skip", "message": "not run: suspend = true"},
        {"event": "timer", "workload": "web", "do": "start", "message": "run: due", "late_sec": 0.002},
        {
            "event": "exec",
            **LABELS,
            "command": "id -un",
            "cause": {"by": "operator", "kind": "person", "detail": "uid 0, pid 1"},
            "exec": "1",
            "terminal": False,
        },
        {"event": "exec ended", **LABELS, "exec": "1", "code": 0, "signal": None, "took_sec": 0.01},
        {"event": "warning", "workload": "web@2", "instance": 2, "message": "processes do not die"},
    ],
)
def test_the_schema_accepts(fields):
    jsonschema.validate({"timestamp": TIME, "level": "info", **fields}, schema())


def test_the_schema_is_itself_valid():
    jsonschema.Draft202012Validator.check_schema(schema())


def test_the_examples_in_the_documentation_satisfy_the_schema():
    text = (ROOT / "docs" / "logs.md").read_text()
    examples = "".join(re.findall(r"^```json\n(.*?)^```", text, re.M | re.S))
    assert {record["event"] for record in records(examples.encode())} >= {"output", "action", "dropped"}


@given(st.lists(st.binary(max_size=30).map(lambda line: line.replace(b"\n", b"")), min_size=1), st.integers(0, 10**12))
def test_records_made_at_once_are_the_same_as_one_by_one(lines, seq):
    at_once = JSON.render_text(TIME, LABELS, "stdout", b"\n".join(lines), seq, len(lines))
    assert at_once == b"".join(JSON.render_lines(TIME, LABELS, "stdout", [(line, False) for line in lines], seq))
    assert [record["seq"] for record in records(at_once)] == list(range(seq, seq + len(lines)))


@pytest.mark.parametrize("seq", [0, 9_700, 9_999, 10_000, 12_340, 19_699, 19_700, 19_701, 10**12 + 5])
def test_records_made_at_once_have_all_digits_of_their_numbers(seq):
    lines = [b"100 %", b"\xff", b""] * 100
    at_once = JSON.render_text(TIME, LABELS, "stdout", b"\n".join(lines), seq, len(lines))
    assert [record["seq"] for record in records(at_once)] == list(range(seq, seq + len(lines)))
    assert [record["message"] for record in records(at_once)] == ["100 %", "\ufffd", ""] * 100
