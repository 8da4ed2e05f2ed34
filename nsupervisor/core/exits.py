"""How a program ended, and which endings a restart policy answers.

The table is systemd's, from systemd.service(5), "Restart=": the columns are its policies, the rows its exit causes.
"""

import enum
import os
import signal
from collections.abc import Sequence

import attrs

CLEAN_SIGNALS = frozenset({signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGPIPE})
"""Signals that end a program without counting as a failure (systemd.service(5), ``SuccessExitStatus=``)."""


class Outcome(enum.Enum):
    """What an ending means to the restart policy."""

    SUCCESS = "success"
    """A clean exit status or a clean signal."""
    EXIT_CODE = "exit-code"
    """Any other exit status; also a start that a set-up step ended."""
    SIGNAL = "signal"
    """Ended by any other signal, so by the OOM killer too."""
    TIMEOUT = "timeout"
    """It did not start, or did not stop, in its time."""
    WATCHDOG = "watchdog"
    """It stopped saying that it is alive."""


RESTARTS: dict[str, frozenset[Outcome]] = {
    "no": frozenset(),
    "always": frozenset(Outcome),
    "on-success": frozenset({Outcome.SUCCESS}),
    "on-failure": frozenset({Outcome.EXIT_CODE, Outcome.SIGNAL, Outcome.TIMEOUT, Outcome.WATCHDOG}),
    "on-abnormal": frozenset({Outcome.SIGNAL, Outcome.TIMEOUT, Outcome.WATCHDOG}),
    "on-watchdog": frozenset({Outcome.WATCHDOG}),
}


@attrs.frozen
class Exit:
    """How one generation of a workload ended: exactly one of ``code``, ``signal``, ``unknown`` and ``failure``
    is set."""

    code: int | None = None
    signal: int | None = None
    core_dumped: bool = False
    oom_killed: bool = False
    """The kernel's OOM killer was at work in its cgroup during this generation, and SIGKILL ended it."""
    unknown: bool = False
    """It ended while nobody watched: neither its keeper nor its supervisor lived, or this kernel tells only the parent.
    Then ``code`` and ``signal`` are None."""
    failure: str | None = None
    """The set-up step that kept the program from starting, in words; then the program never ran."""

    @classmethod
    def from_wait_status(cls, status: int, *, oom_killed: bool = False, failure: str | None = None) -> "Exit":
        """Read a wait status as waitpid(2) gives it, -1 for one that nobody knows. ``oom_killed`` is believed only of a
        SIGKILL."""
        if failure is not None:
            return cls(failure=failure)
        if status < 0:
            return cls(unknown=True)
        if os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            return cls(
                signal=number,
                core_dumped=os.WCOREDUMP(status),
                oom_killed=oom_killed and number == signal.SIGKILL,
            )
        return cls(code=os.WEXITSTATUS(status))

    def outcome(self, success_exit_status: Sequence[int | str] = (0,)) -> Outcome:
        """Judge the ending; ``success_exit_status`` names further clean exit codes and signals ("SIGUSR1")."""
        if self.failure is not None:
            return Outcome.EXIT_CODE
        if self.unknown:  # a program that ends well while nobody looks is the rarer case
            return Outcome.SIGNAL
        if self.signal is not None:
            clean = self.signal in CLEAN_SIGNALS or signal_name(self.signal) in success_exit_status
            return Outcome.SUCCESS if clean else Outcome.SIGNAL
        return Outcome.SUCCESS if self.code == 0 or self.code in success_exit_status else Outcome.EXIT_CODE

    def facts(self) -> dict[str, float]:
        """What conditions can ask of it (`nsupervisor.config.facts.FACTS`); nothing of a start that failed."""
        if self.failure is not None:
            return {}
        told = {"signal": self.signal, "code": self.code}
        flags = {"oom_killed": float(self.oom_killed), "core_dumped": float(self.core_dumped)}
        return {**flags, **{key: value for key, value in told.items() if value is not None}}

    def __str__(self) -> str:
        if self.failure is not None:
            return self.failure
        if self.unknown:
            return "ended while nobody watched, exit status unknown"
        if self.signal is None:
            return f"exit code {self.code}"
        return (
            f"killed by {signal_name(self.signal)}"
            + (", out of memory" if self.oom_killed else "")
            + (", core dumped" if self.core_dumped else "")
        )


def signal_name(number: int) -> str:
    """``15`` → ``"SIGTERM"``; real-time signals without a name of their own become ``"SIG40"``."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIG{number}"
