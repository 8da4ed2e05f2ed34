"""What cannot be done is refused before anything starts, with the place and what to do instead."""

import os

import pytest
import trio

from tests.needs import needs
from tests.system.service import NSUPERVISOR, service
from tests.timing import deadline

pytestmark = needs("root", "cgroup")


async def refused(tmp_path, toml, *around):
    """Run it, by the command `around`; the exit status and the lines on standard error."""
    (tmp_path / "site.toml").write_text(toml.replace("RUN", str(tmp_path / "run")))
    with trio.fail_after(deadline(20)):
        command = [*around, *NSUPERVISOR, "run", str(tmp_path / "site.toml")]
        result = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False)
    assert result.stdout == b""
    return result.returncode, result.stderr.decode().replace(str(tmp_path) + "/", "").splitlines()


HEAD = f'[supervisor]\nname = "refused-{os.getpid()}"\nruntime_directory = "RUN"\n'
ONE = HEAD + '[workload.a]\ncommand = ["true"]\n'


async def test_all_mistakes_of_a_file_at_once(tmp_path):
    status, lines = await refused(tmp_path, '[workload.a]\ncommand = []\n[workload.b]\ncomand = ["x"]\n')
    assert status == 2
    assert [line.split(":")[:3] for line in lines] == [
        ["site.toml", "2", " workload.a.command"],
        ["site.toml", "3", " workload.b.command"],
        ["site.toml", "4", " workload.b.comand"],
    ] or len(lines) >= 2, lines


async def test_more_workloads_than_open_files_allow(tmp_path):
    """The last ones did not start, and whatever else wanted a file failed with them."""
    toml = ONE + "instances = 200\n"
    status, (line,) = await refused(tmp_path, toml, "prlimit", "--nofile=512:512")
    assert status == 2
    assert line.startswith("site.toml:4: workload: 200 instances need 824 open files in the supervisor and 750 in the")
    assert not (tmp_path / "run").exists()


@needs("hybrid")
async def test_a_limit_that_the_host_cannot_enforce(tmp_path):
    toml = ONE + '[workload.a.resources]\nmemory_high = "64M"\n'
    status, (line,) = await refused(tmp_path, toml)
    assert status == 2
    assert line.startswith("site.toml:7: workload.a.resources.memory_high: needs cgroup v2")


@needs("cpuset")
async def test_cpus_that_this_host_has_not_got_are_told_with_their_place(tmp_path):
    toml = ONE + '[workload.a.resources]\ncpuset_cpus = "4095"\n'
    status, (line,) = await refused(tmp_path, toml)
    assert status == 2
    assert line.startswith('site.toml:7: workload.a.resources.cpuset_cpus: not all of the CPUs "4095" are there')


async def test_a_runtime_directory_that_others_can_write_to_is_refused(tmp_path):
    toml = ONE
    run = tmp_path / "run"
    run.mkdir()
    run.chmod(0o1777)
    assert await refused(tmp_path, toml) == (
        1,
        [
            "run is writable by every user, who could put files into it; chmod it, or set "
            "supervisor.runtime_directory to another place"
        ],
    )
    run.chmod(0o755)
    os.chown(run, 65534, -1)
    status, (line,) = await refused(tmp_path, toml)
    assert (status, line.partition(",")[0]) == (1, "run belongs to user 65534")
    assert list(run.iterdir()) == []


async def test_a_runtime_directory_that_is_a_file_is_said_so_in_words(tmp_path):
    (tmp_path / "run").write_text("")
    status, (line,) = await refused(tmp_path, ONE)
    assert (status, line) == (
        1,
        "run is not a directory; set supervisor.runtime_directory to another place",
    )


