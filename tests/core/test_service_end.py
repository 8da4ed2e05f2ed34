"""The end of the service that its workloads decide, as a table."""

import signal

import pytest

from nsupervisor.core.exits import Exit
from nsupervisor.core.lifecycle import Lifecycle, State
from nsupervisor.core.service_end import InstanceView, ServiceEnd, exit_status, find_end


def view(workload, state, exit_=None, *, is_starting=False):
    return InstanceView(workload, Lifecycle(state=state, exit=exit_), is_starting)


OK, CRASH = Exit(code=0), Exit(code=3)
WEB_RUNS = view("web", State.RUNNING)
WEB_FAILED = view("web", State.FAILED, CRASH)
WEB_EXITED = view("web", State.EXITED, OK)
JOB_EXITED = view("job", State.EXITED, OK)
JOB_FAILED = view("job", State.FAILED, Exit(signal=signal.SIGKILL))
JOB_STOPPED = view("job", State.STOPPED)


@pytest.mark.parametrize(
    ("condition", "views", "status"),
    [
        ("web failed", (WEB_FAILED, JOB_EXITED), 3),
        ("web failed", (WEB_RUNS, JOB_FAILED), None),
        ("web failed", (WEB_EXITED,), None),
        ("web failed", (WEB_RUNS, WEB_FAILED), 3),
        ("web failed", (view("web", State.FAILED, CRASH, is_starting=True),), None),
        ("web failed", (view("web", State.FAILED, OK),), 1),  # for example after a time limit
        ("job exited", (WEB_RUNS, JOB_EXITED), 0),
        ("job exited", (WEB_RUNS, JOB_FAILED), None),
        ("job exited", (JOB_EXITED, view("job", State.RUNNING)), None),
        ("job exited", (WEB_RUNS,), None),
        ("all exited", (WEB_EXITED, JOB_EXITED), 0),
        ("all exited", (WEB_EXITED, JOB_FAILED), 137),
        ("all exited", (WEB_FAILED, JOB_FAILED), 3),
        ("all exited", (WEB_EXITED, JOB_STOPPED), 0),
        ("all exited", (JOB_STOPPED,), None),
        ("all exited", (WEB_RUNS, JOB_EXITED), None),
        ("all exited", (WEB_EXITED, view("job", State.BACKOFF, CRASH)), None),
        ("all exited", (WEB_EXITED, view("job", State.STOPPED, is_starting=True)), None),
        ("all exited", (), None),
    ],
)
def test_a_condition_is_met_or_not(condition, views, status):
    assert find_end((condition,), views) == (None if status is None else ServiceEnd(status, condition))


def test_the_first_condition_that_is_met_counts():
    assert find_end(("web failed", "all exited"), (WEB_EXITED, JOB_FAILED)) == ServiceEnd(137, "all exited")


@pytest.mark.parametrize(
    ("exit_", "status"), [(OK, 0), (CRASH, 3), (Exit(signal=15), 143), (Exit(setup_failure="x"), 1), (None, 1)]
)
def test_the_status_is_that_of_a_shell(exit_, status):
    assert exit_status(exit_) == status
