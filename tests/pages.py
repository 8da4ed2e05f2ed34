"""The blocks of the documentation's pages, and how the commands in them are typed into a shell.

In a `console` block a line that begins with `$ ` is typed; what follows is all of its output, standard error too. `…`
is anything in a line, and alone on a line any number of lines; the amount of white space does not count.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import attrs

from tests.needs import ROOT
from tests.timing import deadline

ANY = "…"
MARK = "### typed"
Typed = tuple[str, list[str]]
"""A command, with the lines that the page shows below it."""


@attrs.frozen
class Block:
    """A fenced block of a page."""

    page: str
    """Path of the page, relative to the repository."""
    line: int
    heading: str
    """The last heading above it, without its marks."""
    language: str
    text: str
    comment: str
    """The HTML comment on the line above it, or ""."""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def typed(self) -> list[Typed]:
        """Each command with the lines that the page shows below it."""
        return typed_in(self.text)


def pages() -> list[str]:
    """Return the paths of the README and of the pages, relative to the repository."""
    return ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]


def blocks(page: str) -> list[Block]:
    """Return the fenced blocks of a page in their order."""
    found = []
    text = (ROOT / page).read_text()
    for match in re.finditer(r"^(?:<!-- ([^\n]*) -->\n)?```(\S*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        above = text[: match.start(3)]
        # Comments of shells look like headings.
        headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", above, flags=re.M | re.S), re.MULTILINE)
        heading = headings[-1] if headings else ""
        found.append(Block(page, above.count("\n"), heading, match[2], match[3], match[1] or ""))
    return found


def typed_in(text: str) -> list[Typed]:
    """Return the commands in the text of a block, each with the lines below it."""
    found: list[Typed] = []
    for line in text.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        else:
            found[-1][1].append(line)
    return found


def shown(lines: list[str]) -> str:
    """Join lines without the white space that does not count."""
    return "\n".join(" ".join(line.split()) for line in lines).strip("\n")


def without_numbers(text: str) -> str:
    """Replace each number, with its unit and what may be in a time or a size, by 0."""
    return re.sub(r"\d[\d:.]*(?:ms|[KMGsh%])?", "0", text)


def is_shown(expected: list[str], output: str) -> bool:
    """Return whether the output is what the page shows."""
    lines = [line for line in shown(expected).split("\n") if line]
    parts = [
        r"(?:[^\n]*\n)*" if line == ANY else re.escape(line).replace(ANY, r"[^\n]*") + r"\n"
        for line in (shown(expected).split("\n") if lines else [])
    ]
    seen = shown(output.splitlines())
    return re.fullmatch("".join(parts), f"{seen}\n" if seen else "") is not None


def script_of(commands: list[str]) -> str:
    """Return a script that runs each command and marks where its output begins."""
    return "".join(f"echo '{MARK}'; eval {shlex.quote(command)} </dev/null\n" for command in commands)


def outputs_of(output: str) -> list[str]:
    """Split the output of such a script into those of its commands."""
    return output.split(f"{MARK}\n")[1:]


def type_in(script: str, directory: Path, environment: Mapping[str, str] | None = None, timeout: float = 40) -> str:
    """Run a script; return all of its output. Whatever fails, no process that it has started is left."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin:/sbin"
    process = subprocess.Popen(
        ["bash", "-c", f"trap 'jobs -p | xargs -r kill; wait' EXIT\n{script}"],
        cwd=directory,
        env={**os.environ, "PATH": path, "LC_ALL": "C.UTF-8", **(environment or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        return process.communicate(timeout=deadline(timeout))[0]
    except subprocess.TimeoutExpired:
        process.terminate()  # runs the trap, so a supervisor ends in order
        process.wait(deadline(20))
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        return process.communicate()[0] + "\n(it took too long)"
