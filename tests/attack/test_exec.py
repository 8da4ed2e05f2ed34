"""A workload that attacks the processes which enter its namespaces, before they have given up their privileges."""

import json
from pathlib import Path

import pytest
import trio

from nsupervisor.api.client import Client
from tests.needs import needs
from tests.system.service import service
from tests.timing import deadline

pytestmark = needs("root", "cgroup")

WATCHER = """
import os
known, seen, got = set(), 0, []

print("watching", flush=True)
while seen < SEEN and not got:
    for name in os.listdir("/proc"):
        if not name.isdecimal() or name in known or int(name) in (1, os.getpid()):
            continue
        pid = int(name)
        try:
            if not open(f"/proc/{pid}/comm").read().startswith("nsupervisor-for"):
                known.add(name)
                continue
        except OSError:
            continue
        found = []
        for kind, action in (
            ("exe", lambda: os.open(f"/proc/{pid}/exe", os.O_RDONLY)),
            ("memory", lambda: os.open(f"/proc/{pid}/mem", os.O_RDWR)),
            *((f"descriptor {n}", lambda n=n: os.readlink(f"/proc/{pid}/fd/{n}")) for n in (0, 3, 4, 5)),
            ("root", lambda: os.open(f"/proc/{pid}/root", os.O_RDONLY)),
            ("directory", lambda: os.readlink(f"/proc/{pid}/cwd")),
        ):
            try:
                found.append((kind, action()))
            except OSError:
                pass
        try:  # still before its exec: so this was about the process of the supervisor
            if open(f"/proc/{pid}/comm").read().startswith("nsupervisor-for"):
                seen += 1
                got += [(kind, str(value)) for kind, value in found if value]
        except OSError:
            pass
print("result", seen, got, flush=True)
import time
time.sleep(1000)
"""
"""It looks for processes that have yet to execute their command, and tries to get at them. The rights to open the
memory are those to trace a process, proc_pid_mem(5)."""
SEEN = 10


@pytest.mark.parametrize(
    "keys",
    ["", 'user = "daemon"', "namespaces = { user = true }"],
    ids=["root", "user", "mapped-root"],
)
async def test_a_workload_does_not_reach_the_process_that_enters(tmp_path: Path, keys: str) -> None:
    program = json.dumps(["python3", "-c", WATCHER.replace("SEEN", str(SEEN))])
    # Between the drop of privileges and its end the search takes some milliseconds.
    command = {"argv": ["true"], "environment": {"PATH": "/nowhere:" * 5000 + "/bin"}}
    async with service(tmp_path, f"[workload.web]\ncommand = {program}\n{keys}\n") as it:
        await it.record(event="output", message="watching")
        client = Client(str(tmp_path / "run" / "api.sock"))

        def execute() -> None:
            connection, _ = client.exec("web", command)
            with connection:
                while connection.recv(65536):
                    pass

        def result() -> str:
            texts = (record["message"] for record in it.records if record["event"] == "output")
            return next((text for text in texts if text.startswith("result")), "")

        with trio.fail_after(deadline(30)):
            while not result():
                await trio.to_thread.run_sync(execute)
        assert result() == f"result {SEEN} []"
