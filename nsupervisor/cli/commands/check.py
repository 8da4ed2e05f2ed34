"""The command `nsupervisor check`."""

from __future__ import annotations

import sys

import click

from nsupervisor.cli.options import json_option
from nsupervisor.cli.output import DONE, USAGE, print_json, print_message
from nsupervisor.terminal.numbers import format_count
from nsupervisor.terminal.style import escape_control

TYPE_CHECKING = False  # importing typing takes time
if TYPE_CHECKING:
    from typing import Any

    from nsupervisor.config.model import Config
    from nsupervisor.config.positions import Positions
    from nsupervisor.config.problems import Problem


@click.command(short_help="Check a configuration.")
@click.option("--no-host", is_flag=True, help="Check only the file, not whether this host can run it.")
@click.option("--expanded", is_flag=True, help="Print the configuration after includes, templates and placeholders.")
@json_option
@click.argument("config", metavar="CONFIG")
def check(config: str, no_host: bool, expanded: bool, as_json: bool) -> int:
    """Check whether CONFIG is right, and whether this host can run it; print every problem with its line.

    A request that the host cannot fulfil is a problem (exit status 2), except for resources with required = false,
    where it is a warning. A rule that can never fire, or always does, is a warning, too. Nothing is changed or started.
    CONFIG may be /dev/stdin.

    With --expanded, a right CONFIG is printed as one file that says the same: with the files that it includes, and the
    defaults and templates in each workload, without placeholders. Instances that differ have a table each. All values
    are shown, also those of environment variables, and those of the images of workloads that are loaded.
    """
    problems, warnings, count = check_file(config, not no_host)
    table = _expand(config) if expanded and not problems else None
    if as_json:
        print_json(
            {
                "path": config,
                "ok": not problems,
                "workloads": count,
                "problems": [_as_object(problem) for problem in problems],
                "warnings": [_as_object(warning) for warning, _ in warnings],
                **({} if table is None else {"expanded": table}),
            }
        )
        return USAGE if problems else DONE
    for warning, reason in warnings:
        print_message(f"{warning} (a warning only: {reason})")
    for problem in problems:
        print_message(str(problem))
    if problems:
        return USAGE
    if table is not None:
        from nsupervisor.config.to_toml import format_file

        print(format_file(table), end="")
        return DONE
    print(escape_control(f"{config}: ok, {format_count(count, 'workload')}"), file=sys.stdout)
    return DONE


def _expand(path: str) -> dict[str, Any]:
    """Return the table of a configuration without problems after its composition.

    Workloads whose instances differ have a table for each instance.
    """
    from nsupervisor.config.compose import compose, read_documents
    from nsupervisor.config.documents import parse_document
    from nsupervisor.config.files import find_included, read_text
    from nsupervisor.config.kinds import TableOf
    from nsupervisor.config.load import with_literals
    from nsupervisor.config.model import Config, WorkloadConfig

    composed = compose(read_documents(parse_document(read_text(path), path), find_included))
    table: dict[str, Any] = with_literals(TableOf(Config), composed.table)
    if composed.variants:
        workloads: dict[str, Any] = {}
        for name, workload in table["workload"].items():
            variants = composed.variants.get(name, {})
            kind = TableOf(WorkloadConfig)
            each = {f"{name}@{instance}": with_literals(kind, variant) for instance, variant in variants.items()}
            for variant in each.values():
                del variant["instances"]
            workloads |= each or {name: workload}
        table["workload"] = workloads
    if any("image" in workload.get("root", {}) for workload in table.get("workload", {}).values()):
        _add_images(table["workload"], path)
    return table


def _add_images(tables: dict[str, dict[str, Any]], path: str) -> None:
    """Add the keys that the workloads have of their images, as far as those are loaded."""
    from nsupervisor.config.files import read_text
    from nsupervisor.config.load import parse
    from nsupervisor.images.defaults import table_defaults
    from nsupervisor.service.platform.images import resolve_images

    config, _ = resolve_images(parse(read_text(path), path))
    for workload in config.workloads.values():
        if workload.root.image is not None and workload.root.path is not None:
            names = {workload.instance_name(instance): instance for instance in workload.instance_ids}
            for name, instance in {workload.name: None, **names}.items():
                if name in tables:
                    tables[name] |= table_defaults(tables[name], workload.for_instance(instance))


def check_file(path: str, check_host: bool) -> tuple[list[Problem], list[tuple[Problem, str]], int]:
    """Return all problems, all warnings with their reason, and the number of workloads (0 for an unusable file)."""
    from nsupervisor.config.files import read_text
    from nsupervisor.config.lint import WARNING_HINT, lint_warnings
    from nsupervisor.config.problems import ConfigError, sort_warnings

    try:
        text = read_text(path)  # read once: it may be a pipe
        checked = _check_with_host(text, path) if check_host else _check_alone(text, path)
    except ConfigError as error:
        return error.problems, [], 0
    config, problems, warnings, positions = checked
    if config.workloads or not problems:
        warnings += [(doubt, WARNING_HINT) for doubt in lint_warnings(config, positions)]
        warnings = sort_warnings(warnings)
    return problems, warnings, len(config.workloads)


def _check_alone(text: str, path: str) -> tuple[Config, list[Problem], list[tuple[Problem, str]], Positions]:
    from nsupervisor.config.load import parse_sound_parts

    config, problems, positions = parse_sound_parts(text, path)
    return config, problems, [], positions


def _check_with_host(text: str, path: str) -> tuple[Config, list[Problem], list[tuple[Problem, str]], Positions]:
    from nsupervisor.cgroups.errors import CgroupError
    from nsupervisor.cgroups.host import Host
    from nsupervisor.config.problems import Problem
    from nsupervisor.service.preflight.requirements import check_text

    try:
        host = Host.discover()
    except CgroupError as error:
        config, problems, warnings, positions = _check_alone(text, path)
        return config, [Problem(path, 0, "", str(error)), *problems], warnings, positions
    return check_text(text, path, host, runs_here=False)[:4]


def _as_object(problem: Problem) -> dict[str, Any]:
    return {"line": problem.line or None, "key": problem.key, "message": problem.message, "text": str(problem)}
