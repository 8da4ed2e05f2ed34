"""Environment files: their format, and every bad line reported."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsupervisor.config.environment import load_environment, parse_environment
from nsupervisor.config.problems import ConfigError

FILE = r"""
# comment
  ; another
A=1
 B = it's {"a": 1}SPACE
EMPTY=
QUOTED="a \"b\" \$c \n \
d"
SINGLE='x\
# y'
ESCAPED=one\ \ \\two\SPACE
GOES_ON=one \
  two
EQUALS=a=b
HASH=a # b
A=2
LAST=3""".replace("SPACE", " ")  # at the end of a line, where editors remove it


def test_the_forms_of_a_line() -> None:
    assert parse_environment(FILE, "env") == {
        "A": "2",
        "B": 'it\'s {"a": 1}',
        "EMPTY": "",
        "QUOTED": 'a "b" $c \\n d',
        "SINGLE": "x\\\n# y",
        "ESCAPED": "one  \\two ",
        "GOES_ON": "one   two",
        "EQUALS": "a=b",
        "HASH": "a # b",
        "LAST": "3",
    }


def test_percent_and_dollar_signs_are_literal() -> None:
    # Supervisors that expand "%" make people double it, and crash on passwords.
    assert parse_environment("A=100%\nB=%(ENV_A)s $A ${A} `id`\n", "env") == {
        "A": "100%",
        "B": "%(ENV_A)s $A ${A} `id`",
    }


def test_line_ends_of_other_systems() -> None:
    assert parse_environment("A=1\r\nB='2'\r\n\r\n# c\r\n", "env") == {"A": "1", "B": "2"}


def test_every_bad_line_is_told_with_its_place() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_environment('A=1\n\nnonsense\nexport B=1\n=1\nC D=1\nE="x" # c\nF=\'a\n', "/etc/env")
    assert [str(problem) for problem in caught.value.problems] == [
        '/etc/env:3: has no "="; write NAME=VALUE, or "#" before a comment',
        '/etc/env:4: begins with "export", which a shell would read; write NAME=VALUE alone',
        '/etc/env:5: has no name for a variable before its "="; write NAME=VALUE, the name without blanks and quotes',
        '/etc/env:6: has no name for a variable before its "="; write NAME=VALUE, the name without blanks and quotes',
        "/etc/env:7: E: has text behind the closing quote; quote all of it, and put comments on lines of their own",
        "/etc/env:8: F: has an opening ' and no closing one; close it, or put \\ before it",
    ]


@pytest.mark.parametrize("text", ["A=a\0", "A=b\\", "A\0=1"])
def test_what_no_environment_can_hold(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^env:1: "):
        parse_environment(text, "env")


def test_files(tmp_path) -> None:
    file = tmp_path / "env"
    with pytest.raises(ConfigError, match="there is no such file"):
        load_environment(str(file))
    assert load_environment(f"-{file}") == {}
    file.write_text("A=1\n")
    assert load_environment(str(file)) == load_environment(f"-{file}") == {"A": "1"}
    file.write_bytes(b"A=1\nB=\xff\n")
    with pytest.raises(ConfigError, match=r"env:2: byte 0xff is not UTF-8"):
        load_environment(f"-{file}")
    with pytest.raises(ConfigError, match="is a directory"):
        load_environment(f"-{tmp_path}")


names = st.from_regex(r"[A-Za-z_][A-Za-z0-9_.]*", fullmatch=True)
values = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))


@given(st.dictionaries(names, values))
def test_double_quotes_hold_any_text(variables: dict[str, str]) -> None:
    def quoted(text: str) -> str:
        return '"' + "".join("\\" + c if c in '\\"$`' else c for c in text) + '"'

    text = "".join(f"{name}={quoted(value)}\n" for name, value in variables.items())
    assert parse_environment(text, "env") == variables


@given(st.text() | st.text("AB=\"' \\\n\r#;$", max_size=30))
def test_any_text_is_variables_or_located_problems(text: str) -> None:
    problems = []
    try:
        variables = parse_environment(text, "env")
    except ConfigError as error:
        problems = error.problems
    else:
        assert not any("\0" in name + value or "=" in name for name, value in variables.items())
    assert all(1 <= problem.line <= text.count("\n") + 1 for problem in problems)
