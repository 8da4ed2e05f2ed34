"""Configurations on hosts without cgroups or namespaces: the requests that are refused, reported or left out."""

from nsupervisor.config.load import parse
from nsupervisor.config.model import Config
from nsupervisor.config.positions import scan_positions
from nsupervisor.core.isolation import (
    CGROUPS,
    NAMESPACES,
    USER_NAMESPACES,
    Absence,
    cgroup_findings,
    needs_cgroups,
    without_namespaces,
    without_requirements,
)

ABSENCE = Absence("none here", "go elsewhere")
ALL = dict.fromkeys((CGROUPS, NAMESPACES, USER_NAMESPACES), ABSENCE)
WEB = '[workload.web]\ncommand = ["true"]\n'


def stripped(text: str, missing: dict[str, Absence] = ALL) -> tuple[Config, list[tuple[str, bool]]]:
    config, findings = without_namespaces(parse(text, "site.toml"), scan_positions(text), missing)
    return config, [(".".join(map(str, finding.path[2:])), finding.is_refused) for finding in findings]


def test_default_namespaces_are_left_out_and_are_no_request() -> None:
    config, findings = stripped(WEB)
    spaces = config.workloads["web"].namespaces
    assert not any((spaces.mount, spaces.pid, spaces.uts, spaces.ipc, spaces.cgroup))
    assert findings == []


def test_each_request_in_the_file_is_a_finding() -> None:
    text = WEB + 'namespaces = { pid = true, uts = true, network = true, ipc = false, hostname = "web" }\n'
    config, findings = stripped(text)
    assert findings == [
        ("namespaces.pid", False),
        ("namespaces.uts", False),
        ("namespaces.network", False),
        ("namespaces.hostname", False),
    ]
    assert config.workloads["web"].namespaces.hostname is None


def test_what_changes_the_files_or_the_user_of_a_program_is_refused_in_any_case() -> None:
    text = (
        WEB
        + "namespaces = { user = true }\n"
        + 'mounts = [{ type = "tmpfs", destination = "/tmp" }]\n'
        + "user_namespace = { uid_mappings = [{ container_id = 0, host_id = 1, size = 1 }] }\n"
    )
    _, findings = stripped(text)
    assert ("mounts", True) in findings
    assert ("user_namespace.uid_mappings", True) in findings


def test_a_user_namespace_gives_the_others() -> None:
    text = WEB + "namespaces = { user = true }\n"
    config, findings = stripped(text, {NAMESPACES: ABSENCE})
    assert config.workloads["web"].namespaces.pid
    assert findings == []


def test_without_cgroups_there_is_no_cgroup_namespace() -> None:
    config, findings = stripped(WEB, {CGROUPS: ABSENCE})
    spaces = config.workloads["web"].namespaces
    assert (spaces.cgroup, spaces.pid, findings) == (False, True, [])


def test_with_everything_nothing_changes() -> None:
    config, findings = stripped(WEB, {})
    assert (config, findings) == (parse(WEB, "site.toml"), [])


RULES = """
[[workload.web.policy]]
when = "exit code == 3"
action = "restart"
[[workload.web.policy]]
when = "uptime > 1h"
action = "freeze"
[[workload.web.policy]]
when = "memory.current > 5M"
action = "log"
[[host.policy]]
when = "host.meminfo MemAvailable < 5M"
action = "kill"
victim = "largest-memory"
[[host.policy]]
when = "host.meminfo MemAvailable < 5M"
action = "kill"
victim = "newest"
"""


def test_rules_ask_for_cgroups_by_their_files_their_actions_and_their_victims() -> None:
    config = parse(WEB + RULES, "site.toml")
    found = [".".join(map(str, finding.path)) for finding in cgroup_findings(config, ABSENCE)]
    assert found == ["workload.web.policy.1.action", "host.policy.0.victim"]
    needing = [needs_cgroups(rule) for rule in (*config.workloads["web"].policy, *config.host.policy)]
    assert needing == [False, True, True, True, False]


def test_auto_requires_no_limit_and_leaves_out_rules_on_cgroups() -> None:
    config = parse(WEB + 'resources = { memory_max = "64M" }\n[group.all]\npids_max = 5\n' + RULES, "site.toml")
    relaxed = without_requirements(config, has_cgroups=False)
    assert not relaxed.workloads["web"].resources.required
    assert not relaxed.groups["all"].required
    assert [rule.action for rule in relaxed.workloads["web"].policy] == ["restart"]
    assert [rule.victim for rule in relaxed.host.policy] == ["newest"]
    kept = without_requirements(config, has_cgroups=True)
    assert kept.workloads["web"].policy == config.workloads["web"].policy
