"""The application, served for real and asked with the real client, or byte by byte."""

import json
import socket
from math import inf

import pytest
import trio

from nsupervisor.api.application import GLOBS_LIMIT, NAME_LENGTH_LIMIT, NAMES_AT_ONCE, app
from nsupervisor.api.client import Client, ClientError, WrongRequestError
from nsupervisor.api.http.messages import Request
from nsupervisor.api.routes import VERBS
from nsupervisor.api.server import serve
from tests.api.standin import Standin
from tests.api.test_routes import validate
from tests.timing import deadline


@pytest.fixture
def standin():
    return Standin()


@pytest.fixture
async def client(nursery, standin, tmp_path):
    path = str(tmp_path / "api.sock")
    await nursery.start(serve, app(standin), path)
    return Client(path)


in_thread = trio.to_thread.run_sync


def post(client, verb, body: bytes):
    """Send a body as it is; (status, JSON)."""
    head = f"POST /v1/workloads/{verb} HTTP/1.0\r\nContent-Length: {len(body)}\r\n\r\n"
    return client._parse(b"".join(client._exchange(head.encode() + body, deadline(10))))


async def test_info_is_as_described(client, standin):
    info = await in_thread(client.info)
    assert info == standin.info()
    validate(info, "Info")


async def test_status_is_as_described_and_in_order(client, standin):
    found = await in_thread(client.status)
    assert [one["name"] for one in found] == ["web@1", "web@2", "db", "batch"]
    for one in found:
        validate(one, "Status")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["web"], ["web@1", "web@2"]),
        (["web@2"], ["web@2"]),
        (["b*", "d?"], ["db", "batch"]),
        (["*"], ["web@1", "web@2", "db", "batch"]),
        (["web", "web@1"], ["web@1", "web@2"]),
    ],
)
async def test_names_are_resolved_by_the_supervisor(client, names, expected):
    assert [one["name"] for one in await in_thread(client.status, names)] == expected


@pytest.mark.parametrize("name", ["wbe", "a&b=c", "ä ö", "%", "web@3", "/../x"])
async def test_unknown_names_are_refused_by_name(client, name):
    with pytest.raises(WrongRequestError) as caught:
        await in_thread(client.status, [name])
    assert f'no workload matches "{name}"' in str(caught.value)


async def test_a_name_that_is_not_utf8_is_refused_and_not_looked_up_under_another_one(client):
    with pytest.raises(WrongRequestError, match=r"the query is not UTF-8 \(%FF\)"):
        await in_thread(client.status, ["\udcff"])


async def test_stats_are_as_described(client):
    found = await in_thread(client.stats, ["web"])
    assert [one["name"] for one in found] == ["web@1", "web@2"]
    for one in found:
        validate(one, "Stats")


async def test_history_is_as_described(client):
    found = await in_thread(client.history, "web")
    assert [one["name"] for one in found] == ["web@1", "web@2"]
    for one in found:
        validate(one, "History")
    assert [[record["message"] for record in one["records"]] for one in found] == [["one"], []]


async def test_the_history_of_a_group_is_that_of_its_members(client):
    """The slash in its name was taken for one of the path: "there is no GET /v1/history/group/night"."""
    found = await in_thread(client.history, "group/night")
    assert [one["name"] for one in found] == ["db", "batch"]


async def test_what_is_said_of_a_group_itself_is_told_with_what_is_said_of_its_members(client, standin):
    for group in ("group/night", "group/day"):
        standin.past.add("2026-01-31T12:00:01.000000Z", "warning", "warning", {"group": group, "message": group})
    found = await in_thread(lambda: list(client.events(["group/night"])))
    assert [record["message"] for record in found] == ["two", "group/night"]


async def test_the_history_of_nobody(client):
    with pytest.raises(WrongRequestError, match='did you mean "web"'):
        await in_thread(client.history, "wbe")


