"""Every kind of rule on the real kernel: each goes off once on a program made to cause it, and not on its well-behaved
neighbour, which has the same limits and the same rules. Many workloads in one service, so that it takes one start.

The virtual machine has a test of its own: so many programs would take it more than five minutes. There one neighbour
has the limits and the rules of all, and pressure is that of memory: where processors are scarce each program waits for
one, and a rule on that would be right about the neighbour, too."""

import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from tests.needs import needs, scratch_disk
from tests.system.service import service

pytestmark = needs("root", "cgroup", "memory", "pids", "cpu", "psi")

PATIENCE = 30
V2_PATIENCE = 10
"""Of a slower machine's: `deadline` makes 200 s of it there."""
CHILL = ["sleep", "1000"]
GROWS = ["sh", "-c", "for i in 1 2 3 4 5; do sleep 1000 & done; wait"]
BURNS = ["sh", "-c", "(while :; do :; done) & while :; do :; done"]
EATS = ["sh", "-c", "tail -c 100M /dev/zero | tail; sleep 1000"]
KEEPS = ["sh", "-c", "x=$(head -c 12M /dev/zero | tr '\\0' x); sleep 1000 & wait"]
CRASH = ["sh", "-c", "kill -SEGV $$"]
BOMB = ["sh", "-c", "while :; do sleep 1000 & sleep 0.02; done"]

KINDS = {
    # name: what it runs, its limits, and the rules that it sets off
    "grows": (
        GROWS,
        "pids_max = 8",
        ["pids.current >= 4", "pids.current >= 50%", "pids.current >= 4 and not pids.current > 90%"],
    ),
    "bomb": (
        BOMB,
        "pids_max = 8",
        ["pids.events max", "pids.events max increases by 1 or memory.events oom_kill", "exit code == 2"],
    ),
    "eats": (
        EATS,
        'memory_max = "32M"',
        ["memory.events oom_kill"],
    ),
    "keeps": (KEEPS, 'memory_max = "64M"', ["memory.stat anon > 10M", "memory.current > 15%"]),
    "burns": (
        BURNS,
        'cpu_max = "10%"',
        [
            "cpu.stat nr_throttled increases by 3",
            "cpu.stat nr_throttled rate > 1/s",
            "cpu.stat usage_usec rate > 3%",
            "cpu.pressure some stall > 50ms/2s",
            "cpu.pressure some avg10 > 5%",
        ],
    ),
    "leaves": (["sh", "-c", "exit 3"], "", ["exit code == 3", "exit code != 0 and not exit oom_killed"]),
    "crashes": (CRASH, "", ["exit signal == SIGSEGV"]),
    "dies": (
        ["tail", "/dev/zero"],
        'memory_max = "32M"',
        ["exit oom_killed", "exit signal == SIGKILL and exit oom_killed"],
    ),
    "stays": (CHILL, "", ["uptime > 1s"]),
}
NEIGHBOURS = {"leaves": ["true"], "crashes": ["true"], "dies": ["sh", "-c", "kill -KILL $$"], "stays": ["true"]}
"""Those of programs that end have to end too, and otherwise."""


def rule(when: str, action: str = "log", more: str = "") -> str:
    return f'[[policy]]\nwhen = "{when}"\naction = "{action}"\ncooldown = "1h"\n{more}\n'


def workload(name: str, command: list[str], resources: str, rules: str, cores: str = "", disk: str = "") -> str:
    """``cores``: the folder that its core dump may go to; ``disk``: the device that it reads."""
    return f"""
[workload.{name}]
command = {json.dumps(command)}
working_directory = "{cores or "/"}"
restart = "no"
kill_signal = "SIGKILL"
[workload.{name}.security]
limit_core = {'"infinity"' if cores else 0}
{f'device_allow = ["{disk} r"]' if disk else ""}
[workload.{name}.resources]
{resources}
{rules.replace("[[policy]]", f"[[workload.{name}.policy]]")}
"""


