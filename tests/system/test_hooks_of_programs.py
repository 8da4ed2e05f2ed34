"""Commands before and after real programs: `exec_condition` to `exec_stop_post`."""

import json
import os
import signal

import pytest
import trio

from tests.needs import needs
from tests.roots import open_directories
from tests.system.service import service
from tests.system.test_exec import FACTS
from tests.timing import deadline

pytestmark = needs("root", "cgroup")
HOOKS = ("exec_condition", "exec_start_pre", "exec_start_post", "exec_stop", "exec_stop_post")


def lines(path):
    return path.read_text().splitlines() if path.exists() else []


async def test_hooks_run_in_their_order(tmp_path):
    out = tmp_path / "out"
    site = f"""
    [workload.web]
    command = ["/bin/sh", "-c", "echo program >> {out}; exec sleep 1000"]
    exec_condition = ["/bin/sh", "-c", "echo condition >> {out}"]
    exec_start_pre = [["-false"], ["/bin/sh", "-c", "echo pre >> {out}"]]
    exec_start_post = ["/bin/sh", "-c", "echo post $(cat /proc/$MAINPID/comm) >> {out}"]
    exec_stop = ["/bin/sh", "-c", "echo stop $(cat /proc/$MAINPID/comm) >> {out}"]
    exec_stop_post = ["/bin/sh", "-c", "echo stop-post $SERVICE_RESULT $EXIT_CODE $EXIT_STATUS >> {out}"]
    [workload.after]
    command = ["/bin/sh", "-c", "echo after >> {out}; exec sleep 1000"]
    requires = ["web"]
    [workload.skipped]
    command = ["sleep", "1000"]
    exec_condition = ["/bin/sh", "-c", "exit 3"]
    [workload.fails]
    command = ["sleep", "1000"]
    exec_start_pre = [["true"], ["/bin/sh", "-c", "echo no disk >&2; exit 3"]]
    restart = "no"
    """
    async with service(tmp_path, site) as it:
        await it.record(event="started", workload="after")
        await it.until(lambda: {"after", "program"} <= set(lines(out)))
        assert lines(out)[:2] == ["condition", "pre"]
        assert [line.split()[0] for line in lines(out) if line != "program"][2:] == ["post", "after"]
        assert (await it.record(event="state", workload="skipped", to="exited"))["reason"].startswith("skipped: ")
        failed = await it.record(event="hook failed", workload="fails")
        assert failed["message"].startswith("exec_start_pre[1] exit code 3: no disk, after ")
        assert (await it.record(event="state", workload="fails", to="failed"))["reason"] == failed["message"]
        await it.cli("stop", "web")
        assert [line.split()[0] for line in lines(out)[-2:]] == ["stop", "stop-post"]
        assert lines(out)[-1] == "stop-post success killed TERM"


@pytest.mark.parametrize("hook", HOOKS)
async def test_the_next_supervisor_waits_for_a_hook_and_does_not_repeat_it(tmp_path, hook):
    out, gate = tmp_path / "out", tmp_path / "gate"
    os.mkfifo(gate)
    command = f"echo begun >> {out}; read line < {gate}; echo ended >> {out}"
    site = f"""
    [workload.web]
    command = ["sleep", "1000"]
    {hook} = ["/bin/sh", "-c", "{command}"]
    security = {{ profile = "none" }}
    """
    async with service(tmp_path, site, status=-9) as it, trio.open_nursery() as nursery:
        if hook.startswith("exec_stop"):
            await it.record(event="started", workload="web")
            nursery.start_soon(it.cli_result, "stop", "web")
        await it.until(out.exists)
        assert (await it.status("web"))["phase"] == f"{hook} 1/1"
        it.process.kill()
        await it.process.wait()
    async with service(tmp_path, site) as it:
        assert (await it.status("web"))["phase"] == f"{hook} 1/1"
        await trio.to_thread.run_sync(gate.write_text, "go\n")
        with trio.fail_after(deadline(20)):
            while (await it.status("web"))["phase"]:  # noqa: ASYNC110
                await trio.sleep(0.02)
        assert lines(out) == ["begun", "ended"]
        status = await it.status("web")
        if hook in ("exec_condition", "exec_start_pre"):
            await it.record(event="state", workload="web", to="running")
        else:
            assert status["state"] == ("running" if hook == "exec_start_post" else "stopped")
        assert status["generation"] == 1


def waiting(hook, out, gate):
    """Return a workload whose hook writes "begun", waits for a line from `gate`, and writes "ended"."""
    return f"""
    [workload.web]
    command = ["sleep", "1000"]
    {hook} = ["/bin/sh", "-c", "echo begun >> {out}; read line < {gate}; echo ended >> {out}"]
    restart = "no"
    security = {{ profile = "none" }}
    """


