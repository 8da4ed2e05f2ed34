"""Each kind of namespace separates a program from the host; without it the program shares that with the host."""

import json
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.needs import needs
from tests.system.service import service

pytestmark = [
    needs("root", "cgroup", "userns", "netns", "time_namespace"),
    needs("program:bash", "program:ipcmk", "program:ipcs"),
]

NAMESPACES = {
    "mount": (
        "pid = false",
        "cd DIRECTORY; mount -t tmpfs none VALUE; touch VALUE/x; ls /proc/PID/root/DIRECTORY/VALUE; umount VALUE",
    ),
    "pid": ("", "kill -0 PID && echo x"),
    "uts": ("", "[ $(uname -n) = HOST ] && echo x"),
    "ipc": ("", "ipcs -m | grep -qw SEGMENT && echo x"),
    "cgroup": ("", "grep -q SERVICE /proc/self/cgroup && echo x"),
    "network": ("", "exec 3<>/dev/tcp/127.0.0.1/PORT && echo x"),
    "user": ("", "cat DIRECTORY/secret"),
    "time": ("", "[ $(cut -d. -f1 /proc/uptime) -lt 300000000 ] && echo x"),
}
"""Kind → further keys of `namespaces`, and a script that writes "x" if it reaches what the host has."""
TEN_YEARS = "time_offsets = { boottime = 315360000 }"


@pytest.fixture
def segment() -> Iterator[str]:
    """Make shared memory of System V; yield its number."""
    made = subprocess.run(["ipcmk", "--shmem", "4096"], capture_output=True, text=True, check=True).stdout
    number = made.split()[-1]
    yield number
    subprocess.run(["ipcrm", "--shmem-id", number], check=True)


async def test_each_namespace_separates_and_only_it(tmp_path: Path, segment: str) -> None:
    for value in ("true", "false"):  # both programs mount at the same time
        (tmp_path / value).mkdir()
    (tmp_path / "secret").write_text("x\n")
    (tmp_path / "secret").chmod(0o600)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        places = {
            "DIRECTORY": str(tmp_path), "PID": str(os.getpid()), "HOST": os.uname().nodename, "SEGMENT": segment,
            "SERVICE": f"test-{os.getpid()}", "PORT": str(listener.getsockname()[1]),
        }  # fmt: skip
        toml = ""
        for kind, (keys, script) in NAMESPACES.items():
            for word, place in places.items():
                script = script.replace(word, place)
            for value in ("true", "false"):
                further = TEN_YEARS if (kind, value) == ("time", "true") else ""
                spaces = ", ".join(filter(None, (f"{kind} = {value}", keys, further)))
                toml += f"""
                    [workload.{kind}-{value}]
                    command = ["bash", "-c", {json.dumps(script.replace("VALUE", value) + "; echo end")}]
                    restart = "no"
                    namespaces = {{ {spaces} }}
                    security = {{ profile = "none" }}
                    """
        found = {}
        async with service(tmp_path, toml) as it:
            for kind in NAMESPACES:
                for value in ("true", "false"):
                    name = f"{kind}-{value}"
                    await it.record(event="output", workload=name, message="end")
                    said = [r["message"] for r in it.records if r["event"] == "output" and r["workload"] == name]
                    found[name] = "x" in said
    assert found == {f"{kind}-{value}": value == "false" for kind in NAMESPACES for value in ("true", "false")}
