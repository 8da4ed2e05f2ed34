"""A process lends its memory to its successor. Real processes: each test runs a script of its own."""

import subprocess
import sys

import pytest

from nsupervisor.keeper.native import handoff
from tests.needs import ROOT

COMMON = """
import ctypes, errno, mmap, os, signal, sys
from nsupervisor.keeper.native import handoff as successor

LEND = sys.argv[1] == "lend"
assert successor.prepare()
told = successor.Told.from_buffer(mmap.mmap(-1, 8))
memory = []


def predecessor(before=lambda: None):
    pid = os.fork()
    if pid == 0:
        before()
        memory.append("mine")
        number = successor.succeed(int(os.environ.get("CGROUP", "-1")), told, LEND)
        if number < 0:
            print(errno.errorcode[-number], memory, flush=True)
            os._exit(7)
        after()
        os._exit(0)
    return pid


def ends():
    return [os.wait() for _ in range(2)]
"""


def script(text: str, how: str, **env: str) -> str:
    command = [sys.executable, "-c", COMMON + text, how]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=30)
    assert done.stderr == ""
    return done.stdout


HOW = pytest.mark.parametrize("how", ["lend", "copy"])


@HOW
def test_one_goes_in_and_another_comes_out(how: str) -> None:
    """With the caller's memory and descriptors, a child of its parent, with an exit status of its own."""
    text = """
def after():
    memory.append("still mine")
    print(memory, os.getpid() == told[0], os.getppid() == parent, flush=True)
    os._exit(3)

parent = os.getpid()
pid = predecessor()
statuses = dict(ends())
print(statuses.pop(pid), statuses == {told[0]: 3 << 8})
"""
    assert script(text, how) == "['mine', 'still mine'] True True\n0 True\n"


@HOW
def test_the_successor_may_execute_a_program(how: str) -> None:
    text = """
def after():
    os.execv("/bin/sh", ["sh", "-c", "echo hello; exit 5"])

pid = predecessor()
statuses = dict(ends())
print(statuses.pop(pid), list(statuses.values()) == [5 << 8])
"""
    assert script(text, how) == "hello\n0 True\n"


def test_a_successor_that_is_killed_half_way_leaves_nobody_on_a_spoiled_stack() -> None:
    """Its predecessor ends in order, whatever has become of its stack."""
    text = """
def after():
    def deeper(n):
        text = str(n) * 100
        if n:
            deeper(n - 1)
        ctypes.memset(ctypes.create_string_buffer(1000), n, 1000)
        os.kill(os.getpid(), signal.SIGKILL)
    deeper(50)

for _ in range(20):
    pid = predecessor()
    statuses = dict(ends())
    assert statuses.pop(pid) == 0 and list(statuses.values()) == [9], statuses
print("well")
"""
    assert script(text, "lend") == "well\n"


def test_a_predecessor_that_is_killed_leaves_the_memory_to_its_successor() -> None:
    text = """
def after():
    os.kill(before, signal.SIGKILL)
    memory.extend(range(100_000))
    print(len(memory), flush=True)

def note():
    global before
    before = os.getpid()

pid = predecessor(note)
print(dict(ends())[pid])
"""
    assert script(text, "lend") == "100001\n9\n"


@HOW
def test_where_there_can_be_no_successor_all_is_as_before(how: str) -> None:
    text = """
fd = os.open("/dev/null", os.O_RDONLY)
os.environ["CGROUP"] = str(fd)
pid = predecessor()
print(os.waitpid(pid, 0)[1] >> 8, told[0])
"""
    assert script(text, how) == "EBADF ['mine']\n7 0\n"


def test_without_instructions_for_this_processor_memory_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handoff, "_INSTRUCTIONS", {})
    monkeypatch.setattr(handoff, "_clone3_or_exit", None)
    assert not handoff.prepare()
