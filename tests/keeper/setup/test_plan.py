"""Plans: the set-up that the standby's program performs, and what it reports."""

import errno
import os
import signal
from pathlib import Path

import pytest
import trio

from nsupervisor.keeper.server.zygote import MAX_WAITING
from nsupervisor.keeper.setup import plan, steps
from nsupervisor.keeper.setup.errors import begin_failure, decode_failure
from nsupervisor.keeper.setup.spec import Spec
from tests.keeper.conftest import ISOLATED, Harness
from tests.keeper.server.test_zygote import children, command
from tests.needs import needs
from tests.timing import deadline


def spec(**changes: object) -> Spec:
    return Spec({"id": "a", "argv": ["true"], "env": {}, "cwd": "/", "namespaces": ISOLATED, **changes})


def inits_of(keeper: int) -> list[str]:
    return [pid for pid in children(keeper) if command(pid) == "nsupervisor-ini"]


@pytest.mark.parametrize(
    ("changes", "is_possible"),
    [
        ({}, True),
        ({"namespaces": [*ISOLATED, "network", "time"]}, True),
        ({"cover": {"directory": "/run/x", "show": {"notify": "notify"}}}, True),
        ({"sandbox": {"devices": {}, "paths": [["/tmp", "temporary"]]}}, True),
        ({"sandbox": {"paths": [["/run", "masked"]]}, "cover": {"directory": "/run/x", "show": {"a": "a"}}}, False),
        ({"mounts": [{"type": "tmpfs", "destination": "/mnt"}]}, False),
        ({"namespaces": [*ISOLATED, "user"]}, False),
    ],
)
def test_mounts_and_user_namespaces_are_no_plans(changes: dict, is_possible: bool) -> None:
    assert plan.is_possible(spec(**changes)) == is_possible


def test_programs_with_the_same_namespaces_share_what_is_done_in_advance() -> None:
    cover = {"directory": "/run/x", "show": {}, "links": {}}
    first, second = spec(cover=cover), spec(id="b", argv=["other"], cover=cover, uid=5)
    assert plan.covered_in_advance(first) == "/run/x"
    first_common, second_common, uncovered = map(plan.Common, (first, second, spec()))
    assert plan.pack_advance(first_common) == plan.pack_advance(second_common)
    assert plan.pack_advance(first_common) != plan.pack_advance(uncovered)
    own = spec(cover={**cover, "show": {"notify/a": "notify/a"}})
    assert plan.covered_in_advance(own) == ""


def test_a_failure_is_completed_to_a_sentence(tmp_path: Path) -> None:
    def failure(number: int, *arguments: object) -> dict:
        return decode_failure(begin_failure(*arguments) + b"%d}" % number)

    hints = ((errno.ENOENT, "searched PATH=/bin"),)
    assert failure(errno.EACCES, "execute", "execute x", hints) == {
        "step": "execute",
        "message": "cannot execute x: Permission denied",
        "errno": errno.EACCES,
    }
    assert failure(errno.ENOENT, "execute", "execute x", hints)["message"].endswith(" (searched PATH=/bin)")
    path = tmp_path / "script"
    assert failure(errno.ENOENT, "execute", "execute x", (), str(path))["message"].endswith("No such file or directory")
    path.touch()
    assert failure(errno.ENOENT, "execute", "execute x", (), str(path))["message"].endswith("that it names is not)")


