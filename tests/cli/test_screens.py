"""Whole screens: three and three hundred workloads, healthy and failing, at 80 to 200 columns."""

from datetime import datetime, timedelta

import pytest

from nsupervisor.cli.commands.doctor import section_lines
from nsupervisor.cli.commands.plan import plan_lines
from nsupervisor.cli.commands.status import format_details, overview_lines
from nsupervisor.cli.probes import LIMITED, MISSING, OK, Finding
from nsupervisor.cli.screen import format_keys, format_rows, parse_keys
from nsupervisor.terminal.lines import RecordLines, fold, wrap
from nsupervisor.terminal.style import BOLD, FAINT, GREEN, MAGENTA, RED
from tests.api.standin import instance

NOW = datetime(2026, 1, 31, 12, 0, 0).astimezone()


def record(seconds_ago, event, level="info", **fields):
    time = (NOW - timedelta(seconds=seconds_ago)).isoformat(timespec="milliseconds")
    return {"timestamp": time, "level": level, "event": event, "workload": "web", "generation": 1, **fields}


CRASHED = {"code": 3, "signal": None, "core_dumped": False, "oom_killed": False}
THREE = [
    instance("web", "ready", reason="started by boot", status_text="serving 3 requests a second"),
    instance("db", reason="started by boot", memory_max=None),
    instance("job", "backoff", reason="exit code 3", next_start_sec=4.2, restarts=2, memory_current=4096),
]


LOG = {"file": None, "files": {}}


def no_records(log=LOG):
    return {"log": log, "records": []}


def lines_of(text):
    return text.strip("\n").split("\n")


@pytest.mark.fault("D15")
def test_status_of_three_workloads():
    assert overview_lines(THREE, 100, False, NOW) == lines_of("""
NAME  STATE     PID  UPTIME  RESTARTS     MEMORY  PIDS  DETAIL
web   ready    4242   1d 2h         0  12.3M/64M     3  serving 3 requests a second
db    running  4242   1d 2h         0      12.3M     3  started by boot
job   backoff     -       -         2          -     -  exit code 3; next start in 4.2 s
""")


def test_what_does_not_fit_is_cut_visibly():
    assert overview_lines(THREE, 80, False, NOW) == lines_of("""
NAME  STATE     PID  UPTIME  RESTARTS     MEMORY  PIDS  DETAIL
web   ready    4242   1d 2h         0  12.3M/64M     3  serving 3 requests a se…
db    running  4242   1d 2h         0      12.3M     3  started by boot
job   backoff     -       -         2          -     -  exit code 3; next start…
""")


@pytest.mark.fault("D7")
def test_blocked_output_is_shown_instead_of_what_the_program_says_of_itself():
    blocked = {**THREE[0], "output_blocked_sec": 12.7, "output_blocked_by": "no space on /logs/web.log", **no_records()}
    text = "blocked for 12 s: no space on /logs/web.log"
    assert overview_lines([blocked], 110, False, NOW)[1].endswith(f"  output {text}")
    assert f"  output      {text}" in format_details(blocked, False, NOW).splitlines()


def test_status_of_three_hundred_workloads_ends_with_a_summary():
    states = ["running"] * 290 + ["failed"] * 7 + ["backoff", "backoff", "exited"]
    many = [instance(f"w{number:03}", state) for number, state in enumerate(states)]
    lines = overview_lines(many, 100, False, NOW)
    assert len(lines) == 304
    assert lines[-3:] == [
        "",
        "300 instances: 290 running, 7 failed, 2 backoff, 1 exited",
        "Only these: nsupervisor status --state failed --state backoff",
    ]
    assert overview_lines(many[:290], 100, False, NOW)[-1] == "290 instances: 290 running"
    assert overview_lines([*many[290:]] * 2, 100, False, NOW)[-1].startswith("Only these:")
    assert overview_lines([*many[290:297]] * 2, 100, False, NOW)[-1] == "14 instances: 14 failed"


def test_states_have_colours_that_are_readable_on_dark_and_light():
    lines = overview_lines(THREE, 100, True, NOW)
    assert "\x1b[32mready  \x1b[0m" in lines[1]
    assert "\x1b[35mbackoff\x1b[0m" in lines[3]
    basic = {RED, GREEN, MAGENTA, FAINT, BOLD, "0"}  # colours of the terminal's own theme, and no background
    assert {part.partition("m")[0] for line in lines for part in line.split("\x1b[")[1:]} <= basic


