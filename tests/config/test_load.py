"""Loading: values, and every problem with its line and the advice to fix it."""

import math
import os
import subprocess
import sys

import pytest

from nsupervisor.config.conditions import parse_condition
from nsupervisor.config.load import key_slots, load, parse, parse_sound_parts
from nsupervisor.config.model import Config, IdMapping, MountConfig, Resources, WorkloadConfig
from nsupervisor.config.problems import ConfigError
from nsupervisor.config.relations import DependencyConfig
from nsupervisor.config.to_toml import to_toml


def problems(text: str) -> list[str]:
    """Return the lines of the error for a text, without the file's name; [] if it is accepted."""
    try:
        parse(text, "f.toml")
    except ConfigError as error:
        return [str(problem).removeprefix("f.toml:") for problem in error.problems]
    return []


def web(text: str) -> list[str]:
    """Return the same for keys of a workload; the first key is on line 3."""
    return problems(f'[workload.web]\ncommand = ["a"]\n{text}')


def workload(text: str) -> WorkloadConfig:
    return parse(f'[workload.web]\ncommand = ["a"]\n{text}', "f.toml").workloads["web"]


def test_an_empty_file_is_a_supervisor_without_workloads() -> None:
    assert parse("", "f.toml") == Config("f.toml")


def test_defaults() -> None:
    limits = Resources(pids_max=2048)  # of the security profile
    assert workload("") == WorkloadConfig("web", ("a",), resources=limits)
    assert workload("").resources.of_profile == {"pids_max"}


def test_values_become_what_the_program_computes_with() -> None:
    w = workload(
        """
restart_sec = "1min 30s"
restart_max_delay_sec = 100
timeout_stop_sec = "infinity"
umask = "0027"
kill_signal = "INT"
success_exit_status = [0, "TERM"]
environment = { A = "100%" }
mounts = [{ type = "tmpfs", destination = "/tmp", options = ["size=1M"] }]
security = { limit_nofile = "1024:infinity", limit_core = 0, limit_memlock = "64K" }
namespaces = { user = true, time = true, time_offsets = { boottime = "-1h" } }
user_namespace = { uid_mappings = [{ container_id = 0, host_id = 100000, size = 65536 }] }
log = { max_line = "1K", stderr = "none" }
[workload.web.resources]
memory_max = "1.5G"
memory_high = "max"
cpu_max = "150%"
cpuset_cpus = "1,0"
pids_max = 10
[[workload.web.policy]]
when = "pids.current >= 90%"
for = "5s"
action = "signal"
signal = "HUP"
"""
    )
    assert (w.restart_sec, w.restart_max_delay_sec, w.timeout_stop_sec) == (90.0, 100.0, math.inf)
    assert (w.umask, w.kill_signal, w.success_exit_status) == (0o027, 2, (0, "SIGTERM"))
    assert w.environment == {"A": "100%"}
    assert w.mounts == (MountConfig(type="tmpfs", destination="/tmp", options=("size=1M",)),)
    assert w.security.rlimits == {"nofile": (1024, -1), "core": (0, 0), "memlock": (65536, 65536)}
    assert w.namespaces.time_offsets == {"boottime": -3600.0}
    assert w.user_namespace.uid_mappings == (IdMapping(0, 100000, 65536),)
    assert (w.log.max_line, w.log.stdout, w.log.stderr) == (1024, "journal", "none")
    assert (w.resources.memory_max, w.resources.memory_high) == (3 * 2**29, None)
    assert (w.resources.cpu_max, w.resources.cpuset_cpus, w.resources.pids_max) == ((150000, 100000), "0-1", 10)
    (rule,) = w.policy
    assert rule.when == parse_condition("pids.current >= 90%")
    assert (rule.for_, rule.action, rule.signal, rule.name, rule.line) == (5.0, "signal", 1, "policy[0]", 22)


def test_workloads_keep_the_files_order() -> None:
    names = ["zebra", "apple", "mango"]
    text = "".join(f'[workload.{name}]\ncommand = ["a"]\n' for name in names)
    assert list(parse(text, "f.toml").workloads) == names


def test_the_form_of_a_problem() -> None:
    text = '[workload.web]\ncommand = ["a"]\n\n[workload.web.resources]\nmemory_max = "64 bananas"\n'
    with pytest.raises(ConfigError) as caught:
        parse(text, "nsupervisor.toml")
    assert str(caught.value) == (
        'nsupervisor.toml:5: workload.web.resources.memory_max: "64 bananas" is not a size; write for example "64M"'
    )


