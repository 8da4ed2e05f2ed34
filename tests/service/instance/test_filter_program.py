"""The compiler of filters, compared with libseccomp and with the rules themselves; an interpreter runs the programs."""

import errno
import itertools
import os
import struct
from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsupervisor.config.system_calls import HIGHEST_NUMBER
from nsupervisor.core.seccomp import Filter, default_filter, filters
from nsupervisor.core.security import DEFAULT_CAPABILITIES, NEUTRAL
from nsupervisor.linux import libseccomp
from nsupervisor.linux.libseccomp import ALLOW, EQUAL, KILL_PROCESS, MASKED_EQUAL, Condition, Rule, error_action
from nsupervisor.service.instance import seccomp_filters
from nsupervisor.service.instance.filter_program import NotExpressibleError, compile_program
from tests.needs import needs

X86_64, I386 = 0xC000_003E, 0x4000_0003
EPERM, ENOSYS = error_action(errno.EPERM), error_action(errno.ENOSYS)
_DATA = struct.Struct("<IIQ6Q")
HIGH = 1 << 32


def run(program: bytes, number: int, arguments: Sequence[int] = (), architecture: int = X86_64) -> int:
    """Interpret a program as the kernel does, Documentation/networking/filter.rst; return the action."""
    data = _DATA.pack(number, architecture, 0, *arguments, *[0] * (6 - len(arguments)))
    code = list(struct.iter_unpack("<HBBI", program))
    position = accumulator = 0
    while True:
        operation, then, otherwise, value = code[position]
        position += 1
        match operation:
            case 0x20:
                assert value % 4 == 0
                (accumulator,) = struct.unpack_from("<I", data, value)
            case 0x54:
                accumulator &= value
            case 0x05:
                position += value
            case 0x06:
                return int(value)
            case _:
                holds = {
                    0x15: accumulator == value,
                    0x25: accumulator > value,
                    0x35: accumulator >= value,
                    0x45: bool(accumulator & value),
                }
                position += then if holds[operation] else otherwise


def by_libseccomp(source: Filter) -> bytes:
    """Compile a filter as if it were not expressible."""
    found = tuple(map(seccomp_filters._library_rule, source.rules))
    compiled = libseccomp.compile_filter(seccomp_filters._library_action(source.default), found)
    assert source.unknown is not None
    unknown = seccomp_filters._library_action(source.unknown)
    return seccomp_filters._refusal_of_unknown_calls(X86_64, unknown) + compiled


def argument_classes(source: Filter, number: int) -> Iterable[tuple[int, ...]]:
    """Return arguments on both sides of each comparison, and with other upper bits."""
    rules = [rule for rule in map(seccomp_filters._library_rule, source.rules) if rule.conditions]
    own = [rule for rule in rules if libseccomp.call_number(str(rule.call)) == number]
    edges: list[set[int]] = [{0, HIGH, 2 * HIGH - 1} for _ in range(6)]
    for condition in (condition for rule in own for condition in rule.conditions):
        value = condition.value
        near = {value, max(value - 1, 0), value + 1, HIGH | value}
        bits = {value & 1 << bit for bit in range(64)} if condition.comparison == MASKED_EQUAL else set()
        edges[condition.argument] |= near | bits | {HIGH | bit for bit in bits}
    used = {condition.argument for rule in own for condition in rule.conditions}
    yield from itertools.product(*(sorted(edges[index]) if index in used else (0, 2 * HIGH - 1) for index in range(3)))


SOURCES = {
    "default": default_filter(DEFAULT_CAPABILITIES),
    "no capability": default_filter(()),
    "administrator": default_filter((*DEFAULT_CAPABILITIES, "SYS_ADMIN", "AUDIT_WRITE")),
    "groups": filters({**NEUTRAL, "seccomp": "off", "system_call_filter": ("@system-service", "~@resources")})[0],
}


