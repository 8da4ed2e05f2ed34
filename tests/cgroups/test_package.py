"""What the package offers as a whole."""

import subprocess
import sys

import pytest

from nsupervisor import cgroups


@pytest.mark.parametrize("name", cgroups.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(cgroups, name) is not None


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        getattr(cgroups, "nonsense")  # noqa: B009 - a type checker knows that it is not there


def test_without_the_watcher_no_event_loop_is_loaded() -> None:
    """Commands that only look at the host shall start fast."""
    code = "import sys, nsupervisor.cgroups; sys.exit('trio' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
