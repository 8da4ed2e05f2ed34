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
