"""Measure from the request to the exit of /bin/true in new mount, pid, uts, ipc and network namespaces, with a /proc.

For nsupervisor, a client sends requests to a running keeper, as the service does; a small C program starts the others.
Both sides wait until the exit is known.
"""

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import attrs

from benchmarks import hierarchy, products
from benchmarks.checkout import HERE, Checkout
from benchmarks.figures import Result, Target, ratio
from benchmarks.products import program
from benchmarks.session import Options, RunError, in_pairs
from benchmarks.spawners import PURE_VIEW, SPAWNERS, Spawner

CASE, UNIT = "spawn to exit", "ms"
DRIVER = Path(__file__).with_name("spawn_driver.py")
OURS = {
    "nsupervisor": "5 namespaces, /proc, an init, its cgroup (kept, as the service does)",
    "nsupervisor-new-cgroup": "and the cgroup made and removed each time",
    "nsupervisor-no-init": "cgroup kept; the program is process 1, as with unshare, crun and runc",
}


def run(options: Options) -> Result:
    """Measure each spawner in turn, with some runs each, in each round."""
    result = Result("spawn", "isolated spawn of /bin/true, request to exit")
    runs, rounds = (5, 2) if options.quick else (20, 10)
    rounds = options.rounds or rounds
    names = [*OURS, *(spawner.name for spawner in SPAWNERS)]
    if options.peers:
        names = [name for name in names if name in options.peers]
    _run(result, names, runs, rounds)
    for name, note in [*OURS.items(), *((spawner.name, spawner.note) for spawner in SPAWNERS)]:
        if any(series.peer == name for series in result.series):
            result.at(name, CASE, UNIT).note = note
    measured = {series.peer: series for series in result.series}
    for ours, words in (("nsupervisor", "own cgroup kept"), ("nsupervisor-new-cgroup", "own cgroup recreated")):
        for other, limit in (("bwrap", 1.0), ("runc", 1 / 3)):
            found = ratio(measured[ours], measured[other]) if {ours, other} <= set(measured) else None
            text = f"spawn ({words}) relative to {other}'s median"
            result.targets.append(Target(text, found.value if found else None, limit, ""))
    return result


def compare(options: Options, sides: list[Checkout]) -> Result:
    """Run a keeper of each side at the same time, and measure each of nsupervisor's variants on both in each round."""
    result = Result("spawn", "isolated spawn of /bin/true, request to exit")
    runs, rounds = (5, 8) if options.quick else (5, 100)
    rounds = options.rounds or rounds
    with ExitStack() as stack:
        drivers = [stack.enter_context(_driver(side)) for side in sides]
        print(f"  spawn: {rounds} rounds", flush=True)
        for number, order in in_pairs(drivers, rounds):
            for name in OURS:
                case = f"{CASE}, {name.removeprefix('nsupervisor-')}" if name != "nsupervisor" else CASE
                for driver in order:
                    result.add(driver.checkout.label, case, UNIT, number, driver.samples(name, runs))
    return result


def _run(result: Result, names: list[str], runs: int, rounds: int) -> None:
    spawners = {spawner.name: spawner for spawner in SPAWNERS}
    with _directory() as directory, _driver(HERE) as driver:
        for number in range(rounds):
            turn = number % len(names)
            for name in names[turn:] + names[:turn]:
                print(f"  spawn: {name}, round {number + 1} of {rounds}", flush=True)
                samples = driver.samples(name, runs) if name in OURS else _others(spawners[name], directory, runs)
                if isinstance(samples, str):
                    result.remarks.append(f"{name}: {samples}")
                else:
                    result.add(name, CASE, UNIT, number, samples)
    result.remarks = list(dict.fromkeys(result.remarks))
    for name in names:
        if name in spawners and spawners[name].product and not spawners[name].problem:
            result.remarks.append(f"{name}: {products.version(spawners[name].product)}")


@contextmanager
def _directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="nsb-") as text:
        os.chmod(text, 0o755)  # noqa: S103 - processes in user namespaces need access
        yield Path(text)


@attrs.define
class _Driver:
    """The keeper of a checkout with its client, which is `spawn_driver.py`."""

    checkout: Checkout
    process: subprocess.Popen[str]

    def samples(self, name: str, runs: int) -> list[float]:
        """Return the durations in milliseconds. Raises RunError."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(f"{name} {runs}\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # the missing answer shows it
        return self.answer()

    def answer(self) -> list[float]:
        """Return the next answer. Raises RunError if the driver has exited; its standard error has the reason."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RunError(f"the client of {self.checkout.root} ended with {self.process.wait()}; see above")
        taken: list[float] = json.loads(line)
        return taken


@contextmanager
def _driver(checkout: Checkout) -> Iterator[_Driver]:
    with _directory() as directory:
        name = f"nsupervisor-benchmark-{os.getpid()}-{directory.name}"
        command = [checkout.python, "-P", str(DRIVER), program("true"), str(directory), name]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=checkout.environment(), text=True
        )
        try:
            driver = _Driver(checkout, process)
            driver.answer()
            yield driver
        finally:
            try:
                process.communicate(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            hierarchy.remove(name)


def _others(spawner: Spawner, directory: Path, runs: int) -> list[float] | str:
    """Return milliseconds, without the first run; or a text with the reason why there are none."""
    if spawner.problem:
        return spawner.problem
    command = [program("spawner"), str(runs + 1), spawner.bare, *spawner.make(directory)]
    cgroup = f"benchmark-spawn-{os.getpid()}"
    try:
        done = subprocess.run(
            [PURE_VIEW, cgroup, *command] if spawner.pure else command, capture_output=True, text=True, timeout=300
        )
    finally:
        hierarchy.remove(cgroup)
    if done.returncode:
        return f"failed: {done.stderr.strip()[-300:]}"
    return [int(line) / 1e6 for line in done.stdout.split()][1:]
