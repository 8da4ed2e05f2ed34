"""`nsupervisor shell`: the engine behind it, on a terminal and without one."""

import os
import pty
import select
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from nsupervisor.cli import namespace_shell as engine
from tests.cli.command import nsupervisor
from tests.needs import NOBODY, needs
from tests.timing import deadline

ROOT = str(Path(engine.__file__).parents[2])


def others_may_use(path: str) -> bool:
    return all(part.stat().st_mode & 0o001 for part in (Path(path).resolve(), *Path(path).resolve().parents))


def python_for_others() -> str:
    """An interpreter that users other than root can execute: this one may be in root's home."""
    for path in (sys.executable, "/usr/bin/python3"):
        check = [path, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
        if Path(path).exists() and others_may_use(path) and subprocess.run(check, check=False).returncode == 0:
            return path
    return ""


def command(namespaces: str, *argv: str, options: str = "", python: str = sys.executable) -> list[str]:
    script = (
        f"import sys; sys.path.append({ROOT!r}); from nsupervisor.cli.namespace_shell import run_in_namespaces; "
        f"sys.exit(run_in_namespaces({namespaces.split()!r}, sys.argv[1:]{options}))"
    )
    return [python, "-I", "-S", "-c", script, *argv]


def run(namespaces: str, *argv: str, options: str = "", user: int | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(namespaces, *argv, options=options, python=sys.executable if user is None else python_for_others()),
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        timeout=deadline(30),
        user=user,
    )


KINDS = pytest.mark.parametrize("namespaces", ["", "uts ipc", "pid", "pid uts network user"])


@needs("root", "netns")
@KINDS
def test_status_of_the_program_is_handed_on(namespaces: str) -> None:
    assert run(namespaces, "sh", "-c", "exit 3").returncode == 3
    assert run(namespaces, "sh", "-c", "exit 255").returncode == 255
    # Not by $$, since a PID 1 can't be killed by itself, which is why there is an init.
    assert run(namespaces, "sh", "-c", "kill -KILL $$").returncode == 137
    assert run(namespaces, "sh", "-c", "kill -SEGV $$").returncode == 139


@needs("root")
def test_a_new_pid_namespace_has_its_own_proc_and_an_init() -> None:
    done = run("pid uts", "sh", "-c", "hostname; echo $$; ls -d /proc/[0-9]* | wc -l", options=", hostname='box'")
    name, pid, count = done.stdout.split()
    assert (name, pid) == ("box", "2")
    assert int(count) <= 4


@needs("root")
def test_nothing_is_new_that_was_not_asked_for() -> None:
    done = run("uts", "sh", "-c", "readlink /proc/self/ns/*")
    here = {os.readlink(f"/proc/self/ns/{name}") for name in os.listdir("/proc/self/ns")}
    assert len(set(done.stdout.split()) - here) == 1


@pytest.mark.parametrize(
    ("namespaces", "argv", "options", "code", "message"),
    [
        ("", ["no-such-program"], "", 127, "cannot execute no-such-program: No such file or directory (searched PATH="),
        ("", ["/etc/passwd"], "", 126, "cannot execute /etc/passwd: Permission denied"),
        ("net", ["true"], "", 2, "namespaces: no namespace is called net"),
        ("", ["true"], ", hostname='x'", 2, "hostname needs a new uts namespace"),
    ],
)
def test_messages_and_exit_codes(namespaces: str, argv: list[str], options: str, code: int, message: str) -> None:
    done = run(namespaces, *argv, options=options)
    assert done.returncode == code
    assert done.stderr.startswith(f"nsupervisor shell: {message}")


@needs("root", "unprivileged_userns")
@pytest.mark.skipif(not (python_for_others() and others_may_use(ROOT)), reason="other users can't run what is here")
def test_unprivileged_users_get_a_user_namespace_or_exit_status_4() -> None:
    done = run("pid uts", "sh", "-c", "id -u; hostname", options=", hostname='box'", user=NOBODY)
    assert done.stdout.split() == ["0", "box"]
    done = run("uts", "true", options=", map_root_user=False", user=NOBODY)
    assert done.returncode == 4
    assert "cannot start a process with uts namespaces: Operation not permitted" in done.stderr
    done = run("uts user", "id", "-u", options=", map_root_user=False", user=NOBODY)
    assert done.stdout.split() == [str(NOBODY)]


@needs("root")
@pytest.mark.parametrize("namespaces", ["uts", "pid"])
def test_sigterm_is_passed_on(namespaces: str) -> None:
    script = """
import signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
print("ready", flush=True)
signal.sigwait({signal.SIGTERM})
print("got it")
sys.exit(9)
"""
    argv = command(namespaces, sys.executable, "-I", "-S", "-c", script)
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == "got it\n"
        assert process.wait() == 9


@pytest.mark.fault("F8")
@needs("root")
@pytest.mark.parametrize("namespaces", ["uts", "pid"])
@pytest.mark.parametrize(
    "signum", [signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGINT, signal.SIGQUIT, signal.SIGRTMIN + 1]
)
def test_each_signal_from_outside_ends_the_program_and_not_the_command(namespaces: str, signum: int) -> None:
    """SIGUSR1 ended the command, and the program ran on; SIGINT and SIGQUIT had no effect."""
    argv = command(namespaces, "sh", "-c", "ulimit -c 0; echo ready; exec sleep 1000")
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signum)
        assert process.stdout.read() == ""
        assert process.wait() == 128 + signum


