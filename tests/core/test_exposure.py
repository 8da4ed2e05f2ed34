"""The score of `nsupervisor security`: each check fails without a profile, and its line makes it pass."""

import pytest

from nsupervisor.config.load import parse
from nsupervisor.core.exposure import CHECKS, Check, exposure, share

NONE = """
security.profile = "none"
security.no_new_privileges = false
namespaces = { mount = false, pid = false, ipc = false, uts = false, cgroup = false }
"""


def workload(keys: str):
    """Return a workload with these keys."""
    return parse(f'[workload.web]\ncommand = ["true"]\n{keys}\n', "site.toml").workloads["web"]


def failed(keys: str) -> set[str]:
    return {check.name for check in exposure(workload(keys)).findings}


def test_a_program_without_any_protection_has_the_highest_score() -> None:
    found = exposure(workload(NONE))
    assert (found.score, found.level) == (10.0, "unsafe")
    assert set(found.findings) == set(CHECKS)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
def test_the_line_of_each_check_makes_it_pass(check: Check) -> None:
    line = check.line.replace('"NAME"', '"nobody"')
    assert check.name in failed('security.profile = "none"\nsecurity.no_new_privileges = false\n') or (
        check.name.startswith("namespaces.") and check.name != "namespaces.network"
    )
    assert check.name not in failed(f'security.profile = "none"\n{line}')


def test_the_profiles_are_in_order() -> None:
    none, default, strict = (
        exposure(workload(f'security.profile = "{profile}"')).score for profile in ("none", "default", "strict")
    )
    assert none > default > strict


def test_a_view_without_a_mount_namespace_protects_nothing() -> None:
    assert "security.protect_system" in failed('namespaces.mount = false\nsecurity.profile = "default"\n')


def test_root_of_a_user_namespace_is_not_root() -> None:
    assert "user" in failed("") - failed("namespaces.user = true")


def test_the_parts_make_up_the_score() -> None:
    found = exposure(workload(""))
    assert sum(share(check) for check in found.findings) == pytest.approx(found.score, abs=0.2)
