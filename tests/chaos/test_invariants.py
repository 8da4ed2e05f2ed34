"""Each invariant can fail, and does not fail without a reason."""

import json
from pathlib import Path

from tests.chaos import invariants as inv
from tests.chaos import observe
from tests.chaos.invariants import Process


def state(to, generation=1, from_="stopped", workload="web"):
    return {"event": "state", "workload": workload, "generation": generation, "from": from_, "to": to, "reason": ""}


def said(event, generation=1, workload="web", **more):
    return {"event": event, "workload": workload, "generation": generation, **more}


def process(pid, workload="web", session=None, state="S", cgroup="/site/web", parent=1, started=5):
    return Process(pid, started, parent, session or pid, state, workload, cgroup, "sleep")


def status(name="web", state="running", pid=10, generation=1):
    return {"name": name, "state": state, "pid": pid, "generation": generation, "reason": "because"}


DROPPED = {"event": "dropped", "dropped": 3, "reason": "the reader is too slow"}


class TestRecords:
    def test_whole_lines(self):
        good = json.dumps({"timestamp": "", "level": "info", "event": "x"}).encode() + b"\n"
        assert inv.whole_lines(good * 3) == []
        assert "ends within a line" in inv.whole_lines(good + good[:10])[0]
        assert "line 2 is no JSON" in inv.whole_lines(good + good[:10] + good)[0]
        assert "is no record" in inv.whole_lines(b"[]\n")[0]
        assert "is no record" in inv.whole_lines(b'{"event": "x"}\n')[0]

    def test_valid_records(self):
        assert inv.valid_records([{"event": "x"}], lambda record: None) == []
        assert "too small" in inv.valid_records([{"event": "x"}], lambda record: "too small")[0]

    def test_exits_once(self):
        life = [state("starting"), said("started"), state("running"), said("exited"), state("backoff")]
        again = [state("starting", 2), said("not started", 2), state("failed", 2)]
        assert inv.exits_once(life + again) == []
        assert "has ended before" in inv.exits_once([*life, said("exited")])[0]
        assert "although the end of #1" in inv.exits_once([*life[:3], state("starting", 2)])[0]
        assert "starts after #1" in inv.exits_once([*life, state("starting", 3)])[0]
        assert "twice" in inv.exits_once([*life[:2], said("started")])[0]
        assert "has not been started" in inv.exits_once([*life[:2], said("started", 2)])[0]

    def test_exits_once_where_a_start_follows_at_once_on_a_failed_one(self):
        tries = [state("starting"), said("not started"), said("not started", 2), said("started", 3), said("exited", 3)]
        assert inv.exits_once(tries) == []
        assert inv.exits_once([*tries, said("exited", 3)])

    def test_exits_once_knows_nothing_about_what_was_dropped(self):
        assert inv.exits_once([state("starting"), DROPPED, said("exited", 7), state("starting", 8)]) == []
        assert inv.exits_once([DROPPED, state("starting", 8), said("exited", 8), said("exited", 8)])

    def test_all_ended(self):
        life = [state("starting"), said("started")]
        assert inv.all_ended(life, {"web": 1}) == []
        assert inv.all_ended([*life, said("exited")], {}) == []
        assert "the end of web#1" in inv.all_ended(life, {})[0]
        assert "the end of web#1" in inv.all_ended([*life, state("starting", 2)], {"web": 2})[0]
        assert "lives, and its end is recorded" in inv.all_ended([*life, said("exited")], {"web": 1})[0]
        assert inv.all_ended([*life, DROPPED], {}) == []

    def test_states_chain(self):
        assert inv.states_chain([state("starting"), state("running", from_="starting")]) == []
        assert "but was starting" in inv.states_chain([state("starting"), state("running", from_="stopped")])[0]
        assert inv.states_chain([state("starting"), DROPPED, state("running", from_="ready")]) == []

    def test_output_gapless(self):
        def count(*numbers, generation=1):
            return [said("output", generation, message=f"count {number}") for number in numbers]

        assert inv.output_gapless(count(1, 2, 3) + count(1, 2, generation=2)) == []
        assert "says 4 after 2" in inv.output_gapless(count(1, 2, 4))[0]
        assert "says 2 after 2" in inv.output_gapless(count(1, 2, 2))[0]
        assert "says 2 after 0" in inv.output_gapless(count(2))[0]
        assert "says 'count ' after 1" in inv.output_gapless(count(1, ""))[0]
        assert inv.output_gapless([*count(1), DROPPED, *count(9, 10)]) == []
        assert "says 12 after 10" in inv.output_gapless([*count(1), DROPPED, *count(9, 10, 12)])[0]
        assert "says 1 after 9" in inv.output_gapless([*count(*range(1, 10)), DROPPED, *count(1)])[0]


