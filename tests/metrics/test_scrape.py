"""The real service, scraped as Prometheus does it, and by Prometheus."""

import json
import os
import re
import signal
import urllib.error
import urllib.parse
import urllib.request
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import trio

from tests.metrics.scraping import free_port, scrape
from tests.needs import ROOT, needs, scratch_disk
from tests.system.service import NSUPERVISOR, service
from tests.timing import deadline

pytestmark = [pytest.mark.system, needs("root", "cgroup")]

CALM = """
[workload.calm]
command = ["sh", "-c", "echo one; echo two >&2; echo three; exec sleep 1000"]
"""
CRASH = """
[workload.crash]
command = ["sh", "-c", "exit 3"]
restart_sec = "1ms"
start_limit_burst = 3
"""


def api(it) -> Path:
    return it.directory / "run" / "api.sock"


async def until(it, holds):
    """Scrape until it holds: what is counted may come a moment after the record that tells of it."""
    with trio.fail_after(deadline(10)):
        while not holds(found := await scrape(api(it))):  # noqa: ASYNC110 - what it waits for is in another process
            await trio.sleep(0.05)
    return found


@pytest.mark.host_only  # the same everywhere
async def test_a_scrape_over_the_unix_socket_says_how_workloads_are(tmp_path):
    toml = f"""
    {CALM}
    {CRASH}
    [workload.pair]
    command = ["sleep", "1000"]
    instances = 2
    autostart = false
    [workload.gone]
    command = ["/nonexistent"]
    restart = "no"
    """
    async with service(tmp_path, toml) as it:
        pid = await it.pid("calm")
        await it.record(event="state", workload="crash", to="failed")
        await it.record(event="state", workload="gone", to="failed")

        def all_is_counted(scraped) -> bool:  # the two streams come through different pipes
            lines = {"stdout": 2, "stderr": 1}
            return all(
                scraped.value("workload_output_lines_total", workload="calm", stream=stream) == number
                for stream, number in lines.items()
            )

        found = await until(it, all_is_counted)
        assert found.value("workload_state", workload="calm", state="running") == 1
        assert found.value("workload_state", workload="crash", state="failed") == 1
        assert found.value("workload_ready", workload="calm") == 1
        assert found.value("workload_generation", workload="crash") == 3
        assert found.value("workload_exits_total", workload="crash", kind="code") == 3
        assert found.value("workload_restarts_total", workload="crash", cause="exit-code") == 2
        assert found.value("workload_exits_total", workload="gone", kind="failure") == 1
        assert found.value("workload_output_bytes_total", workload="calm", stream="stdout") == len("one\nthree\n")
        assert found.value("workload_cpu_usage_seconds_total", workload="calm") > 0
        assert 0 < found.value("workload_uptime_seconds", workload="calm") < deadline(60)
        assert not list(found.values("workload_uptime_seconds", workload="crash"))
        for number in "12":
            labels = {"workload": "pair", "workload_instance": number}
            assert found.value("workload_state", **labels, state="stopped") == 1
        assert found.value("keeper_round_trip_seconds_count", request="spawn") == 5
        assert found.value("event_loop_lag_seconds_count") > 10
        assert found.value("build_info") == 1
        assert found.value("journal_failing") == 0
        (resident,) = (s.value for s in found.samples if s.name == "process_resident_memory_bytes")
        (kilobytes,) = re.findall(r"VmRSS:\s*(\d+) kB", Path(f"/proc/{it.process.pid}/status").read_text())
        assert resident == pytest.approx(int(kilobytes) * 1024, rel=0.5)
        os.kill(pid, signal.SIGKILL)
        await it.pid("calm", generation=2)
        found = await scrape(api(it))
        assert found.value("workload_restarts_total", workload="calm", cause="signal") == 1
        assert found.value("workload_exits_total", workload="calm", kind="signal") == 1


@needs("memory")
async def test_an_oom_kill_its_rule_and_the_reaction_are_measured(tmp_path):
    toml = """
    [workload.bloat]
    command = ["python3", "-c", "x = [bytearray(1 << 20) for _ in range(1000)]"]
    restart = "no"
    start_limit_burst = 2
    restart_sec = 0
    [workload.bloat.resources]
    memory_max = "24M"
    [[workload.bloat.policy]]
    when = "memory.events oom_kill"
    action = "restart"
    [[workload.bloat.policy]]
    when = "memory.events oom_kill"
    action = "kill"
    dry_run = true
    """
    async with service(tmp_path, toml) as it:
        await it.record(event="state", workload="bloat", to="failed", patience=30)
        found = await scrape(api(it))
        assert found.value("workload_memory_max_bytes", workload="bloat") == 24 << 20
        assert found.value("workload_memory_events_total", workload="bloat", event="oom_kill") >= 2
        assert found.value("workload_exits_total", workload="bloat", kind="oom") == 2
        assert found.value("workload_restarts_total", workload="bloat", cause="rule") == 1
        acted = found.value("workload_rule_actions_total", workload="bloat", rule="policy[0]", action="restart")
        assert acted == 2
        assert found.value("workload_rule_actions_total", workload="bloat", rule="policy[1]", action="kill") == 0
        # The notice of the kill and the notice of the death race; only the former has a moment to measure from.
        assert 0 <= found.value("rule_reaction_seconds_count") <= acted


