"""The open descriptors of the test process, for tests that nothing may leak."""

import gc
import os


def open_descriptors() -> list[str]:
    """Return the numbers of the open descriptors, sorted as text.

    Collects garbage first. What earlier tests have left in cycles would be closed at any later moment otherwise, for
    example between two calls of which a test compares the results.
    """
    gc.collect()
    return sorted(os.listdir("/proc/self/fd"))
