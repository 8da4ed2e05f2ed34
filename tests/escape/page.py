"""The comparison in docs/security.md, drawn from the data; see scripts/escape."""

import argparse
import json
import os
import re
import sys

from tests import isolation
from tests.escape import expected, parties, rooted
from tests.escape.parties import Results
from tests.escape.targets import Targets
from tests.needs import ROOT

PAGE = ROOT / "docs" / "security.md"
OURS = {
    "default": "nsupervisor",
    "nobody": '`user = "nobody"`',
    "user namespace": "user namespace",
    "strict": '`profile = "strict"`',
    "own root": "`root.path`, own network",
    "rootless": "rootless",
}
"""Party → the head of its column."""
OWN_ROOTS = {
    "own root, strict": '`profile = "strict"`',
    "own root, rootless": "rootless",
    "own root, joined": "joined namespaces",
    "own root, CNI": "network of plugins",
    "own root, socket": "`sockets`",
}
"""The same, of those with a root and a network of their own."""
OTHERS = {"landlock": "`security.landlock`", "exec": "`exec`", "exec --debug": "`exec --debug`"}
"""The same, of further ones with the host's root and network."""
THEIRS = ("podman", "runc", "crun", "bubblewrap")
SHARED = ("podman, host's", "bubblewrap, host's")


def measure() -> None:
    """Run the attempts in the other programs, in cgroups and mounts of this run, and write what they allow."""
    from tests.escape import peers

    entered = isolation.enter()
    try:
        with parties.new_targets() as targets:
            root = peers.root_file_system(targets.directory)
            results = {name: party(targets, root) for name, party in peers.PEERS.items()}
            results |= parties.workload_results(targets, parties.BASELINES, outside=True)
    finally:
        for problem in isolation.leave(entered):
            print(problem)
    for name, rows in results.items():
        for row in rows.values():
            assert "defect" not in str(row["detail"]), (name, row)
    data = {
        "kernel": os.uname().release.partition("-")[0],
        "versions": {name: peers.version(name) for name in THEIRS},
        "allowed": {name: sorted(row for row in rows if rows[row]["allowed"]) for name, rows in results.items()},
    }
    expected.MEASURED.write_text(json.dumps(data, indent=1) + "\n")


def our_results(targets: Targets, baselines: dict[str, str], outside: bool = False) -> dict[str, Results]:
    """Run the attempts in our workloads that have the host's root; see `rooted` for the others."""
    workloads = parties.WORKLOADS | baselines | parties.possible(parties.OPTIONAL)
    results = parties.workload_results(targets, workloads, outside=outside, sessions=parties.SESSIONS)
    return results | parties.rootless_results(targets)


def close_gaps() -> None:
    """Run the attempts in our workloads, and remove the gaps that are closed from expected.toml."""
    entered = isolation.enter()
    try:
        with parties.new_targets() as targets:
            results = our_results(targets, {}) | rooted.results()
    finally:
        for problem in isolation.leave(entered):
            print(problem)
    closed = {
        party: frozenset(name for name in expected.expected()[party].gaps if not rows[name]["allowed"])
        for party, rows in results.items()
    }
    expected.remove_gaps(closed)
    for party, names in closed.items():
        print(f"{party}: {len(names)} closed, {len(expected.expected()[party].gaps)} remain")


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *rows))


