"""From one TOML file to frozen classes, or to located errors."""

from nsupervisor.config.environment import load_environment, parse_environment
from nsupervisor.config.loading import load, parse
from nsupervisor.config.problems import ConfigError, Problem
from nsupervisor.config.schema import schema

__all__ = ["ConfigError", "Problem", "load", "load_environment", "parse", "parse_environment", "schema"]
