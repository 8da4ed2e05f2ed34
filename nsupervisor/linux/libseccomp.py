"""A binding to libseccomp, which compiles rules on system calls into a BPF program: seccomp_rule_add(3).

The library (Debian: libseccomp2) is loaded when it is first needed. Only the service uses it; the keeper gets bytes.
"""

from __future__ import annotations

import ctypes
import functools
import os
from typing import NamedTuple

ALLOW, LOG, KILL_PROCESS = 0x7FFF_0000, 0x7FFC_0000, 0x8000_0000
"""Actions, seccomp_init(3)."""
NOT_EQUAL, LESS, LESS_OR_EQUAL, EQUAL, GREATER_OR_EQUAL, GREATER, MASKED_EQUAL = range(1, 8)
"""Comparisons, `enum scmp_compare`."""
_LIBRARY = "libseccomp.so.2"
_ATTRIBUTE_BAD_ARCHITECTURE, _ATTRIBUTE_OPTIMIZE = 2, 8
_BINARY_TREE = 2


def error_action(number: int) -> int:
    """Return the action that makes a call fail with an errno."""
    return 0x0005_0000 | number


class Condition(NamedTuple):
    """A condition on an argument of a call. With `MASKED_EQUAL`, `value` is the mask and `second` the value."""

    argument: int
    comparison: int
    value: int
    second: int = 0


class Rule(NamedTuple):
    """The action for a system call, given by its name or number, if all conditions hold."""

    action: int
    call: str | int
    conditions: tuple[Condition, ...] = ()


class LibseccompError(Exception):
    """The library is missing, or refuses a rule; the text is a sentence without full stop."""


class _Comparison(ctypes.Structure):
    _fields_ = (
        ("argument", ctypes.c_uint),
        ("comparison", ctypes.c_int),
        ("value", ctypes.c_uint64),
        ("second", ctypes.c_uint64),
    )


@functools.cache
def _load() -> ctypes.CDLL:
    library = ctypes.CDLL(_LIBRARY)
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_init.argtypes = (ctypes.c_uint32,)
    library.seccomp_release.restype = None
    library.seccomp_release.argtypes = (ctypes.c_void_p,)
    library.seccomp_attr_set.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32)
    library.seccomp_syscall_resolve_name.argtypes = (ctypes.c_char_p,)
    library.seccomp_rule_add_array.argtypes = (
        *(ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint),
        ctypes.POINTER(_Comparison),
    )
    library.seccomp_syscall_resolve_num_arch.argtypes = (ctypes.c_uint32, ctypes.c_int)
    library.seccomp_syscall_resolve_num_arch.restype = ctypes.c_char_p
    library.seccomp_arch_native.restype = ctypes.c_uint32
    library.seccomp_export_bpf.argtypes = (ctypes.c_void_p, ctypes.c_int)
    return library


def missing_reason() -> str:
    """Return why the library cannot be used; "" if it can."""
    try:
        _load()
    except (OSError, AttributeError) as error:
        return f"{_LIBRARY} cannot be loaded: {error}"
    return ""


def call_number(name: str) -> int:
    """Return the number of a system call on this architecture; below 0 if it has none, or the library no name."""
    return int(_load().seccomp_syscall_resolve_name(name.encode()))


def call_name(architecture: int, number: int) -> str:
    """Return the name of a system call of an architecture (AUDIT_ARCH_*); "" if the library does not know it.

    The library leaves the name to the caller to free, which this does not do: for few calls.
    """
    name = _load().seccomp_syscall_resolve_num_arch(architecture, number)
    return name.decode() if name else ""


def native_architecture() -> int:
    """Return AUDIT_ARCH_* of this process."""
    return int(_load().seccomp_arch_native())


def compile_filter(default: int, rules: tuple[Rule, ...]) -> bytes:
    """Compile a filter for this architecture; each call of another one kills the process.

    `default` is the action for calls without a rule. Calls that this architecture does not have are skipped. Returns
    `struct sock_filter` after another, linux/filter.h. Raises LibseccompError.
    """
    if reason := missing_reason():
        raise LibseccompError(reason)
    library = _load()
    context = library.seccomp_init(default)
    if not context:
        raise LibseccompError("libseccomp cannot make a filter")
    try:
        bad_architecture = LOG if default == LOG else KILL_PROCESS
        _check(library.seccomp_attr_set(context, _ATTRIBUTE_BAD_ARCHITECTURE, bad_architecture), "the architectures")
        library.seccomp_attr_set(context, _ATTRIBUTE_OPTIMIZE, _BINARY_TREE)  # libseccomp 2.5; a list before
        for action, call, conditions in rules:
            number = call_number(call) if isinstance(call, str) else call
            if number < 0 or action == default:
                continue
            array = (_Comparison * len(conditions))(*(_Comparison(*condition) for condition in conditions))
            _check(
                library.seccomp_rule_add_array(context, action, number, len(conditions), array), f"a rule for {call}"
            )
        return _export(library, context)
    finally:
        library.seccomp_release(context)


def _export(library: ctypes.CDLL, context: int) -> bytes:
    fd = os.memfd_create("filter", os.MFD_CLOEXEC)
    try:
        _check(library.seccomp_export_bpf(context, fd), "the filter")
        size = os.lseek(fd, 0, os.SEEK_END)
        return os.pread(fd, size, 0)
    finally:
        os.close(fd)


def _check(result: int, subject: str) -> None:
    if result < 0:
        raise LibseccompError(f"libseccomp refuses {subject}: {os.strerror(-result)}")
