"""`simulate` on the traces that ship: what it says is what is beside them, and each was recorded exactly."""

import json
import os
import subprocess
import sys

import pytest

from nsupervisor.cli.commands.simulate import comparison_lines
from nsupervisor.config.load import parse
from nsupervisor.core.replay.simulate import simulate
from nsupervisor.core.replay.trace import parse_trace
from tests.cli.command import nsupervisor
from tests.needs import ROOT

TRACES = sorted((ROOT / "configs" / "traces").glob("*.jsonl"))
LEAK = "configs/traces/memory-leak.tried.toml", "configs/traces/memory-leak.jsonl"


@pytest.mark.parametrize("trace", TRACES, ids=lambda path: path.stem)
def test_a_trace_that_ships_has_its_expected_result(trace):
    tried = str(trace.with_suffix(".tried.toml").relative_to(ROOT))
    done = nsupervisor("simulate", tried, str(trace.relative_to(ROOT)))
    assert done.returncode == 0
    assert done.stderr + done.stdout == trace.with_suffix(".expected.txt").read_text()


@pytest.mark.parametrize("trace", TRACES, ids=lambda path: path.stem)
def test_a_trace_that_ships_is_what_its_configuration_does(trace):
    done = nsupervisor("simulate", "--json", str(trace.with_suffix(".toml")), str(trace))
    told = json.loads(done.stdout)
    assert (told["same"], told["warnings"], told["parted"]) == (True, [], {})
    assert told["rows"] != []
    assert all(row["recorded"] == row["simulated"] and row["at"] == row["simulated_at"] for row in told["rows"])


def test_there_are_traces():
    assert len(TRACES) >= 4
    assert all(path.stat().st_size < 100_000 for path in TRACES)


def test_the_same_input_gives_the_same_output_whatever_the_hash_seed_is():
    command = [sys.executable, "-m", "nsupervisor", "simulate", "--json", *LEAK]
    outputs = {
        subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1
    assert b'"after": true' in outputs.pop()


def test_the_seed_draws_the_jitter_that_the_trace_does_not_have():
    one, two = (json.loads(nsupervisor("simulate", "--json", "--seed", seed, *LEAK).stdout) for seed in "12")
    assert one["rows"] != two["rows"]
    assert one["parted"] == two["parted"]


def test_on_a_narrow_terminal_both_sides_have_room():
    tried, trace = (ROOT / path for path in LEAK)
    result = simulate(parse(tried.read_text(), str(tried)), parse_trace(trace.read_bytes(), str(trace)))
    told = list(comparison_lines(result, False, 90, False))
    table = told[: told.index("")]
    assert max(map(len, table)) <= 90
    words = " ".join(" ".join(line[18:] for line in table).split())
    assert "threshold 24M" in words
    steps = list(comparison_lines(result, True, 0, False))
    assert len(steps) > len(list(comparison_lines(result, False, 0, False)))
    assert any("signal: restarted by policy[0]" in line for line in steps)


def test_what_cannot_be_used_is_said(tmp_path):
    wrong = tmp_path / "wrong.toml"
    wrong.write_text("[workload.web]\n")
    done = nsupervisor("simulate", str(wrong), LEAK[1])
    assert (done.returncode, "workload.web" in done.stderr) == (2, True)
    done = nsupervisor("simulate", LEAK[0], str(tmp_path / "none.jsonl"))
    assert (done.returncode, done.stderr) == (2, f"cannot read {tmp_path}/none.jsonl: No such file or directory\n")
    done = nsupervisor("simulate", LEAK[0], LEAK[0])
    assert done.returncode == 2
    assert done.stderr.startswith(f"{LEAK[0]}:1: is no JSON")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--for", "soon"], '"soon" is not a length of time; write for example "10min" or "90s"'),
        (["--max-size", "much"], '"much" is not a size; write for example "64M"'),
        (["--interval", "1ms"], '"1ms" is not a time from 10ms'),
    ],
)
def test_a_recording_with_wrong_bounds_is_refused(tmp_path, arguments, words):
    done = nsupervisor("record", *arguments, str(tmp_path / "trace.jsonl"))
    assert done.returncode == 2
    assert words in done.stderr


def test_a_trace_comes_on_standard_output(supervisor):
    done = nsupervisor("record", "-", socket=supervisor)
    assert (done.returncode, done.stderr) == (0, "")
    assert [json.loads(line).get("end") for line in done.stdout.splitlines()] == [None, "told"]
