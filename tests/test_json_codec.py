"""JSON of the running service: encoding never fails, and decoding fails in one way."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsupervisor.json_codec import MAX_NESTING, decode, decode_object, encode, encode_line, exceeds_nesting


class Unprintable:
    def __str__(self):
        raise RuntimeError


def nested(levels):
    value = 1
    for _ in range(levels):
        value = [value]
    return value


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text() | st.binary() | st.characters(),
        lambda inner: st.lists(inner) | st.dictionaries(st.integers() | st.text() | st.binary(), inner),
    )
)
def test_whatever_is_encoded_can_be_decoded(value):
    json.loads(encode(value))
    assert encode_line(value) == encode(value) + b"\n"


@pytest.mark.parametrize(
    ("value", "decoded"),
    [
        (2**64, str(2**64)),
        (10**5000, "<integer of 16610 bits>"),
        ("\udc80", "\\udc80"),
        ({1: "a"}, {"1": "a"}),
        ({"a"}, ["a"]),
        (Unprintable(), "<Unprintable>"),
    ],
    ids=["2**64", "5001 digits", "surrogate", "key", "set", "unprintable"],
)
def test_what_json_lacks_becomes_text(value, decoded):
    assert decode(encode(value)) == decoded


@pytest.mark.parametrize("levels", [1, MAX_NESTING, 254, 255, 100_000])
def test_nesting_is_cut(levels):
    assert not exceeds_nesting(decode(encode(nested(levels))), 254)


@pytest.mark.parametrize(("levels", "exceeds"), [(0, False), (3, False), (4, True), (100_000, True)])
def test_levels_are_counted(levels, exceeds):
    assert exceeds_nesting(nested(levels), 3) is exceeds


@pytest.mark.parametrize("line", [b"", b"[1]", b"{", b'{"a":NaN}', b'{"a":"\\ud800"}', b"{" * 5000, b'{"a":\xff}'])
def test_lines_without_an_object(line):
    assert decode_object(line) is None


def test_many_brackets_in_one_level_are_no_nesting():
    value = {"a": [{}] * 500}
    assert decode_object(json.dumps(value).encode()) == value
