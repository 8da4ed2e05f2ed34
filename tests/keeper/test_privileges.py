"""The capabilities, seccomp filters and scheduling of a program, on both ways to set it up."""

import errno
import os
import struct

import pytest

from nsupervisor.capability_names import ALL, mask, names
from nsupervisor.keeper.setup.privileges import highest_capability
from nsupervisor.linux.syscalls import permitted_capabilities
from tests.keeper.conftest import ISOLATED, Harness
from tests.needs import needs

pytestmark = needs("root")

KINDS = pytest.mark.parametrize(
    "spec",
    [
        {"namespaces": ISOLATED},
        {"namespaces": []},
        {"namespaces": ISOLATED, "init": False},
        {"namespaces": ISOLATED, "mounts": [{"type": "tmpfs", "destination": "/mnt"}]},
        {
            "namespaces": [*ISOLATED, "user"],
            "uid_mappings": [[0, 0, 5000]],
            "gid_mappings": [[0, 0, 5000]],
        },
    ],
    ids=["plan", "bare", "without init", "python", "user namespace"],
)
FEW = mask(("CHOWN", "KILL", "SETUID"))
OWN = permitted_capabilities()
STATUS = ("grep", "-E", "^(Cap|NoNewPrivs|Seccomp:)", "/proc/self/status")


async def fields(harness: Harness, **spec: object) -> dict[str, int]:
    result = await harness.run(*STATUS, **spec)
    assert result.failure is None, result.failure
    return {key: int(value, 16) for key, value in (line.split(":", 1) for line in result.stdout.splitlines())}


def refuse(number: int, code: int) -> bytes:
    """A filter that refuses one system call, on any architecture, with an errno."""
    jump, load, give = 0x15, 0x20, 0x06
    allow, refused = 0x7FFF0000, 0x00050000 | code
    program = ((load, 0, 0, 0), (jump, 0, 1, number), (give, 0, 0, refused), (give, 0, 0, allow))
    return b"".join(struct.pack("HBBI", *instruction) for instruction in program)


def test_the_names_are_those_of_the_kernel() -> None:
    assert highest_capability() + 1 <= len(names(ALL))
    assert names(1 << 21 | 1) == ("CHOWN", "SYS_ADMIN")


@KINDS
async def test_root_has_the_capabilities_of_the_bounding_set(harness: Harness, spec: dict) -> None:
    for _ in range(2):  # the second time the standby has waited
        found = await fields(harness, capability_bounding_set=FEW, no_new_privileges=True, **spec)
        assert (found["CapBnd"], found["CapPrm"], found["CapEff"]) == (FEW, FEW, FEW)
        assert (found["CapInh"], found["CapAmb"]) == (0, 0)
        assert found["NoNewPrivs"] == 1


@KINDS
async def test_another_user_has_none_but_the_ambient_ones(harness: Harness, spec: dict) -> None:
    found = await fields(harness, capability_bounding_set=FEW, uid=1001, gid=1002, groups=[], **spec)
    assert (found["CapBnd"], found["CapPrm"], found["CapEff"], found["CapAmb"]) == (FEW, 0, 0, 0)
    kill = mask(("KILL",))
    for privileges in (True, False):
        found = await fields(
            harness,
            capability_bounding_set=FEW,
            ambient_capabilities=kill,
            no_new_privileges=privileges,
            uid=1001,
            gid=1002,
            groups=[],
            **spec,
        )
        assert (found["CapBnd"], found["CapPrm"], found["CapEff"], found["CapAmb"]) == (FEW, kill, kill, kill)
        assert found["CapInh"] == kill


@KINDS
async def test_no_capability_is_left_with_an_empty_set(harness: Harness, spec: dict) -> None:
    found = await fields(harness, capability_bounding_set=0, no_new_privileges=True, **spec)
    assert not any(found[kind] for kind in ("CapBnd", "CapPrm", "CapEff", "CapInh", "CapAmb"))