def test_all_problems_of_a_file_come_at_once_in_the_order_of_its_lines() -> None:
    text = """\
[supervisor]
log_level = "loud"
colour = "blue"
[workload.web]
command = "sleep 10"
requires = ["db", "dbb"]

resources = { memory_max = true, pids_max = "max" }
[[workload.web.policy]]
when = "memory.events oom_kil"
action = "restart"
[[workload.web.policy]]
when = "pids.current >= 90%"
action = "signal"
[workload.db]
restart_sec = "soon"
[workload."we b"]
[workload.late]
command = []
"""
    assert problems(text) == [
        '2: supervisor.log_level: "loud" is not one of the choices; write "debug", "info", "warning" or "error"',
        "3: supervisor.colour: is not a key of [supervisor]; remove it, or write one of name, runtime_directory, "
        "state_directory, isolation, exit_on, log_level, log_format, log_output, log_max_size, log_max_files, "
        "log_max_age, log_compress, orphans, log_directory, metrics",
        '5: workload.web.command: "sleep 10" is not a list; write ["sleep", "10"]',
        '6: workload.web.requires[1]: there is no workload "dbb"; did you mean "db"?',
        '8: workload.web.resources.memory_max: true is not a size; write for example "64M"',
        '10: workload.web.policy[0].when: "memory.events oom_kil" names an unknown counter "oom_kil" of memory.events, '
        'did you mean "oom_kill"?; write one of low, high, max, oom, oom_kill, oom_group_kill',
        '13: workload.web.policy[1].when: "pids.current >= 90%" is in per cent of pids_max, which is not set; '
        "set pids_max under [workload.web.resources], or compare with a number",
        '14: workload.web.policy[1].action: "signal" does not say which; add for example signal = "SIGHUP"',
        "15: workload.db.command: is missing; write command = … (the program and its arguments; no shell)",
        '16: workload.db.restart_sec: "soon" is not a duration; write for example "250ms", "10s" or "1min 30s"',
        '17: workload."we b": "we b" is not a name; write letters, digits, "_" and "-", and begin with a letter or '
        "digit",
        "19: workload.late.command: the list is empty; write the program and its arguments, for example "
        '["sleep", "60"]',
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[workloads.web]\n", '1: workloads: is not a key of the file; did you mean "workload"?'),
        ('[workload.web]\ncommand = ["a"]\nmemory_max = 1\n', "3: workload.web.memory_max: is not a key of "
         "[workload.web]; move it into [workload.web.resources]"),
        ('command = ["a"]\n', "1: command: is not a key of the file; move it into [workload.NAME]"),
        ('[workload.web]\ncomand = ["a"]\n', '2: workload.web.comand: is not a key of [workload.web]; did you mean '
         '"command"?'),
        ("[workload.web]\nCommand = []\n", 'did you mean "command"?'),
        ("[[workload]]\nname = 'web'\n", "1: workload: an array is not a table; write [workload.NAME]"),
        ("workload = 1\n", "1: workload: 1 is not a table; write [workload.NAME]"),
        ("[workload]\nweb = 'a'\n", '2: workload.web: "a" is not a table; write [workload.web]'),
        ('[workload."web@1"]\n', "which is for instances; write instances = 2"),
        ("[workload.tasks]\ncommand = ['a']\n", "is a name that cgroup v1 keeps"),
        ("supervisor = []\n", "1: supervisor: an array is not a table; write [supervisor]"),
        ("[supervisor]\nruntime_directory = 'run'\n", "is not an absolute path"),
        (f"[supervisor]\nruntime_directory = '/{'a' * 100}'\n", "too long for the sockets in it; write"),
        ("[supervisor]\nname = 'supervisor'\n", "write another name"),
        ("[supervisor]\nlog_output = 'file'\n", 'write "stdout", an absolute path, "journald"'),
        ("[supervisor]\nlog_output = { command = [] }\n", "is no collector; write for example"),
        ("[supervisor]\nlog_output = { command = ['a', 5] }\n", "is not a string"),
        ("[supervisor]\ndashboard = 'localhost:1'\n", "2: supervisor.dashboard: is not available yet in this version"),
    ],
)  # fmt: skip
def test_what_the_file_may_not_have(text: str, message: str) -> None:
    assert any(message in problem for problem in problems(text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('description = "a\\u0000b"', "has a NUL byte in it"),
        ("description = 5", '5 is not a string; write it in quotes'),
        ('command_line = "x"', 'did you mean "command"?'),
        ('environment = { "A=B" = "1" }', 'is no name for a variable'),
        ('environment = { "" = "1" }', 'is no name for a variable'),
        ('environment = { A = 1 }', 'workload.web.environment.A: the value is not a string; write it in quotes'),
        ('environment = { A = "\\u0000" }', "has a NUL byte in it"),
        ('environment = ["A=1"]', "the value is not a table"),
        ('environment_file = ["etc/env"]', "environment_file[0]: "),
        ('environment_file = "/etc/env"', 'is not a list; write ["/etc/env"]'),
        ('working_directory = "srv"', "is not an absolute path"),
        ("umask = 22", 'is not an octal number up to 0777 in quotes; write for example "0022"'),
        ('umask = "0888"', "is not an octal number"),
        ("nice = 20", "is out of range; write a number from -20 to 19"),
        ("nice = 1.5", "is not a whole number"),
        ("init = 1", "is not a truth value; write true or false, without quotes"),
        ("instances = 0", "is out of range; write a number from 1 to"),
        ("instances = true", "is neither a number nor a list of names"),
        ('user = "a:b:c"', "is no user"),
        ('user = "99999999999"', "has an id above"),
        ("restart = true", 'write "no", "always",'),
        ('restart = "on_failure"', 'did you mean "on-failure"?'),
        ('restart_sec = "-1s"', "is not a duration"),
        ("restart_sec = -1", "is below zero"),
        ("restart_sec = nan", "is not a duration"),
        ("restart_sec = inf", "is longer than a hundred years"),
        ('restart_sec = "infinity"', "is not a duration"),
        ('restart_sec = "1min"', "1min is more than restart_max_delay_sec (30s)"),
        ("success_exit_status = [256]", "success_exit_status[0]: 256 is neither an exit code nor a signal"),
        ('success_exit_status = ["BANANA"]', "is neither an exit code nor a signal"),
        ("kill_signal = 0", "is not a signal"),
        ("kill_signal = true", "is not a signal"),
        ("kill_signal = [15]", "is not a signal"),
        ('requires = ["web"]', "closes a cycle, so that none of them could start: web → web; remove one of these"),
        ('requires = ["web@1"]', "is not a name"),
        ("[workload.web.namespaces]\nnetwork = 'pasta'", "is not available yet in this version; write true"),
        ("[workload.web.namespaces]\nnetwork = 'yes'", "is not a namespace; write true"),
        ("[workload.web.namespaces]\nuts = false\nhostname = 'a'", "needs a uts namespace of its own"),
        ("[workload.web.namespaces]\nhostname = 'a_b'", "is not a host name"),
        ("[workload.web.namespaces]\ntime_offsets = { monotonic = 1 }", "needs a time namespace of its own"),
        ("[workload.web.namespaces]\ntime = true\ntime_offsets = { montonic = 1 }", 'did you mean "monotonic"?'),
        ("[workload.web.user_namespace]\nuid_mappings = [{ container_id = 0, host_id = 0, size = 1 }]",
         "needs a user namespace of its own"),
        ("mounts = [{ destination = '/a' }]", "mounts[0].source: is missing; a bind mount needs it"),
        ("mounts = [{ source = 'a', destination = '/a' }]", "is not an absolute path"),
        ("mounts = [{ source = '/a', destination = 'a' }]", "is not an absolute path"),
        ("mounts = [{ source = '/a' }]", "mounts[0].destination: is missing; write destination = …"),
        ("mounts = [{ type = 'tmpfs', destination = '/a', options = ['a,b'] }]", "write one option a string"),
        ("mounts = { source = '/a', destination = '/a' }", "write [[workload.web.mounts]], with two brackets"),
        ("mounts = ['/a:/a']", 'mounts[0]: "/a:/a" is not a table'),
        ("mounts = '/a:/a'", "is not a list of tables"),
        ("namespaces.mount = false\nmounts = [{ source = '/a', destination = '/a' }]", "needs a mount namespace"),
        ("security = { limit_nofil = 1 }", 'did you mean "limit_nofile"?'),
        ("security = { limit_nofile = '2:1' }", "has a soft limit above the hard one"),
        ("security = { limit_nofile = -1 }", "is not a resource limit"),
        ("security = { limit_nofile = '1K' }", "is not a resource limit"),
        ("security = { landlock = 'default' }", "is not a table"),
        ("security = { landlock = { read = ['etc'] } }", "is not an absolute path"),
        ("security = { landlock = { bind_tcp = [65536] } }", "65536 is out of range"),
        ("security = { landlock = { scope = ['signals'] } }", 'did you mean "signal"'),
        ("security = { landlock = {}, no_new_privileges = false }", "needs no_new_privileges"),
        ("resources = { memory_max = 0 }", 'is too small; write a size, or "max" for no limit'),
        ("resources = { memory_max = -5 }", "is too small"),
        ("resources = { memory_max = 1e9 }", "is not a size"),
        ("resources = { memory_max = '9E' }", "is larger than any memory"),
        ("resources = { memory_max = '150%' }", 'is not a share of what the host has; write "1%" … "100%"'),
        ("resources = { memory_max = '%' }", 'is not a percentage; write for example "25%"'),
        ("resources = { memory_low = 'max' }", 'has no end; write a size, or "100%" for all memory'),
        ("resources = { memory_high = '2M', memory_max = '1M' }", "2M is above memory_max (1M)"),
        ("resources = { pids_max = 0 }", "is out of range"),
        ("resources = { pids_max = '5' }", "is not a number of processes"),
        ("resources = { cpu_max = 1.5 }", "is no share of CPU time"),
        ("resources = { cpu_weight = 0 }", "write a number from 1 to 10000"),
        ("resources = { cpuset_cpus = 1 }", "is not a list of CPUs"),
        ("resources = { network_max = [] }", "write bandwidth_max in the table network of the workload"),
        ("policy = [{ when = 'memory.events oom_kill' }]", "policy[0].action: is missing"),
        ("policy = [{ action = 'log' }]", "policy[0].when: is missing"),
        ("policy = [{ when = 5, action = 'log' }]", "5 is not a condition"),
        ("policy = [{ when = 'memory.events oom', action = 'set' }]", '"set" does not say which; add for'),
        ("policy = [{ when = 'memory.events oom', action = 'log', signal = 1 }]", 'is for action = "signal" alone'),
        ("policy = [{ when = 'memory.events oom', action = 'log', for = 1 }]", "is for levels, but"),
        ("policy = [{ when = 'memory.current > 9%', action = 'log' }]", "is in per cent of memory_max"),
        ("[workload.web.policy]\nwhen = 'memory.events oom'", "write [[workload.web.policy]], with two brackets"),
        ("log = { stdout = 'files' }", 'did you mean "file"'),
        ("log = { max_age = 0.5 }", "is too short for a file to live"),
        ("log = { max_size = 10 }", "is too small; write at least 4096"),
        ("log = { on_full = 'wait' }", 'write "block" or "drop"'),
        ("instances = 2\nlog = { path = '/x' }", "would be the file of several instances"),
        ("log = { max_line = 'max' }", "is no limit, which this key needs"),
        ("log = { max_line = 0 }", "is too small; write at least 4"),
        ("timer = { on_calendar = 'dayly' }", 'a word such as daily, did you mean "daily"?'),
        ("timer = { cron = '61 * * * *' }", 'has "61" for the minute, which is out of range'),
        ("timer = { on_calendar = 5 }", 'is not an expression; write for example "Mon..Fri 06:00"'),
        ("timer = { on_calendar = [] }", "has 0 expressions; write 1 to 16"),
        ("timer = { timezone = '../etc' }", "is not the name of a time zone"),
        ("timer = { persistent = true }", 'has no time; write for example on_calendar = "daily"'),
        (
            "type = 'oneshot'\ninstances = 2\nexpand = true\ntimer = { on_calendar = '0{instance}:00' }",
            "differs between instances; write one for all of them",
        ),
        ("timer = { cron = '@daily' }", 'write type = "oneshot", or action = "restart"'),
        ("type = 'oneshot'\ntimer = { cron = '@daily', action = 'restart' }", "restarts a program that runs"),
        ("type = 'oneshot'\ntimer = { on_unit_active_sec = 60 }", "needs a first run; add on_startup_sec = 0"),
        ("type = 'oneshot'\ntimer = { on_boot_sec = 1, persistent = true }", "is for on_calendar and cron; remove it"),
        (
            "type = 'oneshot'\ntimer = { on_boot_sec = 1, on_unit_inactive_sec = 0 }",
            "is too short; write at least 1, or let the program itself wait",
        ),
        ("type = 'oneshot'\nreload_signal = 'HUP'", "is for programs that keep running; remove it"),
        ("type = 'oneshot'\nexec_reload = ['true']", "is for programs that keep running; remove it"),
        ("reload_signal = 'HUP'\nexec_reload = ['true']", "both have the program reload; write one of them"),
        ("type = 'notify-reload'\nexec_reload = ['true']", "both have the program reload; write one of them"),
        ("exec_reload = ['+true']", 'the unknown prefix "+"'),
        ("exec_reload = [['true'], ['!true']]", 'the unknown prefix "!"'),
        ("exec_reload = [['true'], ['-']]", "a command without a program"),
        ("exec_reload = [['true'], 'false']", "is not a string"),
        ("exec_reload = []", "a command without a program"),
        ("exec_reload = 'true'", "is no command; write for example"),
        (f"exec_reload = {[['true']] * 17}", "has more than 16 commands; write a script"),
        (
            "type = 'oneshot'\ntimer = { cron = '@daily', concurrency_policy = 'allow' }",
            "uses another instance for each run; write instances = 2 or more",
        ),
    ],
)  # fmt: skip
def test_what_a_workload_may_not_have(text: str, message: str) -> None:
    assert any(message in problem for problem in web(text)), web(text)


