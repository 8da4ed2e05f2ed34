"""The native init by itself: started without a keeper, with a program of the test's choice."""

import ctypes
import fcntl
import os
import select
import signal
import socket
import struct
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nsupervisor.keeper import native
from nsupervisor.keeper.native import EXITS, ORDER, STARTED, STATUS, Clones
from tests.needs import needs
from tests.timing import deadline

pytestmark = needs("root")

CREDENTIALS = struct.Struct("3i")
NEW_USER, NEW_PID, NEW_MOUNT = 0x1000_0000, 0x2000_0000, 0x0002_0000
ORDER_WRITER = 10
FORWARDED = sorted(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD})


EXECUTABLE: list[int] = []


@pytest.fixture(scope="session", autouse=True)
def _executable() -> Iterator[None]:
    EXECUTABLE.append(native.open_init())
    yield
    os.close(EXECUTABLE.pop())


class Init:
    """An init as a child of this process, from its birth to its end."""

    def __init__(
        self,
        program: Callable[[], None],
        *,
        flags: int = 0,
        maps: bool = False,
        fill_status_channel: bool = False,
        **order: int,
    ) -> None:
        """`program` runs as the init's program and must end the process, for instance with an exec."""
        self.status, status_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if fill_status_channel:
            _fill(status_end)
        started, started_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        go, go_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self.status, started, go):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            end.settimeout(deadline(20))
        order_reader, order_writer = os.pipe()
        zygote = os.fork()
        if zygote == 0:
            try:
                ends = (started_end.fileno(), status_end.fileno(), order_reader, order_writer, go_end.fileno())
                _serve(ends, EXECUTABLE[0], program, flags | NEW_PID, order, maps)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(99)
        for fd in (order_reader, order_writer):
            os.close(fd)
        for end in (status_end, started_end, go_end):
            end.close()
        if maps:
            _, ancillary, _, _ = go.recvmsg(1, socket.CMSG_SPACE(CREDENTIALS.size))
            standby = CREDENTIALS.unpack(ancillary[0][2])[0]
            Path(f"/proc/{standby}/setgroups").write_text("deny")
            for file in ("uid_map", "gid_map"):
                Path(f"/proc/{standby}/{file}").write_text("0 100000 1000")
        message, ancillary, _, _ = started.recvmsg(4, socket.CMSG_SPACE(CREDENTIALS.size))
        assert message == native.STARTED_MESSAGE
        self.pid: int = CREDENTIALS.unpack(ancillary[0][2])[0]
        go.send(b"g")
        go.close()
        started.close()
        assert os.waitpid(zygote, 0) == (zygote, 0)

    def report(self) -> int:
        """Wait for the program's wait status, from this init."""
        data, ancillary, _, _ = self.status.recvmsg(100, socket.CMSG_SPACE(CREDENTIALS.size))
        assert CREDENTIALS.unpack(ancillary[0][2])[0] == self.pid
        return int(STATUS.unpack(data)[0])

    def wait(self) -> int:
        """Wait for the init's own end; its exit code."""
        pidfd = os.pidfd_open(self.pid)
        try:
            assert select.select([pidfd], [], [], deadline(20))[0], "the init has not ended"
        finally:
            os.close(pidfd)
        _, status = os.waitpid(self.pid, 0)
        return os.waitstatus_to_exitcode(status)

    def wait_order_read(self) -> None:
        """Wait until it has nothing open but its status channel, as it looks after the program from then on."""
        limit = time.monotonic() + deadline(20)
        while os.listdir(f"/proc/{self.pid}/fd") != ["3"]:
            assert time.monotonic() < limit
            time.sleep(0.001)

    def read(self, file: str) -> str:
        return Path(f"/proc/{self.pid}/{file}").read_text()

    def end(self) -> None:
        self.status.close()
        try:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass


def _fill(end: socket.socket) -> None:
    end.setblocking(False)
    try:
        while True:
            end.send(STATUS.pack(-1))
    except BlockingIOError:
        end.setblocking(True)


