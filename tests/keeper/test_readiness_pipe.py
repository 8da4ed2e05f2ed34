"""The pipe on which a program says that it is ready: made by the keeper, read by whichever client there is."""

import os
from typing import Any

import pytest

from nsupervisor.keeper.messages import SpawnError
from tests.keeper.conftest import WAYS_TO_START, Harness
from tests.needs import needs

pytestmark = needs("root")

SAY = """
import os, sys
present = [fd for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")]
print(*sorted(present, key=int))
os.write(int(sys.argv[1]), b"\\n")
"""


@WAYS_TO_START
@pytest.mark.parametrize("number", [3, 4, 9, 100])
async def test_a_program_writes_to_its_descriptor_and_has_no_other(
    harness: Harness, spec: dict[str, Any], number: int
) -> None:
    spawned = await harness.spawn("python3", "-Ic", SAY, str(number), readiness_fd=number, **spec)
    result = await harness.finish(spawned)
    assert result.stdout.strip() == f"0 1 2 {number}"
    assert os.read(spawned.readiness, 10) == b"\n"
    os.close(spawned.readiness)


async def test_the_keeper_lists_the_pipe_with_what_waits_in_it(harness: Harness) -> None:
    """As for a supervisor that starts after another one was killed. The program gets no SIGPIPE meanwhile."""
    script = "echo >&9; echo more >&9; echo done; exec sleep 1000"
    spawned, _ = await harness.run_until_ready("sh", "-c", script, readiness_fd=9)
    os.close(spawned.readiness)
    (child,) = await harness.keeper.list()
    assert os.read(child.readiness, 10) == b"\nmore\n"
    with pytest.raises(BlockingIOError):
        os.read(child.readiness, 10)
    for fd in (child.stdout, child.stderr, child.readiness):
        os.close(fd)
    (bare,) = await harness.keeper.list(without_descriptors=True)
    assert bare.readiness == -1


@pytest.mark.parametrize("number", [2, 1024, -5, "3"])
async def test_numbers_that_are_refused(harness: Harness, number: object) -> None:
    with pytest.raises(SpawnError, match="readiness_fd"):
        await harness.spawn("true", readiness_fd=number)


async def test_too_low_a_limit_for_the_number(harness: Harness) -> None:
    spawned = await harness.spawn("true", readiness_fd=100, rlimits={"nofile": [50, 50]})
    result = await harness.finish(spawned)
    os.close(spawned.readiness)
    assert result.failure is not None
    assert result.failure.step == "pass_descriptors"
    assert "limit_nofile is too low" in result.failure.message
