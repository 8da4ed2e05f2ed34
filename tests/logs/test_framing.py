import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsupervisor.logs import Framing
from nsupervisor.logs.framing import count_newlines

# Bytes in which the interesting ones are frequent.
BYTES = st.lists(
    st.sampled_from([b"\n", b"\r", b"\r\n", b"\0", b"a", b"bcdefg", "ä".encode(), "€".encode(), "🙂".encode(), b"\x80"])
    | st.binary(max_size=5),
    max_size=30,
).map(b"".join)
LIMITS = st.integers(4, 20)


def lines(data: bytes, max_line: int, cuts: list[int] = ()) -> list[tuple[bytes, bool]]:
    """Frame `data`, handed over in pieces that end at `cuts`."""
    framing = Framing(max_line)
    found = []
    for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), len(data)], strict=True):
        found += framing.feed(data[start:end])
    return found + framing.flush()


@given(BYTES, LIMITS, st.data())
def test_the_splitting_of_the_input_makes_no_difference(data, max_line, draw):
    cuts = draw.draw(st.lists(st.integers(0, len(data)), max_size=10))
    assert lines(data, max_line, cuts) == lines(data, max_line)
    assert lines(data, max_line, list(range(len(data)))) == lines(data, max_line)


@given(BYTES, LIMITS)
def test_putting_the_lines_together_restores_the_input(data, max_line):
    joined = b"".join(line + (b"" if partial else b"\n") for line, partial in lines(data, max_line))
    # One carriage return per line end is the only thing that goes.
    expected = data.replace(b"\r\n", b"\n")
    assert joined == (expected if data.endswith(b"\n") or not data else expected + b"\n")


@given(BYTES, LIMITS)
def test_only_long_lines_are_cut_and_no_piece_is_longer_than_allowed(data, max_line):
    pieces: list[bytes] = []
    for line, partial in lines(data, max_line):
        assert len(line) <= max_line
        pieces.append(line)
        if partial:
            assert len(line) > max_line - 4  # full, but for the beginning of one character
        else:
            assert len(pieces) == 1 or len(b"".join(pieces)) > max_line
            pieces.clear()
    assert not pieces, "the last piece of a line is not partial"


@given(st.text(st.sampled_from("aä€🙂\n"), max_size=60), LIMITS)
def test_valid_utf8_stays_valid_in_every_piece(text, max_line):
    for line, _ in lines(text.encode(), max_line):
        line.decode()


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", []),
        (b"\n", [(b"", False)]),
        (b"no newline", [(b"no newline"[:8], True), (b"ne", False)]),
        (b"12345678\n", [(b"12345678", False)]),
        (b"12345678\r\n", [(b"12345678", False)]),
        (b"12345678\r", [(b"12345678", True), (b"\r", False)]),
        (b"123456789\r\n", [(b"12345678", True), (b"9", False)]),
        (b"a\r\r\n", [(b"a\r", False)]),
        (b"a\rb\n", [(b"a\rb", False)]),
        (b"a\0b\n", [(b"a\0b", False)]),
        (b"1234567\xc3\xa4\n", [(b"1234567", True), (b"\xc3\xa4", False)]),
        (b"12345\xf0\x9f\x99\x82\n", [(b"12345", True), (b"\xf0\x9f\x99\x82", False)]),
        (b"\x80" * 10, [(b"\x80" * 8, True), (b"\x80" * 2, False)]),
    ],
)
def test_examples_with_eight_bytes_a_line(data, expected):
    assert lines(data, 8) == expected


def test_a_limit_below_one_character_is_refused():
    with pytest.raises(ValueError, match="at least 4 bytes, not 3"):
        Framing(3)


def test_a_line_that_never_ends_takes_no_more_memory_than_the_limit():
    framing = Framing(16384)
    pieces = sum(len(framing.feed(b"x" * 65536)) for _ in range(100))
    assert pieces == 100 * 4 - 1
    assert len(framing._partial_line) <= 16385


@given(
    st.lists(st.lists(st.sampled_from([b"\n", b"\r", b"a", b"bcdef", "ü".encode()])).map(b"".join)), st.integers(4, 20)
)
def test_lines_taken_at_once_are_the_same_as_one_by_one(chunks, max_line):
    slow, quick = Framing(max_line), Framing(max_line)
    for chunk in chunks:
        text = quick.feed_complete(chunk)
        expected = slow.feed(chunk)
        assert (quick.feed(chunk) if text is None else [(line, False) for line in text.split(b"\n")]) == expected
        assert quick.partial_line == slow.partial_line


@pytest.mark.parametrize("line", [b"\n", b"short\n", b"x" * 99 + b"\n", b"no end "])
def test_newlines_are_counted_the_quick_way_and_the_other(line):
    for data in (b"", line * 3000, line * 3000 + b"rest", b"x" * 3000 + line * 3000):
        assert count_newlines(data) == data.count(b"\n")
