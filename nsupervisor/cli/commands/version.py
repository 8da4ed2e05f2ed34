"""The command `nsupervisor version`."""

from __future__ import annotations

import os
import platform

import click

from nsupervisor import __version__
from nsupervisor.cli.options import json_option
from nsupervisor.cli.output import print_json


@click.command(short_help="Print the version.")
@json_option
def version(as_json: bool) -> None:
    """Print the version of nsupervisor, of Python and of the kernel."""
    kernel, python = os.uname().release, platform.python_version()
    if as_json:
        print_json({"version": __version__, "python": python, "kernel": kernel})
    else:
        print(f"nsupervisor {__version__} (Python {python}, Linux {kernel})")
