"""The attempts in the sandboxes of other programs, with their defaults. Used by scripts/escape, not by the tests.

Each runs with a root file system and a network of its own, and once more with those of the host. The machine may lack
what they require, which is worked around without a change of what they allow: podman's runtime gets no resource
limits (they need CAP_SYS_RESOURCE), and crun sees no cgroup v2 where version 1 has the controllers.
"""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tests.escape import parties
from tests.escape.parties import PYTHON, Results
from tests.escape.targets import Targets, copy_programs

LIBRARIES = (
    "_ctypes",
    "array",
    "_posixsubprocess",
    "select",
    "fcntl",
    "_socket",
    "resource",
    "termios",
    "_struct",
    "math",
)
RUNTIME = """#!/usr/bin/python3
import json, os, sys
arguments = sys.argv[1:]
if "--bundle" in arguments:
    path = arguments[arguments.index("--bundle") + 1] + "/config.json"
    with open(path) as file:
        config = json.load(file)
    config["process"].pop("rlimits", None)
    with open(path, "w") as file:
        json.dump(config, file)
os.execvp("crun", ["crun", *arguments])
"""
"""Podman's runtime without resource limits."""
HIDE_HYBRID = 'if [ -e /sys/fs/cgroup/unified ]; then umount /sys/fs/cgroup/unified; fi; exec "$@"'


PODMAN_MAKES = [Path("/run/.containerenv"), Path("/run/secrets"), Path("/etc/mtab")]
"""Mount points that podman makes in a root that lacks them."""


def root_file_system(directory: Path) -> Path:
    """Make a root with Python, its libraries, and the attempts in /escape."""
    root = directory / "rootfs"
    for name in (
        "proc",
        "sys",
        "dev",
        "tmp",
        "etc",
        "run",
        "root",
        "var/lib",
        "boot",
        "mnt",
        "usr/bin",
        "usr/lib",
        "usr/share",
        "usr/lib64",
    ):
        (root / name).mkdir(parents=True)
    (root / "tmp").chmod(0o1777)
    for name in ("bin", "lib", "lib64", "sbin"):
        (root / name).symlink_to(f"usr/{name if name != 'sbin' else 'bin'}")
    for name in ("hosts", "passwd", "group"):
        shutil.copy(f"/etc/{name}", root / "etc" / name)
    (root / "etc/shadow").write_text("root:*::0:::::\n")
    python = Path(PYTHON).resolve()
    shutil.copy(python, root / "usr/bin/python3")
    modules = Path("/usr/lib") / python.name
    shutil.copytree(
        modules, root / modules.relative_to("/"), ignore=shutil.ignore_patterns("test", "__pycache__", "config-*")
    )
    binaries = [python, *modules.glob("lib-dynload/*.so"), Path("/usr/bin/id"), Path("/usr/bin/cat")]
    linked = subprocess.run(["ldd", *binaries], capture_output=True, text=True, check=True).stdout
    for word in {word for word in linked.split() if word.startswith("/") and not word.endswith(":")}:
        place = root / Path(word).parent.relative_to("/")
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(os.path.realpath(word), place / Path(word).name)
    (root / "escape").mkdir(mode=0o755)
    copy_programs(root / "escape")
    return root


def own(targets: Targets, **further: object) -> list[str]:
    """Return the command of the attempts in a root of its own."""
    values = {**targets.values, "here": "/escape", **further}
    return [PYTHON, "-I", "-B", "/escape/attempts", json.dumps(values)]


def bubblewrap(targets: Targets, root: Path) -> Results:
    """bwrap has no defaults; these options isolate as much as it can without a policy."""
    options = ["--unshare-all", "--bind", root, "/", "--dev", "/dev", "--proc", "/proc"]
    return parties.run(["bwrap", *map(str, options), "--", *own(targets)], targets)


def bubblewrap_host(targets: Targets, root: Path) -> Results:
    """The same with the host's root and network."""
    options = ["--unshare-all", "--share-net", "--bind", "/", "/", "--dev", "/dev", "--proc", "/proc"]
    return parties.run(["bwrap", *options, "--", *parties.command(targets)], targets)


def oci(runtime: str) -> Callable[[Targets, Path], Results]:
    """Return a party for an OCI runtime with the specification that its command `spec` writes."""

    def party(targets: Targets, root: Path) -> Results:
        bundle = targets.directory / f"bundle-{runtime}"
        bundle.mkdir()
        subprocess.run([runtime, "spec"], cwd=bundle, check=True)
        file = bundle / "config.json"
        config = json.loads(file.read_text())
        config["process"] |= {"terminal": False, "args": own(targets)}
        config["process"].pop("rlimits", None)
        config["root"]["path"] = str(root)
        file.write_text(json.dumps(config))
        start = [runtime, "run", f"escape-{os.getpid()}"]
        return parties.run(["unshare", "--mount", "sh", "-c", HIDE_HYBRID, "sh", *start], targets, cwd=bundle)

    return party


def remove_cgroups() -> None:
    """Remove the cgroups that podman leaves, as soon as its monitor has ended."""
    end = time.monotonic() + 10
    found = [*Path("/sys/fs/cgroup").glob("escape-podman"), *Path("/sys/fs/cgroup").glob("*/escape-podman")]
    paths = [Path(path) for top in found for path, _, _ in os.walk(top, topdown=False)]
    while paths:
        try:
            paths[0].rmdir()
            paths.pop(0)
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)


def podman(*options: str) -> Callable[[Targets, Path], Results]:
    """Return a party for podman with these options."""

    def party(targets: Targets, root: Path) -> Results:
        runtime = targets.directory / "crun"
        runtime.write_text(RUNTIME)
        runtime.chmod(0o755)
        state = ["--root", f"{targets.directory}/storage", "--runroot", f"{targets.directory}/storage-run"]
        start = [
            "podman",
            *state,
            "run",
            "--rm",
            "--cgroup-parent",
            "/escape-podman",
            "--runtime",
            str(runtime),
            *options,
        ]
        shared = "--network=host" in options
        host = targets.directory / "host"
        host.mkdir(exist_ok=True)
        start += ["--rootfs", *([str(host), *parties.command(targets)] if shared else [str(root), *own(targets)])]
        before = {place: place.exists() for place in PODMAN_MAKES}
        prepare = f"mount --bind / {host}; {HIDE_HYBRID}"
        try:
            return parties.run(["unshare", "--mount", "sh", "-ec", prepare, "sh", *start], targets)
        finally:
            for place, was_there in before.items():
                if place.exists() and not was_there:
                    place.unlink() if place.is_file() else place.rmdir()
            remove_cgroups()

    return party


PEERS: dict[str, Callable[[Targets, Path], Results]] = {
    "podman": podman("--network=none"),
    "runc": oci("runc"),
    "crun": oci("crun"),
    "bubblewrap": bubblewrap,
    "podman, host's": podman("--network=host"),
    "bubblewrap, host's": bubblewrap_host,
}
"""Party → function of the targets and a root file system."""


def version(name: str) -> str:
    """Return the version of a peer's program."""
    program = {"bubblewrap": "bwrap"}.get(name.split(",")[0], name.split(",")[0])
    shown = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    return shown.splitlines()[0].split()[-1]