@pytest.mark.host_only  # what differs is read by the rules' own test
@needs("pids")
async def test_the_reaction_to_a_level_is_measured(tmp_path):
    toml = """
    [workload.forks]
    command = ["sh", "-c", "sleep 1000 & sleep 1000 & sleep 1000 & wait"]
    [workload.forks.resources]
    pids_max = 10
    [[workload.forks.policy]]
    when = "pids.current >= 3"
    action = "log"
    """
    began = trio.current_time()
    async with service(tmp_path, toml) as it:
        await it.record(event="action", workload="forks", action="log")
        found = await until(it, lambda s: s.value("rule_reaction_seconds_count") >= 1)
        assert found.value("rule_reaction_seconds_count") == 1
        assert 0 < found.value("rule_reaction_seconds_sum") < trio.current_time() - began
        assert found.value("workload_rule_actions_total", rule="policy[0]", action="log") == 1
        assert (await until(it, lambda s: s.value("workload_pids_current") >= 4)).value("workload_pids_max") == 10


@pytest.mark.host_only
async def test_tcp_shows_the_same_as_the_unix_socket(tmp_path):
    port = free_port()
    async with service(tmp_path, CALM, metrics=f"127.0.0.1:{port}") as it:
        over_tcp = await scrape(f"http://127.0.0.1:{port}/metrics", accept="text/plain")
        over_unix = await scrape(api(it), accept="")

        def series(one):
            return {(s.name, *sorted(s.labels.items())) for s in one.samples if "keeper_round" not in s.name}

        assert series(over_tcp) == series(over_unix)


@pytest.mark.host_only
async def test_an_address_in_use_refuses_the_start_and_leaves_nothing(tmp_path, no_leaks):
    with trio.socket.socket() as taken:
        await taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        (tmp_path / "run").mkdir()
        config = tmp_path / "site.toml"
        config.write_text(
            f'[supervisor]\nname = "test-{os.getpid()}-taken"\nruntime_directory = "{tmp_path}/run"\n'
            f'metrics = "{address}"\n{CALM}'
        )
        with trio.fail_after(deadline(20)):
            ended = await trio.run_process(
                [*NSUPERVISOR, "run", str(config)], check=False, capture_stdout=True, capture_stderr=True
            )
    assert ended.returncode == 1
    text = f"supervisor.metrics: cannot listen at {address}: Address already in use; choose another address or port\n"
    assert ended.stderr.decode() == text
    assert b'"started"' not in ended.stdout


@pytest.mark.host_only
async def test_scrapes_leave_no_files_open(tmp_path):
    async with service(tmp_path, CALM) as it:
        await it.record(event="state", workload="calm", to="running")

        def cgroup_files() -> set[str]:
            found = set()
            for fd in Path(f"/proc/{it.process.pid}/fd").iterdir():
                with suppress(FileNotFoundError):  # closed since it was listed
                    found.add(os.readlink(fd))
            return {target for target in found if target.startswith("/sys/fs/cgroup")}

        before = cgroup_files()
        for _ in range(3):
            await scrape(api(it))
        # The service may be reading a file at this moment, as it may have been when the files were listed before.
        with trio.move_on_after(deadline(10)):
            while cgroup_files() - before:  # noqa: ASYNC110 - closing a file notifies no one
                await trio.sleep(0.01)
        assert cgroup_files() - before == set()


@pytest.mark.host_only
async def test_scrapes_at_once_all_get_an_answer(tmp_path):
    async with service(tmp_path, CALM) as it, trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(scrape, api(it))


