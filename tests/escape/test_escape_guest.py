"""Attempts that most hosts have nothing to refuse, and those on cgroups of version 2, in the virtual machine."""

import pytest

from tests.escape import expected, parties
from tests.escape.parties import Results
from tests.needs import needs

pytestmark = [needs("root", "cgroup"), pytest.mark.vm_only]

ONLY_HERE = [name for name, reason in expected.nothing_to_refuse().items() if reason == "shown in the virtual machine"]
SHOWN_ON_THE_HOST = ["cgroup-v2-move"]
"""The machine has no other cgroup to begin in, and the option `nsdelegate` refuses it to workloads."""
CGROUPS = ["cgroup-v2-child", "cgroup-v2-limit", "cgroup-kill", "cgroup-threads", "mount-cgroup2"]
ROWS = [*ONLY_HERE, *CGROUPS, *SHOWN_ON_THE_HOST]


@pytest.fixture(scope="module")
def results() -> dict[str, Results]:
    """Return the attempts that were allowed to each party, and to root outside of all sandboxes."""
    with parties.new_targets() as targets:
        targets.values["attempts"] = ROWS
        return parties.workload_results(targets, parties.WORKLOADS | parties.BASELINES, outside=True)


@pytest.mark.parametrize("name", ROWS)
def test_the_attempt_succeeds_only_without_a_profile(results: dict[str, Results], name: str) -> None:
    succeeds = results["unconfined"][name]["allowed"] or results["none"][name]["allowed"]
    assert succeeds or name in SHOWN_ON_THE_HOST, results["none"][name]
    allowed = {party for party in parties.WORKLOADS if results[party][name]["allowed"]}
    assert allowed == {party for party in parties.WORKLOADS if name in expected.expected()[party].allowed}
