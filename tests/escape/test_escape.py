"""Each attempt to escape from a workload, or to abuse its privileges, has the result that is expected.

The attempts are `attempts/`, the results `expected.toml`. A row in which this machine allows nothing to root outside of
all sandboxes (its kernel has no modules, say) has to be refused, and shows nothing; the virtual machine has another
kernel.
"""

import subprocess

import pytest

from tests.escape import expected, page, parties, rooted
from tests.escape.parties import PYTHON, Results
from tests.escape.targets import ATTEMPTS
from tests.needs import needs

pytestmark = [
    needs("root", "cgroup", "userns", "netns", "program:ip", "program:setpriv", "program:unshare"),
    pytest.mark.slow,
]

ROWS = {row["name"]: row for row in parties.listed()}
PARTIES = [
    pytest.param(party, marks=needs(*parties.NEEDS.get(party, ())), id=party)
    for group in (
        *(parties.WORKLOADS, parties.OPTIONAL, parties.SESSIONS, parties.ROOTLESS),
        *(rooted.PARTIES, rooted.ROOTLESS),
    )
    for party in group
]
CASES = [
    pytest.param(*party.values, name, marks=party.marks, id=f"{party.id}-{name}") for party in PARTIES for name in ROWS
]


@pytest.fixture(scope="module")
def results() -> dict[str, Results]:
    """Return the attempts that were allowed to each party, and to root outside of all sandboxes."""
    with parties.new_targets() as targets:
        return page.our_results(targets, parties.BASELINES, outside=True) | rooted.results()


@pytest.fixture(scope="module")
def possible(results: dict[str, Results]) -> frozenset[str]:
    """The attempts that succeed on this machine: without a sandbox, or in any party."""
    return frozenset(name for rows in results.values() for name, row in rows.items() if row["allowed"])


@pytest.mark.parametrize(("party", "name"), CASES)
def test_the_attempt_has_the_expected_result(
    results: dict[str, Results], possible: frozenset[str], party: str, name: str
) -> None:
    row = results[party][name]
    wanted = expected.expected()[party]
    assert "defect" not in str(row["detail"]), row
    if name in wanted.gaps and name in possible:
        assert row["allowed"], "the gap is closed: run scripts/escape --close-gaps, which removes it from expected.toml"
        pytest.xfail(f"known gap of {party!r} (tests/escape/expected.toml)")
    assert row["allowed"] == (name in wanted.allowed and name in possible), f"{ROWS[name]['description']}: {row}"


def test_each_attempt_can_succeed(possible: frozenset[str]) -> None:
    never = set(ROWS) - possible
    reasons = expected.nothing_to_refuse()
    assert never - set(reasons) == set(), "these attempts show nothing here; expected.toml does not say why"


def test_the_attempts_are_many() -> None:
    assert len(ROWS) >= 100


def test_the_data_name_attempts_that_exist() -> None:
    for party, rows in expected.expected().items():
        assert (rows.allowed | rows.gaps) - set(ROWS) == set(), party
        assert rows.allowed & rows.gaps == set(), party
    assert set(expected.nothing_to_refuse()) <= set(ROWS)
    assert set(expected.expected()) == {party.id for party in PARTIES}


def shared(name: str) -> bool:
    """Return whether the row follows from sharing the host's root or network on purpose."""
    return bool(ROWS[name]["shares"])


@pytest.mark.parametrize("party", PARTIES)
def test_a_workload_is_allowed_no_more_than_under_podman(party: str) -> None:
    peers = expected.measured()
    wanted = expected.expected()[party].allowed
    more = {name for name in wanted if name not in peers["podman, host's" if shared(name) else "podman"]}
    assert more == set(), f"podman refuses these to its containers: {more}"


@pytest.mark.parametrize("party", PARTIES)
def test_a_workload_is_allowed_fewer_than_under_podman(party: str) -> None:
    ours = {name for name in expected.expected()[party].allowed if not shared(name)}
    theirs = {name for name in expected.measured()["podman"] if not shared(name)}
    assert len(ours) < len(theirs)


def test_a_chroot_does_not_hold_root() -> None:
    """The attempt to leave a chroot succeeds if only chroot made the sandbox, so it shows something."""
    program = f"""
import os, sys
sys.path.insert(0, {str(ATTEMPTS)!r})
import mounts
os.chdir("/")
os.chroot("/usr")
print(mounts.chroot_escape())
"""
    done = subprocess.run([PYTHON, "-I", "-B", "-c", program], capture_output=True, text=True)
    assert done.stdout == "reached another directory above\n", done.stderr


def test_the_page_is_in_step_with_the_data() -> None:
    assert page.drawn() == page.PAGE.read_text(), "run scripts/escape"
