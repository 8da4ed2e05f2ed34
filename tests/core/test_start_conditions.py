"""Conditions of starts, as in systemd.unit(5)."""

import pytest

from nsupervisor.config.model import WorkloadConfig
from nsupervisor.core.start_conditions import HostFacts, find_unmet, start_conditions

FACTS = HostFacts("Node-7", {"LANG": "C", "EMPTY": ""}, lambda path: path == "/is", lambda path: path == "/full")


@pytest.mark.parametrize(
    ("key", "value", "is_met"),
    [
        ("condition_path_exists", "/is", True),
        ("condition_path_exists", "/is-not", False),
        ("condition_path_exists", "!/is", False),
        ("condition_path_exists", "!/is-not", True),
        ("condition_file_not_empty", "/full", True),
        ("condition_file_not_empty", "!/full", False),
        ("condition_host", "node-7", True),
        ("condition_host", "node-*", True),
        ("condition_host", "!node-[0-5]", True),
        ("condition_host", "node", False),
        ("condition_environment", "LANG", True),
        ("condition_environment", "LANG=C", True),
        ("condition_environment", "LANG=de", False),
        ("condition_environment", "EMPTY=", True),
        ("condition_environment", "EMPTY", True),
        ("condition_environment", "!HOME", True),
    ],
)
def test_each_condition(key, value, is_met):
    conditions = start_conditions(WorkloadConfig("web", ("a",), **{key: (value,)}))
    unmet = find_unmet(conditions, FACTS)
    assert (unmet is None) is is_met
    assert unmet is None or str(unmet) == f'{key} = "{value}"'


def test_all_conditions_must_be_met_and_the_first_that_is_not_is_named():
    workload = WorkloadConfig(
        "web", ("a",), condition_path_exists=("/is", "!/is"), condition_host=("other",), condition_environment=("LANG",)
    )
    unmet = find_unmet(start_conditions(workload), FACTS)
    assert str(unmet) == 'condition_path_exists = "!/is"'
    assert start_conditions(WorkloadConfig("web", ("a",))) == ()
