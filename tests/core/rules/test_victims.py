"""Choice of victims: the ranking, the values of a member, and the verdict on an action."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsupervisor.core.rules.victims import (
    Candidate,
    ExpectedEffect,
    MemoryGrowth,
    freed_by_kill,
    rank_candidates,
)

MIB = 1 << 20

ONES = (
    Candidate("bloat", memory=200 * MIB, growth=0, priority=5, age_s=100),
    Candidate("grows", memory=50 * MIB, growth=10 * MIB, priority=10, age_s=50),
    Candidate("least", memory=10 * MIB, growth=0, priority=-1, age_s=60),
    Candidate("young", memory=20 * MIB, growth=1, priority=10, age_s=1),
)


def order(victim: str, *members: Candidate, tried: tuple[str, ...] = ()) -> list[str]:
    return [place.candidate.name for place in rank_candidates(victim, members, tried) if place.rank is not None]


def test_each_measure_has_its_first_victim() -> None:
    assert order("largest-memory", *ONES) == ["bloat", "grows", "young", "least"]
    assert order("fastest-growing", *ONES) == ["grows", "young", "bloat", "least"]
    assert order("lowest-priority", *ONES)[:2] == ["least", "bloat"]
    assert order("newest", *ONES) == ["young", "grows", "least", "bloat"]


def test_avoid_comes_after_all_others_and_omit_never() -> None:
    bloat = Candidate("bloat", 200 * MIB, 0, 0, 1, "avoid")
    chill = Candidate("chill", 1 * MIB, 0, 0, 1)
    never = Candidate("never", 900 * MIB, 0, 0, 1, "omit")
    places = rank_candidates("largest-memory", [bloat, chill, never])
    assert [(place.candidate.name, place.rank) for place in places] == [("chill", 1), ("bloat", 2), ("never", None)]
    assert [place.reason for place in places] == [
        "memory 1.0M",
        "memory 200.0M, avoided",
        "managed_oom_preference = omit",
    ]


@pytest.mark.fault("C2")
def test_the_reader_of_a_large_file_was_the_largest() -> None:
    """Its page cache is dropped without a kill, and a kill freed nothing."""
    reader = Candidate("reader", 300 * MIB, 0, 0, 1, freed_by_kill=MIB / 10)
    leak = Candidate("leak", 120 * MIB, 0, 0, 1, freed_by_kill=119 * MIB)
    places = rank_candidates("largest-memory", [reader, leak])
    assert [(place.candidate.name, place.reason) for place in places] == [
        ("leak", "a kill frees 119.0M"),
        ("reader", "a kill frees 0.1M"),
    ]
    assert places[0].to_record()["freed_by_kill_bytes"] == 119 * MIB
    assert order("lowest-priority", reader, leak) == ["leak", "reader"], "equal ones as well"


@pytest.mark.fault("C2")
def test_each_page_that_a_kill_frees_counts_once() -> None:
    stat = {"anon": 100.0, "shmem": 50.0, "file": 400.0, "inactive_file": 350.0, "active_file": 0.0}
    assert freed_by_kill({**stat, "inactive_anon": 140.0, "active_anon": 10.0, "unevictable": 0.0}) == 150
    locked = {
        **stat,
        "inactive_anon": 50.0,
        "active_anon": 0.0,
        "unevictable": 107.0,
    }  # all anonymous pages, 7 of files
    assert freed_by_kill(locked) == 157
    assert freed_by_kill(stat) == 150
    assert freed_by_kill({}) is None


def test_what_did_not_help_has_no_second_turn() -> None:
    """A member that cannot be killed must not keep the others from being chosen."""
    assert order("largest-memory", *ONES, tried=("bloat",))[0] == "grows"
    last = rank_candidates("largest-memory", ONES, {candidate.name: "" for candidate in ONES})
    assert [place.rank for place in last] == [None] * 4
    assert last[0].reason == "was tried, and it did not help"


candidates = st.builds(
    Candidate,
    st.text("abc", min_size=1, max_size=3),
    st.sampled_from([0.0, 1.0, 2.0]),
    st.sampled_from([-1.0, 0.0, 1.0]),
    st.integers(-1, 1),
    st.sampled_from([0.0, 1.0]),
    st.sampled_from(["none", "avoid", "omit"]),
)
measures = st.sampled_from(["largest-memory", "fastest-growing", "lowest-priority", "newest"])


@given(measures, st.lists(candidates, unique_by=lambda candidate: candidate.name), st.randoms(use_true_random=False))
def test_the_order_is_the_same_however_the_members_come(victim, members, random) -> None:
    shuffled = list(members)
    random.shuffle(shuffled)
    places = rank_candidates(victim, members)
    assert places == rank_candidates(victim, shuffled)
    assert sorted(place.candidate.name for place in places) == sorted(candidate.name for candidate in members)
    turns = [place.rank for place in places if place.rank is not None]
    assert turns == list(range(1, len(turns) + 1))
    avoided = [place.candidate.preference == "avoid" for place in places if place.rank is not None]
    assert avoided == sorted(avoided)


def test_growth_is_measured_over_the_window_and_forgets_who_is_gone() -> None:
    growth = MemoryGrowth(window_s=10)
    for now in range(0, 21, 1):
        assert growth.is_due(now)
        growth = growth.with_readings(
            now, {"web": now * 100.0, "old": 5.0} if now < 15 else {"web": 1500.0 + (now - 15) * 10.0}
        )
        assert not growth.is_due(now + 0.5)
    assert growth.rate("web", 21, 1560.0) == (1560.0 - 1000.0) / 11
    assert growth.rate("old", 21, 5.0) == 0
    assert growth.rate("web", 20.0, 1550.0) == (1550 - 1000) / 10
    assert MemoryGrowth().rate("web", 1, 5) == 0


def test_a_kill_is_verified_by_the_processes_and_by_the_memory() -> None:
    kill = ExpectedEffect.expect("kill", is_about_memory=True, own_memory=100 * MIB, timeout_s=5)
    assert kill.judge(is_gone=False, freed_bytes=0, still_holds=True, elapsed_s=1)[0] == "wait"
    assert kill.judge(is_gone=False, freed_bytes=0, still_holds=True, elapsed_s=5) == (
        "failed",
        "it still has processes after 5.0 s",
    )
    assert kill.judge(is_gone=True, freed_bytes=60 * MIB, still_holds=True, elapsed_s=1) == ("done", "")
    assert kill.judge(is_gone=True, freed_bytes=1 * MIB, still_holds=False, elapsed_s=1) == ("done", "")
    assert kill.judge(is_gone=True, freed_bytes=1 * MIB, still_holds=True, elapsed_s=1)[0] == "wait"
    assert kill.judge(is_gone=True, freed_bytes=1 * MIB, still_holds=True, elapsed_s=6) == (
        "failed",
        "of 50.0M only 1.0M came back in 6.0 s",
    )


def test_other_acts_are_verified_as_far_as_they_can_be() -> None:
    other = ExpectedEffect.expect("kill", is_about_memory=False, own_memory=100 * MIB, timeout_s=5)
    assert other.judge(is_gone=True, freed_bytes=0, still_holds=True, elapsed_s=0)[0] == "done"
    freeze = ExpectedEffect.expect("freeze", is_about_memory=True, own_memory=100 * MIB, timeout_s=5)
    assert freeze.judge(is_gone=True, freed_bytes=0, still_holds=True, elapsed_s=0)[0] == "done"
    assert freeze.judge(is_gone=False, freed_bytes=0, still_holds=True, elapsed_s=9)[0] == "failed"
    assert (
        ExpectedEffect.expect("signal", True, 1, 5).judge(is_gone=False, freed_bytes=0, still_holds=True, elapsed_s=0)[
            0
        ]
        == "done"
    )


@pytest.mark.fault("H11")
def test_a_frozen_member_is_not_frozen_again_but_may_be_killed() -> None:
    """It was chosen again each second, and found to stand still; the others ran on."""
    frozen = Candidate("young", 20 * MIB, 0, 0, age_s=1, is_frozen=True)
    other = Candidate("old", 20 * MIB, 0, 0, age_s=9)
    places = rank_candidates("newest", (frozen, other), action="freeze")
    assert [(place.candidate.name, place.rank) for place in places] == [("old", 1), ("young", None)]
    assert places[1].reason == "is frozen already"
    places = rank_candidates("newest", (frozen, other), action="kill")
    assert [place.candidate.name for place in places if place.rank] == ["young", "old"]