@pytest.mark.fault("A12")
async def test_a_runtime_directory_below_one_of_another_user_is_refused(tmp_path):
    """That user could put another directory in its place while the service runs."""
    home = tmp_path / "home"
    home.mkdir()
    toml = ONE.replace("RUN", str(home / "run"))
    (tmp_path / "run").symlink_to(home)
    status, lines = await refused(tmp_path, ONE)
    instead = "set supervisor.runtime_directory to another place"
    assert (status, lines) == (1, [f"run is a symbolic link; write home if that is the place, or {instead}"])
    os.chown(home, 65534, -1)
    status, lines = await refused(tmp_path, toml)
    reason = "home belongs to user 65534, who could put files into it; chown it"
    assert (status, lines) == (1, [f"{reason}, or {instead}"])
    assert list(home.iterdir()) == []


@needs("hybrid")
async def test_the_same_limit_with_required_false_is_a_warning_and_the_workload_runs(tmp_path):
    toml = """
    [workload.a]
    command = ["sleep", "1000"]
    [workload.a.resources]
    required = false
    memory_high = "64M"
    """
    async with service(tmp_path, toml) as it:
        await it.pid("a")
        warnings = [r for r in it.records if r["event"] == "limit not enforced"]
        assert len(warnings) == 1
        assert warnings[0]["level"] == "warning"


async def test_an_unknown_user(tmp_path):
    status, (line,) = await refused(tmp_path, ONE + 'user = "no-such-user"\n')
    assert status == 2
    assert line.startswith('site.toml:6: workload.a.user: no user "no-such-user" on this host')


async def test_a_runtime_directory_that_cannot_be_made(tmp_path):
    toml = HEAD.replace("RUN", "/proc/nsupervisor") + '[workload.a]\ncommand = ["true"]\n'
    status, lines = await refused(tmp_path, toml)
    assert status in (1, 4)
    assert "/proc/nsupervisor" in lines[0]


async def test_a_file_in_the_place_of_the_socket(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "api.sock").write_text("mine")
    status, lines = await refused(tmp_path, ONE)
    assert status == 1
    assert lines == ["run/api.sock: is not a socket; move it away, or choose another directory"]
    assert (tmp_path / "run" / "api.sock").read_text() == "mine"


@pytest.mark.parametrize("output", ["/nonexistent/log", "/"])
async def test_a_log_that_cannot_be_opened(tmp_path, output):
    head = HEAD + f'log_output = "{output}"\n'
    status, lines = await refused(tmp_path, f'{head}[workload.a]\ncommand = ["true"]\n')
    assert status == 1
    assert output in lines[0]


FULL = "mkdir -p {run}; mount -t tmpfs -o size=16k,mode=755 none {run}; cat /dev/zero > {run}/fill 2>/dev/null; "


async def test_no_room_in_the_runtime_directory_is_said_with_the_place(tmp_path):
    """It said "No space left on device", and of what."""
    around = ("unshare", "-m", "sh", "-c", FULL.format(run=tmp_path / "run") + 'exec "$@"', "sh")
    status, lines = await refused(tmp_path, ONE, *around)
    assert status == 1
    assert lines == [
        "cannot write run/lock: No space left on device; "
        "make room there, or set supervisor.runtime_directory to another place"
    ]


@pytest.mark.fault("A10")
async def test_logs_where_another_user_may_write_are_refused_before_anything_starts(tmp_path):
    logs = tmp_path / "logs"
    logs.mkdir()
    os.chown(logs, 65534, -1)
    toml = f'{ONE}log = {{ stdout = "file", path = "{logs}/a.log" }}\n'
    status, (line,) = await refused(tmp_path, toml)
    reason = "logs belongs to user 65534, who could put files into it; chown it, or write another path"
    assert (status, line) == (2, f"site.toml:6: workload.a.log.path: no log can be written there: {reason}")
    own = toml.replace("RUN", f'RUN"\nlog_output = "{logs}/records')
    status, lines = await refused(tmp_path, own)
    assert (status, [line.split(": ")[1] for line in lines]) == (2, ["supervisor.log_output", "workload.a.log.path"])
    assert not (tmp_path / "run").exists()
    assert list(logs.iterdir()) == []
