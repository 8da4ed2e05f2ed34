"""Exact conversion of frozen classes to JSON values and back."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsupervisor.core.exits import Exit, Outcome
from nsupervisor.core.lifecycle import Life, State, Then
from nsupervisor.core.plain import plain, restored
from nsupervisor.core.rules import AtomMemory, Memory

FLOATS = st.floats(allow_nan=False)
EXITS = st.builds(Exit, code=st.none() | st.integers(0, 255), signal=st.none() | st.integers(1, 64))
LIVES = st.builds(
    Life,
    state=st.sampled_from(State),
    reason=st.text(),
    generation=st.integers(0),
    deadline=st.none() | FLOATS,
    then=st.sampled_from(Then),
    killed=st.booleans(),
    exit=st.none() | EXITS,
    fault=st.none() | st.sampled_from(Outcome),
    starts=st.lists(FLOATS).map(tuple),
)
ATOMS = st.builds(
    AtomMemory,
    last=st.none() | FLOATS,
    truth=st.none() | st.booleans(),
    anchor=st.none() | st.tuples(FLOATS, FLOATS),
)
MEMORIES = st.builds(Memory, atoms=st.lists(ATOMS).map(tuple), since=st.none() | FLOATS, spent=st.booleans())


@given(LIVES | MEMORIES)
def test_what_is_written_is_read_again(value):
    assert restored(type(value), json.loads(json.dumps(plain(value), allow_nan=False))) == value


def test_defaults_may_be_left_out():
    assert plain(AtomMemory(last=math.inf), without=None) == {"last": "max", "before": 0.0}
    assert restored(AtomMemory, {"last": "max"}) == AtomMemory(last=math.inf)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"state": "asleep"}, "has 'asleep' in place of one of 'stopped', "),
        ({"generation": "1"}, "has '1' in place of a whole number"),
        ({"generation": True}, "has True in place of a whole number"),
        ({"starts": 1.0}, "has 1.0 in place of a list"),
        ({"deadline": "soon"}, "has 'soon' in place of a number"),
        ({"age": 1}, "has the key 'age', which is not known here"),
        ([], "has .* in place of an object"),
    ],
)
def test_what_is_something_else_is_refused(data, words):
    with pytest.raises(ValueError, match=words):
        restored(Life, data)
