"""The combinations of keys that commands before and after a program refuse."""

import pytest

from nsupervisor.config.load import ConfigError, parse

SITE = '[workload.web]\ncommand = ["a"]\n'


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("type = 'oneshot'\nexec_start_post = ['true']", "is for programs that keep running"),
        ("type = 'oneshot'\nexec_stop = ['true']", "use exec_stop_post"),
        ("exec_start_pre = ['true']\nnamespaces = { pid = false }", "needs a PID namespace that ends what it leaves"),
        ("exec_stop_post = ['true']\nnamespaces = { uts = 'path:/run/x' }", "cannot join namespaces (uts)"),
        ("exec_stop = ['true']\nkill_mode = 'process'\nnamespaces = { pid = false }", "this kill_mode leaves"),
        (f"exec_condition = {[['true']] * 17}", "has more than 16 commands; write a script"),
        ("exec_stop_post = ['@true']", 'the unknown prefix "@"'),
    ],
)
def test_refused_combinations_of_hooks(text, problem):
    with pytest.raises(ConfigError) as refused:
        parse(SITE + text, "f.toml")
    assert problem in str(refused.value)


def test_a_oneshot_may_have_commands_before_and_after():
    config = parse(
        f"{SITE}type = 'oneshot'\nexec_start_pre = ['true']\nexec_stop_post = [['-a'], ['b', 'c']]", "f.toml"
    )
    assert config.workloads["web"].exec_stop_post == (("-a",), ("b", "c"))
