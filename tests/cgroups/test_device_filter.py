"""The BPF program that restricts the devices of a cgroup: its instructions, run here; and the kernel's use of it."""

import os
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from nsupervisor.cgroups import device_filter
from nsupervisor.cgroups.device_filter import DEFAULT_RULES, DeviceRule, assemble
from nsupervisor.cgroups.host import Host
from tests.needs import needs

READ, WRITE, MKNOD = 2, 4, 1
CHAR, BLOCK = 2, 1


def run(code: bytes, kind: int, access: int, major: int, minor: int) -> int:
    """Interpret a program as the kernel does, with the instructions that `assemble` uses."""
    context = struct.pack("III", access << 16 | kind, major, minor)
    registers, place = [0] * 11, 0
    while True:
        opcode, names, offset, immediate = struct.unpack_from("<BBhi", code, place * 8)
        target, source = names & 15, names >> 4
        place += 1
        match opcode:
            case 0x61:
                registers[target] = struct.unpack_from("I", context, offset)[0]
            case 0xBC:
                registers[target] = registers[source]
            case 0x54:
                registers[target] &= immediate
            case 0x74:
                registers[target] >>= immediate
            case 0x55:
                place += offset if registers[target] != immediate else 0
            case 0xB7:
                registers[target] = immediate
            case 0x95:
                return registers[0]
            case _:
                raise AssertionError(hex(opcode))


RULES = (
    DeviceRule("c", 1, 3),
    DeviceRule("c", 136, None),
    DeviceRule("b", 8, 0, "r"),
    DeviceRule("c", 10, 229, "rw"),
)


@pytest.mark.parametrize(
    ("kind", "access", "major", "minor", "is_allowed"),
    [
        (CHAR, READ | WRITE | MKNOD, 1, 3, True),
        (BLOCK, READ, 1, 3, False),
        (CHAR, READ, 1, 4, False),
        (CHAR, READ, 2, 3, False),
        (CHAR, READ | WRITE, 136, 7, True),
        (CHAR, READ | WRITE, 136, 1 << 19, True),
        (BLOCK, READ, 8, 0, True),
        (BLOCK, READ | WRITE, 8, 0, False),
        (BLOCK, MKNOD, 8, 0, False),
        (CHAR, READ | WRITE, 10, 229, True),
        (CHAR, MKNOD, 10, 229, False),
    ],
)
def test_a_device_is_allowed_by_type_number_and_access(
    kind: int, access: int, major: int, minor: int, is_allowed: bool
) -> None:
    assert run(assemble(RULES), kind, access, major, minor) == is_allowed


def test_without_rules_no_device_is_allowed() -> None:
    assert run(assemble(()), CHAR, READ, 1, 3) == 0


@pytest.fixture
def directory() -> Iterator[Path]:
    path = Path(Host.discover().base) / f"nsupervisor-test-{os.getpid()}"
    path.mkdir()
    yield path
    path.rmdir()


SCRIPT = (
    "echo 0 >{}/cgroup.procs; true <>/dev/null || exit; true </dev/kmsg && echo read; true >/dev/kmsg && echo write"
)


def use(directory: Path) -> tuple[str, int]:
    done = subprocess.run(["sh", "-c", SCRIPT.format(directory)], capture_output=True, text=True)
    return done.stdout, done.stderr.count("Operation not permitted")


@needs("root")
@pytest.mark.system
def test_the_kernel_follows_the_latest_rules(directory: Path) -> None:
    assert use(directory) == ("read\nwrite\n", 0)
    for rules, expected in (
        (DEFAULT_RULES, ("", 2)),
        ((*DEFAULT_RULES, DeviceRule("c", 1, 11, "r")), ("read\n", 1)),
        (DEFAULT_RULES, ("", 2)),
        (DEFAULT_RULES, ("", 2)),
        (None, ("read\nwrite\n", 0)),
    ):
        device_filter.restrict(str(directory), rules)
        assert use(directory) == expected
