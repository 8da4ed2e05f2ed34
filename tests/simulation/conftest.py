"""Dead supervisors are collected after each test, not while another one runs, and their complaints are not heard."""

import gc
import sys
import warnings
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def dead_supervisors() -> Iterator[None]:
    """Collect the runs of dead supervisors: their tasks were never finished, as those of a killed process."""
    gc.disable()
    yield
    hook = sys.unraisablehook
    sys.unraisablehook = lambda _problem: None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            gc.collect()
    finally:
        sys.unraisablehook = hook
        gc.enable()
