"""Each block of the pages is checked: TOML by `nsupervisor check`, commands by being typed, or they say why not."""

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from nsupervisor.cli.commands.check import check
from tests.documentation.typing import TYPED
from tests.needs import ROOT
from tests.pages import Block, blocks, pages

ALL = [block for page in pages() for block in blocks(page)]
TYPED_ELSEWHERE = {
    "docs/understand.md": "tests/experiments/test_page.py",
    "docs/deployment.md": "tests/deployment/running.py",
}
"""Pages whose commands other tests type, and the file with these."""


def of(*languages: str) -> list[object]:
    return [pytest.param(block, id=str(block)) for block in ALL if block.language in languages]


@pytest.mark.fault("G17")
@pytest.mark.parametrize("block", of("toml"))
def test_each_configuration_passes_check_as_it_is(block: Block, tmp_path) -> None:
    path = tmp_path / "site.toml"
    path.write_text(block.text)
    done = CliRunner().invoke(check, ["--no-host", str(path)], standalone_mode=False)
    complaints = [line for line in done.output.splitlines() if ": ok, " not in line and "no workload" not in line]
    assert done.return_value == 0, done.output
    assert complaints == []


@pytest.mark.parametrize("block", of("console", "sh"))
def test_each_command_is_typed_by_a_test_or_says_why_not(block: Block) -> None:
    if block.page in TYPED_ELSEWHERE:
        assert (ROOT / TYPED_ELSEWHERE[block.page]).exists()
    elif (block.page, block.line) in TYPED:
        assert block.language == "console"
        assert not block.comment or re.fullmatch(r"(typed only|numbers differ): .{10,}", block.comment)
    else:
        assert re.fullmatch(r"not run: .{10,}", block.comment), "type it, or say why not: <!-- not run: … -->"


def test_there_are_blocks() -> None:
    assert len(of("toml")) > 25
    assert len(of("console")) > 60
    assert len(TYPED) > 30


def anchors(page: Path) -> set[str]:
    """Return the anchors that the headings of a page have on GitHub."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_to_sections_lead_somewhere() -> None:
    broken = []
    for page in pages():
        text = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)
        for target, anchor in re.findall(r"\]\(([^)#\s:]*)#([^)\s]+)\)", text):
            path = (ROOT / page).parent / target if target else ROOT / page
            if path.suffix == ".md" and anchor not in anchors(path):
                broken.append(f"{page}: {target}#{anchor}")
    assert broken == []