@pytest.mark.host_only
async def test_each_kind_goes_off_once_on_what_causes_it_and_not_on_its_neighbour(tmp_path):
    toml = ""
    for name, (command, resources, conditions) in KINDS.items():
        rules = "".join(map(rule, conditions))
        toml += workload(name, command, resources, rules)
        toml += workload(f"calm-{name}", NEIGHBOURS.get(name, CHILL), resources, rules)
    expected = {(name, when) for name, (_, _, conditions) in KINDS.items() for when in conditions}
    async with service(tmp_path, toml) as it:

        def went_off() -> list[tuple[str, str]]:
            return [
                (r["workload"], r["cause"]["when"])
                for r in it.records
                if r["event"] == "action" and "rule" in r["cause"]
            ]

        try:
            await it.until(lambda: expected <= set(went_off()), PATIENCE)
        except Exception:
            raise AssertionError(f"did not go off: {expected - set(went_off())}") from None
        assert sorted(went_off()) == sorted(expected), "each once, and no neighbour"


class Web(BaseHTTPRequestHandler):
    """Keeps the bodies that it is sent."""

    def do_POST(self) -> None:
        self.server.seen.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))  # type: ignore[attr-defined]
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


ACTIONS = {
    "log": "",
    "notify": 'notify = "{directory}/it.sock"',
    "webhook": 'webhook = "http://127.0.0.1:{port}/hook"',
    "exec": 'exec = ["sh", "-c", "cat >{directory}/told.new && mv {directory}/told.new {directory}/told"]',
    "set": 'set = {{ pids_max = "+50%" }}\nlimit = {{ pids_max = 10 }}',
    "signal": 'signal = "SIGUSR1"',
    "freeze": "",
    "restart": "",
    "kill": "",
    "stop": "",
}


@pytest.mark.host_only
async def test_each_action_is_done_to_who_caused_it_and_not_to_its_neighbour(tmp_path):
    with (
        HTTPServer(("127.0.0.1", 0), Web) as web,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener,
    ):
        web.seen = []  # type: ignore[attr-defined]
        threading.Thread(target=web.serve_forever, daemon=True).start()
        listener.bind(str(tmp_path / "it.sock"))
        toml = ""
        for action, keys in ACTIONS.items():
            more = keys.format(directory=tmp_path, port=web.server_address[1])
            rules = rule("pids.current >= 4", action, more)
            if action == "freeze":
                rules += rule("pids.current >= 4", "thaw", 'for = "1s"')
            toml += workload(action, GROWS, "pids_max = 8", rules)
            toml += workload(f"calm-{action}", CHILL, "pids_max = 8", rules)
        async with service(tmp_path, toml) as it:
            for action in (*ACTIONS, "thaw"):
                name = "freeze" if action == "thaw" else action
                record = await it.record(event="action", action=action, workload=name, patience=PATIENCE)
                assert record["cause"]["after"] >= 4
            changed = await it.record(event="action", action="set", workload="set")
            assert (changed["before"], changed["after"]) == ({"pids_max": 8}, {"pids_max": 10})
            ended = await it.record(event="exited", workload="signal", patience=PATIENCE)
            assert ended["signal"] == "SIGUSR1"
            await it.record(event="state", workload="freeze", to="frozen", patience=PATIENCE)
            await it.record(event="state", workload="freeze", **{"from": "frozen"}, patience=PATIENCE)
            await it.record(event="started", workload="restart", generation=2, patience=PATIENCE)
            assert (await it.record(event="exited", workload="kill", patience=PATIENCE))["signal"] == "SIGKILL"
            await it.record(event="state", workload="stop", to="stopped", patience=PATIENCE)
            await it.until((tmp_path / "told").exists, PATIENCE)
            await it.until(lambda: bool(web.seen), PATIENCE)  # type: ignore[attr-defined]
            told = {
                "exec": json.loads((tmp_path / "told").read_text()),
                "webhook": web.seen[0],  # type: ignore[attr-defined]
                "notify": json.loads(listener.recv(65536)),
            }
            for action, record in told.items():
                assert (record["workload"], record["action"]) == (action, action)
                assert record["cause"]["when"] == "pids.current >= 4"
            touched = {r["workload"] for r in it.records if r["event"] == "action" and "rule" in r["cause"]}
            assert touched == set(ACTIONS)
            status = {one["name"]: one for one in json.loads(await it.cli("status", "--json"))}
            assert {status[f"calm-{action}"]["state"] for action in ACTIONS} == {"running"}
            assert (status["set"]["pids_max"], status["calm-set"]["pids_max"]) == (10, 8)
            assert "set pids_max 8 → 10 by policy[0]" in await it.cli("why", "set")
        web.shutdown()


