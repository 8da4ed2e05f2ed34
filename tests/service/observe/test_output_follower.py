"""Followers of the latest output."""

import json

import pytest
import trio

from nsupervisor.logs.tails import Tails
from nsupervisor.service.observe.output_follower import DRAIN_TIMEOUT_S, MAX_BYTES_WAITING, NEW, OutputFollowers


def record(number, text=""):
    return json.dumps({"number": number, "message": text}).encode() + b"\n"


def numbers(lines):
    return [json.loads(line).get("number", "dropped") for line in lines.splitlines()]


@pytest.fixture
def tails(tmp_path):
    found = Tails(tmp_path / "tails")
    for name in ("web", "db"):
        for number in range(3):
            found.get(name, 65536).append(record(f"{name} {number}"))
    return found


async def test_the_lines_up_to_now_come_instance_by_instance(tails):
    followers = OutputFollowers(tails)
    with followers.follow(["db", "web"], None, news=False) as stream:
        pieces = [numbers(piece) async for piece in stream]
    assert pieces == [[f"db {number}" for number in range(3)], [f"web {number}" for number in range(3)]]


@pytest.mark.parametrize(("last", "found"), [(0, []), (2, ["web 1", "web 2"]), (9, ["web 0", "web 1", "web 2"])])
async def test_only_the_last_lines_of_each_are_sent(tails, last, found):
    with OutputFollowers(tails).follow(["web"], last, news=False) as stream:
        assert numbers(b"".join([piece async for piece in stream])) == found


async def test_new_lines_follow_without_a_gap_and_none_comes_twice(tails):
    with OutputFollowers(tails).follow(["web", "db"], None, news=True) as stream:
        assert numbers(await anext(stream)) == ["web 0", "web 1", "web 2"]
        tails.get("web", 65536).append(record("web 3"))  # its past has been read
        tails.get("db", 65536).append(record("db 3"))  # its past has not
        assert numbers(await anext(stream)) == ["db 0", "db 1", "db 2", "db 3"]
        assert await anext(stream) == NEW
        assert numbers(await anext(stream)) == ["web 3"]
        tails.get("other", 65536).append(record("other"))
        tails.get("db", 65536).append(record("db 4"))
        assert numbers(await anext(stream)) == ["db 4"]
    tails.get("db", 65536).append(record("db 5"))
    assert not tails.listeners


async def test_a_slow_reader_gets_the_number_of_lines_that_it_missed(tails):
    with OutputFollowers(tails).follow(["web"], 0, news=True) as stream:
        assert await anext(stream) == NEW
        for number in range(200):
            tails.get("web", 65536).append(record(number, "x" * 10_000))
        found = b""
        while b"dropped" not in found:
            found += await anext(stream)
    assert len(found) < MAX_BYTES_WAITING + 20_000
    *kept, gap = [json.loads(line) for line in found.splitlines()]
    assert [line["number"] for line in kept] == list(range(len(kept)))
    assert gap["dropped"] == 200 - len(kept)


async def test_the_end_of_the_service_ends_a_stream_after_what_it_has(tails, autojump_clock):
    followers = OutputFollowers(tails)
    found = []

    async def read():
        with followers.follow(["web"], 0, news=True) as stream:
            found.extend([piece async for piece in stream])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        tails.get("web", 65536).append(record("the last"))
        await followers.close()
    assert found == [NEW, record("the last")]
    with followers.follow(["web"], 0, news=True) as stream:
        assert [piece async for piece in stream] == [NEW]


async def test_one_who_does_not_read_delays_the_end_only_for_a_moment(tails, autojump_clock):
    followers = OutputFollowers(tails)
    with followers.follow(["web"], 0, news=True):
        start = trio.current_time()
        await followers.close()
        assert trio.current_time() - start == pytest.approx(DRAIN_TIMEOUT_S)