ODD_VALUES = [
    "true", "5", "-5", "1.5", "nan", "inf", "'x\u0085y'", '"\\u001b[31m\\n"', "[]", "[[]]", "{}", "1979-05-27",
    "07:32:00", f"{16**100_000:#x}", f'"{"x" * 10_000}"',
]  # fmt: skip
KEYS = [
    "command", "umask", "restart_sec", "kill_signal", "environment", "mounts", "namespaces", "instances", "policy",
    "resources.memory_max", "resources.cpu_max", "log.max_line", "security.limit_core",
]  # fmt: skip


@pytest.mark.parametrize("value", ODD_VALUES, ids=lambda value: ascii(value[:10]))
def test_each_problem_says_what_to_do_and_fits_on_a_line(value: str) -> None:
    for key in [*KEYS, *[value] * (value[0] in "'\"")]:
        for problem in web(f"{key} = {value}"):
            assert "; " in problem
            assert problem.isprintable()
            assert len(problem) < 1000


def test_a_wrong_value_brings_no_problems_that_only_follow_from_it() -> None:
    assert len(web("requires = ['db']\n[workload.db]\ncommand = 5\n")) == 1
    assert len(web("requires = ['db']\n[workload]\ndb = 5\n")) >= 1
    (problem,) = web(
        "[workload.web.resources]\npids_max = 'lots'\n"
        "[[workload.web.policy]]\nwhen = 'pids.current > 9%'\naction = 'log'\n"
    )
    assert "pids_max" in problem