@pytest.mark.parametrize(
    ("names", "events", "expected"),
    [
        ([], [], ["one", "two", "three"]),
        (["*"], [], ["one", "two"]),
        (["web"], [], ["one"]),
        ([], ["action"], []),
        ([], ["action", "warning"], ["one", "two", "three"]),
    ],
)
async def test_records_that_are_kept(client, names, events, expected):
    found = await in_thread(lambda: list(client.events(names, events)))
    assert [record["message"] for record in found] == expected


async def test_records_of_nobody_and_wrong_words(client):
    with pytest.raises(WrongRequestError, match='did you mean "web"'):
        await in_thread(lambda: list(client.events(["wbe"])))
    status, answer = await in_thread(
        lambda: client._parse(b"".join(client._exchange(b"GET /v1/events?follow=yes HTTP/1.0\r\n\r\n", 9)))
    )
    assert (status, answer["error"]) == (400, 'follow is "yes"; it can be 0 or 1')


async def test_new_records_come_at_once_and_the_stream_ends_with_the_history(client, standin):
    records = client.events(["db"], follow=True)
    with trio.fail_after(deadline(20)):
        assert (await in_thread(next, records))["message"] == "two"
        for name, message in (("web@1", "not wanted"), ("db", "new")):
            standin.past.add("2026-01-31T12:00:00.000000Z", "info", "warning", {"workload": name, "message": message})
        assert (await in_thread(next, records))["message"] == "new"
        await standin.past.close()
        assert await in_thread(list, records) == []
        # Who comes later gets what is kept, and an end.
        late = await in_thread(lambda: list(client.events(["db"], follow=True)))
        assert [record["message"] for record in late] == ["two", "new"]


async def test_a_mark_separates_what_was_kept_from_what_is_new(client, standin):
    records = client.events(["db"], follow=True, mark=True)
    with trio.fail_after(deadline(20)):
        assert (await in_thread(next, records))["message"] == "two"
        assert await in_thread(next, records) == {"event": "new"}
        standin.past.add("2026-01-31T12:00:00.000000Z", "info", "warning", {"workload": "db", "message": "four"})
        assert (await in_thread(next, records))["message"] == "four"
        await standin.past.close()
        assert await in_thread(list, records) == []
        kept = await in_thread(lambda: list(client.events(["db"], mark=True)))
        assert [record["event"] for record in kept] == ["warning", "warning", "new"]


async def test_other_clients_see_a_chunked_stream_with_an_end(client, standin):
    stream = await trio.open_unix_socket(client.socket_path)
    with trio.fail_after(deadline(20)):
        async with stream:
            await stream.send_all(b"GET /v1/events?follow=1 HTTP/1.1\r\nHost: x\r\n\r\n")
            answer = b""
            while b"three" not in answer:
                answer += await stream.receive_some()
            await standin.past.close()
            while not answer.endswith(b"0\r\n\r\n"):
                chunk = await stream.receive_some()
                assert chunk, answer
                answer += chunk
    assert b"content-type: application/jsonl" in answer
    assert b"transfer-encoding: chunked" in answer.lower()


async def test_a_follower_that_goes_away_is_noticed(client, standin):
    stream = await trio.open_unix_socket(client.socket_path)
    with trio.fail_after(deadline(20)):
        async with stream:
            await stream.send_all(b"GET /v1/events?follow=1 HTTP/1.1\r\nHost: x\r\n\r\n")
            await stream.receive_some()
            while not standin.past.followers:
                await trio.testing.wait_all_tasks_blocked(0.01)
        while standin.past.followers:  # without any record that comes
            await trio.testing.wait_all_tasks_blocked(0.01)


async def test_unknown_names_come_with_the_nearest(client):
    with pytest.raises(WrongRequestError, match='did you mean "web"'):
        await in_thread(client.command, "stop", ["wbe"])


async def test_one_unknown_name_and_nothing_is_done(client, standin):
    with pytest.raises(WrongRequestError):
        await in_thread(client.command, "stop", ["web", "nope"])
    assert standin.asked == []


