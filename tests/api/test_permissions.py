"""What a workload with `may_control` may ask of the API, and what it may not."""

import json

import pytest
import trio

from nsupervisor.api.application import app
from nsupervisor.api.client import Client, ClientError
from nsupervisor.api.permissions import permitted
from nsupervisor.api.routes import ROUTES
from nsupervisor.api.server import serve
from nsupervisor.linux.peers import Peer
from tests.api.standin import Standin
from tests.api.test_routes import validate

ALLOWED = ("web@1", "web@2", "batch")
in_thread = trio.to_thread.run_sync


@pytest.mark.parametrize(
    ("operation", "facts", "why"),
    [
        *((one, {}, "") for one in ("info", "status", "stats", "history", "events", "groups", "logs", "command")),
        *((one, {}, "about all of the service") for one in ("trace", "metrics", "plan", "reload", "scale", "upgrade")),
        ("command", {"names": ["web@1", "batch"]}, ""),
        ("command", {"names": ["web@1", "db"]}, "not db"),
        ("history", {"names": ["db"]}, "may control only batch, web@1, web@2, not db"),
        ("command", {"names": ["group/night"]}, "not group/night"),
        ("command", {"names": ["batch"], "also": ["web@1"]}, ""),
        ("command", {"names": ["batch"], "also": ["db"]}, "would also start or stop others; ask"),
        ("command", {"names": ["batch"], "persist": True}, "may not change the configuration file"),
    ],
)
def test_what_is_permitted(operation, facts, why):
    said = permitted("panel", ALLOWED, operation, **facts)
    assert why in said
    assert bool(said) == bool(why)


def test_each_route_is_decided():
    """A route that comes later is refused to workloads until somebody decides otherwise."""
    refused = {route.name for route in ROUTES if permitted("panel", ALLOWED, route.name)}
    assert refused == {"trace", "metrics", "plan", "reload", "scale", "upgrade", "exec"}


@pytest.fixture
def standin():
    return Standin()


@pytest.fixture
async def client(nursery, standin, tmp_path):
    """The API as a process of the workload "panel" has it, which may control web and batch."""
    path = str(tmp_path / "api.sock")
    peer = Peer(1, 0, 0, workload="panel")
    await nursery.start(lambda task_status: serve(app(standin), path, admit=lambda sock: peer, task_status=task_status))
    return Client(path)


def names(found):
    return [one["name"] for one in found]


async def test_what_is_shown_is_narrowed(client):
    assert names(await in_thread(client.status)) == ["web@1", "web@2", "batch"]
    assert names(await in_thread(client.status, ["*"])) == ["web@1", "web@2", "batch"]
    assert names(await in_thread(client.status, ["web"])) == ["web@1", "web@2"]
    assert names(await in_thread(client.stats)) == ["web@1", "web@2", "batch"]
    assert names(await in_thread(client.history, "b*")) == ["batch"]
    info = await in_thread(client.info)
    validate(info, "Info")
    known = {key for key, value in info.items() if value is not None}
    assert known == {"version", "name", "started_at", "uptime_sec", "mode", "missing"}, "no pid, no path, no cgroup"
    (group,) = await in_thread(client.groups)
    assert (group["name"], group["members"]) == ("group/night", ["batch"])


async def test_events_are_those_of_the_allowed_instances(client):
    lines = await in_thread(lambda: list(client.events()))
    assert [line["message"] for line in lines] == ["one"]


async def test_output_is_that_of_the_allowed_instances(client):
    def shown(*names):
        return [json.loads(line)["workload"] for line in client.logs(names)]

    assert await in_thread(shown) == ["web@1", "web@2", "batch"]
    assert await in_thread(shown, "*") == ["web@1", "web@2", "batch"]
    assert await in_thread(shown, "batch") == ["batch"]


@pytest.mark.parametrize("name", ["db", "no-such"])
async def test_other_names_are_refused_whether_they_exist_or_not(client, standin, name):
    for ask in (
        lambda: client.status([name]),
        lambda: client.stats([name]),
        lambda: client.history(name),
        lambda: list(client.events([name])),
        lambda: list(client.logs([name])),
        lambda: client.command("stop", [name]),
        lambda: client.command("kill", ["batch", name]),
    ):
        with pytest.raises(ClientError, match=f"workload panel may control only batch, web@1, web@2, not {name}"):
            await in_thread(ask)
    assert standin.asked == []


async def test_commands_reach_the_allowed_instances(client, standin):
    assert names(await in_thread(client.command, "restart", ["web", "batch"])) == ["web@1", "web@2", "batch"]
    assert names(await in_thread(client.command, "kill", ["*"])) == ["web@1", "web@2", "batch"]
    assert {name for _, name, _ in standin.asked} == {"web@1", "web@2", "batch"}
    assert standin.asking_workloads == {"panel"}, "the records name it"


@pytest.mark.parametrize(
    ("ask", "why"),
    [
        (lambda client: client.command("stop", ["batch"]), "would also start or stop others"),
        (lambda client: client.command("set", ["group/night"], resources={"pids_max": 9}), "not group/night"),
        (lambda client: client.command("set", ["batch"], resources={"pids_max": 9}, persist=True), "without persist"),
        (lambda client: client.plan({}), "may not use plan"),
        (lambda client: list(client.reload({})), "may not use reload"),
        (lambda client: list(client.scale({"web": 2})), "may not use scale"),
        (lambda client: client.upgrade("/usr/bin/python3", "/opt/x", 5), "may not use upgrade"),
        (lambda client: list(client.trace()), "may not use trace"),
    ],
    ids=["dependants", "group", "persist", "plan", "reload", "scale", "upgrade", "trace"],
)
async def test_what_concerns_others_is_refused(client, standin, ask, why):
    with pytest.raises(ClientError, match=why):
        await in_thread(ask, client)
    assert standin.asked == []


@pytest.mark.parametrize("operation", ["trace", "metrics", "plan", "reload", "scale", "upgrade"])
def test_a_refusal_named_may_control_as_the_remedy_though_no_value_of_it_permits_this(operation):
    assert "may_control" not in permitted("panel", ALLOWED, operation)
    assert "may_control" not in permitted("panel", ALLOWED, "command", persist=True)


def test_a_refusal_named_instances_that_the_workload_may_not_see():
    reason = permitted("panel", ALLOWED, "command", names=["batch"], also=["db", "secret"])
    assert reason
    assert not {"db", "secret"} & set(reason.replace(",", "").split())
