"""Reloads of real programs, and the notifications that go with them, from the command line."""

import pytest
import trio

from tests.needs import needs
from tests.system.service import service
from tests.timing import deadline

pytestmark = needs("root", "cgroup")

PROGRAM = """
import os, signal, socket, sys, time

def say(*lines):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
        client.connect(os.environ["NOTIFY_SOCKET"])
        client.send("\\n".join(lines).encode())

def reload():
    say("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")
    time.sleep(0.2)
    say("READY=1", "STATUS=reloaded")

signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})  # a signal just before pause(2) would be waited for forever
say("READY=1")
while True:
    signal.sigwait({signal.SIGHUP})
    reload()
"""

SITE = """
[workload.web]
command = ["/usr/bin/python3", "{program}"]
type = "notify-reload"
namespaces = {{ {namespaces} }}
[workload.plain]
command = ["/bin/sh", "-c", "trap 'echo reloaded' USR2; echo waits; while :; do sleep 0.1; done"]
reload_signal = "SIGUSR2"
[workload.deaf]
command = ["sleep", "1000"]
"""


@pytest.mark.parametrize("namespaces", ["", 'time = true, time_offsets = { monotonic = "1h" }'])
async def test_programs_are_reloaded(tmp_path, namespaces):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    program.chmod(0o755)
    site = SITE.format(program=program, namespaces=namespaces)
    async with service(tmp_path, site) as it:
        await it.record(event="state", workload="web", to="ready")
        pid = await it.pid("web")
        assert await it.cli("reload", "--workload", "web") == "web: ready, reloaded\n"
        assert (await it.record(event="program reloaded", workload="web"))["took_sec"] >= 0.2
        assert (await it.status("web"))["pid"] == pid
        await it.record(event="output", workload="plain", message="waits")
        assert await it.cli("reload", "--workload", "plain") == "plain: running, SIGUSR2 sent\n"
        await it.record(event="output", workload="plain", message="reloaded")
        await it.cli("reload", "--workload", "deaf", status=1)


@needs("program:systemd-notify")
async def test_systemd_notify_returns_when_its_message_has_been_handled(tmp_path):
    site = """
    [workload.web]
    command = ["/bin/sh", "-c", "systemd-notify --ready; echo returned; exec sleep 1000"]
    type = "notify"
    """
    async with service(tmp_path, site) as it:
        ready = await it.record(event="state", workload="web", to="ready")
        returned = await it.record(event="output", workload="web", message="returned")
        assert ready["timestamp"] < returned["timestamp"]


HOOKS = """
[workload.web]
command = ["/bin/sh", "-c", "trap 'echo reloaded' HUP; echo waits; while :; do sleep 0.1; done"]
exec_reload = [["-false"], ["/bin/sh", "-c", "echo $(cat /proc/$MAINPID/comm); kill -HUP $MAINPID"]]
[workload.fails]
command = ["sleep", "1000"]
exec_reload = ["/bin/sh", "-c", "echo not valid >&2; exit 3"]
[workload.hangs]
command = ["sleep", "1000"]
exec_reload = ["sleep", "1000"]
timeout_start_sec = "1s"
[workload.missing]
command = ["sleep", "1000"]
exec_reload = ["no-such-program"]
"""


async def test_commands_reload_programs(tmp_path):
    async with service(tmp_path, HOOKS) as it:
        await it.record(event="output", workload="web", message="waits")
        assert await it.cli("reload", "--workload", "web") == "web: running, reloaded\n"
        await it.record(event="output", workload="web", message="reloaded")
        await it.cli("reload", "--workload", "fails", "--workload", "hangs", "--workload", "missing", status=1)
        failed = {name: await it.record(event="program reload failed", workload=name) for name in NAMES}
        assert failed["fails"]["message"].startswith("exec_reload[0] exit code 3: not valid, after ")
        assert failed["hangs"]["message"] == "exec_reload[0] has not ended within 1 s"
        assert "no-such-program" in failed["missing"]["message"]
        for name in NAMES:
            assert (await it.status(name))["state"] == "running"
        with trio.fail_after(deadline(10)):  # its command was ended, too
            while (await it.status("hangs"))["pids_current"] != 1:  # noqa: ASYNC110
                await trio.sleep(0.02)


NAMES = ("fails", "hangs", "missing")


async def test_a_supervisor_that_is_killed_ends_the_command_of_a_reload(tmp_path):
    """The next one says that it has failed, and does not run it again."""
    begun = tmp_path / "begun"
    site = f"""
    [workload.web]
    command = ["sleep", "1000"]
    exec_reload = ["/bin/sh", "-c", "echo x >> {begun}; exec sleep 1000"]
    security = {{ profile = "none" }}
    """
    async with service(tmp_path, site, status=-9) as it:
        await it.record(event="started", workload="web")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(it.cli_result, "reload", "--workload", "web")
            await it.until(begun.exists)
            assert (await it.status("web"))["phase"] == "exec_reload 1/1"
            it.process.kill()
            await it.process.wait()
    async with service(tmp_path, site) as it:
        failed = await it.record(event="program reload failed", workload="web")
        assert failed["message"].startswith("exec_reload[0] has ended with the earlier supervisor")
        assert begun.read_text() == "x\n"
        status = await it.status("web")
        assert (status["state"], status["generation"], status["phase"]) == ("running", 1, "")
