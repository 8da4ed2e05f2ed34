"""The command line: run benchmarks one after the other, show tables and targets, write JSON and the page's figures."""

import argparse
import importlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import figures, machine, page, processes, products, spawn
from benchmarks.figures import Result
from benchmarks.peer import known
from benchmarks.session import Options
from benchmarks.spawners import SPAWNERS

NAMES = ("spawn", "restart", "react", "footprint", "logs", "scale", "takeover", "commands")
PAGE = products.ROOT / "docs" / "performance.md"


def main() -> int:
    """Returns the exit status: 0 also when a target is missed, because time is no judge."""
    arguments = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are born with it ignored
    processes.become_subreaper()
    try:
        products.build()
        if arguments.install:
            products.install()
        results = measure(arguments)
    except products.SetupError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    finally:
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, signal.SIG_IGN)
        processes.kill_descendants()
    return results


def parse() -> argparse.Namespace:
    """The arguments."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="|".join((*NAMES, "all")), default=[])
    parser.add_argument("--rounds", type=int, help="how often each product has its turn")
    parser.add_argument("--sizes", help="footprint, scale, takeover: numbers of programs, with commas between them")
    parser.add_argument("--peers", help="only these products, with commas between them")
    parser.add_argument("--quick", action="store_true", help="does everything work? (the figures are worth little)")
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    parser.add_argument(
        "--write-docs", action="store_true", help=f"put the tables into {PAGE.relative_to(products.ROOT)}"
    )
    parser.add_argument("--install", action="store_true", help="install the other products first (apt, pip, npm)")
    parser.add_argument("--from", dest="source", type=Path, help="show what --json wrote instead of measuring")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - {*NAMES, "all"}
    if unknown:
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    return arguments


def measure(arguments: argparse.Namespace) -> int:
    """Run what was asked for and show it."""
    if arguments.source:
        report = json.loads(arguments.source.read_text())
    else:
        names = NAMES if "all" in arguments.names else tuple(dict.fromkeys(arguments.names))
        if not names:
            if not arguments.install:
                print(f"bench: which? {' '.join(NAMES)} all", file=sys.stderr)
                return 2
            return 0
        if os.geteuid() != 0:
            print("bench: namespaces and cgroups for all these products need root", file=sys.stderr)
            return 2
        peers = arguments.peers.split(",") if arguments.peers else None
        everybody = {*known(), *spawn.OURS, *(spawner.name for spawner in SPAWNERS)}
        unknown = sorted({*(peers or ())} - everybody)
        if unknown:
            raise products.SetupError(f"no product {', '.join(unknown)}; there are {', '.join(sorted(everybody))}")
        options = Options(
            arguments.rounds,
            arguments.quick,
            peers,
            [int(size) for size in arguments.sizes.split(",")] if arguments.sizes else None,
        )
        report = {
            "when": time.strftime("%Y-%m-%d", time.gmtime()),
            "quick": arguments.quick,
            "machine": machine.describe(),
        }
        report["results"] = []
        for name in names:
            begin = time.monotonic()
            result: Result = importlib.import_module(f"benchmarks.{name}").run(options)
            seconds = round(time.monotonic() - begin)
            print(f"{name}: took {seconds} s", flush=True)
            report["results"].append({**result.json(), "seconds": seconds})
            if arguments.json:  # after each, so that an interruption does not cost everything
                arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    results = [_result(entry) for entry in report["results"]]
    print("\n" + page.about(report))
    for result, entry in zip(results, report["results"], strict=True):
        print(f"\n== {result.name}: {result.title} (took {entry.get('seconds', '?')} s)")
        print(figures.plain(figures.long_table(result)))
        for remark in result.remarks:
            print(f"   {remark}")
    print("\nTargets:")
    for target in (target for result in results for target in result.targets):
        print(f"  {target}")
    if arguments.write_docs:
        PAGE.write_text(page.with_figures(PAGE.read_text(), report, results, NAMES))
    return 0


def _result(entry: dict[str, Any]) -> Result:
    series = [figures.Series(**{k: v for k, v in s.items() if k != "median"}) for s in entry["series"]]
    targets = [figures.Target(**{k: v for k, v in t.items() if k != "met"}) for t in entry["targets"]]
    return Result(entry["name"], entry["title"], series, targets, entry["remarks"])


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