def _serve(
    ends: tuple[int, ...],
    executable: int,
    program: Callable[[], None],
    flags: int,
    order: dict[str, int],
    in_user_namespace: bool,
) -> None:
    """In the process that makes the init."""
    signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
    high = [os.dup(os.dup2(end, 100 + index)) for index, end in enumerate(ends)]  # out of the way of the places
    clones = Clones()
    for fd, place in zip(high[:4], (STARTED, EXITS, ORDER, ORDER_WRITER), strict=True):
        os.dup2(fd, place, inheritable=False)
    pid = clones.start_init(flags, executable)
    if pid:
        os._exit(0 if pid > 0 else -pid)
    go = socket.socket(fileno=high[4])
    if in_user_namespace:
        go.send(b"s")
    go.recv(1)
    for fd in (STARTED, EXITS, ORDER):
        os.close(fd)
    if clones.hand_over(-1):
        os._exit(98)
    if in_user_namespace:
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
    if program is not no_order:
        os.write(ORDER_WRITER, native.order(os.getpid(), "nsupervisor: init web@2", **order))
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    program()


def no_order() -> None:
    """A setup that fails."""
    os._exit(125)


def execute(*argv: str) -> Callable[[], None]:
    return lambda: os.execvp(argv[0], argv)


def python(script: str, *argv: str) -> Callable[[], None]:
    return execute(sys.executable, "-I", "-S", "-c", script, *argv)


def inline(script: str, *argv: str) -> Callable[[], None]:
    """Without an exec, as another user may not be allowed to execute this interpreter."""

    def program() -> None:
        sys.argv = ["-c", *argv]
        exec(script, {})
        os._exit(0)

    return program


@pytest.fixture
def start() -> Iterator[Callable[..., Init]]:
    inits = []

    def start(*args: object, **options: object) -> Init:
        inits.append(Init(*args, **options))
        return inits[-1]

    yield start
    for init in inits:
        init.end()


@pytest.fixture
def lines(tmp_path: Path) -> Iterator["Lines"]:
    reader = Lines(tmp_path / "fifo")
    yield reader
    os.close(reader.fd)


@pytest.fixture
def gate(tmp_path: Path) -> Iterator["Lines"]:
    """A FIFO that holds up a program until `open` is called."""
    gate = Lines(tmp_path / "gate")
    yield gate
    os.close(gate.fd)


class Lines:
    """What programs write to a FIFO, line by line."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path = str(path)
        self.fd = os.open(path, os.O_RDWR)
        self._rest = b""

    def open(self) -> None:
        os.write(self.fd, b"go\n")

    def next(self) -> str:
        while b"\n" not in self._rest:
            assert select.select([self.fd], [], [], deadline(20))[0], "no line"
            self._rest += os.read(self.fd, 65536)
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode()


# ---- status


@pytest.mark.parametrize("code", [0, 1, 2, 127, 128, 254, 255])
def test_an_exit_code_is_reported_and_is_the_inits_own(start: Callable[..., Init], code: int) -> None:
    init = start(execute("sh", "-c", f"exit {code}"))
    assert init.report() == code << 8
    assert init.wait() == code


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL, signal.SIGHUP, signal.SIGRTMIN + 3])
def test_a_death_by_signal_is_reported(start: Callable[..., Init], signum: int) -> None:
    init = start(python(f"import os; os.kill(os.getpid(), {int(signum)})"))
    assert init.report() == signum
    assert init.wait() == 128 + signum


def test_a_core_dump_is_part_of_the_status(start: Callable[..., Init], tmp_path: Path) -> None:
    if Path("/proc/sys/kernel/core_pattern").read_text().startswith("|"):
        pytest.skip("needs a core_pattern that writes a file")
    script = (
        "import os,resource,sys; os.chdir(sys.argv[1]); resource.setrlimit(resource.RLIMIT_CORE,(-1,-1)); os.abort()"
    )
    status = start(python(script, str(tmp_path))).report()
    assert (os.WTERMSIG(status), os.WCOREDUMP(status)) == (signal.SIGABRT, True)


def test_a_setup_that_ends_without_an_order_is_reported(start: Callable[..., Init]) -> None:
    init = start(no_order)
    assert init.report() == 125 << 8
    assert init.wait() == 125


def test_a_program_that_has_ended_before_the_order_is_read_is_reported(start: Callable[..., Init]) -> None:
    for _ in range(20):
        init = start(lambda: os._exit(7))
        assert init.report() == 7 << 8
        assert init.wait() == 7


def test_without_a_reader_of_the_status_the_init_ends_as_the_program(start: Callable[..., Init], gate: Lines) -> None:
    """It must not die of SIGPIPE, or the exit code would be lost with the message."""
    init = start(execute("sh", "-c", f"read _ < {gate.path}; exit 9"))
    init.status.close()
    gate.open()
    assert init.wait() == 9


def test_a_full_status_channel_delays_the_report_and_loses_nothing(start: Callable[..., Init]) -> None:
    """The keeper may be stopped while many programs end."""
    init = start(lambda: os._exit(3), fill_status_channel=True)
    filler, report = STATUS.pack(-1), STATUS.pack(3 << 8)
    while (message := init.status.recv(100)) == filler:
        pass
    assert message == report
    assert init.wait() == 3


# ---- signals

RECORDER = f"""
import os, signal, sys
signals = {[int(signum) for signum in FORWARDED]}
signal.pthread_sigmask(signal.SIG_BLOCK, signals)
out = os.open(sys.argv[1], os.O_WRONLY)
os.write(out, b"ready\\n")
while True:
    info = signal.sigwaitinfo(signals)
    os.write(out, b"%d %d\\n" % (info.si_signo, info.si_code))
