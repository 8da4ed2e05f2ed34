"""The main job, end to end, with the real kernel: what a cgroup's files say leads to the right act."""

import os
import signal
import socket
import sys
from pathlib import Path

import pytest
import trio

from tests.needs import needs
from tests.system.service import NSUPERVISOR, service
from tests.timing import deadline

pytestmark = needs("root", "cgroup")

LEAK = """
command = ["python3", "-c", '''
leaked = []
while True:
    leaked.append(bytearray(1 << 20))
''']
"""

STAYS = """
[workload.chill]
command = ["sleep", "1000"]
"""

BOMB = """
command = ["python3", "-c", '''
import os, time
while True:
    try:
        os.fork()
    except BlockingIOError:
        time.sleep(0.3)  # contained as well, and the machine's emulated processor has other work, too
''']
"""


@pytest.mark.system
@needs("memory")
async def test_an_oom_kill_restarts_by_rule_and_spares_the_neighbour(tmp_path):
    toml = f"""
    {STAYS}
    [workload.bloat]
    {LEAK}
    restart = "no"
    restart_sec = 0
    start_limit_burst = 2
    [workload.bloat.resources]
    memory_max = "24M"
    [[workload.bloat.policy]]
    when = "memory.events oom_kill"
    action = "restart"
    """
    async with service(tmp_path, toml) as it:
        action = await it.record(event="action", workload="bloat", action="restart", patience=20)
        cause = action["cause"]
        assert (cause["file"], cause["key"], cause["when"]) == ("memory.events", "oom_kill", "memory.events oom_kill")
        assert cause["after"] > cause["before"]
        ended = await it.record(event="exited", workload="bloat")
        assert (ended["signal"], ended["oom_killed"]) == ("SIGKILL", True)
        assert await it.pid("bloat", generation=2)
        given_up = await it.record(event="state", workload="bloat", to="failed", patience=20)
        assert "2 starts" in given_up["reason"]
        assert "memory.events oom_kill" in given_up["reason"]
        chill = await it.status("chill")
        assert (chill["state"], chill["generation"], chill["restarts"]) == ("running", 1, 0)


async def test_an_ordinary_sigkill_is_not_taken_for_an_oom_kill(tmp_path):
    async with service(tmp_path, STAYS) as it:
        os.kill(await it.pid("chill"), signal.SIGKILL)
        ended = await it.record(event="exited", workload="chill")
        assert (ended["signal"], ended["oom_killed"]) == ("SIGKILL", False)
        assert await it.pid("chill", generation=2)


@pytest.mark.system
@needs("pids")
async def test_a_fork_bomb_is_contained_and_killed_by_a_level(tmp_path):
    toml = f"""
    {STAYS}
    [workload.bomb]
    {BOMB}
    restart = "no"
    [workload.bomb.resources]
    pids_max = 16
    [[workload.bomb.policy]]
    when = "pids.events max"
    action = "log"
    cooldown = "1h"
    [[workload.bomb.policy]]
    when = "pids.current >= 90%"
    for = "300ms"
    action = "kill"
    """
    async with service(tmp_path, toml) as it:
        refused = await it.record(event="action", workload="bomb", action="log", patience=20)
        assert refused["cause"]["key"] == "max"
        kill = await it.record(event="action", workload="bomb", action="kill", patience=20)
        assert kill["cause"]["threshold"] == 16 * 0.9
        assert kill["cause"]["after"] >= kill["cause"]["threshold"]
        assert (await it.record(event="state", workload="bomb", to="failed"))["reason"].startswith(
            "killed by policy[1]"
        )
        status = await it.status("bomb")
        assert (status["pids_current"], status["pid"]) == (0, None)
        assert (await it.status("chill"))["restarts"] == 0


async def test_a_program_that_crashes_is_retried_with_delays_and_given_up(tmp_path):
    toml = """
    [workload.crash]
    command = ["sh", "-c", "echo oops >&2; exit 3"]
    restart_sec = "10ms"
    start_limit_burst = 3
    """
    async with service(tmp_path, toml) as it:
        given_up = await it.record(event="state", workload="crash", to="failed")
        assert given_up["reason"] == "given up after 3 starts within 60 s; the last: exit code 3"
        exits = [r for r in it.records if r["event"] == "exited"]
        assert [(r["generation"], r["code"]) for r in exits] == [(1, 3), (2, 3), (3, 3)]
        await it.record(event="output", workload="crash", stream="stderr", message="oops", nth=3)
        status = await it.status("crash")
        assert (status["state"], status["restarts"], status["last_exit"]["code"]) == ("failed", 2, 3)