def chain(name: str, at_most: int) -> str:
    """A bomb that is given more room, then restarted, then stopped."""
    rules = f"""
[[policy]]
when = "pids.events max"
action = "set"
set = {{ pids_max = "+50%" }}
limit = {{ pids_max = 10 }}
at_most = {at_most}
within = "1h"
then = ["restart", "stop"]
"""
    again = 'restart = "always"\nrestart_sec = 0\nstart_limit_burst = 100'
    return workload(name, BOMB, "pids_max = 8", rules).replace('restart = "no"', again)


@pytest.mark.host_only
async def test_first_set_then_restart_then_stop(tmp_path):
    async with service(tmp_path, chain("bomb", 2)) as it:
        await it.record(event="state", workload="bomb", to="stopped", patience=PATIENCE)
        actions = [r["action"] for r in it.records if r["event"] == "action" and "rule" in r["cause"]]
        assert actions == ["set", "restart", "restart", "stop"], "at its bound after one step, so on to the next"


@pytest.mark.host_only
@needs("core_files")
async def test_a_core_dump_sets_off_its_rule_and_the_same_crash_without_one_does_not(tmp_path):
    rules = rule("exit core_dumped")
    toml = workload("dumps", CRASH, "", rules, str(tmp_path)) + workload("calm-dumps", CRASH, "", rules)
    async with service(tmp_path, toml) as it:
        assert (await it.record(event="action", action="log", workload="dumps"))["cause"]["when"] == "exit core_dumped"
        await it.record(event="state", workload="calm-dumps", to="failed")
        assert [r["workload"] for r in it.records if r["event"] == "action" and "rule" in r["cause"]] == ["dumps"]


HOARDS = ["sh", "-c", "(head -c 24M /dev/zero; sleep 1000) | tail -c 30M"]
READS = "while :; do dd if={disk} of=/dev/null bs=64k count=2 iflag=direct 2>/dev/null; sleep 0.5; done"
THREE = "pids.current >= 3"
V2_KINDS = {
    # name: what it runs, its limits, and its rules: condition, action, and what belongs to it
    "grows": (
        GROWS,
        ["pids_max = 8"],
        [
            ("pids.current >= 50%",),
            ("pids.current >= 4 and not pids.current > 90%",),
            ("pids.current >= 4 and uptime > 5s",),
        ],
    ),
    "bomb": (
        BOMB,
        ["pids_max = 8"],
        [
            ("pids.events max",),
            ("pids.events.local max",),
            ("pids.events max increases by 1 or memory.events oom_kill",),
        ],
    ),
    "hoards": (
        HOARDS,
        ['memory_max = "32M"', 'memory_high = "8M"'],
        [
            ("memory.stat anon > 6M",),
            ("memory.current > 20%",),
            ("memory.events high increases by 2",),
            ("memory.pressure some stall > 100ms/1s",),
            ("memory.pressure some avg10 > 10%",),
        ],
    ),
    "burns": (
        ["sh", "-c", "while :; do :; done"],
        ['cpu_max = "20%"'],
        [
            ("cpu.stat nr_throttled increases by 10",),
            ("cpu.stat nr_throttled rate > 3/s", "log", 'for = "2s"'),
            ("cpu.stat usage_usec rate > 10%", "log", 'for = "2s"'),
        ],
    ),
    "reads": ([], [], [("io.stat rbytes increases by 100000", "kill")]),
    "told": (
        GROWS,
        ["pids_max = 8"],
        [(THREE, action, ACTIONS[action]) for action in ("notify", "exec", "set")],
    ),
    "signalled": (GROWS, [], [(THREE, "signal", ACTIONS["signal"])]),
    "frozen": (GROWS, [], [(THREE, "freeze"), (THREE, "thaw", 'for = "1s"')]),
}
V2_ENDS = {
    # name: how it ends, its rules, and what ends otherwise
    "leaves": (["sh", "-c", "exit 3"], ["exit code == 3", "exit code != 0 and not exit oom_killed"], ["true"]),
    "dies": (
        ["tail", "/dev/zero"],
        [
            "memory.events oom_kill",
            "memory.events.local oom_kill",
            "exit oom_killed",
            "exit signal == SIGKILL and exit oom_killed",
        ],
        ["sh", "-c", "kill -KILL $$"],
    ),
    "dumps": (CRASH, ["exit core_dumped", "exit signal == SIGSEGV and exit core_dumped"], CRASH),
}


