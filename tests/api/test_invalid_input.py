"""Input that makes no sense is refused with an explanation, and no bytes at all raise out of a connection."""

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from nsupervisor.api.routes import VERBS
from tests.api.talking import HOST, INFO, Talk, body_of, post, statuses


@pytest.mark.fault("A14")
@pytest.mark.parametrize(
    "body",
    [
        rb'{"names": ["\ud800"]}',
        rb'{"names": ["web"], "\udfff": 1}',
        b'{"names": [' + b"[" * 100_000,
        b"[" * 1_000_000,
        b'{"names": [NaN]}',
        b'{"names": ["\xff"]}',
        b'{"names": ["web"], "signal": 1e400}',
        b'{"names": ["web"], "signal": 123456789012345678901234567890}',
        b'{"names": ["web"], "resources": {"memory_max": 1e400}, "persist": 3}',
        b'{"names": ["' + b"a" * 2000 + b'"]}',
        b'{"names": [' + b'"web",' * 20_000 + b'"web"]}',
        b"null",
        b"",
    ],
)
@pytest.mark.parametrize("verb", VERBS)
async def test_a_command_that_makes_no_sense_was_500(verb, body):
    talk = Talk()
    answer = await talk(post(f"/v1/workloads/{verb}", body))
    assert statuses(answer) == [400]
    assert body_of(answer)["error"]
    assert talk.kinds == {}


@pytest.mark.fault("A14")
@pytest.mark.parametrize("path", ["/v1/plan", "/v1/reload", "/v1/upgrade"])
@pytest.mark.parametrize(
    "body",
    [
        rb'{"path": "\ud800", "text": ""}',
        rb'{"path": "/x.toml", "text": "\udfff"}',
        b'{"path": "/x\\u0000.toml", "text": "x = 1"}',
        b"[" * 1_000_000,
        b'{"path": "/x.toml", "text": "' + b"a." * 20_000 + b'a=1"}',
        b'{"python": 1, "package": "/x", "timeout": 1}',
        b'{"python": "/x", "package": "/x", "timeout": 1e400}',
        b'{"python": "/x", "package": "/x", "timeout": -1}',
        b'{"python": "/x", "package": "/x", "timeout": true}',
        b'"text"',
    ],
)
async def test_a_source_that_makes_no_sense_was_500(path, body):
    talk = Talk()
    answer = await talk(post(path, body))
    assert statuses(answer) == [400]
    assert body_of(answer)["error"]
    assert talk.kinds == {}


@pytest.mark.fault("A14")
@pytest.mark.parametrize("key", ["interval", "seconds", "bytes"])
@pytest.mark.parametrize("value", ["inf", "-inf", "nan", "1e400", "1e300", "-1", "", "%00", "٣x", "1_", "0x1"])
async def test_a_trace_with_a_number_that_is_none_was_500(key, value):
    answer = await Talk()(
        f"GET /v1/trace?{key}=".encode() + value.encode().replace(b"\xd9\xa3", b"%D9%A3") + b" HTTP/1.0\r\n\r\n"
    )
    assert statuses(answer) == [400]
    assert body_of(answer)["error"].startswith(f"{key} is ")


# ---- anything at all

FRAGMENTS = [
    INFO,
    b"GET /v1/status?name=web HTTP/1.1\r\n",
    b"POST /v1/plan HTTP/1.1\r\n",
    b"POST /v1/workloads/stop HTTP/1.0\r\n",
    HOST,
    b"\r\n",
    b"\n",
    b"Content-Length: 5\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Expect: 100-continue\r\n",
    b"Connection: close\r\n",
    b"Connection: Upgrade\r\nUpgrade: websocket\r\n",
    b"5\r\nhello\r\n",
    b"0\r\n\r\n",
    b'{"names": ["web"]}',
    b"PRI * HTTP/2.0\r\n\r\n",
    b"HEAD /v1/events HTTP/1.1\r\n",
    b"GET /v1/events HTTP/1.1\r\n",
]


@pytest.mark.fault("A1")
@settings(deadline=None)
@given(st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.binary(max_size=50)), max_size=12), st.booleans())
def test_no_bytes_raise_out_of_a_connection_and_all_end_it(pieces, half_close):
    async def main() -> Talk:
        talk = Talk()
        answer = await talk(b"".join(pieces), half_close=half_close)
        assert all(status < 500 or status in (501, 505) for status in statuses(answer))
        return talk

    talk = trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert not {"internal", "handler"} & talk.kinds.keys()


@pytest.mark.fault("A1")
@settings(deadline=None, max_examples=30)
@given(st.lists(st.sampled_from(FRAGMENTS), max_size=8), st.integers(0, 200))
def test_a_client_that_leaves_at_any_byte_raises_nothing(pieces, length):
    async def main() -> Talk:
        talk = Talk()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(talk.connection.run)
            await talk.client.send_all(b"".join(pieces)[:length])
            await talk.client.aclose()
        return talk

    talk = trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert not {"internal", "handler"} & talk.kinds.keys()
