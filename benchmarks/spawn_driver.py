"""The spawn benchmark's client of a keeper. The Python of the checkout that is measured runs this file, by its path.

    spawn_driver.py PROGRAM DIRECTORY CGROUP

It starts a keeper with its socket in DIRECTORY, makes the cgroup CGROUP, and prints an empty list. Then each line
"NAME RUNS" on standard input is answered with a list of milliseconds in JSON. It ends at the end of its input.

The names that it imports are internal to the product, and differ between versions: see `_find`.
"""

import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import trio

NAMESPACES = ["pid", "mount", "uts", "ipc", "network"]


def _find(name: str, *modules: str) -> Any:
    """`name` from the first of `modules` that has it, the one of the newest version first."""
    for module in modules:
        try:
            return getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError):
            continue
    sys.exit(f"spawn_driver: no {name} in {' or '.join(modules)}; add the module that has it in this version")


class Driver:
    """A client of the keeper, and the cgroups that the programs are started in."""

    def __init__(self, keeper: Any, tree: Any, program: str) -> None:
        self._keeper, self._tree, self._program, self._number = keeper, tree, program, 0
        self._resources = _find("Resources", "nsupervisor.config.model")
        self._ended = _find("Ended", "nsupervisor.keeper.messages", "nsupervisor.keeper.told")
        self.cgroup = tree.make("kept", self._resources())

    async def samples(self, name: str, runs: int) -> list[float]:
        """Milliseconds; the first run is not counted."""
        taken = []
        for _ in range(runs + 1):
            start = time.monotonic_ns()
            if name == "nsupervisor-new-cgroup":
                cgroup = self._tree.make(f"new-{self._number}", self._resources())
                await self._spawn(cgroup, True)
                cgroup.remove()
            else:
                await self._spawn(self.cgroup, name == "nsupervisor")
            taken.append((time.monotonic_ns() - start) / 1e6)
            await self._keeper.acknowledge(f"true#{self._number}")
        return taken[1:]

    async def _spawn(self, cgroup: Any, init: bool) -> None:
        self._number += 1
        spawned = await self._keeper.spawn(
            {
                "id": f"true#{self._number}",
                "name": "true",
                "argv": [self._program],
                "env": {"PATH": "/bin"},
                "cwd": "/",
                "namespaces": NAMESPACES,
                "init": init,
                "cgroup": cgroup.path,
                "cgroup_procs": list(cgroup.join_files if hasattr(cgroup, "join_files") else cgroup.procs_files),
            }
        )
        async for event in self._keeper.events:
            if isinstance(event, self._ended):
                assert (event.status, event.failure) == (0, None), event
                break
        for fd in (spawned.stdout, spawned.stderr):
            os.close(fd)


async def main(program: str, directory: str, name: str) -> None:
    """Answer lines until the end of standard input."""
    open_keeper = _find("open_keeper", "nsupervisor.keeper.client")
    host, make_tree = _find("Host", "nsupervisor.cgroups"), _find("Tree", "nsupervisor.cgroups")
    async with open_keeper(Path(directory)) as keeper:
        tree = make_tree.create(host.discover(), name)
        try:
            move = getattr(tree, "move_to_leaf", None) or tree.supervisor_join
            move(keeper.pid)
            driver = Driver(keeper, tree, program)
            print("[]", flush=True)
            while words := (await trio.to_thread.run_sync(sys.stdin.readline)).split():
                print(json.dumps(await driver.samples(words[0], int(words[1]))), flush=True)
            driver.cgroup.close()
        finally:
            tree.close()
        await keeper.shutdown()


if __name__ == "__main__":
    trio.run(main, sys.argv[1], sys.argv[2], sys.argv[3])