@pytest.mark.parametrize("verb", VERBS)
async def test_every_verb_reaches_the_service(client, standin, verb):
    parameters = {"resources": {"pids_max": 9}} if verb == "set" else {}
    results = await in_thread(lambda: client.command(verb, ["web@1"], **parameters))
    assert [(what, name) for what, name, _ in standin.asked] == [(verb, "web@1")]
    for result in results:
        validate(result, "Result")


@pytest.mark.parametrize(("given", "number"), [("SIGHUP", 1), ("HUP", 1), (10, 10), (None, 15)])
async def test_signals_go_by_name_or_number(client, standin, given, number):
    await in_thread(lambda: client.command("signal", ["db"], **({"signal": given} if given else {})))
    assert standin.asked == [("signal", "db", {"signal": number})]


async def test_limits_are_read_as_the_configuration_is(client, standin):
    resources = {"memory_max": "1G", "pids_max": "max", "hugetlb_2MB_max": "4M", "cpu_weight": "idle"}
    await in_thread(lambda: client.command("set", ["db"], resources=resources))
    changes = {"memory_max": 1 << 30, "pids_max": None, "hugetlb": {"2MB_max": 4 << 20}, "cpu_weight": "idle"}
    assert standin.asked == [("set", "db", {"changes": changes})]


async def test_commands_to_several_are_given_at_once(client, standin, nursery):
    """circusctl and others hold one lock for all: one workload that stops slowly holds up every other command."""
    standin.held = trio.Event()
    with trio.fail_after(deadline(20)):
        async with trio.open_nursery() as inner:
            inner.start_soon(in_thread, client.command, "stop", ["web", "db"])
            while len(standin.asked) < 3:
                await trio.testing.wait_all_tasks_blocked(0.01)
            assert len(await in_thread(client.status)) == 4  # questions are answered meanwhile
            standin.held.set()


