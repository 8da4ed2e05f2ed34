"""Compile a filter of system calls into a short BPF program: seccomp(2), Documentation/networking/filter.rst. Pure.

The kernel translates a filter at each start, in time that grows with its length. libseccomp makes a comparison and a
return for each call. Here, calls with neighbouring numbers and the same result are one range, and ranges are found by
binary search: the default filter has a fifth of the instructions.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from nsupervisor.linux import libseccomp as library

if TYPE_CHECKING:
    from nsupervisor.linux.libseccomp import Condition, Rule

_LOAD, _AND, _JUMP_EQUAL, _JUMP_GREATER_OR_EQUAL, _JUMP_SET, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x45, 0x06
"""BPF_LD|BPF_W|BPF_ABS, BPF_ALU|BPF_AND|BPF_K, BPF_JMP|BPF_JEQ|BPF_K, BPF_JGE, BPF_JSET, BPF_RET|BPF_K."""
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
"""Offsets in `struct seccomp_data`; each argument has 8 bytes."""
_MAX_JUMP = 255
_WORD = 1 << 32
_INSTRUCTION = struct.Struct("HBBI")

_Target = int | str
"""The place to which a jump leads: the return of an action, or a label."""
_Ranges = list[tuple[int, _Target]]
"""The first value of each range with its target, from 0 on."""


class NotExpressibleError(ValueError):
    """The rules are of a form that this compiler does not know, or the program has too long jumps."""


def compile_program(
    architecture: int, bad_architecture: int, default: int, unknown: int, highest: int, rules: Sequence[Rule]
) -> bytes:
    """Return a program as `struct sock_filter` after another, for a little-endian machine.

    `architecture`: AUDIT_ARCH_*; calls of another one get the action `bad_architecture`. `default`: the action for
    calls without a rule; `unknown`: that for calls with a number above `highest`. The calls of `rules` are numbers. If
    the conditions of several rules hold, the one with the fewest conditions counts, and of these the first one.

    Raises NotExpressibleError.
    """
    by_call: dict[int, list[Rule]] = {}
    for rule in rules:
        assert isinstance(rule.call, int)
        if not 0 <= rule.call <= highest:
            raise NotExpressibleError(f"call {rule.call} has no known number")
        by_call.setdefault(rule.call, []).append(rule)
    emitter = _Emitter(default)
    emitter.load(_ARCHITECTURE)
    emitter.jump(_JUMP_EQUAL, architecture, None, bad_architecture)
    emitter.load(_NUMBER)
    cells = {number: emitter.target(number, found) for number, found in by_call.items()}
    emitter.search([*_ranges(cells, default, highest + 1), (highest + 1, unknown)])
    emitter.add_blocks()
    return emitter.assemble()


def _ranges(cells: Mapping[int, _Target], default: _Target, end: int = _WORD) -> _Ranges:
    """Return the ranges of values below `end`: `cells`, and `default` between them."""
    found: _Ranges = []
    following = 0

    def add(first: int, target: _Target) -> None:
        if not found or found[-1][1] != target:
            found.append((first, target))

    for value, target in sorted(cells.items()):
        if value > following:
            add(following, default)
        add(value, target)
        following = value + 1
    if following < end:
        add(following, default)
    return found


class _Emitter:
    """A program in the making. A jump has two targets; None is the next instruction."""

    __slots__ = ("_blocks", "_default", "_instructions", "_labels")

    def __init__(self, default: int) -> None:
        self._default = default
        self._instructions: list[tuple[int, int, _Target | None, _Target | None]] = []
        self._labels: dict[_Target, int] = {}
        self._blocks: list[tuple[str, list[Rule]]] = []

    def load(self, offset: int) -> None:
        self._instructions.append((_LOAD, offset, None, None))

    def jump(self, code: int, value: int, then: _Target | None, otherwise: _Target | None) -> None:
        self._instructions.append((code, value, then, otherwise))

    def target(self, name: int | str, rules: list[Rule]) -> _Target:
        """Return the action of rules on one call, or the label of a block that decides between them."""
        for rule in rules:
            if not rule.conditions:
                return rule.action
        label = f"{name}"
        self._blocks.append((label, rules))
        return label

    def search(self, ranges: _Ranges) -> None:
        """Jump to the target of the range that has the loaded value."""
        if len(ranges) == 1:
            self.jump(_JUMP_GREATER_OR_EQUAL, 0, ranges[0][1], ranges[0][1])
            return
        middle = len(ranges) // 2
        below, above = ranges[:middle], ranges[middle:]
        label = f"{len(self._instructions)} above"
        then = above[0][1] if len(above) == 1 else label
        self.jump(_JUMP_GREATER_OR_EQUAL, above[0][0], then, below[0][1] if len(below) == 1 else None)
        if len(below) > 1:
            self.search(below)
        if len(above) > 1:
            self._labels[label] = len(self._instructions)
            self.search(above)

    def add_blocks(self) -> None:
        """Add the blocks that look at arguments; a block may add further ones."""
        for label, rules in self._blocks:
            self._labels[label] = len(self._instructions)
            first = rules[0].conditions[0]
            if len(rules) == 1 and len(rules[0].conditions) == 1 and first.comparison == library.MASKED_EQUAL:
                self._test_bits(first, rules[0].action)
            else:
                self._compare(label, first.argument, rules)

    def _test_bits(self, condition: Condition, action: int) -> None:
        if condition.second or condition.value >= _WORD:
            raise NotExpressibleError("only bits below 2**32 that must be 0 are possible")
        self.load(_ARGUMENTS + 8 * condition.argument)
        self.jump(_JUMP_SET, condition.value, self._default, action)

    def _compare(self, label: str, argument: int, rules: list[Rule]) -> None:
        """Compare an argument of 64 bits with the values of the rules."""
        by_value: dict[int, list[Rule]] = {}
        for rule in rules:
            first, *rest = rule.conditions or (None,)
            if first is None or (first.argument, first.comparison) != (argument, library.EQUAL) or first.value >= _WORD:
                raise NotExpressibleError("only values below 2**32 of one argument are possible")
            by_value.setdefault(first.value, []).append(rule._replace(conditions=tuple(rest)))
        cells = {value: self.target(f"{label} {value}", found) for value, found in by_value.items()}
        self.load(_ARGUMENTS + 8 * argument + 4)
        self.jump(_JUMP_EQUAL, 0, None, self._default)
        self.load(_ARGUMENTS + 8 * argument)
        self.search(_ranges(cells, self._default))

    def assemble(self) -> bytes:
        """Add the returns, and return the instructions."""
        labels, code = dict(self._labels), list(self._instructions)
        actions = dict.fromkeys(one for *_, then, other in code for one in (then, other) if isinstance(one, int))
        for action in actions:
            labels[action] = len(code)
            code.append((_RETURN, action, None, None))
        packed = []
        for index, (operation, value, then, otherwise) in enumerate(code):
            jumps = [0 if one is None else labels[one] - index - 1 for one in (then, otherwise)]
            if max(jumps) > _MAX_JUMP:
                raise NotExpressibleError("a jump is too long")
            packed.append(_INSTRUCTION.pack(operation, *jumps, value))
        return b"".join(packed)
