"""Filters of system calls as the kernel applies them: each test tries calls in a process with a filter."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from nsupervisor.config.security_kinds import NAMESPACE_KINDS
from nsupervisor.config.system_calls import BY_CAPABILITY, DEFAULT, KNOWN, NEWER
from nsupervisor.core.seccomp import Filter, OciError, default_filter, filters, parse_oci
from nsupervisor.core.security import DEFAULT_CAPABILITIES, NEUTRAL
from nsupervisor.linux import libseccomp
from nsupervisor.linux.libseccomp import call_number
from nsupervisor.service.instance.seccomp_filters import filter_name, program
from tests.core import system_call_lists
from tests.needs import needs

pytestmark = needs("seccomp")

PROGRAM = """
import ctypes, json, os, sys
from nsupervisor.linux import syscalls
filters, calls = json.load(sys.stdin)
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
syscalls.set_no_new_privileges()
for text in filters:
    syscalls.set_seccomp_filter(bytes.fromhex(text))
results = []
for number, *arguments in calls:
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(number), *map(ctypes.c_ulong, arguments))
    results.append(ctypes.get_errno() if result < 0 else 0)
print(json.dumps(results), flush=True)
"""
ALG, VSOCK, INET, UNIX, PACKET, NETLINK = 38, 40, 2, 1, 17, 16
STREAM, DATAGRAM = 1, 2
NEWUSER, NEWNS = 0x1000_0000, 0x2_0000
NO_CALL = {"seccomp": "off"}


def attempt(found: tuple[Filter, ...], *calls: tuple[Any, ...]) -> list[int]:
    """Try calls (name or number, arguments) in a process with these filters; return their errors."""
    numbers = [(NEWER.get(name, call_number(name)) if isinstance(name, str) else name, *rest) for name, *rest in calls]
    programs = [program(filter_name(one)).hex() for one in found]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], input=json.dumps([programs, numbers]), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout))


def given(**values: Any) -> tuple[Filter, ...]:
    return filters({**NEUTRAL, **values})


DEFAULT_FILTER = (default_filter(DEFAULT_CAPABILITIES),)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (("getpid",), 0),
        (("clone3", 0, 0), errno.ENOSYS),
        (("unshare", NEWUSER), errno.EPERM),
        (("clone", NEWUSER | 17, 0, 0, 0, 0), errno.EPERM),
        (("clone", NEWNS | 17, 0, 0, 0, 0), errno.EPERM),
        (("setns", 0, 0), errno.EPERM),
        (("io_uring_setup", 0, 0), errno.EPERM),
        (("keyctl", 0, 0), errno.EPERM),
        (("add_key", 0, 0), errno.EPERM),
        (("bpf", 0, 0, 0), errno.EPERM),
        (("perf_event_open", 0, 0, 0, 0, 0), errno.EPERM),
        (("userfaultfd", 0), errno.EPERM),
        (("mount", 0, 0, 0, 0, 0), errno.EPERM),
        (("kexec_load", 0, 0, 0, 0), errno.EPERM),
        (("init_module", 0, 0, 0), errno.EPERM),
        (("open_by_handle_at", 0, 0, 0), errno.EPERM),
        (("socket", ALG, 5, 0), errno.EPERM),
        (("socket", VSOCK, STREAM, 0), errno.EPERM),
        (("socket", (1 << 32) | ALG, 5, 0), errno.EPERM),
        (("socket", (1 << 32) | VSOCK, STREAM, 0), errno.EPERM),
        (("socket", UNIX, STREAM, 0), 0),
        (("socket", NETLINK, 3, 0), 0),
        (("socket", NETLINK, 3, 15), 0),
        (("socket", NETLINK, 3, 9), errno.EINVAL),  # the audit system
        (("socket", NETLINK, 3, (1 << 32) | 9), errno.EPERM),
        (("personality", 0xFFFF_FFFF), 0),
        (("personality", 0x0040_0000), errno.EPERM),  # READ_IMPLIES_EXEC
        ((4000,), errno.ENOSYS),
        ((0x4000_0000 + 39,), errno.ENOSYS),  # getpid of x32
        ((0xFFFF_FFFF,), errno.ENOSYS),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_the_default_filter(call: tuple[Any, ...], expected: int) -> None:
    assert attempt(DEFAULT_FILTER, call) == [expected]


def test_a_capability_in_the_bounding_set_allows_its_calls() -> None:
    admin = (default_filter((*DEFAULT_CAPABILITIES, "SYS_ADMIN")),)
    assert attempt(admin, ("unshare", 0), ("setns", 99, 0), ("clone3", 0, 0)) == [0, errno.EBADF, errno.EINVAL]
    assert attempt(admin, ("init_module", 0, 0, 0)) == [errno.EPERM]


def test_the_calls_of_each_capability_are_refused_without_it() -> None:
    without = {rule.call for rule in DEFAULT_FILTER[0].rules if rule.action == "allow" and not rule.conditions}
    for name, calls in BY_CAPABILITY.items():
        held = name in DEFAULT_CAPABILITIES
        assert (calls <= without) == held or name == "SYS_PTRACE", name


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the instruction is one of x86-64")
def test_a_call_of_a_foreign_architecture_kills_the_process(tmp_path: Path) -> None:
    """`int 0x80` enters the table of 32-bit calls, in which 20 is getpid."""
    code = PROGRAM.replace(
        "results = []",
        "import mmap; memory = mmap.mmap(-1, 4096, prot=7); memory.write(bytes.fromhex('b814000000cd80c3'));"
        "function = ctypes.CFUNCTYPE(ctypes.c_long)(ctypes.addressof(ctypes.c_char.from_buffer(memory)))\n"
        "print('before', flush=True); function(); results = []",
    )
    text = json.dumps([[program(filter_name(DEFAULT_FILTER[0])).hex()], []])
    done = subprocess.run([sys.executable, "-c", code], input=text, capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("before\n", -31)


def test_log_refuses_nothing() -> None:
    found = given(seccomp="log", capability_bounding_set=DEFAULT_CAPABILITIES)
    assert attempt(found, ("unshare", 0), ("clone3", 0, 0), (4000,)) == [0, errno.EINVAL, errno.ENOSYS]


@pytest.mark.parametrize(
    ("values", "calls"),
    [
        ({"restrict_address_families": ("AF_UNIX",)}, [(("socket", INET, STREAM, 0), errno.EAFNOSUPPORT)]),
        ({"restrict_address_families": ("AF_UNIX",)}, [(("socket", UNIX, STREAM, 0), 0)]),
        ({"restrict_address_families": ("AF_UNIX",)}, [(("socket", (1 << 32) | INET, 1, 0), errno.EAFNOSUPPORT)]),
        ({"restrict_address_families": ("~AF_INET",)}, [(("socket", (1 << 32) | INET, 1, 0), errno.EAFNOSUPPORT)]),
        ({"restrict_address_families": ("~AF_INET",)}, [(("socket", UNIX, STREAM, 0), 0)]),
        ({"restrict_address_families": ("none",)}, [(("socket", UNIX, STREAM, 0), errno.EAFNOSUPPORT)]),
        (
            {"restrict_namespaces": tuple(f"~{kind}" for kind in NAMESPACE_KINDS)},
            [
                (("unshare", NEWUSER), errno.EPERM),
                (("clone", NEWUSER | 17, 0, 0, 0, 0), errno.EPERM),
                (("clone3", 0, 0), errno.ENOSYS),
                (("setns", 99, 0), errno.EPERM),
                (("setns", 99, 1 << 32), errno.EPERM),
                (("unshare", 0), 0),
            ],
        ),
        (
            {"restrict_namespaces": ("user",)},
            [(("unshare", NEWUSER), errno.EPERM), (("setns", 99, NEWNS), errno.EBADF)],
        ),
        ({"lock_personality": True}, [(("personality", 8), errno.EPERM), (("personality", 0xFFFF_FFFF), 0)]),
        (
            {"memory_deny_write_execute": True},
            [
                (("mmap", 0, 4096, 7, 0x22, 0xFFFF_FFFF_FFFF_FFFF, 0), errno.EPERM),
                (("mmap", 0, 4096, 3, 0x22, 0xFFFF_FFFF_FFFF_FFFF, 0), 0),
                (("mprotect", 0, 0, 4), errno.EPERM),
                (("mprotect", 0, 0, 1), 0),
            ],
        ),
        (
            {"restrict_realtime": True},
            [
                (("sched_setscheduler", 0, 1, 0), errno.EPERM),
                (("sched_setscheduler", 0, 1 | 0x4000_0000, 0), errno.EPERM),
                (("sched_setscheduler", 0, 3, 0), errno.EINVAL),
                (("sched_setattr", 0, 0, 0), errno.EPERM),
            ],
        ),
        (
            {"restrict_suid_sgid": True},
            [
                (("fchmod", 99, 0o4755), errno.EPERM),
                (("fchmod", 99, 0o2755), errno.EPERM),
                (("fchmod", 99, 0o755), errno.EBADF),
                (("openat", -100, 0, 0o102, 0o4755), errno.EPERM),
                (("openat", -100, 0, 0o2, 0o4755), errno.EFAULT),
                (("fchmodat2", -100, 0, 0o4755, 0), errno.EPERM),
                (("openat2", -100, 0, 0, 0), errno.ENOSYS),
            ],
        ),
        ({"system_call_filter": ("~@clock", "~uname")}, [(("uname", 0), errno.EPERM), (("getpid",), 0)]),
        (
            {"system_call_filter": ("@system-service", "~@resources")},
            [
                (("setpriority", 0, 0, 0), errno.EPERM),
                (("unshare", 0), 0),
                (("mount", 0, 0, 0, 0, 0), errno.EPERM),
                ((4000,), errno.ENOSYS),
            ],
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_restrictions(values: Mapping[str, Any], calls: list[tuple[tuple[Any, ...], int]]) -> None:
    found = given(**NO_CALL, **values)
    assert attempt(found, *(call for call, _ in calls)) == [expected for _, expected in calls]


def test_several_filters_apply_together() -> None:
    oci = parse_oci(
        json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["uname"], "action": "SCMP_ACT_ERRNO"}]}),
        (),
        "x86_64",
    )
    values = {
        **NEUTRAL,
        "seccomp": "/a",
        "system_call_filter": ("@system-service", "~seccomp"),
        "lock_personality": True,
    }
    found = filters(values, oci)
    assert len(found) == 3
    calls = (("uname", 0), ("personality", 8), ("mount", 0, 0, 0, 0, 0), ("getpid",))
    assert attempt(found, *calls) == [errno.EPERM, errno.EPERM, errno.EPERM, 0]


@needs("file:/usr/share/containers/seccomp.json")
def test_the_filter_of_podman_can_be_used() -> None:
    """Its "includes" and "excludes" depend on capabilities and architectures."""
    path = Path("/usr/share/containers/seccomp.json")
    found = (parse_oci(path.read_text(), DEFAULT_CAPABILITIES, os.uname().machine),)
    calls = (("getpid",), ("bpf", 0, 0, 0), ("socket", UNIX, STREAM, 0), ("socket", VSOCK, STREAM, 0))
    assert attempt(found, *calls)[:3] == [0, errno.EPERM, 0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[" * 100000, "is not JSON"),
        ("[]", 'has no "defaultAction"'),
        ('{"defaultAction": "SCMP_ACT_TRAP"}', "has the action 'SCMP_ACT_TRAP'; only SCMP_ACT_ERRNO"),
        ('{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 9999}', "has the error number 9999"),
        ('{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["x"]}]}', "is not a filter"),
        ('{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [3]}', "is not a filter"),
    ],
)
def test_a_file_that_is_no_filter_is_refused(text: str, message: str) -> None:
    with pytest.raises(OciError, match=message.replace("[", r"\[")):
        parse_oci(text, (), "x86_64")


def test_equal_filters_have_one_program() -> None:
    names = {filter_name(default_filter(DEFAULT_CAPABILITIES)) for _ in range(3)}
    assert len(names) == 1
    assert len(program(names.pop())) // 8 < 600


# ---- compared with other engines


def native(names: set[str] | frozenset[str]) -> set[str]:
    """Return the calls that the library knows on this architecture."""
    return {name for name in names if call_number(name) >= 0}


def test_differences_from_docker(capsys: pytest.CaptureFixture[str]) -> None:
    """Each difference is intended; a change of the table shows here."""
    less, more = native(system_call_lists.DOCKER) - DEFAULT, native(DEFAULT) - system_call_lists.DOCKER
    print("Docker allows, and we do not:", sorted(less))
    print("we allow, and Docker does not:", sorted(more))
    assert less == set()
    assert more <= {
        "arch_prctl",
        "modify_ldt",
        "process_vm_readv",
        "process_vm_writev",
        "ptrace",
    }  # by other rules there


def test_differences_from_systemd(capsys: pytest.CaptureFixture[str]) -> None:
    expanded = DEFAULT | {"clone", "clone3", "socket", "personality"}
    less, more = (
        native(system_call_lists.SYSTEM_SERVICE) - expanded,
        native(expanded) - system_call_lists.SYSTEM_SERVICE,
    )
    print("@system-service allows, and we do not:", sorted(less))
    print("we allow, and @system-service does not:", sorted(more))
    assert less <= {
        *("add_key", "keyctl", "request_key", "io_uring_enter", "io_uring_register", "io_uring_setup", "kcmp"),
        *("get_mempolicy", "mbind", "migrate_pages", "move_pages", "set_mempolicy", "set_mempolicy_home_node"),
        *("process_madvise", "setns", "unshare", "userfaultfd"),
    }
    assert "ptrace" in more


def test_our_system_service_is_that_of_systemd() -> None:
    from nsupervisor.config.system_calls import expand

    ours = native(expand(["@system-service"]))
    theirs = native(system_call_lists.SYSTEM_SERVICE)
    assert theirs - ours == set()
    assert ours - theirs <= NEWER.keys() | {"futex_waitv", "process_madvise", "set_mempolicy_home_node"}


def test_each_name_is_a_call_of_the_kernel() -> None:
    unknown = {name for name in KNOWN if call_number(name) == -1} - NEWER.keys()
    assert unknown <= {"uretprobe", "futex_waitv", "set_mempolicy_home_node", "getsid"}, unknown


def test_a_missing_library_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    libseccomp._load.cache_clear()
    monkeypatch.setattr(libseccomp, "_LIBRARY", "libseccomp-missing.so")
    try:
        assert libseccomp.missing_reason().startswith("libseccomp-missing.so cannot be loaded: ")
        with pytest.raises(libseccomp.LibseccompError):
            libseccomp.compile_filter(libseccomp.ALLOW, ())
    finally:
        libseccomp._load.cache_clear()
