"""The devices that the processes of a cgroup may use: a BPF program of type BPF_PROG_TYPE_CGROUP_DEVICE.

The kernel runs the program for each open and mknod of a device node by a process in the cgroup or below it
(Documentation/admin-guide/cgroup-v2.rst, "Device controller"). All programs of the cgroups around it must allow it too.
On a hybrid host it works as well, as the processes are in v2 cgroups there; no v1 hierarchy has to be joined.

`assemble` makes the program; the rest loads and attaches it, bpf(2). One program serves all cgroups with equal rules.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Sequence
from typing import NamedTuple

from nsupervisor.linux.syscalls import last_error, libc

READ, WRITE, MKNOD = "r", "w", "m"
_ACCESS = {MKNOD: 1, READ: 2, WRITE: 4}  # enum BPF_DEVCG_ACC_*, linux/bpf.h
_TYPES = {"b": 1, "c": 2}  # BPF_DEVCG_DEV_*


class DeviceRule(NamedTuple):
    """One allowed device. kind: "c" or "b". minor: None for all. access: of "r", "w" and "m"."""

    kind: str
    major: int
    minor: int | None
    access: str = "rwm"


DEFAULT_RULES = (
    *(DeviceRule("c", 1, minor) for minor in (3, 5, 7, 8, 9)),  # null, zero, full, random, urandom
    DeviceRule("c", 5, 0),  # tty
    DeviceRule("c", 5, 2),  # ptmx
    DeviceRule("c", 136, None),  # terminals of pts
)
"""The devices of each program's own /dev."""

_INSTRUCTION = struct.Struct("<BBhi")
_LOAD_WORD, _MOVE, _AND, _SHIFT_RIGHT, _JUMP_NOT_EQUAL, _SET, _EXIT = 0x61, 0xBC, 0x54, 0x74, 0x55, 0xB7, 0x95
_R0, _R1, _ACCESS_REGISTER, _TYPE_REGISTER, _MAJOR_REGISTER, _MINOR_REGISTER, _SCRATCH = 0, 1, 2, 3, 4, 5, 6


def assemble(rules: Sequence[DeviceRule]) -> bytes:
    """Return the instructions of a program that allows what one of the rules allows (struct bpf_cgroup_dev_ctx)."""
    code = [
        _instruction(_LOAD_WORD, _ACCESS_REGISTER, _R1, 0),
        _instruction(_MOVE, _TYPE_REGISTER, _ACCESS_REGISTER),
        _instruction(_AND, _TYPE_REGISTER, immediate=0xFFFF),
        _instruction(_SHIFT_RIGHT, _ACCESS_REGISTER, immediate=16),
        _instruction(_LOAD_WORD, _MAJOR_REGISTER, _R1, 4),
        _instruction(_LOAD_WORD, _MINOR_REGISTER, _R1, 8),
    ]
    for rule in rules:
        code += _rule(rule)
    code += [_instruction(_SET, _R0), _instruction(_EXIT)]
    return b"".join(code)


def _rule(rule: DeviceRule) -> list[bytes]:
    tests = [(_TYPE_REGISTER, _TYPES[rule.kind]), (_MAJOR_REGISTER, rule.major)]
    if rule.minor is not None:
        tests.append((_MINOR_REGISTER, rule.minor))
    refused = 7 & ~sum(_ACCESS[letter] for letter in set(rule.access))
    tail = [_instruction(_SET, _R0, immediate=1), _instruction(_EXIT)]
    if refused:
        tail = [
            _instruction(_MOVE, _SCRATCH, _ACCESS_REGISTER),
            _instruction(_AND, _SCRATCH, immediate=refused),
            _instruction(_JUMP_NOT_EQUAL, _SCRATCH, offset=2),
            *tail,
        ]
    size = len(tests) + len(tail)
    jumps = [
        _instruction(_JUMP_NOT_EQUAL, register, offset=size - position, immediate=wanted)
        for position, (register, wanted) in enumerate(tests, 1)
    ]
    return [*jumps, *tail]


def _instruction(code: int, target: int = 0, source: int = 0, offset: int = 0, immediate: int = 0) -> bytes:
    return _INSTRUCTION.pack(code, source << 4 | target, offset, immediate)


# ---- in the kernel

_SYS_BPF = {"x86_64": 321, "aarch64": 280}.get(os.uname().machine, -1)
_LOAD, _ATTACH, _DETACH, _GET_FD_BY_ID, _QUERY = 5, 8, 9, 13, 16
_PROGRAM_TYPE, _ATTACH_TYPE, _ALLOW_MULTI = 15, 6, 2
_MAX_ATTACHED = 64  # BPF_CGROUP_MAX_PROGS
_LICENSE = ctypes.create_string_buffer(b"GPL")
_programs: dict[tuple[DeviceRule, ...], int] = {}


def load(rules: tuple[DeviceRule, ...]) -> int:
    """Load the program of these rules, once; return its descriptor, which stays open. Raises OSError."""
    fd = _programs.get(rules)
    if fd is None:
        code = assemble(rules)
        instructions = ctypes.create_string_buffer(code, len(code))
        # prog_type, insn_cnt, insns, license, log_level, log_size, log_buf, kern_version, prog_flags, prog_name
        attributes = struct.pack(
            "IIQQIIQII16sII",
            *(_PROGRAM_TYPE, len(code) // 8, ctypes.addressof(instructions), ctypes.addressof(_LICENSE)),
            *(0, 0, 0, 0, 0, b"nsupervisor", 0, _ATTACH_TYPE),
        )
        fd = _programs[rules] = _bpf(_LOAD, attributes, "load a BPF program for devices")
    return fd


def restrict(directory: str, rules: tuple[DeviceRule, ...] | None) -> None:
    """Allow the processes of a cgroup these devices only; None: all that the cgroups around it allow.

    For a cgroup without processes, as what was attached before is removed first. Raises OSError.
    """
    cgroup = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    before: list[int] = []
    try:
        before = _attached(cgroup)
        for fd in before:
            _bpf(_DETACH, struct.pack("3I", cgroup, fd, _ATTACH_TYPE), "detach a BPF program")
        if rules is not None:
            program = load(rules)
            _bpf(_ATTACH, struct.pack("5I", cgroup, program, _ATTACH_TYPE, _ALLOW_MULTI, 0), "attach a BPF program")
    finally:
        os.close(cgroup)
        for fd in before:
            os.close(fd)


def _attached(cgroup: int) -> list[int]:
    """Return descriptors of the programs that are attached to a cgroup itself."""
    ids = (ctypes.c_uint32 * _MAX_ATTACHED)()
    query = struct.pack("4IQII", cgroup, _ATTACH_TYPE, 0, 0, ctypes.addressof(ids), _MAX_ATTACHED, 0)
    attributes = ctypes.create_string_buffer(query, len(query))
    _call(_QUERY, attributes, "list BPF programs")
    count = struct.unpack_from("I", attributes.raw, 24)[0]
    return [_bpf(_GET_FD_BY_ID, struct.pack("3I", id_, 0, 0), "open a BPF program") for id_ in ids[:count]]


def _bpf(command: int, attributes: bytes, operation: str) -> int:
    return _call(command, ctypes.create_string_buffer(attributes, len(attributes)), operation)


def _call(command: int, attributes: ctypes.Array[ctypes.c_char], operation: str) -> int:
    result: int = libc.syscall(
        ctypes.c_long(_SYS_BPF), ctypes.c_int(command), attributes, ctypes.c_uint(len(attributes))
    )
    if result < 0:
        raise last_error(operation)
    return result
