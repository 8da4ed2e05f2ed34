"""Attempts to escape from a sandbox or to abuse privileges: `python3 attempts TARGETS`, or `--list`.

Each is harmless if it succeeds, and leaves the host as it was. `harness.py` states the form of the output.
"""

import cgroups  # noqa: F401 - registers its attempts, as do the others
import credentials  # noqa: F401
import devices  # noqa: F401
import files  # noqa: F401
import harness
import inherited  # noqa: F401
import kernel  # noqa: F401
import mounts  # noqa: F401
import namespaces  # noqa: F401
import network  # noqa: F401
import processes  # noqa: F401
import scheduling  # noqa: F401
import tunables  # noqa: F401

harness.main()
