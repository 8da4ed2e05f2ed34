"""`kill_mode = "process"` with real processes: what a program leaves outlives its stop and a kill of the service."""

import os
from pathlib import Path

import trio

from tests.needs import needs
from tests.system.service import Service, service
from tests.timing import deadline

pytestmark = needs("root")

LEAVES = """
[workload.web]
command = ["/bin/sh", "-c", "sleep 1000 & echo left $!; exec sleep 1000"]
kill_mode = "process"
namespaces = { pid = false }
restart = "no"
"""


async def pid_of_left(it: Service, nth: int = 1) -> int:
    def found() -> list[int]:
        texts = [str(one["message"]) for one in it.records if one["event"] == "output"]
        return [int(text.split()[1]) for text in texts if text.startswith("left ")]

    assert await it.heard(lambda: len(found()) >= nth)
    return found()[nth - 1]


def runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_what_a_program_leaves_runs_on(tmp_path: Path) -> None:
    async with service(tmp_path, LEAVES, status=-9) as it:
        first = await pid_of_left(it)
        await it.cli("stop", "web")
        assert runs(first)
        assert "processes that it has left run on" in await it.cli("status", "web")
        await it.cli("start", "web")
        second = await pid_of_left(it, 2)
        await it.cli("stop", "web")
        it.process.kill()
        await it.process.wait()
    async with service(tmp_path, LEAVES) as it:
        assert runs(first)
        assert runs(second)
        assert "processes that it has left run on" in await it.cli("status", "web")
        await it.stop()
    with trio.fail_after(deadline(20)):
        while runs(first) or runs(second):  # noqa: ASYNC110 - they are not our children
            await trio.sleep(0.01)
