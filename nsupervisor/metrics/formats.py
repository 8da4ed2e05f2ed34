"""Choose the format of a scrape's text from the request's Accept header. Pure.

prometheus_client can choose, too, but raises TypeError for a version that is not three numbers, and repeats the
client's version in the content type. So it gets only one of `FORMATS`.
"""

from __future__ import annotations

import re

OPENMETRICS = "application/openmetrics-text;version=1.0.0"
PROMETHEUS_TEXT_1 = "text/plain;version=1.0.0"
PROMETHEUS_TEXT = ""
FORMATS = (OPENMETRICS, PROMETHEUS_TEXT_1, PROMETHEUS_TEXT)
"""Accept headers for prometheus_client: OpenMetrics, and Prometheus' text format in its versions 1.0.0 and 0.0.4."""
_VERSION = re.compile(r"[1-9]\d{0,8}(\.\d{1,9}){0,2}", re.ASCII)


def choose_format(accept: str) -> str:
    """Return the first of `FORMATS` that an Accept header names; `PROMETHEUS_TEXT` if it names none. Weights are
    ignored."""
    for media_range in accept.split(","):
        media, *parameters = (part.strip() for part in media_range.split(";"))
        version = next((part[len("version=") :] for part in parameters if part.startswith("version=")), "")
        if media == "application/openmetrics-text" and (not version or _VERSION.fullmatch(version)):
            return OPENMETRICS
        if media == "text/plain" and _VERSION.fullmatch(version):
            return PROMETHEUS_TEXT_1
    return PROMETHEUS_TEXT
