"""The same scenarios on the kernel and on the simulated machine have the same transcripts.

If the order of concurrent things is free, the transcript of the kernel is one of those that the simulation produces
with several seeds.
"""

import difflib
import json
from typing import Any

import pytest
import trio

from tests.needs import needs
from tests.simulation.players import play_on_kernel, play_simulated
from tests.simulation.scenarios import SCENARIOS, Scenario

SEEDS = range(12)

pytestmark = [pytest.mark.host_only, needs("root", "cgroup")]


@pytest.fixture(scope="module")
def on_kernel(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Play all scenarios on the kernel; return their transcripts."""
    return trio.run(play_on_kernel, SCENARIOS, tmp_path_factory.mktemp("scenarios"))


@pytest.mark.parametrize("scenario", [pytest.param(one, id=one.name, marks=needs(*one.needs)) for one in SCENARIOS])
def test_the_kernel_and_the_simulation_have_the_same_transcript(scenario: Scenario, on_kernel: dict[str, Any]) -> None:
    for name, real in on_kernel[scenario.name].items():
        closest = ""
        for seed in SEEDS:
            simulated = play_simulated(scenario, seed)[name]
            files = {file: simulated["files"][file] for file in real["files"]}
            difference = _difference({**simulated, "files": files}, real)
            if not difference:
                break
            closest = min(closest or difference, difference, key=len)
        else:
            pytest.fail(f"{name}: no simulated transcript is that of the kernel; the closest one:\n{closest}")


def _difference(simulated: Any, real: Any) -> str:
    lines = (
        [
            *map(json.dumps, one["records"]),
            *map(str, one["output"]),
            *map(str, one["status"].items()),
            *map(str, one["files"].items()),
        ]
        for one in (simulated, real)
    )
    return "\n".join(difflib.unified_diff(*lines, "simulated", "kernel", lineterm="", n=1))
