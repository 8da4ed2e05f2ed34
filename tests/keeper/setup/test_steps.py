"""What the set-up reports, at moments that are hard to meet from outside."""

import array
import os
import signal
import socket
import subprocess
from contextlib import closing

from nsupervisor.keeper.server.children import Child, Descriptors
from nsupervisor.keeper.setup import steps as setup
from nsupervisor.keeper.setup.spec import REPORT_FD, Spec
from tests.chaos.service import few_descriptors
from tests.timing import deadline


def test_a_program_whose_descriptor_cannot_be_taken_is_a_start_that_failed():
    """The keeper had none left just then, gave up on the report, and nobody ever heard of the start again."""
    process = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    fds = Descriptors(True)
    try:
        spec = Spec({"id": "web#1", "name": "web", "argv": ["x"], "env": {}, "cwd": "/", "namespaces": ["pid"]})
        with fds.report, closing(Child(spec, process.pid, fds, None)) as child:
            with socket.socket(fileno=fds.child_fds.pop(REPORT_FD)) as theirs:
                pidfd = os.pidfd_open(process.pid)
                rights = array.array("i", [pidfd])
                theirs.sendmsg([setup.READY], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
                os.close(pidfd)
            with few_descriptors(os.getpid(), -1):
                assert child.read_report(has_ended=False)
            assert child.failure is not None
            assert child.failure["message"] == "cannot take the program's descriptor: Too many open files"
            assert not child.has_execed
            assert process.wait(deadline(5)) == -signal.SIGKILL
    finally:
        fds.close_child_ends()
        fds.close_started()
        process.kill()
        process.wait()