@KINDS
async def test_without_these_keys_the_program_has_all_of_the_keepers(harness: Harness, spec: dict) -> None:
    found = await fields(harness, **spec)
    assert found["CapPrm"] & OWN == OWN
    assert found["CapInh"] == found["CapAmb"] == 0


@KINDS
async def test_secure_bits(harness: Harness, spec: dict) -> None:
    noroot = 0x1
    for uid in (None, 1001):
        code = "import ctypes; print(ctypes.CDLL(None).prctl(27, 0, 0, 0, 0))"  # PR_GET_SECUREBITS
        given = {"uid": uid, "gid": uid, "groups": []} if uid else {}
        result = await harness.run("/usr/bin/python3", "-c", code, secure_bits=noroot, **given, **spec)
        assert (result.failure, result.stdout) == (None, "1\n")
    found = await fields(harness, secure_bits=noroot, **spec)
    assert found["CapPrm"] == 0, "the root of the program is no root any more"


@KINDS
@pytest.mark.parametrize("privileges", [True, False])
@pytest.mark.parametrize("uid", [None, 0, 1001])
async def test_filters_apply_to_the_program_alone(
    harness: Harness, spec: dict, privileges: bool, uid: int | None
) -> None:
    number = {"x86_64": 170, "aarch64": 161}[os.uname().machine]  # sethostname
    programs = {"first": refuse(number, errno.EDOM), "second": refuse(number, errno.EXDEV)}
    harness.keeper.filter_program = programs.__getitem__
    given = {} if uid is None else {"uid": uid, "gid": uid, "groups": []}
    code = (
        "import ctypes; libc = ctypes.CDLL(None, use_errno=True); libc.sethostname(b'x', 1); print(ctypes.get_errno())"
    )
    for filters, expected in ((["first"], errno.EDOM), (["first", "second"], errno.EXDEV)):
        result = await harness.run(
            *("/usr/bin/python3", "-c", code), filters=filters, no_new_privileges=privileges, **given, **spec
        )
        assert (result.failure, result.stdout) == (None, f"{expected}\n")
        found = await fields(harness, filters=filters, no_new_privileges=privileges, **given, **spec)
        assert (found["Seccomp"], found["NoNewPrivs"]) == (2, privileges)
        assert bool(found["CapPrm"]) == (not uid), "the capability for the filter is gone"


@KINDS
async def test_a_filter_that_the_kernel_does_not_accept_is_named(harness: Harness, spec: dict) -> None:
    harness.keeper.filter_program = lambda name: b"\xff" * 8
    result = await harness.run("true", filters=["bad"], **spec)
    assert result.failure is not None
    assert result.failure.message == (
        "cannot install the seccomp filter: Invalid argument (the kernel does not accept the filter)"
    )


@pytest.mark.fault("D23")
@KINDS
async def test_scheduling(harness: Harness, spec: dict) -> None:
    """The class of SCHED_BATCH is 3, that of the idle class of disks 3 << 13."""
    code = (
        "import ctypes, os; libc = ctypes.CDLL(None);"
        "print(open('/proc/self/oom_score_adj').read().strip(), os.sched_getscheduler(0),"
        "libc.syscall({'x86_64': 252, 'aarch64': 31}[os.uname().machine], 1, 0), libc.prctl(30, 0, 0, 0, 0))"
    )
    given = {"oom_score_adjust": 321, "cpu_scheduling": [3, 0], "io_priority": 3 << 13, "timer_slack": 123456}
    result = await harness.run("/usr/bin/python3", "-c", code, **given, **spec)
    assert (result.failure, result.stdout) == (None, f"321 3 {3 << 13} 123456\n")


@pytest.mark.parametrize("spec", [{"namespaces": ISOLATED}, {"namespaces": ISOLATED, "init": False}])
async def test_an_unknown_policy_is_refused_by_name(harness: Harness, spec: dict) -> None:
    result = await harness.run("true", cpu_scheduling=[77, 0], **spec)
    assert result.failure is not None
    assert (result.failure.step, result.failure.errno) == ("set_scheduling", errno.EINVAL)
    assert result.failure.message.startswith("cannot set the policy and priority for CPUs: ")
