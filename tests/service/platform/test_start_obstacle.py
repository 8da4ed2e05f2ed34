"""A start that must fail is found before the program that runs is stopped; a start that may succeed is not."""

import os
from pathlib import Path
from typing import Any

import pytest

from nsupervisor.service.platform.start_obstacle import StartObstacle, find_start_obstacle
from tests.needs import needs

pytestmark = pytest.mark.fault("B15")
NOBODY = 65534


def obstacle(**changed: Any) -> StartObstacle | None:
    """Return the obstacle of a specification, by default of one that can be started."""
    spec = {
        "argv": ["sh"],
        "env": {"PATH": "/usr/bin:/bin"},
        "cwd": "/",
        "namespaces": [],
        "mounts": [],
        "uid": None,
        "gid": None,
        "groups": None,
        "rlimits": {},
    }
    return find_start_obstacle(spec | changed)


def found(**changed: Any) -> str:
    result = obstacle(**changed)
    return "" if result is None else f"{'.'.join(map(str, result.key))}: {result.message}"


def bind(source: str, destination: str) -> dict[str, Any]:
    return {"type": "bind", "source": source, "destination": destination, "options": []}


def script(path: Path, text: str = "#!/bin/sh\n", mode: int = 0o755) -> str:
    path.write_text(text)
    path.chmod(mode)
    return str(path)


def test_what_can_be_started_has_no_obstacle(tmp_path: Path) -> None:
    assert obstacle() is None
    assert obstacle(argv=[script(tmp_path / "program")], cwd=str(tmp_path)) is None
    assert obstacle(argv=["./program"], cwd=str(tmp_path)) is None
    assert obstacle(argv=["program"], env={"PATH": f"/nowhere:{tmp_path}"}) is None


def test_a_missing_program_is_one(tmp_path: Path) -> None:
    assert found(argv=["no-such"], env={"PATH": "/usr/bin"}).startswith(
        "command: cannot execute no-such: No such file or directory (searched PATH=/usr/bin); install it"
    )
    assert "cannot execute /no/such: No such file" in found(argv=["/no/such"])
    broken = tmp_path / "broken"
    broken.symlink_to(tmp_path / "gone")
    assert "No such file" in found(argv=[str(broken)])


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda path: script(path, mode=0o644), "it is not executable; chmod +x it"),
        (lambda path: path.mkdir(), "it is a directory; name the file in it"),
        (lambda path: script(path, "#! /no/interpreter -x\n"), "there is no /no/interpreter, the interpreter that"),
    ],
)
def test_a_program_that_cannot_be_executed_is_one(tmp_path: Path, make: Any, problem: str) -> None:
    make(tmp_path / "program")
    assert problem in found(argv=[str(tmp_path / "program")])


def test_a_later_directory_of_path_may_have_the_program(tmp_path: Path) -> None:
    for name, mode in (("first", 0o644), ("second", 0o755)):
        (tmp_path / name).mkdir()
        script(tmp_path / name / "program", mode=mode)
    assert obstacle(argv=["program"], env={"PATH": f"{tmp_path}/first:{tmp_path}/second"}) is None
    assert "not executable" in found(argv=["program"], env={"PATH": f"{tmp_path}/first:/nowhere"})


def test_a_missing_working_directory_is_one(tmp_path: Path) -> None:
    assert found(cwd="/no/such").startswith("working_directory: cannot enter /no/such: No such file or directory; make")
    assert "Not a directory" in found(cwd=script(tmp_path / "file"))


@needs("root")
def test_what_the_user_of_the_program_may_not_enter_or_execute_is_one(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    user = {"uid": NOBODY, "gid": NOBODY, "groups": []}
    assert f"user {NOBODY} may not enter" in found(cwd=str(tmp_path), **user)
    assert f"user {NOBODY} may not enter" in found(argv=[script(tmp_path / "program")], **user)
    os.chown(tmp_path, 0, NOBODY)
    tmp_path.chmod(0o710)
    assert "may not enter" not in found(cwd=str(tmp_path), **user) or _is_closed_above(tmp_path)


def _is_closed_above(path: Path) -> bool:
    """Return whether a directory above a temporary one is closed to other users, as pytest makes them."""
    return any(not parent.stat().st_mode & 0o001 for parent in path.parents)


def test_what_is_unknown_from_outside_is_none(tmp_path: Path) -> None:
    program, directory = "/opt/inside/program", "/opt/inside"
    (tmp_path / "opt").mkdir()
    mounts = [{"type": "tmpfs", "source": None, "destination": str(tmp_path / "opt"), "options": []}]
    inside = str(tmp_path / "opt" / program[1:])
    assert obstacle(argv=[inside], cwd=str(tmp_path / "opt" / directory[1:]), mounts=mounts) is None
    assert "No such file" in found(argv=[inside])
    assert obstacle(cwd="/proc/no-such", namespaces=["mount", "pid"]) is None
    assert "No such file" in found(cwd="/proc/no-such", namespaces=["pid"])
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "opt" / "program")
    assert obstacle(argv=[str(link)], mounts=mounts) is None


def test_the_user_in_a_user_namespace_is_not_checked(tmp_path: Path) -> None:
    program = script(tmp_path / "program", mode=0o100)
    assert obstacle(argv=[program], uid=1000, gid=1000, namespaces=["user"]) is None


def test_a_missing_source_or_destination_of_a_mount_is_one(tmp_path: Path) -> None:
    here = str(tmp_path)
    assert found(mounts=[bind("/no/such", here)]).startswith('mounts.0.source: there is no "/no/such" to mount on')
    assert found(mounts=[bind(here, "/no/such")]).startswith('mounts.0.destination: there is no "/no/such" to mount on')
    assert obstacle(mounts=[bind(here, here), bind(f"{here}/made-inside", f"{here}/also")]) is None


@pytest.mark.fault("D23")
def test_arguments_that_the_kernel_refuses_are_one() -> None:
    assert obstacle(argv=["sh", "x" * 131_071]) is None
    assert found(argv=["sh", "x" * 131_072]).startswith("command: argument 1 has 131,073 bytes, and the kernel takes")
    assert "the variable BIG has 131,077 bytes" in found(env={"PATH": "/bin", "BIG": "x" * 131_072})
    many = {f"V{number}": "x" * 100_000 for number in range(4)}
    limits = {"stack": [1 << 20, -1]}
    assert "and the kernel takes 262,144 with this limit_stack" in found(env={"PATH": "/bin", **many}, rlimits=limits)


def test_the_kernel_agrees_about_the_longest_argument() -> None:
    assert os.spawnv(os.P_WAIT, "/bin/true", ["true", "x" * 131_071]) == 0
    assert os.spawnv(os.P_WAIT, "/bin/true", ["true", "x" * 131_072]) == 127
