"""The cgroups of a run: where they are, and their removal. Knows nothing of nsupervisor, which is what is measured."""

import os
from pathlib import Path

import attrs


@attrs.frozen
class Hierarchy:
    """One mounted hierarchy. `own`: the directory of this process's cgroup. `controllers` is empty for v2."""

    mount: Path
    own: Path
    controllers: frozenset[str]


def hierarchies() -> list[Hierarchy]:
    """All that are mounted, by /proc/self/mountinfo and /proc/self/cgroup."""
    paths = _memberships("self")
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        root, mount = left.split()[3:5]
        kind, _, options = right.split()
        if kind not in ("cgroup", "cgroup2"):
            continue
        key = "" if kind == "cgroup2" else next((k for k in paths if k and set(k.split(",")) <= set(options.split(","))), None)
        if key is None or key not in paths:
            continue
        own = Path(mount) / os.path.relpath(paths[key], root)
        found.append(Hierarchy(Path(mount), own, frozenset(key.split(",")) - {""}))
    return found


def _memberships(pid: int | str) -> dict[str, str]:
    """The path of a process in each hierarchy, by its controllers ("" for v2)."""
    lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    return {controllers: path for _, controllers, path in (line.split(":", 2) for line in lines)}


def counter(pid: int, file: str) -> tuple[Path, str]:
    """Where the kernel counts `file` ("memory.events" or "pids.events") for the cgroup of `pid`, and the counter's name.

    On v1, OOM kills are in memory.oom_control. Anything else is looked for under its own name.
    """
    controller = file.partition(".")[0]
    paths = _memberships(pid)
    for hierarchy in hierarchies():
        if controller in hierarchy.controllers:
            base, name = hierarchy.mount, {"memory.events": "memory.oom_control"}.get(file, file)
            path = next(path for key, path in paths.items() if controller in key.split(","))
            break
    else:
        base, name = next(h.mount for h in hierarchies() if not h.controllers), file
        path = paths[""]
    return base / path.lstrip("/") / name, {"memory.events": "oom_kill", "pids.events": "max"}.get(file, "")


def remove(name: str) -> None:
    """Remove the (empty) cgroup `name` below our own, and what is in it, in every hierarchy."""
    for hierarchy in hierarchies():
        for directory, _, _ in os.walk(hierarchy.own / name, topdown=False):
            try:
                os.rmdir(directory)
            except OSError:
                pass  # somebody lives there: then it is not ours to remove