async def test_a_client_that_goes_away_does_not_undo_its_command(client, standin):
    standin.held = trio.Event()
    body = b'{"names": ["web@1"]}'
    with trio.fail_after(deadline(20)):
        with socket.socket(socket.AF_UNIX) as raw:
            raw.connect(client.socket_path)
            raw.sendall(b"POST /v1/workloads/stop HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            await standin.arrived.wait()
        standin.held.set()
        while standin.instances["web@1"]["state"] != "stopped":
            await trio.testing.wait_all_tasks_blocked(0.01)


@pytest.mark.parametrize(
    ("verb", "body", "message"),
    [
        ("stop", b"", "cannot be read as JSON: "),
        ("stop", b"[" * 100_000, "cannot be read as JSON: "),
        ("stop", b'{"names": ["\\ud800"]}', "cannot be read as JSON: no low surrogate"),
        ("stop", b'{"names": [' + b"9" * 400 + b"]}", "cannot be read as JSON: number is infinity"),
        ("stop", b"[]", "not a list of names"),
        ("stop", b'{"names": []}', "not a list of names"),
        ("stop", b'{"names": "web"}', "not a list of names"),
        ("stop", b'{"names": [1]}', "not a list of names"),
        ("stop", b'{"names": ["web"], "signal": "HUP"}', '"signal" means nothing here'),
        ("signal", b'{"names": ["web"], "signal": "SIGNONE"}', 'signal "SIGNONE" is not a signal'),
        ("signal", b'{"names": ["web"], "signal": 0}', 'signal "0"'),
        ("signal", b'{"names": ["web"], "signal": true}', "neither a name nor a number"),
        ("signal", b'{"names": ["web"], "signal": null}', "neither a name nor a number"),
        ("set", b'{"names": ["web"]}', '"resources" says nothing to set'),
        ("set", b'{"names": ["web"], "resources": {}}', '"resources" says nothing to set'),
        ("set", b'{"names": ["web"], "resources": [1]}', '"resources" says nothing to set'),
        (
            "set",
            b'{"names": ["web"], "resources": {"memory_max": "64 bananas"}}',
            'memory_max: "64 bananas" is not a size; write for example "64M"',
        ),
        ("set", b'{"names": ["web"], "resources": {"memory_mx": 1}}', 'can be set; did you mean "memory_max"?'),
        ("set", b'{"names": ["web"], "resources": {"required": true}}', "required: is nothing that can be set"),
    ],
)
async def test_wrong_requests_are_told_what_is_wrong(client, standin, verb, body, message):
    status, answer = await in_thread(post, client, verb, body)
    assert status == 400
    validate(answer, "Error")
    assert message in answer["error"]
    assert standin.asked == []


@pytest.mark.parametrize("request_line", ["GET /v1/workloads/stop", "GET /", "DELETE /v1/status", "GET /v1/status/"])
async def test_what_is_not_there_is_answered_with_what_is(client, request_line):
    status, answer = await in_thread(
        lambda: client._parse(b"".join(client._exchange(f"{request_line} HTTP/1.0\r\n\r\n".encode(), 9)))
    )
    assert status in (404, 405)
    assert "GET /v1/status" in answer["error"]


async def test_an_unknown_verb_is_answered_with_those_there_are(client):
    with pytest.raises(WrongRequestError, match="there are: start, stop"):
        await in_thread(client.command, "explode", ["web"])


async def test_a_bug_is_told_to_who_asked_and_logged_and_the_next_is_served(client, caplog):
    with pytest.raises(ClientError, match=r"failed over this request \(ValueError: a bug\)") as caught:
        await in_thread(client.command, "kill", ["db"])
    assert caught.value.exit_status == 1
    assert "a bug" in caplog.text
    assert await in_thread(client.info)


async def test_answers_are_json_for_other_clients_too(client):
    with socket.socket(socket.AF_UNIX) as raw:
        raw.connect(client.socket_path)
        raw.sendall(b"GET /v1/info HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answer = b"".join(await in_thread(lambda: list(iter(lambda: raw.recv(65536), b""))))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-type: application/json" in head
    assert json.loads(body)["name"] == "standin"


async def test_a_trace_is_asked_for_with_its_bounds(client):
    lines = await in_thread(lambda: list(client.trace(["web"], 0.5, 60.0, 1000)))
    assert [json.loads(line).get("end") for line in lines] == [None, "told"]
    asked = json.loads(json.loads(lines[0])["asked"])
    assert asked == {"names": ["web@1", "web@2"], "interval": 0.5, "seconds": 60.0, "bytes": 1000.0}
    asked = json.loads(json.loads((await in_thread(lambda: list(client.trace(interval=0))))[0])["asked"])
    assert asked == {"names": [], "interval": None, "seconds": inf, "bytes": inf}


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("interval=soon", 'interval is "soon"; it can be a number from 0 to 3,600'),
        ("seconds=-1", 'seconds is "-1"; it can be a number from 0 to 31,622,400'),
        ("bytes=nan", 'bytes is "nan"; it can be a number from 0 to 1,125,899,906,842,624'),
        ("interval=0.001", "interval is 0.001; it can be 0, or 0.01 and more"),
    ],
)
async def test_bounds_that_are_none_are_refused(client, query, words):
    request = f"GET /v1/trace?{query} HTTP/1.0\r\n\r\n".encode()
    status, answer = await in_thread(lambda: client._parse(b"".join(client._exchange(request, 9))))
    assert (status, answer["error"]) == (400, words)


def send(client, path, body: bytes):
    head = f"POST {path} HTTP/1.0\r\nContent-Length: {len(body)}\r\n\r\n"
    return client._parse(b"".join(client._exchange(head.encode() + body, deadline(10))))


