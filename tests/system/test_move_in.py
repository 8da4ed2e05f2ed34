"""Patterns of other supervisors' files, moved to this one, with real programs.

Elsewhere: values of the outer environment (`test_outer_environment.py`), raw output (`test_logs.py`), timers
(`tests/service/timers`).
"""

import os
import signal
from pathlib import Path

import pytest
import trio

from tests.needs import needs
from tests.system.service import service
from tests.timing import deadline

pytestmark = [pytest.mark.host_only, needs("root", "cgroup")]

FORKING = """
[workload.back]
command = ["sh", "-c", "sleep 1000 & echo $! > {directory}/back.pid"]
type = "forking"
pid_file = "{directory}/back.pid"
"""


async def test_a_forking_service_is_running_while_its_daemon_lives_and_a_stop_ends_it(tmp_path: Path) -> None:
    async with service(tmp_path, FORKING.format(directory=tmp_path)) as it:
        await it.record(event="main process", workload="back")
        assert (await it.status("back"))["state"] == "running"
        await it.cli("stop", "back")
        assert (await it.status("back"))["state"] == "stopped"
        assert (await it.record(event="exited", workload="back"))["signal"] == "SIGTERM"


ENDS_ALL = """
[workload.helper]
command = ["sleep", "infinity"]
[workload.main]
command = ["sh", "-c", "read x < {directory}/gate; exit 7"]
restart = "no"
"""


async def test_the_end_of_one_program_ends_everything_with_its_status(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "gate")
    text = 'exit_on = ["main exited", "main failed"]\n' + ENDS_ALL.format(directory=tmp_path)
    async with service(tmp_path, text, status=7) as it:
        await it.record(event="state", workload="helper", to="running")
        with (tmp_path / "gate").open("w") as gate:
            gate.write("\n")
        with trio.fail_after(deadline(30)):
            assert await it.process.wait() == 7
        record = await it.record(event="exited", workload="helper")
        assert record["signal"] == signal.SIGTERM.name, "it was stopped in order"


READINESS = """
[workload.db]
command = ["sh", "-c", "read x < {directory}/gate; touch {directory}/there; exec sleep 1000"]
kill_signal = "SIGINT"
readiness = {{ exec = ["test", "-e", "{directory}/there"], start_interval_sec = "100ms", failure_threshold = 20 }}
[workload.migrate]
command = ["test", "-e", "{directory}/there"]
type = "oneshot"
restart = "no"
requires = ["db"]
[workload.api]
command = ["sleep", "1000"]
requires = [{{ name = "migrate", condition = "completed_successfully" }}]
"""


async def test_dependants_wait_for_a_probe(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    os.mkfifo(tmp_path / "gate")
    async with service(tmp_path, READINESS.format(directory=tmp_path)) as it:
        await it.record(event="state", workload="db", to="running")
        assert (await it.status("api"))["state"] == "stopped"
        with (tmp_path / "gate").open("w") as gate:
            gate.write("\n")
        await it.record(event="state", workload="api", to="running")
        order = [(r["workload"], r["to"]) for r in it.records if r["event"] == "state"]
        assert order.index(("db", "ready")) < order.index(("migrate", "starting"))
        assert order.index(("migrate", "exited")) < order.index(("api", "starting"))


SMALL_RIGHTS = """
[workload.tiny]
command = ["python3", "-m", "http.server", "80", "--bind", "127.0.0.1"]
user = "nobody"
condition_path_exists = ["!/etc/tiny.off"]
runtime_directory = ["tiny-test"]
oom_score_adjust = {score}
namespaces = {{ network = true }}
readiness = {{ tcp_socket = {{ port = 80 }}, start_interval_sec = "100ms" }}
[workload.tiny.security]
capability_bounding_set = ["NET_BIND_SERVICE"]
ambient_capabilities = ["NET_BIND_SERVICE"]
protect_system = "strict"
read_write_paths = ["/run/tiny-test"]
private_devices = true
protect_kernel_tunables = true
restrict_address_families = ["AF_INET"]
system_call_filter = ["@system-service"]
"""


@pytest.mark.parametrize("score", [pytest.param(-500, marks=needs("sys_resource")), 500])
async def test_a_service_with_few_rights_binds_a_port_below_1024_as_nobody(tmp_path: Path, score: int) -> None:
    """In a network of its own: port 80 of the host may be in use."""
    async with service(tmp_path, SMALL_RIGHTS.format(score=score)) as it:
        await it.record(event="state", workload="tiny", to="ready")
        pid = await it.pid("tiny")
        uid = Path("/run/tiny-test").stat().st_uid
        assert uid == Path(f"/proc/{pid}").stat().st_uid != 0
        assert Path(f"/proc/{pid}/oom_score_adj").read_text() == f"{score}\n"
    assert not Path("/run/tiny-test").exists()
