"""`nsupervisor exec` against a real service: what the command is, its input and output, and when it ends."""

import hashlib
import json
import os
import pty
import secrets
import signal
import subprocess
import termios
from pathlib import Path
from typing import Any

import pytest
import trio

from nsupervisor.api import exec_frames as frames
from nsupervisor.api.client import Client, ClientError
from nsupervisor.service.control import EXECS_LIMIT
from tests.needs import needs
from tests.roots import make_root, open_directories
from tests.system.service import Service, service
from tests.timing import deadline

pytestmark = needs("root", "cgroup")

SLEEPS = ("[workload.web]", 'command = ["sleep", "1000"]', "timeout_stop_sec = 5", "restart_sec = 0")
WEB = "\n".join(SLEEPS)


def with_keys(*keys: str) -> str:
    return "\n".join((*SLEEPS, *keys))


async def run(it: Service, *arguments: str, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run `nsupervisor exec` to its end."""
    with trio.fail_after(deadline(30)):
        return await trio.run_process(
            [*it.client(), "exec", *arguments],
            stdin=data,
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            env={**os.environ, "NSUPERVISOR_SOCKET": str(it.directory / "run" / "api.sock")},
        )


async def begin(it: Service, *arguments: str, **streams: Any) -> trio.Process:
    """Start `nsupervisor exec`."""
    environment = {**os.environ, "NSUPERVISOR_SOCKET": str(it.directory / "run" / "api.sock"), "TERM": "dumb"}
    return await trio.lowlevel.open_process([*it.client(), "exec", *arguments], env=environment, **streams)


async def ended(process: trio.Process) -> int:
    with trio.fail_after(deadline(30)):
        return await process.wait()


@pytest.mark.parametrize(
    ("script", "status"),
    [("true", 0), ("exit 3", 3), ("exit 255", 255), ("kill -TERM $$", 143), ("kill -KILL $$", 137)],
)
async def test_the_exit_status_is_that_of_the_command(tmp_path: Path, script: str, status: int) -> None:
    async with service(tmp_path, WEB) as it:
        await it.pid("web")
        result = await run(it, "web", "--", "sh", "-c", f"echo out; echo err >&2; {script}")
    assert (result.returncode, result.stdout, result.stderr) == (status, b"out\n", b"err\n")


async def test_what_cannot_be_executed_is_as_in_a_shell(tmp_path: Path) -> None:
    async with service(tmp_path, WEB) as it:
        await it.pid("web")
        missing = await run(it, "web", "no-such-program")
        directory = await run(it, "web", "/etc")
        nowhere = await run(it, "-w", "/no/such", "web", "true")
        unknown = await run(it, "wbe", "true")
        refused = await run(it, "-u", "no-such-user", "web", "true")
    assert (missing.returncode, directory.returncode) == (127, 126)
    assert missing.stderr.startswith(b"web: cannot execute no-such-program: No such file or directory (searched PATH=")
    assert directory.stderr == b"web: cannot execute /etc: Permission denied\n"
    assert (nowhere.returncode, nowhere.stderr) == (1, b"web: cannot enter /no/such: No such file or directory\n")
    assert (unknown.returncode, unknown.stderr) == (2, b'no workload matches "wbe"; did you mean "web"?\n')
    assert refused.returncode == 1
    assert b'no user "no-such-user" on this host' in refused.stderr


FACTS = (
    "for n in cgroup ipc mnt net pid time user uts; do readlink /proc/self/ns/$n; done;"
    "grep -E '^(Uid|Gid|Groups|Umask|Cap|NoNewPrivs|Seccomp)' /proc/self/status;"
    "cat /proc/self/limits /proc/self/cgroup; nice; cat /proc/self/oom_score_adj; pwd;"
    "env | grep -v -e ^NOTIFY -e ^SHLVL -e ^_= | sort"
)


@pytest.mark.parametrize(
    "keys",
    [
        [],
        ['user = "nobody"', "nice = 4", "oom_score_adjust = 77", 'umask = "027"'],
        ['security = { profile = "strict" }'],
        ['security = { profile = "none", limit_nofile = "100:200" }', 'environment = { A = "b c" }'],
        ["namespaces = { user = true }"],
        ["namespaces = { network = true }", 'working_directory = "/tmp"'],
        ["namespaces = { pid = false, mount = false, ipc = false, uts = false, cgroup = false }"],
        ["init = false"],
    ],
)
async def test_a_command_is_what_the_program_is(tmp_path: Path, keys: list[str]) -> None:
    """Also that it is in both hierarchies, as /proc/self/cgroup has a line for each."""
    script = f"{FACTS} > /dev/stdout; exec sleep 1000"
    toml = "\n".join(["[workload.web]", f"command = {json.dumps(['sh', '-c', script])}", *keys])
    async with service(tmp_path, toml) as it:
        await it.pid("web")
        result = await run(it, "web", "--", "sh", "-c", FACTS)
        assert (result.returncode, result.stderr) == (0, b"")
        lines = result.stdout.decode().splitlines()
        await it.heard(lambda: len(output(it)) >= len(lines))
        assert lines == output(it)


def output(it: Service) -> list[str]:
    return [record["message"] for record in it.records if record["event"] == "output"]


async def test_another_user_directory_and_variables(tmp_path: Path) -> None:
    async with service(tmp_path, WEB) as it:
        await it.pid("web")
        script = 'id -un; echo "$HOME $A $PATH"; pwd; grep ^NoNewPrivs /proc/self/status'
        result = await run(
            it, "-u", "nobody", "-e", "A=1=2", "-e", "PATH=/bin", "-w", "/etc", "web", "/bin/sh", "-c", script
        )
    assert result.stdout == b"nobody\n/nonexistent 1=2 /bin\n/etc\nNoNewPrivs:\t1\n"


async def test_a_command_is_in_the_root_of_the_program(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root")
    open_directories(root)
    toml = f'[workload.web]\ncommand = ["sleep", "1000"]\nroot = {{ path = "{root}" }}\n'
    async with service(tmp_path, toml) as it:
        await it.pid("web")
        result = await run(
            it, "-u", "site", "-w", "/tmp", "web", "--", "sh", "-c", "cat /etc/of-the-root; pwd; id -un; ls /"
        )
        missing = await run(it, "web", "python3")
    assert (result.returncode, result.stdout.decode().split()[:5]) == (0, ["of", "the", "root", "/tmp", "site"])
    assert "work" not in result.stdout.decode().split()
    assert missing.returncode == 127


async def test_ten_megabytes_come_back_unchanged(tmp_path: Path) -> None:
    data = os.urandom(10 << 20)
    async with service(tmp_path, WEB) as it:
        await it.pid("web")
        result = await run(it, "-i", "web", "cat", data=data)
        assert (result.returncode, hashlib.sha256(result.stdout).digest()) == (0, hashlib.sha256(data).digest())
        unread = await run(it, "-i", "web", "true", data=data)
        without = await run(it, "web", "cat", data=b"not passed on")
    assert (unread.returncode, unread.stderr) == (0, b"")
    assert (without.returncode, without.stdout) == (0, b"")


async def test_output_and_errors_come_at_the_same_time(tmp_path: Path) -> None:
    script = "(yes out | head -n 300000) & yes err | head -n 300000 >&2; wait"
    async with service(tmp_path, WEB) as it:
        await it.pid("web")
        result = await run(it, "web", "--", "sh", "-c", script)
    assert (result.returncode, len(result.stdout), len(result.stderr)) == (0, 1_200_000, 1_200_000)


async def test_it_is_refused_unless_the_workload_runs(tmp_path: Path) -> None:
    toml = WEB + '\n[workload.down]\ncommand = ["sleep", "1000"]\nautostart = false\n'
    async with service(tmp_path, toml) as it:
        await it.pid("web")
        await it.cli("freeze", "web")
        frozen = await run(it, "web", "true")
        down = await run(it, "down", "true")
        await it.cli("thaw", "web")
        thawed = await run(it, "web", "true")
    assert frozen.returncode == 1
    assert frozen.stderr.startswith(b"web is frozen: ")
    assert frozen.stderr.endswith(b"; thaw it first\n")
    assert down.stderr.startswith(b"down is stopped")
    assert (down.returncode, thawed.returncode) == (1, 0)


async def test_it_is_refused_if_the_program_was_started_otherwise(tmp_path: Path) -> None:
    """The present file may allow more than the program has."""
    async with service(tmp_path, with_keys('security = { profile = "strict" }'), status=-9) as it:
        await it.pid("web")
        it.process.kill()
    async with service(tmp_path, with_keys('security = { profile = "none" }')) as it:
        result = await run(it, "web", "true")
        assert result.returncode == 1
        assert b"was started with other settings" in result.stderr
        await it.cli("restart", "web")
        assert (await run(it, "web", "true")).returncode == 0


@pytest.mark.parametrize("keys", ["", "namespaces = { pid = false }"], ids=["pid-namespace", "without"])
@pytest.mark.parametrize("verb", ["stop", "restart", "kill"])
async def test_it_ends_with_the_generation(tmp_path: Path, keys: str, verb: str) -> None:
    async with service(tmp_path, with_keys(keys)) as it:
        await it.pid("web")
        process = await begin(
            it,
            "web",
            "--",
            "sh",
            "-c",
            "trap '' TERM HUP; echo begun; while :; do sleep 1000; done",
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        assert await process.stdout.receive_some(100) == b"begun\n"
        await it.cli(verb, "web")
        assert await ended(process) == 137
        record = await it.record(event="exec ended", workload="web")
        assert (record["signal"], record["code"], record["generation"]) == ("SIGKILL", None, 1)


@pytest.mark.parametrize("options", [["-i"], []])
async def test_the_end_of_the_client_ends_it(tmp_path: Path, options: list[str]) -> None:
    async with service(tmp_path, WEB) as it:
        await it.pid("web")
        script = "trap 'echo hangup > /tmp/exec-test-hangup; exit' HUP; echo begun; while :; do sleep 0.1; done"
        process = await begin(
            it, *options, "web", "--", "sh", "-c", script, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        assert await process.stdout.receive_some(100) == b"begun\n"
        process.kill()
        await ended(process)
        record = await it.record(event="exec ended", workload="web")
        assert (record["code"], record["message"]) == (0, "its client was gone")
        result = await run(it, "web", "cat", "/tmp/exec-test-hangup")
        assert result.stdout == b"hangup\n"
        await run(it, "web", "rm", "/tmp/exec-test-hangup")


async def test_the_end_of_the_service_ends_it(tmp_path: Path) -> None:
    async with service(tmp_path, WEB, status=-9) as it:
        pid = await it.pid("web")
        process = await begin(it, "web", "--", "sleep", "1001", stderr=subprocess.PIPE)
        await it.record(event="exec", workload="web")
        await it.until(lambda: len(members(pid)) == 2)
        it.process.kill()
        assert await ended(process) == 3
        assert process.stderr is not None
        assert b"ended before the command did, which ends with it" in await process.stderr.receive_some(1000)
        await it.until(lambda: members(pid) == [pid])
    async with service(tmp_path, WEB) as it:
        assert (await run(it, "web", "true")).returncode == 0


def members(pid: int) -> list[int]:
    """The processes in the cgroup of a process."""
    path = Path(f"/proc/{pid}/cgroup").read_text().rpartition("0::")[2].splitlines()[0]
    for root in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified"):
        if (file := Path(f"{root}{path}/cgroup.procs")).exists():
            return sorted(map(int, file.read_text().split()))
    raise AssertionError(path)


async def test_a_record_says_who_executed_what(tmp_path: Path) -> None:
    async with service(tmp_path, WEB) as it:
        await it.pid("web")
        process = await begin(it, "-u", "nobody", "-e", "SECRET=hidden", "web", "--", "sh", "-c", "exit 4")
        assert await ended(process) == 4
        record = await it.record(event="exec", workload="web")
        assert record["cause"] == {"by": "operator", "kind": "person", "detail": f"uid 0, pid {process.pid}"}
        assert (record["command"], record["user"], record["terminal"]) == ("sh -c exit 4", "nobody", False)
        end = await it.record(event="exec ended", workload="web", exec=record["exec"])
        assert (end["code"], end["signal"]) == (4, None)
        assert "hidden" not in json.dumps(it.records)
        events = await it.cli("events", "web")
        assert f"sh -c exit 4 as nobody by operator (uid 0, pid {process.pid})" in events
        it.valid()


async def test_signals_to_the_client_reach_the_command(tmp_path: Path) -> None:
    async with service(tmp_path, WEB) as it:
        await it.pid("web")
        script = "trap 'exit 9' INT; echo begun; while :; do sleep 0.1; done"
        process = await begin(it, "web", "--", "sh", "-c", script, stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert await process.stdout.receive_some(100) == b"begun\n"
        process.send_signal(signal.SIGINT)
        assert await ended(process) == 9


class Terminal:
    """A person's terminal, with a client on it."""

    def __init__(self) -> None:
        self.master, self.slave = pty.openpty()
        termios.tcsetwinsize(self.slave, (33, 77))
        self.text = b""

    async def begin(self, it: Service, *arguments: str) -> trio.Process:
        streams = {"stdin": self.slave, "stdout": self.slave, "stderr": self.slave}
        return await begin(it, *arguments, **streams, start_new_session=True, preexec_fn=self._control)

    def _control(self) -> None:
        import fcntl

        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    async def until(self, text: bytes) -> bytes:
        """Read until `text` comes; return what came up to it, and forget that."""
        with trio.fail_after(deadline(20)):
            while text not in self.text:
                await trio.lowlevel.wait_readable(self.master)
                self.text += os.read(self.master, 65536)
        before, _, self.text = self.text.partition(text)
        return before + text

    def type(self, text: bytes) -> None:
        os.write(self.master, text)

    def close(self) -> None:
        os.close(self.master)
        os.close(self.slave)


async def test_a_shell_on_a_terminal(tmp_path: Path) -> None:
    """Its size and the changes of it, job control, Ctrl-C and Ctrl-D; afterwards the terminal is as before."""
    terminal = Terminal()
    async with service(tmp_path, WEB) as it:
        await it.pid("web")
        before = termios.tcgetattr(terminal.slave)
        process = await terminal.begin(it, "-it", "-e", "PS1=ready> ", "web", "--", "bash", "--norc", "-i")
        await terminal.until(b"ready> ")
        terminal.type(b"stty size; test -t 0 && test -t 1 && test -t 2 && echo all-$TERM\r")
        assert b"33 77" in await terminal.until(b"all-dumb\r\n")
        await terminal.until(b"ready> ")
        termios.tcsetwinsize(terminal.slave, (11, 22))  # the kernel sends SIGWINCH
        terminal.type(b"until test \"$(stty size)\" = '11 22'; do sleep 0.05; done; echo resi'zed'\r")
        await terminal.until(b"resized\r\n")
        # The only one of this host with these arguments, and short enough for a line of this terminal.
        sleep = f"sleep {10**5 + secrets.randbelow(9 * 10**5)}".encode()
        terminal.type(sleep + b"\r")
        await terminal.until(sleep + b"\r\n")
        await it.until(lambda: is_running(sleep))  # then it is in the foreground
        terminal.type(b"\x1a")  # Ctrl-Z
        await terminal.until(b"Stopped")
        await terminal.until(b"ready> ")
        terminal.type(b"fg\r")
        await terminal.until(sleep + b"\r\n")
        terminal.type(b"\x03")
        await terminal.until(b"ready> ")
        terminal.type(b"echo code-$?\r")
        await terminal.until(b"code-130\r\n")
        terminal.type(b"exit 6\r")
        assert await ended(process) == 6
        assert termios.tcgetattr(terminal.slave) == before
    terminal.close()


def is_running(command: bytes) -> bool:
    """Return whether a process of this host has these arguments."""
    for directory in Path("/proc").iterdir():
        if directory.name.isdecimal():
            try:
                arguments = (directory / "cmdline").read_bytes()
            except OSError:
                continue
            if arguments.replace(b"\0", b" ").strip() == command:
                return True
    return False


async def test_a_hang_up_of_the_terminal_ends_it(tmp_path: Path) -> None:
    terminal = Terminal()
    async with service(tmp_path, WEB) as it:
        await it.pid("web")
        process = await terminal.begin(it, "-it", "web", "--", "sh", "-c", "echo begun; exec sleep 1002")
        await terminal.until(b"begun")
        process.kill()
        await ended(process)
        record = await it.record(event="exec ended", workload="web")
        assert record["signal"] == "SIGHUP"
    terminal.close()


async def test_input_that_is_no_terminal_is_refused(tmp_path: Path) -> None:
    async with service(tmp_path, WEB) as it:
        await it.pid("web")
        refused = await run(it, "-it", "web", "sh")
        only_output = await run(it, "-t", "web", "--", "sh", "-c", "test -t 1 && echo terminal")
    assert refused.returncode == 2
    assert b"standard input is not a terminal" in refused.stderr
    assert (only_output.returncode, only_output.stdout) == (0, b"terminal\r\n")


async def test_two_hundred_at_once_and_no_more_than_the_limit(tmp_path: Path) -> None:
    """Each waits for its input, so all of them run at the same time."""
    async with service(tmp_path, WEB) as it:
        await it.pid("web")
        client = Client(str(tmp_path / "run" / "api.sock"))
        connections = [client.exec("web", {"argv": ["cat"], "input": True}) for _ in range(EXECS_LIMIT)]
        with pytest.raises(ClientError, match=f"{EXECS_LIMIT} commands run already, which is the limit"):
            client.exec("web", {"argv": ["true"]})
        for number, (connection, _) in enumerate(connections):
            connection.sendall(frames.pack(frames.STDIN, b"%d" % number) + frames.pack(frames.STDIN))
        for number, (connection, data) in enumerate(connections):
            with connection:
                while piece := connection.recv(65536):
                    data += piece
            answer = list(frames.Unpacker().feed(data))
            assert answer[:-1] == [(frames.STDOUT, b"%d" % number)]
            assert (answer[-1][0], json.loads(answer[-1][1])["code"]) == (frames.EXIT, 0)
        assert EXECS_LIMIT >= 200
        assert (await run(it, "web", "true")).returncode == 0


async def test_a_client_that_does_not_read_delays_no_other(tmp_path: Path) -> None:
    """Its command waits in write(2); nothing is stored for it."""
    async with service(tmp_path, WEB) as it:
        pid = await it.pid("web")
        client = Client(str(tmp_path / "run" / "api.sock"))
        connections = [client.exec("web", {"argv": ["yes"]})[0] for _ in range(20)]
        await it.until(lambda: len(members(pid)) == 21)
        before = memory(it.process.pid)
        for _ in range(5):
            assert (await run(it, "web", "true")).returncode == 0
        assert memory(it.process.pid) - before < 20 << 20
        for connection in connections:
            connection.close()
        await it.until(lambda: members(pid) == [pid])


def memory(pid: int) -> int:
    """The resident bytes of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


@pytest.mark.parametrize(
    ("key", "variable"),
    [
        ('runtime_directory = ["nsupervisor-test-exec"]', "RUNTIME_DIRECTORY"),
        ('credentials = {{ token = "{place}" }}', "CREDENTIALS_DIRECTORY"),
    ],
)
async def test_it_is_possible_in_a_program_with_directories_and_credentials(
    tmp_path: Path, key: str, variable: str
) -> None:
    """It was refused: "unknown keys: directories", "credentials need a cover"."""
    (tmp_path / "token").write_text("x")
    text = f'[workload.web]\ncommand = ["sleep", "1000"]\n{key.format(place=tmp_path / "token")}\n'
    async with service(tmp_path, text) as it:
        await it.pid("web")
        assert (await run(it, "web", "--", "sh", "-c", f"test -d ${variable}")).returncode == 0
