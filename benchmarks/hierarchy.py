"""Find and remove the cgroups of a run, independently of nsupervisor's own code, which is being measured."""

import os
from pathlib import Path

import attrs

V1_FILES = {"memory.events": "memory.oom_control"}
COUNTERS = {"memory.events": "oom_kill", "pids.events": "max"}


@attrs.frozen
class Hierarchy:
    """One mounted hierarchy; `root` is its mounted subtree. `controllers` is empty for v2."""

    mount: Path
    root: str
    controllers: frozenset[str]

    def directory(self, pid: int | str) -> Path:
        """Return the directory of the cgroup of a process."""
        for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if set(filter(None, controllers.split(","))) == self.controllers:
                return self.mount / os.path.relpath(path, self.root)
        raise LookupError(f"process {pid} is in no cgroup below {self.mount}")


def hierarchies() -> list[Hierarchy]:
    """Return the mounted hierarchies, by /proc/self/mountinfo and /proc/self/cgroup."""
    joined = [line.split(":")[1].split(",") for line in Path("/proc/self/cgroup").read_text().splitlines()]
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        root, mount = left.split()[3:5]
        kind, _, options = right.split()
        for controllers in joined:
            if kind == "cgroup2" and controllers == [""]:
                found.append(Hierarchy(Path(mount), root, frozenset()))
            elif kind == "cgroup" and controllers != [""] and set(controllers) <= set(options.split(",")):
                found.append(Hierarchy(Path(mount), root, frozenset(controllers)))
    return found


def counter(pid: int, file: str) -> tuple[Path, str]:
    """Return the file with the counters of v2's `file` for the cgroup of `pid`, and the name of the counter in it.

    The name is empty for a file of one number, such as pids.current.
    """
    everywhere = hierarchies()
    v1 = next((h for h in everywhere if file.partition(".")[0] in h.controllers), None)
    if file.endswith(".pressure"):
        v1 = None  # only v2 has these counters
    place, name = (v1, V1_FILES.get(file, file)) if v1 else (next(h for h in everywhere if not h.controllers), file)
    return place.directory(pid) / name, COUNTERS.get(file, "")


def remove(name: str) -> None:
    """Remove the cgroup `name` below that of this process, with its (empty) descendants, in every hierarchy."""
    for hierarchy in hierarchies():
        for directory, _, _ in os.walk(hierarchy.directory("self") / name, topdown=False):
            try:
                os.rmdir(directory)
            except OSError:
                pass  # it has processes of others, so it must stay
