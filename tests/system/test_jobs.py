"""The order of starts and stops: nothing starts once the service stops; a killed reload is completed as it began."""

import os
import signal
from pathlib import Path

import pytest
import trio

from tests.needs import cgroup_directories, needs
from tests.system.service import Service, service
from tests.system.test_reload import write
from tests.timing import deadline

pytestmark = [pytest.mark.system, pytest.mark.host_only, needs("root", "cgroup")]


def slow_to_stop(directory: Path, name: str, extra: str = "", word: str = "up") -> str:
    """Return a workload that ends, after SIGTERM, when the test writes a line into its FIFO (`release`).

    It ignores a second SIGTERM, of the next supervisor: the shell would run the trap again, within itself, and read a
    second line.
    """
    fifo = f"{directory}/{name}$NSUPERVISOR_INSTANCE.fifo"
    script = f'trap "trap \\"\\" TERM; read line < {fifo}; exit 0" TERM; echo {word}; while :; do sleep 0.05; done'
    return f'\n[workload.{name}]\ncommand = ["sh", "-c", \'{script}\']\ntimeout_stop_sec = "infinity"\n{extra}\n'


def make_fifo(directory: Path, name: str) -> Path:
    fifo = directory / f"{name}.fifo"
    os.mkfifo(fifo)
    return fifo


async def release(fifo: Path) -> None:
    """Let the program end that reads the FIFO; wait until it reads it."""
    with trio.fail_after(deadline(20)):
        await trio.to_thread.run_sync(fifo.write_text, "go\n", abandon_on_cancel=True)


async def stopping(it: Service, name: str) -> None:
    await it.record(event="state", workload=name, to="stopping")


def transitions(it: Service, *names: str) -> list[tuple[str, str]]:
    """Return the exits and starts of these workloads, in the order of their records."""
    shown = [(record.get("workload"), record["event"]) for record in it.records]
    return [(name, event) for name, event in shown if name in names and event in ("exited", "started")]


async def kill(it: Service) -> None:
    it.process.send_signal(signal.SIGKILL)
    await it.process.wait()


@pytest.mark.fault("B1")
async def test_a_restart_or_start_while_the_service_stops_is_refused_and_the_stop_goes_on(tmp_path: Path) -> None:
    fifo = make_fifo(tmp_path, "a")
    async with service(tmp_path, slow_to_stop(tmp_path, "a") + '[workload.b]\ncommand = ["sleep", "1000"]\n') as it:
        await it.record(event="output", workload="a", message="up")
        it.process.send_signal(signal.SIGTERM)
        await stopping(it, "a")
        await it.record(event="exited", workload="b")
        for verb, name in (("restart", "a"), ("start", "a"), ("start", "b"), ("restart", "b")):
            result = await it.cli_result(verb, name)
            assert (result.returncode, b"the service is stopping" in result.stderr) == (1, True), result
        assert (await it.status("a"))["state"] == "stopping"
        await release(fifo)
        exited = await it.record(event="exited", workload="a")
        assert (exited["code"], exited["generation"]) == (0, 1)
    assert sorted(transitions(it, "a", "b")) == [("a", "exited"), ("a", "started"), ("b", "exited"), ("b", "started")]


@pytest.mark.fault("H12")
async def test_a_reload_that_was_being_read_when_the_service_began_to_stop_starts_nothing(tmp_path: Path) -> None:
    fifo, variables = make_fifo(tmp_path, "a"), make_fifo(tmp_path, "variables")
    old = slow_to_stop(tmp_path, "a")
    async with service(tmp_path, old) as it:
        await it.record(event="output", workload="a", message="up")
        write(it, f'{old}[workload.late]\ncommand = ["sleep", "1000"]\nenvironment_file = ["{variables}"]\n')
        it.process.send_signal(signal.SIGHUP)
        # Opened for writing once the reload reads it.
        with trio.fail_after(deadline(20)):
            writer = await trio.to_thread.run_sync(variables.open, "w", abandon_on_cancel=True)
        with writer:
            it.process.send_signal(signal.SIGTERM)
            await stopping(it, "a")
        refused = await it.record(event="reload refused")
        assert "the supervisor is stopping" in refused["message"]
        await release(fifo)
    assert transitions(it, "late") == []
    assert not [record for record in it.records if record.get("workload") == "late"]


@pytest.mark.fault("H5")
async def test_a_reload_that_was_killed_while_a_dependent_stops_is_completed_in_its_order(tmp_path: Path) -> None:
    fifo = make_fifo(tmp_path, "web")

    def site(word: str) -> str:
        db = f'[workload.db]\ncommand = ["sh", "-c", "echo {word}; exec sleep 1000"]\n'
        return db + slow_to_stop(tmp_path, "web", 'requires = ["db"]', word)

    async with service(tmp_path, site("old"), status=-signal.SIGKILL) as first:
        await first.record(event="output", workload="web", message="old")
        write(first, site("new"))
        first.process.send_signal(signal.SIGHUP)
        await stopping(first, "web")
        await kill(first)
    async with service(tmp_path, site("new")) as second:
        await release(fifo)
        await second.record(event="output", workload="db", message="new")
        await second.record(event="output", workload="web", message="new")
        order = [("web", "exited"), ("db", "exited"), ("db", "started"), ("web", "started")]
        assert transitions(second, "db", "web") == order
        for name in ("db", "web"):
            status = await second.status(name)
            assert (status["state"], status["generation"]) == ("running", 2)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(second.stop)
            await release(fifo)


