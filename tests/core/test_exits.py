"""Wait statuses of real children, with the names that people use."""

import os
import resource
import signal

import pytest

from nsupervisor.core.exits import Exit, Outcome, signal_name


def wait_status(end):
    pid = os.fork()
    if pid == 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGSEGV, signal.SIG_DFL)  # faulthandler's handler would print a page
        end()
        os._exit(99)
    return os.waitpid(pid, 0)[1]


@pytest.mark.parametrize("code", [0, 1, 3, 255])
def test_an_exit_code(code):
    exit_ = Exit.from_wait_status(wait_status(lambda: os._exit(code)))
    assert exit_ == Exit(code=code)
    assert str(exit_) == f"exit code {code}"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV])
def test_a_signal(number):
    exit_ = Exit.from_wait_status(wait_status(lambda: os.kill(os.getpid(), number)))
    assert (exit_.code, exit_.signal, exit_.core_dumped) == (None, number, False)
    assert str(exit_) == f"killed by {number.name}"


def test_a_core_dump_is_told():
    assert Exit.from_wait_status(signal.SIGSEGV | 0x80).core_dumped
    assert str(Exit.from_wait_status(signal.SIGSEGV | 0x80)) == "killed by SIGSEGV, core dumped"


def test_only_a_sigkill_can_be_the_oom_killers():
    """In the field: an ordinary crash reported as an OOM kill, because one happened nearby."""
    assert Exit.from_wait_status(signal.SIGKILL, oom_killed=True).oom_killed
    assert not Exit.from_wait_status(signal.SIGTERM, oom_killed=True).oom_killed
    assert not Exit.from_wait_status(0, oom_killed=True).oom_killed


@pytest.mark.parametrize(
    ("exit_", "success", "outcome"),
    [
        (Exit(code=0), (0,), Outcome.SUCCESS),
        (Exit(code=0), (143,), Outcome.SUCCESS),
        (Exit(code=143), (0, 143), Outcome.SUCCESS),
        (Exit(code=1), (0,), Outcome.EXIT_CODE),
        (Exit(signal=signal.SIGTERM), (0,), Outcome.SUCCESS),
        (Exit(signal=signal.SIGPIPE), (0,), Outcome.SUCCESS),
        (Exit(signal=signal.SIGKILL), (0,), Outcome.SIGNAL),
        (Exit(signal=signal.SIGUSR1), (0, "SIGUSR1"), Outcome.SUCCESS),
        (Exit(setup_failure="cannot execute x"), (0,), Outcome.EXIT_CODE),
    ],
)
def test_the_outcome_follows_systemds_table(exit_, success, outcome):
    assert exit_.outcome(success) is outcome


def test_real_time_signals_have_names_too():
    assert signal_name(signal.SIGRTMIN + 6) == f"SIG{signal.SIGRTMIN + 6}"
