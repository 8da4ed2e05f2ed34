"""Timers: when a workload is due, and what to do then. Pure."""
