"""When a file that cannot be written is tried again, and what is reported of it."""

import errno

from nsupervisor.logs.write_failures import RETRY_MAX_S, RETRY_MIN_S, WriteFailures

FULL = OSError(errno.ENOSPC, "No space left on device")


def test_attempts_are_delayed_more_and_more_until_one_succeeds():
    failures, delays = WriteFailures(), []
    for _ in range(8):
        failures.add(FULL, 100.0, 0)
        delays.append(failures.retry_at - 100.0)
    assert [round(delay, 6) for delay in delays] == [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, RETRY_MAX_S, RETRY_MAX_S]
    failures.end()
    failures.add(FULL, 200.0, 0)
    assert round(failures.retry_at - 200.0, 6) == RETRY_MIN_S


def test_a_failure_and_its_end_are_reported_with_the_lines_lost_in_between():
    failures = WriteFailures()
    failures.add(FULL, 0.0, 7)
    failures.add(FULL, 1.0, 9)
    assert failures.is_failing
    assert not failures.is_reported
    waits = "cannot write /logs/web.log: No space left on device; the workload waits once its pipe is full"
    assert failures.take_report("/logs/web.log", True, 9) == ("error", {"message": waits})
    assert failures.is_reported
    failures.end()
    assert failures.is_reported != failures.is_failing
    level, fields = failures.take_report("/logs/web.log", False, 10)
    assert (level, fields["lines"]) == ("warning", 3)
    assert fields["message"] == "/logs/web.log can be written again; 3 lines were dropped"


def test_what_a_file_lacks_for_good_is_reported_at_the_end():
    failures = WriteFailures()
    assert failures.final_report("/logs/web.log", 5) is None
    failures.add(FULL, 0.0, 5)
    assert failures.final_report("/logs/web.log", 5) is None
    message = "1 line was dropped: cannot write /logs/web.log: No space left on device"
    assert failures.final_report("/logs/web.log", 6) == ("warning", {"message": message, "lines": 1})
