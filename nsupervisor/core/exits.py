"""Exit of a program, and the restart policies that answer it.

The table is systemd's, from systemd.service(5), "Restart=": its columns are the policies, its rows the exit causes.
"""

import enum
import os
import signal
from collections.abc import Sequence
from typing import Any

import attrs

from nsupervisor.wire_names import wire

CLEAN_SIGNALS = frozenset({signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGPIPE})
"""Signals that end a program without counting as a failure (systemd.service(5), `SuccessExitStatus=`)."""


class Outcome(enum.Enum):
    """The class of an exit, as the restart policy sees it."""

    SUCCESS = "success"
    """A clean exit status or a clean signal."""
    EXIT_CODE = "exit-code"
    """Any other exit status, or a failed set-up step."""
    SIGNAL = "signal"
    """Killed by any other signal, the OOM killer's SIGKILL included."""
    TIMEOUT = "timeout"
    """The workload did not start or stop within its time limit."""
    WATCHDOG = "watchdog"
    """The program stopped sending watchdog notifications."""
    PROTOCOL = "protocol"
    """The program exited cleanly without the report that completes its start (systemd.exec(5), "$SERVICE_RESULT")."""


RESTARTED_OUTCOMES: dict[str, frozenset[Outcome]] = {
    "no": frozenset(),
    "always": frozenset(Outcome),
    "on-success": frozenset({Outcome.SUCCESS}),
    "on-failure": frozenset(Outcome) - {Outcome.SUCCESS},
    "on-abnormal": frozenset({Outcome.SIGNAL, Outcome.TIMEOUT, Outcome.WATCHDOG, Outcome.PROTOCOL}),
    "on-watchdog": frozenset({Outcome.WATCHDOG}),
}


@attrs.frozen
class Exit:
    """Exit of one generation of a workload.

    Exactly one of `code`, `signal`, `is_unknown`, `setup_failure` and `skipped` is set.
    """

    code: int | None = attrs.field(default=None, metadata=wire("code"))
    signal: int | None = attrs.field(default=None, metadata=wire("signal"))
    core_dumped: bool = attrs.field(default=False, metadata=wire("core_dumped"))
    oom_killed: bool = attrs.field(default=False, metadata=wire("oom_killed"))
    """The OOM killer acted in the cgroup during this generation, and SIGKILL ended the program."""
    is_unknown: bool = attrs.field(default=False, metadata=wire("unknown"))
    """The program exited without a supervisor, so its status was lost; `code` and `signal` are None.

    Neither its keeper nor its supervisor lived, or this kernel reports the status to the parent only.
    """
    setup_failure: str | None = attrs.field(default=None, metadata=wire("failure"))
    """The set-up step that failed, in words; the program never ran."""
    skipped: str | None = attrs.field(default=None, metadata=wire("skipped"))
    """The condition of the start that was not met; the program never ran, and this is no failure."""
    background_remedy: str = attrs.field(default="", metadata=wire("background"))
    """If the program has become a daemon: what keeps it in the foreground, in words; otherwise ""."""

    @classmethod
    def from_wait_status(cls, status: int, *, oom_killed: bool = False, setup_failure: str | None = None) -> "Exit":
        """Decode a wait status as waitpid(2) returns it, or -1 for an unknown one.

        `oom_killed` is only believed for a SIGKILL.
        """
        if setup_failure is not None:
            return cls(setup_failure=setup_failure)
        if status < 0:
            return cls(is_unknown=True)
        if os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            return cls(
                signal=number,
                core_dumped=os.WCOREDUMP(status),
                oom_killed=oom_killed and number == signal.SIGKILL,
            )
        return cls(code=os.WEXITSTATUS(status))

    @property
    def has_run(self) -> bool:
        """Whether the program was executed."""
        return self.setup_failure is None and self.skipped is None

    def is_one_of(self, statuses: Sequence[int | str]) -> bool:
        """Return whether it is one of these exit codes and signals ("SIGUSR1")."""
        return bool(statuses) and (
            self.code in statuses if self.signal is None else signal_name(self.signal) in statuses
        )

    def outcome(self, success_exit_status: Sequence[int | str] = (0,)) -> Outcome:
        """Classify the exit; `success_exit_status` names further clean exit codes and signals ("SIGUSR1")."""
        if self.setup_failure is not None:
            return Outcome.EXIT_CODE
        if self.skipped is not None:
            return Outcome.SUCCESS
        if self.is_unknown:  # a clean exit while nothing supervises the program is the rarer case
            return Outcome.SIGNAL
        if self.signal is not None:
            clean = self.signal in CLEAN_SIGNALS or signal_name(self.signal) in success_exit_status
            return Outcome.SUCCESS if clean else Outcome.SIGNAL
        return Outcome.SUCCESS if self.code == 0 or self.code in success_exit_status else Outcome.EXIT_CODE

    def condition_values(self) -> dict[str, float]:
        """Return the values that conditions can test (`nsupervisor.config.condition_terms.EXIT_KEYS`).

        Returns an empty dict for a failed start.
        """
        if not self.has_run:
            return {}
        numbers = {"signal": self.signal, "code": self.code}
        flags = {"oom_killed": float(self.oom_killed), "core_dumped": float(self.core_dumped)}
        return {**flags, **{key: value for key, value in numbers.items() if value is not None}}

    def to_record(self) -> dict[str, Any]:
        """Return the object that records and `status` show."""
        return {
            "code": self.code,
            "signal": None if self.signal is None else signal_name(self.signal),
            "core_dumped": self.core_dumped,
            "oom_killed": self.oom_killed,
            **({"failure": self.setup_failure} if self.setup_failure else {}),
            **({"skipped": self.skipped} if self.skipped else {}),
            **({"unknown": True} if self.is_unknown else {}),
        }

    def __str__(self) -> str:
        if self.setup_failure is not None:
            return self.setup_failure
        if self.skipped is not None:
            return f"skipped: {self.skipped} is not met"
        if self.is_unknown:
            return "exit status unknown (not supervised when it exited)"
        if self.signal is None:
            background = f": it went to the background, where it cannot be supervised; {self.background_remedy}"
            return f"exit code {self.code}{background if self.background_remedy else ''}"
        return (
            f"killed by {signal_name(self.signal)}"
            + (", out of memory" if self.oom_killed else "")
            + (", core dumped" if self.core_dumped else "")
        )


def signal_name(number: int) -> str:
    """Return the name of a signal: `15` → `"SIGTERM"`, or `"SIG40"` for a real-time signal without a name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIG{number}"
