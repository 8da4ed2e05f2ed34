"""Write the page of figures: per benchmark a section with date, machine, targets and table. Pure."""

import re
from collections.abc import Sequence
from typing import Any

from benchmarks import figures
from benchmarks.figures import Result

START, END = "<!-- figures: written by scripts/bench --write-docs -->", "<!-- end of figures -->"


def about(report: dict[str, Any]) -> str:
    """Return date and machine in one line."""
    it = report["machine"]
    quick = "; quick: the figures are not meaningful" if report["quick"] else ""
    return (
        f"{report['when']}; {it['processor']}, {it['cores']} cores, {it['memory_gib']} GiB; Linux {it['kernel']}, "
        f"cgroups {it['cgroups']}; Python {it['python']}; load at the start {it['load']}{quick}"
    )


def with_figures(text: str, report: dict[str, Any], results: Sequence[Result], order: Sequence[str]) -> str:
    """Return the page with the sections of these results; those of other benchmarks stay.

    Raises ValueError if the page has no place for them.
    """
    found = re.search(f"{re.escape(START)}\n(.*){re.escape(END)}", text, flags=re.DOTALL)
    if not found:
        raise ValueError(f"the page lacks the lines {START} and {END}")
    sections = {part.partition(":")[0]: part.strip() for part in re.split(r"(?m)^### ", found[1])[1:]}
    for result in results:
        sections[result.name] = _section(about(report), result)
    body = "\n\n".join(f"### {sections[name]}" for name in order if name in sections)
    return f"{text[: found.start()]}{START}\n\n{body}\n\n{END}{text[found.end() :]}"


def _section(about_it: str, result: Result) -> str:
    """Return a section without the marks of its heading."""
    targets = "\n".join(f"* {target}" for target in result.targets)
    remarks = "\n".join(f"* {remark}" for remark in result.remarks)
    head = f"{result.name}: {result.title}"
    return "\n\n".join(filter(None, [head, about_it, targets, figures.markdown(figures.page_table(result)), remarks]))
