"""What the set-up reports, at moments that are hard to meet from outside."""

import array
import os
import signal
import socket
import subprocess
from contextlib import closing
from types import SimpleNamespace

from nsupervisor.keeper import child as setup
from nsupervisor.keeper.spawn import Child, Descriptors
from nsupervisor.keeper.spec import REPORT
from tests.chaos.service import few_descriptors
from tests.timing import deadline


def test_a_program_whose_descriptor_cannot_be_taken_is_a_start_that_failed():
    """The keeper had none left just then, gave up on the report, and nobody ever heard of the start again."""
    process = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    fds = Descriptors(True)
    try:
        spec = SimpleNamespace(id="web#1", name="web", init=True, flags=0)
        with fds.report, closing(Child(spec, process.pid, fds)) as child:
            with socket.socket(fileno=fds.theirs.pop(REPORT)) as theirs:
                pidfd = os.pidfd_open(process.pid)
                rights = array.array("i", [pidfd])
                theirs.sendmsg([setup.READY], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
                os.close(pidfd)
            with few_descriptors(os.getpid(), -1):
                assert child.read_report(ended=False)
            assert child.failure is not None
            assert child.failure["message"] == "cannot take the program's descriptor: Too many open files"
            assert not child.execed
            assert process.wait(deadline(5)) == -signal.SIGKILL
    finally:
        fds.close_theirs()
        fds.close_birth()
        process.kill()
        process.wait()
