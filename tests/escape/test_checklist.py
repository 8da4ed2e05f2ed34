"""Cases of the tests of bubblewrap and runc that apply to workloads, as our own tests. `checklist.toml` lists all.

All workloads run at the same time in one service. Each prints one line.
"""

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.escape import expected, parties
from tests.escape.targets import Targets
from tests.needs import ROOT, needs
from tests.test_security_model import functions

TIOCSTI = 0x5412
ENOTTY, EHOSTDOWN, EXDEV = 25, 112, 18
IOCTL = (
    "import ctypes; l = ctypes.CDLL(None, use_errno=True); l.ioctl(0, ctypes.c_ulong({0})); print(ctypes.get_errno())"
)
OWN_STATUS = "awk '/^Cap(Inh|Prm|Eff|Amb)/ {print $2}' /proc/self/status | sort -u | tr '\\n' ' '"


class Case(NamedTuple):
    """keys: of the workload. script: for sh. output: its line, or None if the program is ended by SIGSYS."""

    keys: str
    script: str
    output: str | None


def rule(name: str, action: str, **more: Any) -> dict[str, Any]:
    """Return a rule of the OCI runtime specification."""
    return {"names": [name], "action": action, **more}


FILTERS: dict[str, dict[str, Any]] = {
    "errno": {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [rule("chroot", "SCMP_ACT_ERRNO", errnoRet=EHOSTDOWN)],
    },
    "default errno": {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": EXDEV,
        "syscalls": [{"names": [], "action": "SCMP_ACT_ALLOW"}],
    },
    "kill": {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule("chroot", "SCMP_ACT_KILL_PROCESS")]},
    "terminal": {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [
            rule(
                "ioctl",
                "SCMP_ACT_ERRNO",
                errnoRet=EHOSTDOWN,
                args=[{"index": 1, "value": 0xFFFFFFFF, "valueTwo": TIOCSTI, "op": "SCMP_CMP_MASKED_EQ"}],
            )
        ],
    },
}
"""Filters in files; that with a default gets the calls that Python needs."""

