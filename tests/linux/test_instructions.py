"""Functions of system calls and jumps, made at run time."""

import ctypes
import errno
import os

import pytest

from nsupervisor.keeper.native.assembler import MACHINES, RESULT, At, Byte, Code, Function, Word

pytestmark = pytest.mark.skipif(os.uname().machine not in MACHINES, reason="needs machine: instructions for this one")

WRITE, CLOSE, GETPID, MMAP = 1, 3, 39, 9  # of x86-64


def function(code: Code) -> Function:
    made = Function()
    made.load(code.bytes())
    return made


def test_arguments_are_numbers_places_what_is_there_and_results() -> None:
    read, write = os.pipe()
    text, length, fd = At(0x10), Word(0x20), Byte(0x24)
    code = Code()
    code.call(WRITE, fd, text, 3)
    code.call(WRITE, write, text, RESULT)  # as many again
    code.call(WRITE, write, text, length)
    code.come_back()
    made = function(code)
    made.write(text, b"hello")
    made.write(length, (5).to_bytes(4, "little"))
    made.write(fd, bytes((write, 0xFF)))
    assert made.call() == 5
    assert os.read(read, 100) == b"helhelhello"
    assert made.address_of(text) == made.address + 4096 + 0x10
    os.close(read)
    os.close(write)


def test_six_arguments_some_of_them_above_32_bits() -> None:
    """One that is too large for a register's lower half, and the registers that are not numbered in a row."""
    wanted = 0x2345_0000_0000
    code = Code()
    code.call(MMAP, wanted, 4096, 0x3, 0x22 | 0x10_0000, 0xFFFF_FFFF, 0)  # private, anonymous, there and nowhere else
    code.come_back()
    made = function(code)
    made.call()
    ctypes.memset(wanted, 7, 4096)
    assert ctypes.string_at(wanted, 2) == b"\x07\x07"


@pytest.mark.parametrize(
    ("how", "less", "equal", "more"),
    [("<", 1, 0, 0), (">", 0, 0, 1), ("==", 0, 1, 0), ("!=", 1, 0, 1)],
)
def test_comparisons_have_signs(how: str, less: int, equal: int, more: int) -> None:
    for value, expected in ((-5, less), (7, equal), (8, more)):
        read, write = os.pipe()
        code = Code()
        code.jump_if(Word(0), how, 7, "yes")
        code.jump("no")
        code.label("yes")
        code.call(WRITE, write, At(0), 1)
        code.label("no")
        code.come_back()
        made = function(code)
        made.write(At(0), (value & 0xFFFF_FFFF).to_bytes(4, "little"))
        made.call()
        os.close(write)
        assert len(os.read(read, 10)) == expected, (value, how)
        os.close(read)


def test_a_result_is_compared_with_numbers_and_with_what_is_in_a_place() -> None:
    mine, bits = Word(0), Byte(8)
    code = Code()
    code.call(CLOSE, 0xFFFF_FFFF)
    code.jump_if(RESULT, "<", 0, "failed")
    code.come_back()
    code.label("failed")
    code.call(GETPID)
    code.jump_if(RESULT, "==", mine, "mine")
    code.come_back()
    code.label("mine")
    code.set_bits(bits, 0x81)
    code.jump_if(bits, "==", 0x85, "set")
    code.come_back()
    code.label("set")
    code.call(CLOSE, 0xFFFF_FFFF)
    code.come_back()
    made = function(code)
    made.write(mine, os.getpid().to_bytes(4, "little"))
    made.write(bits, b"\x04")
    assert ctypes.c_int(made.call()).value == -errno.EBADF
