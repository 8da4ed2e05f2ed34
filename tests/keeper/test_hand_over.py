"""A process hands over to another one in its memory. Real processes: each test runs a script of its own."""

import subprocess
import sys

from tests.needs import ROOT

COMMON = """
import ctypes, errno, os, signal, sys
from nsupervisor.keeper.native import Clones

clones = Clones()
memory = []


def first(before=lambda: None):
    pid = os.fork()
    if pid == 0:
        before()
        memory.append("mine")
        number = clones.hand_over(int(os.environ.get("CGROUP", "-1")))
        if number < 0:
            print(errno.errorcode[-number], memory, flush=True)
            os._exit(7)
        after()
        os._exit(0)
    return pid


def ends():
    return [os.wait() for _ in range(2)]
"""


def script(text: str, **env: str) -> str:
    command = [sys.executable, "-c", COMMON + text]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=30)
    assert done.stderr == ""
    return done.stdout


def test_the_new_process_continues_in_the_memory() -> None:
    """With the caller's memory and descriptors, a child of its parent, with an exit status of its own."""
    text = """
def after():
    memory.append("still mine")
    print(memory, os.getpid() != pid_of_first, os.getppid() == parent, flush=True)
    os._exit(3)

def note():
    global pid_of_first
    pid_of_first = os.getpid()

parent = os.getpid()
pid = first(note)
statuses = dict(ends())
print(statuses.pop(pid), list(statuses.values()) == [3 << 8])
"""
    assert script(text) == "['mine', 'still mine'] True True\n0 True\n"


def test_the_new_process_may_execute_a_program() -> None:
    text = """
def after():
    os.execv("/bin/sh", ["sh", "-c", "echo hello; exit 5"])

pid = first()
statuses = dict(ends())
print(statuses.pop(pid), list(statuses.values()) == [5 << 8])
"""
    assert script(text) == "hello\n0 True\n"


def test_a_new_process_that_is_killed_half_way_leaves_no_process_on_a_spoiled_stack() -> None:
    """The first process ends in order, whatever has become of its stack."""
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
    pid = first()
    statuses = dict(ends())
    assert statuses.pop(pid) == 0 and list(statuses.values()) == [9], statuses
print("well")
"""
    assert script(text) == "well\n"


def test_a_killed_first_process_leaves_the_memory_to_the_new_one() -> None:
    text = """
def after():
    os.kill(before, signal.SIGKILL)
    memory.extend(range(100_000))
    print(len(memory), flush=True)

def note():
    global before
    before = os.getpid()

pid = first(note)
print(dict(ends())[pid])
"""
    assert script(text) == "100001\n9\n"


def test_if_there_is_no_new_process_all_is_as_before() -> None:
    text = """
fd = os.open("/dev/null", os.O_RDONLY)
os.environ["CGROUP"] = str(fd)
pid = first()
print(os.waitpid(pid, 0)[1] >> 8)
"""
    assert script(text) == "EBADF ['mine']\n7\n"
