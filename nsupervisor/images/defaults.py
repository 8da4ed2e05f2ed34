"""The keys of a workload for which its image has values: one with an image becomes one with a directory. Pure."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

import attrs

from nsupervisor.config.model import WorkloadConfig
from nsupervisor.config.units import format_signal, parse_signal
from nsupervisor.images.documents import ImageConfig

_DEFAULT_SIGNAL = 15
_MAX_VOLUME_NAME = 200


class ImageDefaultError(ValueError):
    """The image has a value that cannot be used; the text says which, and what to write in its place."""


def with_image(workload: WorkloadConfig, image: ImageConfig, root: str) -> WorkloadConfig:
    """Return a workload whose `root.image` is unpacked at `root`: its own keys, and else those of the image.

    `command` stands for both the entrypoint and the command. Each program has a layer of its own over the image, as its
    files are those of all. Raises ImageDefaultError.
    """
    command = workload.command or (*image.entrypoint, *image.command)
    if not command:
        raise ImageDefaultError("the image says nothing about the program; write command")
    signal = workload.kill_signal
    if image.stop_signal and signal == _DEFAULT_SIGNAL:
        text = image.stop_signal
        try:
            signal = parse_signal(int(text) if text.isascii() and text.isdecimal() else text)
        except ValueError:
            raise ImageDefaultError(f"the image has the stop signal {text!r}; write kill_signal") from None
    taken = {*workload.volumes.values(), *(mount.destination for mount in workload.mounts)}
    volumes = {volume_name(workload.name, path): path for path in image.volumes if path.rstrip("/") not in taken}
    is_default = workload.working_directory == "/"
    return attrs.evolve(
        workload,
        command=command,
        image_environment=dict(image.environment),
        user=workload.user if workload.user is not None else image.user or None,
        working_directory=(image.working_directory or "/") if is_default else workload.working_directory,
        kill_signal=signal,
        volumes={**volumes, **workload.volumes},
        root=attrs.evolve(workload.root, path=root, overlay=workload.root.overlay or True),
    )


def volume_name(workload: str, path: str) -> str:
    """Return the name of the volume for a path that an image names as one: "web" and "/var/data" → "web-var-data"."""
    parts = re.sub(r"[^A-Za-z0-9]+", "-", path).strip("-")
    name = f"{workload}-{parts or 'root'}"
    if len(name) <= _MAX_VOLUME_NAME:
        return name
    return f"{name[:_MAX_VOLUME_NAME]}-{hashlib.sha256(path.encode()).hexdigest()[:12]}"


def image_chain(workload: WorkloadConfig) -> str:
    """Return the chain of the image that a workload runs from; "" without one."""
    return workload.root.path.split("/")[-2] if workload.root.image and workload.root.path else ""


def table_defaults(table: Mapping[str, object], workload: WorkloadConfig) -> dict[str, object]:
    """Return the keys of a workload's table in a file that its image adds, for people to see."""
    found: dict[str, object] = {}
    if not table.get("command"):
        found["command"] = list(workload.command)
    given = table.get("environment")
    environment = {**workload.image_environment, **(given if isinstance(given, dict) else {})}
    if environment:
        found["environment"] = environment
    if workload.user is not None and "user" not in table:
        found["user"] = workload.user
    if workload.working_directory != "/":
        found["working_directory"] = workload.working_directory
    if workload.kill_signal != _DEFAULT_SIGNAL:
        found["kill_signal"] = format_signal(workload.kill_signal)
    if workload.volumes:
        found["volumes"] = dict(workload.volumes)
    return found
