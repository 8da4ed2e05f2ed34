"""The command `nsupervisor image`."""

from __future__ import annotations

import sys
import time

import click

from nsupervisor.cli.options import json_option
from nsupervisor.cli.output import DONE, FAILED, USAGE, print_json, print_message
from nsupervisor.terminal.style import escape_control, terminal_width

TYPE_CHECKING = False  # importing typing takes time
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from nsupervisor.config.model import Config
    from nsupervisor.images.store import ImageRecord, Store

_SHORT_ID, _SHOWN_USERS = 12, 2
MAX_MEMORY = 2 << 30
"""The most bytes of memory of `load`."""
NO_LIMIT = 1 << 62
""""infinity" as a size."""


def _store_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say which store is meant."""
    config = click.option("--config", metavar="CONFIG", help="Use the state directory of this configuration.")
    directory = click.option("--state-directory", metavar="PATH", help="Use this state directory, not the default one.")
    return config(directory(command))


@click.group(short_help="List, load and remove container images.")
def image() -> None:
    """List, load and remove the container images that `root.image` of workloads names.

    Images are kept unpacked in the state directory of the service: /var/lib/nsupervisor/images, unless --config or
    --state-directory says otherwise. No supervisor has to run. REFERENCE is oci:DIR:TAG (a directory with an OCI
    layout), oci-archive:FILE or docker-archive:FILE (a tar file), as skopeo, buildah and podman write them.

    \b
    Examples: skopeo copy docker://alpine oci:/srv/images/alpine:latest
              nsupervisor image load oci:/srv/images/alpine:latest
              nsupervisor image ls
    """


@image.command("ls", short_help="List the images.")
@_store_options
@json_option
def list_images(config: str | None, state_directory: str | None, as_json: bool) -> int:
    """List the images in the store: what a reference stands for, its size unpacked, and which instances run from it."""

    def run(store: Store | None, _: Config | None) -> int:
        records = store.list_records() if store else []
        users: dict[str, list[str]] = {}
        for use in store.list_uses() if store else []:
            users.setdefault(use.chain, []).append(use.instance)
        if as_json:
            print_json([_as_object(record, users.get(record.chain, [])) for record in records])
            return DONE
        if not records:
            print("no images; load one with: nsupervisor image load REFERENCE", file=sys.stderr)
            return DONE
        print("\n".join(image_lines(records, users, time.time(), terminal_width())))
        return DONE

    return _with_store(config, state_directory, run)


def image_lines(
    records: Sequence[ImageRecord], users: Mapping[str, Sequence[str]], now: float, width: int
) -> list[str]:
    """Return the lines of the table. `users`: by chain. `now`: seconds since 1970."""
    from nsupervisor.terminal.numbers import format_duration, format_size
    from nsupervisor.terminal.table import format_table

    rows = [
        (
            record.id.removeprefix("sha256:")[:_SHORT_ID],
            format_size(record.size),
            format_duration(max(now - record.loaded, 0)),
            _shorten(users.get(record.chain, [])),
            record.reference,
        )
        for record in records
    ]
    return format_table(("IMAGE", "SIZE", "AGE", "USED BY", "REFERENCE"), rows, right=(1, 2), width=width)


def _shorten(names: Sequence[str]) -> str:
    """Return the first names, and how many more there are."""
    more = f" +{len(names) - _SHOWN_USERS}" if len(names) > _SHOWN_USERS else ""
    return ",".join(names[:_SHOWN_USERS]) + more or "-"


@image.command("load", short_help="Check and unpack images.")
@_store_options
@click.option("--max-size", metavar="SIZE", default="64G", show_default=True, help="The most that one may unpack to.")
@click.option("--quiet", "-q", is_flag=True, help="Print nothing but errors.")
@click.argument("references", metavar="REFERENCE...", nargs=-1, required=True)
def load(
    config: str | None, state_directory: str | None, max_size: str, quiet: bool, references: tuple[str, ...]
) -> int:
    """Load images into the store: check all digests, and unpack the layers. A loaded image is left as it is.

    A start of a workload does the same if its image is not loaded, or has changed. An archive may be removed when its
    image is loaded. What an archive may not have is refused, and nothing is kept of it.
    """
    from nsupervisor.config.image_reference import parse_reference
    from nsupervisor.config.units import parse_size
    from nsupervisor.images.errors import ImageError
    from nsupervisor.images.loading import load_image

    try:
        parsed = [(text, parse_reference(text)) for text in references]
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    try:
        max_bytes = parse_size(max_size) or NO_LIMIT
    except ValueError as error:
        raise click.UsageError(f"--max-size: {error}") from None

    _limit_memory()

    def run(store: Store | None, _: Config | None) -> int:
        assert store is not None
        for text, reference in parsed:
            try:
                record = load_image(reference, store, max_bytes, lambda line: None if quiet else print_message(line))
            except ImageError as error:
                print_message(f"{text}: {error}")
                return FAILED
            except OSError as error:
                print_message(f"{text}: {error.filename or store.path}: {error.strerror or error}")
                return FAILED
            for line in record.left_out:
                print_message(f"{text}: {line}")
            if not quiet:
                print(escape_control(f"{text}: {record.id}"))
        return DONE

    return _with_store(config, state_directory, run, makes=True)


def _limit_memory() -> None:
    """Limit the memory of this process: what it reads is limited, and this is for what was not thought of."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard == resource.RLIM_INFINITY or hard > MAX_MEMORY:
        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, hard))


