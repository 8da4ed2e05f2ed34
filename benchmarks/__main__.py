"""The command line: run benchmarks one after the other, show tables and targets, write JSON and the page's figures.

With --against DIR: run them alternately for this checkout and the one in DIR, and list the slower cases."""

import argparse
import importlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import checkout, figures, machine, page, paired, processes, products, spawn
from benchmarks.figures import Result
from benchmarks.peer import known
from benchmarks.session import Options, RunError
from benchmarks.spawners import SPAWNERS

NAMES = (
    "spawn",
    "restart",
    "timeline",
    "react",
    "footprint",
    "logs",
    "scale",
    "budget",
    "bulk",
    "takeover",
    "commands",
    "api",
    "security",
    "execute",
)
PAGE = products.ROOT / "docs" / "performance.md"


def main() -> int:
    """Return the exit status: 0 even if a target is missed or a case is slower, because times vary."""
    arguments = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs start with it ignored
    processes.become_subreaper()
    try:
        sides = open_sides(arguments)
        products.build()
        if arguments.install:
            products.install()
        results = measure_against(arguments, sides) if sides else measure(arguments)
    except products.SetupError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    finally:
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, signal.SIG_IGN)
        processes.kill_descendants()
    return results


def parse() -> argparse.Namespace:
    """Parse the command line arguments."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="|".join((*NAMES, "all")), default=[])
    parser.add_argument("--rounds", type=int, help="number of measurements of each product; with --against: of pairs")
    parser.add_argument("--sizes", help="footprint, scale, takeover: numbers of programs, with commas between them")
    parser.add_argument("--peers", help="only these products, with commas between them")
    parser.add_argument(
        "--quick", action="store_true", help="only check that everything works (the figures are not meaningful)"
    )
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    parser.add_argument(
        "--write-docs", action="store_true", help=f"put the tables into {PAGE.relative_to(products.ROOT)}"
    )
    parser.add_argument("--install", action="store_true", help="install the other products first (apt, pip, npm)")
    parser.add_argument(
        "--from", dest="source", type=Path, help="show the results that --json wrote instead of measuring"
    )
    parser.add_argument("--against", type=Path, metavar="DIR", help="compare with the checkout of this project in DIR")
    parser.add_argument(
        "--fail-if-slower", action="store_true", help="with --against: exit status 1 if a case is slower, or fails"
    )
    arguments = parser.parse_args()
    unknown = set(arguments.names) - {*NAMES, "all"}
    if unknown:
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    if arguments.against:
        for option in ("peers", "write_docs", "source"):
            if getattr(arguments, option):
                name = "from" if option == "source" else option.replace("_", "-")
                parser.error(f"--{name} does not go together with --against, which has a table of its own")
        if not arguments.names:
            parser.error(f"--against needs benchmarks: {' '.join(NAMES)} or all")
    elif arguments.fail_if_slower:
        parser.error("--fail-if-slower needs --against DIR")
    return arguments


def chosen(arguments: argparse.Namespace) -> tuple[str, ...]:
    """Return the names of the requested benchmarks. Raises SetupError if they cannot run."""
    if os.geteuid() != 0:
        raise products.SetupError("namespaces and cgroups for all these products need root")
    return NAMES if "all" in arguments.names else tuple(dict.fromkeys(arguments.names))


def options(arguments: argparse.Namespace) -> Options:
    """Return the options for the benchmarks."""
    peers = arguments.peers.split(",") if arguments.peers else None
    sizes = [int(size) for size in arguments.sizes.split(",")] if arguments.sizes else None
    return Options(arguments.rounds, arguments.quick, peers, sizes)


def open_sides(arguments: argparse.Namespace) -> list[checkout.Checkout]:
    """Open this checkout and the one to compare it with; return [] without --against. Raises SetupError."""
    if arguments.against is None:
        return []
    old = checkout.open_checkout(arguments.against, paired.OLD)
    return [checkout.open_checkout(products.ROOT, paired.NEW), old]


def measure_against(arguments: argparse.Namespace, sides: list[checkout.Checkout]) -> int:
    """Compare this checkout with another one, and show the slower cases."""
    names = chosen(arguments)
    report: dict[str, Any] = {
        "when": time.strftime("%Y-%m-%d", time.gmtime()),
        "quick": arguments.quick,
        "machine": machine.describe(),
        "checkouts": {side.label: side.describe() for side in sides},
        "failed": {},
        "comparisons": [],
    }
    found: list[paired.Comparison] = []
    for name in names:
        begin = time.monotonic()
        try:
            compared = paired.compare(importlib.import_module(f"benchmarks.{name}").compare(options(arguments), sides))
            found += compared
            report["comparisons"] += [comparison.json() for comparison in compared]
        except (RunError, OSError) as error:
            print(f"{name}: failed: {error}", flush=True)
            report["failed"][name] = str(error)
        print(f"{name}: took {time.monotonic() - begin:.0f} s", flush=True)
        if arguments.json:  # after each, so that an interruption does not cost everything
            arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    print("\n" + page.about(report))
    for label, side in report["checkouts"].items():
        print(f"{label}: {side['directory']}, version {side['version']} {side['commit']}".rstrip())
    print("\n" + figures.plain(paired.table(found)))
    print("\n" + paired.last_line(found, list(report["failed"])))
    slower = any(comparison.verdict == "slower" for comparison in found)
    return 1 if arguments.fail_if_slower and (slower or report["failed"]) else 0


def measure(arguments: argparse.Namespace) -> int:
    """Run the requested benchmarks and show the results."""
    if arguments.source:
        report = json.loads(arguments.source.read_text())
    else:
        if not arguments.names:
            if not arguments.install:
                print(f"bench: which? {' '.join(NAMES)} all", file=sys.stderr)
                return 2
            return 0
        names = chosen(arguments)
        selected = options(arguments)
        everybody = {*known(), *spawn.OURS, *(spawner.name for spawner in SPAWNERS)}
        unknown = sorted({*(selected.peers or ())} - everybody)
        if unknown:
            raise products.SetupError(f"no product {', '.join(unknown)}; there are {', '.join(sorted(everybody))}")
        report = {
            "when": time.strftime("%Y-%m-%d", time.gmtime()),
            "quick": arguments.quick,
            "machine": machine.describe(),
        }
        report["results"] = []
        for name in names:
            begin = time.monotonic()
            result: Result = importlib.import_module(f"benchmarks.{name}").run(selected)
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
