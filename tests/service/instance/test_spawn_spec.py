"""The specification of a start, made from the configuration."""

import pytest

from nsupervisor.service.instance.spawn_spec import host_name


@pytest.mark.fault("B10")
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("web", "web"),
        ("web@2", "web-2"),
        ("a" * 64, "a" * 64),
        ("a" * 65, "a" * 64),
        ("a" * 128 + "@10000", "a" * 58 + "-10000"),
        ("a" * 60 + "----bbbb", "a" * 60),
    ],
)
def test_a_long_name_made_a_host_name_that_the_kernel_refuses(name: str, expected: str) -> None:
    assert host_name(name) == expected
    assert len(host_name(name)) <= 64