PALETTES = {
    "xterm": {RED: "cd0000", GREEN: "00cd00", "33": "cdcd00", "34": "0000ee", MAGENTA: "cd00cd", "36": "00cdcd"},
    "linux": {RED: "aa0000", GREEN: "00aa00", "33": "aa5500", "34": "0000aa", MAGENTA: "aa00aa", "36": "00aaaa"},
    "tango": {RED: "cc0000", GREEN: "4e9a06", "33": "c4a000", "34": "3465a4", MAGENTA: "75507b", "36": "06989a"},
    "macOS": {RED: "990000", GREEN: "00a600", "33": "999900", "34": "0000b2", MAGENTA: "b200b2", "36": "00a6b2"},
}
"""The default colours of terminals, by their parameter of SGR."""


def contrast(colour, background):
    """The contrast ratio of the Web Content Accessibility Guidelines 2.1: from 1 to 21."""

    def luminance(colour):
        parts = [int(colour[start : start + 2], 16) / 255 for start in (0, 2, 4)]
        red, green, blue = (part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    darker, lighter = sorted((luminance(colour), luminance(background)))
    return (lighter + 0.05) / (darker + 0.05)


def test_no_colour_is_hard_to_read_on_black_or_on_white():
    def worst(colour):
        return min(
            contrast(palette[colour], ground) for palette in PALETTES.values() for ground in ("000000", "ffffff")
        )

    assert {colour for colour in PALETTES["xterm"] if worst(colour) > 2.1} == {RED, GREEN, MAGENTA}


def test_a_wide_terminal_also_shows_the_commands():
    assert overview_lines([THREE[0], {**THREE[2], "command": ["sh", "-c", "import all\nof it"]}], 120, False, NOW) == (
        lines_of("""
NAME  STATE     PID  UPTIME  RESTARTS     MEMORY  PIDS  DETAIL                            COMMAND
web   ready    4242   1d 2h         0  12.3M/64M     3  serving 3 requests a second       sleep infinity
job   backoff     -       -         2          -     -  exit code 3; next start in 4.2 s  sh -c 'import all of it'
""")
    )


def test_status_shows_since_when_a_workload_does_not_run():
    failed = record(200, "state", "error", **{"from": "running", "to": "failed", "reason": "exit code 3"})
    shown = instance("job", "failed", reason="exit code 3", last_event=failed)
    assert overview_lines([shown], 80, False, NOW)[1].endswith("  exit code 3 (3min 20s ago)")
    details = format_details({**shown, "log": LOG, "records": [failed]}, False, NOW)
    assert "\n  state       failed since 11:56:40.000, 3min 20s ago\n" in details


def test_details_show_the_log_files():
    both = {"file": "/logs/web.out", "files": {"stdout": "/logs/web.out", "stderr": "/logs/web.err"}}
    assert "\n  log         /logs/web.out, /logs/web.err\n" in format_details(
        {**THREE[0], **no_records(both)}, False, NOW
    )
    old = {"file": "/logs/web.log"}  # version 0.1.0
    assert "\n  log         /logs/web.log\n" in format_details({**THREE[0], **no_records(old)}, False, NOW)


@pytest.mark.fault("D14", "D15")
def test_details_of_a_workload_that_runs():
    records = [
        record(60, "action", action="start", cause={"by": "boot"}),
        record(59.9, "state", **{"from": "starting", "to": "running", "reason": "started by boot"}),
        record(59.5, "status", message="serving 3 requests a second"),
    ]
    shown = {**THREE[0], "uptime_sec": 60.0, "log": LOG, "records": records}
    assert format_details(shown, False, NOW, 80) == "\n".join(
        lines_of("""
web
  state       ready for 1min, since 11:59:00.000
  reason      started by boot
  status      "serving 3 requests a second"
  command     sleep infinity
  pid         4242
  starts      1
  memory      12.3M of 64M
  processes   3, no limit
  cpu time    1.2 s
  cgroup      /sys/fs/cgroup/nsupervisor/web

11:59:00.000  web         action       start by boot
11:59:00.100  web         state        starting → running: started by boot
11:59:00.500  web         status       serving 3 requests a second
""")
    )


@pytest.mark.fault("D15")
def test_details_of_a_workload_in_back_off():
    shown = {**THREE[2], "generation": 3, "last_exit": CRASHED, "cpu_usage_usec": None, **no_records()}
    assert format_details(shown, False, NOW) == "\n".join(
        lines_of("""
job
  state       backoff
  reason      exit code 3
  next start  in 4.2 s
  command     sleep infinity
  starts      3, 2 of them restarts
  last exit   exit code 3
  cgroup      /sys/fs/cgroup/nsupervisor/job
""")
    )


def test_details_show_the_description_and_the_command():
    command = ["python3", "-m", "http.server", "--directory", "/srv/my site", "--bind", "127.0.0.1", "8000"]
    shown = {**THREE[1], "description": "the public site", "command": command, **no_records()}
    assert format_details(shown, False, NOW, 64).splitlines()[:7] == lines_of("""
db
  description the public site
  state       running for 1d 2h, since 2026-01-30 09:56:55.750
  reason      started by boot
  command     python3 -m http.server --directory '/srv/my site'
              --bind 127.0.0.1 8000
  pid         4242
""")


def test_a_command_of_several_lines_stays_below_its_label():
    shown = {**THREE[1], "command": ["sh", "-c", "cd /srv\nexec \x1b[2Jserver"], **no_records()}
    assert "\n  command     sh -c 'cd /srv\n              exec \\x1b[2Jserver'\n" in format_details(
        shown, False, NOW, 80
    )


def test_a_very_long_command_is_cut_visibly():
    shown = {**THREE[1], "command": ["echo", "x" * 5000], **no_records()}
    (row,) = [line for line in format_details(shown, False, NOW).splitlines() if line.startswith("  command")]
    assert row == f"  command     echo {'x' * 995}…"


def test_the_command_of_a_supervisor_of_version_0_1_0_is_not_known():
    shown = {key: value for key, value in THREE[1].items() if key not in ("description", "command")}
    assert "command" not in format_details({**shown, **no_records()}, False, NOW)


def test_the_next_start_is_known_of_a_supervisor_of_version_0_1_0():
    decided = record(2, "action", action="restart", cause={"exit": "exit code 3"}, delay_sec=5.0)
    old = {key: value for key, value in THREE[2].items() if key not in ("next_start_sec", "status_text")}
    assert "  next start  in 3 s\n" in format_details({**old, "log": LOG, "records": [decided]}, False, NOW)


@pytest.mark.fault("D14")
def test_events_continue_below_each_other():
    reason = "given up after 2 starts within 60 s; the last: cannot execute /no/such/program: No such file or directory"
    state = record(0, "state", "error", **{"from": "starting", "to": "failed", "reason": reason})
    shown = [RecordLines(False, width).format(state, NOW).split("\n") for width in (80, 120, 200, 0)]
    assert shown[0] == lines_of("""
12:00:00.000  web         state        starting → failed: given up after 2
                                       starts within 60 s; the last: cannot
                                       execute /no/such/program: No such file or
                                       directory
""")
    assert shown[1] == lines_of("""
12:00:00.000  web         state        starting → failed: given up after 2 starts within 60 s; the last: cannot execute
                                       /no/such/program: No such file or directory
""")
    assert len(shown[2]) == len(shown[3]) == 1


def test_long_words_are_broken_and_a_narrow_terminal_gets_details_below_the_time():
    assert wrap("a bcdefgh ij", 4) == ["a", "bcde", "fgh", "ij"]
    assert wrap("", 4) == [""]
    lines = RecordLines(False, 50).format(record(0, "started", pid=7, note="x" * 60), NOW).split("\n")
    assert lines == [
        "12:00:00.000  web         started",
        "    pid 7, note",
        f"    {'x' * 46}",
        f"    {'x' * 14}",
    ]


def test_a_folded_line_keeps_its_columns_and_its_colours():
    head = f"\033[1mbroken\033[0m: failed since 21:07:39.717 (1min 27s ago): given up after {2} starts within 60 s"
    assert fold(head, 60, 2).split("\n") == [
        "\033[1mbroken\033[0m: failed since 21:07:39.717 (1min 27s ago): given up",
        "  after 2 starts within 60 s",
    ]
    row = "  wrote     connection refused: no route to host"
    assert fold(row, 40, 12).split("\n") == ["  wrote     connection refused: no route", "            to host"]
    assert fold(row, 0, 12) == row
    assert fold("/a/path/without/a/space", 10, 2) == "/a/path/without/a/space"


def change(key, before, after):
    return {"key": key, "how": "changed", "before": before, "after": after, "live": False}


PREFIX = '["python3", "-m", "http.server", "--directory", "/srv/site/public", "--bind", "127.0.0.1", '


@pytest.mark.fault("D11")
@pytest.mark.parametrize("width", [80, 120])
def test_a_long_value_that_differs_at_its_end_was_cut_before_the_difference(width):
    changes = [change("command", f'{PREFIX}"8000"]', f'{PREFIX}"8001"]'), change("nice", "5", "10")]
    step = {"name": "web", "do": "restart", "why": "command needs a new process", "changes": changes}
    quiet = {"name": "db", "do": "none", "why": "", "changes": []}
    result = {"steps": [step, quiet, quiet], "groups": [], "service": [change("log_level", '"info"', '"debug"')]}
    lines = list(plan_lines(result, False, width))
    assert [lines[0], *lines[4:]] == lines_of("""
web  restart  command needs a new process
    nice: 5 → 10
supervisor.log_level: "info" → "debug"; counts when the service starts the next time
1 to restart, 2 unchanged
""")
    assert lines[1] == "    command:"
    assert lines[2].endswith('"127.0.0.1", "8000"]')
    assert lines[3].endswith('"127.0.0.1", "8001"]')
    assert all(len(line) <= width for line in lines[1:4])


def test_a_plan_shows_equal_steps_of_instances_once():
    def step(name, before="1"):
        changes = [change("command", before, "2")]
        return {"name": name, "do": "restart", "why": "command needs a new process", "changes": changes}

    steps = [step(f"web@{number}") for number in range(1, 101)]
    steps += [step("db"), step("app@1"), step("app@3"), step("app@4", "3"), step("app@5", "3"), step("api@6", "3")]
    assert list(plan_lines({"steps": steps, "groups": [], "service": []}, False, 80)) == lines_of("""
web@1 to @100  restart  command needs a new process
    command: 1 → 2
db             restart  command needs a new process
    command: 1 → 2
app@1          restart  command needs a new process
    command: 1 → 2
app@3          restart  command needs a new process
    command: 1 → 2
app@4 to @5    restart  command needs a new process
    command: 3 → 2
api@6          restart  command needs a new process
    command: 3 → 2
106 to restart
""")


def test_a_plan_shows_each_difference_of_the_next_start_once():
    steps = [
        {"name": name, "do": "none", "why": "", "changes": [], "next_start": ["it has a session keyring of its own"]}
        for name in ("web@1", "web@2", "web@3", "web@4", "web@5", "web@6", "db")
    ]
    steps[-1]["next_start"].append("it has failed if it ends before it has sent READY=1, whatever its exit status")
    assert list(plan_lines({"steps": steps, "groups": [], "service": []}, False, 60)) == lines_of("""
An earlier version started what runs. The next start differs:
  web@1, web@2, web@3, web@4, web@5 and 2 more: it has a
    session keyring of its own
  db: it has failed if it ends before it has sent READY=1,
    whatever its exit status
7 unchanged
""")


@pytest.mark.fault("D23")
def test_doctor_repeated_the_same_advice():
    root = "run as root"
    findings = [
        Finding("pid", LIMITED, "only in a user namespace", root),
        Finding("uts", LIMITED, "only in a user namespace", root),
        Finding("time", LIMITED, "not at all", root),
        Finding("user", OK, "can be made"),
        Finding("a_long_name_of_a_probe", MISSING, "not here", "install it"),
    ]
    assert list(section_lines(findings, 0, False)) == lines_of("""
  pid, uts           limited  only in a user namespace [1]
  time               limited  not at all [1]
  user               ok       can be made
  a_long_name_of_a_probe
                     missing  not here. To do: install it
  [1] to do                   run as root
""")


@pytest.mark.fault("D15")
def test_the_keys_of_top_lost_quit_on_120_columns():
    assert format_keys(120, scrolls=False) == (
        "q quit, s state, c CPU, m memory, p processes, i I/O, t network, w pressure, n name, r reverse"
    )
    assert format_keys(80, scrolls=True) == (
        "q quit, ↑ ↓ page up, page down scroll, s state, c CPU, m memory, p processes, …"
    )
    assert format_keys(40, scrolls=False) == "q quit, s state, c CPU, m memory, …"


def test_top_says_which_rows_it_shows():
    assert format_rows(3, range(3)) == "3 instances"
    assert format_rows(300, range(20, 40)) == "21-40 of 300 instances"


def test_keys_that_scroll_and_keys_without_a_meaning():
    assert parse_keys(b"q\x1b[A\x1b[5~R\x1bOF\x1b[15~\xff\x1b") == ["q", "up", "page up", "r", "end"]
