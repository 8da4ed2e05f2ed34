"""The table of namespaces."""

from attrs import fields

from nsupervisor.config.model import NamespacesConfig
from nsupervisor.linux.namespaces import NAMESPACES, clone_flags


def test_the_order_of_earlier_versions_is_kept():
    """The stored digest of what a program was started with contains the names in this order."""
    assert list(NAMESPACES) == ["mount", "pid", "uts", "ipc", "cgroup", "network", "user", "time"]


def test_each_namespace_has_its_key_in_the_configuration():
    keys = {attribute.name for attribute in fields(NamespacesConfig)}
    assert set(NAMESPACES) == keys - {"hostname", "time_offsets"}


def test_flags_are_combined():
    assert clone_flags({"pid", "network"}) == NAMESPACES["pid"].flag | NAMESPACES["network"].flag