def test_a_circle_is_told_once_with_all_its_members() -> None:
    text = "".join(
        f"[workload.{name}]\ncommand = ['a']\n{key} = ['{other}']\n"
        for name, key, other in (("a", "requires", "b"), ("b", "wants", "c"), ("c", "after", "b"))
    )
    assert problems(text) == [
        "9: workload.c.after[0]: closes a cycle, so that none of them could start: b → c → b; remove one of these "
        "edges: lines 6, 9"
    ]


def test_a_chain_of_thousands_of_workloads_is_no_circle() -> None:
    text = "".join(f"[workload.w{n}]\ncommand = ['a']\nafter = ['w{n + 1}']\n" for n in range(2000))
    parse(f"{text}[workload.w2000]\ncommand = ['a']\n", "f.toml")


def test_ranges_of_ids() -> None:
    def mappings(*ranges: tuple[int, int, int]) -> list[str]:
        tables = ", ".join(f"{{ container_id = {c}, host_id = {h}, size = {s} }}" for c, h, s in ranges)
        return web(f"namespaces.user = true\nuser_namespace.uid_mappings = [{tables}]")

    assert mappings((0, 100000, 1000), (1000, 0, 1)) == []
    assert "two ranges overlap at container_id 5" in mappings((0, 100, 10), (5, 200, 1))[0]
    assert "two ranges overlap at host_id 105" in mappings((0, 100, 10), (50, 105, 1))[0]
    assert "reaches past the largest id" in mappings((0, 4294967290, 10))[0]
    assert "write at most 340" in mappings(*((n, n, 1) for n in range(341)))[0]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a = 1\nb = \n", 2),
        ("a = 1\na = 2\n", 2),
        ("[a]\n[b]\n[a]\n", 3),
        ("x = [1,\n2\n", 2),
        ("a = bananas\n", 1),
        ('a = "x\n', 1),
        ('a = "\\d"\n', 1),
        ("\n\n!\n", 3),
        (f"a = 1\nb = {'9' * 5000}\n", 1),
    ],
)
def test_what_is_not_toml(text: str, line: int) -> None:
    (problem,) = problems(text)
    assert problem.startswith(f"{line}: this is not TOML")
    assert "; " in problem


