"""Messages survive the way whole, and whatever else arrives is an error and nothing worse."""

import contextlib
import os
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsupervisor.keeper import protocol
from nsupervisor.keeper.setup.spec import Spec, SpecError
from tests.descriptors import open_descriptors

SCALARS = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=20)
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=10), inner, max_size=5)
)
BASE = {"id": "x#1", "argv": ["true"], "env": {}, "cwd": "/"}
KEYS = sorted(set(Spec.__slots__) - {"flags", "path", "report"} | {"stdin", "nonsense"})


@pytest.fixture(scope="module")
def pair():
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with left, right:
        left.setblocking(False)
        right.setblocking(False)
        yield left, right


@given(message=st.dictionaries(st.text(max_size=10).filter(lambda key: key not in ("v", "memfd")), JSON, max_size=5))
def test_what_is_encoded_decodes(message: dict) -> None:
    decoded = protocol.decode(protocol.encode(message))
    assert repr(decoded) == repr({"v": 1, **message})  # NaN isn't equal to itself


@given(body=st.binary(max_size=200))
def test_decode_takes_or_refuses_any_bytes(body: bytes) -> None:
    with contextlib.suppress(protocol.ProtocolError):
        assert protocol.decode(body)["v"] == 1


@pytest.mark.parametrize("size", [0, 10, protocol.MAX_DATAGRAM - 100, protocol.MAX_DATAGRAM, 3_000_000])
def test_any_size_travels_with_descriptors(pair: tuple[socket.socket, socket.socket], size: int) -> None:
    left, right = pair
    before = len(open_descriptors())
    protocol.send(left, protocol.encode({"text": "x" * size}), [0, 1])
    received = protocol.receive(right)
    assert received is not None
    message, fds = received
    assert len(message["text"]) == size
    assert [os.fstat(fd).st_ino for fd in fds] == [os.fstat(fd).st_ino for fd in (0, 1)]
    assert not any(os.get_inheritable(fd) for fd in fds)
    protocol.close_all(fds)
    assert len(open_descriptors()) == before


@given(body=st.binary(min_size=1, max_size=300), count=st.integers(0, 3))
def test_receive_closes_what_came_with_rubbish(
    pair: tuple[socket.socket, socket.socket], body: bytes, count: int
) -> None:
    left, right = pair
    before = len(open_descriptors())
    socket.send_fds(left, [body], [0] * count)
    with contextlib.suppress(protocol.ProtocolError):
        received = protocol.receive(right)
        assert received is not None
        protocol.close_all(received[1])
    assert len(open_descriptors()) == before


@given(value=JSON)
def test_a_spec_is_an_object(value: object) -> None:
    with contextlib.suppress(SpecError):
        Spec(value)


@given(changes=st.dictionaries(st.sampled_from(KEYS), JSON, max_size=3))
def test_any_value_for_any_key_is_taken_or_refused(changes: dict) -> None:
    with contextlib.suppress(SpecError):
        Spec({**BASE, **changes})


@pytest.mark.parametrize("key", BASE)
def test_required_keys(key: str) -> None:
    with pytest.raises(SpecError, match=f"^{key} is missing$"):
        Spec({name: value for name, value in BASE.items() if name != key})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("argv", "true", "argv: a list is wanted, not 'true'"),
        ("env", {"A": 1}, "env: a text without NUL is wanted, not 1"),
        ("cwd", "srv", "cwd: an absolute path is wanted, not 'srv'"),
        ("namespaces", ["net"], "namespaces: no namespace is called net"),
        ("uid", -1, "uid: a number from 0 to 4294967294 is wanted, not -1"),
        ("uid", 2**32 - 1, "uid: a number from 0 to 4294967294 is wanted, not 4294967295"),
        ("rlimits", {"nofiles": [1, 1]}, "rlimits: no limit is called 'nofiles'"),
        (
            "time_offsets",
            {"realtime": 1},
            "time_offsets: no clock is called 'realtime'; there are monotonic and boottime",
        ),
        (
            "mounts",
            [{"source": "a", "destination": "/b"}],
            "mounts: the source of a bind mount must be an absolute path",
        ),
        ("mounts", [{"source": "/a", "destination": "/b", "options": ["size=1"]}], "can't have the option 'size=1'"),
        ("stdin", "tty", 'stdin: only "null" is possible'),
    ],
)
def test_refusals_name_the_key_and_say_what_is_wanted(key: str, value: object, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        Spec({**BASE, key: value})
    assert message in str(caught.value)
