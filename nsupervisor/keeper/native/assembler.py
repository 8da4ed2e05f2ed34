"""A function of nothing but system calls and jumps, as instructions of the processor, made at run time.

For the few places where Python cannot be: in a process that has next to no memory, or shares it with a process that
goes on. Such a function stands in a page of its own, and has a page of data behind it, which it finds relative to
itself. It uses no stack but for the way back to its caller.
"""

from __future__ import annotations

import ctypes
import mmap

from nsupervisor.linux import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

PAGE = mmap.PAGESIZE
MACHINES = ["x86_64"]
"""Whose processors understand what `Code` makes."""


class At:
    """A place in the page of data; as an argument: its address."""

    __slots__ = ("offset",)

    def __init__(self, offset: int) -> None:
        self.offset = offset


class Word(At):
    """The number of 32 bits in that place."""


class Byte(At):
    """The byte in that place."""


class Result:
    """What the latest system call came back with; an errno below 0 if it has failed."""


RESULT = Result()

_ARGUMENTS = (7, 6, 2, 10, 8, 9)  # rdi, rsi, rdx, r10, r8, r9: for system calls, syscall(2)
_JUMPS = {"==": b"\x0f\x84", "!=": b"\x0f\x85", "<": b"\x0f\x8c", ">": b"\x0f\x8f"}


class Code:
    """Statements, in their order. %r13 has the address of the data, %eax what the latest system call came back with."""

    def __init__(self) -> None:
        self._code = bytearray()
        self._labels: dict[str, int] = {}
        self._jumps: list[tuple[int, str]] = []
        self._add(b"\x41\x55")  # push %r13
        self._add(b"\x4c\x8d\x2d", _four(PAGE - 9))  # lea PAGE(this page), %r13

    def _add(self, *parts: bytes) -> None:
        for part in parts:
            self._code += part

    def label(self, name: str) -> None:
        """Here is where others jump to."""
        self._labels[name] = len(self._code)

    def call(self, number: int, *arguments: int | At | Result) -> None:
        """A system call by its number."""
        for register, argument in zip(_ARGUMENTS, arguments, strict=False):
            high, low = register >> 3, register & 7
            place = bytes((0x85 | low << 3,))  # …, offset(%r13)
            if isinstance(argument, Result):  # mov %eax, register
                self._add(bytes((0x40 | high, 0x89, 0xC0 | low)))
            elif isinstance(argument, Byte):  # movzbl offset(%r13), register
                self._add(bytes((0x41 | high << 2, 0x0F, 0xB6)), place, _four(argument.offset))
            elif isinstance(argument, Word):  # mov offset(%r13), register
                self._add(bytes((0x41 | high << 2, 0x8B)), place, _four(argument.offset))
            elif isinstance(argument, At):  # lea offset(%r13), register
                self._add(bytes((0x49 | high << 2, 0x8D)), place, _four(argument.offset))
            elif argument < 1 << 32:  # mov $argument, register
                self._add(bytes((0x40 | high, 0xB8 | low)), _four(argument))
            else:
                self._add(bytes((0x48 | high, 0xB8 | low)), argument.to_bytes(8, "little"))
        self._add(b"\xb8", _four(number), b"\x0f\x05")  # mov $number, %eax; syscall

    def set_bits(self, place: Byte, bits: int) -> None:
        """In a byte."""
        self._add(b"\x41\x80\x8d", _four(place.offset), bytes((bits,)))  # orb $bits, offset(%r13)

    def jump(self, label: str) -> None:
        """In any case."""
        self._add(b"\xe9")  # jmp label
        self._target(label)

    def jump_if(self, what: Result | Byte | Word, how: str, other: int | Word, label: str) -> None:
        """If it is "==", "!=", "<" or ">" (with a sign) than the other."""
        if isinstance(other, Word):
            assert isinstance(what, Result)
            self._add(b"\x41\x3b\x85", _four(other.offset))  # cmp offset(%r13), %eax
        elif isinstance(what, Result):
            self._add(b"\x3d", _four(other))  # cmp $other, %eax
        elif isinstance(what, Byte):
            self._add(b"\x41\x80\xbd", _four(what.offset), bytes((other,)))  # cmpb $other, offset(%r13)
        else:
            self._add(b"\x41\x81\xbd", _four(what.offset), _four(other))  # cmpl $other, offset(%r13)
        self._add(_JUMPS[how])
        self._target(label)

    def come_back(self) -> None:
        """To the caller, with what the latest system call came back with."""
        self._add(b"\x41\x5d\xc3")  # pop %r13; ret

    def _target(self, label: str) -> None:
        self._jumps.append((len(self._code), label))
        self._add(bytes(4))

    def bytes(self) -> bytes:
        """All of it."""
        for place, label in self._jumps:
            self._code[place : place + 4] = _four(self._labels[label] - (place + 4))
        assert len(self._code) <= PAGE
        return bytes(self._code)


def _four(number: int) -> bytes:
    return (number & 0xFFFF_FFFF).to_bytes(4, "little")


class Function:
    """A function in memory: a page of instructions and a page of data, of which whoever is forked has its own."""

    def __init__(self) -> None:
        """Without instructions yet."""
        self._pages = mmap.mmap(-1, 2 * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._pages))
        """Of both pages."""
        self.call: Callable[[], int] = ctypes.PYFUNCTYPE(ctypes.c_long)(self.address)

    def load(self, code: bytes) -> None:
        """Once. Raises OSError where no memory may become executable."""
        self._pages[: len(code)] = code
        executable = mmap.PROT_READ | mmap.PROT_EXEC
        if syscalls.libc.mprotect(ctypes.c_void_p(self.address), ctypes.c_size_t(PAGE), executable) != 0:
            raise syscalls.last_error("mprotect")

    def write(self, place: At, data: bytes) -> None:
        """Into the page of data."""
        start = PAGE + place.offset
        self._pages[start : start + len(data)] = data

    def address_of(self, place: At) -> int:
        """Of a place in the page of data."""
        return self.address + PAGE + place.offset
