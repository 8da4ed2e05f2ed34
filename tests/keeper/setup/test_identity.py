"""A program does not inherit the groups and keys of the process that started the service."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from tests.keeper.conftest import ISOLATED, Harness
from tests.needs import ROOT, needs
from tests.roots import open_directories
from tests.timing import deadline

pytestmark = needs("root")

SHIFTED = {"uid_mappings": [[0, 100_000, 1000]], "gid_mappings": [[0, 100_000, 1000]]}
WITHOUT_ROOT = {"uid_mappings": [[33, 100_033, 1]], "gid_mappings": [[33, 100_033, 1]], "uid": 33, "gid": 33}
KINDS = pytest.mark.parametrize(
    "spec",
    [
        pytest.param({}, id="plain"),
        pytest.param({"namespaces": ISOLATED}, id="init"),
        pytest.param({"namespaces": ISOLATED, "init": False}, id="pid1"),
        pytest.param({"namespaces": ISOLATED, "uid": 1234, "gid": 1234}, id="init-user"),
        pytest.param({"namespaces": [*ISOLATED, "user"], **SHIFTED}, id="shifted", marks=needs("userns")),
        pytest.param({"namespaces": [*ISOLATED, "user"], **WITHOUT_ROOT}, id="without-root", marks=needs("userns")),
    ],
)
DISK = 6
"""Number of a group that the keeper has, and no program should."""

KEYRINGS = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
KEYCTL, ADD_KEY = {"x86_64": (250, 248), "aarch64": (219, 217)}[os.uname().machine]
GET_KEYRING_ID, JOIN_SESSION_KEYRING, SEARCH, SESSION = 0, 1, 10, -3
def keyctl(operation, *arguments):
    return libc.syscall(KEYCTL, operation, *arguments)
def add_key(name):
    return libc.syscall(ADD_KEY, b"user", name, b"secret", 6, SESSION)
def find_key():
    found = keyctl(SEARCH, SESSION, b"user", b"nsupervisor-test", 0)
    return os.strerror(ctypes.get_errno()) if found < 0 else "found"
"""
"""Python: the calls of keyctl(2)."""

LOOK = f'{KEYRINGS}\nprint(find_key(), keyctl(GET_KEYRING_ID, SESSION, 0), sep=",")'


@pytest.fixture
def keys() -> dict:
    """Give this process a session keyring with a key in it, and return the names of `KEYRINGS`."""
    names: dict = {"ctypes": ctypes}
    exec(KEYRINGS, names)
    assert names["keyctl"](names["JOIN_SESSION_KEYRING"], None) > 0
    assert names["add_key"](b"nsupervisor-test") > 0
    assert names["find_key"]() == "found"
    return names


@pytest.fixture
def own_groups() -> list[int]:
    """Give this process, and so the keeper, two more groups for the time of a test."""
    before = os.getgroups()
    os.setgroups([0, DISK])
    try:
        yield [0, DISK]
    finally:
        os.setgroups(before)


# `keys` and `own_groups` come before `harness`: the keeper inherits what they set.


@pytest.mark.fault("A9")
@KINDS
async def test_a_program_found_the_keys_of_the_session_that_started_the_service(
    keys: dict, harness: Harness, spec: dict
) -> None:
    own = keys["keyctl"](keys["GET_KEYRING_ID"], keys["SESSION"], 0)
    found = set()
    for _ in range(2):
        result = await harness.run("/usr/bin/python3", "-c", LOOK, **spec)
        assert (result.failure, result.stderr) == (None, "")
        answer, keyring = result.stdout.strip().split(",")
        assert answer == "Required key not available"
        found.add(int(keyring))
    assert len(found | {own}) == 3, "each program has a keyring of its own"


SHARED = f"""{KEYRINGS}
import sys, tempfile, trio
from pathlib import Path
from nsupervisor.keeper.client import open_keeper
from tests.keeper.conftest import Harness, end_all

async def main():
    assert keyctl(JOIN_SESSION_KEYRING, None) > 0 and add_key(b"nsupervisor-test") > 0
    with tempfile.TemporaryDirectory() as directory:
        async with open_keeper(Path(directory)) as keeper, trio.open_nursery() as nursery:
            harness = Harness(keeper)
            nursery.start_soon(harness.listen)
            number = 0
            while add_key(b"filler-%d" % number) > 0:
                number += 1
            print((await harness.run("/usr/bin/python3", "-c", sys.argv[1])).stdout, end="")
            await end_all(keeper)
            nursery.cancel_scope.cancel()

trio.run(main)
"""


