"""The command `nsupervisor schema`."""

from __future__ import annotations

import click

from nsupervisor.cli.output import print_json


@click.command(short_help="Describe configuration, log or API for machines.")
@click.argument("what", type=click.Choice(["config", "log", "api"]), default="config")
def schema(what: str) -> None:
    """Print a machine-readable description, as JSON.

    \b
    config  JSON Schema of the configuration file (the default)
    log     JSON Schema of a log record
    api     OpenAPI description of the HTTP interface on the socket
    """
    if what == "config":
        from nsupervisor.config.schema import schema as describe
    elif what == "log":
        describe = _log_schema
    else:
        from nsupervisor.api.routes import openapi as describe
    print_json(describe())


def _log_schema() -> dict[str, object]:
    """Load the schema from its file, because importing `nsupervisor.logs.record` imports the event loop."""
    import json
    import os

    import nsupervisor

    path = os.path.join(os.path.dirname(nsupervisor.__file__), "logs", "record.schema.json")
    with open(path, encoding="utf-8") as file:
        loaded: dict[str, object] = json.load(file)
    return loaded
