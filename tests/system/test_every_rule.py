"""Every kind of rule on the real kernel: each goes off once on a program made to cause it, and not on its well-behaved
neighbour, which has the same limits and the same rules. Many workloads in one service, so that it takes one start.

On the host alone: so many programs at once take the emulated machine more than five minutes."""

import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from tests.needs import needs
from tests.system.service import service

pytestmark = [pytest.mark.host_only, needs("root", "cgroup", "memory", "pids", "cpu", "psi")]

M = 1 << 20
PATIENCE = 30
CHILL = ["sleep", "1000"]
GROWS = ["sh", "-c", "for i in 1 2 3 4 5; do sleep 1000 & done; wait"]
BURNS = ["sh", "-c", "(while :; do :; done) & while :; do :; done"]
EATS = ["sh", "-c", "tail -c 100M /dev/zero | tail; sleep 1000"]
KEEPS = ["sh", "-c", "x=$(head -c 12M /dev/zero | tr '\\0' x); sleep 1000 & wait"]
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
    "crashes": (["sh", "-c", "kill -SEGV $$"], "", ["exit signal == SIGSEGV"]),
    "dies": (
        ["tail", "/dev/zero"],
        'memory_max = "32M"',
        ["exit oom_killed", "exit signal == SIGKILL and exit oom_killed"],
    ),
    "stays": (CHILL, "", ["uptime > 1s"]),
}
NEIGHBOURS = {"leaves": ["true"], "crashes": ["true"], "dies": ["sh", "-c", "kill -KILL $$"], "stays": ["true"]}
"""Those of programs that end have to end too, and otherwise."""


def workload(name: str, command: list[str], resources: str, rules: str) -> str:
    return f"""
[workload.{name}]
command = {json.dumps(command)}
restart = "no"
kill_signal = "SIGKILL"
[workload.{name}.security]
limit_core = 0
[workload.{name}.resources]
{resources}
{rules.replace("[[policy]]", f"[[workload.{name}.policy]]")}
"""


async def test_each_kind_goes_off_once_on_what_causes_it_and_not_on_its_neighbour(tmp_path):
    toml = ""
    for name, (command, resources, conditions) in KINDS.items():
        rules = "".join(f'[[policy]]\nwhen = "{when}"\naction = "log"\ncooldown = "1h"\n' for when in conditions)
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
            rule = f'[[policy]]\nwhen = "pids.current >= 4"\naction = "{action}"\ncooldown = "1h"\n{more}\n'
            if action == "freeze":
                rule += '[[policy]]\nwhen = "pids.current >= 4"\nfor = "1s"\naction = "thaw"\ncooldown = "1h"\n'
            toml += workload(action, GROWS, "pids_max = 8", rule)
            toml += workload(f"calm-{action}", CHILL, "pids_max = 8", rule)
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


async def test_first_set_then_restart_then_stop(tmp_path):
    rule = """
[[policy]]
when = "pids.events max"
action = "set"
set = { pids_max = "+50%" }
limit = { pids_max = 10 }
at_most = 2
within = "1h"
then = ["restart", "stop"]
"""
    again = 'restart = "always"\nrestart_sec = 0\nstart_limit_burst = 100'
    toml = workload("bomb", BOMB, "pids_max = 8", rule).replace('restart = "no"', again)
    async with service(tmp_path, toml) as it:
        await it.record(event="state", workload="bomb", to="stopped", patience=PATIENCE)
        actions = [r["action"] for r in it.records if r["event"] == "action" and "rule" in r["cause"]]
        assert actions == ["set", "restart", "restart", "stop"], "at its bound after one step, so on to the next"
