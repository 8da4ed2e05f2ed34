"""Programs that rules name with ``exec``: run once, with the record on standard input, and ended in time."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
import trio

PATIENCE = 30.0
"""Seconds that such a program may take before it is killed."""


async def run_hook(command: Sequence[str], record: Mapping[str, Any]) -> str:
    """Run ``command`` as the supervisor itself, in "/"; ``record`` is its standard input as one line of JSON.

    What went wrong, in words; "" when it exited with 0. Its output is dropped: what it has to say it says elsewhere.
    """
    try:
        with trio.fail_after(PATIENCE):
            result = await trio.run_process(
                list(command),
                stdin=orjson.dumps(record) + b"\n",
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                check=False,
                cwd="/",
                env={"PATH": os.environ.get("PATH", os.defpath), "LANG": os.environ.get("LANG", "C.UTF-8")},
            )
    except trio.TooSlowError:
        return f"{command[0]} took more than {PATIENCE:g} s and was killed"
    except OSError as error:
        return f"cannot execute {command[0]}: {error.strerror}"
    return "" if result.returncode == 0 else f"{command[0]} ended with exit status {result.returncode}"
