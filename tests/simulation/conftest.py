"""Dead supervisors are not collected while another one runs, and their complaints are not heard."""

import gc
import sys
import warnings
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def dead_supervisors() -> Iterator[None]:
    """Ignore what the tasks of dead supervisors complain of: they were never finished, as those of a killed process."""
    hook = sys.unraisablehook
    sys.unraisablehook = lambda _problem: None
    gc.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            yield
            gc.collect()
    finally:
        sys.unraisablehook = hook
        gc.enable()