def test_a_table_declared_twice_is_named() -> None:
    assert problems("[workload.web]\n[workload.web]\n") == [
        "2: this is not TOML at column 14: the table [workload.web] is declared twice; put its keys together"
    ]


def test_nesting_without_end() -> None:
    (problem,) = problems("a = " + "[" * 100_000)
    assert problem == "1: is nested too deeply; no key needs more than a few levels"


@pytest.mark.parametrize(
    "line",
    [
        "a." * 20_000 + "a = 1",
        "[" + "a . " * 20_000 + "a]",
        "[[" + '"\\"".' * 20_000 + "a]]",
        "a = [{ b = 1, " + "'x'." * 20_000 + "a = 1 }]",
    ],
)
def test_a_key_of_thousands_of_parts_is_refused_at_once(line: str) -> None:
    """Loading took half a minute of a thread, and any client could send such a text."""
    problem = problems(f"a = 1\n{line}")[0]
    assert problem == "2: is nested too deeply; no key needs more than a few levels"


def test_many_dots_in_a_value_or_comment_are_no_deep_key() -> None:
    dots = "a." * 20_000
    parse(f'[workload.a]\ncommand = ["true", "{dots}", "x, {"," * 200} ..."]\n# {dots}\n', "x.toml")


def test_files_that_cannot_be_read(tmp_path) -> None:
    file = tmp_path / "n.toml"
    with pytest.raises(ConfigError, match=r"n\.toml: there is no such file; check the path$"):
        load(file)
    with pytest.raises(ConfigError, match=r"is a directory; name the file in it$"):
        load(tmp_path)
    with pytest.raises(ConfigError, match="NUL byte in its path"):
        load("a\0b")
    with pytest.raises(ConfigError, match="is larger than 16 MiB"):
        load("/dev/zero")
    file.write_bytes(b"[supervisor]\nname = '\xff'\n")
    with pytest.raises(ConfigError, match=r"n\.toml:2: byte 0xff is not UTF-8; save the file in UTF-8$"):
        load(file)
    file.unlink()
    file.symlink_to(file)
    with pytest.raises(ConfigError, match=r"cannot be read: Too many levels of symbolic links; name a readable file$"):
        load(str(file))