@pytest.mark.host_only
@needs("program:promtool")
async def test_promtool_finds_nothing_wrong(tmp_path):
    async with service(tmp_path, CALM + CRASH) as it:
        await it.pid("calm")
        found = await scrape(api(it), accept="")
    checked = await trio.run_process(
        ["promtool", "check", "metrics"],
        stdin=found.text.encode(),
        capture_stdout=True,
        capture_stderr=True,
        check=False,
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")


def queries():
    """All of the dashboard's, with its variables filled in."""
    dashboard = json.loads((ROOT / "configs/grafana/nsupervisor.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            text = re.sub(r"\$(job|instance|workload)\b", ".*", target["expr"])
            yield re.sub(r"\$__(rate_interval|range)\b", "1m", text)


async def ask(port, path, **parameters):
    """Prometheus' HTTP API."""

    def get():
        url = f"http://127.0.0.1:{port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=deadline(10)) as response:
            return json.load(response)

    try:
        answer = await trio.to_thread.run_sync(get)
    except ConnectionRefusedError:
        return None
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 503:
                return None  # it is starting
            raise AssertionError(f"{parameters}: {error.read().decode()}") from error
    except urllib.error.URLError as error:
        if isinstance(error.reason, ConnectionRefusedError):
            return None
        raise
    assert answer["status"] == "success"
    return answer["data"]


@pytest.mark.host_only
@needs("program:prometheus")
async def test_prometheus_scrapes_it_and_answers_the_dashboard(tmp_path):
    ours, its = free_port(), free_port()
    config = tmp_path / "prometheus.yml"
    config.write_text(
        json.dumps(  # which is YAML too
            {
                "global": {"scrape_interval": "250ms", "scrape_timeout": "250ms"},
                "rule_files": [str(ROOT / "configs/prometheus/nsupervisor.rules.yml")],
                "scrape_configs": [
                    {"job_name": "nsupervisor", "static_configs": [{"targets": [f"127.0.0.1:{ours}"]}]},
                ],
            }
        )
    )
    command = [
        "prometheus",
        f"--config.file={config}",
        f"--storage.tsdb.path={tmp_path / 'data'}",
        f"--web.listen-address=127.0.0.1:{its}",
        "--log.level=warn",
    ]
    async with service(tmp_path, CALM + CRASH, metrics=f"127.0.0.1:{ours}"), trio.open_nursery() as nursery:
        with (tmp_path / "prometheus.log").open("wb") as log:
            start = partial(trio.run_process, command, stdout=log, stderr=log, check=False, cwd=tmp_path)
            prometheus = await nursery.start(start)
        try:
            with trio.fail_after(deadline(40)):
                while True:
                    data = await ask(its, "query", query="nsupervisor_workload_state{state='failed'} == 1")
                    if data and data["result"]:
                        break
                    await trio.sleep(0.1)
            (found,) = data["result"]
            assert found["metric"]["workload"] == "crash"
            assert found["metric"]["instance"] == f"127.0.0.1:{ours}"
            (target,) = (await ask(its, "targets"))["activeTargets"]
            assert (target["health"], target["lastError"]) == ("up", "")
            asked = list(queries())
            assert len(asked) > 30
            for query in asked:
                assert await ask(its, "query", query=query) is not None
            metadata = await ask(its, "metadata")
            assert metadata["nsupervisor_workload_exits"][0]["type"] == "counter"
        finally:
            prometheus.terminate()
    assert "level=error" not in (tmp_path / "prometheus.log").read_text()


@pytest.mark.host_only
async def test_every_metric_of_the_dashboard_and_of_the_alerts_is_in_a_scrape(tmp_path):
    async with service(tmp_path, CALM) as it:
        await it.pid("calm")
        found = await scrape(api(it))
    suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_count", "_sum"], "gauge": [""], "info": ["_info"]}
    there = {f"{name}{suffix}" for name, kind in found.types.items() for suffix in suffixes[kind]}
    labels: dict[str, set[str]] = {}
    for sample in found.samples:
        labels.setdefault(sample.name, set()).update(sample.labels)
    rules = (ROOT / "configs/prometheus/nsupervisor.rules.yml").read_text()
    for text in [*queries(), *re.findall(r"expr: (?:>-\n)?((?:.*|\n +[^a-z\n].*)+)", rules)]:
        used = re.findall(r"\b((?:nsupervisor|process)_[a-z_]+)\b(?:\{([^}]*)\})?", text)
        assert used or "up{" in text, text
        for name, selectors in used:
            assert name in there, text
            for label in re.findall(r"([a-z_]+)=", selectors):
                known = labels.get(name, {label}) | {"job", "instance"}
                assert label in known, (label, text)


@needs("cgroup_v2", "io", "scratch_disk")
async def test_bytes_read_from_a_disk_are_counted_by_device(tmp_path):
    disk = scratch_disk()
    toml = f"""
    [workload.reader]
    command = ["dd", "if={disk}", "of=/dev/null", "bs=1M", "count=4", "iflag=direct"]
    type = "oneshot"
    security.device_allow = ["{disk} r"]
    [workload.reader.resources]
    io_max = [{{ device = "{disk}", wbps = "1G" }}]
    """
    number = os.stat(disk).st_rdev
    async with service(tmp_path, toml) as it:
        await it.record(event="state", workload="reader", to="exited")
        found = await scrape(api(it))
        device = f"{os.major(number)}:{os.minor(number)}"
        assert found.value("workload_io_read_bytes_total", device=device) == 4 << 20
        assert found.value("workload_io_written_bytes_total", device=device) == 0
