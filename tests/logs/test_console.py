import pytest

from nsupervisor.logs.console import ConsoleFormat

TIME = "2026-01-31T12:00:00.123456Z"


def rendered(line: bytes) -> str:
    """Return a line without its time, which is local."""
    return line.decode().split("  ", 1)[1]


@pytest.mark.fault("D14", "D15")
def test_records_were_shown_as_python_values():
    fields = {"workload": "web", "from": "ready", "to": "stopping", "reason": "stopped by operator"}
    assert rendered(ConsoleFormat().render_record(TIME, "info", "state", fields)) == (
        "web         state        ready → stopping: stopped by operator\n"
    )
    fields = {"workload": "web", "generation": 2, "action": "stop", "cause": {"by": "operator"}}
    assert rendered(ConsoleFormat().render_record(TIME, "info", "action", fields)) == (
        "web         action       stop by operator\n"
    )


def test_what_there_is_not_is_left_out():
    """A program that a signal had ended was said to have exited with code=None."""
    fields = {"workload": "web", "pid": 7, "code": None, "signal": "SIGKILL", "core_dumped": False, "oom_killed": False}
    line = ConsoleFormat().render_record(TIME, "warning", "exited", fields)
    assert rendered(line) == "web         exited       killed by SIGKILL, pid 7\n"


def test_output_stands_behind_the_stream_and_says_where_it_was_cut():
    found = ConsoleFormat().render_lines(
        TIME, {"workload": "web@2", "pid": 1}, "stderr", [(b"hello", True), (b"x", False)]
    )
    assert [rendered(line) for line in found] == [
        "web@2       stderr       hello…\n",
        "web@2       stderr       x\n",
    ]


def test_a_workload_cannot_send_control_sequences_to_the_terminal():
    (line,) = ConsoleFormat(colour=True).render_lines(
        TIME, {"workload": "web"}, "stdout", [(b"a\tb\x1b[2J\r\x9b1m\0", False)]
    )
    assert line.decode().endswith("  a\tb\\x1b[2J\\x0d\ufffd1m\\x00\n")


@pytest.mark.parametrize("event", ["action", "state", "exited", "dropped", "reload", "supervisor started", "other"])
def test_a_record_without_its_usual_fields_is_shown_too(event):
    line = ConsoleFormat().render_record(TIME, "info", event, {"workload": "web", "x": {"y": [1, None, True]}})
    assert rendered(line) == f"web         {event:<11}  x (y 1, none, yes)\n"


def test_a_traceback_follows_on_lines_of_its_own():
    line = ConsoleFormat().render_record(TIME, "error", "failed", {"exception": "Traceback\n  here"})
    assert line.decode().split("\n")[1:] == ["    Traceback", "      here", ""]


def test_surrogates_do_not_stop_it():
    assert b"\\udc80" in ConsoleFormat().render_record(TIME, "error", "failed", {"file": "\udc80"})


def test_colours_on_terminals_unless_unwanted(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert ConsoleFormat.for_terminal(True).colour
    assert not ConsoleFormat.for_terminal(False).colour
    monkeypatch.setenv("NO_COLOR", "")  # no-color.org: only when not empty
    assert ConsoleFormat.for_terminal(True).colour
    monkeypatch.setenv("NO_COLOR", "1")
    assert not ConsoleFormat.for_terminal(True).colour
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert not ConsoleFormat.for_terminal(True).colour