async def test_a_plan_and_a_reload_are_as_described(client):
    source = {"path": "/x.toml", "text": '[workload.web]\ncommand = ["web"]\n'}
    found = await in_thread(client.plan, source)
    validate(found, "Plan")
    told = await in_thread(lambda: list(client.reload(source)))
    assert [one["event"] for one in told] == ["plan", "done", "end"]
    assert {key: value for key, value in told[0].items() if key != "event"} == found


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"{", "the body cannot be read as JSON: "),
        (b"[]", "the body has no numbers of instances; send for example"),
        (b"{}", "the body has no numbers"),
        (b'{"instances": {}}', "the body has no numbers"),
        (b'{"instances": {"web": "2"}}', "the body has no numbers"),
        (b'{"instances": {"web": true}}', "the body has no numbers"),
        (b'{"instances": {"web": 2}, "x": 1}', "the body has no numbers"),
    ],
)
async def test_wrong_numbers_of_instances_are_400(client, body, error):
    status, answer = await in_thread(send, client, "/v1/scale", body)
    assert status == 400
    assert answer["error"].startswith(error)


@pytest.mark.parametrize("path", ["/v1/plan", "/v1/reload"])
@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b'{"path": "/x", "text": "", "files": 1}', "the body is not an object of texts"),
        (b'{"path": "/x", "text": "x", "files": [{"path": "/y"}]}', '"files" is not a list of objects with the texts'),
        (b'{"path": "/x", "files": []}', "files are those that a text includes, which is missing"),
        (b"{", "the body cannot be read as JSON: "),
        (b"[]", "the body is not an object of texts"),
        (b'{"path": 1}', "the body is not an object of texts"),
        (b'{"paht": "/x"}', '"paht" means nothing here; there is: path, text'),
        (b'{"text": "x = 1"}', "a text needs a path"),
        (b'{"path": "/x", "text": "x = 1"}', "/x:1: x: is not a key of the file"),
    ],
)
async def test_a_wrong_source_is_400(client, path, body, error):
    status, answer = await in_thread(send, client, path, body)
    assert status == 400
    assert answer["error"].startswith(error)
    validate(answer, "Problems")


# ---- many names


GLOBS = [[f"*{number}?" for number in range(GLOBS_LIMIT + 1)], ["x" * (NAME_LENGTH_LIMIT - 1) + "*"] * 11]


@pytest.mark.parametrize("globs", GLOBS, ids=["number", "length"])
async def test_globs_of_one_request_could_stop_the_event_loop(client, standin, globs):
    """10,000 different globs took 2 s to compile, in which no other task ran."""
    for ask in (
        lambda: client.command("signal", globs),
        lambda: client.status(globs),
        lambda: client.stats(globs),
        lambda: client.groups(globs),
        lambda: list(client.events(globs)),
        lambda: list(client.trace(globs)),
    ):
        with pytest.raises(WrongRequestError, match=r"more than 100 globs, or they have more than 10,000 characters"):
            await in_thread(ask)
    assert standin.asked == []


async def test_a_name_in_a_query_has_the_limit_of_one_in_a_command(client):
    for ask in (client.status, client.stats, client.groups):
        with pytest.raises(WrongRequestError, match="one is longer than 1,000 characters"):
            await in_thread(ask, ["x" * (NAME_LENGTH_LIMIT + 1)])
    with pytest.raises(WrongRequestError, match="one is longer than 1,000 characters"):
        await in_thread(client.history, "x" * (NAME_LENGTH_LIMIT + 1))


async def test_other_tasks_run_while_many_names_are_looked_up():
    ticks_at_lookups = []

    class Ticks(trio.abc.Instrument):
        count = 0

        def before_io_wait(self, timeout):
            self.count += 1

    class Counting(Standin):
        def resolve(self, patterns):
            ticks_at_lookups.append(ticks.count)
            return super().resolve(patterns)

    trio.lowlevel.add_instrument(ticks := Ticks())
    names = ["web*", "d*", *["batch"] * NAMES_AT_ONCE, "web"]
    request = Request("POST", "/v1/workloads/thaw", body=json.dumps({"names": names}).encode())
    response = await app(Counting())(request)
    assert [result["name"] for result in json.loads(response.body)] == ["web@1", "web@2", "db", "batch"]
    assert ticks_at_lookups == list(range(4))
