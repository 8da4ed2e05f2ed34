"""Processes that another program has frozen: a stop ends them all the same."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.needs import cgroup_directories, needs
from tests.system.service import service

pytestmark = [pytest.mark.host_only, needs("root", "cgroup", "hybrid")]


@pytest.fixture
def freezer() -> Iterator[Path]:
    """A cgroup of version 1 in the freezer hierarchy."""
    directories = cgroup_directories()
    if "freezer" not in directories:
        pytest.skip("needs a mounted freezer hierarchy")
    directory = directories["freezer"] / f"frozen-by-others-{os.getpid()}"
    directory.mkdir()
    yield directory
    (directory / "freezer.state").write_text("THAWED")
    directory.rmdir()


@pytest.mark.fault("C8")
async def test_a_frozen_process_was_reported_again_and_again_as_waiting_for_a_disk(
    tmp_path: Path, freezer: Path
) -> None:
    toml = """
    [workload.web]
    command = ["sleep", "1000"]
    timeout_stop_sec = "1s"
    """
    async with service(tmp_path, toml) as it:
        pid = await it.pid("web")
        (freezer / "cgroup.procs").write_text(str(pid))
        (freezer / "freezer.state").write_text("FROZEN")
        await it.until(lambda: (freezer / "freezer.state").read_text() == "FROZEN\n")
        await it.cli("stop", "web")
        assert (await it.record(event="exited", workload="web"))["signal"] in ("SIGTERM", "SIGKILL"), "both waited"
        (warning,) = [r["message"] for r in it.records if r["event"] == "warning" and r.get("workload") == "web"]
        assert warning.startswith("still populated 1 s after SIGKILL: another program has frozen process ")
        assert str(pid) in warning
        assert warning.endswith(f" in {freezer}; they have been moved out, so that they end")
