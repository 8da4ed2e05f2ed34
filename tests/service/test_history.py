"""What is kept, what is forgotten, and who hears of it."""

import json
from collections import defaultdict

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from nsupervisor.service.observe.history import DRAIN_TIMEOUT_S, MAX_BYTES_WAITING, History

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
        for number in range(MAX_BYTES_WAITING + 7):
            say(history, "web", number)
            heard += numbers(await anext(quick))
        assert heard == list(range(MAX_BYTES_WAITING + 7))
        lines = await anext(slow)
        assert numbers(lines) == [*range(MAX_BYTES_WAITING), "dropped"]
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