class TestProcesses:
    def test_one_generation(self):
        family = [process(10), process(11, session=10)]
        other = process(20, started=9)
        assert inv.one_generation(family, family) == []
        assert inv.one_generation(family, [*family, other]) == []  # it may have begun after the family had ended
        assert inv.one_generation([*family, other], [other]) == []
        assert "web lives 2 times" in inv.one_generation([*family, other], [*family, other])[0]
        assert inv.one_generation([process(10), other], [process(10, started=8), other]) == []  # the number, used again
        assert inv.one_generation([process(10, state="Z"), other], [process(10, state="Z"), other]) == []
        assert inv.one_generation([process(10, ""), process(11, "")], [process(10, ""), process(11, "")]) == []

    def test_in_their_cgroup(self):
        assert inv.in_their_cgroup([process(10), process(11, cgroup="/site/web/inner")], "/site") == []
        assert inv.in_their_cgroup([process(10, cgroup="/")], "/site")
        assert inv.in_their_cgroup([process(10, cgroup="/site/web2")], "/site")

    def test_none_lost(self):
        assert inv.none_lost([status()], [process(10)], ["web"]) == []
        assert "shown 0 times" in inv.none_lost([], [], ["web"])[0]
        assert "shown 2 times" in inv.none_lost([status(), status()], [process(10)], ["web"])[0]
        assert "not there" in inv.none_lost([status()], [process(11)], ["web"])[0]
        assert "web is running as 10" in inv.none_lost([status()], [process(10, workload="db")], ["web"])[0]
        assert inv.none_lost([status()], [process(10, state="Z")], ["web"])
        assert inv.none_lost([status(state="frozen")], [process(10, state="Z")], ["web"]) == []
        assert inv.none_lost([status(state="stopped", pid=None)], [], ["web"]) == []
        assert "there lives" in inv.none_lost([status(state="stopped", pid=None)], [process(10)], ["web"])[0]
        assert "has a pid" in inv.none_lost([status(state="failed")], [], ["web"])[0]

    def test_reaped(self):
        assert inv.reaped([process(10, state="Z", parent=5)], [6]) == []
        assert inv.reaped([process(10, state="Z", parent=5)], [5])

    def test_what_is_dead_or_alive_is_seen(self):
        assert observe.look(2**22 + 1, "mark") is None
        assert observe.look(1, "mark") is None  # not ours


class TestApi:
    def test_answers(self):
        assert inv.answers([status()]) == []
        assert inv.answers({"error": "no"})
        assert inv.answers([{"name": "web"}])
        assert "in a state 'odd'" in inv.answers([status(state="odd")])[0]

    def test_wishes_kept(self):
        healthy = {"web": frozenset({"running", "frozen"})}
        assert inv.wishes_kept([status()], {"web": True}, healthy) == []
        assert inv.wishes_kept([status(state="stopped")], {"web": False}, healthy) == []
        assert "shall rest, and is running" in inv.wishes_kept([status()], {"web": False}, healthy)[0]
        assert "shall be up, and is stopped" in inv.wishes_kept([status(state="stopped")], {"web": True}, healthy)[0]


class TestEnd:
    def test_nothing_left(self):
        assert inv.nothing_left({"process": [], "mount": []}) == []
        assert inv.nothing_left({"process": [process(10)], "mount": ["/mnt"]}) == [
            "nothing left: process 10 (S, session 10): sleep",
            "nothing left: mount /mnt",
        ]

    def test_descriptors_return(self):
        assert inv.descriptors_return({"pipe": 2, "socket": 3}, {"pipe": 2, "socket": 1}, "the keeper") == []
        assert inv.descriptors_return({"pipe": 2}, {"pipe": 3, "socket": 1}, "the keeper") == [
            "descriptors return: the keeper has 3 pipe, and had 2",
            "descriptors return: the keeper has 1 socket, and had 0",
        ]

    def test_descriptors_are_counted_by_kind(self, tmp_path):
        import os

        before = observe.descriptors(os.getpid())
        ends = os.pipe()
        assert inv.descriptors_return(before, observe.descriptors(os.getpid()), "this")
        for fd in ends:
            os.close(fd)
        assert inv.descriptors_return(before, observe.descriptors(os.getpid()), "this") == []
        assert observe.mounts(Path(tmp_path)) == []