def test_files_of_other_systems(tmp_path) -> None:
    file = tmp_path / "n.toml"
    file.write_bytes(b"\xef\xbb\xbf[supervisor]\r\nname = 'x'\r\n[workload.web]\r\ncommand = 5\r\n")
    with pytest.raises(ConfigError, match=r"n\.toml:4: workload\.web\.command"):
        load(file)


def test_a_file_may_come_through_a_pipe() -> None:
    reading, writing = os.pipe()
    os.write(writing, b"[workload.web]\ncommand = ['a']\n")
    os.close(writing)
    try:
        assert list(load(f"/dev/fd/{reading}").workloads) == ["web"]
    finally:
        os.close(reading)


def test_loading_imports_only_what_it_needs() -> None:
    code = (
        "import sys; from nsupervisor.config.load import parse; parse('[workload.a]\\ncommand=[\"a\"]', 'f')\n"
        "print(*{'jsonschema', 'trio', 'structlog', 'asyncio', 'shlex', 'difflib', 'json', 'nsupervisor.config.schema'}"
        " & sys.modules.keys())"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""


@pytest.mark.parametrize(
    ("mount", "key"),
    [
        ('source = "/run/nsupervisor", destination = "/mnt"', "source"),
        ('source = "/run/x/../nsupervisor/notify", destination = "/mnt"', "source"),
        ('type = "none", options = ["rbind"], source = "/run/nsupervisor/", destination = "/mnt"', "source"),
        ('type = "tmpfs", destination = "/run/nsupervisor/x"', "destination"),
        ('source = "/proc/self/root/run/nsupervisor", destination = "/mnt"', "source"),
        ('source = "/proc/1/root/proc/self/root/run/nsupervisor/notify", destination = "/mnt"', "source"),
        ('type = "overlay", options = ["lowerdir=/usr:/run/nsupervisor"], destination = "/mnt"', "options[0]"),
        ('type = "overlay", options = ["ro", "upperdir=/run/nsupervisor/x"], destination = "/mnt"', "options[1]"),
        ('type = "overlay", options = ["lowerdir=/a", "workdir=run/nsupervisor"], destination = "/mnt"', "options[1]"),
        ('source = "/srv", destination = "/run/nsupervisor"', "destination"),
        ('type = "overlay", options = ["lowerdir=/usr:/srv"], destination = "/run/nsupervisor/"', "destination"),
        ('type = "overlay", options = ["lowerdir=/run:/run/nsupervisor2"], destination = "/mnt"', None),
        ('source = "/run", destination = "/mnt"', None),
        ('source = "/run/nsupervisor2", destination = "/mnt"', None),
        ('type = "tmpfs", destination = "/run/nsupervisor"', None),
    ],
)
def test_no_mount_shows_the_runtime_directory(mount: str, key: str | None) -> None:
    text = f'[workload.web]\ncommand = ["web"]\nmounts = [{{ {mount} }}]\n'
    if key is None:
        assert parse(text, "x.toml").workloads["web"].mounts
        return
    with pytest.raises(ConfigError) as caught:
        parse(text, "x.toml")
    (problem,) = caught.value.problems
    assert problem.key == f"workload.web.mounts[0].{key}"
    assert "runtime directory" in problem.message


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("websit failed", 'there is no workload "websit"; did you mean "website"?'),
        ("web ended", 'is not an end of workloads; write "NAME failed", "NAME exited" or "all exited"'),
        ("all failed", 'is not an end of workloads; write "NAME failed", "NAME exited" or "all exited"'),
    ],
)
def test_exit_on_names_ends_of_workloads_that_are_there(condition: str, message: str) -> None:
    text = f'[supervisor]\nexit_on = ["all exited", "{condition}"]\n[workload.website]\ncommand = ["web"]\n'
    with pytest.raises(ConfigError) as caught:
        parse(text, "x.toml")
    (problem,) = caught.value.problems
    assert (problem.key, message in problem.message) == ("supervisor.exit_on[1]", True)


