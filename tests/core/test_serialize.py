"""Exact conversion of frozen classes to JSON values and back."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsupervisor.core.exits import Exit, Outcome
from nsupervisor.core.lifecycle import AfterStop, Lifecycle, State
from nsupervisor.core.rules.rules import AtomState, RuleState
from nsupervisor.core.serialize import from_json, to_json

FLOATS = st.floats(allow_nan=False)
EXITS = st.builds(Exit, code=st.none() | st.integers(0, 255), signal=st.none() | st.integers(1, 64))
LIVES = st.builds(
    Lifecycle,
    state=st.sampled_from(State),
    reason=st.text(),
    generation=st.integers(0),
    deadline=st.none() | FLOATS,
    after_stop=st.sampled_from(AfterStop),
    sigkill_sent=st.booleans(),
    exit=st.none() | EXITS,
    fault_outcome=st.none() | st.sampled_from(Outcome),
    recent_starts=st.lists(FLOATS).map(tuple),
)
ATOMS = st.builds(
    AtomState,
    value=st.none() | FLOATS,
    is_true=st.none() | st.booleans(),
    rate_start=st.none() | st.tuples(FLOATS, FLOATS),
)
MEMORIES = st.builds(
    RuleState, atoms=st.lists(ATOMS).map(tuple), holding_since=st.none() | FLOATS, has_fired=st.booleans()
)


@given(LIVES | MEMORIES)
def test_what_is_written_is_read_again(value):
    assert from_json(type(value), json.loads(json.dumps(to_json(value), allow_nan=False))) == value


def test_defaults_may_be_left_out():
    assert to_json(AtomState(value=math.inf), omit=None) == {"last": "max", "before": 0.0}
    assert from_json(AtomState, {"last": "max"}) == AtomState(value=math.inf)


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
        from_json(Lifecycle, data)