@needs("seccomp")
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers are those of x86-64")
@pytest.mark.parametrize("name", SOURCES)
def test_the_program_decides_like_that_of_libseccomp_for_each_call_and_class_of_arguments(name: str) -> None:
    source = SOURCES[name]
    short, long = seccomp_filters.program(seccomp_filters.filter_name(source)), by_libseccomp(source)
    assert len(short) < len(long) / 3
    beyond = (HIGHEST_NUMBER + 1, 4000, 0x4000_0000, 0x4000_0027, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF)
    for number in (*range(HIGHEST_NUMBER + 1), *beyond):
        for arguments in argument_classes(source, number):
            assert run(short, number, arguments) == run(long, number, arguments), (number, arguments)
    for number in (0, 20, HIGHEST_NUMBER + 1, 0xFFFF_FFFF):
        assert run(short, number, architecture=I386) == run(long, number, architecture=I386) == KILL_PROCESS


_CONDITIONS = st.one_of(
    st.just(()),
    st.builds(lambda value: (Condition(0, EQUAL, value),), st.integers(0, 6)),
    st.builds(lambda a, b: (Condition(0, EQUAL, a), Condition(2, EQUAL, b)), st.integers(0, 3), st.integers(0, 3)),
    st.builds(lambda mask: (Condition(1, MASKED_EQUAL, mask),), st.integers(0, 2**32 - 1)),
)
_RULES = st.lists(
    st.builds(Rule, st.sampled_from((ALLOW, EPERM, error_action(errno.EINVAL))), st.integers(0, 20), _CONDITIONS),
    max_size=12,
)


def decide(rules: Sequence[Rule], number: int, arguments: Sequence[int]) -> int:
    """Return the action for a call by the rules themselves."""
    own = [rule for rule in rules if rule.call == number]
    for rule in sorted(own, key=lambda rule: len(rule.conditions)):
        if all(
            arguments[one.argument] & one.value == one.second
            if one.comparison == MASKED_EQUAL
            else arguments[one.argument] == one.value
            for one in rule.conditions
        ):
            return rule.action
    return EPERM if number <= 20 else ENOSYS


@given(_RULES, st.lists(st.tuples(*[st.integers(0, 7) | st.integers(0, 2**64 - 1)] * 3), min_size=1, max_size=3))
def test_a_program_decides_like_its_rules_or_is_refused(rules: list[Rule], calls: list[tuple[int, int, int]]) -> None:
    try:
        program = compile_program(X86_64, KILL_PROCESS, EPERM, ENOSYS, 20, rules)
    except NotExpressibleError:
        return
    for number in (*range(22), 2**32 - 1):
        for arguments in calls:
            assert run(program, number, arguments) == decide(rules, number, arguments)


@pytest.mark.parametrize(
    "rules",
    [
        [Rule(ALLOW, 30)],
        [Rule(ALLOW, -1)],
        [Rule(ALLOW, 3, (Condition(0, EQUAL, 1 << 32),))],
        [Rule(ALLOW, 3, (Condition(0, EQUAL, 1),)), Rule(ALLOW, 3, (Condition(1, EQUAL, 1),))],
        [Rule(ALLOW, 3, (Condition(0, MASKED_EQUAL, 1),)), Rule(ALLOW, 3, (Condition(0, EQUAL, 1),))],
        [Rule(ALLOW, 3, (Condition(0, MASKED_EQUAL, 2, 2),))],
        [Rule(ALLOW, 3, (Condition(0, libseccomp.GREATER, 2),))],
        [Rule(ALLOW, 3, (Condition(0, EQUAL, value),)) for value in range(0, 2000, 2)],
    ],
)
def test_what_the_compiler_does_not_know_is_left_to_libseccomp(rules: list[Rule]) -> None:
    with pytest.raises(NotExpressibleError):
        compile_program(X86_64, KILL_PROCESS, EPERM, ENOSYS, 20, rules)
