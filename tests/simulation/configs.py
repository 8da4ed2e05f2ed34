"""The configurations that histories use: a few kinds of sites, each with choices that an edit of the file changes.

There are few texts, so that each is parsed once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import attrs

COMMON = 'timeout_stop_sec = 3\nlog = { stdout = "none", stderr = "none" }\nnamespaces = { pid = false }\n'

BRIEF_S = 1.0
"""How long a level must hold for the rule of a program that ends earlier."""


def _workload(name: str, command: str, *lines: str) -> str:
    common = COMMON if not any("timeout_stop_sec" in line for line in lines) else COMMON.partition("\n")[2]
    return "\n".join((f"[workload.{name}]", f"command = [{command}]", *lines, common))


def _rule(table: str, when: str, action: str, *lines: str) -> str:
    return "\n".join((f"[[{table}.policy]]", f"when = '{when}'", f'action = "{action}"', *lines, ""))


def _order(choices: Mapping[str, str]) -> str:
    """A program that requires another one, and takes its time to stop."""
    return "\n".join(
        (
            "# a comment" * int(choices["comment"]),
            _workload("db", f'"program", "v={choices["db"]}"', 'restart = "always"', "restart_sec = 0"),
            _workload("web", f'"program", "v={choices["web"]}", "term=0@2"', 'requires = ["db"]', 'restart = "always"'),
            _workload("pool", '"program"', f"instances = {choices['instances']}")
            if choices["instances"] != "0"
            else "",
        )
    )


def _group(choices: Mapping[str, str]) -> str:
    """A group whose rules act on one of its members."""
    action = f'"{choices["action"]}"'
    victim = ('victim = "newest"', 'cooldown = "1s"', 'verify_sec = "1s"')
    return "\n".join(
        (
            "\n" * int(choices["comment"]),
            "[group.batch]",
            f"pids_max = {choices['pids_max']}",
            _rule("group.batch", f"pids.current >= {choices['level']}", choices["action"], *victim),
            _rule("group.batch", "pids.events max", "kill", *victim) if choices["counter"] == "1" else "",
            _workload("first", '"program", "deaf"', 'group = "batch"', 'restart = "always"', 'timeout_stop_sec = "1s"'),
            _workload("second", '"program"', 'group = "batch"', 'restart = "always"', 'restart_sec = "100ms"'),
            f"# {action}",
        )
    )


def _notify(choices: Mapping[str, str]) -> str:
    """A program that notifies, and one that needs it."""
    return "\n".join(
        (
            _workload(
                "says",
                '"program", "ready=0.1", "watchdog=0.2"',
                f'type = "{choices["type"]}"',
                f"watchdog_sec = {choices['watchdog']}",
                'restart = "always"',
                "timeout_start_sec = 2",
            ),
            _workload("leans", '"program"', 'requires = ["says"]', 'restart = "always"'),
        )
    )


def _probes(choices: Mapping[str, str]) -> str:
    """A program that is probed and sometimes sick, one that needs it, and one that is slow to start."""
    socket, period = "tcp_socket = { port = 80 }", f"period_sec = {choices['period']}"
    return "\n".join(
        (
            _workload(
                "asked",
                '"program", "port=80@0.2", "sick=1.1@0.9"',
                f"readiness = {{ {socket}, {period}, failure_threshold = 2 }}",
                f"liveness = {{ {socket}, {period}, failure_threshold = {choices['failures']} }}",
                'restart = "always"',
                'restart_sec = "50ms"',
                "start_limit_burst = 1000",
                "timeout_start_sec = 2",
            ),
            _workload(
                "slow",
                '"program", "port=81@0.7"',
                "startup = { tcp_socket = { port = 81 }, period_sec = 1, failure_threshold = 3 }",
                'restart = "always"',
            ),
            _workload("leans", '"program"', 'requires = ["asked"]', 'restart = "always"'),
        )
    )


def _rules(choices: Mapping[str, str]) -> str:
    """Programs with limits and rules."""
    cooldown = 'cooldown = "1s"'
    return "\n".join(
        (
            _workload(
                "trap", '"program", "term=3"', 'restart = "always"', "restart_sec = 0", "start_limit_burst = 1000"
            ),
            _rule("workload.trap", "exit code != 0", "stop"),
            _workload("eats", '"program"', 'restart = "always"', f"resources = {{ memory_max = {choices['memory']} }}"),
            _rule("workload.eats", "memory.events oom_kill", choices["oom"], cooldown),
            _workload("forks", '"program"', 'restart = "always"', f"resources = {{ pids_max = {choices['pids']} }}"),
            _rule("workload.forks", "pids.events max", choices["full"], cooldown),
            _workload(
                "brief",
                '"program", "forks=2@0.05", "exit=1@0.6"',
                'restart = "always"',
                'restart_sec = "20ms"',
                "start_limit_burst = 1000",
            ),
            _rule("workload.brief", "pids.current >= 2", "kill", f'for = "{BRIEF_S:g}s"'),
        )
    )


def _restarts(choices: Mapping[str, str]) -> str:
    """Programs that end by themselves, that do not end, and that leave others behind."""
    return "\n".join(
        (
            _workload(
                "crash", '"program", "exit=3@0.05"', 'restart_sec = "20ms"', f"start_limit_burst = {choices['burst']}"
            ),
            _workload("once", '"program", "exit=0@0.1"', 'type = "oneshot"'),
            _workload(
                "deaf", f'"program", "deaf", "v={choices["deaf"]}"', 'timeout_stop_sec = "300ms"', 'restart = "always"'
            ),
            _workload("family", '"program", "forks=2@0.1"', 'restart = "always"', 'restart_sec = "20ms"'),
        )
    )


def _chain(choices: Mapping[str, str]) -> str:
    """A program and one that requires it, both changed by one edit; instances that take their time to stop."""
    both = choices["both"]
    return "\n".join(
        (
            _workload("db", f'"program", "v={both}"', 'restart = "always"', "restart_sec = 0"),
            _workload("web", f'"program", "v={both}", "term=0@2"', 'requires = ["db"]', 'restart = "always"'),
            _workload("pool", '"program", "term=0@1"', f"instances = {choices['instances']}"),
            _workload("extra", '"program"') if choices["extra"] == "1" else "",
        )
    )


def _freezes(choices: Mapping[str, str]) -> str:
    """A group whose rule freezes a member, which does not lower the level."""
    victim = ('victim = "newest"', f'cooldown = "{choices["cooldown"]}"', 'verify_sec = "1s"')
    return "\n".join(
        (
            "[group.batch]",
            "pids_max = 20",
            _rule("group.batch", "pids.current >= 3", "freeze", *victim),
            _workload("early", '"program", "forks=2@0.1"', 'group = "batch"', 'restart = "always"'),
            _workload("late", '"program"', 'group = "batch"', 'restart = "always"', 'restart_sec = "100ms"'),
        )
    )


def _bursts(choices: Mapping[str, str]) -> str:
    """A group with a rule about a counter, next to a rule that reloads change."""
    victim = ('victim = "newest"', 'cooldown = "1s"', 'verify_sec = "1s"')
    return "\n".join(
        (
            "[group.batch]",
            "pids_max = 4",
            _rule("group.batch", "pids.events max", "kill", *victim),
            _rule("group.batch", f"pids.current >= {choices['level']}", "log"),
            _workload("first", '"program"', 'group = "batch"', 'restart = "always"', 'restart_sec = "50ms"'),
            _workload("second", '"program"', 'group = "batch"', 'restart = "always"', 'restart_sec = "50ms"'),
        )
    )


def _limits(choices: Mapping[str, str]) -> str:
    """A group with limits, of which a member has a share."""
    share = f'resources = {{ memory_max = "{choices["share"]}%", pids_max = {choices["part pids"]} }}'
    return "\n".join(
        (
            "[group.batch]",
            f'memory_max = "{choices["memory"]}"',
            f"pids_max = {choices['pids']}",
            _workload(
                "part",
                f'"program", "v={choices["part"]}", "term=0@0.3"',
                share,
                'group = "batch"',
                'restart = "always"',
            ),
            _workload("whole", '"program"', 'group = "batch"', 'restart = "always"'),
        )
    )


def _timeouts(choices: Mapping[str, str]) -> str:
    """Programs that start and stop shortly before their timeouts, and one that does not stop."""
    stop = "timeout_stop_sec = 1"
    return "\n".join(
        (
            _workload(
                "says",
                f'"program", "ready=0.5", "term=0@0.6", "v={choices["says"]}"',
                'type = "notify"',
                'restart = "always"',
                "restart_sec = 0",
                "timeout_start_sec = 1",
                stop,
            ),
            _workload("slow", '"program", "term=0@0.8"', 'restart = "always"', "timeout_start_sec = 1", stop),
            _workload("deaf", '"program", "deaf"', 'restart = "always"', "restart_sec = 0", stop),
        )
    )


def _related(choices: Mapping[str, str]) -> str:
    """Programs that start, stop and restart one another."""
    off, once = "autostart = false", 'type = "oneshot"'
    job = f'{{ name = "job", condition = "{choices["condition"]}" }}'
    return "\n".join(
        (
            _workload("db", f'"program", "v={choices["db"]}", "term=0@0.2"', 'restart = "always"', "restart_sec = 0"),
            _workload(
                "web",
                '"program", "term=0@0.1"',
                f'{choices["key"]} = ["db"]',
                'upholds = ["helper"]',
                'restart = "always"',
            ),
            _workload("part", '"program"', 'part_of = ["db"]', 'restart = "always"'),
            _workload("helper", '"program"', off, 'restart = "no"', "restart_max_delay_sec = 0.5"),
            _workload("blue", '"program", "term=0@0.3"', 'restart = "always"'),
            _workload("green", '"program", "term=0@0.3"', off, 'conflicts = ["blue"]', 'restart = "always"'),
            _workload(
                "job", f'"program", "exit={choices["code"]}@0.2"', once, 'restart = "no"', 'on_success = ["note"]'
            )
            + 'on_failure = ["note"]\n',
            _workload("note", '"program", "exit=0@0.1"', once, off),
            _workload("late", '"program"', f"requires = [{job}]", 'restart = "always"'),
            _workload("check", '"program", "exit=0@0.1"', once, f'condition_path_exists = ["{choices["path"]}"]'),
            _workload("checked", '"program"', 'requires = ["check"]', 'restart = "always"'),
        )
    )


def _timed(choices: Mapping[str, str]) -> str:
    """Jobs and a program that timers start and restart."""
    once = 'type = "oneshot"'
    job = f'timer = {{ on_calendar = "*:*:0/2", concurrency_policy = "{choices["policy"]}", persistent = true }}'
    return "\n".join(
        (
            _workload("tick", '"program", "exit=0@0.3"', once, job),
            _workload(
                "poll", '"program", "exit=0@0.1"', once, "timer = { on_startup_sec = 0, on_unit_active_sec = 3 }"
            ),
            _workload(
                "web",
                f'"program", "v={choices["web"]}"',
                'restart = "always"',
                'timer = { on_calendar = "*:*:0/5", action = "restart" }',
            ),
        )
    )


LAZY_ADDRESS, SERVED_ADDRESS = "127.0.0.1:8000", "127.0.0.1:8001"
JOB_FILE, WEB_FILE = "/etc/job", "/etc/web"


def _activated(choices: Mapping[str, str]) -> str:
    """Programs that connections and files start, restart and reload."""
    once = 'type = "oneshot"'
    burst, debounce = choices["burst"], choices["debounce"]
    return "\n".join(
        (
            _workload(
                "lazy",
                f'"program", "v={choices["lazy"]}", "accepts=0.05", "exit=0@0.2"',
                "autostart = false",
                f'sockets = [{{ listen_stream = "{LAZY_ADDRESS}", trigger_limit_burst = {burst} }}]',
            ),
            _workload(
                "served",
                '"program", "accepts=0.05"',
                'restart = "always"',
                f'sockets = [{{ listen_stream = "{SERVED_ADDRESS}" }}]',
            ),
            _workload(
                "job",
                '"program", "exit=0@0.1"',
                once,
                f'paths = [{{ path_changed = "{JOB_FILE}", debounce_sec = {debounce} }}]',
            ),
            _workload(
                "web",
                '"program", "term=0@0.1"',
                'restart = "always"',
                f'paths = [{{ path_changed = "{WEB_FILE}", action = "restart", debounce_sec = {debounce} }}]',
            ),
        )
    )


@attrs.frozen
class Part:
    """A step of several that overlap, at most `delay_s` after the one before.

    It has one of the targets, the same as the other parts with these targets, and one of the values, for a reload one
    of those of the choice.
    """

    delay_s: float
    do: str
    targets: tuple[str, ...] = ("",)
    values: tuple[str, ...] = ("",)


SETS = ("pids_max=15", "pids_max=17", "memory_max=40M", "memory_max=80M", "cpu_weight=50")
OWN_SETS = ("pids_max=6", "pids_max=7", "memory_max=12M", "cpu_weight=60")
STOPPED = ("says", "slow", "deaf")


@attrs.frozen
class Kind:
    """A kind of site: its text, its choices with their values, and the workloads that must run in the end."""

    name: str
    text: Callable[[Mapping[str, str]], str]
    choices: Mapping[str, tuple[str, ...]]
    workloads: tuple[str, ...]
    """The instances that the first values make."""
    lasting: tuple[str, ...]
    """The instances that are up in the end, unless a command stopped them."""
    requires: Mapping[str, str] = attrs.field(factory=dict)
    """By instance: the one that must be up before it starts."""
    overlaps: tuple[tuple[Part, ...], ...] = ()
    """Steps that are worth trying at about the same time."""


KINDS = (
    Kind(
        "order",
        _order,
        {"comment": ("0", "1"), "db": ("1", "2"), "web": ("1", "2"), "instances": ("2", "1", "3")},
        ("db", "web", "pool@1", "pool@2"),
        ("db", "web"),
        {"web": "db"},
    ),
    Kind(
        "group",
        _group,
        {
            "comment": ("0", "1"),
            "action": ("stop", "freeze", "kill"),
            "pids_max": ("4", "6"),
            "level": ("3", "9"),
            "counter": ("1", "0"),
        },
        ("first", "second"),
        (),
    ),
    Kind(
        "notify",
        _notify,
        {"type": ("notify", "simple"), "watchdog": ("0", '"1s"')},
        ("says", "leans"),
        ("says", "leans"),
        {"leans": "says"},
    ),
    Kind(
        "rules",
        _rules,
        {"memory": ('"8M"', '"16M"'), "oom": ("restart", "kill"), "pids": ("3", "4"), "full": ("restart", "kill")},
        ("trap", "eats", "forks"),
        ("trap",),
    ),
    Kind(
        "restarts",
        _restarts,
        {"burst": ("3", "4"), "deaf": ("1", "2")},
        ("crash", "once", "deaf", "family"),
        ("deaf", "family"),
    ),
)


PROBES = Kind(
    "probes",
    _probes,
    {"period": ('"100ms"', '"250ms"'), "failures": ("3", "30")},
    ("asked", "slow", "leans"),
    ("asked", "slow", "leans"),
    {"leans": "asked"},
)

OVERLAPPING_KINDS = (
    Kind(
        "chain",
        _chain,
        {"both": ("1", "2"), "instances": ("2", "1", "3"), "extra": ("0", "1")},
        ("db", "web", "pool@1", "pool@2"),
        ("db", "web"),
        {"web": "db"},
        (
            (Part(0.1, "reload", ("both",)), Part(2.5, "crash by time", values=("0.001",))),
            (Part(0.1, "reload", ("instances",)), Part(1.2, "crash by time", values=("0.001",))),
            (Part(0.1, "reload", ("extra",)), Part(0.01, "SIGTERM")),
        ),
    ),
    Kind(
        "freezes",
        _freezes,
        {"cooldown": ("500ms", "1s")},
        ("early", "late"),
        (),
        overlaps=((Part(0.2, "command", ("early", "late"), ("thaw", "restart")),),),
    ),
    Kind(
        "bursts",
        _bursts,
        {"level": ("50", "60")},
        ("first", "second"),
        (),
        overlaps=(
            (
                Part(0.0, "busy", values=("0.1",)),
                Part(0.01, "forks", ("first", "second"), ("8",)),
                Part(0.02, "reload", ("level",)),
            ),
        ),
    ),
    Kind(
        "limits",
        _limits,
        {
            "memory": ("64M", "48M"),
            "pids": ("20", "30"),
            "share": ("50", "25"),
            "part pids": ("5", "8"),
            "part": ("1", "2"),
        },
        ("part", "whole"),
        ("part", "whole"),
        overlaps=(
            (
                Part(0.1, "set group", ("group/batch",), SETS),
                Part(0.005, "set group", ("group/batch",), SETS),
                Part(0.005, "reload", ("memory", "pids")),
            ),
            (
                Part(0.1, "edit", ("part pids",)),
                Part(0.005, "set", ("part",), ("memory_max=12M", "memory_max=14M")),
                Part(0.003, "reload", ("part",)),
            ),
            (Part(0.1, "reload", ("part", "part pids")), Part(0.3, "set", ("part",), OWN_SETS)),
            (Part(0.1, "set", ("part",), OWN_SETS), Part(0.005, "set", ("part", "whole"), OWN_SETS)),
        ),
    ),
    Kind(
        "timeouts",
        _timeouts,
        {"says": ("1", "2")},
        STOPPED,
        STOPPED,
        overlaps=(
            (
                Part(0.1, "command", STOPPED, ("stop", "restart")),
                Part(1.0, "command", STOPPED, ("start",)),
                Part(1.0, "command", STOPPED, ("stop", "restart")),
                Part(1.5, "command", STOPPED, ("start",)),
            ),
        ),
    ),
)
"""Kinds of sites for steps that overlap: each is made for defects that need two things at about the same time."""

RELATED_KINDS = (
    PROBES,
    Kind(
        "related",
        _related,
        {
            "db": ("1", "2"),
            "key": ("binds_to", "requires"),
            "condition": ("completed", "completed_successfully"),
            "code": ("0", "1"),
            "path": ("/missing", "/"),
        },
        ("db", "web", "part", "helper", "blue", "green", "job", "note", "late", "check", "checked"),
        ("db", "web", "part"),
        {"web": "db"},
        (
            (Part(0.1, "command", ("green",), ("start",)), Part(0.1, "command", ("blue",), ("start", "restart"))),
            (Part(0.1, "hit", ("db",), ("SIGKILL",)), Part(0.01, "crash by time", values=("0.001",))),
            (
                Part(0.1, "command", ("db",), ("restart", "stop")),
                Part(0.1, "command", ("web", "db"), ("start", "stop")),
            ),
        ),
    ),
)
"""Kinds of sites whose workloads start and stop one another, or are probed; they have the seeds from
`FIRST_RELATED_SEED`, so that an earlier seed means what it meant."""
FIRST_RELATED_SEED = 1_000_000
TIMED_KINDS = (
    Kind(
        "timed",
        _timed,
        {"policy": ("forbid", "queue", "replace"), "web": ("1", "2")},
        ("tick", "poll", "web"),
        (),
    ),
)
ACTIVATED_KINDS = (
    Kind(
        "activated",
        _activated,
        {"burst": ("10000", "9999"), "debounce": ("0.3", "0.01"), "lazy": ("1", "2")},
        ("lazy", "served", "job", "web"),
        ("served", "web"),
        overlaps=(
            (
                Part(0.1, "write", (JOB_FILE, WEB_FILE)),
                Part(0.3, "write", (JOB_FILE, WEB_FILE)),
                Part(0.4, "crash by time", values=("0.001", "0.1")),
            ),
            (
                Part(0.1, "connect", (LAZY_ADDRESS,)),
                Part(0.05, "crash by time", values=("0.001",)),
                Part(0.1, "connect", (LAZY_ADDRESS, SERVED_ADDRESS)),
            ),
            (Part(0.1, "write", (JOB_FILE,)), Part(0.3, "command", ("job",), ("start", "restart", "stop"))),
        ),
    ),
)
FIRST_ACTIVATED_SEED = 3_000_000
"""The first seed of `ACTIVATED_KINDS`."""
FIRST_TIMED_SEED = 2_000_000
"""The first seed of `TIMED_KINDS`."""
