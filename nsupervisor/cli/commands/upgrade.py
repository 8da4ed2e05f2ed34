"""The command `nsupervisor upgrade`."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click

from nsupervisor import __version__
from nsupervisor.api.client import Client, NoSupervisorError
from nsupervisor.cli.options import socket_option
from nsupervisor.cli.output import DONE, FAILED, print_message

TYPE_CHECKING = False  # importing typing takes time
if TYPE_CHECKING:
    from typing import Any


@click.command(short_help="Replace the running supervisor by this version of it.")
@socket_option
@click.option("--timeout", metavar="SECONDS", type=click.FloatRange(1, 3600), default=30.0, show_default=True)
def upgrade(socket_path: str, timeout: float) -> int:
    """Replace the running supervisor and its keeper by the version that this command belongs to.

    Both keep their process, and no workload is touched. In a trial, the new version must first show that it can read
    the configuration and the state. If it does not come up within SECONDS, the running version continues, and reports
    why.
    """
    client = Client(socket_path)
    before = client.info()
    answer = client.upgrade(sys.executable, str(Path(__file__).parents[3]), timeout)
    if not answer["ok"]:
        print_message(f"not upgraded, version {before['version']} continues: {answer['message']}")
        return FAILED
    after = _wait_for_next(client, before, 2 * timeout + 15)
    if after is None:
        print_message("no supervisor has come up; see its output")
        return FAILED
    if (after["pid"], after["version"]) != (before["pid"], __version__):
        print_message(f"rolled back to version {after['version']} (process {after['pid']}); its record says why")
        return FAILED
    print(f"version {before['version']} → {after['version']}, process {after['pid']}")
    return DONE


def _wait_for_next(client: Client, before: dict[str, Any], timeout: float) -> dict[str, Any] | None:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        try:
            info = client.info()
            if info["started_at"] != before["started_at"]:
                return info
        except NoSupervisorError:
            pass
        time.sleep(0.05)
    return None