"""


def test_every_signal_is_forwarded(start: Callable[..., Init], lines: Lines) -> None:
    init = start(python(RECORDER, lines.path))
    assert lines.next() == "ready"
    for signum in FORWARDED:
        os.kill(init.pid, signum)
        assert lines.next().split()[0] == str(int(signum))


def test_queued_realtime_signals_arrive_all_and_as_queued(start: Callable[..., Init], lines: Lines) -> None:
    init = start(python(RECORDER, lines.path))
    assert lines.next() == "ready"
    queue = ctypes.CDLL(None).sigqueue
    queue.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_void_p)
    for _ in range(100):
        assert queue(init.pid, signal.SIGRTMIN + 5, 42) == 0
    assert {lines.next() for _ in range(100)} == {f"{signal.SIGRTMIN + 5} -1"}


def test_signals_before_the_program_wait_for_it(start: Callable[..., Init], gate: Lines) -> None:
    def program() -> None:
        with open(gate.path) as file:
            file.readline()
        execute("sleep", "1000")()

    init = start(program)
    os.kill(init.pid, signal.SIGTERM)
    gate.open()
    assert init.report() == signal.SIGTERM


def test_a_signal_from_inside_the_namespace_is_forwarded(start: Callable[..., Init], lines: Lines) -> None:
    script = (
        f"trap 'echo USR1 > {lines.path}' USR1; echo ready > {lines.path}; kill -USR1 1; while :; do sleep 0.01; done"
    )
    start(execute("sh", "-c", script))
    assert [lines.next(), lines.next()] == ["ready", "USR1"]


def test_the_program_starts_with_the_mask_of_its_process(start: Callable[..., Init], lines: Lines) -> None:
    def program() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, [signal.SIGUSR2])
        os.dup2(os.open(lines.path, os.O_WRONLY), 1)
        execute("grep", "SigBlk", "/proc/self/status")()

    start(program)
    assert int(lines.next().split()[1], 16) == 1 << signal.SIGUSR2 - 1


# ---- other processes

ORPHANS = """
import os, sys
read, write = os.pipe()
for _ in range(50):
    if os.fork() == 0:
        if os.fork() == 0:
            os.write(write, b"%d " % os.getpid())
            os._exit(3)
        os._exit(0)
    os.wait()
os.close(write)
orphans = open(read).read().split()  # the end comes when all of them have ended
while any(os.kill(int(pid), 0) is None for pid in orphans if alive(pid)):
    pass
