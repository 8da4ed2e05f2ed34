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


RELOAD_PHASES = frozenset({Phase.RELOAD, Phase.RELOAD_SIGNAL, Phase.RELOAD_NOTIFY})
"""The program reads its configuration again."""


HOOK_KEYS = {Phase.RELOAD: "exec_reload"}
"""The phases in which commands of a key run, one after the other."""


def describe_phase(phase: Phase, step: int) -> str:
    """Return a phase in words, as `status` shows it behind the state; "" for none. `step`: the command that runs."""
    if phase in HOOK_KEYS:
        return f"{HOOK_KEYS[phase]}[{step}]"
    return "reloading" if phase in RELOAD_PHASES else ""