@pytest.mark.fault("F9")
@needs("root")
@pytest.mark.parametrize("namespaces", ["uts", "pid"])
def test_the_program_has_the_signal_mask_and_the_ignored_signals_of_the_caller(namespaces: str) -> None:
    def prepare() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, {signal.SIGUSR1, signal.SIGTTIN, signal.SIGRTMIN})
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)

    argv = command(namespaces, "grep", "-E", "Sig(Blk|Ign)", "/proc/self/status")
    done = subprocess.run(argv, capture_output=True, text=True, check=False, preexec_fn=prepare)
    assert done.returncode == 0, done.stderr
    masks = [int(line.split()[1], 16) for line in done.stdout.splitlines()]
    assert masks[0] == sum(1 << number - 1 for number in (signal.SIGUSR1, signal.SIGTTIN, signal.SIGRTMIN))
    assert masks[1] & 1 << signal.SIGCHLD - 1
    assert masks[1] & 1 << signal.SIGTTOU - 1


@pytest.mark.fault("F9")
@needs("root")
def test_the_init_keeps_no_directory_busy_and_the_program_stays_in_it(tmp_path: Path) -> None:
    argv = command("pid", "sh", "-c", "readlink /proc/1/cwd; pwd; ls /proc/1/fd | wc -l; cat /proc/1/cmdline")
    done = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=tmp_path)
    cwd, own, count, title = done.stdout.splitlines()
    assert (cwd, own) == ("/", str(tmp_path))
    assert int(count) <= 2  # and its order, until it has read it
    assert title.startswith("nsupervisor: init")


@needs("root")
def test_a_program_could_be_executed_before_its_init_was() -> None:
    """It found the command in place of the init, in its own directory. Here the init takes its time."""
    late = "import time; from nsupervisor.cli import namespace_shell as engine; become_init = engine._become_init; "
    late += "engine._become_init = lambda *descriptors: (time.sleep(0.3), become_init(*descriptors)); "
    python, *options, script, name = command("pid", "cat")
    script = script.replace("from nsupervisor", f"{late}from nsupervisor", 1)
    argv = [python, *options, script, name, "/proc/1/cmdline"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=deadline(30))
    assert done.stdout.startswith("nsupervisor: init"), done


@needs("root")
def test_what_the_program_leaves_gets_sigterm() -> None:
    script = (
        "mkfifo $1; (trap 'echo saved; exit' TERM; echo > $1; while :; do sleep 0.01; done) & read line < $1; exit 3"
    )
    with tempfile.TemporaryDirectory() as directory:
        done = run("pid", "sh", "-c", script, "sh", f"{directory}/fifo")
    assert (done.returncode, done.stdout) == (3, "saved\n")


class Terminal:
    """A pseudo-terminal with a process in its foreground."""

    def __init__(self, argv: list[str]) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.environ["PS1"] = "$ "
            os.execv(argv[0], argv)
        self.seen = ""

    def expect(self, text: str) -> None:
        limit = time.monotonic() + deadline(20)
        while text not in self.seen:
            assert time.monotonic() < limit, f"no {text!r} in {self.seen!r}"
            if select.select([self.fd], [], [], 0.1)[0]:
                try:
                    self.seen += os.read(self.fd, 4096).decode()
                except OSError:  # hung up
                    assert text in self.seen, self.seen
        self.seen = self.seen.partition(text)[2]

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def status(self) -> int:
        _, status = os.waitpid(self.pid, 0)
        self.pid = 0
        return os.waitstatus_to_exitcode(status)

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)  # which hangs up, so that nothing survives a test that fails
        if self.pid:
            os.waitpid(self.pid, 0)


@pytest.mark.fault("F12")
@needs("root", "program:bash")
@pytest.mark.parametrize("namespaces", ["uts", "pid uts"])
def test_job_control_works(namespaces: str) -> None:
    with Terminal(command(namespaces, "bash", "--norc", "--noprofile", "-i")) as terminal:
        terminal.expect("$ ")
        terminal.type("sleep 1000; echo stopped-$((1+1))\n")
        terminal.expect("stopped-$((1+1))")
        # The sleep is in the foreground now, or will be: a key pressed before is kept by the terminal.
        wait_for_foreground(terminal, "sleep")
        terminal.type("\x1a")
        terminal.expect("Stopped")
        terminal.expect("stopped-2")
        terminal.type("jobs; fg\n")
        wait_for_foreground(terminal, "sleep")
        terminal.type("\x03")
        terminal.type("echo status-$?; exit 6\n")
        terminal.expect("status-130")
        assert terminal.status() == 6


