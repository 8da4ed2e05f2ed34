"""How the kernel treats a process in comparison with others: the calls that set it. Pure."""

from __future__ import annotations

import errno

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from nsupervisor.keeper.setup.spec import Spec

OOM_SCORE_ADJUST = "/proc/self/oom_score_adj"
HINTS = {
    errno.EPERM: "it needs a capability, such as CAP_SYS_NICE",
    errno.EACCES: "a value below the present one needs CAP_SYS_RESOURCE",
}
"""Hints for the errors, by errno."""


def calls(spec: Spec) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Yield each call: the operation for a message, its name, and its arguments."""
    if spec.oom_score_adjust is not None:
        yield f"set oom_score_adjust to {spec.oom_score_adjust}", "oom_score_adj", (spec.oom_score_adjust,)
    if spec.io_priority is not None:
        yield "set the class and priority for disks", "ioprio_set", (spec.io_priority,)
    if spec.cpu_scheduling is not None:
        yield "set the policy and priority for CPUs", "sched_setscheduler", spec.cpu_scheduling
    if spec.timer_slack is not None:
        yield "set the timer slack", "timer_slack", (spec.timer_slack,)
