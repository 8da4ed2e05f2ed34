"""Root in a user namespace is not root of the host."""

from pathlib import Path

import pytest

from tests.needs import needs
from tests.roots import open_directories
from tests.system.service import service

pytestmark = [pytest.mark.host_only, needs("root", "cgroup", "userns")]

TWO = """
[workload.web]
command = ["sh", "-c", '''cat SECRET; head -c 1 /dev/kmsg; echo 1 >/proc/sys/kernel/panic; id -u; exec sleep 1000''']
instances = 2
namespaces = { user = true }
security = { profile = "none" }
"""


async def host_ids(it, name: str, generation: int = 1) -> tuple[int, int]:
    """Return the user and the group of an instance's program, by their numbers on the host."""
    pid = await it.pid(name, generation)
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    uid, gid = (int(line.split()[1]) for line in lines if line.startswith(("Uid:", "Gid:")))
    return uid, gid


@pytest.mark.fault("A5")
async def test_root_inside_was_root_outside(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    secret.chmod(0o600)
    open_directories(tmp_path / "x")
    toml = TWO.replace("SECRET", str(secret))
    async with service(tmp_path, toml) as it:
        first, second = await host_ids(it, "web@1"), await host_ids(it, "web@2")
        denied = [
            await it.record(event="output", workload="web@1", stream="stderr", nth=number) for number in (1, 2, 3)
        ]
        assert (await it.record(event="output", workload="web@1", stream="stdout"))["message"] == "0"
    assert ["denied" in record["message"] or "permitted" in record["message"] for record in denied] == [True] * 3
    assert first[0] == first[1] >= 524_288
    assert second[0] == second[1] >= 524_288
    assert abs(first[0] - second[0]) >= 65_536, "each instance has a range of its own"
    async with service(tmp_path, toml) as it:
        assert await host_ids(it, "web@1") == first, "the same after a restart of the service"
        await it.cli("restart", "web@2")
        assert await host_ids(it, "web@2", 2) == second


@pytest.mark.fault("A5")
async def test_given_mappings_count(tmp_path: Path) -> None:
    mappings = "uid_mappings = [{ container_id = 0, host_id = 100000, size = 10 }]"
    keys = f"namespaces = {{ user = true }}\nuser_namespace = {{ {mappings} }}\n"
    toml = f'[workload.web]\ncommand = ["sleep", "1000"]\n{keys}'
    async with service(tmp_path, toml) as it:
        uid, gid = await host_ids(it, "web")
    assert uid == 100_000
    assert gid >= 524_288, "the groups have no mappings, so they are not those of the host"
