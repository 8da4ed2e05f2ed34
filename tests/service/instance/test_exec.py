"""Commands that are executed in an instance: when they are refused, and with which specification."""

import attrs
import pytest

from nsupervisor.api.control import ExecRefused, ExecTerms
from nsupervisor.keeper.entry import LOST, Entry
from nsupervisor.keeper.messages import SetupFailure
from nsupervisor.service.instance.exec_session import describe_end
from tests.service.simulated import Client, simulated, workload

TERMS = ExecTerms(("true",))


def refusal(service: Client, name: str) -> str:
    with pytest.raises(ExecRefused) as refused:
        service.supervisor.exec(name, TERMS, None)
    assert refused.value.status == 409
    return str(refused.value)


@simulated(workload("web") + workload("off", "autostart = false"))
async def test_it_is_possible_only_while_the_program_runs(service: Client) -> None:
    assert refusal(service, "off") == "off is stopped; start it first"
    await service.until("web", "running")
    assert service.supervisor.exec("web", TERMS, None).protocol == "nsupervisor-exec"
    assert (await service.command("freeze", "web"))["ok"]
    assert refusal(service, "web").endswith("; thaw it first")
    assert (await service.command("thaw", "web"))["ok"]
    stop = await service.begin(service.supervisor.command, "stop", "web")
    await service.until("web", "stopping", "stopped")
    assert refusal(service, "web").endswith("; start it first")
    await service.until("web", "stopped")
    assert refusal(service, "web").endswith("; start it first")
    del stop


@simulated(workload("web"))
async def test_it_is_refused_once_the_settings_are_others(service: Client) -> None:
    await service.until("web", "running")
    actor = service.supervisor.actors["web"]
    changed = attrs.evolve(actor.workload, umask=0o077)
    with pytest.raises(ExecRefused, match="was started with other settings"):
        actor.program.exec_spec(changed, actor.lifecycle, actor.cgroup, TERMS)
    spec = actor.program.exec_spec(actor.workload, actor.lifecycle, actor.cgroup, TERMS)
    assert spec["argv"] == ["true"]


@simulated(workload("web"))
async def test_a_program_of_an_earlier_version_with_other_settings_is_refused(service: Client) -> None:
    await service.until("web", "running")
    actor = service.supervisor.actors["web"]
    actor.program.start_revision = 0
    assert "an earlier version started it" in refusal(service, "web")


@simulated(workload("web"))
async def test_terms_change_the_user_the_directory_and_variables_alone(service: Client) -> None:
    await service.until("web", "running")
    actor = service.supervisor.actors["web"]
    terms = ExecTerms(("a", "b"), user="12:34", environment={"A": "1"}, directory="/etc")
    own = actor.program.exec_spec(actor.workload, actor.lifecycle, actor.cgroup, TERMS)
    spec = actor.program.exec_spec(actor.workload, actor.lifecycle, actor.cgroup, terms)
    assert (spec["uid"], spec["gid"], spec["groups"], spec["cwd"]) == (12, 34, [34], "/etc")
    assert spec["env"]["A"] == "1"
    changed = {key for key in spec if spec[key] != own.get(key)}
    assert changed <= {"argv", "uid", "gid", "groups", "cwd", "env"}


def ended(status: int, failure: SetupFailure | None = None) -> dict:
    entry = Entry("web#1/1")
    entry.ended(status, failure)
    return describe_end(entry)


def test_ends_are_described_as_in_a_shell() -> None:
    assert ended(7 << 8) == {"code": 7, "signal": None, "failure": ""}
    assert ended(9) == {"code": None, "signal": "SIGKILL", "failure": ""}
    assert ended(127 << 8, SetupFailure("execute", "a", 2)) == {"code": 127, "signal": None, "failure": "a"}
    assert ended(126 << 8, SetupFailure("execute", "a", 13)) == {"code": 126, "signal": None, "failure": "a"}
    assert ended(125 << 8, SetupFailure("enter", "b", 3)) == {"code": None, "signal": None, "failure": "b"}
    assert ended(-1, LOST)["failure"] == "the connection to the keeper is lost, which ends the command"
