"""A small service in memory that the real API serves on a real socket.

`python -m tests.api.standin` reads paths of sockets from stdin, one a line, and forks a fresh service for each, which
says "PID listening". So what takes longer than most tests, to import it all, is done once.
"""

import difflib
import fnmatch
import json
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import contextmanager
from typing import Any

import trio

from nsupervisor.api import exec_frames as frames
from nsupervisor.api.application import app
from nsupervisor.api.control import ExecRefused, ExecTerms, UnknownName
from nsupervisor.api.http.messages import Channel, Switch
from nsupervisor.api.server import serve
from nsupervisor.config.files import IncludedFile
from nsupervisor.config.load import parse
from nsupervisor.core.reload.plan import make_plan
from nsupervisor.json_codec import encode_line
from nsupervisor.line_stream import LineStream
from nsupervisor.linux.peers import Peer
from nsupervisor.metrics.formats import choose_format
from nsupervisor.service.observe.history import History


def instance(name: str, state: str = "running", **more: Any) -> dict[str, Any]:
    number = int(name.partition("@")[2]) if "@" in name else None
    alive = state in ("running", "ready", "frozen")
    return {
        "name": name,
        "instance": number,
        "description": "",
        "command": ["sleep", "infinity"],
        "root": "",
        "state": state,
        "reason": "",
        "pid": 4242 if alive else None,
        "generation": 1,
        "restarts": 0,
        "uptime_sec": 93784.25 if alive else None,
        "next_start_sec": None,
        "ready": alive,
        "edges": [],
        "status_text": "",
        "error_text": "",
        "phase": "",
        "output_blocked_sec": None,
        "probes": {},
        "sockets": [],
        "stored_descriptors": [],
        "stored_descriptors_max": 0,
        "output_blocked_by": "",
        "cgroup": f"/sys/fs/cgroup/nsupervisor/{name}",
        "memory_current": 12_939_428 if alive else 0,
        "memory_max": 64 << 20,
        "pids_current": 3 if alive else 0,
        "pids_max": None,
        "cpu_usage_usec": 1_234_567,
        "network_receive_bytes": None,
        "network_transmit_bytes": None,
        "network_receive_packets": None,
        "network_transmit_packets": None,
        "last_exit": None,
        "last_event": None,
        **more,
    }


def stats(one: dict[str, Any], nth: int) -> dict[str, Any]:
    """The counters of an instance at sample number `nth`: one a second, in which it used a quarter of a processor."""
    same = {key: one[key] for key in ("name", "state", "generation", "memory_current", "memory_max", "pids_max")}
    return {
        "at": 1000.0 + nth,
        **same,
        "pids_current": one["pids_current"],
        "cpu_usage_usec": 250_000 * nth,
        "cpu_max_percent": 50.0,
        "periods": 10 * nth,
        "throttled_periods": 2 * nth,
        "throttled_usec": 100_000 * nth,
        "io_read_bytes": None,
        "io_write_bytes": 2048 * nth,
        "network_receive_bytes": 1024 * nth if one["name"] == "db" else None,
        "network_transmit_bytes": 512 * nth if one["name"] == "db" else None,
        "network_receive_packets": 4 * nth if one["name"] == "db" else None,
        "network_transmit_packets": 2 * nth if one["name"] == "db" else None,
        "cpu_stalled_usec": 10_000 * nth,
        "memory_stalled_usec": 0,
        "io_stalled_usec": None,
    }


