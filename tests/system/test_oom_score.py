"""The OOM score of a program: the key, or that of the service."""

from pathlib import Path

import pytest

from tests.needs import needs
from tests.system.service import service

pytestmark = needs("root", "cgroup")

TOML = """
[workload.kept]
command = ["cat", "/proc/self/oom_score_adj"]
restart = "no"
[workload.first]
command = ["cat", "/proc/self/oom_score_adj"]
restart = "no"
oom_score_adjust = 600
"""


@pytest.mark.fault("D23")
async def test_the_oom_score_was_inherited_and_no_key_set_it(tmp_path):
    async with service(tmp_path, TOML) as it:
        own = Path("/proc/self/oom_score_adj").read_text().strip()
        assert (await it.record(event="output", workload="kept"))["message"] == own
        assert (await it.record(event="output", workload="first"))["message"] == "600"
