"""The service after its working directory has been removed or replaced."""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import trio

from tests.needs import needs
from tests.system.service import NSUPERVISOR, Service
from tests.timing import deadline

pytestmark = needs("root", "cgroup")


@pytest.mark.fault("D18")
async def test_a_replaced_directory_took_the_configuration_along(tmp_path: Path) -> None:
    """A new version of a site is a new directory of the same name. The next supervisor found no file to begin with."""
    site, old = tmp_path / "site", tmp_path / "old"
    site.mkdir()
    text = f"""
    [supervisor]
    name = "directory-{os.getpid()}"
    runtime_directory = "{tmp_path}/run"
    [workload.web]
    command = ["sleep", "1000"]
    """
    (site / "site.toml").write_text(text)
    async with trio.open_nursery() as nursery:
        process = await trio.lowlevel.open_process(
            [*NSUPERVISOR, "run", "--supervise-self", "site.toml"],
            cwd=site,
            env={**os.environ, "PYTHONPATH": os.getcwd()},
            stdout=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
        )
        it = Service(process, tmp_path)
        nursery.start_soon(it.read)
        try:
            first = await it.record(event="supervisor started")
            assert first["config"] == str(site / "site.toml")
            pid = await it.pid("web")
            site.rename(old)
            site.mkdir()
            (site / "site.toml").write_text(f'{text}\n[workload.new]\ncommand = ["sleep", "1000"]\n')
            shutil.rmtree(old)
            os.kill(first["pid"], signal.SIGKILL)
            await it.record(event="supervisor started", nth=2)
            await it.record(event="started", workload="new")
            await it.cli("reload")
            assert (await it.status("web"))["pid"] == pid
        finally:
            process.terminate()
            with trio.move_on_after(deadline(15), shield=True):
                await process.wait()
