"""Only `linux/trusted_paths.py` uses paths that others may control; the modules below use other paths.

The service, the keeper and their children run with more rights than the users whose directories they touch. So no other
module of theirs opens, makes, renames or removes a file by its name, unless its entry here says whose names these are.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.needs import ROOT

PACKAGE = ROOT / "nsupervisor"
SERVICE_PACKAGES = ["api", "cgroups", "config", "core", "images", "keeper", "linux", "logs", "metrics", "service"]

RUNTIME = "in the runtime directory, of whose path no other user controls a part"
KERNEL = "files of the kernel: cgroups, /proc, /sys"
OWN = "files of nsupervisor itself"

EXEMPT = {
    "linux/syscalls.py": KERNEL,
    "linux/trusted_paths.py": "the only module that uses paths of others",
    "api/http/hosts.py": "/etc/hosts",
    "api/server.py": RUNTIME,
    "cgroups/": KERNEL,
    "config/files.py": "the configuration, whose author commands the service, and the files that it names for reading",
    "images/sources.py": KERNEL + ": a descriptor is opened again for reading",
    "images/store.py": "in the service's own state directory, by descriptors",
    "images/unpack.py": "in the service's own state directory, by descriptors of what no other process uses yet",
    "keeper/client.py": RUNTIME,
    "keeper/native/__init__.py": OWN,
    "keeper/native/build.py": OWN,
    "keeper/server/children.py": KERNEL,
    "keeper/server/loop.py": RUNTIME + "; a table in memory",
    "keeper/server/zygote.py": KERNEL,
    "keeper/setup/cover.py": "in a tmpfs that only the new program sees",
    "keeper/setup/credentials.py": "in a tmpfs that only the new program sees",
    "keeper/setup/descriptors.py": KERNEL + "; /dev/null",
    "keeper/setup/name_files.py": "one name in a directory whose descriptor it has, never through a link",
    "keeper/setup/privileges.py": KERNEL,
    "keeper/setup/root.py": KERNEL
    + "; directories in a tmpfs, or in the service's own state directory, by descriptors",
    "keeper/setup/sandbox.py": KERNEL + "; in a /dev that only the new program sees",
    "keeper/setup/steps.py": KERNEL,
    "linux/controlling_terminal.py": "/dev/tty",
    "linux/joining.py": KERNEL,
    "linux/files.py": RUNTIME,
    "linux/peers.py": KERNEL,
    "linux/privileges.py": KERNEL,
    "linux/processes.py": KERNEL,
    "linux/standard_descriptors.py": "/dev/null",
    "logs/offsets.py": RUNTIME,
    "logs/own_streams.py": "/dev/null",
    "logs/tails.py": RUNTIME,
    "logs/pipe.py": "/dev/null",
    "logs/record.py": OWN,
    "logs/target.py": "descriptors of the process itself, by /proc/self/fd",
    "notify_socket.py": RUNTIME,
    "service/admission.py": RUNTIME,
    "service/instance/output.py": RUNTIME,
    "service/platform/traffic.py": KERNEL,
    "service/recovery/upgrade.py": RUNTIME,
    "service/recovery/upgrade_guard.py": RUNTIME,
    "service/reload/persist.py": "the configuration, whose author commands the service",
    "service/platform/cni_files.py": KERNEL,
    "service/platform/cni_plugins.py": KERNEL,
    "service/platform/exec_streams.py": "/dev/null",
    "service/platform/renewed_cover.py": KERNEL,
    "service/platform/file_systems.py": KERNEL,
    "service/platform/path_watcher.py": "descriptors of what `linux/trusted_paths.py` has found",
    "service/platform/timer_host.py": "/etc/machine-id",
    "service/platform/timer_zones.py": "/etc/localtime",
    "service/run.py": KERNEL,
    "service/platform/runtime_directory.py": RUNTIME,
    "service/state/digest.py": RUNTIME,
    "service/state/dynamic_users.py": KERNEL,
    "service/state/uid_ranges.py": "/etc/subuid, /etc/subgid",
    "service/state/file.py": RUNTIME,
}
"""Module or package → whose paths it uses by their names."""

OS_CALLS = {
    *("open", "mkdir", "makedirs", "mkfifo", "mknod", "rename", "renames", "replace", "link", "symlink"),
    *("unlink", "remove", "rmdir", "removedirs", "chmod", "chown", "lchown", "truncate", "utime"),
}
PATH_METHODS = {
    *("open", "touch", "mkdir", "rename", "symlink_to", "hardlink_to", "unlink", "rmdir", "chmod"),
    *("read_text", "read_bytes", "write_text", "write_bytes"),
}
OTHER_OPENS = {"directory", "Trigger", "os"}
"""Objects with an `open` or `rename` of their own: a TrustedDirectory, a class; `os` is looked at by itself."""


def calls_by_name(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the line and the text of each call that may use a path by its name."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or is_on_descriptor(node):
            continue
        match node.func:
            case ast.Name(id="open"):
                if any(ast.unparse(keyword) == "opener=open_for_reading" for keyword in node.keywords):
                    continue
                yield node.lineno, "open"
            case ast.Attribute(value=ast.Name(id="os"), attr=name) if name in OS_CALLS:
                yield node.lineno, f"os.{name}"
            case ast.Attribute(value=ast.Name(id="shutil"), attr=name) if name not in ("which", "copyfileobj"):
                yield node.lineno, f"shutil.{name}"
            case ast.Attribute(value=owner, attr=name) if name in PATH_METHODS:
                if not (isinstance(owner, ast.Name) and owner.id in OTHER_OPENS):
                    yield node.lineno, f"{ast.unparse(owner)}.{name}"


def is_on_descriptor(call: ast.Call) -> bool:
    """Return whether the first argument is a descriptor, by its name: `fd`, `target_fd`."""
    return bool(call.args) and isinstance(call.args[0], ast.Name) and call.args[0].id.endswith("fd")


def modules() -> list[Path]:
    return [
        *(path for name in SERVICE_PACKAGES for path in sorted((PACKAGE / name).rglob("*.py"))),
        *sorted(PACKAGE.glob("*.py")),
    ]


def exemption(module: Path) -> str:
    """Return the entry of `EXEMPT` that covers a module, or ""."""
    name = str(module.relative_to(PACKAGE))
    return next((key for key in EXEMPT if key == name or (key.endswith("/") and name.startswith(key))), "")


def test_no_other_module_uses_paths_by_their_names() -> None:
    found = [
        f"{module.relative_to(ROOT)}:{line}: {call}"
        for module in modules()
        if not exemption(module)
        for line, call in calls_by_name(ast.parse(module.read_text()))
    ]
    assert found == [], "use linux/trusted_paths.py, or add the module to EXEMPT and say whose paths these are"


def test_each_exemption_is_needed() -> None:
    used = {exemption(module) for module in modules() if list(calls_by_name(ast.parse(module.read_text())))}
    assert set(EXEMPT) - used == set()


@pytest.mark.parametrize(
    ("source", "calls"),
    [
        ("open(path)", ["open"]),
        ("os.open(path, 0)\nos.rename(a, b)\nos.unlink(a)", ["os.open", "os.rename", "os.unlink"]),
        ("Path(a).unlink()\nself.path.parent.mkdir()", ["Path(a).unlink", "self.path.parent.mkdir"]),
        ("shutil.rmtree(a)\nshutil.which(a)", ["shutil.rmtree"]),
        ("os.utime(target_fd)\nos.utime(path)\nopen(fd)", ["os.utime"]),
        ("open(path, opener=open_for_reading)", []),
        ("directory.open(name, 0)\nos.fdopen(fd)\nos.read(fd, 1)", []),
    ],
)
def test_calls_are_found(source: str, calls: list[str]) -> None:
    assert [call for _, call in calls_by_name(ast.parse(source))] == calls
