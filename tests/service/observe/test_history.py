"""What is kept, what is forgotten, and who hears of it."""

import json
from collections import defaultdict

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from nsupervisor.service.observe import history as history_module
from nsupervisor.service.observe.history import DRAIN_TIMEOUT_S, MAX_PIECE_BYTES, MAX_RECORDS_WAITING, History

TIME = "2026-01-31T12:00:00.000000Z"


def say(history, workload, number, event="state"):
    history.add(TIME, "info", event, {"workload": workload, "number": number} if workload else {"number": number})


def numbers(lines):
    """The numbers in joined JSON lines, in order."""
    return [json.loads(line).get("number", "dropped") for line in lines.splitlines()]


def kept(history, workload):
    lines, forgotten = history.records_of(workload)
    return numbers(b"".join(lines)), forgotten


async def everything(history, **filters):
    with history.follow(news=False, **filters) as follower:
        return numbers(b"".join([lines async for lines in follower]))


def test_records_are_as_the_log_has_them():
    history = History()
    history.add(TIME, "error", "exited", {"workload": "web", "code": 3})
    ((line,), _) = history.records_of("web")
    assert json.loads(line) == {"timestamp": TIME, "level": "error", "event": "exited", "workload": "web", "code": 3}
    assert line.endswith(b"}\n")


def test_of_nobody_there_is_nothing():
    assert History().records_of("web") == ([], 0)


def test_the_latest_of_each_are_kept():
    history = History(per_workload=3, total=100)
    for number in range(5):
        say(history, "web", number)
    say(history, "db", 5)
    assert kept(history, "web") == ([2, 3, 4], 2)
    assert kept(history, "db") == ([5], 0)


def test_a_loud_workload_does_not_push_out_a_quiet_one():
    history = History(per_workload=200, total=20)
    say(history, "quiet", 0)
    for number in range(1, 1000):
        say(history, f"loud{number % 3}", number)
    assert kept(history, "quiet") == ([0], 0)


@given(st.lists(st.integers(0, 9), max_size=300), st.integers(1, 9), st.integers(10, 40))
async def test_bounds_hold_and_what_is_kept_are_the_latest_in_order(names, each, total):
    history, said = History(each, total), defaultdict(list)
    for number, name in enumerate(names):
        say(history, f"w{name}", number)
        said[f"w{name}"].append(number)
    found = await everything(history)
    assert len(found) <= total
    assert found == sorted(found)
    for name, all_of_it in said.items():
        numbers_, forgotten = kept(history, name)
        assert len(numbers_) <= each
        assert all_of_it[forgotten:] == numbers_


async def test_filters():
    history = History()
    say(history, "web", 1)
    say(history, "db", 2, event="action")
    say(history, "", 3)
    assert await everything(history) == [1, 2, 3]
    assert await everything(history, names={"web", "db"}) == [1, 2]
    assert await everything(history, events=["action"]) == [2]
    assert await everything(history, names={"web"}, events=["action"]) == []


async def test_followers_get_what_was_and_what_comes_without_gap_or_repetition(autojump_clock):
    history = History()
    say(history, "web", 1)
    with history.follow(["web"]) as follower:
        say(history, "web", 2)
        assert numbers(await anext(follower)) == [1, 2]
        with trio.move_on_after(1) as nothing:
            await anext(follower)
        assert nothing.cancelled_caught
        say(history, "db", 3)
        say(history, "web", 4)
        assert numbers(await anext(follower)) == [4]
    assert history.followers == 0


async def test_a_slow_follower_is_told_what_it_lost_and_nobody_else_is(autojump_clock):
    history = History()
    with history.follow() as slow, history.follow() as quick:
        heard = []
        for number in range(MAX_RECORDS_WAITING + 7):
            say(history, "web", number)
            heard += numbers(await anext(quick))
        assert heard == list(range(MAX_RECORDS_WAITING + 7))
        lines = b""
        while b"dropped" not in lines:
            lines += await anext(slow)
        assert numbers(lines) == [*range(MAX_RECORDS_WAITING), "dropped"]
        last = json.loads(lines.splitlines()[-1])
        assert (last["event"], last["dropped"], last["reason"]) == ("dropped", 7, "the reader is too slow")
        say(history, "web", 9999)
        assert numbers(await anext(slow)) == [9999]


async def test_the_end_lets_followers_read_the_rest_and_waits_for_them(autojump_clock):
    history, heard = History(), []

    async def follow(task_status=trio.TASK_STATUS_IGNORED):
        with history.follow() as follower:
            task_status.started()
            heard.extend([lines async for lines in follower])

    async with trio.open_nursery() as nursery:
        await nursery.start(follow)
        say(history, "web", 1)
        await history.close()
        assert numbers(b"".join(heard)) == [1]