def comparison() -> str:
    """Return the tables: totals, rows of the sandbox itself, rows that follow from a shared root and network."""
    listed = parties.listed()
    measured = expected.measured()
    wanted = expected.expected()
    assert set(wanted) == {*OURS, *OWN_ROOTS, *OTHERS}
    allowed = measured | {name: rows.allowed | rows.gaps for name, rows in wanted.items()}
    versions = json.loads(expected.MEASURED.read_text())["versions"]

    def cell(party: str, name: str) -> str:
        is_gap = party in wanted and name in wanted[party].gaps
        return "gap" if is_gap else "allowed" if name in allowed[party] else "·"

    def totals(title: str, ours: dict[str, str], shares: bool, peers: tuple[str, ...]) -> str:
        names = {row["name"] for row in listed if bool(row["shares"]) == shares}
        counted = [allowed[party] & names for party in (*ours, *peers, "none")]
        peer_heads = [f"{name.split(',')[0]} {versions[name.split(',')[0]]}" for name in peers]
        head = ["", *ours.values(), *peer_heads, '`profile = "none"`']
        return table(head, [[f"{title}: {len(names)}", *(str(len(rows)) for rows in counted)]])

    def detail(ours: dict[str, str], shares: bool, peers: tuple[str, ...]) -> str:
        shown = [row for row in listed if bool(row["shares"]) == shares]
        lines = [[row["description"], *(cell(party, row["name"]) for party in (*ours, *peers))] for row in shown]
        lines = [line for line in lines if set(line[1:]) != {"·"}]
        return table(["attempt", *ours.values(), *(name.split(",")[0] for name in peers)], lines)

    def both(ours: dict[str, str]) -> str:
        """Return all rows that are allowed in one of several parties."""
        lines = [[row["description"], *(cell(party, row["name"]) for party in ours)] for row in listed]
        return table(["attempt", *ours.values()], [line for line in lines if set(line[1:]) != {"·"}])

    sandbox, shared = "attempts on the sandbox itself", "attempts on what is shared on purpose"
    return "\n\n".join(
        (
            f"{len(listed)} attempts. The numbers are those that succeed.",
            totals(sandbox, OURS, False, THEIRS),
            totals(f"{shared}: the host's root and network", OURS, True, SHARED),
            "Further workloads with a root and a network of their own:",
            totals(sandbox, OWN_ROOTS, False, ("podman",)),
            totals(shared, OWN_ROOTS, True, SHARED[:1]),
            "Landlock with files for reading only and no ports, and the commands of an operator in a default workload:",
            totals(sandbox, OTHERS, False, ("podman",)),
            totals(shared, OTHERS, True, SHARED[:1]),
            "Attempts on the sandbox that succeed in at least one of them:",
            detail(OURS, False, THEIRS),
            "Attempts that follow from sharing the host's root and network, here with the same for the others:",
            detail(OURS, True, SHARED),
            "Attempts that succeed in at least one of the further workloads:",
            both(OWN_ROOTS | OTHERS),
        )
    )


def checklist() -> str:
    """Return the table of the cases of other projects' tests."""
    rows = []
    for case in expected.checklist():
        name = case.get("test", "").rpartition("::")[2].replace("test_the_case_holds[", "").rstrip("]")
        result = (
            f"passes (`{name}`)" if name else f"passes (attempt `{case['row']}`)" if "row" in case
            else f"does not apply: {case['not_applicable']}" if "not_applicable" in case else f"open: {case['open']}"
        )  # fmt: skip
        rows.append([f"{case['project']} {case['file']}", case["case"], result])
    return table(["tests", "case", "here"], rows)


def drawn() -> str:
    """Return the page with its generated parts replaced."""
    text = PAGE.read_text()
    for marker, part in (("escape", comparison()), ("checklist", checklist())):
        pattern = rf"(<!-- {marker}: scripts/escape -->\n).*?(<!-- end -->)"
        text, found = re.subn(pattern, lambda m, part=part: f"{m[1]}{part}\n{m[2]}", text, flags=re.DOTALL)
        assert found == 1, f"{PAGE} needs the markers of {marker} once"
    return text


def main() -> None:
    """Run scripts/escape."""
    parser = argparse.ArgumentParser(prog="scripts/escape", description=__doc__)
    parser.add_argument("--measure", action="store_true", help="run the attempts in the other programs first")
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if the page is outdated")
    parser.add_argument("--close-gaps", action="store_true", help="first remove gaps that our workloads no longer have")
    options = parser.parse_args()
    if (options.measure or options.close_gaps) and os.geteuid():
        sys.exit("scripts/escape: run it as root")
    if options.measure:
        measure()
    if options.close_gaps:
        close_gaps()
    if not options.check:
        PAGE.write_text(drawn())
    elif drawn() != PAGE.read_text():
        sys.exit(f"the comparison in {PAGE} is outdated; run scripts/escape")


if __name__ == "__main__":
    main()
