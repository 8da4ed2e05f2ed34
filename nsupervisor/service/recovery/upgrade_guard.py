"""The guard of an upgrade: a small process of the old version that waits until the new one reports that it is up.

If the report does not come in time, the guard kills the supervisor and runs the old version again, which logs why. Run
as a file, with one argument (`GuardOrder`). Standard library only: nothing else of the old version may be needed, since
its files may be replaced meanwhile.
"""

import json
import os
import select
import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

KILL_TIMEOUT_S = 10.0
"""Seconds that the guard waits for the end of a supervisor that it has killed."""
_REPORT_SIZE = 100


class GuardOrder:
    """The argument of the guard, as JSON.

    pipe: the descriptor at which the supervisor reports that it is up. supervisor: its pid. timeout_s: the seconds that
    it has for that. reason_path: the file for the reason of a rollback. rollback_command: the command line that is
    executed then; empty if another process starts supervisors.
    """

    def __init__(
        self, pipe: int, supervisor: int, timeout_s: float, reason_path: str, rollback_command: "Sequence[str]"
    ) -> None:
        self.pipe = pipe
        self.supervisor = supervisor
        self.timeout_s = timeout_s
        self.reason_path = reason_path
        self.rollback_command = list(rollback_command)

    def encode(self) -> str:
        """Return the argument for the guard."""
        return json.dumps(vars(self))


def guard(order: GuardOrder) -> None:
    """Wait for the report; without one, kill the supervisor and execute the rollback command."""
    reason = _failure(order.pipe, order.timeout_s)
    if not reason:
        return
    try:
        with open(order.reason_path, "w") as file:
            file.write(json.dumps({"why": reason}))
    except OSError as error:  # a full disk is no reason to leave the service without a supervisor
        print(f"{order.reason_path}: {error.strerror}; the reason is: {reason}", file=sys.stderr)
    _kill(order.supervisor)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    if order.rollback_command:
        os.execv(order.rollback_command[0], order.rollback_command)  # noqa: S606


def _failure(pipe: int, timeout_s: float) -> str:
    """Return why the supervisor is not up, or "" once it has reported that it is."""
    if not _is_readable(pipe, timeout_s):
        return f"it was not up within {timeout_s:g} s"
    return "" if os.read(pipe, _REPORT_SIZE) else "it ended before it was up"


def _kill(pid: int) -> None:
    """Kill a process, and wait for its end, so that it does not hold what the next one needs."""
    try:
        pidfd = os.pidfd_open(pid)
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except ProcessLookupError:
        return
    _is_readable(pidfd, KILL_TIMEOUT_S)


def _is_readable(fd: int, timeout_s: float) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(timeout_s * 1000))


if __name__ == "__main__":
    guard(GuardOrder(**json.loads(sys.argv[1])))
