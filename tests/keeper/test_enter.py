"""Processes that enter the namespaces of a running program: what they are, and how they end. Real processes."""

import os
import signal
import struct
import termios
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from nsupervisor.keeper.client import Keeper, open_keeper
from nsupervisor.keeper.entry import Entry
from nsupervisor.keeper.messages import Execed, Spawned, SpawnError
from nsupervisor.linux.namespaces import NAMESPACES
from tests.keeper.conftest import ISOLATED, PATH, Harness, gone
from tests.needs import cgroup_directories, needs
from tests.timing import deadline

pytestmark = needs("root")

MAPPINGS = [[0, 100000, 65536]]
KINDS = pytest.mark.parametrize(
    "spec",
    [
        pytest.param({}, id="plain"),
        pytest.param({"namespaces": ISOLATED}, id="init"),
        pytest.param({"namespaces": ISOLATED, "init": False}, id="pid1"),
        pytest.param({"namespaces": ISOLATED, "uid": 1234, "gid": 1234, "groups": []}, id="init-user"),
        pytest.param(
            {"namespaces": [*ISOLATED, "user"], "uid_mappings": MAPPINGS, "gid_mappings": MAPPINGS}, id="mapped"
        ),
    ],
)
_numbers = iter(range(1, 10**6))


@attrs.frozen
class Output:
    """How an entered process has ended, and what it wrote."""

    status: int
    failure: Any
    text: str


async def enter(harness: Harness, into: Spawned, spec: dict, *argv: str, data: bytes = b"") -> Output:
    """Run a command in the namespaces of a program, from its start to its end."""
    reader, writer = os.pipe()
    stdin, stdin_writer = os.pipe()
    entry = await begin(harness, into, spec, (stdin, writer, writer), *argv)
    os.close(writer)
    os.close(stdin)
    async with trio.lowlevel.FdStream(stdin_writer) as stream:
        await stream.send_all(data)
    with trio.fail_after(deadline(20)):
        async with trio.lowlevel.FdStream(reader) as stream:
            text = b"".join([chunk async for chunk in stream])
        await entry.wait_ended()
    return Output(entry.status or 0, entry.failure, text.decode())


async def begin(harness: Harness, into: Spawned, spec: dict, stdio: tuple[int, ...], *argv: str, **more: Any) -> Entry:
    given = {"env": {"PATH": PATH}, "cwd": "/", **spec, "id": f"{into.id}/{next(_numbers)}", "argv": list(argv)}
    return await harness.keeper.enter(into.id, given, stdio, more.get("has_terminal", False))


@asynccontextmanager
async def running(harness: Harness, spec: dict) -> AsyncIterator[Spawned]:
    """Run a program that does nothing."""
    spawned = await harness.spawn("sleep", "1000", **spec)
    await harness.execed(spawned)
    yield spawned
    await harness.keeper.signal(spawned.id, signal.SIGKILL)
    await harness.finish(spawned)


async def output_of(harness: Harness, spawned: Spawned, lines: int) -> str:
    """Return the output of a program once it has written so many lines, and end it."""
    text = b""
    with trio.fail_after(deadline(20)):
        while text.count(b"\n") < lines:
            await trio.lowlevel.wait_readable(spawned.stdout)
            text += os.read(spawned.stdout, 65536)
    await harness.keeper.signal(spawned.id, signal.SIGKILL)
    return text.decode() + (await harness.finish(spawned)).stdout


@KINDS
async def test_a_command_has_the_namespaces_and_the_user_of_the_program(harness: Harness, spec: dict) -> None:
    facts = "for n in cgroup ipc mnt net pid time user uts; do readlink /proc/self/ns/$n; done; id -u; id -g; id -G"
    spawned = await harness.spawn("sh", "-c", f"{facts}; exec sleep 1000", **spec)
    program = await harness.execed(spawned)
    result = await enter(harness, spawned, spec, "sh", "-c", facts)
    assert (result.status, result.failure) == (0, None)
    lines = result.text.splitlines()
    names = sorted(namespace.file for namespace in NAMESPACES.values())
    assert lines[: len(names)] == [os.readlink(f"/proc/{program.pid}/ns/{name}") for name in names]
    assert await output_of(harness, spawned, len(lines)) == result.text


