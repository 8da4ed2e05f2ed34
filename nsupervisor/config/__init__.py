"""From one TOML file to frozen classes, or to located errors.

`nsupervisor.config.load` has `load`, `parse`, `ConfigError` and `Problem`; `model` has the classes; `schema` the JSON
Schema; `environment` the files of environment variables. Nothing is imported here, so that each costs only itself.
"""
