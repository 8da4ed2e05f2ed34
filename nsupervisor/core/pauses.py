"""How long to pause after work that others cause as often as they like, so that it does not keep a processor. Pure."""

DUTY_FACTOR = 9
"""Seconds of a pause for each second of work."""


def pause_after(work_s: float) -> float:
    """Return the seconds to pause after work of `work_s` seconds: it then has at most a tenth of a processor."""
    return DUTY_FACTOR * work_s