@KINDS
@pytest.mark.parametrize("code", [0, 1, 126, 255])
async def test_exit_codes_are_exact(harness: Harness, spec: dict, code: int) -> None:
    async with running(harness, spec) as spawned:
        result = await enter(harness, spawned, spec, "sh", "-c", f"echo out; exit {code}")
    assert (result.status, result.failure, result.text) == (code << 8, None, "out\n")


@KINDS
async def test_confinement_is_that_of_the_program(harness: Harness, spec: dict) -> None:
    """The facts of /proc/PID/status, limits and schedulers, with those of the program."""
    confined = {
        **spec,
        "capability_bounding_set": 0b1010_1000_0000_0100_0000,
        "no_new_privileges": True,
        "nice": 3,
        "umask": 0o027,
        "oom_score_adjust": 123,
        "io_priority": 2 << 13 | 6,
        "timer_slack": 777_000,
        "rlimits": {"nofile": [100, 200], "core": [0, 0], "memlock": [65536, 65536]},
    }
    facts = (
        "grep -E '^(Uid|Gid|Groups|Umask|Cap|NoNewPrivs|Seccomp)' /proc/self/status; cat /proc/self/limits; nice;"
        " cat /proc/self/oom_score_adj; cut -d' ' -f40,41 /proc/self/stat; pwd; env | sort"
    )
    spawned = await harness.spawn("sh", "-c", f"{facts}; exec sleep 1000", **confined)
    await harness.execed(spawned)
    result = await enter(harness, spawned, confined, "sh", "-c", facts)
    of_program = await output_of(harness, spawned, len(result.text.splitlines()))
    assert result.text == of_program
    assert "NoNewPrivs:\t1" in of_program
    assert "\n123\n" in of_program


async def test_the_filter_of_the_program_is_in_force(harness: Harness) -> None:
    # Return EPERM for getpriority(2), whose number is 140 on x86-64 and 141 on aarch64; allow all others.
    number = {"x86_64": 140, "aarch64": 141}[os.uname().machine]
    instructions = ((0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, 0x0005_0001), (0x06, 0, 0, 0x7FFF_0000))
    program = b"".join(struct.pack("HBBI", *instruction) for instruction in instructions)
    harness.keeper.filter_program = {"refuse-nice": program}.__getitem__
    spec = {"namespaces": ISOLATED, "filters": ["refuse-nice"], "no_new_privileges": True}
    async with running(harness, spec) as spawned:
        result = await enter(harness, spawned, spec, "sh", "-c", "nice; grep ^Seccomp: /proc/self/status")
    assert "Operation not permitted" in result.text
    assert "Seccomp:\t2" in result.text


@needs("cgroup")
@pytest.mark.parametrize("kinds", [ISOLATED, [], [*ISOLATED, "user"]], ids=["init", "plain", "mapped"])
async def test_a_command_is_in_the_cgroup_of_the_program(harness: Harness, kinds: list[str]) -> None:
    directories = cgroup_directories()
    v1 = {name: path for name, path in directories.items() if name in ("memory", "pids")}
    made = [path / f"keeper-enter-{os.getpid()}" for path in (directories[""], *v1.values())]
    for directory in made:
        directory.mkdir()
    spec: dict[str, Any] = {"namespaces": kinds, "cgroup": str(made[0])}
    spec["cgroup_procs"] = [f"{directory}/tasks" for directory in made[1:]]
    if "user" in kinds:
        spec |= {"uid_mappings": MAPPINGS, "gid_mappings": MAPPINGS}
    try:
        async with running(harness, spec) as spawned:
            null = os.open(os.devnull, os.O_RDWR)
            entry = await begin(harness, spawned, spec, (null, null, null), "sleep", "1000")
            os.close(null)
            await entry.wait_executed()
            program = harness.execs[spawned.id].pid
            its, those_of_program = (Path(f"/proc/{pid}/cgroup").read_text() for pid in (entry.pid, program))
            assert its == those_of_program
            assert sorted(map(int, (made[0] / "cgroup.procs").read_text().split())) == sorted([program, entry.pid])
            await harness.keeper.signal(entry.id, signal.SIGKILL)
            await entry.wait_ended()
        assert entry.status == signal.SIGKILL
    finally:
        with trio.fail_after(deadline(20)):
            for directory in made:
                while (directory / "cgroup.procs").read_text():  # noqa: ASYNC110 - an empty cgroup is not reported
                    await trio.sleep(0.005)
                directory.rmdir()