CHROOT = "import os\ntry:\n os.chroot('/no-such')\nexcept OSError as e:\n print(e.errno)"
CASES = {
    "no capability for another user": Case('user = "nobody"', OWN_STATUS, "0000000000000000"),
    "no capability": Case("security = { capability_bounding_set = [] }", OWN_STATUS, "0000000000000000"),
    "one capability less": Case(
        'security = { capability_bounding_set = ["-KILL", "-FOWNER"] }',
        "awk '/^CapEff/ {print $2}' /proc/self/status",
        f"{0x800405FB & ~(1 << 5) & ~(1 << 3):016x}",
    ),
    "usual capabilities": Case("", "awk '/^CapEff/ {print $2}' /proc/self/status", "00000000800405fb"),
    "ambient capability": Case(
        'user = "nobody"\nsecurity = { ambient_capabilities = ["NET_BIND_SERVICE"] }',
        "awk '/^CapEff/ {print $2}' /proc/self/status",
        f"{1 << 10:016x}",
    ),
    "own network": Case(
        "namespaces = { network = true }",
        "awk -F: 'NR > 2 {print $1}' /proc/net/dev | grep -vx ' *\\(lo\\|tunl0\\|gre0\\|gretap0\\|erspan0\\|ip_vti0\\|"
        "ip6_vti0\\|sit0\\|ip6tnl0\\|ip6gre0\\|ifb[01]\\)' | wc -l; test -c /dev/null",
        "0",
    ),
    "process 1": Case("init = false", "echo $$", "1"),
    "nested sandbox": Case(
        'security = { profile = "none" }',
        "unshare --user --map-root-user --pid --mount --fork --mount-proc cat /proc/1/comm 2>&1",
        "cat",
    ),
    "passwords": Case('user = "nobody"', "cat /etc/shadow >/dev/null 2>&1; echo $?", "1"),
    "passwords in a user namespace": Case(
        "namespaces = { user = true }", "cat /etc/shadow >/dev/null 2>&1; echo $?", "1"
    ),
    "closed directory": Case(
        'user = "nobody"\nmounts = [{{ source = "{closed}", destination = "/mnt" }}]',
        "cat /mnt/file >/dev/null 2>&1; echo $?",
        "1",
    ),
    "closed directory in a user namespace": Case(
        'namespaces = {{ user = true }}\nmounts = [{{ source = "{closed}", destination = "/mnt" }}]',
        "cat /mnt/file >/dev/null 2>&1; echo $?",
        "1",
    ),
    "masked twice": Case(
        'security = {{ inaccessible_paths = ["{open}", "{open}"] }}', "stat -c %a {open}; cat {open}/file 2>&1", "0"
    ),
    "masked in a read-only root": Case(
        'security = {{ protect_system = "strict", inaccessible_paths = ["{open}"] }}',
        "ls -A {open} | wc -l; touch {open}/x 2>/dev/null && echo written",
        "0",
    ),
    "masked file": Case(
        'security = {{ inaccessible_paths = ["{open}/file"] }}', "wc -c <{open}/file; stat -c %a {open}/file >&2", "0"
    ),
    "temporary file system with a mode": Case(
        'mounts = [{ type = "tmpfs", destination = "/mnt", options = ["mode=0710"] }]', "stat -c %a /mnt", "710"
    ),
    "temporary file system": Case('mounts = [{ type = "tmpfs", destination = "/mnt" }]', "stat -c %a /mnt", "1777"),
    "read-only temporary file system": Case(
        'mounts = [{ type = "tmpfs", destination = "/mnt", options = ["ro"] }]',
        "touch /mnt/x 2>&1 | grep -c 'Read-only'",
        "1",
    ),
    "usual device allowed again": Case(
        'security = { device_allow = ["/dev/null rw", "/dev/tty rw", "/dev/shm rw"] }',
        "echo >/dev/null && echo yes",
        "yes",
    ),
    "usual terminals allowed again": Case(
        'security = {{ device_allow = ["/dev/ptmx rw", "/dev/pts rw"] }}',
        "python3:import os; print(os.ttyname(os.openpty()[1]))",
        "/dev/pts/0",
    ),
    "device of the own making": Case(
        'security = { capability_bounding_set = ["+MKNOD"] }',
        "mknod /dev/shm/kmsg c 1 11 && (: <>/dev/shm/kmsg) 2>/dev/null && echo opened || echo refused",
        "refused",
    ),
    "filter with its own error": Case('security = {{ seccomp = "{errno}" }}', f"python3:{CHROOT}", str(EHOSTDOWN)),
    "filter with its own default error": Case(
        'security = {{ seccomp = "{default errno}" }}', f"python3:{CHROOT}", str(EXDEV)
    ),
    "filter that kills": Case('security = {{ seccomp = "{kill}" }}', f"python3:{CHROOT}", None),
    "filter of one request of ioctl": Case(
        'security = {{ seccomp = "{terminal}" }}', f"python3:{IOCTL.format(TIOCSTI)}", str(EHOSTDOWN)
    ),
    "filter of one request of ioctl with other upper bits": Case(
        'security = {{ seccomp = "{terminal}" }}', f"python3:{IOCTL.format((1 << 32) | TIOCSTI)}", str(EHOSTDOWN)
    ),
    "filter of one request of ioctl and another one": Case(
        'security = {{ seccomp = "{terminal}" }}', f"python3:{IOCTL.format(0x5422)}", str(ENOTTY)
    ),
}  # fmt: skip


def is_complete(name: str, rows: dict[str, Any]) -> bool:
    """Return whether no further record of the workload is of interest. Its output may come after its end."""
    end = rows.get("end", {})
    return bool(end) and (end["event"] == "not started" or not CASES[name].output or "first line of stdout" in rows)


def with_profile(keys: str) -> str:
    """Return the keys of a workload with the default profile, if they have none."""
    if "security" not in keys:
        return f"{keys}\n{parties.DEFAULT}"
    return keys if "profile" in keys else keys.replace("security = {", 'security = { profile = "default", ')


