"""Histories with a crash in each, on the simulated machine: the invariants hold, and a seed always means the same."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation import history
from tests.simulation.__main__ import run_in_processes
from tests.simulation.configs import FIRST_ACTIVATED_SEED, FIRST_RELATED_SEED, FIRST_TIMED_SEED

HISTORIES = 3000
RELATED_HISTORIES = 500
TIMED_HISTORIES = 200
ACTIVATED_HISTORIES = 200


@pytest.mark.timeout(600)
def test_all_holds_in_histories_with_crashes(capfd: pytest.CaptureFixture[str]) -> None:
    status = run_in_processes(0, HISTORIES, os.cpu_count() or 1)
    assert status == 0, capfd.readouterr().out


@pytest.mark.timeout(600)
def test_all_holds_where_workloads_start_and_stop_one_another(capfd: pytest.CaptureFixture[str]) -> None:
    status = run_in_processes(FIRST_RELATED_SEED, RELATED_HISTORIES, os.cpu_count() or 1)
    assert status == 0, capfd.readouterr().out


@pytest.mark.timeout(600)
def test_all_holds_where_timers_start_workloads(capfd: pytest.CaptureFixture[str]) -> None:
    status = run_in_processes(FIRST_TIMED_SEED, TIMED_HISTORIES, os.cpu_count() or 1)
    assert status == 0, capfd.readouterr().out


@pytest.mark.timeout(600)
def test_all_holds_where_connections_and_files_start_workloads(capfd: pytest.CaptureFixture[str]) -> None:
    status = run_in_processes(FIRST_ACTIVATED_SEED, ACTIVATED_HISTORIES, os.cpu_count() or 1)
    assert status == 0, capfd.readouterr().out


def test_each_history_has_a_crash() -> None:
    for seed in range(200):
        assert any(step.do.startswith("crash") for step in history.generate(seed)[1])


def test_a_seed_replays_byte_for_byte() -> None:
    """Also in another process, whose strings have other hashes and whose objects have other addresses."""
    seeds = (3, 7, 42, 59, 1160)
    code = f"from tests.simulation.history import run; print(*(run(seed).digest for seed in {seeds}))"
    outputs = [
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code],
            cwd=Path(__file__).parents[2],
            env={**os.environ, "PYTHONHASHSEED": number},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            check=True,
        ).stdout
        for number in ("1", "2")
    ]
    assert outputs[0] == outputs[1] == " ".join(history.run(seed).digest for seed in seeds) + "\n"