@pytest.mark.system
async def test_sigterm_stops_all_in_order_and_leaves_nothing(tmp_path, no_leaks):
    toml = """
    [workload.db]
    command = ["sleep", "1000"]
    [workload.web]
    command = ["sleep", "1000"]
    requires = ["db"]
    [workload.parent]
    command = ["sh", "-c", "sleep 1000 & sleep 1000 & wait"]
    [workload.parent.namespaces]
    pid = false
    """
    async with service(tmp_path, toml) as it:
        for name in ("db", "web", "parent"):
            await it.pid(name)
        started = [r["workload"] for r in it.records if r["event"] == "started"]
        assert started.index("db") < started.index("web")
    stopped = [r["workload"] for r in it.records if r["event"] == "state" and r["to"] == "stopped"]
    assert sorted(stopped) == ["db", "parent", "web"]
    assert stopped.index("web") < stopped.index("db")
    assert not Path(it.directory, "run", "api.sock").exists()


async def test_a_program_that_ignores_sigterm_is_killed_in_time(tmp_path):
    toml = """
    [workload.deaf]
    command = ["sh", "-c", "trap '' TERM; echo deaf; while :; do sleep 1; done"]
    timeout_stop_sec = "200ms"
    """
    async with service(tmp_path, toml) as it:
        await it.record(event="output", message="deaf")
        await it.cli("stop", "deaf")
        assert (await it.status("deaf"))["state"] == "stopped"
        assert (await it.record(event="exited", workload="deaf"))["signal"] == "SIGKILL"


async def test_an_operators_stop_stays_a_stop(tmp_path):
    async with service(tmp_path, STAYS.replace("command", 'restart = "always"\ncommand')) as it:
        await it.pid("chill")
        await it.cli("stop", "chill")
        status = await it.status("chill")
        assert (status["state"], status["reason"], status["restarts"]) == ("stopped", "stopped by operator", 0)
        await it.cli("start", "chill")
        assert await it.pid("chill", generation=2)
        await it.cli("restart", "chill")
        assert await it.pid("chill", generation=3)


async def test_kill_signal_freeze_and_thaw(tmp_path):
    toml = """
    [workload.echo]
    command = ["sh", "-c", "trap 'echo hup' HUP; echo up; while :; do sleep 0.1; done"]
    restart_sec = 0
    """
    async with service(tmp_path, toml) as it:
        await it.record(event="output", message="up")
        await it.cli("signal", "--signal", "HUP", "echo")
        await it.record(event="output", message="hup")
        await it.cli("freeze", "echo")
        assert (await it.status("echo"))["state"] == "frozen"
        await it.cli("thaw", "echo")
        assert (await it.status("echo"))["state"] == "running"
        await it.cli("kill", "echo")
        assert await it.pid("echo", generation=2)


async def test_set_up_failures_are_told_by_step_and_workload(tmp_path):
    toml = """
    [workload.nowhere]
    command = ["true"]
    working_directory = "/nonexistent/site"
    restart = "no"
    [workload.missing]
    command = ["no-such-program"]
    restart = "no"
    """
    async with service(tmp_path, toml) as it:
        record = await it.record(event="not started", workload="nowhere")
        assert record["message"] == "workload nowhere: cannot enter /nonexistent/site: No such file or directory"
        record = await it.record(event="not started", workload="missing")
        assert record["message"].startswith(
            "workload missing: cannot execute no-such-program: No such file or directory"
        )
        for name in ("nowhere", "missing"):
            await it.record(event="state", workload=name, to="failed")


async def test_what_cannot_be_had_is_refused_and_those_that_require_it_wait(tmp_path):
    toml = """
    [workload.db]
    command = ["no-such-program"]
    restart = "no"
    [workload.web]
    command = ["sleep", "1000"]
    requires = ["db"]
    [workload.cron]
    command = ["sleep", "1000"]
    wants = ["db"]
    """
    async with service(tmp_path, toml) as it:
        await it.record(event="state", workload="db", to="failed")
        refused = await it.record(event="waiting", level="warning", workload="web")
        assert refused["message"].startswith("requires db, which is failed: cannot execute no-such-program")
        assert await it.pid("cron")
        assert "requires db" in (await it.status("web"))["reason"]


