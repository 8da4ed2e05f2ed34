"""The images of workloads: find what is loaded, have the rest loaded by a process of its own, and note what is used."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import attrs

import nsupervisor
from nsupervisor.config.image_reference import parse_reference
from nsupervisor.config.model import Config, WorkloadConfig
from nsupervisor.images.defaults import ImageDefaultError, image_chain, with_image
from nsupervisor.images.errors import ImageError, ImageUnavailableError
from nsupervisor.images.loading import find_loaded
from nsupervisor.images.store import ImageRecord, Store, Use
from nsupervisor.linux.trusted_paths import UntrustedPathError
from nsupervisor.service.state.uid_ranges import default_state_directory

LOAD_TIMEOUT_S = 600.0
"""The longest time for which the service waits for one image."""
_CODE = "import sys; sys.path.insert(0, sys.argv.pop(1)); from nsupervisor.cli.main import main; main()"


def resolve_images(config: Config, loads: bool = False) -> tuple[Config, dict[str, str]]:
    """Return the configuration with each image that is loaded as a directory, and why the other workloads have none.

    `loads`: images that are not loaded, or whose source has changed, are loaded first. It may take long: call it in a
    thread. A workload without its image cannot be started.
    """
    directory = config.supervisor.state_directory or default_state_directory()
    workloads, reasons = dict(config.workloads), {}
    for name, workload in workloads.items():
        if workload.root.image is not None:
            try:
                workloads[name] = _resolve(workload, directory, loads)
            except (ImageError, ImageDefaultError, UntrustedPathError, ValueError) as error:
                reasons[name] = str(error)
            except OSError as error:
                reasons[name] = f"it cannot be looked for in {directory}/images: {error.strerror}"
    return attrs.evolve(config, workloads=workloads), reasons


def _resolve(workload: WorkloadConfig, directory: str, loads: bool) -> WorkloadConfig:
    image = str(workload.root.image)
    record = _find(image, directory)
    if record is None and loads:
        _load(image, directory)
        record = _find(image, directory)
    if record is None:
        raise ImageError(f"it is not loaded, or has changed since; nsupervisor image load {image} loads it")
    return with_image(workload, record.config, f"{directory}/images/chains/{record.chain}/root")


def _find(image: str, directory: str) -> ImageRecord | None:
    try:
        with Store(directory, makes=False) as store:
            return find_loaded(parse_reference(image), store)
    except FileNotFoundError:
        return None


def _load(image: str, directory: str) -> None:
    """Load an image in a process of its own, whose memory is limited, and which a hostile image may end."""
    package = Path(nsupervisor.__file__).parent.parent
    arguments = ["image", "load", "--quiet", "--state-directory", directory, image]
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", _CODE, str(package), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=LOAD_TIMEOUT_S,
            cwd="/",
            env={"PATH": os.environ.get("PATH", os.defpath)},
        )
    except subprocess.TimeoutExpired:
        raise ImageError(
            f"it was not loaded within {LOAD_TIMEOUT_S:g} s; load it with nsupervisor image load"
        ) from None
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        reason = lines[-1].removeprefix(f"{image}: ") if lines else f"exit status {done.returncode}"
        raise ImageError(f"it cannot be loaded: {reason}")


def note_image_use(directory: str, instance: str, workload: WorkloadConfig) -> None:
    """Note that an instance is about to be started from its image, whose files are then kept. Raises OSError."""
    try:
        with Store(directory) as store:
            store.note_use(Use(instance, str(workload.root.image), image_chain(workload)))
    except ImageError as error:
        raise ImageUnavailableError(str(error)) from None


def forget_image_use(directory: str, instance: str) -> None:
    """Note that no process of an instance is left. Raises OSError."""
    try:
        with Store(directory, makes=False) as store:
            store.forget_use(instance)
    except FileNotFoundError:
        pass
