"""From the request to the end of /bin/true in new mount, pid, uts, ipc and network namespaces, with a /proc.

Ours is asked for from a running keeper by its client, as the service does it; the others are started by a small C
program. Both sides wait for the end to be known.
"""

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import trio

from benchmarks import hierarchy, products
from benchmarks.figures import Result, Target, ratio
from benchmarks.products import program
from benchmarks.session import Options
from benchmarks.spawners import NAMESPACES, PURE_VIEW, SPAWNERS, Spawner
from nsupervisor.cgroups import Cgroup, Host, Tree
from nsupervisor.config.model import Resources
from nsupervisor.keeper.client import Keeper, open_keeper
from nsupervisor.keeper.told import Ended

CASE, UNIT = "spawn to exit", "ms"
OURS = {
    "nsupervisor": "5 namespaces, /proc, an init, its cgroup (kept, as the service does)",
    "nsupervisor-new-cgroup": "and the cgroup made and removed each time",
    "nsupervisor-no-init": "cgroup kept; the program is process 1, as with unshare, crun and runc",
}


def run(options: Options) -> Result:
    """Everybody in turn, some runs each, in each round."""
    result = Result("spawn", "isolated spawn of /bin/true, request to exit")
    runs, rounds = (5, 2) if options.quick else (20, 10)
    rounds = options.rounds or rounds
    names = [*OURS, *(spawner.name for spawner in SPAWNERS)]
    if options.peers:
        names = [name for name in names if name in options.peers]
    trio.run(_run, result, names, runs, rounds)
    for name, note in [*OURS.items(), *((spawner.name, spawner.note) for spawner in SPAWNERS)]:
        if any(series.peer == name for series in result.series):
            result.at(name, CASE, UNIT).note = note
    measured = {series.peer: series for series in result.series}
    for ours, words in (("nsupervisor", "own cgroup kept"), ("nsupervisor-new-cgroup", "own cgroup made anew")):
        for other, limit in (("bwrap", 1.0), ("runc", 1 / 3)):
            found = ratio(measured[ours], measured[other]) if {ours, other} <= set(measured) else None
            text = f"spawn ({words}) in parts of {other}'s median"
            result.targets.append(Target(text, found.value if found else None, limit, ""))
    return result


async def _run(result: Result, names: list[str], runs: int, rounds: int) -> None:
    spawners = {spawner.name: spawner for spawner in SPAWNERS}
    with tempfile.TemporaryDirectory(prefix="nsb-") as text:
        directory = Path(text)
        os.chmod(text, 0o755)  # noqa: S103 - user namespaces have to get in
        async with open_keeper(directory) as keeper:
            with _tree(keeper) as tree:
                ours = _Ours(keeper, tree)
                for number in range(rounds):
                    turn = number % len(names)
                    for name in names[turn:] + names[:turn]:
                        print(f"  spawn: {name}, round {number + 1} of {rounds}", flush=True)
                        samples = (
                            await ours.samples(name, runs) if name in OURS else _others(spawners[name], directory, runs)
                        )
                        if isinstance(samples, str):
                            result.remarks.append(f"{name}: {samples}")
                        else:
                            result.add(name, CASE, UNIT, number, samples)
                ours.cgroup.close()
            await keeper.shutdown()
    result.remarks = list(dict.fromkeys(result.remarks))
    for name in names:
        if name in spawners and spawners[name].product and not spawners[name].problem:
            result.remarks.append(f"{name}: {products.version(spawners[name].product)}")


@contextmanager
def _tree(keeper: Keeper) -> Iterator[Tree]:
    tree = Tree.create(Host.discover(), f"nsupervisor-benchmark-{os.getpid()}")
    try:
        tree.supervisor_join(keeper.pid)
        yield tree
    finally:
        tree.close()


class _Ours:
    """The running keeper's client."""

    def __init__(self, keeper: Keeper, tree: Tree) -> None:
        self._keeper, self._tree, self._number = keeper, tree, 0
        self.cgroup = tree.make("kept", Resources())

    async def samples(self, name: str, runs: int) -> list[float]:
        """Milliseconds; the first run is not counted."""
        taken = []
        for _ in range(runs + 1):
            start = time.monotonic_ns()
            if name == "nsupervisor-new-cgroup":
                cgroup = self._tree.make(f"new-{self._number}", Resources())
                await self._spawn(cgroup, True)
                cgroup.remove()
            else:
                await self._spawn(self.cgroup, name == "nsupervisor")
            taken.append((time.monotonic_ns() - start) / 1e6)
            await self._keeper.acknowledge(f"true#{self._number}")
        return taken[1:]

    async def _spawn(self, cgroup: Cgroup, init: bool) -> None:
        self._number += 1
        spawned = await self._keeper.spawn(
            {
                "id": f"true#{self._number}",
                "name": "true",
                "argv": [program("true")],
                "env": {"PATH": "/bin"},
                "cwd": "/",
                "namespaces": list(NAMESPACES),
                "init": init,
                "cgroup": cgroup.path,
                "cgroup_procs": list(cgroup.procs_files),
            }
        )
        async for event in self._keeper.events:
            if isinstance(event, Ended):
                assert (event.status, event.failure) == (0, None), event
                break
        for fd in (spawned.stdout, spawned.stderr):
            os.close(fd)


def _others(spawner: Spawner, directory: Path, runs: int) -> list[float] | str:
    """Milliseconds; the first run is not counted. A text says why there are none."""
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
