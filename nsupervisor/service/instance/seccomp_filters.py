"""The seccomp filters of workloads as BPF programs, each compiled once, by names that stay the same across versions of
libseccomp."""

from __future__ import annotations

import functools
import hashlib
import os
import struct
from typing import TYPE_CHECKING

from nsupervisor.config.system_calls import HIGHEST_NUMBER, NEWER
from nsupervisor.core import seccomp
from nsupervisor.core.seccomp import ALLOW, KILL, LOG, Action, Filter

if TYPE_CHECKING:
    from nsupervisor.linux.libseccomp import Rule

_COMPARISONS = ("!=", "<", "<=", "==", ">=", ">", "&")
"""In the order of `enum scmp_compare`, from 1."""
_LOAD, _JUMP_EQUAL, _JUMP_GREATER_OR_EQUAL, _RETURN = 0x20, 0x15, 0x35, 0x06
"""Instructions: BPF_LD|BPF_W|BPF_ABS, BPF_JMP|BPF_JEQ|BPF_K, BPF_JMP|BPF_JGE|BPF_K, BPF_RET|BPF_K."""
_NUMBER_OFFSET, _ARCHITECTURE_OFFSET = 0, 4
"""Offsets in `struct seccomp_data`, seccomp(2)."""
_ARCHITECTURES = {"x86_64": 0xC000_003E, "aarch64": 0xC000_00B7}
"""AUDIT_ARCH_*, linux/audit.h."""
_INSTRUCTION = struct.Struct("HBBI")

_filters: dict[str, Filter] = {}
"""The filters that have a name."""


@functools.lru_cache(256)
def filter_name(filter: Filter) -> str:  # noqa: A002
    """Return the name of a filter, by which `program` finds it."""
    name = hashlib.blake2b(repr(filter).encode(), digest_size=12).hexdigest()
    _filters[name] = filter
    return name


@functools.lru_cache(256)
def program(name: str) -> bytes:
    """Return the BPF program of the filter with this name. Raises KeyError, and LibseccompError."""
    from nsupervisor.linux import libseccomp  # imported late: many configurations need no library
    from nsupervisor.service.instance.filter_program import NotExpressibleError

    found = _filters[name]
    rules = tuple(_library_rule(rule) for rule in found.rules)
    architecture = _ARCHITECTURES.get(os.uname().machine)
    if found.unknown is None or architecture is None:
        return libseccomp.compile_filter(_library_action(found.default), rules)
    try:
        return _compile_short(architecture, found, rules)
    except NotExpressibleError:
        compiled = libseccomp.compile_filter(_library_action(found.default), rules)
        return _refusal_of_unknown_calls(architecture, _library_action(found.unknown)) + compiled


def _compile_short(architecture: int, source: Filter, rules: tuple[Rule, ...]) -> bytes:
    """Compile a filter that has an action for unknown calls. Raises NotExpressibleError."""
    from nsupervisor.linux import libseccomp
    from nsupervisor.service.instance.filter_program import compile_program

    if reason := libseccomp.missing_reason():
        raise libseccomp.LibseccompError(reason)
    assert source.unknown is not None
    numbers = [libseccomp.call_number(rule.call) if isinstance(rule.call, str) else rule.call for rule in rules]
    known = [rule._replace(call=number) for rule, number in zip(rules, numbers, strict=True) if number >= 0]
    default, unknown = _library_action(source.default), _library_action(source.unknown)
    bad_architecture = libseccomp.LOG if default == libseccomp.LOG else libseccomp.KILL_PROCESS
    return compile_program(architecture, bad_architecture, default, unknown, HIGHEST_NUMBER, known)


def _library_action(action: Action) -> int:
    from nsupervisor.linux import libseccomp

    if isinstance(action, int):
        return libseccomp.error_action(action)
    return {ALLOW: libseccomp.ALLOW, LOG: libseccomp.LOG, KILL: libseccomp.KILL_PROCESS}[action]


def _library_rule(rule: seccomp.Rule) -> Rule:
    from nsupervisor.linux import libseccomp

    conditions = tuple(
        libseccomp.Condition(argument, 1 + _COMPARISONS.index(comparison), value, second)
        for argument, comparison, value, second in rule.conditions
    )
    return libseccomp.Rule(_library_action(rule.action), NEWER.get(rule.call, rule.call), conditions)


def _refusal_of_unknown_calls(architecture: int, action: int) -> bytes:
    """Return instructions before a filter: calls above those that are known get another action.

    Programs try new calls, and fall back to older ones if they get ENOSYS. On x86-64 this includes the calls of x32.
    """
    return b"".join(
        _INSTRUCTION.pack(*instruction)
        for instruction in (
            (_LOAD, 0, 0, _ARCHITECTURE_OFFSET),
            (_JUMP_EQUAL, 0, 3, architecture),
            (_LOAD, 0, 0, _NUMBER_OFFSET),
            (_JUMP_GREATER_OR_EQUAL, 0, 1, HIGHEST_NUMBER + 1),
            (_RETURN, 0, 0, action),
        )
    )