print(len(orphans), file=open(sys.argv[1], "w"))
""".replace(
    "import os, sys\n",
    "import os, sys\n"
    "def alive(pid):\n"
    "    try:\n        os.kill(int(pid), 0)\n    except ProcessLookupError:\n        return False\n    return True\n",
)


def test_orphans_are_reaped(start: Callable[..., Init], lines: Lines) -> None:
    init = start(python(ORPHANS, lines.path))
    assert lines.next() == "50"
    assert init.wait() == 0


SAVER = """
import os, signal, sys
out = os.open(sys.argv[1], os.O_WRONLY)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # a signal just before pause(2) would be waited for forever
os.write(out, b"ready\\n")
signal.sigwait({signal.SIGTERM})
os.write(out, b"saved\\n")
"""


def leaving(script: str, path: str) -> Callable[[], None]:
    """A program that exits with 4 once its child has written its first line."""

    def program() -> None:
        read, write = os.pipe()
        os.set_inheritable(write, True)
        if os.fork() == 0:
            os.close(read)
            python(script, f"/dev/fd/{write}", path)()
        os.close(write)
        os.read(read, 100)
        os._exit(4)

    return program


@pytest.mark.fault("B2")
def test_what_the_program_leaves_gets_the_signal_and_its_time(start: Callable[..., Init], lines: Lines) -> None:
    """Process 1 used to exit at once, and the kernel killed a server that saves its data on SIGTERM."""
    script = SAVER.replace("sys.argv[1]", "sys.argv[2]").replace(
        'os.write(out, b"ready\\n")', 'os.write(os.open(sys.argv[1], os.O_WRONLY), b"ready\\n")'
    )
    init = start(leaving(script, lines.path), signal=signal.SIGTERM, grace_ms=600_000)
    assert init.report() == 4 << 8
    assert lines.next() == "saved"
    assert init.wait() == 4


def test_a_stopped_process_gets_the_signal_too(start: Callable[..., Init], lines: Lines) -> None:
    def program() -> None:
        child = os.fork()
        if child == 0:
            inline(
                SAVER.replace("signal.sigwait", "os.kill(os.getpid(), signal.SIGSTOP)\nsignal.sigwait"), lines.path
            )()
        os.waitpid(child, os.WUNTRACED)
        os._exit(4)

    init = start(program, signal=signal.SIGTERM, grace_ms=600_000)
    assert init.report() == 4 << 8
    assert [lines.next(), lines.next()] == ["ready", "saved"]
    assert init.wait() == 4


def test_what_ignores_the_signal_is_killed_when_its_time_is_up(start: Callable[..., Init]) -> None:
    ignoring = "signal.signal(15, signal.SIG_IGN)"
    script = f"import os,signal,sys; {ignoring}; os.write(os.open(sys.argv[1], 1), b'r'); signal.pause()"
    init = start(leaving(script, ""), signal=signal.SIGTERM, grace_ms=1)
    assert init.report() == 4 << 8
    assert init.wait() == 4


def test_without_a_signal_the_init_waits_for_what_is_left(start: Callable[..., Init], gate: Lines) -> None:
    """The supervisor ends it, as a part of the cgroup. The report does not wait."""
    script = "import os,signal,sys; os.write(os.open(sys.argv[1], 1), b'r'); open(sys.argv[2]).readline()"
    init = start(leaving(script, gate.path))
    assert init.report() == 4 << 8
    os.kill(init.pid, signal.SIGTERM)  # for a program that is no more
    assert os.waitpid(init.pid, os.WNOHANG) == (0, 0)
    gate.open()
    assert init.wait() == 4


# ---- what the init has, and what can be had from it


def test_it_holds_its_status_channel_and_nothing_else(start: Callable[..., Init], lines: Lines) -> None:
    init = start(execute("sh", "-c", f"echo > {lines.path}; sleep 1000"), flags=NEW_MOUNT)
    lines.next()
    init.wait_order_read()
    assert os.readlink(f"/proc/{init.pid}/cwd") == "/"
    assert init.read("cmdline").rstrip("\0") == "nsupervisor: init web@2"
    assert init.read("comm") == "nsupervisor-ini\n"
    assert init.read("environ") == ""


def test_its_private_memory_is_at_most_two_pages(start: Callable[..., Init], lines: Lines) -> None:
    init = start(execute("sh", "-c", f"echo > {lines.path}; sleep 1000"))
    lines.next()
    other = start(execute("sh", "-c", f"echo > {lines.path}; sleep 1000"))
    lines.next()
    for one in (init, other):
        one.wait_order_read()
        rollup = dict(line.split()[:2] for line in one.read("smaps_rollup").splitlines()[1:])
        print({key: rollup[key] for key in ("Rss:", "Pss:", "Private_Clean:", "Private_Dirty:")})
        assert int(rollup["Private_Clean:"]) + int(rollup["Private_Dirty:"]) <= 8 * (os.sysconf("SC_PAGESIZE") // 4096)


ATTACK = """
import ctypes, errno, os, sys
libc = ctypes.CDLL(None, use_errno=True)
results = []
def attempt(name, call):
    try:
        result = call()
    except OSError as error:
        results.append(f"{name}:{errno.errorcode[error.errno]}")
    else:
        results.append(f"{name}:{result}")
