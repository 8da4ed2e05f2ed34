"""The programs that start one isolated process, which the spawn benchmark compares with nsupervisor."""

import json
from collections.abc import Callable
from pathlib import Path

import attrs

from benchmarks.products import missing, program

PURE_VIEW = str(Path(__file__).parent / "peers" / "pure-view")
BARE = "mount,pid,uts,ipc,network"
NAMESPACES = ("pid", "mount", "uts", "ipc", "network")
CAPABILITIES = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]


@attrs.frozen
class Spawner:
    """One spawner. `make(directory)` returns the command; `bare`: a mode of c/spawner.c."""

    name: str
    note: str
    make: Callable[[Path], list[str]]
    product: str = ""
    bare: str = "-"
    pure: bool = False
    """Needs a view of pure cgroup v2 (see peers/pure-view)."""

    @property
    def problem(self) -> str:
        """The reason why it cannot take part; empty if it can."""
        return missing(self.product) if self.product else ""


def root(directory: Path) -> Path:
    """Create a root file system that contains only the static program."""
    made = directory / "root"
    if not made.exists():
        for name in ("bin", "proc", "dev", "sys", "tmp", "etc"):
            (made / name).mkdir(parents=True)
        (made / "bin" / "true").write_bytes(Path(program("true")).read_bytes())
        (made / "bin" / "true").chmod(0o755)
    return made


def _true(_: Path) -> list[str]:
    return [program("true")]


def _unshare(_: Path) -> list[str]:
    flags = ["--mount", "--pid", "--fork", "--uts", "--ipc", "--net", "--mount-proc"]
    return ["unshare", *flags, program("true")]


BWRAP = ["bwrap", "--unshare-pid", "--unshare-uts", "--unshare-ipc", "--unshare-net"]


def _bwrap(_: Path) -> list[str]:
    return [*BWRAP, "--bind", "/", "/", "--proc", "/proc", program("true")]


def _bwrap_root(directory: Path) -> list[str]:
    return [*BWRAP, "--ro-bind", str(root(directory)), "/", "--proc", "/proc", "--dev", "/dev", "/bin/true"]


def _crun(directory: Path) -> list[str]:
    state = ["crun", "--root", str(directory / "crun"), "--cgroup-manager=cgroupfs"]
    return [*state, "run", "--bundle", str(_bundle(directory)), f"bench-{directory.name}"]


def _runc(directory: Path) -> list[str]:
    return [
        "runc",
        "--root",
        str(directory / "runc"),
        "run",
        "--bundle",
        str(_bundle(directory)),
        f"bench-{directory.name}",
    ]


def _bundle(directory: Path) -> Path:
    """Create a minimal OCI bundle: the same namespaces, a /proc, no devices, no seccomp profile."""
    bundle = directory / "bundle"
    bundle.mkdir(exist_ok=True)
    process = {
        "terminal": False,
        "user": {"uid": 0, "gid": 0},
        "args": ["/bin/true"],
        "env": ["PATH=/bin"],
        "cwd": "/",
        "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), CAPABILITIES),
        "noNewPrivileges": True,
    }
    configuration = {
        "ociVersion": "1.0.0",
        "process": process,
        "root": {"path": str(root(directory)), "readonly": True},
        "hostname": "bench",
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
        "linux": {"namespaces": [{"type": kind} for kind in (*NAMESPACES, "cgroup")]},
    }
    (bundle / "config.json").write_text(json.dumps(configuration))
    return bundle


SPAWNERS = (
    Spawner("posix_spawn", "no isolation: what the driver itself costs", _true),
    Spawner("clone3", "the kernel's part: 5 namespaces, /proc; no cgroup", _true, bare=f"{BARE},proc"),
    Spawner("unshare", "5 namespaces, /proc; no cgroup, no init", _unshare, "unshare"),
    Spawner("bwrap", "5 namespaces, /proc, an init; no cgroup", _bwrap, "bwrap"),
    Spawner("bwrap-root", "and its own root and /dev, as it is mostly used", _bwrap_root, "bwrap"),
    Spawner("crun", "5 namespaces, /proc, own root, a new cgroup", _crun, "crun", pure=True),
    Spawner("runc", "5 namespaces, /proc, own root, a new cgroup", _runc, "runc", pure=True),
)
