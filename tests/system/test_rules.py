"""Rules from a person's side: commands make the workload cross its threshold. On the host; one test of
test_every_rule.py shows in one start that each kind and each action works in the virtual machine, too."""

import json

import pytest

from tests.needs import needs
from tests.system.service import service

pytestmark = [pytest.mark.host_only, needs("root", "cgroup", "pids")]

# Makes children on request: each line that it is sent by a signal is one more `sleep`.
GROWS = """
command = ["sh", "-c", "trap 'sleep 1000 &' USR1; trap : CHLD; echo up; while :; do sleep 1000 & wait $!; done"]
"""


async def test_a_condition_of_several_parts_and_an_exec_that_gets_the_record(tmp_path):
    told = tmp_path / "told"
    toml = f"""
    [workload.grows]
    {GROWS}
    [workload.grows.resources]
    pids_max = 12
    [[workload.grows.policy]]
    when = "pids.current >= 4 and not pids.current >= 90%"
    action = "exec"
    exec = ["sh", "-c", "cat >{told}.new && mv {told}.new {told}"]
    [[workload.grows.policy]]
    when = "pids.current >= 4"
    action = "kill"
    dry_run = true
    """
    async with service(tmp_path, toml) as it:
        await it.record(event="output", message="up")
        for _ in range(4):
            await it.cli("signal", "--signal", "USR1", "grows")
        action = await it.record(event="action", action="exec", workload="grows")
        assert action["cause"]["after"] >= 4
        dry = await it.record(event="action", action="kill", workload="grows")
        assert dry["dry_run"] is True
        await it.until(told.exists)
        record = json.loads(told.read_text())
        assert (record["workload"], record["action"], record["cause"]["rule"]) == ("grows", "exec", "policy[0]")
        assert (await it.status("grows"))["state"] == "running"  # a dry run harms nobody


async def test_an_exec_that_cannot_run_is_told_and_harms_nothing(tmp_path):
    toml = f"""
    [workload.grows]
    {GROWS}
    [[workload.grows.policy]]
    when = "pids.current >= 1"
    action = "exec"
    exec = ["/nonexistent/hook"]
    """
    async with service(tmp_path, toml) as it:
        warning = await it.record(event="warning", workload="grows")
        assert warning["message"] == "policy[0]: cannot execute /nonexistent/hook: No such file or directory"
        assert (await it.status("grows"))["state"] == "running"


async def test_a_rule_freezes_and_escalates(tmp_path):
    toml = """
    [workload.bomb]
    command = ["sh", "-c", "echo up; while :; do sleep 1000 & sleep 0.01; done"]
    restart = "no"
    restart_sec = 0
    [workload.bomb.resources]
    pids_max = 10
    [[workload.bomb.policy]]
    when = "pids.events max"
    action = "restart"
    at_most = 1
    within = "1h"
    then = "stop"
    """
    async with service(tmp_path, toml) as it:
        await it.record(event="action", action="restart", workload="bomb", patience=20)
        await it.pid("bomb", generation=2)
        await it.record(event="action", action="stop", workload="bomb", patience=20)
        stopped = await it.record(event="state", to="stopped", workload="bomb", patience=20)
        assert stopped["reason"] == "stopped by policy[0] (pids.events max)"


async def test_a_rule_freezes(tmp_path):
    toml = f"""
    [workload.grows]
    {GROWS}
    [[workload.grows.policy]]
    when = "pids.current >= 4"
    action = "freeze"
    """
    async with service(tmp_path, toml) as it:
        await it.record(event="output", message="up")
        for _ in range(4):
            await it.cli("signal", "--signal", "USR1", "grows")
        frozen = await it.record(event="state", to="frozen", workload="grows")
        assert frozen["reason"] == "frozen by policy[0] (pids.current >= 4)"
        await it.cli("thaw", "grows")
