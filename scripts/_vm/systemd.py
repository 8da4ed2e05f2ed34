"""systemd as the guest's process 1 (`scripts/vm --systemd`)."""

from pathlib import Path

from .common import CACHE

INIT = "/lib/systemd/systemd"
DIRECTORY = CACHE / "systemd"
"""systemd's packages, unpacked, where the host does not have them."""

KERNEL_PARAMETERS: tuple[str, ...] = ()


def lower_directories() -> str:
    """The overlay's lower directories in the guest, the first one on top."""
    return "/lower/systemd:/lower/root" if Path(DIRECTORY).exists() else "/lower/root"


def prepare() -> None:
    pass
