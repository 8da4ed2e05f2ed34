"""The images of workloads, `image_store`, which is loaded when a configuration has images: few have."""

from __future__ import annotations

from collections.abc import Callable

from nsupervisor.config.model import Config, WorkloadConfig

ResolveImages = Callable[..., tuple[Config, dict[str, str]]]
"""Returns the configuration with the images that are loaded, see `resolve_images`."""


def resolve_images(config: Config, loads: bool = False) -> tuple[Config, dict[str, str]]:
    """Return what `image_store.resolve_images` returns, without loading it for a configuration without images."""
    if not any(workload.root.image for workload in config.workloads.values()):
        return config, {}
    from nsupervisor.service.platform import image_store

    return image_store.resolve_images(config, loads)


def note_image_use(directory: str, instance: str, workload: WorkloadConfig) -> None:
    """Note that an instance is about to be started from its image, whose files are then kept. Raises OSError."""
    from nsupervisor.service.platform import image_store

    image_store.note_image_use(directory, instance, workload)


def forget_image_use(directory: str, instance: str) -> None:
    """Note that no process of an instance is left. Raises OSError."""
    from nsupervisor.service.platform import image_store

    image_store.forget_image_use(directory, instance)
