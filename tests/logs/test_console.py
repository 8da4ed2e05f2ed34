from nsupervisor.logs.console import ConsoleFormat

TIME = "2026-01-31T12:00:00.123456Z"


def test_service_records_are_aligned_with_workload_event_and_fields():
    fields = {"workload": "web", "pid": 12, "reason": "exit code 1", "cause": {"by": "operator"}}
    line = ConsoleFormat().render_record(TIME, "warning", "state", fields)
    assert line.decode().split(" ", 1)[1] == (
        "warning  web             state pid=12 reason='exit code 1' cause={by=operator}\n"
    )


def test_what_there_is_not_is_left_out():
    """A program that a signal had ended was said to have exited with code=None."""
    fields = {"workload": "web", "pid": None, "code": None, "signal": "SIGKILL"}
    line = ConsoleFormat().render_record(TIME, "warning", "exited", fields)
    assert line.decode().split(" ", 1)[1] == "warning  web             exited signal=SIGKILL\n"


def test_output_stands_behind_the_name_and_says_where_it_was_cut():
    found = ConsoleFormat().render_lines(
        TIME, {"workload": "web@2", "pid": 1}, "stderr", [(b"hello", True), (b"x", False)]
    )
    assert [line.decode().split(" ", 1)[1] for line in found] == [
        "stderr   web@2           | hello…\n",
        "stderr   web@2           | x\n",
    ]


def test_a_workload_cannot_send_control_sequences_to_the_terminal():
    (line,) = ConsoleFormat(colour=True).render_lines(
        TIME, {"workload": "web"}, "stdout", [(b"a\tb\x1b[2J\r\x9b1m\0", False)]
    )
    assert line.decode().endswith("| a\tb\\x1b[2J\\x0d\ufffd1m\\x00\n")


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
