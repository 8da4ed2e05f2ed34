"""`[supervisor] isolation`: what is asked for, what is there, and what is reported of the difference."""

import errno
import os
from functools import partial

import pytest

from nsupervisor.cgroups import Host
from nsupervisor.core.isolation import AUTO_REASON
from nsupervisor.service.platform.isolation import Isolation, isolate
from nsupervisor.service.preflight.requirements import CheckedText, check_text
from tests.simulation import seam
from tests.simulation.machine import ROOT_PRIVILEGES, Machine

WEB = '[workload.web]\ncommand = ["/bin/sh"]\n'
NO_PRIVILEGES = ROOT_PRIVILEGES._replace(capabilities=0, uid=1000, gid=1000)


def host(*, is_writable: bool = True) -> Host:
    there = seam.host(seam.Life(Machine(1)))._replace(base="/tmp")  # which everyone may write to
    # What `Host.discover` finds in a container: no directory of cgroups that this process may write to.
    return there if is_writable else there._replace(mode="legacy", core=None, controllers={})


def refuse(with_user_namespace: bool) -> OSError:
    return OSError(errno.EPERM, os.strerror(errno.EPERM), "unshare")


def check(mode: str, *lines: str, there: Host | None = None, probe=refuse) -> CheckedText:
    text = "\n".join((f'[supervisor]\nisolation = "{mode}"', *lines))
    return check_text(
        text,
        "site.toml",
        there or host(is_writable=False),
        privileges=lambda: NO_PRIVILEGES,
        isolate=partial(isolate, probe=probe),
    )


def texts(checked: CheckedText) -> list[str]:
    return [str(problem) for problem in checked.problems]


def isolation(checked: CheckedText) -> Isolation:
    assert checked.isolation is not None
    return checked.isolation


def test_full_uses_what_is_there_and_probes_nothing() -> None:
    there = host()
    checked = check("full", WEB, "namespaces = { user = true }", there=there, probe=None)
    assert isolation(checked) == Isolation(there, "full", {})
    assert texts(checked) == []


def test_full_refuses_default_namespaces_without_the_privilege() -> None:
    (problem,) = texts(check("full", WEB, there=host()))
    assert "workload.web.namespaces: new namespaces (mount, pid, uts, ipc, cgroup) need CAP_SYS_ADMIN" in problem


@pytest.mark.parametrize("mode", ["none", "auto"])
def test_a_plain_workload_needs_neither_cgroups_nor_namespaces(mode: str) -> None:
    checked = check(mode, WEB)
    assert (texts(checked), checked.warnings) == ([], [])
    assert isolation(checked).host.mode == "none"
    assert list(isolation(checked).missing) == ["cgroups", "namespaces", "user namespaces"]


def test_none_asks_for_nothing_even_where_everything_is_there() -> None:
    checked = check("none", WEB, there=host(), probe=None)
    assert isolation(checked).host.mode == "none"
    assert not checked.config.workloads["web"].namespaces.pid


def test_auto_uses_what_is_there() -> None:
    there = host()
    checked = check_text(
        f'[supervisor]\nisolation = "auto"\n{WEB}resources = {{ memory_max = "64M" }}\n',
        "site.toml",
        there,
        privileges=lambda: ROOT_PRIVILEGES,
        isolate=partial(isolate, probe=lambda _: None),
    )
    assert isolation(checked) == Isolation(there, "auto", {})
    assert (texts(checked), checked.warnings) == ([], [])
    assert checked.config.workloads["web"].namespaces.pid


REQUESTS = """
namespaces = { network = true }
resources = { memory_max = "64M" }
[[workload.web.policy]]
when = "memory.events oom_kill"
action = "restart"
[[workload.web.policy]]
when = "exit code == 3"
action = "restart"
"""


def test_none_refuses_each_request_with_the_reason() -> None:
    reason = '[supervisor] isolation = "none" asks for none; remove it, or write another isolation'
    assert texts(check("none", WEB, REQUESTS)) == [
        f"site.toml:7: workload.web.namespaces.network: no new network namespace here: {reason}",
        f"site.toml:8: workload.web.resources.memory_max: {reason}",
        f"site.toml:10: workload.web.policy[0].when: no memory.events here: {reason}",
    ]


def test_auto_reports_each_request_and_goes_on_without_it() -> None:
    checked = check("auto", WEB, REQUESTS)
    assert texts(checked) == []
    keys = [(problem.key, reason) for problem, reason in checked.warnings]
    assert keys == [
        ("workload.web.namespaces.network", AUTO_REASON),
        ("workload.web.resources.memory_max", AUTO_REASON),
        ("workload.web.policy[0].when", AUTO_REASON),
    ]
    web = checked.config.workloads["web"]
    assert [atom.file for rule in web.policy for atom in rule.when.atoms] == ["exit"]
    assert (web.namespaces.network, web.resources.required) == (False, False)


@pytest.mark.parametrize("mode", ["none", "auto"])
def test_another_user_or_other_files_are_never_given_up(mode: str) -> None:
    lines = (WEB, 'user = "0"\nmounts = [{ type = "tmpfs", destination = "/tmp" }]')
    problems = texts(check(mode, *lines))
    assert [problem.split(": ")[1] for problem in problems] == ["workload.web.user", "workload.web.mounts"]


def test_auto_names_the_reason_of_each_missing_feature() -> None:
    missing = isolation(check("auto", WEB)).missing
    assert str(missing["cgroups"]).startswith("no cgroup can be made: no cgroup v2 hierarchy")
    assert f"unshare: {os.strerror(errno.EPERM)}" in str(missing["namespaces"])
