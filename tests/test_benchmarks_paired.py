"""The comparison of two checkouts: the statistics, the table, and what the command line refuses."""

import json
import math
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.checkout import HERE, Checkout, open_checkout
from benchmarks.figures import Result
from benchmarks.paired import NEW, OLD, Comparison, compare, last_line, log_median, median_interval, table
from benchmarks.peer import known
from benchmarks.peers.nsupervisor import Nsupervisor, taken_from
from benchmarks.products import SetupError
from benchmarks.session import in_pairs
from tests.needs import ROOT
from tests.timing import deadline

COSTS = st.floats(1e-3, 1e3)
PAIRS = st.lists(st.tuples(COSTS, COSTS), min_size=1, max_size=60)


def measured(pairs, unit="ms"):
    result = Result("restart", "a title")
    for number, (new, old) in enumerate(pairs):
        result.add(NEW, "a case", unit, number, [new])
        result.add(OLD, "a case", unit, number, [old])
    return result


def one(pairs, unit="ms"):
    (found,) = compare(measured(pairs, unit))
    return found


# ---- the interval


def coverage(low, high, count):
    """The probability that the median lies between the values of two ranks (from 0), by the binomial distribution."""
    return sum(math.comb(count, k) for k in range(low + 1, high + 1)) / 2**count


