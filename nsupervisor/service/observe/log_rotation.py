"""The rotation of the service's own log file, from the configuration."""

from nsupervisor.config.model import SupervisorConfig
from nsupervisor.logs import Rotation


def log_rotation(settings: SupervisorConfig) -> Rotation:
    """Return how `log_output` is rotated if it is a file."""
    return Rotation(settings.log_max_size, settings.log_max_files, settings.log_max_age, settings.log_compress)