async def test_notify_makes_ready_and_its_watchdog_restarts(tmp_path):
    watchdog = deadline(0.5)  # longer than the program takes to start
    toml = """
    [workload.api]
    type = "notify"
    command = ["python3", "-c", '''
import os, socket, time
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.connect(os.environ["NOTIFY_SOCKET"])
s.send(b"STATUS=warming up")
s.send(b"READY=1\\nWATCHDOG=1")
assert os.environ["WATCHDOG_USEC"] == "500000"
time.sleep(1000)
''']
    watchdog_sec = "500ms"
    restart = "on-watchdog"
    restart_sec = 0
    [workload.web]
    command = ["sleep", "1000"]
    requires = ["api"]
    """.replace("500000", f"{watchdog * 1e6:.0f}").replace("500ms", f"{watchdog * 1000:.0f}ms")
    async with service(tmp_path, toml) as it:
        await it.record(event="status", workload="api", message="warming up")
        await it.record(event="state", workload="api", to="ready")
        hangs = await it.record(event="state", workload="api", to="stopping")
        assert hangs["reason"] == f"no WATCHDOG=1 for {watchdog:g} s"
        assert (await it.record(event="exited", workload="api"))["signal"] == "SIGABRT"
        await it.record(event="state", workload="api", to="ready", nth=2)


async def test_nothing_in_a_clean_environment_but_what_was_given(tmp_path):
    file = tmp_path / "site.env"
    file.write_text('FROM_FILE="two words"\nBOTH=file\n')
    toml = f"""
    [workload.env]
    command = ["sh", "-c", "env | sort; id -u; umask; ulimit -n; pwd"]
    type = "oneshot"
    user = "nobody"
    umask = "0077"
    working_directory = "/usr"
    environment = {{ LITERAL = "100% $HOME", BOTH = "table" }}
    environment_file = ["{file}", "-/nonexistent"]
    security = {{ limit_nofile = 123 }}
    """
    async with service(tmp_path, toml) as it:
        await it.record(event="state", workload="env", to="exited")
        await it.record(event="output", message="/usr")
        lines = [r["message"] for r in it.records if r["event"] == "output"]
        assert lines == [
            "BOTH=table",
            "FROM_FILE=two words",
            "HOME=/nonexistent",
            "LITERAL=100% $HOME",
            "LOGNAME=nobody",
            "NSUPERVISOR_WORKLOAD=env",
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "PWD=/usr",
            "SHELL=/usr/sbin/nologin",
            "USER=nobody",
            "65534",
            "0077",
            "123",
            "/usr",
        ]


@pytest.mark.host_only
async def test_a_oneshot_that_is_done_is_not_done_again_for_those_that_require_it(tmp_path):
    """`start web` ran its preparation anew each time."""
    toml = """
    [workload.prepare]
    command = ["true"]
    type = "oneshot"
    [workload.web]
    command = ["sleep", "1000"]
    requires = ["prepare"]
    autostart = false
    """
    async with service(tmp_path, toml) as it:
        await it.record(event="state", workload="prepare", to="exited")
        await it.cli("start", "web")
        assert (await it.status("web"))["state"] == "running"
        assert (await it.status("prepare"))["generation"] == 1
        await it.cli("start", "prepare")  # but when asked for by name
        await it.record(event="state", workload="prepare", to="exited", nth=2)


async def test_a_second_signal_is_for_those_in_a_hurry(tmp_path):
    toml = """
    [workload.deaf]
    command = ["sh", "-c", "trap '' TERM; echo deaf; while :; do sleep 1; done"]
    timeout_stop_sec = "infinity"
    """
    async with service(tmp_path, toml) as it:
        await it.record(event="output", message="deaf")
        it.process.send_signal(signal.SIGTERM)
        await it.record(event="state", workload="deaf", to="stopping")
        it.process.send_signal(signal.SIGTERM)
        with trio.fail_after(deadline(10)):
            await it.process.wait()


async def test_a_second_supervisor_on_the_same_directory_is_refused(tmp_path):
    async with service(tmp_path, STAYS) as it:
        second = await it.cli_result("run", str(tmp_path / "nsupervisor.toml"))
        assert second.returncode == 1
        assert f"in use by another supervisor (pid {it.process.pid})" in second.stderr.decode()
        assert (await it.status("chill"))["state"] == "running"


