"""Each hostile packet of tests/attack, and random ones, to a connection in memory: no defect, no exception, no 5xx that
is not a refusal, and the connection is over when the client is.
"""

import random
from itertools import islice

import pytest
import trio

from tests.api.talking import Talk, statuses
from tests.attack.packets import ENDLESS, SENT_BODY, catalogue, mutated, packets, valid
from tests.timing import deadline

RANDOM = 1500
REFUSALS = {501, 503, 505}


async def over(talk: Talk, data: bytes) -> bytes:
    """Send `data`, end the sending side, and read until the server closes. It may stop reading before the end."""
    with trio.fail_after(deadline(30)):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(talk.connection.run)
            try:
                await talk.client.send_all(data)
                await talk.client.send_eof()
            except trio.BrokenResourceError:
                pass
            return b"".join([piece async for piece in talk.client])


def check(talk: Talk, answer: bytes, name: str) -> None:
    """No defect was counted, and what was answered are responses without one."""
    assert {"internal", "handler"} & set(talk.kinds) == set(), (name, talk.records)
    first = statuses(answer)
    assert not answer or answer.startswith(b"HTTP/1.1 "), name
    assert [status for status in first if status >= 500 and status not in REFUSALS] == [], name


@pytest.mark.parametrize("name", [name for name in catalogue() if name not in ENDLESS])
async def test_each_kind_of_packet_is_answered_or_refused(autojump_clock, name):
    data = catalogue()[name]
    talk = Talk()
    check(talk, await over(talk, data), name)


async def test_requests_that_end_after_any_byte_and_random_ones():
    done = 0
    for packet in islice(packets(7), 1200, 1200 + RANDOM):
        data = b"".join(packet.chunks)
        if len(data) > SENT_BODY or b"follow=1" in data:
            continue
        talk = Talk()
        check(talk, await over(talk, data), f"{packet.name}: {data[:200]!r}")
        done += 1
    assert done > RANDOM // 2


async def test_a_client_that_sends_byte_by_byte_gets_its_answers():
    for data in valid():
        talk = Talk()
        whole = await over(talk, data)
        talk = Talk()
        with trio.fail_after(deadline(30)):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(talk.connection.run)
                for byte in data:
                    await talk.client.send_all(bytes((byte,)))
                await talk.client.send_eof()
                answer = b"".join([piece async for piece in talk.client])
        assert statuses(answer) == statuses(whole) != []


def test_mutations_change_the_request():
    draw = random.Random(1)
    assert sum(mutated(draw, data) != data for data in valid() for _ in range(20)) > 100
