"""The alerts, the dashboard and the page."""

import json
import re
import subprocess

import pytest

from nsupervisor.metrics.counters import EXIT_KINDS, RESTART_CAUSES
from nsupervisor.metrics.exposition import _render
from nsupervisor.metrics.snapshot import TimerSnapshot
from tests.metrics.test_families import WEB, service
from tests.needs import ROOT, needs

RULES = ROOT / "configs" / "prometheus" / "nsupervisor.rules.yml"
PAGE = (ROOT / "docs" / "metrics.md").read_text()


@needs("program:promtool")
@pytest.mark.parametrize("command", [("check", "rules", RULES.name), ("test", "rules", "nsupervisor.rules.test.yml")])
def test_promtool_accepts_the_alerts(command):
    done = subprocess.run(["promtool", *command], cwd=RULES.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tested():
    alerts = set(re.findall(r"alert: (\w+)", RULES.read_text()))
    tested = set(re.findall(r"alertname: (\w+)", RULES.with_name("nsupervisor.rules.test.yml").read_text()))
    assert tested == alerts
    assert alerts <= set(re.findall(r"\bNsupervisor\w+", PAGE))


@needs("program:promtool")
def test_the_dashboards_queries_are_promql(tmp_path):
    from tests.metrics.test_scrape import queries

    rules = [{"record": f"q:{i}", "expr": query} for i, query in enumerate(queries())]
    path = tmp_path / "rules.yml"
    path.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = subprocess.run(["promtool", "check", "rules", path], capture_output=True, text=True)
    assert f"{len(rules)} rules found" in done.stdout, done.stdout + done.stderr


def test_the_dashboards_panels_do_not_overlap_and_have_numbers_of_their_own():
    panels = json.loads((ROOT / "configs/grafana/nsupervisor.json").read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert all(0 <= x < 24 for x, _ in cells)


TIMER = TimerSnapshot("backup", 2.0, 1.0, 1.5, 0.0, {"run": 1, "skipped": 0, "missed": 0})


def test_the_page_has_every_metric_and_no_other():
    text, _ = _render([WEB], service(keeper_pid="self"), "", timers=[TIMER])
    there = set(re.findall(r"^# TYPE (\S+) ", text.decode(), re.MULTILINE))
    described = set(re.findall(r"^\| `((?:nsupervisor|process)_\w+)", PAGE, re.MULTILINE))
    assert described == {name for name in there if not re.search(r"process_(virtual|start|max|cpu|open)", name)}


@pytest.mark.parametrize("word", [*EXIT_KINDS, *RESTART_CAUSES])
def test_the_page_has_every_kind_and_cause(word):
    assert f"`{word}`" in PAGE
