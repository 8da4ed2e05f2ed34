"""The descriptor store: the requests in messages, its keys, and when it is released."""

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsupervisor.core.descriptor_store import (
    StoredKey,
    StoreRequest,
    is_store_key,
    is_valid_name,
    keeps_store,
    parse_store_key,
    parse_store_request,
)
from nsupervisor.core.lifecycle import Lifecycle
from nsupervisor.core.states import State

NAMES = st.text(st.characters(min_codepoint=32, max_codepoint=126, exclude_characters=":"), min_size=1, max_size=255)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"FDSTORE": "1"}, StoreRequest()),
        ({"FDSTORE": "1", "FDNAME": "a b", "FDPOLL": "0"}, StoreRequest("a b", is_polled=False)),
        ({"FDSTORE": "0"}, None),
        ({"FDNAME": "a"}, None),
        ({"FDSTOREREMOVE": "1", "FDNAME": "a"}, StoreRequest("a", removes=True)),
        ({"FDSTOREREMOVE": "1", "FDSTORE": "1", "FDNAME": "a"}, StoreRequest("a", removes=True)),
    ],
)
def test_requests(message, expected):
    assert parse_store_request(message) == expected


@pytest.mark.parametrize("name", ["", "a:b", "a\tb", "é", "\x7f", "x" * 256, "x" * 4000])
def test_a_hostile_name_is_not_used(name):
    """A colon would rename the descriptors behind it in LISTEN_FDNAMES."""
    added = parse_store_request({"FDSTORE": "1", "FDNAME": name})
    assert (added.name, len(added.problem) < 280, added.problem.isprintable()) == ("stored", True, True)
    assert "is not a name of at most 255 printable ASCII characters without a colon" in added.problem
    removed = parse_store_request({"FDSTOREREMOVE": "1", "FDNAME": name})
    assert removed.problem


def test_a_removal_needs_a_name():
    assert parse_store_request({"FDSTOREREMOVE": "1"}).problem == "FDSTOREREMOVE=1 came without FDNAME"


@given(NAMES, st.integers(1, 1 << 40), st.booleans(), st.sampled_from(["web", "web@2", "web@eu"]))
def test_each_key_has_all_of_its_parts(name, number, is_polled, instance):
    key = StoredKey(instance, number, is_polled, name)
    assert is_valid_name(name)
    assert is_store_key(str(key))
    assert parse_store_key(str(key)) == key


@given(st.text())
def test_no_other_key_is_an_error(text):
    found = parse_store_key(text)
    assert found is None or (found.instance, found.name) == tuple(text.split(" ", 4)[i] for i in (1, 4))
    assert parse_store_key(f":store {text}") is None or is_store_key(f":store {text}")


def test_no_socket_has_the_key_of_a_stored_descriptor():
    assert not is_store_key("store stream 127.0.0.1:80")


LIVE = Lifecycle(state=State.RUNNING, generation=1)


@pytest.mark.parametrize(
    ("state", "generation", "pending", "no", "restart"),
    [
        (State.STOPPING, 1, False, True, True),
        (State.BACKOFF, 1, False, False, True),
        (State.STARTING, 2, False, False, True),
        (State.STOPPED, 1, True, False, True),
        (State.STOPPED, 1, False, False, False),
        (State.FAILED, 1, False, False, False),
        (State.EXITED, 1, False, False, False),
    ],
)
def test_what_a_store_outlives(state, generation, pending, no, restart):
    after = attrs.evolve(LIVE, state=state, generation=generation)
    assert keeps_store("no", LIVE, after, pending) is no
    assert keeps_store("restart", LIVE, after, pending) is restart
    assert keeps_store("yes", LIVE, after, pending)
