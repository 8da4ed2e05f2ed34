"""The command `nsupervisor set NAME… KEY=VALUE…`."""

from __future__ import annotations

import json
import re

import click

from nsupervisor.cli.commands.control import NAMES_HELP, run_command
from nsupervisor.cli.options import json_option, socket_option

TYPE_CHECKING = False  # importing typing takes time
if TYPE_CHECKING:
    from typing import Any

_LIST_KEYS = ("cpuset_cpus", "cpuset_mems")
"""Keys whose values are lists of numbers; a single number is such a list, too."""


@click.command(
    "set",
    short_help="Change workloads' limits.",
    help="Change workloads' limits, while they run or not: those of [workload.NAME.resources], by the same keys and "
    "with the same values. For each workload all of them are set, or none. They last until the supervisor ends; with "
    "--persist they are written into its configuration file, too, which otherwise stays as it is."
    + NAMES_HELP
    + '\n\n    VALUE is text, a number, true or false, or TOML: [{ device = "/srv", rbps = "10M" }]. "max" is no limit.'
    + "\n\n    Examples: nsupervisor set web memory_max=1G pids_max=64; nsupervisor set 'batch*' cpu_weight=idle",
)
@socket_option
@json_option
@click.option("--persist", is_flag=True, help="Also write it into the configuration file, so that it stays.")
@click.argument("arguments", metavar="NAME... KEY=VALUE...", nargs=-1, required=True)
def set(socket_path: str, as_json: bool, persist: bool, arguments: tuple[str, ...]) -> int:  # noqa: A001 - the command's name
    """Change limits; the help is given above."""
    names = [argument for argument in arguments if "=" not in argument]
    pairs = [argument.partition("=") for argument in arguments if "=" in argument]
    if not names:
        raise click.UsageError("no workload is named; write for example: nsupervisor set web memory_max=1G")
    if not pairs:
        raise click.UsageError("no key is given; write for example: nsupervisor set web memory_max=1G")
    resources: dict[str, Any] = {}
    for key, _, text in pairs:
        table, dot, file = key.partition(".")
        if dot and table == "unified":
            resources.setdefault("unified", {})[file] = text
        else:
            resources[key] = parse_value(key, text)
    return run_command(
        socket_path, as_json, "set", names, resources=resources, **({"persist": True} if persist else {})
    )


def parse_value(key: str, text: str) -> Any:
    """Convert a text from the command line to a JSON value: "64" → 64, "true" → True, "1G" → "1G"."""
    if text in ("true", "false"):
        return text == "true"
    if re.fullmatch("-?[0-9]{1,18}", text) and key not in _LIST_KEYS:
        return int(text)
    if text[:1] in ("[", "{", '"', "'"):
        import tomllib  # imported late, because few calls need it

        try:
            parsed = tomllib.loads(f"value = {text}")["value"]
            json.dumps(parsed)
        except (ValueError, TypeError, RecursionError):
            example = '[{ device = "/srv", rbps = "10M" }]'
            raise click.UsageError(f"the value of {key} is not TOML: {text}; write for example {example}") from None
        return parsed
    return text