@pytest.mark.vm_only
@needs("cgroup_v2", "io", "psi_short_windows", "scratch_disk", "core_files")
async def test_each_kind_and_each_action_once_and_neither_on_the_neighbours(tmp_path):
    """All at once, in one service: the machine takes seconds for each start of it."""
    toml, expected = chain("chain", 1), []
    all_limits: dict[str, None] = {}
    all_rules = ""
    for name, (command, limits, rows) in V2_KINDS.items():
        texts = [rule(when, *(part.format(directory=tmp_path) for part in more)) for when, *more in rows]
        disk = "" if command else scratch_disk()
        command = command or ["sh", "-c", READS.format(disk=disk)]
        toml += workload(name, command, "\n".join(limits), "".join(texts), disk=disk)
        expected += [(name, when, more[0] if more else "log") for when, *more in rows]
        all_limits |= dict.fromkeys(limits)
        all_rules += "".join(texts)
    toml += workload("calm", CHILL, "\n".join(all_limits), all_rules)
    for name, (command, conditions, otherwise) in V2_ENDS.items():
        limit, rules = 'memory_max = "32M"', "".join(map(rule, conditions))
        toml += workload(name, command, limit, rules, cores=str(tmp_path) if name == "dumps" else "")
        toml += workload(f"calm-{name}", otherwise, limit, rules)
        expected += [(name, when, "log") for when in conditions]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "it.sock"))
        async with service(tmp_path, toml) as it:

            def done() -> list[dict[str, Any]]:
                return [r for r in it.records if r["event"] == "action" and "rule" in r["cause"]]

            def went_off() -> list[tuple[str, str, str]]:
                return [(r["workload"], r["cause"]["when"], r["action"]) for r in done() if r["workload"] != "chain"]

            await it.heard(lambda: set(expected) <= set(went_off()), V2_PATIENCE)
            assert sorted(went_off()) == sorted(expected), "each once, and no neighbour"
            await it.record(event="state", workload="chain", to="stopped")
            assert [r["action"] for r in done() if r["workload"] == "chain"] == ["set", "restart", "stop"]
            changed = await it.record(event="action", action="set", workload="told")
            assert (changed["before"], changed["after"]) == ({"pids_max": 8}, {"pids_max": 10})
            assert (await it.record(event="exited", workload="reads"))["signal"] == "SIGKILL"
            assert (await it.record(event="exited", workload="signalled"))["signal"] == "SIGUSR1"
            await it.record(event="state", workload="frozen", to="frozen")
            await it.record(event="state", workload="frozen", **{"from": "frozen", "to": "running"})
            await it.until((tmp_path / "told").exists)
            told = [json.loads((tmp_path / "told").read_text()), json.loads(listener.recv(65536))]
            assert [(r["workload"], r["action"], r["cause"]["when"]) for r in told] == [
                ("told", "exec", THREE),
                ("told", "notify", THREE),
            ]
            ended = {r["workload"] for r in it.records if r["event"] == "exited"}
            assert "calm" not in ended
            assert {f"calm-{name}" for name in V2_ENDS} <= ended
            assert sorted(went_off()) == sorted(expected)
