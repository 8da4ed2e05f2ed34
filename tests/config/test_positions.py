"""The lines of keys, compared with tomllib's result over all forms of TOML."""

import re
import tomllib
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from nsupervisor.config.positions import MAX_DEPTH, scan_positions


def paths(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Return the paths of all keys and array elements that tomllib finds."""
    items: list[tuple[str | int, Any]] = []
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    result = []
    for name, item in items:
        result += [(*path, name), *paths(item, (*path, name))]
    return [p for p in result if len(p) <= MAX_DEPTH]


def test_every_form_of_key() -> None:
    text = '''\
# a comment with "quotes" and [brackets]
top = 1
dotted.key . deeper = "x" # = no key
"quoted \\u00e9" = 'y'
'lit.eral' = """a = 1
[no.table]
""" # line 6 … 7
[table] # comment
list = [ # comment ]
  1,
  [2, 3],
  { a = 1, b.c = [4] }, ]
date = 1979-05-27 07:32:00
float = 1.5e3
[[array]]
name = 1
[array.sub]
x = """ends in two quotes"""""
y = \'\'\'it's\'\'\'
[[array]]
name = 2
[[array.inner]]
z = {}
[table.sub]
1.5 = ""
'''
    positions = scan_positions(text)
    lines = {path: positions.line(path) for path in paths(tomllib.loads(text))}
    assert lines == {
        ("top",): 2,
        ("dotted",): 3,
        ("dotted", "key"): 3,
        ("dotted", "key", "deeper"): 3,
        ("quoted é",): 4,
        ("lit.eral",): 5,
        ("table",): 8,
        ("table", "list"): 9,
        ("table", "list", 0): 10,
        ("table", "list", 1): 11,
        ("table", "list", 1, 0): 11,
        ("table", "list", 1, 1): 11,
        ("table", "list", 2): 12,
        ("table", "list", 2, "a"): 12,
        ("table", "list", 2, "b"): 12,
        ("table", "list", 2, "b", "c"): 12,
        ("table", "list", 2, "b", "c", 0): 12,
        ("table", "date"): 13,
        ("table", "float"): 14,
        ("array",): 15,
        ("array", 0): 15,
        ("array", 0, "name"): 16,
        ("array", 0, "sub"): 17,
        ("array", 0, "sub", "x"): 18,
        ("array", 0, "sub", "y"): 19,
        ("array", 1): 20,
        ("array", 1, "name"): 21,
        ("array", 1, "inner"): 22,
        ("array", 1, "inner", 0): 22,
        ("array", 1, "inner", 0, "z"): 23,
        ("table", "sub"): 24,
        ("table", "sub", "1"): 25,
        ("table", "sub", "1", "5"): 25,
    }


def test_a_tables_own_header_is_better_than_one_below_it() -> None:
    assert scan_positions("[a.b]\nx = 1\n[a]\ny = 2\n").line(("a",)) == 3


def test_an_unknown_path_has_the_line_of_the_table_around_it() -> None:
    positions = scan_positions("\n[a]\nx = 1\n")
    assert positions.line(("a", "missing", 3)) == 2
    assert positions.line(("missing",)) == 1
    assert positions.line(()) == 1


def test_a_long_dotted_key_is_cheap() -> None:
    text = ".".join(["a"] * 50_000) + " = 1"
    assert len(list(scan_positions(text))) <= MAX_DEPTH


def test_deep_nesting_does_not_use_up_the_stack() -> None:
    scan_positions("a = " + "[" * 100_000 + "]" * 100_000)
    scan_positions("a = " + "{ a = " * 100_000 + "}" * 100_000)


# Documents in which all keys differ, so that the line of each is that of its name.
blank = st.sampled_from(["", " ", "\t", "  "])
comment = st.sampled_from(["", " # comment", ' # "', " # '''", " # = [x] {y}", " # k = \\"])
line_end = st.tuples(blank, comment, st.sampled_from(["\n", "\r\n", "\n\n"])).map("".join)
safe_text = st.text("ab #=[]{},.\"'é", max_size=8)
basic = safe_text.map(lambda text: '"' + text.replace('"', '\\"') + '"')
literal = safe_text.map(lambda text: "'" + text.replace("'", "") + "'")
multi_basic = st.tuples(
    safe_text, st.sampled_from(["", "\n", "\\\n  ", '\\"', "\\\\", '""\n']), st.sampled_from(["", '"', '""'])
).map(lambda parts: '"""' + parts[0].replace('"', '\\"') + parts[1] + parts[2] + '"""')
multi_literal = st.tuples(safe_text, st.sampled_from(["", "\n", "\\", "''\n"]), st.sampled_from(["", "'", "''"])).map(
    lambda parts: "'''" + parts[0].replace("'", "") + parts[1] + parts[2] + "'''"
)
plain = st.sampled_from(
    [
        "1",
        "-1.5e3",
        "0xff",
        "1_000",
        "inf",
        "true",
        "1979-05-27",
        "1979-05-27 07:32:00",
        "1979-05-27T07:32:00.5Z",
        "07:32:00",
    ]
)


class Names:
    """Draw keys that each appear once, in one of TOML's forms."""

    def __init__(self, draw: Any) -> None:
        self.draw = draw
        self.used: list[str] = []

    def new(self) -> str:
        name = f"k{len(self.used)}k"
        self.used.append(name)
        return self.draw(st.sampled_from([name, f'"{name}"', f"'{name}'", f'"\\u006b{name[1:]}"'])).replace(
            '"\\u006bk', '"k'
        )


@st.composite
def documents(draw: Any) -> tuple[str, int]:
    """Draw valid TOML; return it with the number of its keys."""
    names = Names(draw)

    def key() -> str:
        dots = draw(st.integers(0, 2))
        return draw(st.sampled_from([".", " . "])).join(names.new() for _ in range(dots + 1))

    def value(depth: int) -> str:
        shape = draw(st.integers(0, 7 if depth < 3 else 5))
        if shape == 6:

            def gap() -> str:
                return draw(st.sampled_from(["", " ", "\n", " # ]\n", "\n\n  "]))

            items = [gap() + value(depth + 1) + gap() for _ in range(draw(st.integers(0, 3)))]
            return "[" + ",".join(items) + (draw(st.sampled_from(["", ","])) if items else gap()) + gap() + "]"
        if shape == 7:
            pairs = [f"{key()} = {value(depth + 1)}" for _ in range(draw(st.integers(0, 3)))]
            return "{ " + ", ".join(pairs) + " }"
        return draw([plain, plain, basic, literal, multi_basic, multi_literal][shape])

    text = ""
    arrays: list[str] = []
    for _ in range(draw(st.integers(0, 6))):
        kind = draw(st.integers(0, 3))
        if kind == 0:
            text += f"[{key()}]{draw(line_end)}"
        elif kind == 1:
            name = key()
            arrays.append(name)
            text += f"[[{name}]]{draw(line_end)}"
        elif kind == 2 and arrays:
            text += f"[[ {draw(st.sampled_from(arrays))} ]]{draw(line_end)}"
        elif kind == 3 and arrays:
            text += f"[{draw(st.sampled_from(arrays))}.{names.new()}]{draw(line_end)}"
        for _ in range(draw(st.integers(0, 4))):
            text += f"{draw(blank)}{key()}{draw(blank)}={draw(blank)}{value(0)}{draw(line_end)}"
    return text, len(names.used)


@given(documents())
def test_every_key_of_any_valid_document_has_the_line_where_it_stands(document: tuple[str, int]) -> None:
    text, _ = document
    data = tomllib.loads(text)
    lines = text.replace("\\u006b", "k").split("\n")
    positions = scan_positions(text)
    assert set(positions) == set(paths(data))
    for path in paths(data):
        if isinstance(path[-1], str):
            places = [number for number, line in enumerate(lines, 1) if re.search(rf"\b{path[-1]}\b", line)]
            assert positions.line(path) in places
            if len(places) == 1:
                assert positions.line(path) == places[0]


pieces = st.sampled_from(
    [*"[]{}=,.#\"'\n\r\t \\ab1-", '"""', "'''", "[[", "]]", "a = ", "\r\n", "é", "\x00", "1.5", "true"]
)


@given(st.lists(pieces, max_size=40).map("".join) | st.text())
def test_no_text_makes_it_raise(text: str) -> None:
    positions = scan_positions(text)
    try:
        data = tomllib.loads(text)
    except ValueError:
        return
    assert set(positions) == set(paths(data))
