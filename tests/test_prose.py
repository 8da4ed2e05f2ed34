"""Reject the worst patterns of prose in docstrings, comments and pages; CONTRIBUTING.md ("Style") has the rules."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.needs import ROOT

PACKAGE = ROOT / "nsupervisor"

# Folders and files that are being rewritten; empty otherwise.
NOT_YET: tuple[str, ...] = ()

MIN_WORDS = 4

# What is rejected → what to write instead.
WORDS = {
    r"\banew\b": '"again", or a verb such as "recreate", "reopen", "restart"',
    r"\b(?:no|some)body\b": "the process, caller or operator",
    r"\bwho(?:m|ever|mever)\b": 'the process or caller; "any process that …"',
    r"\b(?:is|are|was|were|be|been|being) told\b": '"gets", "is notified", "is reported", "is requested"',
    r"\b(?:tells?|telling|told) of\b": '"reports", "notifies of", "records"',
    r"\bfor ?ever\b": '"without limit", "permanently"',
    r"\bso many\b": 'the number: "n", "this number of"',
    r"\bbeside(?! the point)\b": '"next to", "in addition to", "compared with"',
    r"\bmend(?:s|ed|ing)?\b": '"fix", "repair", "restore"',
    r"\bdeeds?\b": '"action"',
    r"\bwas not to be\b": '"failed", with the reason',
    r"\b(?:goes|went|gone|go|going) off\b": '"fires"',
}
OPENINGS = {
    "of": "name the subject first",
    "who": 'name the process or caller: "A process that …"',
    "whose": "name the subject first",
    "what": "name the thing, or begin with a verb",
    "where": 'begin with "If …" or with the noun: "The place …"',
    "that": "name the thing",
    "those": "name the things",
    "which": 'name the thing, or ask: "Return whether …"',
}


class Fault(NamedTuple):
    """A rejected pattern at a line of a file."""

    path: str
    line: int
    found: str
    instead: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.found}; write instead: {self.instead}"


def find_words(path: str, line: int, text: str) -> Iterator[Fault]:
    """Search `text`, which begins at `line`, for the rejected words."""
    for pattern, instead in WORDS.items():
        for match in re.finditer(pattern, text, re.IGNORECASE):
            yield Fault(path, line + text.count("\n", 0, match.start()), f'"{match[0]}"', instead)


def documented(tree: ast.Module) -> Iterator[tuple[ast.Constant, str | None]]:
    """Yield each docstring, also of an attribute, with the name of its owner if that is public, else None."""

    def visit(node: ast.AST, is_public: bool) -> Iterator[tuple[ast.Constant, str | None]]:
        body: list[ast.stmt] = getattr(node, "body", [])
        name: str = getattr(node, "name", "module")
        for index, statement in enumerate(body):
            match statement:
                case ast.Expr(value=ast.Constant(value=str()) as constant):
                    is_own = index == 0
                    yield constant, name if is_own and is_public and not isinstance(node, ast.Module) else None
                case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
                    yield from visit(statement, is_public and not statement.name.startswith("_"))

    yield from visit(tree, True)


def find_in_python(path: str, source: str) -> Iterator[Fault]:
    """Search the docstrings and comments of a module."""
    for constant, owner in documented(ast.parse(source)):
        text = str(constant.value)
        yield from find_words(path, constant.lineno, text)
        first = re.match(r"\W*(\w+)", text)
        if first and (instead := OPENINGS.get(first[1].lower())):
            yield Fault(path, constant.lineno, f'a docstring opens with "{first[1]}"', instead)
        if "``" in text:
            line = constant.lineno + text.count("\n", 0, text.index("``"))
            yield Fault(path, line, "double back-ticks", "single back-ticks")
        if owner and len(text.split()) < MIN_WORDS:
            instead = f"a summary of at least {MIN_WORDS} words that stands alone"
            yield Fault(path, constant.lineno, f"the docstring of {owner} is {text!r}", instead)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield from find_words(path, token.start[0], token.string)


def find_in_page(path: str, text: str) -> Iterator[Fault]:
    """Search a Markdown page, without its code, the names in back-ticks, and the examples of what not to write."""

    def blank(match: re.Match[str]) -> str:
        return re.sub(r"[^\n]", " ", match[0])

    text = re.sub(r"^```.*?^```", blank, text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"`[^`]*`", blank, text)
    text = re.sub(r"^\| before \| after \|$(?:\n\|.*)*", blank, text, flags=re.MULTILINE)
    return find_words(path, 1, text)


def modules() -> list[Path]:
    """Return the modules whose prose is checked."""
    paths = sorted(PACKAGE.rglob("*.py"))
    return [path for path in paths if not path.relative_to(PACKAGE).as_posix().startswith(NOT_YET)]


def pages() -> list[Path]:
    """Return the pages whose prose is checked. The changelog of released versions stays as it is."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def shown(faults: list[Fault]) -> str:
    """Return one line per fault."""
    return "\n" + "\n".join(map(str, faults))


def test_docstrings_and_comments_are_plain() -> None:
    faults = [fault for path in modules() for fault in find_in_python(str(path.relative_to(ROOT)), path.read_text())]
    assert faults == [], shown(faults)


def test_pages_are_plain() -> None:
    faults = [fault for path in pages() for fault in find_in_page(str(path.relative_to(ROOT)), path.read_text())]
    assert faults == [], shown(faults)


def test_exclusions_name_something_that_exists() -> None:
    assert [name for name in NOT_YET if not (PACKAGE / name).exists()] == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ('"""Of each workload, the pid."""', 'a docstring opens with "Of"'),
        ('def f():\n    """Those that run, in their order."""', 'a docstring opens with "Those"'),
        ("# The file is opened anew.", '"anew"'),
        ("x = 1  # the keeper is told of it", '"is told"'),
        ('"""Return it.\n\nNobody waits."""', '"Nobody"'),
        ('def f():\n    """Return the ``pid`` of it."""', "double back-ticks"),
        ('def f():\n    """All of it."""', "the docstring of f is 'All of it.'"),
        ('class A:\n    x: int\n    """Whose it is, by name."""', 'a docstring opens with "Whose"'),
        ('class A:\n    """A good summary of it."""\n    def f(self):\n        """That was all."""', "opens with"),
    ],
)
def test_a_bad_sentence_in_code_is_found(source: str, found: str) -> None:
    assert found in shown(list(find_in_python("some.py", source)))


@pytest.mark.parametrize(
    "source",
    [
        '"""Return the whole table of children."""\n# Whole lines only; see somebody_else().\n',
        'def _f():\n    """All of it."""',
        'def f():\n    return "nobody"  # the user of this name is in a string',
        'class _A:\n    def f(self):\n        """It is."""',
    ],
)
def test_good_sentences_and_private_names_pass(source: str) -> None:
    assert list(find_in_python("some.py", source)) == []


def test_a_fault_names_file_line_and_remedy() -> None:
    [fault] = find_in_python("nsupervisor/some.py", '"""Return the pid of a process.\n\nIt is opened anew."""\n')
    assert str(fault).startswith('nsupervisor/some.py:3: "anew"; write instead: "again"')


def test_a_page_is_searched_without_code_and_examples() -> None:
    page = (
        "One.\n\n```\nnobody\n```\n`nobody` is a user.\n\n| before | after |\n|---|---|\n| anew | again |\n\nA deed.\n"
    )
    assert [(fault.line, fault.found) for fault in find_in_page("page.md", page)] == [(12, '"deed"')]