async def test_an_upgrade_does_not_end_a_hook(tmp_path):
    out, gate = tmp_path / "out", tmp_path / "gate"
    os.mkfifo(gate)
    async with service(tmp_path, waiting("exec_start_pre", out, gate)) as it:
        await it.until(out.exists)
        await it.cli("upgrade")
        await it.record(event="supervisor upgraded", patience=30)
        assert (await it.status("web"))["phase"] == "exec_start_pre 1/1"
        await trio.to_thread.run_sync(gate.write_text, "go\n")
        await it.record(event="state", workload="web", to="running")
        assert lines(out) == ["begun", "ended"]
        assert not [record for record in it.records if record["event"] in ("hook failed", "hook repeated")]


async def test_a_hook_fails_if_the_keeper_is_killed(tmp_path):
    out, gate = tmp_path / "out", tmp_path / "gate"
    os.mkfifo(gate)
    async with service(tmp_path, waiting("exec_start_pre", out, gate)) as it:
        await it.until(out.exists)
        os.kill((await it.record(event="supervisor started"))["keeper_pid"], signal.SIGKILL)
        failed = await it.record(event="hook failed", workload="web")
        assert failed["message"].startswith("exec_start_pre[0] the connection to the keeper is lost, which ends")
        await it.record(event="state", workload="web", to="failed")
        assert lines(out) == ["begun"]


@pytest.mark.parametrize("hook", ["exec_start_pre", "exec_stop_post"])
async def test_a_hook_is_repeated_if_the_keeper_is_killed_with_the_service(tmp_path, hook):
    out, gate = tmp_path / "out", tmp_path / "gate"
    os.mkfifo(gate)
    site = waiting(hook, out, gate)
    async with service(tmp_path, site, status=-9) as it, trio.open_nursery() as nursery:
        if hook == "exec_stop_post":
            await it.record(event="started", workload="web")
            nursery.start_soon(it.cli_result, "stop", "web")
        await it.until(out.exists)
        it.process.kill()
        os.kill((await it.record(event="supervisor started"))["keeper_pid"], signal.SIGKILL)
        await it.process.wait()
    async with service(tmp_path, site) as it:
        assert (await it.record(event="hook repeated", workload="web"))["message"].startswith(f"{hook}[0] is run")
        await it.until(lambda: lines(out) == ["begun", "begun"])
        await trio.to_thread.run_sync(gate.write_text, "go\n")
        await it.record(event="state", workload="web", to="running" if hook == "exec_start_pre" else "stopped")
        assert lines(out) == ["begun", "begun", "ended"]


async def test_a_freeze_waits_for_exec_start_post(tmp_path):
    out, gate = tmp_path / "out", tmp_path / "gate"
    os.mkfifo(gate)
    async with service(tmp_path, waiting("exec_start_post", out, gate)) as it, trio.open_nursery() as nursery:
        await it.until(out.exists)
        nursery.start_soon(it.cli, "freeze", "web")
        await it.record(event="action", action="freeze", workload="web")
        await trio.to_thread.run_sync(gate.write_text, "go\n")
        await it.record(event="state", workload="web", to="frozen")


@pytest.mark.parametrize(
    "keys",
    [
        "",
        'user = "nobody"',
        'security = { capability_bounding_set = ["CHOWN"] }',
        "namespaces = { user = true, network = true }",
    ],
)
async def test_a_hook_is_confined_as_its_program(tmp_path, keys):
    facts = tmp_path / "facts"
    facts.mkdir()
    open_directories(facts)
    facts.chmod(0o777)
    open_directories(tmp_path / "run")  # what a program cannot reach is covered only when the service looks at it again

    def command(name):
        return f"umask 0; {{ {FACTS}; }} > {facts}/{name}.new 2>&1; mv {facts}/{name}.new {facts}/{name}"

    hooks = "\n".join(f"{hook} = {json.dumps(['/bin/sh', '-c', command(hook)])}" for hook in HOOKS)
    program = json.dumps(["/bin/sh", "-c", f"{command('program')}; exec sleep 1000"])
    mounts = f"mounts = [{{ source = '{facts}', destination = '{facts}' }}]"
    site = f"[workload.web]\ncommand = {program}\n{hooks}\n{mounts}\n{keys}"
    async with service(tmp_path, site) as it:
        await it.until((facts / "program").exists)
        await it.until((facts / "exec_start_post").exists)
        await it.cli("stop", "web")
        found = {name: lines(facts / name) for name in ("program", *HOOKS)}
    variables = ("MAINPID=", "SERVICE_RESULT=", "EXIT_CODE=", "EXIT_STATUS=")
    confinement = {name: [x for x in found[name] if not x.startswith(variables)] for name in found}
    assert any(x.startswith("Seccomp") for x in found["program"])
    for hook in ("exec_start_post", "exec_stop"):
        assert confinement[hook] == confinement["program"], hook
    for hook in ("exec_condition", "exec_start_pre", "exec_stop_post"):  # in other namespaces of the same kinds
        assert not {os.readlink(f"/proc/self/ns/{kind}") for kind in ("mnt", "pid", "ipc")} & set(found[hook]), hook
        without_ids = [[x for x in confinement[name] if ":[" not in x] for name in (hook, "program")]
        assert without_ids[0] == without_ids[1], hook
