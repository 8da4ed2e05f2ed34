"""Load a TOML file into frozen classes, or report located errors.

`nsupervisor.config.load` has `load`, `parse`, `ConfigError` and `Problem`; `model` has the classes; `schema` the JSON
Schema; `environment` the environment files. This package imports none of them, so that each caller pays only for what
it uses.
"""
