"""Keep the runs of dead supervisors: when they are freed, their clean-up code runs in the middle of a later test."""

import ctypes

from tests.simulation.service import DEAD_RUNS

# Not even the end of the process frees them.
ctypes.pythonapi.Py_IncRef(ctypes.py_object(DEAD_RUNS))
