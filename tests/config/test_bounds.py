"""A text that would take long to parse is refused before."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsupervisor.config import bounds
from nsupervisor.config.bounds import KEY_PARTS_LIMIT, TOO_DEEP, check_bounds
from nsupervisor.config.load import PROBLEMS_LIMIT, ConfigError, parse
from nsupervisor.config.positions import scan_positions

MANY = 20_000


@pytest.fixture
def no_parser(monkeypatch):
    def never(_):
        pytest.fail("the text has reached the parser")

    monkeypatch.setattr("nsupervisor.config.documents.tomllib.loads", never)


@pytest.mark.fault("A14")
@pytest.mark.parametrize(
    "text",
    [
        ".".join(["a"] * MANY) + "=1",
        " . ".join(["a"] * MANY) + "=1",
        ".".join(['"a"', "'b'"] * MANY) + "=1",
        "[" + ".".join(["a"] * MANY) + "]",
        "x = {" + ".".join(["a"] * MANY) + "=1}",
        'text = """\n"""\n' + ".".join(["a"] * MANY) + "=1",
        "'''\\''' \n" + ".".join(["a"] * MANY) + "=1",
    ],
)
def test_a_dotted_key_of_40_kb_took_ten_seconds(text, no_parser):
    with pytest.raises(ConfigError, match=TOO_DEEP):
        parse(text, "site.toml")


def test_the_line_of_the_deep_key_is_reported():
    with pytest.raises(ConfigError) as caught:
        check_bounds("# a\n# b\n" + "a." * KEY_PARTS_LIMIT + "a = 1", "site.toml")
    assert str(caught.value) == f"site.toml:3: {TOO_DEEP}"


@pytest.mark.parametrize(
    "text",
    [
        "a." * (KEY_PARTS_LIMIT - 1) + "a = 1",
        'x = "' + "a." * MANY + '"',
        "x = '" + "a." * MANY + "'",
        'x = """' + "a.\n" + "a." * MANY + '"""',
        "x = '''" + "a.\n" + "a." * MANY + "'''",
        "# " + "a." * MANY,
        "x = [" + "1.5, " * MANY + "]",
        'x = "\\"' + "a." * MANY + '"',
        '"' + "a." * MANY + '" = 1',
    ],
)
def test_dots_elsewhere_do_not_count(text):
    check_bounds(text, "site.toml")


def test_more_values_than_any_site_has(monkeypatch, no_parser):
    monkeypatch.setattr(bounds, "VALUES_LIMIT", 100)
    with pytest.raises(ConfigError, match=r"^site\.toml: has more than 100 keys and list elements"):
        parse("x = [" + "1," * 100 + "]", "site.toml")


@given(st.text(alphabet="a.\"'\\\n#= []{}", max_size=200))
def test_any_text_is_looked_at_to_its_end(text):
    """The tokens leave no gap: each character belongs to one."""
    assert "".join(match[0] for match in bounds._TOKEN.finditer(text)) == text


def test_problems_are_listed_up_to_a_limit():
    text = "".join(f"key{number} = 1\n" for number in range(PROBLEMS_LIMIT + 100))
    with pytest.raises(ConfigError) as caught:
        parse(text, "site.toml")
    problems = caught.value.problems
    assert len(problems) == PROBLEMS_LIMIT + 1
    assert str(problems[-1]) == f"site.toml:{PROBLEMS_LIMIT}: there may be more problems; correct these first"


def test_a_string_that_is_never_closed_is_scanned_once():
    """Each of its escaped quotes was taken for the begin of a string that could reach to the end of the line."""
    text = "x = '''" + "a" * 10 + '\ny = "' + '\\"' * 100_000
    assert list(scan_positions('x = 1\ny = "' + '\\"' * 100_000)) == [("x",), ("y",)]
    assert list(scan_positions(text)) == [("x",)]
