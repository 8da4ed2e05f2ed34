"""scripts/chaos --simulate: histories on the simulated machine, seed by seed. See docs/chaos.md."""

from __future__ import annotations

import argparse
import gc
import os
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Iterable, Sequence

import pytest

from tests.simulation import defects, history
from tests.simulation.service import DEAD_RUNS

SEEDS_PER_COLLECTION = 20
SEEDS_PER_PROCESS = 50
SEEDS_PER_LINE = 5_000


def run_seeds(first: int, count: int) -> int:
    """Run the histories of some seeds; return 1 if something was wrong, after a report of each. A long run says how far
    it has come, so one that is ended early shows what held."""
    history.run(first)  # imports what is imported late
    prepare()
    status = lives = 0
    for begin in range(first, first + count, SEEDS_PER_PROCESS):
        if begin > first and (begin - first) % SEEDS_PER_LINE == 0:
            print(f"simulation: seeds {first} to {begin - 1} ran, {lives} supervisors", flush=True)
        found, is_wrong = _run_in_child(range(begin, min(begin + SEEDS_PER_PROCESS, first + count)))
        lives += found
        status |= is_wrong
    print(f"simulation: {count} histories from seed {first}, {lives} supervisors", flush=True)
    return status


def _run_in_child(seeds: Iterable[int]) -> tuple[int, bool]:
    """Run histories in a copy of this process; return how many supervisors lived, and whether something was wrong.

    Nothing is collected: what dead supervisors leave disappears with the process. Collecting takes as long as a third
    of the histories, and longer each time, as some coroutines of the dead cannot end.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 2
        try:
            lives = 0
            is_wrong = False
            for seed in seeds:
                outcome = history.run(seed)
                lives += outcome.lives
                if outcome.problems:
                    print(history.report(seed, outcome), flush=True)
                    is_wrong = True
            os.write(writer, str(lives).encode())
            status = int(is_wrong)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    os.close(writer)
    with open(reader, "rb") as pipe:
        lives = int(pipe.read() or 0)
    return lives, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0


def prepare() -> None:
    """Prepare this process for many histories.

    The runs of dead supervisors are collected now and then, and not while another one runs: their clean-up code would
    run in the middle of it. It has no effect, but it complains.
    """
    warnings.simplefilter("ignore", RuntimeWarning)
    sys.unraisablehook = lambda _problem: None
    gc.collect()
    gc.freeze()
    gc.disable()


def find_defects(names: Sequence[str], limit: int) -> int:
    """Print a row of docs/chaos.md for the first seed that finds each defect; return 1 if one is not found."""
    prepare()
    status = 0
    held: dict[int, bool] = {}
    for defect in (*defects.PLANTED, *defects.REVERTED):
        name = defect.plant.__name__
        if names and name not in names:
            continue
        for seed in range(limit):
            if seed % SEEDS_PER_COLLECTION == 0:
                DEAD_RUNS.clear()
                gc.collect()
            with pytest.MonkeyPatch.context() as patch:
                defect.plant(patch)
                problems = history.run(seed).problems
                if not problems or not problems[0].startswith(defect.problem):
                    continue
                _, steps = history.shrink(seed, lambda shorter: bool(shorter.problems))
            if seed not in held:
                held[seed] = not history.run(seed).problems
            if held[seed]:
                print(f"| `{name}` | {seed} | {defect.problem} | {len(steps)} |", flush=True)
                break
        else:
            print(f"{name}: not found in {limit} histories", flush=True)
            status = 1
    return status


def show(seed: int) -> int:
    """Run one history, and print everything that happened."""
    prepare()
    outcome = history.run(seed)
    kind, steps = history.generate(seed)
    print(f"seed {seed}: {kind.name}", *steps, "", *outcome.events, "", f"digest {outcome.digest}", sep="\n")
    if outcome.problems:
        print(history.report(seed, outcome))
    return int(bool(outcome.problems))


def run_in_processes(first: int, count: int, processes: int) -> int:
    """Divide seeds among processes, whose strings have fixed hashes, so that a seed means the same in each."""
    share = -(-count // processes)
    running = []
    for begin in range(first, first + count, share):
        command = [
            sys.executable,
            "-m",
            "tests.simulation",
            "--worker",
            str(begin),
            str(min(share, first + count - begin)),
        ]
        running.append(subprocess.Popen(command, env={**os.environ, "PYTHONHASHSEED": "0"}))
    return max(process.wait() for process in running)


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/chaos --simulate", description="Histories on a simulated machine.")
    parser.add_argument("count", type=int, nargs="?", default=1000, help="how many histories (default: 1000)")
    parser.add_argument("--first", type=int, default=0, metavar="N", help="the first seed (default: 0)")
    parser.add_argument("--seed", type=int, metavar="N", help="this one: print everything that happens in it")
    parser.add_argument(
        "--defects", nargs="*", metavar="NAME", help="find the defects of tests/simulation/defects.py, or some, again"
    )
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, metavar="N")
    parser.add_argument("--worker", type=int, nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        return run_seeds(*arguments.worker)
    if arguments.seed is not None or arguments.defects is not None:
        if os.environ.get("PYTHONHASHSEED") != "0":
            os.execve(
                sys.executable,
                [sys.executable, "-m", "tests.simulation", *sys.argv[1:]],
                {**os.environ, "PYTHONHASHSEED": "0"},
            )
        return find_defects(arguments.defects, arguments.count) if arguments.seed is None else show(arguments.seed)
    began = time.monotonic()
    status = run_in_processes(arguments.first, arguments.count, arguments.processes)
    outcome = "something was wrong" if status else "all held"
    print(f"simulation: {arguments.count} histories, {time.monotonic() - began:.0f} s: {outcome}")
    return status


if __name__ == "__main__":
    sys.exit(main())