@pytest.mark.fault("A9")
@needs("program:setpriv")
def test_a_user_without_quota_for_another_keyring_has_that_of_the_keeper() -> None:
    """The program must start, and still must not find the keys of the session that started the service."""
    # With the capability it can read the interpreter and the sources, wherever they are.
    user = ["setpriv", "--reuid=64321", "--regid=64321", "--clear-groups"]
    rights = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    command = [*user, *rights, sys.executable, "-c", SHARED, LOOK]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=deadline(30))
    assert (done.stderr, done.stdout.split(",")[0]) == ("", "Required key not available")


@pytest.mark.fault("A8")
@needs("userns")
@pytest.mark.parametrize(
    "spec", [SHIFTED, WITHOUT_ROOT, {**SHIFTED, "init": False}, {}], ids=["shifted", "without-root", "pid1", "own"]
)
async def test_a_program_in_a_user_namespace_kept_the_groups_of_the_keeper(
    own_groups: list[int], harness: Harness, spec: dict
) -> None:
    spawned = await harness.spawn("sleep", "1000", namespaces=[*ISOLATED, "user"], **spec)
    program = await harness.execed(spawned)
    assert groups(program.pid) == []
    if spec.get("init", True) and spec is not WITHOUT_ROOT:
        with trio.fail_after(deadline(5)):  # the init becomes root of the namespace next to the program, not before it
            while groups(spawned.pid):  # noqa: ASYNC110
                await trio.sleep(0.001)


@pytest.mark.fault("A8")
@needs("userns")
async def test_a_file_of_a_group_of_the_keeper_was_readable_in_a_user_namespace(
    own_groups: list[int], harness: Harness, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    secret.chmod(0o640)
    os.chown(secret, 0, DISK)
    open_directories(tmp_path / "x")
    result = await harness.run("cat", str(secret), namespaces=[*ISOLATED, "user"], **SHIFTED)
    assert (result.stdout, result.stderr) == ("", f"cat: {secret}: Permission denied\n")


@pytest.mark.fault("A8")
async def test_a_program_without_a_change_of_identity_has_the_groups_of_the_keeper(
    own_groups: list[int], harness: Harness
) -> None:
    spawned = await harness.spawn("sleep", "1000", namespaces=ISOLATED)
    assert groups((await harness.execed(spawned)).pid) == own_groups


def groups(pid: int) -> list[int]:
    """Return the supplementary groups of a process, by their numbers on the host."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return [int(number) for line in lines if line.startswith("Groups:") for number in line.split()[1:]]


# ---- standard output and error by their names


@pytest.mark.fault("B3")
@KINDS
@pytest.mark.parametrize("operator", [">", ">>"])
async def test_a_program_of_another_user_could_not_open_its_standard_error(
    harness: Harness, spec: dict, operator: str
) -> None:
    script = f"echo out {operator} /dev/stdout; echo error {operator} /dev/stderr; stat -Lc %u:%g /proc/self/fd/2"
    result = await harness.run("sh", "-c", script, **spec)
    assert (result.failure, result.stderr) == (None, "error\n")
    assert result.stdout == f"out\n{spec.get('uid', 0)}:{spec.get('gid', 0)}\n"


@pytest.mark.fault("B3")
@needs("program:setpriv")
@pytest.mark.parametrize(
    "spec",
    [{}, {"namespaces": ISOLATED}, {"namespaces": [*ISOLATED, "user"], **SHIFTED}],
    ids=["plain", "init", "shifted"],
)
async def test_a_program_that_drops_its_privileges_itself_could_not_open_its_standard_error(
    harness: Harness, spec: dict
) -> None:
    drop = ["setpriv", "--reuid=65", "--regid=65", "--clear-groups"]
    result = await harness.run(*drop, "sh", "-c", "echo out >/dev/stdout; echo error >/dev/stderr", **spec)
    assert (result.failure, result.stderr, result.stdout) == (None, "error\n", "out\n")