@pytest.mark.parametrize(
    ("argv", "step", "code", "text"),
    [
        (
            ["no-such-program"],
            "execute",
            127,
            "cannot execute no-such-program: No such file or directory (searched PATH",
        ),
        (["/etc/passwd"], "execute", 126, "cannot execute /etc/passwd: Permission denied"),
        (["/etc"], "execute", 126, "cannot execute /etc: Permission denied"),
    ],
)
@KINDS
async def test_what_cannot_be_executed(
    harness: Harness, spec: dict, argv: list[str], step: str, code: int, text: str
) -> None:
    async with running(harness, spec) as spawned:
        result = await enter(harness, spawned, spec, *argv)
    assert (result.failure.step, result.status) == (step, code << 8)
    assert result.failure.message.startswith(text)


@KINDS
async def test_a_missing_directory_is_reported(harness: Harness, spec: dict) -> None:
    async with running(harness, spec) as spawned:
        result = await enter(harness, spawned, {**spec, "cwd": "/no/such"}, "true")
    assert result.failure.step == "enter_directory"
    assert result.failure.message == "cannot enter /no/such: No such file or directory"


@KINDS
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGRTMIN])
async def test_signals_reach_the_command_alone(harness: Harness, spec: dict, signum: int) -> None:
    async with running(harness, spec) as spawned:
        null = os.open(os.devnull, os.O_RDWR)
        entry = await begin(harness, spawned, spec, (null, null, null), "sleep", "1000")
        os.close(null)
        assert await harness.keeper.signal(entry.id, signum)  # perhaps before its exec: then it is queued
        with trio.fail_after(deadline(20)):
            await entry.wait_ended()
        assert (os.WTERMSIG(entry.status or 0), entry.failure) == (signum, None)
        assert not await harness.keeper.signal(entry.id, signum)
        assert spawned.id not in harness.ends


async def test_a_command_ends_with_the_program_of_its_namespace(harness: Harness) -> None:
    spec = {"namespaces": ISOLATED}
    spawned = await harness.spawn("sleep", "1000", **spec)
    await harness.execed(spawned)
    null = os.open(os.devnull, os.O_RDWR)
    entry = await begin(harness, spawned, spec, (null, null, null), "sleep", "1000")
    os.close(null)
    await entry.wait_executed()
    await harness.keeper.signal(spawned.id, signal.SIGKILL)
    with trio.fail_after(deadline(20)):
        await entry.wait_ended()
    assert entry.status == signal.SIGKILL
    await harness.ended(spawned)  # the keeper may have seen the end of the command first
    with pytest.raises(SpawnError, match="does not run"):
        await begin(harness, spawned, spec, (0, 1, 2), "true")
    await harness.finish(spawned)


async def test_the_command_ends_with_its_client_and_with_the_keeper(runtime_directory: Path) -> None:
    """The next client does not know it; a keeper that is killed cannot tell its exit status."""
    spec = {"id": "a#1", "argv": ["sleep", "1000"], "env": {"PATH": PATH}, "cwd": "/"}
    async with open_keeper(runtime_directory) as first:
        spawned = await first.spawn(spec)
        async for event in first.events:
            assert isinstance(event, Execed)
            break
        pidfd = await _enter_and_pin(first)
        async with open_keeper(runtime_directory) as second:
            await _wait_readable(pidfd)  # the second one has replaced the first
            entry_pidfd = await _enter_and_pin(second)
            os.kill(second.pid, signal.SIGKILL)
            await _wait_readable(entry_pidfd)
            with trio.fail_after(deadline(20)):
                await second.wait_lost()
    for fd in (spawned.stdout, spawned.stderr):
        os.close(fd)
    os.kill(spawned.pid, signal.SIGKILL)
    await gone(second.pid)


