"""docs/cli.md has what the commands have."""

import re

import pytest

from nsupervisor.cli.main import COMMANDS, nsupervisor
from tests.needs import ROOT

PAGE = (ROOT / "docs" / "cli.md").read_text()


def section(command: str) -> str:
    """The text below the heading that names the command."""
    for heading, text in re.findall(r"^## nsupervisor (.+)\n((?:(?!## ).*\n)*)", PAGE, re.MULTILINE):
        if command in heading.split(", "):
            return text
    pytest.fail(f"docs/cli.md has no section about {command}")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_section_with_its_options(command):
    text = section(command)
    for parameter in nsupervisor.get_command(None, command).params:
        for option in parameter.opts:
            assert not option.startswith("-") or f"{option}" in text, f"{option} is not described"


def test_every_section_is_about_a_command():
    headings = re.findall(r"^## nsupervisor (.+)$", PAGE, re.MULTILINE)
    assert sorted(name for heading in headings for name in heading.split(", ")) == sorted(COMMANDS)
