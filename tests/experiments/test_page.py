"""docs/understand.md does what it says: each section is typed into a shell, and must show what the page shows.

`tests/pages.py` says how blocks are typed and compared. A ``toml`` block is saved under the name in its first line. A
section (``##``) is one shell, in an empty directory. ``<!-- needs: NAMES -->`` in a section names what tests/needs.py
knows; those with cgroups run in the virtual machine too.
"""

import os
import re
import shutil
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import attrs
import pytest

from nsupervisor.config.load import load
from tests.experiments.laboratory import until
from tests.needs import ROOT, needs
from tests.pages import Typed, is_shown, outputs_of, script_of, shown, type_in, typed_in

PAGE = (ROOT / "docs" / "understand.md").read_text()


@attrs.frozen
class Section:
    """A part of the page."""

    title: str
    needs: tuple[str, ...]
    blocks: tuple[tuple[str, str], ...]
    """(language, text) of each fenced block."""

    @property
    def typed(self) -> list[Typed]:
        """Each command with the lines that the page shows below it."""
        return [typed for language, text in self.blocks if language == "console" for typed in typed_in(text)]

    @property
    def files(self) -> dict[str, str]:
        """What is to be written first."""
        return {text.split()[1]: text for language, text in self.blocks if language == "toml"}


def sections() -> list[Section]:
    found = []
    for part in re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]:
        title, _, text = part.partition("\n")
        wanted = re.search(r"^<!-- needs: (.*) -->$", text, re.MULTILINE)
        blocks = tuple(re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
        found.append(Section(title, tuple(wanted[1].split()) if wanted else (), blocks))
    return found


def cases() -> list[object]:
    programs = ("ip", "ipcmk", "ipcs", "nsenter", "ps", "setpriv", "unshare")
    found = []
    for section in sections():
        used = " ".join(command for command, _ in section.typed)
        wanted = [f"program:{program}" for program in programs if re.search(rf"\b{program}\b", used)]
        marks: list[pytest.MarkDecorator] = [needs("root", *section.needs, *wanted)]
        if any(need.startswith("cgroup") for need in section.needs) and len(section.needs) > 1:
            marks.append(pytest.mark.system)  # it uses a controller, so the hierarchy decides
        found.append(pytest.param(section, id=section.title.split(":")[0].replace(" ", "-"), marks=marks))
    return found


@pytest.fixture
def name() -> Iterator[str]:
    """Instead of the page's one name, which must not meet that of another run, or of a reader on this host."""
    name = f"understand-{os.getpid()}"
    yield name
    for left in (Path("/run", name), Path("/tmp", name)):
        shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
    for left in Path("/sys/fs/cgroup").glob(f"**/{name}"):
        members = [int(pid) for pid in (left / "cgroup.procs").read_text().split()]
        for pid in members:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        until(lambda left=left: not (left / "cgroup.procs").read_text(), "the end of what a section has left")
        for directory in (*left.glob("*/"), left):
            directory.rmdir()


@pytest.mark.parametrize("section", cases())
def test_each_command_shows_what_the_page_says(section, name, tmp_path):
    for file, text in section.files.items():
        (tmp_path / file).write_text(text.replace("understand", name))
    script = script_of([command for command, _ in section.typed])
    output = type_in(script.replace("understand", name), tmp_path)
    outputs = outputs_of(output.replace(name, "understand"))
    for (command, expected), actual in zip(section.typed, outputs, strict=False):
        assert is_shown(expected, actual), f"$ {command}\n{actual}\nbut the page says:\n{shown(expected)}"
    assert len(outputs) == len(section.typed), output


def test_nothing_on_the_page_goes_untested(tmp_path):
    assert {language for section in sections() for language, _ in section.blocks} == {"console", "toml"}
    assert PAGE.count("```") == 2 * sum(len(section.blocks) for section in sections())
    for section in sections():
        assert section.typed
        for file, text in section.files.items():
            assert any(file in command.split() for command, _ in section.typed)
            (tmp_path / file).write_text(text)
            load(str(tmp_path / file))