async def test_an_idle_supervisor_does_not_spin(tmp_path):
    """In the field: a supervisor that polls a closed descriptor eats a whole core."""
    workloads = "".join(f'[workload.w{i}]\ncommand = ["sleep", "1000"]\n' for i in range(5))
    async with service(tmp_path, workloads) as it:
        for i in range(5):
            await it.pid(f"w{i}")
        info = await it.status("w0")
        assert info["state"] == "running"

        def cpu_seconds() -> float:
            fields = Path(f"/proc/{it.process.pid}/stat").read_text().rpartition(")")[2].split()
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

        before = cpu_seconds()
        await trio.sleep(2)  # the measured time itself, not a wait for something
        assert cpu_seconds() - before < 0.5  # a busy loop takes 2


async def test_two_signals_in_quick_succession_still_end_in_order(tmp_path, no_leaks):
    """A second SIGTERM that came while the service cleared up took the default action: status 143, cgroups left."""
    for round_ in range(5):
        directory = tmp_path / str(round_)
        directory.mkdir()
        async with service(directory, STAYS) as it:
            await it.pid("chill")
            it.process.send_signal(signal.SIGTERM)
            await it.record(event="supervisor stopping")
            while it.process.poll() is None:
                it.process.send_signal(signal.SIGTERM)
                await trio.sleep(0.002)
        assert it.process.returncode == 0


AT_EXIT = """
import atexit, signal, sys
from nsupervisor.service.run import SERVICE_SIGNALS, main
atexit.register(lambda: print([signal.getsignal(signum).name for signum in SERVICE_SIGNALS], file=sys.stderr))
sys.exit(main(sys.argv[1]))
"""


async def test_a_signal_while_the_interpreter_ends_replaced_the_exit_status(tmp_path, no_leaks):
    """The interpreter gives each signal with a handler its default action back, before the process has ended."""
    config = tmp_path / "site.toml"
    config.write_text(
        f'[supervisor]\nname = "at-exit-{os.getpid()}"\nruntime_directory = "{tmp_path}/run"\n'
        'exit_on = ["all exited"]\n[workload.job]\ntype = "oneshot"\ncommand = ["true"]\n'
    )
    done = await trio.run_process(
        [sys.executable, "-c", AT_EXIT, str(config)], capture_stdout=True, capture_stderr=True
    )
    assert done.stderr.decode() == "['SIG_IGN', 'SIG_IGN', 'SIG_IGN']\n"


async def test_a_signal_before_the_service_is_up_stops_it_in_order(tmp_path, no_leaks):
    async with service(tmp_path, STAYS, wait=False) as it:
        while not (tmp_path / "run" / "keeper.lock").exists():  # noqa: ASYNC110 - it has just begun
            await trio.sleep(0.001)
        assert await it.stop() == 0


@needs("userns")
async def test_a_service_that_yields_to_others_runs_user_namespaces(tmp_path, monkeypatch):
    """Programs had nice 0 unless they were told otherwise, and nobody in a user namespace may go back to that."""
    monkeypatch.setattr("tests.system.service.NSUPERVISOR", ["nice", "-n", "5", *NSUPERVISOR])
    toml = '[workload.mapped]\ncommand = ["sh", "-c", "nice; sleep 1000"]\nnamespaces = { user = true }\n'
    async with service(tmp_path, toml) as it:
        own = os.getpriority(os.PRIO_PROCESS, 0)  # of the tests, which may run with nice themselves
        assert (await it.record(event="output", workload="mapped"))["message"] == str(min(own + 5, 19))


@pytest.mark.fault("D23")
async def test_what_stays_in_the_runtime_directory(tmp_path: Path) -> None:
    """As docs/recovery.md says: an empty file after an orderly stop, and all of it after a start that failed."""
    run = tmp_path / "run"
    sleep = '[workload.web]\ncommand = ["sleep", "1000"]\n'
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        name, metrics = f"test-{os.getpid()}-{tmp_path.name[-24:]}", f"127.0.0.1:{taken.getsockname()[1]}"
        config = tmp_path / "failed.toml"
        config.write_text(f'[supervisor]\nname = "{name}"\nruntime_directory = "{run}"\nmetrics = "{metrics}"\n{sleep}')
        with trio.fail_after(deadline(20)):
            failed = await trio.run_process([*NSUPERVISOR, "run", str(config)], check=False, capture_stderr=True)
    assert b"Address already in use" in failed.stderr
    assert {path.name for path in run.iterdir()} == {"key", "keeper.lock", "lock", "notify", "state.json"}
    async with service(tmp_path, sleep):
        pass
    assert [(path.name, path.stat().st_size) for path in run.iterdir()] == [("keeper.lock", 0)]