def system(*args):
    # Without c_long an int is 32 bits wide. The last of seven arguments is on the stack, where the other half of its
    # place is not defined: the flags of process_vm_readv were not 0 then (EINVAL), with Python 3.12.
    result = libc.syscall(*(ctypes.c_long(argument) if isinstance(argument, int) else argument for argument in args))
    if result < 0:
        raise OSError(ctypes.get_errno(), "")
    return "allowed"
PTRACE_ATTACH, PTRACE_SEIZE, READV, KCMP, GETFD, OPEN = 16, 0x4206, 310, 312, 438, 434
attempt("environ", lambda: open("/proc/1/environ").read())
attempt("mem", lambda: open("/proc/1/mem", "rb") and "allowed")
attempt("maps", lambda: open("/proc/1/maps").read())
attempt("exe", lambda: os.readlink("/proc/1/exe"))
attempt("fd", lambda: os.listdir("/proc/1/fd"))
attempt("seize", lambda: system(101, PTRACE_SEIZE, 1, 0, 0))
attempt("kcmp", lambda: system(KCMP, os.getpid(), 1, 1, 0, 0))
attempt("getfd", lambda: system(GETFD, os.pidfd_open(1), 3, 0))
buffer = ctypes.create_string_buffer(8)
vector = (ctypes.c_size_t * 2)(ctypes.addressof(buffer), 8)
remote = (ctypes.c_size_t * 2)(0x400000, 8)
attempt("readv", lambda: system(READV, 1, vector, 1, remote, 1, 0))
open(sys.argv[1], "w").write(" ".join(results) + "\\n")
"""


@pytest.mark.fault("A6")
@needs("userns")
def test_the_root_of_its_user_namespace_can_take_nothing_from_it(start: Callable[..., Init], lines: Lines) -> None:
    os.chmod(lines.path, 0o666)
    os.chmod(Path(lines.path).parent, 0o755)

    def program() -> None:
        _mount_proc()
        inline(ATTACK, f"/dev/fd/{writer}")()

    writer = fcntl.fcntl(lines.fd, fcntl.F_DUPFD, 200)  # above the numbers that `_serve` uses
    init = start(program, flags=NEW_USER | NEW_MOUNT, maps=True, is_user_root=1, is_group_root=1)
    results = dict(item.split(":") for item in lines.next().split(" "))
    os.close(writer)
    assert set(results.values()) <= {"EACCES", "EPERM"}, results
    assert len(results) == 9
    assert init.report() == 0


@needs("userns")
def test_in_a_user_namespace_it_is_root_and_may_signal_any_user(start: Callable[..., Init], lines: Lines) -> None:
    def program() -> None:
        recorder = RECORDER.replace("os.open(sys.argv[1], os.O_WRONLY)", "int(sys.argv[1])")
        os.setresuid(500, 500, 500)
        inline(recorder, str(writer))()

    # A free number above the ones that `_serve` uses: a fixed one may be in use by the tests before.
    writer = fcntl.fcntl(lines.fd, fcntl.F_DUPFD, 200)
    init = start(program, flags=NEW_USER | NEW_MOUNT, maps=True, is_user_root=1, is_group_root=1)
    os.close(writer)
    assert lines.next() == "ready"
    os.kill(init.pid, signal.SIGUSR1)
    assert lines.next().split()[0] == str(int(signal.SIGUSR1))
    uids = next(line for line in init.read("status").splitlines() if line.startswith("Uid:"))
    assert uids.split()[1:] == ["100000"] * 4


def _mount_proc() -> None:
    from nsupervisor.linux import mounts

    mounts.mount(None, "/", None, mounts.MS_REC | mounts.MS_PRIVATE)
    mounts.mount("proc", "/proc", "proc", 0)


TRACER = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
def ptrace(request, address, data):
    result = libc.ptrace(request, 1, address, data)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), f"ptrace {request:#x}")
    return result
out = os.open(sys.argv[1], os.O_WRONLY)
ptrace(0x4206, None, None)  # SEIZE
ptrace(0x4207, None, None)  # INTERRUPT
os.waitpid(1, 0x40000000)
registers = (ctypes.c_ulonglong * 27)()
ptrace(12, None, ctypes.addressof(registers))  # GETREGS
rip = registers[16] - 2  # the system call that was interrupted
answers = []
for number in (57, 56, 58, 59, 41):  # fork, clone, vfork, execve, socket
    changed = (ctypes.c_ulonglong * 27)(*registers)
    changed[16], changed[10], changed[15] = rip, number, 2**64 - 1
    changed[14] = changed[13] = changed[12] = 0
    ptrace(13, None, ctypes.addressof(changed))  # SETREGS
    ptrace(9, None, None)  # SINGLESTEP
    os.waitpid(1, 0x40000000)
    ptrace(12, None, ctypes.addressof(changed))
    answers.append(ctypes.c_longlong(changed[10]).value)
os.write(out, (" ".join(map(str, answers)) + "\\n").encode())
ptrace(13, None, ctypes.addressof(registers))
ptrace(17, None, None)  # DETACH
"""