def filled(text: str, places: dict[str, str]) -> str:
    """Replace the places in a text."""
    for name, place in places.items():
        text = text.replace(f"{{{name}}}", place)
    return text.replace("{{", "{").replace("}}", "}")


@pytest.fixture(scope="module")
def lines() -> Iterator[dict[str, dict[str, Any]]]:
    """The first line of each workload's output, and its exit record."""
    from nsupervisor.config.system_calls import DEFAULT

    with tempfile.TemporaryDirectory(prefix="checklist-", dir="/var/lib") as path:
        directory = Path(path)
        directory.chmod(0o755)
        for name, mode in (("open", 0o755), ("closed", 0o700)):
            (directory / name).mkdir(mode=mode)
            (directory / name / "file").write_text("secret")
        places = {name: str(directory / name) for name in ("open", "closed")}
        for name, content in FILTERS.items():
            if name == "default errno":
                content["syscalls"][0]["names"] = sorted((DEFAULT | {"clone", "socket", "personality"}) - {"chroot"})
            file = directory / f"{name.replace(' ', '-')}.json"
            file.write_text(json.dumps(content))
            places[name] = str(file)
        (directory / "run").mkdir()
        text = (
            f'[supervisor]\nname = "checklist-{os.getpid()}"\nruntime_directory = "{directory}/run"\n'
            f'state_directory = "{directory}/state"\n'
        )
        names = {name.replace(" ", "-").replace("'", ""): name for name in CASES}
        for identifier, name in names.items():
            case = CASES[name]
            is_python = case.script.startswith("python3:")
            program = [parties.PYTHON, "-c"] if is_python else ["sh", "-c"]
            command = json.dumps([*program, filled(case.script.removeprefix("python3:"), places)])
            keys = with_profile(filled(case.keys, places))
            text += f'[workload."{identifier}"]\ncommand = {command}\nrestart = "no"\n{keys}\n'
        configuration = directory / "nsupervisor.toml"
        configuration.write_text(text)
        found: dict[str, dict[str, Any]] = {name: {} for name in CASES}
        targets = Targets(directory, {}, dict(os.environ), os.open("/", os.O_RDONLY))
        try:
            with parties.serving([*parties.NSUPERVISOR, "run", str(configuration)], targets) as records:
                for record in records:
                    name = names.get(str(record.get("workload")), "")
                    if name and record["event"] == "output":
                        found[name].setdefault(f"first line of {record['stream']}", record["message"])
                    elif name and record["event"] in ("exited", "not started"):
                        found[name]["end"] = record
                    if all(is_complete(name, rows) for name, rows in found.items()):
                        break
        finally:
            os.close(targets.leaked)
        yield found


@pytest.mark.parametrize("name", CASES)
@needs("root", "cgroup", "userns", "program:unshare")
def test_the_case_holds(lines: dict[str, dict[str, Any]], name: str) -> None:
    found = lines[name]
    if CASES[name].output is None:
        assert found["end"].get("signal") in ("SIGSYS", 31), found
    else:
        message = found["end"].get("message", found)
        assert str(found.get("first line of stdout", "")).strip() == CASES[name].output, message


def test_each_case_has_a_test_or_a_reason() -> None:
    wrong = []
    for case in expected.checklist():
        if len({"test", "row", "not_applicable", "open"} & set(case)) != 1:
            wrong.append(case)
        elif test := case.get("test"):
            file, _, name = test.partition("::")
            function, _, parameter = name.partition("[")
            exists = (ROOT / "tests" / file).is_file() and function in functions(ROOT / "tests" / file)
            if not exists or (file == "escape/test_checklist.py" and parameter.rstrip("]") not in CASES):
                wrong.append(case)
        elif (row := case.get("row")) and any(row in rows.allowed | rows.gaps for rows in expected.expected().values()):
            wrong.append(case)
    assert wrong == []


def test_each_case_of_this_file_is_in_the_list() -> None:
    named = {case["test"] for case in expected.checklist() if "test" in case}
    assert {f"escape/test_checklist.py::test_the_case_holds[{name}]" for name in CASES} - named == set()