@given(st.integers(1, 300), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_the_interval_is_the_narrowest_that_keeps_its_promise(count, confidence):
    found = median_interval(range(count), confidence)
    if found is None:
        assert coverage(0, count - 1, count) < confidence
        return
    low, high = found
    assert low + high == count - 1, "not symmetric"
    assert coverage(low, high, count) >= confidence
    assert low + 1 > high - 1 or coverage(low + 1, high - 1, count) < confidence


@pytest.mark.parametrize(("count", "ranks"), [(5, None), (6, (1, 6)), (9, (2, 8)), (15, (4, 12)), (100, (40, 61))])
def test_ranks_of_the_tables_in_textbooks(count, ranks):
    assert median_interval(range(1, count + 1)) == ranks


@given(st.lists(COSTS, min_size=6, max_size=50), st.randoms())
def test_the_interval_holds_the_median_and_does_not_depend_on_the_order(values, random):
    low, high = median_interval(values)
    assert low <= log_median(values) * (1 + 1e-9)
    assert log_median(values) <= high * (1 + 1e-9)
    shuffled = random.sample(values, len(values))
    assert median_interval(shuffled) == (low, high)


@given(st.lists(COSTS, min_size=1, max_size=50))
def test_the_median_of_inverse_ratios_is_the_inverse_median(values):
    assert log_median([1 / value for value in values]) == pytest.approx(1 / log_median(values))


# ---- the verdict


@given(PAIRS)
def test_the_other_way_round_everything_is_inverted(pairs):
    there, back = one(pairs), one([(old, new) for new, old in pairs])
    assert back.ratio == pytest.approx(1 / there.ratio)
    assert (back.new, back.old) == (there.old, there.new)
    if there.interval is not None:
        assert back.interval == pytest.approx((1 / there.interval[1], 1 / there.interval[0]))


@given(PAIRS)
def test_a_rate_is_inverted_so_that_more_than_one_is_slower(pairs):
    cost, rate = one(pairs, "ms"), one([(1 / new, 1 / old) for new, old in pairs], "MB/s")
    assert rate.ratios == pytest.approx(cost.ratios)


@pytest.mark.parametrize(
    ("new", "old", "unit", "verdict"),
    [
        (2.0, 1.0, "ms", "slower"),
        (2.0, 1.0, "MB/s", "faster"),
        (1.0, 2.0, "requests/s", "slower"),
        (1.0, 2.0, "CPU s/GB", "faster"),
        (1.04, 1.0, "ms", "same"),
        (1.0, 1.04, "ms", "same"),
    ],
)
def test_verdicts(new, old, unit, verdict):
    assert one([(new, old)] * 8, unit).verdict == verdict


def test_a_difference_is_one_only_if_the_whole_interval_shows_it():
    """Of eight pairs the interval goes from the least to the greatest, so one that is equal is enough for a doubt."""
    assert one([(1.5, 1.0)] * 8).verdict == "slower"
    assert one([(1.5, 1.0)] * 7 + [(1.0, 1.0)]).verdict == "same"
    assert one([(1.0, 1.5)] * 7 + [(1.0, 1.0)]).verdict == "same"


def test_five_pairs_prove_nothing():
    assert one([(9.0, 1.0)] * 5).verdict == "too few pairs"
    assert table([one([(9.0, 1.0)] * 5)])[1][-4:] == ["9.000", "", "5", "too few pairs"]


def test_a_drift_that_both_sides_share_is_no_difference():
    """The medians of both sides would differ by the drift between them if rounds were thrown together."""
    assert one([(1.2 * speed, speed) for speed in (1, 50, 2, 300, 7, 7, 90)]).ratios == pytest.approx([1.2] * 7)


def test_a_round_that_a_side_lacks_or_that_took_no_time_makes_no_pair():
    result = measured([(2.0, 1.0)] * 3 + [(0.0, 1.0), (1.0, 0.0)])
    result.add(NEW, "a case", "ms", 5, [4.0])
    assert compare(result)[0].ratios == (2.0, 2.0, 2.0)
    alone = Result("restart", "a title")
    alone.add(NEW, "a case", "ms", 0, [1.0])
    assert compare(alone) == []


def test_what_is_no_cost_is_not_compared():
    assert compare(measured([(2.0, 1.0)] * 8, "MB kept")) == []


def test_the_last_line_counts_the_slower_and_names_what_failed():
    slow, same = one([(2.0, 1.0)] * 8), one([(1.0, 1.0)] * 8)
    assert last_line([slow, same], []) == "1 of 2 cases slower"
    assert last_line([same], ["logs"]) == "0 of 1 cases slower; not measured to the end: logs"


@given(PAIRS)
def test_json_has_all_that_was_measured(pairs):
    found = one(pairs)
    again = json.loads(json.dumps(found.json()))
    assert Comparison.from_json(again) == found
    assert again["verdict"] == found.verdict


@given(st.integers(0, 9))
def test_each_side_is_first_every_other_time(rounds):
    found = [(number, list(order)) for number, order in in_pairs("ab", rounds)]
    assert found == [(number, ["a", "b"] if number % 2 == 0 else ["b", "a"]) for number in range(rounds)]


# ---- the other checkout


def test_a_directory_that_is_no_checkout_is_refused_with_what_to_do(tmp_path):
    with pytest.raises(SetupError) as caught:
        open_checkout(tmp_path, OLD)
    assert str(caught.value) == (
        f"{tmp_path} is not a checkout of nsupervisor, as it has no nsupervisor/__init__.py; make one, for example "
        f"with: git worktree add --detach {tmp_path} COMMIT"
    )


def test_an_environment_that_runs_another_checkout_is_refused(tmp_path):
    """A copied `.venv` has an editable installation of the checkout that it was made for, which would be measured."""
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    script = tmp_path / ".venv" / "bin" / "python"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    script.chmod(0o755)
    with pytest.raises(SetupError, match=f"runs the code in {ROOT}/nsupervisor, another checkout; run {tmp_path}"):
        Checkout(tmp_path, OLD).version()


def test_the_product_does_not_import_what_the_harness_imports(monkeypatch):
    """scripts/bench sets PYTHONPATH to its own checkout; with it both sides would have run the same code."""
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    kind = taken_from(Nsupervisor, Checkout(ROOT / "other", OLD))
    peer = kind(ROOT, [])
    assert "PYTHONPATH" not in peer.environment()
    assert peer.environment()["PATH"] == os.environ["PATH"]
    assert peer.command()[0] == str(ROOT / "other" / ".venv" / "bin" / "nsupervisor")
    assert Nsupervisor(ROOT, []).command()[0] == HERE.program


def test_the_sides_of_a_comparison_are_no_products():
    before = set(known())
    assert taken_from(Nsupervisor, HERE).name == "nsupervisor"
    assert taken_from(Nsupervisor, Checkout(ROOT, OLD)).name == OLD
    assert set(known()) == before


# ---- the command line


def bench(*words, timeout=30.0):
    command = [sys.executable, "-m", "benchmarks", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=deadline(timeout), check=False)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--against", "/", "--peers", "runit", "restart"), "--peers does not go together with --against"),
        (("--against", "/", "--write-docs", "restart"), "--write-docs does not go together with --against"),
        (("--against", "/", "--from", "x", "restart"), "--from does not go together with --against"),
        (("--against", "/"), "--against needs benchmarks: spawn restart"),
        (("--fail-if-slower", "restart"), "--fail-if-slower needs --against DIR"),
        (("--against", "/", "nothing"), "there is no benchmark nothing; there are spawn"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(words, text):
    done = bench(*words)
    assert (done.returncode, text in done.stderr) == (2, True), done.stderr


def test_a_wrong_directory_is_refused_before_anything_is_measured(tmp_path):
    done = bench("--against", str(tmp_path), "restart")
    assert (done.returncode, done.stdout) == (2, "")
    assert f"bench: {tmp_path} is not a checkout of nsupervisor" in done.stderr