async def _enter_and_pin(keeper: Keeper) -> int:
    null = os.open(os.devnull, os.O_RDWR)
    spec = {"id": f"a#1/{next(_numbers)}", "argv": ["sleep", "1000"], "env": {"PATH": PATH}, "cwd": "/"}
    entry = await keeper.enter("a#1", spec, (null, null, null), False)
    os.close(null)
    await entry.wait_executed()
    return os.pidfd_open(entry.pid)


async def _wait_readable(pidfd: int) -> None:
    with trio.fail_after(deadline(20)):
        await trio.lowlevel.wait_readable(pidfd)
    os.close(pidfd)


@KINDS
async def test_the_command_has_a_terminal(harness: Harness, spec: dict) -> None:
    """Its size, /dev/tty, and Ctrl-C, which the kernel sends to the foreground process group."""
    async with running(harness, spec) as spawned:
        master, slave = os.openpty()
        termios.tcsetwinsize(slave, (12, 34))
        script = "stty size; ls -C /proc/self/fd; echo to-terminal >/dev/tty; exec cat"
        entry = await begin(harness, spawned, spec, (slave, slave, slave), "sh", "-c", script, has_terminal=True)
        os.close(slave)
        text = b""
        with trio.fail_after(deadline(20)):
            while b"to-terminal" not in text:
                await trio.lowlevel.wait_readable(master)
                text += os.read(master, 4096)
            os.write(master, b"\x03")
            await entry.wait_ended()
        os.close(master)
    assert text.decode().split() == ["12", "34", "0", "1", "2", "3", "to-terminal"]
    assert os.WTERMSIG(entry.status or 0) == signal.SIGINT


@KINDS
async def test_large_arguments_and_input(harness: Harness, spec: dict) -> None:
    argument = "x" * 100_000
    async with running(harness, spec) as spawned:
        given = {**spec, "env": {"PATH": PATH, "LONG": "y" * 100_000}}
        result = await enter(
            harness, spawned, given, "sh", "-c", "echo ${#1} ${#LONG}; wc -c", "sh", argument, data=b"z" * 50_000
        )
    assert result.text.split() == ["100000", "100000", "50000"]


async def test_many_at_once(harness: Harness) -> None:
    spec = {"namespaces": ISOLATED}
    results: list[Output] = []
    async with running(harness, spec) as spawned:

        async def one(number: int) -> None:
            results.append(await enter(harness, spawned, spec, "sh", "-c", f"echo {number}; exit {number}"))

        async with trio.open_nursery() as nursery:
            for number in range(200):
                nursery.start_soon(one, number)
    assert sorted((int(result.text), result.status >> 8) for result in results) == [(n, n) for n in range(200)]


async def test_nothing_of_the_host_is_open_in_the_command(harness: Harness) -> None:
    spec = {"namespaces": ISOLATED}
    async with running(harness, spec) as spawned:
        result = await enter(harness, spawned, spec, "sh", "-c", "ls /proc/self/fd")
    assert result.text.split() == ["0", "1", "2", "3"]  # 3: the directory that ls reads


async def test_the_executable_of_the_command_before_its_exec_is_a_sealed_copy(harness: Harness) -> None:
    """`/proc/self/exe` as the command is the program that enters: it is in memory, cannot be written to, and ends."""
    spec = {"namespaces": ISOLATED}
    async with running(harness, spec) as spawned:
        result = await enter(harness, spawned, spec, "/proc/self/exe")
        assert (result.status, result.text) == (0, "")
        # By a link whose target is only known at the exec, as an image may have one.
        script = "ln -sf /proc/self/exe /tmp/nsupervisor-test-exe"
        await enter(harness, spawned, spec, "sh", "-c", script)
        result = await enter(harness, spawned, spec, "/tmp/nsupervisor-test-exe")
        assert (result.status, result.text) == (0, "")
    os.unlink("/tmp/nsupervisor-test-exe")