@needs("root")
async def test_what_fails_in_advance_is_reported_by_the_program_s_plan(harness: Harness, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    cover = {"directory": str(tmp_path / "file"), "show": {}, "links": {}}
    for _ in range(2):  # the second time the standby has waited
        result = await harness.run("true", namespaces=ISOLATED, cover=cover)
        assert result.failure is not None
        assert result.failure.step == "mount_all"
        assert result.failure.message == f"cannot cover the runtime directory {tmp_path}/file: Not a directory"


@needs("root")
async def test_a_limit_that_the_kernel_refuses_names_its_value(harness: Harness) -> None:
    most = int(Path("/proc/sys/fs/nr_open").read_text())
    result = await harness.run("true", namespaces=ISOLATED, rlimits={"nofile": [most + 1, most + 1]})
    assert result.failure is not None
    assert result.failure.step == "set_limits"
    assert result.failure.message.startswith(f"cannot set limit_nofile to {most + 1}:{most + 1}: ")


@needs("root")
async def test_a_directory_in_path_that_may_not_be_searched_does_not_hide_a_later_one(
    harness: Harness, tmp_path: Path
) -> None:
    """As with execvp(3)."""
    tmp_path.chmod(0o755)
    for name in ("closed", "open"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "program").write_text(f"#!/bin/sh\necho {name}\n")
    (tmp_path / "open" / "program").chmod(0o755)
    path = f"/no/such:{tmp_path}/closed:{tmp_path}/open"
    assert (await harness.run("program", namespaces=ISOLATED, env={"PATH": path})).stdout == "open\n"
    result = await harness.run("program", namespaces=ISOLATED, env={"PATH": f"{tmp_path}/closed:/no/such"})
    assert result.failure is not None
    assert result.failure.message == "cannot execute program: Permission denied"
    assert result.code == 126


@needs("root")
async def test_a_killed_keeper_leaves_no_standby(harness: Harness) -> None:
    spawned = await harness.spawn("sleep", "1000", namespaces=ISOLATED)
    await harness.execed(spawned)
    with trio.fail_after(deadline(20)):
        while len(inits := inits_of(harness.keeper.pid)) < 2:  # noqa: ASYNC110
            await trio.sleep(0.001)
    (waiting,) = (int(pid) for pid in inits if int(pid) != spawned.pid)
    os.kill(harness.keeper.pid, signal.SIGKILL)
    with trio.fail_after(deadline(20)):
        while Path(f"/proc/{waiting}").exists():  # noqa: ASYNC110
            await trio.sleep(0.001)
    os.kill(spawned.pid, signal.SIGKILL)


@needs("root")
async def test_inits_that_wait_are_bounded(harness: Harness) -> None:
    spaces = ["mount", "uts", "ipc", "network"]
    kinds = [["pid", *(space for bit, space in enumerate(spaces) if number >> bit & 1)] for number in range(16)]
    for namespaces in kinds:
        await harness.run("true", namespaces=namespaces)
    with trio.fail_after(deadline(20)):
        while len(inits_of(harness.keeper.pid)) != MAX_WAITING:  # noqa: ASYNC110
            await trio.sleep(0.001)


def test_each_step_is_in_a_plan() -> None:
    """A step that is only in steps.py would leave almost all programs without it."""
    given = spec(
        namespaces=[*ISOLATED, "network", "time"],
        cover={"directory": "/run/x", "show": {}, "links": {}},
        sandbox={"paths": [["/proc/sys", "read-only"]]},
        hostname="a",
        time_offsets={"boottime": 1},
        cgroup_procs=["/sys/fs/cgroup/a/cgroup.procs"],
        rlimits={"core": [0, 0]},
        nice=1,
        uid=1,
        no_new_privileges=True,
        capability_bounding_set=0,
        timer_slack=1,
        landlock={"handled": [1, 1, 0], "paths": [["/usr", 1]], "ports": [[80, 1]]},
    )
    packed = plan.pack_plan(given, plan.Common(given), has_cgroup=True)
    never_planned = {
        "become_namespace_root",
        "hold_shown_directories",
        "enter_root",
        "join_namespaces",
    }  # see `is_possible`
    not_in_plans = {*never_planned, "set_umask"}  # the last cannot fail, so its name is not sent
    for step in set(steps.STEP_NAMES.values()) - not_in_plans:
        assert f'"step": "{step}"'.encode() in packed, step
    assert {steps.STEP_NAMES[step] for step in steps.STEPS} == set(steps.STEP_NAMES.values())
