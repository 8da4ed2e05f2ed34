"""`kill_mode = "process"`: what it does not go with."""

import pytest

from nsupervisor.config.load import ConfigError, parse

ALONE = '[workload.web]\ncommand = ["true"]\nkill_mode = "process"\n'


def test_it_needs_the_pid_namespace_of_the_service() -> None:
    with pytest.raises(ConfigError, match=r"write namespaces = \{ pid = false \}"):
        parse(ALONE, "x.toml")
    parse(f"{ALONE}namespaces = {{ pid = false }}\n", "x.toml")


def test_it_ends_one_program() -> None:
    with pytest.raises(ConfigError, match="with this exit_type other processes replace it"):
        parse(f'{ALONE}namespaces = {{ pid = false }}\nexit_type = "cgroup"\n', "x.toml")