async def test_the_end_does_not_wait_long_for_one_that_does_not_read(autojump_clock):
    history = History()
    with history.follow() as follower:
        begin = trio.current_time()
        await history.close()
        assert trio.current_time() - begin == pytest.approx(DRAIN_TIMEOUT_S)
        say(history, "web", 1)  # said on the way out: still heard by who is there
        assert numbers(await anext(follower)) == [1]


async def test_after_the_end_there_is_no_news():
    history = History()
    say(history, "web", 1)
    await history.close()
    with history.follow() as follower:
        assert [numbers(lines) async for lines in follower] == [[1]]


async def test_the_listener_of_the_journal_hears_what_the_level_leaves_out(tmp_path):
    from nsupervisor.logs import open_journal

    history = History()
    async with open_journal(str(tmp_path / "log"), level="error") as journal:
        journal.listener = history.add
        journal.log.info("started", workload="web", number=1)
        journal.log.error("failed", workload="web", number=2)
        journal.record_line({"workload": "web", "generation": 1, "pid": 1}, "stdout", b"not kept")
    assert kept(history, "web") == ([1, 2], 0)
    lines = (tmp_path / "log").read_bytes().splitlines(keepends=True)
    assert lines[0] == history.records_of("web")[0][1]


# ---- followers that do not read


def say_much(history, number, size, workload="web"):
    history.add(TIME, "info", "status", {"workload": workload, "number": number, "message": "x" * size})


async def rest(follower):
    """All records that a closed follower still yields."""
    follower.close()
    return numbers(b"".join([lines async for lines in follower]))


async def test_a_follower_joined_all_waiting_lines_into_one_piece():
    """Followers that stopped reading had a copy of up to 6,000 records each: 500 of them took 1 GB."""
    history = History()
    for number in range(100):
        say_much(history, number, 1000)
    say_much(history, 100, 3 * MAX_PIECE_BYTES)
    with history.follow(news=False) as follower:
        pieces = [piece async for piece in follower]
    assert numbers(b"".join(pieces)) == list(range(101))
    assert len(pieces) > 100_000 // MAX_PIECE_BYTES
    assert all(len(piece) <= MAX_PIECE_BYTES for piece in pieces[:-1])
    assert numbers(pieces[-1]) == [100]


async def test_followers_share_the_lines():
    history = History()
    with history.follow() as one, history.follow() as other:
        say_much(history, 0, 3 * MAX_PIECE_BYTES)
        assert await anext(one) is not None
        ((entry,),) = history._entries.values()
        assert entry.holders == 1
        assert await anext(other) is not None
        assert entry.holders == 0


async def test_new_records_wait_for_a_follower_up_to_a_number_of_bytes(monkeypatch):
    monkeypatch.setattr(history_module, "MAX_BYTES_WAITING", 10_000)
    history = History()
    with history.follow() as slow:
        for number in range(20):
            say_much(history, number, 1000)
        waiting = slow.held_bytes // 1000
        assert 0 < waiting < 10
        assert await rest(slow) == [*range(waiting), "dropped"]


async def test_the_line_about_a_gap_comes_where_the_gap_is(monkeypatch):
    monkeypatch.setattr(history_module, "MAX_RECORDS_WAITING", 2)
    monkeypatch.setattr(history_module, "MAX_PIECE_BYTES", 1)
    history = History()
    with history.follow() as slow:
        for number in range(3):
            say(history, "web", number)
        assert numbers(await anext(slow)) == [0]
        say(history, "web", 3)  # there is room again, but it comes after the gap
        assert numbers(await anext(slow)) == [1, "dropped"]
        say(history, "web", 4)
        assert await rest(slow) == [4]


async def test_lines_that_only_followers_hold_are_bounded_in_total(monkeypatch):
    monkeypatch.setattr(history_module, "MAX_BYTES_OUTLIVED", 50_000)
    history = History(per_workload=1)
    with history.follow() as large, history.follow(["db"]) as small, history.follow() as quick:
        say_much(history, 0, 10, "db")
        for number in range(1, 100):
            say_much(history, number, 1000)
            assert history._outlived.size <= 50_000
            await anext(quick)
        lines = [json.loads(line) for line in b"".join([piece async for piece in large]).splitlines()]
        assert [line["event"] for line in lines] == ["dropped"]
        assert lines[0]["dropped"] > 40
        assert "the stream ends here" in lines[0]["reason"]
        say_much(history, 100, 10, "db")
        assert await rest(small) == [0, 100]
        assert await rest(quick) == [100]
    assert history._outlived.size == 0


async def test_lines_are_released_when_a_follower_leaves():
    history = History(per_workload=1)
    with history.follow():
        for number in range(10):
            say(history, "web", number)
        assert history._outlived.size > 0
    assert history._outlived.size == 0
    assert [entry.holders for entries in history._entries.values() for entry in entries] == [0]