@pytest.mark.fault("H5")
async def test_instances_that_a_killed_reload_was_removing_end_before_the_new_one_starts(tmp_path: Path) -> None:
    fifo, *fifos = [make_fifo(tmp_path, name) for name in ("web", "web1", "web2")]
    several, single = slow_to_stop(tmp_path, "web", "instances = 2"), slow_to_stop(tmp_path, "web")
    async with service(tmp_path, several, status=-signal.SIGKILL) as first:
        for name in ("web@1", "web@2"):
            await first.record(event="output", workload=name, message="up")
        write(first, single)
        first.process.send_signal(signal.SIGHUP)
        for name in ("web@1", "web@2"):
            await stopping(first, name)
        await kill(first)
    async with service(tmp_path, single) as second:
        assert (await second.status("web"))["state"] == "stopped"
        for other in fifos:
            await release(other)
        await second.record(event="output", workload="web", message="up")
        names = [name for name, event in transitions(second, "web", "web@1", "web@2") if event == "started"]
        assert names == ["web"]
        assert transitions(second, "web", "web@1", "web@2")[-1] == ("web", "started")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(second.stop)
            await release(fifo)


@pytest.mark.fault("H5")
async def test_workloads_that_left_the_file_while_no_service_ran_stop_in_their_order(tmp_path: Path) -> None:
    fifo = make_fifo(tmp_path, "web")
    other = '[workload.other]\ncommand = ["sleep", "1000"]\n'
    gone = '[workload.db]\ncommand = ["sleep", "1000"]\n' + slow_to_stop(tmp_path, "web", 'requires = ["db"]')
    async with service(tmp_path, gone + other, status=-signal.SIGKILL) as first:
        await first.record(event="output", workload="web", message="up")
        await kill(first)
    async with service(tmp_path, other) as second:
        await stopping(second, "web")
        await release(fifo)
        await second.record(event="exited", workload="db")
        assert transitions(second, "db", "web") == [("web", "exited"), ("db", "exited")]


@pytest.mark.fault("H13")
async def test_a_workload_that_a_take_over_removes_can_be_added_again_although_a_pipe_of_it_is_held(
    tmp_path: Path,
) -> None:
    """A process outside the cgroup holds the pipe of standard output, so that it never reaches its end."""
    other = '[workload.other]\ncommand = ["sleep", "1000"]\n'
    web = '[workload.web]\ncommand = ["sleep", "1000"]\n'
    async with service(tmp_path, web + other, status=-signal.SIGKILL) as first:
        pid = await first.pid("web")
        await kill(first)
    holder = os.open(f"/proc/{pid}/fd/1", os.O_WRONLY)
    try:
        async with service(tmp_path, other) as second:
            await second.record(event="exited", workload="web")
            write(second, web + other)
            result = await second.cli_result("reload")
            while result.returncode:
                assert b"is still being stopped" in result.stderr, result
                result = await second.cli_result("reload")
            assert (await second.status("web"))["state"] == "running"
    finally:
        os.close(holder)


@pytest.mark.fault("H4")
@pytest.mark.skipif("memory" not in cgroup_directories(), reason="needs a cgroup v1 memory controller")
@needs("memory")
async def test_a_removed_workload_whose_cgroup_cannot_be_removed_is_said_and_the_service_lives(tmp_path: Path) -> None:
    """A process of another program is in its cgroup of a v1 controller alone, which `cgroup.events` does not show."""
    other = '[workload.other]\ncommand = ["sleep", "1000"]\n'
    web = '[workload.web]\ncommand = ["sleep", "1000"]\n[workload.web.resources]\nmemory_max = "64M"\n'
    async with service(tmp_path, web + other, status=-signal.SIGKILL) as first:
        await first.pid("web")
        own = cgroup_directories()
        inside = Path((await first.status("web"))["cgroup"]).relative_to(own[""])
        await kill(first)
    process = await trio.lowlevel.open_process(["sleep", "1000"])
    held = own["memory"] / inside
    (held / "cgroup.procs").write_text(str(process.pid))
    try:
        async with service(tmp_path, other) as second:
            said = await second.record(event="warning", workload="web", level="error")
            assert "cannot remove the cgroup" in said["message"]
            assert (await second.status("other"))["state"] == "running"
            process.kill()
            await process.wait()
    finally:
        process.kill()
        await process.wait()


@pytest.mark.fault("H4")
@pytest.mark.skipif("memory" not in cgroup_directories(), reason="needs a cgroup v1 memory controller")
@needs("memory")
async def test_a_workload_whose_old_cgroup_cannot_be_removed_when_it_moves_is_said_and_the_others_start(
    tmp_path: Path,
) -> None:
    other = '[workload.other]\ncommand = ["sleep", "1000"]\n[group.all]\n'
    web = (
        '[workload.web]\ncommand = ["sleep", "1000"]\nrestart = "no"\n{}[workload.web.resources]\nmemory_max = "64M"\n'
    )
    async with service(tmp_path, web.format("") + other, status=-signal.SIGKILL) as first:
        pid = await first.pid("web")
        own = cgroup_directories()
        inside = Path((await first.status("web"))["cgroup"]).relative_to(own[""])
        await kill(first)
    process = await trio.lowlevel.open_process(["sleep", "1000"])
    (own["memory"] / inside / "cgroup.procs").write_text(str(process.pid))
    try:
        os.kill(pid, signal.SIGKILL)
        with trio.fail_after(deadline(10)):
            while "populated 1" in (own[""] / inside / "cgroup.events").read_text():  # noqa: ASYNC110
                await trio.sleep(0.01)
        async with service(tmp_path, web.format('group = "all"\n') + other) as second:
            said = await second.record(event="warning", workload="web", level="error")
            assert "cannot remove the cgroup" in said["message"]
            assert (await second.status("other"))["state"] == "running"
            process.kill()
            await process.wait()
            await second.cli("start", "web")
            assert Path((await second.status("web"))["cgroup"]).parent.name == "group.all"
    finally:
        process.kill()
        await process.wait()
