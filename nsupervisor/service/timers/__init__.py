"""Timers while the service runs."""