@image.command("rm", short_help="Remove images.")
@_store_options
@click.argument("references", metavar="REFERENCE...", nargs=-1, required=True)
def remove(config: str | None, state_directory: str | None, references: tuple[str, ...]) -> int:
    """Remove images from the store. Refused for an image that a program runs from, or that CONFIG of --config names.

    The source of an image is left as it is.
    """

    def run(store: Store | None, loaded: Config | None) -> int:
        known = {record.reference for record in store.list_records()} if store else set()
        for reference in references:
            if store is None or reference not in known:
                names = ", ".join(sorted(known)) or "none"
                print_message(f'there is no image "{reference}" in the store; there is {names}')
                return USAGE
            with store.locked():
                if users := _users(store, loaded, reference):
                    print_message(f"{reference} is used by {', '.join(users)}; stop it, or take it out of CONFIG first")
                    return FAILED
                store.remove_record(reference)
            print(escape_control(f"{reference}: removed"))
        if store is not None:
            store.collect()
        return DONE

    return _with_store(config, state_directory, run)


@image.command("gc", short_help="Remove what no image needs.")
@_store_options
@json_option
def collect(config: str | None, state_directory: str | None, as_json: bool) -> int:
    """Remove the files of images that were replaced or removed, and what an interrupted load has left.

    Files from which a program runs are kept until it has ended.
    """

    def run(store: Store | None, _: Config | None) -> int:
        found = store.collect() if store else None
        chains, unfinished = (found.chains, found.unfinished) if found else ((), 0)
        if as_json:
            print_json({"removed": list(chains), "unfinished": unfinished})
        else:
            print(f"removed {len(chains)} unpacked and {unfinished} partly unpacked images")
        return DONE

    return _with_store(config, state_directory, run)


def _users(store: Store, config: Config | None, reference: str) -> list[str]:
    """Return the instances that run from an image, and the workloads of a configuration that name it."""
    users = [use.instance for use in store.list_uses() if use.reference == reference]
    if config is not None:
        users += [workload.name for _, workload in config.each_variant() if workload.root.image == reference]
    return list(dict.fromkeys(users))


def _with_store(
    config: str | None,
    state_directory: str | None,
    run: Callable[[Store | None, Config | None], int],
    makes: bool = False,
) -> int:
    """Call `run` with the store, or None if there is none and it is not made, and the configuration if one is given."""
    from nsupervisor.config.problems import ConfigError
    from nsupervisor.images.errors import ImageError
    from nsupervisor.images.store import Store
    from nsupervisor.service.state.uid_ranges import default_state_directory

    if config is not None and state_directory is not None:
        raise click.UsageError("--config and --state-directory exclude each other; write one of them")
    loaded = None
    if config is not None:
        from nsupervisor.config.files import read_text
        from nsupervisor.config.load import parse

        try:
            loaded = parse(read_text(config), config)
        except ConfigError as error:
            print_message(str(error))
            return USAGE
        state_directory = loaded.supervisor.state_directory
    directory = state_directory or default_state_directory()
    if not directory.startswith("/"):
        raise click.UsageError(f"--state-directory {directory} is not absolute; write the whole path")
    try:
        try:
            store = Store(directory, makes)
        except FileNotFoundError:
            return run(None, loaded)
        with store:
            return run(store, loaded)
    except ImageError as error:
        print_message(str(error))
    except OSError as error:
        print_message(f"cannot use {directory}/images: {error.strerror or error}")
    return FAILED


def _as_object(record: ImageRecord, users: list[str]) -> dict[str, Any]:
    config = record.config
    return {
        "reference": record.reference,
        "id": record.id,
        "size": record.size,
        "loaded": record.loaded,
        "used_by": users,
        "left_out": list(record.left_out),
        "architecture": config.architecture,
        "entrypoint": list(config.entrypoint),
        "command": list(config.command),
        "environment": dict(config.environment),
        "user": config.user,
        "working_directory": config.working_directory,
        "stop_signal": config.stop_signal,
        "volumes": list(config.volumes),
    }
