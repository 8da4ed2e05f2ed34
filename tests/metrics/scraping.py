"""Scrapes, as Prometheus does them."""

import socket
import urllib.request
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import trio
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text

from tests.timing import deadline

OPENMETRICS = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"


class Scrape:
    """What came back. `types`: by the names of families; `samples`: as the parser has them."""

    def __init__(self, text: str, content_type: str) -> None:
        self.text = text
        read = read_openmetrics if content_type.startswith("application/openmetrics-text") else read_text
        families = list(read(text))
        self.types = {family.name: family.type for family in families}
        self.samples = [sample for family in families for sample in family.samples]

    def values(self, name: str, **labels: str) -> Iterator[float]:
        """Of all samples of that name that have these labels, and maybe more."""
        for sample in self.samples:
            if sample.name == f"nsupervisor_{name}" and labels.items() <= sample.labels.items():
                yield sample.value

    def value(self, name: str, **labels: str) -> float:
        """Of the only one."""
        (value,) = self.values(name, **labels)
        return value


class _UnixConnection(HTTPConnection):
    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self.host)


def _over_unix(path: Path, accept: str) -> Scrape:
    connection = _UnixConnection(str(path), timeout=deadline(20))
    try:
        connection.request("GET", "/metrics", headers={"Accept": accept, "Host": "localhost"})
        response = connection.getresponse()
        assert response.status == 200, response.read()
        return Scrape(response.read().decode(), response.headers["content-type"])
    finally:
        connection.close()


def _over_tcp(url: str, accept: str) -> Scrape:
    request = urllib.request.Request(url, headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=deadline(20)) as response:
        return Scrape(response.read().decode(), response.headers["content-type"])


async def scrape(where: Path | str, accept: str = OPENMETRICS) -> Scrape:
    """Of a Unix socket, by its path, or of a URL."""
    one: Any = _over_unix if isinstance(where, Path) else _over_tcp
    return await trio.to_thread.run_sync(one, where, accept)


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on just now."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]
