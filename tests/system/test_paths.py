"""Starts and reloads because of files: a real service, real files, and kills."""

import os
from pathlib import Path

import trio

from tests.system.service import service
from tests.timing import deadline

JOB = """
[workload.job]
command = ["/bin/sh", "-c", "echo took $(cat {directory}/in/*); rm {directory}/in/*"]
type = "oneshot"
[[workload.job.paths]]
directory_not_empty = "{directory}/in"
exclude = ["*.part"]

[workload.watch]
command = ["/bin/cat", "{directory}/web.toml"]
type = "oneshot"
[[workload.watch.paths]]
path_changed = "{directory}/web.toml"
"""


async def test_files_start_programs_also_after_a_kill_of_the_service(tmp_path: Path) -> None:
    """An editor replaces a file while the service is away, and a client puts a file into a directory."""
    (tmp_path / "in").mkdir()
    web = tmp_path / "web.toml"
    web.write_text("first")
    toml = JOB.format(directory=tmp_path)

    def replace(text: str) -> None:
        (tmp_path / "web.toml.new").write_text(text)
        os.replace(tmp_path / "web.toml.new", web)

    async with service(tmp_path, toml, isolation="none", status=-9) as it:
        (tmp_path / "in" / "a.part").write_text("one")
        os.rename(tmp_path / "in" / "a.part", tmp_path / "in" / "a")
        await it.record(event="output", message="took one")
        await it.until(lambda: not os.listdir(tmp_path / "in"))
        with trio.fail_after(deadline(20)):
            while "not watched yet" in await it.cli("status", "watch"):
                pass
        replace("second")
        await it.record(event="output", message="second")
        it.process.kill()
        await it.process.wait()
    replace("third")
    (tmp_path / "in" / "b").write_text("two")
    async with service(tmp_path, toml, isolation="none") as it:
        await it.record(event="output", message="third")
        await it.record(event="output", message="took two")
        shown = await it.cli("status", "watch")
        assert f"path_changed {web}: start" in shown
        assert f"path {web}" in await it.cli("why", "watch")
