"""Exit reports of one instance, kept until they are in the output.

A record goes into a buffer, and the lifecycle after an exit is checkpointed for the next supervisor before the buffer
is written out. A supervisor that is killed between the two has reported the exit to no reader. So the checkpoint also
holds the reports that may not be in the output yet. The next supervisor writes them again, marked as `duplicate`,
because the first copy may have been written.
"""

from collections.abc import Callable
from functools import partial

import attrs

from nsupervisor.condition_variable import ConditionVariable
from nsupervisor.service.instance.log import InstanceLog
from nsupervisor.service.state.file import ExitReport

MAX_UNDELIVERED = 50
"""Most undelivered reports that one instance keeps. More accumulate only if the output has not been written for long;
the oldest are then reported once, or counted as dropped."""


@attrs.define(eq=False)
class ExitReports:
    """Reports the exits of one instance, at least once each."""

    log: InstanceLog
    when_written: Callable[[Callable[[], None]], None]
    """Calls a function when all records so far are in the output."""
    save: Callable[[], None]
    """Checkpoint the instance soon, with the present `undelivered`."""
    undelivered: tuple[ExitReport, ...] = ()
    """The reports whose records may not be in the output yet, oldest first."""
    _delivered: ConditionVariable = attrs.field(init=False, factory=ConditionVariable)

    def report(self, exit_report: ExitReport, duplicate: bool = False, uptime_sec: float | None = None) -> None:
        """Record an exit. After the next checkpoint, no death of the supervisor can lose it.

        uptime_sec: how long the program has run, if known.
        """
        known = {} if uptime_sec is None else {"uptime_sec": uptime_sec}
        self._log(exit_report, {**known, "duplicate": True} if duplicate else known)
        self.undelivered = (*self.undelivered, exit_report)[-MAX_UNDELIVERED:]

    def _log(self, exit_report: ExitReport, extra_fields: dict[str, float]) -> None:
        if exit_report.exit.skipped is not None:
            message = f"workload {self.log.name}: {exit_report.exit}"
            self.log.write(exit_report.generation, "not started", message=message, **extra_fields)
        elif exit_report.exit.setup_failure is None:
            self.log.write(
                exit_report.generation, "exited", pid=exit_report.pid, **exit_report.exit.to_record(), **extra_fields
            )
        else:
            message = f"workload {self.log.name}: {exit_report.exit.setup_failure}"
            self.log.write(exit_report.generation, "not started", "error", message=message, **extra_fields)

    def redeliver(self, undelivered: tuple[ExitReport, ...]) -> None:
        """Record the exits that an earlier supervisor may not have delivered."""
        for end in undelivered:
            self.report(end, duplicate=True)

    def release(self) -> None:
        """Release the records that were held back, and forget the reports once they are in the output."""
        self.log.release()
        if self.undelivered:
            self.when_written(partial(self._forget_delivered, self.undelivered))

    def _forget_delivered(self, written: tuple[ExitReport, ...]) -> None:
        self.undelivered = tuple(end for end in self.undelivered if not any(end is report for report in written))
        self.save()
        self._delivered.notify()

    async def wait_delivered(self) -> None:
        """Wait until all reports are in the output."""
        await self._delivered.wait_for(lambda: not self.undelivered)
