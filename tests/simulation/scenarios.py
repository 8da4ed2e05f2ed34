"""Scenarios that happen on the simulated machine and on the kernel: a configuration and a list of steps each.

A scenario uses workloads of its own names, so that several can share one supervisor, and it waits for a record before
each step that depends on one. Its programs are those of `tests.simulation.programs`, and on the kernel those of
`tests.simulation.real_program`, which read the same words and obey the same instructions:

exit CODE       exit(3)
allocate MIB    use memory
fork NUMBER     fork processes, as many as the kernel allows
ready           send READY=1
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

COMMON = 'namespaces = { pid = false }\nrestart_sec = 0\nlog = { stdout = "journal" }\n'
BARRIERS = ("crash", "kill keeper", "boot")
"""Steps that concern the service as a whole. Scenarios that share a supervisor have the same ones."""


@attrs.frozen
class Step:
    """One step: `do` and what it is done to."""

    do: str
    name: str = ""
    value: str = ""
    fields: Mapping[str, Any] = attrs.field(factory=dict)
    nth: int = 1


@attrs.frozen
class Scenario:
    """A configuration and the steps. `needs`: the controllers without which it is left out."""

    name: str
    text: str
    steps: tuple[Step, ...]
    workloads: tuple[str, ...]
    needs: tuple[str, ...] = ()

    @property
    def barriers(self) -> tuple[str, ...]:
        """The steps that concern the service as a whole."""
        return tuple(step.do for step in self.steps if step.do in BARRIERS)


def record(name: str, event: str, nth: int = 1, **fields: Any) -> Step:
    """Wait for the `nth` record of a workload with these fields; `from_` stands for `from`."""
    return Step("record", name, event, {key.rstrip("_"): value for key, value in fields.items()}, nth)


def state(name: str, to: str, nth: int = 1) -> Step:
    """Wait until a workload has come to a state for the `nth` time."""
    return record(name, "state", nth, to=to)


def up(name: str, generation: int = 1) -> Step:
    """Wait for the first line of a program: it runs, and catches what it catches."""
    return record(name, "output", generation=generation, message="count 1")


def command(name: str, verb: str) -> Step:
    """Send a command of an operator and wait for its answer."""
    return Step("command", name, verb)


def hit(name: str, signal_name: str) -> Step:
    """Send a signal to a program, from outside."""
    return Step("hit", name, signal_name)


def instruct(name: str, words: str) -> Step:
    """Instruct a program."""
    return Step("instruct", name, words)


def set_limit(name: str, key: str, value: int | str) -> Step:
    """Change a limit at run time."""
    return Step("set", name, fields={key: value})


def reload(old: str, new: str) -> Step:
    """Replace a part of the configuration file, which contains it once, and reload."""
    return Step("reload", old, new)


def workload(name: str, *lines: str, options: str = "") -> str:
    """Return the table of a workload; `options`: the words of its program."""
    words = ", ".join(f'"{word}"' for word in ("program", f"name={name}", "lines=1", *options.split()))
    return "\n".join((f"[workload.{name}]", f"command = [{words}]", *lines, COMMON))


CRASH, KILL_KEEPER, BOOT = Step("crash"), Step("kill keeper"), Step("boot")
ALWAYS, NO = 'restart = "always"', 'restart = "no"'

SCENARIOS = (
    Scenario(
        "an operator stops, starts and restarts",
        workload("basic", ALWAYS),
        (
            up("basic"),
            command("basic", "stop"),
            command("basic", "start"),
            up("basic", 2),
            command("basic", "restart"),
            up("basic", 3),
            command("basic", "kill"),
            up("basic", 4),
        ),
        ("basic",),
    ),
    Scenario(
        "a program ends with a status",
        workload("status"),
        (
            up("status"),
            instruct("status", "exit 3"),
            up("status", 2),
            instruct("status", "exit 0"),
            state("status", "exited"),
        ),
        ("status",),
    ),
    Scenario(
        "a program that fails at once is given up",
        workload("brief", "start_limit_burst = 3", options="exit=4@0"),
        (state("brief", "failed"),),
        ("brief",),
    ),
    Scenario(
        "signals end a program",
        workload("hit", ALWAYS),
        (
            up("hit"),
            hit("hit", "SIGSEGV"),
            up("hit", 2),
            hit("hit", "SIGKILL"),
            up("hit", 3),
            hit("hit", "SIGHUP"),
            up("hit", 4),
            hit("hit", "SIGTERM"),
            up("hit", 5),
        ),
        ("hit",),
    ),
    Scenario(
        "a frozen program is thawed and stopped",
        workload("chill", ALWAYS, options="term=7"),
        (
            up("chill"),
            command("chill", "freeze"),
            command("chill", "thaw"),
            command("chill", "freeze"),
            command("chill", "stop"),
        ),
        ("chill",),
    ),
    Scenario(
        "a signal waits for a frozen program that catches it",
        workload("patient", NO, options="term=7"),
        (
            up("patient"),
            command("patient", "freeze"),
            hit("patient", "SIGTERM"),
            command("patient", "thaw"),
            state("patient", "failed"),
        ),
        ("patient",),
    ),
    Scenario(
        "a signal ends a frozen program that does not catch it",
        workload("frosty", NO),
        (up("frosty"), command("frosty", "freeze"), hit("frosty", "SIGTERM"), state("frosty", "exited")),
        ("frosty",),
    ),
    Scenario(
        "a frozen program is killed and started again",
        workload("icy", ALWAYS),
        (up("icy"), command("icy", "freeze"), hit("icy", "SIGKILL"), up("icy", 2)),
        ("icy",),
    ),
    Scenario(
        "a program that ignores SIGTERM is killed",
        workload("deaf", 'timeout_stop_sec = "500ms"', options="deaf"),
        (up("deaf"), command("deaf", "stop"), command("deaf", "start"), up("deaf", 2)),
        ("deaf",),
    ),
    Scenario(
        "a program leaves processes behind",
        workload("family", ALWAYS),
        (
            up("family"),
            instruct("family", "fork 2"),
            instruct("family", "exit 5"),
            up("family", 2),
        ),
        ("family",),
    ),
    Scenario(
        "processes that ignore SIGTERM are left behind",
        workload("orphans", ALWAYS, 'timeout_stop_sec = "500ms"', options="deaf"),
        (
            up("orphans"),
            instruct("orphans", "fork 2"),
            instruct("orphans", "exit 5"),
            up("orphans", 2),
        ),
        ("orphans",),
    ),
    Scenario(
        "a program is out of memory",
        workload("eats", ALWAYS, 'resources = { memory_max = "64M" }'),
        (up("eats"), instruct("eats", "allocate 128"), up("eats", 2)),
        ("eats",),
        ("memory",),
    ),
    Scenario(
        "a rule acts on a full cgroup",
        workload("forks", NO, "resources = { pids_max = 3 }")
        + '[[workload.forks.policy]]\nwhen = \'pids.events max\'\naction = "kill"\ncooldown = "1h"\n',
        (up("forks"), instruct("forks", "fork 8"), state("forks", "failed")),
        ("forks",),
        ("pids",),
    ),
    Scenario(
        "limits are set at run time",
        workload("bounded", "resources = { pids_max = 30 }"),
        (
            up("bounded"),
            set_limit("bounded", "pids_max", 40),
            set_limit("bounded", "memory_max", "256M"),
            command("bounded", "restart"),
            up("bounded", 2),
        ),
        ("bounded",),
        ("pids", "memory"),
    ),
    Scenario(
        "a reload changes a running program's limit",
        workload("live", "resources = { pids_max = 50 }"),
        (up("live"), reload("pids_max = 50", "pids_max = 51"), record("live", "action", action="reload")),
        ("live",),
        ("pids",),
    ),
    Scenario(
        "a reload restarts a program",
        workload("renewed", options="v=1"),
        (up("renewed"), reload('"v=1"', '"v=2"'), up("renewed", 2)),
        ("renewed",),
    ),
    Scenario(
        "a program is missing",
        '[workload.missing]\ncommand = ["no-such-program"]\nstart_limit_burst = 2\n' + COMMON,
        (state("missing", "failed"),),
        ("missing",),
    ),
    Scenario(
        "a program reports that it is ready",
        workload("says", 'type = "notify"', ALWAYS) + workload("leans", 'requires = ["says"]', ALWAYS),
        (
            up("says"),
            instruct("says", "ready"),
            up("leans"),
            hit("says", "SIGKILL"),
            up("says", 2),
            instruct("says", "ready"),
            state("says", "ready", 2),
        ),
        ("says", "leans"),
    ),
    Scenario(
        "a program ends before it is ready",
        workload("mute", 'type = "notify"', NO),
        (up("mute"), instruct("mute", "exit 0"), state("mute", "failed")),
        ("mute",),
    ),
    Scenario(
        "a supervisor is killed and the next takes over",
        workload("steady", ALWAYS)
        + workload("fleeting", ALWAYS)
        + workload("cold", ALWAYS, options="term=7")
        + workload("quiet", ALWAYS),
        (
            up("steady"),
            up("fleeting"),
            up("cold"),
            up("quiet"),
            command("cold", "freeze"),
            command("quiet", "stop"),
            CRASH,
            instruct("fleeting", "exit 6"),
            Step("ended", "fleeting"),
            BOOT,
            up("fleeting", 2),
            command("cold", "thaw"),
            command("quiet", "start"),
            up("quiet", 2),
            command("steady", "restart"),
            up("steady", 2),
        ),
        ("steady", "fleeting", "cold", "quiet"),
    ),
    Scenario(
        "the keeper is killed",
        workload("orphan", ALWAYS) + workload("lost", ALWAYS),
        (
            up("orphan"),
            up("lost"),
            KILL_KEEPER,
            instruct("lost", "exit 6"),
            up("lost", 2),
            command("orphan", "restart"),
            up("orphan", 2),
        ),
        ("orphan", "lost"),
    ),
)
