"""The switch of a connection to frames, and hostile clients of it."""

import json

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from nsupervisor.api import exec_frames as frames
from nsupervisor.api.control import ExecTerms
from nsupervisor.linux.peers import Peer
from tests.api.standin import Standin
from tests.api.talking import HOST, Talk, app, body_of, statuses

SWITCH = b"Connection: upgrade\r\nUpgrade: nsupervisor-exec\r\n"
END = {"code": 0, "signal": None, "failure": ""}


def request(body: object, name: str = "db", fields: bytes = SWITCH, version: bytes = b"1.1") -> bytes:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = b"POST /v1/exec/%b HTTP/%b\r\n" % (name.encode(), version)
    return head + HOST + fields + b"Content-Length: %d\r\n\r\n" % len(content) + content


def answer(data: bytes) -> list[tuple[int, bytes]]:
    """The frames behind the head of a response with status 101."""
    head, _, rest = data.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101 ")
    assert b"upgrade: nsupervisor-exec" in head
    return list(frames.Unpacker().feed(rest))


async def test_the_connection_carries_frames_also_those_behind_the_request():
    standin = Standin()
    talk = Talk(app(standin))
    inputs = frames.pack(frames.STDIN, b"one") + frames.pack(frames.STDIN, b"two") + frames.pack(frames.STDIN)
    said = answer(await talk(request({"argv": ["exit", "7"], "input": True}) + inputs, half_close=False))
    assert said[:-1] == [(frames.STDOUT, b"one"), (frames.STDOUT, b"two"), (frames.STDOUT, b"")]
    assert json.loads(said[-1][1]) == {**END, "code": 7}
    assert talk.kinds == {}
    ((verb, name, parameters),) = standin.asked
    assert (verb, name, parameters["terms"]) == ("exec", "db", ExecTerms(("exit", "7"), True))


async def test_all_terms_are_passed_on():
    standin = Standin()
    body = {"argv": ["a", ""], "terminal": [25, 80], "user": "u", "environment": {"A": "=b"}, "directory": "/d"}
    await Talk(app(standin))(request(body), half_close=False)
    expected = ExecTerms(("a", ""), False, (25, 80), "u", {"A": "=b"}, "/d")
    assert standin.asked[0][2]["terms"] == expected


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        (b"", 400, "cannot be read as JSON"),
        ([], 400, "is not an object"),
        ({}, 400, '"argv" is missing'),
        ({"argv": []}, 400, '"argv" is not a list of texts'),
        ({"argv": [""]}, 400, '"argv" is not a list of texts'),
        ({"argv": "ls"}, 400, '"argv" is not a list of texts'),
        ({"argv": ["a\0b"]}, 400, '"argv" is not a list of texts'),
        ({"argv": ["a"], "input": 1}, 400, '"input" is not true or false'),
        ({"argv": ["a"], "terminal": [1]}, 400, '"terminal" is not a list of two numbers'),
        ({"argv": ["a"], "terminal": [1, 70000]}, 400, '"terminal" is not a list of two numbers'),
        ({"argv": ["a"], "terminal": [True, 1]}, 400, '"terminal" is not a list of two numbers'),
        ({"argv": ["a"], "user": ""}, 400, '"user" is not a user'),
        ({"argv": ["a"], "environment": {"A=": ""}}, 400, '"environment" is not an object of texts'),
        ({"argv": ["a"], "environment": {"A": "\0"}}, 400, '"environment" is not an object of texts'),
        ({"argv": ["a"], "directory": "etc"}, 400, '"directory" is not the absolute path'),
        ({"argv": ["a"], "cwd": "/"}, 400, '"cwd" means nothing here'),
    ],
)
async def test_a_wrong_request_is_answered_without_a_switch(body, status, text):
    said = await Talk()(request(body))
    assert statuses(said) == [status]
    assert text in body_of(said)["error"]


@pytest.mark.parametrize(
    ("data", "status", "text"),
    [
        (request({"argv": ["a"]}, fields=b""), 426, "Connection: upgrade"),
        (request({"argv": ["a"]}, fields=b"Connection: upgrade\r\nUpgrade: websocket\r\n"), 426, "nsupervisor-exec"),
        (request({"argv": ["a"]}, fields=b"Upgrade: nsupervisor-exec\r\n"), 426, "Connection: upgrade"),
        (request({"argv": ["a"]}, name="nothing"), 404, "no workload matches"),
        (request({"argv": ["a"]}, name="web"), 400, "web is 2 instances; name one: web@1, web@2"),
        (request({"argv": ["a"]}, name="batch"), 409, "batch is failed; start it first"),
        (b"GET /v1/exec/db HTTP/1.1\r\n" + HOST + SWITCH + b"\r\n", 405, "there is no GET"),
    ],
)
async def test_what_is_not_possible_is_refused_without_a_switch(data, status, text):
    said = await Talk()(data)
    assert statuses(said) == [status]
    assert text in body_of(said)["error"]


@pytest.mark.parametrize("workload", ["panel", "other"])
async def test_no_workload_may_execute_anything_whatever_it_may_control(workload):
    standin = Standin()
    talk = Talk(app(standin), peer=Peer(1, 0, 0, workload=workload))
    said = await talk(request({"argv": ["a"]}, name="batch"))
    assert statuses(said) == [403]
    assert "may not use exec" in body_of(said)["error"]
    assert standin.asked == []


async def test_a_client_that_closes_ends_the_conversation():
    talk = Talk()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(talk.connection.run)
        await talk.client.send_all(request({"argv": ["cat"], "input": True}))
        await talk.client.receive_some(10)
        await talk.client.aclose()
    assert talk.kinds == {}


@given(st.lists(st.tuples(st.integers(0, frames.EXIT), st.binary(max_size=100))), st.integers(1, 50))
def test_frames_are_split_anywhere(sent, size):
    data = b"".join(frames.pack(kind, content) for kind, content in sent)
    unpacker = frames.Unpacker()
    pieces = [data[start : start + size] for start in range(0, len(data), size)]
    assert [frame for piece in pieces for frame in unpacker.feed(piece)] == sent


@given(st.binary(max_size=200))
def test_any_bytes_are_frames_or_an_error_and_never_stored_without_limit(data):
    unpacker = frames.Unpacker()
    try:
        found = list(unpacker.feed(data))
    except frames.FrameError:
        return
    assert sum(len(content) + 5 for _, content in found) <= len(data)


@pytest.mark.parametrize("head", [b"\x06\x00\x00\x00\x00", b"\x00\x00\x01\x00\x01", b"\x00\xff\xff\xff\xff"])
def test_a_frame_of_another_kind_or_size_is_an_error(head):
    with pytest.raises(frames.FrameError, match="at most 65536"):
        list(frames.Unpacker().feed(head))