@pytest.mark.fault("F12")
@needs("root", "program:bash")
@pytest.mark.parametrize("namespaces", ["uts", "pid uts"])
def test_it_is_a_job_that_can_be_suspended_and_resumed(namespaces: str, tmp_path: Path) -> None:
    """Ctrl-Z in the shell that started it stops the command and the program; fg lets both go on."""
    program = tmp_path / "program"
    program.write_text('echo "waiting as $PPID"; read line; echo "read $line"; exit 7\n')
    with Terminal(["/bin/bash", "--norc", "--noprofile", "-i"]) as terminal:
        terminal.expect("$ ")
        terminal.type(f"{shlex.join(command(namespaces, 'sh', str(program)))}\n")
        terminal.expect("waiting as ")
        group = os.tcgetpgrp(terminal.fd)
        # The command and the program. An init only waits for the program, and cannot be stopped: it is a process 1.
        members = [pid for pid in process_group(group) if not is_init(pid)]
        assert len(members) == 2
        assert group != terminal.pid
        terminal.type("\x1a")
        terminal.expect("Stopped")
        terminal.expect("$ ")
        for pid in members:
            wait_until_stopped(pid)
        assert os.tcgetpgrp(terminal.fd) == terminal.pid
        terminal.type("fg\n")
        terminal.expect("fg")
        wait_for_foreground_group(terminal, group)
        terminal.type("hello\n")
        terminal.expect("read hello")
        terminal.expect("$ ")
        terminal.type("exit $?\n")
        assert terminal.status() == 7


def process_group(group: int) -> list[int]:
    """Return the processes in a process group."""
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    return [pid for pid in pids if process_field(pid, 2) == str(group)]


def is_init(pid: int) -> bool:
    return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"nsupervisor: init")


def process_state(pid: int) -> str:
    """Return the state of a process: "T" if it is stopped by a signal; "" if it has ended."""
    return process_field(pid, 0)


def wait_until_stopped(pid: int) -> None:
    """Wait until a signal has stopped a process. The shell says so when the first process of its job has stopped;
    another one stops when it next gets the CPU."""
    limit = time.monotonic() + deadline(20)
    while (state := process_state(pid)) != "T":
        assert state, "the process has ended"
        assert time.monotonic() < limit, f"the process was never stopped; its state is {state}"
        time.sleep(0.005)


def process_field(pid: int, number: int) -> str:
    """Return a field of /proc/PID/stat after the name: 0 is the state, 2 the process group; proc(5)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[number]
    except OSError:
        return ""


def wait_for_foreground_group(terminal: Terminal, group: int) -> None:
    limit = time.monotonic() + deadline(20)
    while os.tcgetpgrp(terminal.fd) != group:
        assert time.monotonic() < limit, f"it never came to the foreground; {terminal.seen!r}"
        time.sleep(0.005)


def wait_for_foreground(terminal: Terminal, name: str) -> None:
    limit = time.monotonic() + deadline(20)
    while True:
        try:
            group = os.tcgetpgrp(terminal.fd)
            if Path(f"/proc/{group}/comm").read_text().strip() == name:
                return
        except OSError:
            pass
        assert time.monotonic() < limit, f"{name} never came to the foreground; {terminal.seen!r}"
        time.sleep(0.005)


@pytest.mark.fault("B10")
@pytest.mark.parametrize("name", [".foo", "foo.-x", "foo..x", "x" * 65])
def test_a_name_that_is_none_was_made_the_host_name(name: str) -> None:
    done = nsupervisor("shell", "--hostname", name, "true")
    assert done.returncode == 2
    assert f'Invalid value for --hostname: "{name}" is not a host name; write at most 64' in done.stderr


@needs("root")
def test_ctrl_c_reaches_the_program_once() -> None:
    """The init shares the terminal with the program, so what it gets from there must not be passed on again."""
    script = """
import os, signal
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGUSR1})
print("ready", flush=True)
first = signal.sigwait({signal.SIGINT})
os.kill(1, signal.SIGUSR1)  # the init takes signals in the order of their numbers, so a second SIGINT would be first
both = {signal.SIGINT, signal.SIGUSR1}
print("first", int(first), "then", int(signal.sigwait(both)), flush=True)
"""
    with Terminal(command("pid", sys.executable, "-I", "-S", "-c", script)) as terminal:
        terminal.expect("ready")
        terminal.type("\x03")
        terminal.expect(f"first 2 then {signal.SIGUSR1.value}")
        assert terminal.status() == 0