def test_may_control_names_workloads_that_are_there() -> None:
    text = '[workload.web]\ncommand = ["web"]\nmay_control = ["web", "cach"]\n[workload.cache]\ncommand = ["c"]\n'
    with pytest.raises(ConfigError, match=r'may_control.*there is no workload "cach"; did you mean "cache"'):
        parse(text, "x.toml")


@pytest.mark.parametrize(
    ("key", "longest"), [('type = "notify"', 76), ('watchdog_sec = "1s"', 76), ('may_control = ["web"]', 79)]
)
def test_the_sockets_of_a_workload_need_a_shorter_runtime_directory(key: str, longest: int) -> None:
    for length in (longest, longest + 1):
        directory = "/" + "x" * (length - 1)
        text = f'[supervisor]\nruntime_directory = "{directory}"\n[workload.web]\ncommand = ["web"]\n{key}\n'
        if length == longest:
            assert parse(text, "x.toml").workloads
        else:
            with pytest.raises(ConfigError, match=f"at most {longest} bytes"):
                parse(text, "x.toml")


@pytest.mark.fault("B10", "B12", "B13", "D22")
@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("[workload.web.namespaces]\nhostname = 'foo.-x'", "is not a host name; write at most 64 letters"),
        ("[workload.web.namespaces]\nhostname = 'foo..x'", "is not a host name"),
        ("[workload.web.namespaces]\nhostname = 'foo-.x'", "is not a host name"),
        ("[workload.web.namespaces]\nhostname = '.foo'", "is not a host name"),
        (f"[workload.web.namespaces]\nhostname = 'a.{'b' * 63}'", "is not a host name"),
        (f"[workload.web.namespaces]\nhostname = '{'b' * 64}'", "is not a host name"),
        ("type = 'oneshot'\nrestart = 'always'", 'restart: "always" would run a oneshot again each time'),
        ("type = 'oneshot'\nrestart = 'on-success'", 'write "on-failure", or type = "simple"'),
        ("timeout_stop_sec = 0", '0 is no time to wait; write "infinity" to wait without a limit, or'),
        ("timeout_stop_sec = '0s'", "is no time to wait"),
        ("timeout_start_sec = 0.0", "is no time to wait"),
        ("user = 'x: domain users'", "is no user"),
        ('user = "x\\ty"', "is no user"),
    ],
)
def test_what_passed_check_and_failed_or_waited_at_the_start(keys: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(f'[workload.web]\ncommand = ["true"]\n{keys}\n', "site.toml")
    (problem,) = caught.value.problems
    assert message in str(problem)


@pytest.mark.fault("B10", "B13", "D22")
@pytest.mark.parametrize(
    ("line", "read", "value"),
    [
        ("timeout_stop_sec = 'infinity'", lambda web: web.timeout_stop_sec, float("inf")),
        ("timeout_stop_sec = '1ms'", lambda web: web.timeout_stop_sec, 0.001),
        ("namespaces = { hostname = 'a-1.b.C' }", lambda web: web.namespaces.hostname, "a-1.b.C"),
        (f"namespaces = {{ hostname = '{'b' * 63}' }}", lambda web: web.namespaces.hostname, "b" * 63),
        ("user = 'x:domain users'", lambda web: web.user, "x:domain users"),
        ("user = 'EXAMPLE\\\\jane doe'", lambda web: web.user, "EXAMPLE\\\\jane doe"),
        ("supplementary_groups = ['domain users']", lambda web: web.supplementary_groups, ("domain users",)),
    ],
)
def test_what_was_refused_or_misread_is_taken(line, read, value) -> None:
    assert read(parse(f'[workload.web]\ncommand = ["true"]\n{line}\n', "site.toml").workloads["web"]) == value


@pytest.mark.fault("D20")
def test_the_sound_parts_of_a_file_are_those_without_a_problem() -> None:
    text = """
[workload.a]
command = ["true"]
[workload.b]
command = ["true"]
restart = "sometimes"
[workload.c]
command = ["true"]
group = "g"
[group.g]
memory_max = "1 banana"
[workload.d]
command = ["true"]
requires = ["b"]
[[host.policy]]
when = "nonsense"
action = "log"
"""
    config, problems, _ = parse_sound_parts(text, "site.toml")
    assert [problem.line for problem in problems] == [6, 11, 16]
    assert list(config.workloads) == ["a", "c", "d"]
    assert (config.groups, config.host.policy) == ({}, ())


EDGES = (
    '[workload.job]\ncommand = ["a"]\ntype = "oneshot"\n[workload.db]\ncommand = ["a"]\n'
    '[workload.web]\ncommand = ["a"]\n'
)


def test_an_edge_is_a_name_or_a_table() -> None:
    job = '{ name = "job", condition = "completed" }'
    keys = f'requires = ["db", {job}]\nwants = [{job}]\n'
    edges = parse(EDGES + keys, "f.toml").workloads["web"]
    assert edges.requires == (DependencyConfig("db", "ready"), DependencyConfig("job", "completed"))
    assert to_toml(key_slots(WorkloadConfig)["requires"].kind, edges.requires) == (
        '["db", { name = "job", condition = "completed" }]'
    )


@pytest.mark.parametrize(
    ("key", "problem"),
    [
        ("requires = [{ condition = 'ready' }]", "has no name; write for example"),
        ("requires = [{ name = 'db', when = 'ready' }]", 'has the key "when", which an edge does not have'),
        ("requires = [{ name = 'db', condition = 'starts' }]", 'has the condition "starts", did you mean "started"'),
        ("requires = [{ name = 'db', condition = 7 }]", "has the condition 7; write"),
        ("requires = [{ name = '/', condition = 'ready' }]", "has a name that is not a name"),
        ("requires = [7]", "is not a string"),
        ("requires = [{ name = 'd', condition = 'started' }]", 'there is no workload "d"'),
        ("wants = [{ name = 'db', condition = 'completed' }]", 'which only a program with type = "oneshot" is'),
        (
            "requires = ['job']\nafter = [{ name = 'job', condition = 'started' }]",
            'with the condition "started", and requires[0] with "ready"; keep one of the two',
        ),
    ],
)
def test_a_wrong_edge(key: str, problem: str) -> None:
    (found,) = problems(f"{EDGES}{key}\n")
    assert problem in found


DYNAMIC = '[workload.web]\ncommand = ["true"]\ndynamic_user = true\n'


def test_a_dynamic_user_protects_the_files_of_the_host() -> None:
    security = parse(DYNAMIC, "site.toml").workloads["web"].security
    assert (security.protect_system, security.protect_home, security.private_tmp) == ("strict", "read-only", True)
    assert (security.no_new_privileges, security.restrict_suid_sgid) == (True, True)
    stronger = parse(DYNAMIC + "security.protect_home = true\n", "site.toml").workloads["web"].security
    assert stronger.protect_home is True
    strict = parse(DYNAMIC + 'security.profile = "strict"\n', "site.toml").workloads["web"]
    assert strict.security.protect_home is None, "the profile hides them"
    assert (strict.namespaces.user, strict.namespaces.network) == (False, True)


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ('user = "nobody"', "and so does user; remove one of both"),
        ("namespaces.user = true", "is for programs without a user namespace"),
        ("security.private_tmp = false", "security.private_tmp: is weaker than what dynamic_user sets (true)"),
        ('security.protect_system = "full"', 'is weaker than what dynamic_user sets ("strict")'),
        ("security.no_new_privileges = false", "is weaker than what dynamic_user sets"),
    ],
)
def test_what_contradicts_a_dynamic_user(keys: str, text: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse(DYNAMIC + keys, "site.toml")
    assert text in str(raised.value)


def test_one_command_of_a_hook_is_a_list_of_one() -> None:
    text = '[workload.web]\ncommand = ["a"]\nexec_reload = {}\n'
    for written, expected in (('["-a", "b"]', (("-a", "b"),)), ('[["a"], ["b", ""]]', (("a",), ("b", "")))):
        assert parse(text.format(written), "f.toml").workloads["web"].exec_reload == expected