@pytest.mark.fault("A6")
def test_not_even_a_tracer_makes_a_process_out_of_it(start: Callable[..., Init], lines: Lines) -> None:
    """Root of the host may trace it; but a process made there would be outside of the workload's cgroup."""
    if os.uname().machine != "x86_64":
        pytest.skip("needs the registers of x86-64")
    init = start(python(TRACER, lines.path))
    assert lines.next() == "-1 -1 -1 -1 -1"
    assert init.wait() == 0


@pytest.mark.fault("A6")
def test_a_message_is_known_by_its_sender(start: Callable[..., Init], lines: Lines) -> None:
    """A process that got hold of the channel can write to it, but the kernel says that it was not the init."""

    def program() -> None:
        os.write(78, STATUS.pack(0))
        execute("sh", "-c", f"echo > {lines.path}; sleep 1000")()

    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    os.dup2(theirs.fileno(), 78)
    init = start(program)
    os.close(78)
    with ours, theirs:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        lines.next()
        _, ancillary, _, _ = ours.recvmsg(4, socket.CMSG_SPACE(CREDENTIALS.size))
    assert CREDENTIALS.unpack(ancillary[0][2])[0] != init.pid


def test_the_program_of_the_init_cannot_be_overwritten() -> None:
    """Through /proc/1/exe, root in a workload could replace what every later init executes."""
    fd = native.open_init()
    try:
        assert os.stat(fd).st_mode & 0o777 == 0o111
        writable = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
        with pytest.raises(PermissionError):
            os.write(writable, b"x")
        with pytest.raises(PermissionError):
            os.ftruncate(writable, 0)
        os.close(writable)
    finally:
        os.close(fd)