class Standin:
    """Satisfies `nsupervisor.api.control.Control`. `asked` is what was commanded, `held` blocks commands until set."""

    def __init__(self) -> None:
        exit_ = {"code": None, "signal": "SIGKILL", "core_dumped": False, "oom_killed": True}
        event = {"timestamp": "2026-01-31T12:00:00.000000Z", "event": "given up", "starts": 5}
        self.instances = {
            one["name"]: one
            for one in (
                instance("web@1", "ready"),
                instance("web@2"),
                instance("db"),
                instance("batch", "failed", reason="5 starts in 60 s", restarts=4, last_exit=exit_, last_event=event),
            )
        }
        self.asked: list[tuple[str, str, dict[str, Any]]] = []
        self.past = History()
        for name, text in (("web@1", "one"), ("db", "two"), ("", "three")):
            workload = {"workload": name} if name else {}
            self.past.add("2026-01-31T12:00:00.000000Z", "warning", "warning", {**workload, "message": text})
        self.asking_workloads: set[str] = set()
        self.samples = 0
        self.arrived = trio.Event()
        self.held: trio.Event | None = None

    def info(self) -> dict[str, Any]:
        return {
            "version": "0.1.0",
            "pid": 1,
            "keeper_pid": 2,
            "name": "standin",
            "config": "/etc/nsupervisor.toml",
            "runtime_directory": "/run/nsupervisor",
            "started_at": 1770000000.5,
            "uptime_sec": 12.5,
            "cgroup": "/sys/fs/cgroup/nsupervisor",
            "mode": "unified",
            "missing": {},
        }

    def status(self) -> list[dict[str, Any]]:
        return list(self.instances.values())

    def resolve(self, patterns: Any) -> list[str]:
        found: dict[str, None] = {}
        for pattern in patterns:
            names = [n for n in self.instances if any(fnmatch.fnmatchcase(x, pattern) for x in (n, n.split("@")[0]))]
            names += ["db", "batch"] if self.matching_groups(pattern) else []
            if not names:
                near = difflib.get_close_matches(pattern, [*self.instances, "web"], 1)
                raise UnknownName(pattern, near[0] if near else None)
            found |= dict.fromkeys(names)
        return list(found)

    def group_status(self) -> list[dict[str, Any]]:
        return [
            {
                "name": "group/night",
                "text": "",
                "group": None,
                "members": ["db", "batch"],
                "cgroup": "/sys/fs/cgroup/nsupervisor/group.night",
                "memory_current": 12_939_428,
                "memory_max": 1 << 30,
                "pids_current": 3,
                "pids_max": None,
                "cpu_usage_usec": 1_234_567,
                "memory_pressure_avg10": 0.0,
            }
        ]

    def matching_groups(self, pattern: str) -> list[str]:
        return ["group/night"] if fnmatch.fnmatchcase("group/night", pattern) else []

    async def set_group(self, name: str, changes: Any, *, peer: Peer | None = None) -> dict[str, Any]:
        self.asked.append(("set", name, {"changes": changes}))
        return {"name": name, "ok": True, "state": None, "message": ""}

    def controllable_by(self, workload: str) -> list[str]:
        return ["web@1", "web@2", "batch"] if workload == "panel" else []

    def also_affected(self, verb: str, name: str) -> list[str]:
        return ["db"] if (verb, name) == ("stop", "batch") else []

    def exec(self, name: str, terms: ExecTerms, peer: Any) -> Switch:
        """Write what comes back as output; end with the code that the command names, "exit N", at the end of input."""
        self.asked.append(("exec", name, {"terms": terms}))
        if self.instances[name]["state"] == "failed":
            raise ExecRefused(f"{name} is failed; start it first")

        async def converse(channel: Channel) -> None:
            unpacker, goes_on = frames.Unpacker(), terms.has_input
            while goes_on and (data := await channel.receive()):
                for kind, content in unpacker.feed(data):
                    goes_on = goes_on and not (kind == frames.STDIN and not content)
                    await channel.send(frames.pack(frames.STDOUT, content))
            code = int(terms.argv[1]) if terms.argv[0] == "exit" else 0
            end = {"code": code, "signal": None, "failure": ""}
            await channel.send(frames.pack(frames.EXIT, json.dumps(end).encode()))

        return Switch(frames.PROTOCOL, converse)

    def check_command(self, verb: str, names: Any, parameters: Any) -> None:
        pass

    def stats(self) -> list[dict[str, Any]]:
        self.samples += 1
        return [stats(one, self.samples) for one in self.instances.values()]

    def history(self, name: str) -> dict[str, Any]:
        lines, forgotten = self.past.records_of(name)
        more = {"config": "/etc/nsupervisor.toml", "restart": "on-failure", "since": 1770000000.5}
        records = [json.loads(line) for line in lines]
        log = {"file": None, "files": {}, "format": "json", "streams": [], "stream": None, "tail": False}
        return {**self.instances[name], **more, "log": log, "forgotten": forgotten, "records": records}

    def events(self, names: Any, events: Any, follow: bool, mark: bool = False) -> Any:
        return self.past.follow(names, events, news=follow, mark=mark)

    @contextmanager
    def logs(self, names: Any, last: Any, follow: bool) -> Any:
        async def lines() -> Any:
            for name in self.instances:
                if names is None or name in names:
                    yield encode_line({"event": "output", "workload": name, "message": f"from {name}"})

        yield lines()

    @contextmanager
    def trace(self, names: Any, interval: Any, seconds: float, max_bytes: float) -> Any:
        async def lines() -> Any:
            asked = {"names": sorted(names or ()), "interval": interval, "seconds": seconds, "bytes": max_bytes}
            for line in (
                {"trace": 1, "clock": {"monotonic": 1.0}, "asked": json.dumps(asked)},
                {"t": 1.5, "end": "told"},
            ):
                yield json.dumps(line).encode() + b"\n"

        yield lines()

    async def metrics(self, accept: str) -> tuple[bytes, str]:
        return b"# EOF\n", choose_format(accept) or "text/plain; charset=utf-8"

    async def plan(
        self, path: str | None, text: str | None, files: Sequence[IncludedFile] | None = None
    ) -> dict[str, Any]:
        toml = text or '[workload.db]\ncommand = ["db"]\n'
        return make_plan(None, parse(toml, path or "/etc/nsupervisor.toml"), ()).to_json(
            path or "/etc/nsupervisor.toml"
        )

    async def scale(self, counts: dict[str, int], *, peer: Peer | None = None) -> LineStream[None]:
        return await self.reload(None, None, peer=peer)

    async def reload(
        self,
        path: str | None,
        text: str | None,
        files: Sequence[IncludedFile] | None = None,
        *,
        peer: Peer | None = None,
    ) -> LineStream[None]:
        progress: LineStream[None] = LineStream()
        all_ok = True
        found = await self.plan(path, text)
        progress.add(encode_line({"event": "plan", **found}))
        for step in found["steps"]:
            ok = "bad" not in step["name"]
            state, message = ("running", "") if ok else ("failed", "exit code 3")
            did = {"name": step["name"], "do": step["do"], "ok": ok, "state": state, "message": message}
            progress.add(encode_line({"event": "done", **did}))
            all_ok = all_ok and ok
        if self.held is not None:
            await self.held.wait()
        progress.end(encode_line({"event": "end", "ok": all_ok}))
        return progress

    async def upgrade(self, python: str, package: str, timeout_s: float) -> tuple[bool, str]:
        return False, f"{package} is the version that runs"

    async def command(
        self, verb: str, name: str, *, workload: str = "", peer: Peer | None = None, **parameters: Any
    ) -> dict[str, Any]:
        self.asked.append((verb, name, parameters))
        self.asking_workloads.add(workload)
        self.arrived.set()
        if self.held is not None:
            await self.held.wait()
        one = self.instances[name]
        if verb == "thaw" and one["state"] != "frozen":
            return {
                "name": name,
                "ok": False,
                "state": one["state"],
                "message": f"it is not frozen; it is {one['state']}",
            }
        if verb == "kill" and name == "db":
            raise ValueError("a bug")
        after = {"stop": "stopped", "start": "running", "restart": "running", "freeze": "frozen", "thaw": "running"}
        one["state"] = after.get(verb, one["state"])
        return {"name": name, "ok": True, "state": one["state"], "message": ""}


async def main(path: str) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(serve, app(Standin()), path)
        print(os.getpid(), "listening", flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    for line in sys.stdin:
        if not os.fork():
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            try:
                trio.run(main, line.rstrip("\n"))
            finally:
                print(os.getpid(), "ended", flush=True)
