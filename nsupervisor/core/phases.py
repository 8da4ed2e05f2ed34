"""Phases of a generation: what the supervisor does with a program besides the state of its lifecycle.

The words are those of the substates of systemd's services.
"""

import enum


class Phase(enum.Enum):
    """The phase of a generation."""

    NONE = ""
    RELOAD_SIGNAL = "reload-signal"
    """`reload_signal` was sent; the program has to answer with RELOADING=1."""
    RELOAD = "reload"
    """A command of `exec_reload` runs."""
    RELOAD_NOTIFY = "reload-notify"
    """The program has sent RELOADING=1, and has to send READY=1 when it is done."""
    CONDITION = "condition"
    """A command of `exec_condition` runs, before the program is started."""
    START_PRE = "start-pre"
    """A command of `exec_start_pre` runs, before the program is started."""
    START_POST = "start-post"
    """A command of `exec_start_post` runs; the start is complete after the last one."""
    STOP = "stop"
    """A command of `exec_stop` runs; the signals of the stop follow."""
    STOP_POST = "stop-post"
    """A command of `exec_stop_post` runs; the program has exited, and its cgroup was empty."""
    FINAL_SIGTERM = "final-sigterm"
    """The commands of `exec_stop_post` have ended, and what they have left has yet to end."""


RELOAD_PHASES = frozenset({Phase.RELOAD, Phase.RELOAD_SIGNAL, Phase.RELOAD_NOTIFY})
"""The program reads its configuration again."""

PHASES_BEFORE_PROGRAM = frozenset({Phase.CONDITION, Phase.START_PRE})
"""Commands run, and the program of this generation has not been started yet."""

PHASES_WITHOUT_PROGRAM = PHASES_BEFORE_PROGRAM | {Phase.STOP_POST}
"""Commands run while there is no program."""

HOOK_KEYS = {
    Phase.RELOAD: "exec_reload",
    Phase.CONDITION: "exec_condition",
    Phase.START_PRE: "exec_start_pre",
    Phase.START_POST: "exec_start_post",
    Phase.STOP: "exec_stop",
    Phase.STOP_POST: "exec_stop_post",
}
"""The phases in which commands of a key run, one after the other."""


def describe_phase(phase: Phase, step: int, count: int) -> str:
    """Return a phase in words, as `status` shows it behind the state; "" for none.

    `step`: the command that runs, from 0 on; `count`: the number of commands of the phase.
    """
    if phase in HOOK_KEYS:
        return f"{HOOK_KEYS[phase]} {step + 1}/{max(count, step + 1)}"
    if phase is Phase.FINAL_SIGTERM:
        return "ending what exec_stop_post left"
    return "reloading" if phase in RELOAD_PHASES else ""
